"""One schema for every params file, checked before any kernel starts and in the notebook.

A params file may leave out what it does not change; the defaults are those of the real run on one
MI300X.
`params/demo.yaml` states what the embedded default changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from avomni_lib import files
from avomni_lib.errors import AvomniError

DEMO_FILE = files.PROJECT_ROOT / "params" / "demo.yaml"
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class RunParams(Section):
    """The run's name and where everything that it makes goes."""

    name: str = Field(
        "mi300x", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="folder below outputs_dir"
    )
    seed: int = Field(0, description="of everything random: LoRA's start, the order of windows")
    outputs_dir: str = Field("outputs", description="relative paths start at the project root")


class WorldParams(Section):
    """The rendered drives of the embedded default (`dataset.source: world`)."""

    seed: int = Field(11, description="a clip is a function of this and of its number")
    town: str = Field(
        "harbour", description="look, camera heights and speeds; `meadow` is the tiny base's own"
    )
    num_chunks: Positive = Field(2, description="chunks published")
    clips_per_chunk: Positive = Field(50, description="clips in each")
    clip_seconds: Annotated[float, Field(ge=1)] = Field(8.0, description="s of video")
    width: Annotated[int, Field(ge=32, multiple_of=2)] = Field(
        128, description="px of each camera's video"
    )
    height: Annotated[int, Field(ge=32, multiple_of=2)] = Field(
        72, description="px of each camera's video"
    )


class DatasetParams(Section):
    """Which data set, where from, and where its raw files are kept."""

    source: Literal["world", "hub", "folder"] = Field(
        "hub", description="rendered world, Hugging Face, or a folder that already holds the files"
    )
    repo_id: str = Field(
        "nvidia/PhysicalAI-Autonomous-Vehicles", description="dataset repository on the hub"
    )
    revision: str | None = Field(
        None, description="40-hex commit; null takes main's once and records it"
    )
    endpoint: str | None = Field(None, description="another hub's address; null is huggingface.co")
    local_dir: str = Field(
        "outputs/data/physicalai_av", description="raw files, shared by all runs"
    )
    license_accepted: bool = Field(
        False, description="you read the data set's licence and decided; see README"
    )
    world: WorldParams = WorldParams()


class DownloadParams(Section):
    """How much of the data set is taken."""

    target_chunks: Positive = Field(1, description="chunks wanted (about 100 clips each)")
    target_size_gb: PositiveFloat = Field(150.0, description="GB (1e9) of raw files at most")
    chunks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="these chunks; null takes the first"
    )
    max_workers: Positive = Field(4, description="files fetched at a time")


class ProcessingParams(Section):
    """Clips to the cache, and the cache to windows."""

    sequence_length: Annotated[int, Field(ge=2)] = Field(16, description="frames in a window")
    stride: Positive = Field(8, description="frames from one window's start to the next one's")
    sample_hz: PositiveFloat = Field(2.0, description="sampled frames a second")
    tile_width: Annotated[int, Field(ge=8)] = Field(448, description="px of one camera in the grid")
    tile_height: Annotated[int, Field(ge=8)] = Field(
        256, description="px of one camera in the grid"
    )
    fit: Literal["letterbox", "crop", "stretch"] = Field(
        "letterbox", description="how a camera fills its tile"
    )
    decoder: Literal["auto", "pyav", "decord"] = Field(
        "auto", description="auto says what it took and why"
    )
    num_workers: Positive | None = Field(None, description="processes; null is one a core")
    horizon_s: Annotated[float, Field(ge=0)] = Field(
        6.4, description="s of ego motion kept after a clip's last frame"
    )


class VisionParams(Section):
    """What the model sees."""

    camera_setup: Literal["4-cam", "7-cam"] = Field("4-cam", description="2×2 or 3×3 grid")
    window_size: int | None = Field(
        None, description="must equal processing.sequence_length, or be left out"
    )


class ModelParams(Section):
    """The base model and its adapter."""

    base_model: str = Field(
        "unsloth/Qwen3-VL-8B-Instruct-bnb-4bit",
        description="hub name or folder; `tiny` is the package's own",
    )
    backbone: Literal["qwen3_vl"] = Field(
        "qwen3_vl", description="frames to pixel values and tokens"
    )
    backend: Literal["auto", "unsloth", "transformers"] = Field(
        "auto", description="auto: Unsloth on an accelerator"
    )
    load_in_4bit: bool = Field(
        True, description="NF4 with double quantisation; false is bf16 (fp32 on a CPU)"
    )
    max_seq_length: Annotated[int, Field(ge=16)] = Field(
        65_536, description="tokens; a longer sample is refused"
    )
    lora_rank: Positive = Field(64, description="higher learns more and takes more memory")
    lora_alpha: Positive = Field(64, description="scale of the adapter is alpha / rank")
    lora_dropout: Fraction = Field(0.0, description="share of adapter inputs dropped")


class TrainingParams(Section):
    """How the adapter is trained."""

    target: Literal["summary_v1"] = Field(
        "summary_v1", description="what the model must say about a window"
    )
    batch_size: Positive = Field(2, description="windows a step and device")
    gradient_accumulation_steps: Positive = Field(
        8, description="steps gathered before the optimizer moves"
    )
    learning_rate: PositiveFloat = Field(1.0e-4, description="peak, after the warm-up")
    num_epochs: PositiveFloat = Field(2, description="passes over the training windows")
    max_steps: Positive | None = Field(
        None, description="optimizer steps at most; null is all epochs"
    )
    optimizer: str = Field("paged_adamw_8bit", description="a name of transformers' `optim`")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="after the warm-up"
    )
    warmup_ratio: Fraction = Field(0.03, description="share of the steps")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(True, description="less memory, a third more time")
    save_steps: Positive = Field(50, description="optimizer steps between checkpoints")
    logging_steps: Positive = Field(1, description="optimizer steps between lines of metrics")


class EvaluationParams(Section):
    """How the score is made."""

    split: Literal["val", "test"] = Field(
        "test", description="held-out clips that are answered for"
    )
    max_windows: Positive | None = Field(
        None, description="evenly thinned to this many; null is all"
    )
    batch_size: Positive = Field(8, description="windows answered at a time")
    max_new_tokens: Annotated[int, Field(ge=16)] = Field(
        96, description="tokens an answer may have"
    )
    num_worst: Positive = Field(4, description="worst windows shown")


class Params(Section):
    """A whole params file; frozen."""

    run: RunParams = RunParams()
    dataset: DatasetParams = DatasetParams()
    download: DownloadParams = DownloadParams()
    processing: ProcessingParams = ProcessingParams()
    vision: VisionParams = VisionParams()
    model: ModelParams = ModelParams()
    training: TrainingParams = TrainingParams()
    evaluation: EvaluationParams = EvaluationParams()

    @model_validator(mode="after")
    def _window_size_is_sequence_length(self) -> Params:
        size, length = self.vision.window_size, self.processing.sequence_length
        if size is not None and size != length:
            raise ValueError(
                f"vision.window_size is {size} and processing.sequence_length is {length}: "
                "both name the frames of a window; make them equal or leave window_size out"
            )
        return self

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str = "parameters") -> Params:
        """Check plain values (sections of keys).

        Raises:
            AvomniError: every mistake at once, in the words of the YAML.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _all_mistakes(error, source) from None

    @classmethod
    def from_files(cls, paths: Sequence[str | Path], changes: Sequence[str] = ()) -> Params:
        """Params files laid over each other, key by key, then `section.key=value` changes."""
        merged: dict[str, Any] = {}
        for path in paths:
            merged = _merge(merged, _read_yaml(Path(path)))
        for change in changes:
            merged = _merge(merged, _parse_change(change))
        return cls.from_values(merged, source=" + ".join(str(path) for path in paths))

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> Params:
        """A notebook's `parameters` cell; an empty section takes `params/demo.yaml`'s values."""
        demo = _read_yaml(DEMO_FILE)
        values = {name: names.get(name) or demo.get(name, {}) for name in cls.model_fields}
        return cls.from_values(values, source="the notebook's parameters")

    @property
    def run_dir(self) -> Path:
        return files.resolve(self.run.outputs_dir) / self.run.name

    @property
    def cache_dir(self) -> Path:
        return self.run_dir / "cache"

    @property
    def checkpoints_dir(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def local_dir(self) -> Path:
        return files.resolve(self.dataset.local_dir)

    def values(self, *names: str) -> dict[str, Any]:
        """The named sections (`processing`) or keys (`processing.sample_hz`) as plain values."""
        plain = self.model_dump(mode="json")
        picked = {}
        for name in names or tuple(plain):
            value: Any = plain
            for part in name.split("."):
                value = value[part]
            picked[name] = value
        return picked

    def digest(self, *names: str) -> str:
        """A sha256 of the named parameters, to tell whether a finished stage still fits."""
        return files.hash_json(self.values(*names))


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        nearest = ", ".join(
            sorted(str(p.relative_to(files.PROJECT_ROOT)) for p in DEMO_FILE.parent.glob("*.yaml"))
        )
        raise AvomniError(
            "params file not found", where=str(path), fix=f"there are: {nearest}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise AvomniError(f"params file cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        raise AvomniError(
            f"not valid YAML: {error}", where=str(path), fix="mend the line that is named"
        ) from None
    if not isinstance(values or {}, dict):
        raise AvomniError(
            f"a params file holds sections of keys, this one holds a {type(values).__name__}",
            where=str(path),
            fix="start from params/demo.yaml",
        )
    # A section written with no keys below it is read as None by YAML: it means "nothing changed
    # here".
    return {name: {} if section is None else section for name, section in (values or {}).items()}


def _parse_change(change: str) -> dict[str, Any]:
    name, equals, text = change.partition("=")
    if not equals or "." not in name:
        raise AvomniError(
            f"cannot read --set {change!r}",
            fix="write section.key=value, as in processing.stride=4",
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AvomniError(f"cannot read the value of --set {change!r}: {error}") from None
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every key and section of the schema: its dotted name -> its last word."""
    names = {}
    for key, field in model.model_fields.items():
        names[prefix + key] = key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= _keys_of(field.annotation, f"{prefix}{key}.")
    return names


def _nearest(dotted: str) -> str:
    """How to go on from an unknown name: the same word in another section or a near one."""
    known = _keys_of(Params)
    section, _, word = dotted.rpartition(".")
    elsewhere = [name for name, last in known.items() if last == word]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    siblings = {last: name for name, last in known.items() if name.rpartition(".")[0] == section}
    for names in (siblings, {last: name for name, last in known.items()}):
        close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
        if close:
            return f"did you mean {names[close[0]]}?"
    return "its section knows " + (", ".join(siblings) or ", ".join(Params.model_fields))


def _all_mistakes(error: ValidationError, source: str) -> AvomniError:
    lines = []
    for mistake in error.errors():
        name = ".".join(str(part) for part in mistake["loc"])
        if mistake["type"] == "extra_forbidden":
            lines.append(f"{name}: unknown parameter; {_nearest(name)}")
        elif mistake["type"] == "value_error":
            lines.append(str(mistake["ctx"]["error"]))
        else:
            lines.append(f"{name}: {mistake['msg']} (got {mistake['input']!r})")
    count = f"{len(lines)} parameter{'s' if len(lines) > 1 else ''} to fix"
    return AvomniError(
        count + "".join(f"\n  - {line}" for line in lines),
        where=source,
        fix="every parameter, its unit and default: README, section Parameters",
    )


def table() -> str:
    """Every parameter with its default and meaning, as the README shows it (a test compares)."""
    lines = ["| parameter | default | meaning |", "| --- | --- | --- |"]

    def add(model: type[BaseModel], prefix: str) -> None:
        for key, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                add(field.annotation, f"{prefix}{key}.")
            else:
                default = yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]
                lines.append(f"| `{prefix}{key}` | `{default}` | {field.description} |")

    add(Params, "")
    return "\n".join(lines)
