"""A params file read and checked, before any kernel starts and again in the notebook.

Its sections and keys stand in `sections.py`. A file may leave out what it does not change.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.sections import (
    DatasetParams,
    DownloadParams,
    EvaluationParams,
    ModelParams,
    ProcessingParams,
    PromptParams,
    RunParams,
    Section,
    TrainingParams,
    VisionParams,
)

DEMO_FILE = files.PROJECT_ROOT / "params" / "demo.yaml"


class Params(Section):
    """A whole params file; frozen."""

    run: RunParams = RunParams()
    dataset: DatasetParams = DatasetParams()
    download: DownloadParams = DownloadParams()
    processing: ProcessingParams = ProcessingParams()
    vision: VisionParams = VisionParams()
    prompt: PromptParams = PromptParams()
    model: ModelParams = ModelParams()
    training: TrainingParams = TrainingParams()
    evaluation: EvaluationParams = EvaluationParams()

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        mistakes = []
        size, length = self.vision.window_size, self.processing.sequence_length
        if size is not None and size != length:
            mistakes.append(
                f"vision.window_size is {size} and processing.sequence_length is {length}: "
                "both name the frames of a window; make them equal or leave window_size out"
            )
        accumulated, ranks = (
            self.training.gradient_accumulation_steps,
            self.training.num_processes,
        )
        if accumulated % ranks:
            mistakes.append(
                f"training.gradient_accumulation_steps is {accumulated} and training.num_processes "
                f"is {ranks}: the batches of a step are shared among the processes, so the second "
                "must divide the first"
            )
        if self.training.patience and not self.training.heldout_windows:
            mistakes.append(
                "training.patience waits for a better held-out figure, and none is made: set "
                "training.heldout_windows too"
            )
        if self.training.packing and self.model.backend == "unsloth":
            mistakes.append(
                "training.packing needs attention that keeps windows apart, and Unsloth brings its "
                "own: set model.backend to auto or transformers, or packing to false"
            )
        if self.training.target in ("coc_v1", "full_v1") and not self.processing.obstacles:
            mistakes.append(
                f"training.target {self.training.target} speaks of other road users: set "
                "processing.obstacles to true, or choose another target"
            )
        if self.download.evict_raw and self.dataset.source == "folder":
            mistakes.append(
                "download.evict_raw removes raw files that can be fetched again, and those of "
                "dataset.source: folder cannot: set evict_raw to false"
            )
        if mistakes:
            raise ValueError("\n".join(mistakes))
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
        return self.run_dir / ("checkpoints_blind" if self.training.blind else "checkpoints")

    @property
    def local_dir(self) -> Path:
        return files.resolve(self.dataset.local_dir)

    def blinded(self) -> Params | None:
        """The training of the ladder's second adapter, on black frames; None where none is wanted.

        It is chosen by no held-out figure: all that it can learn is the most usual answer.
        """
        if not self.training.blind_steps:
            return None
        steps = min(self.training.blind_steps, self.training.max_steps or self.training.blind_steps)
        own = {"blind": True, "max_steps": steps, "heldout_windows": None, "patience": None}
        return self.model_copy(update={"training": self.training.model_copy(update=own)})

    def limited(self, num_chunks: int) -> Params:
        """The same run over at most so many chunks (`--limit`)."""
        few = {"target_chunks": min(num_chunks, self.download.target_chunks)}
        if self.download.chunks is not None:
            few["chunks"] = self.download.chunks[:num_chunks]
        return self.model_copy(update={"download": self.download.model_copy(update=few)})

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
            lines += str(mistake["ctx"]["error"]).splitlines()
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
