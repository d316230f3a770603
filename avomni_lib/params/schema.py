"""Reading and validation of params files, before any kernel starts and again in the notebook.

Sections and keys are defined in `sections.py`. Values that a file or a notebook leaves out come
from the file that it `extends`: `params/demo.yaml` unless it names another.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator
from pydantic.fields import FieldInfo

from avomni_lib import files
from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.params import earlier_keys, notebook_cell, user_code, yaml_file
from avomni_lib.params.lerobot import FREE
from avomni_lib.params.online import DrivingParams, LiveParams
from avomni_lib.params.section import Section
from avomni_lib.params.sections import (
    DatasetParams,
    DownloadParams,
    EvaluationParams,
    ModelParams,
    ProcessingParams,
    PromptParams,
    RunParams,
    TrainingParams,
    VisionParams,
    WorldParams,
)

EXTENDS, DEMO_FILE = "extends", "params/demo.yaml"

CONFIDENTIAL = "contains confidential data: do not share"
NOT_ANONYMISED = (
    "real driving under Apache-2.0: nobody states that faces and number plates are anonymised"
)


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
    live: LiveParams = LiveParams()
    driving: DrivingParams = DrivingParams()

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        size, length = self.vision.window_size, self.processing.sequence_length
        training, target = self.training, self.training.target
        past = self.processing.past
        gathered, ranks = training.gradient_accumulation_steps, training.num_processes
        mistakes = {
            f"vision.window_size is {size} and processing.sequence_length is {length}: both name "
            "the frames of a window; make them equal or set window_size to null": size
            not in (None, length),
            f"training.gradient_accumulation_steps is {gathered} and training.num_processes is "
            f"{ranks}: the batches of a step are shared among the processes, so the second must "
            "divide the first": gathered % ranks,
            f"processing.past.seconds is {past.seconds} and processing.past.hz {past.hz}: that is "
            "less than one moment; raise one of them or set seconds to null": past.seconds
            and past.seconds * past.hz < 1,
            "training.patience waits for a better held-out figure, and none is made: set "
            "training.heldout_windows too": training.patience and not training.heldout_windows,
            f"training.target {target} speaks of other road users: set processing.obstacles to "
            "true, or choose another target": target in ("coc_v1", "full_v1")
            and not self.processing.obstacles,
            **self._mistakes_of_protocol(),
            "download.evict_raw removes raw files that can be fetched again, and those of "
            "dataset.source: folder cannot: set evict_raw to false": self.download.evict_raw
            and not self.is_fetched,
        }
        if wrong := [text for text, is_wrong in mistakes.items() if is_wrong]:
            raise ValueError("\n".join(wrong))
        return self

    def _mistakes_of_protocol(self) -> dict[str, Any]:
        protocol, ids = self.evaluation.protocol, self.evaluation.protocol_ids
        if not protocol:
            text = "evaluation.protocol_ids names clips, and evaluation.protocol is null: set it"
            return {text: ids}
        required = {"num_samples": 6, "temperature": 0.6, "top_p": 0.98, "max_windows": None}
        values = {name: getattr(self.evaluation, name) for name in required}
        return {
            f"evaluation.protocol {protocol} scores paths: set training.target to future_v1 or "
            "full_v1": self.training.target not in ("future_v1", "full_v1"),
        } | {
            f"evaluation.{name} is {values[name]}, and evaluation.protocol {protocol} has "
            f"{'null' if needed is None else needed}": values[name] != needed
            for name, needed in required.items()
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str = "parameters") -> Params:
        """Check plain values: sections of keys, and `extends` as in a params file.

        Raises:
            AvomniError: all mistakes at once, by the names of their keys; the file that the values
                extend cannot be read.
        """
        complete = _complete(earlier_keys.renamed(values), source)
        complete = earlier_keys.renamed(complete)  # keys that agree with the file below
        try:
            return cls.model_validate(complete)
        except ValidationError as error:
            raise _all_mistakes(error, source, complete) from None

    @classmethod
    def from_files(cls, paths: Sequence[str | Path], changes: Sequence[str] = ()) -> Params:
        """Merge params files key by key, later ones win, then apply `section.key=value` changes.

        Raises:
            AvomniError: as `from_values`; a file or a change cannot be read.
        """
        for path in reversed(paths):
            user_code.look_in(Path(path).parent)
        merged, source = _merged(paths), " + ".join(str(path) for path in paths)
        merged = yaml_file.merge(merged, yaml_file.parse_changes(changes))
        return cls.from_values(merged, source or "--set")

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> Params:
        """Read a notebook's `parameters` cell and the values that papermill injected after it.

        Only values that differ from their defaults count as set; the rest come from the file that
        `extends` names.

        Args:
            names: The notebook's `globals()`.

        Raises:
            AvomniError: as `from_values`; papermill was given a file that `run` would refuse, or
                dropped keys because a section was named in several of its options.
        """
        user_code.look_in(Path.cwd())
        notebook_cell.read_plainly()
        cell = {name: names[name] for name in (EXTENDS, *cls.model_fields) if name in names}
        injected = notebook_cell.injected(names)
        values = yaml_file.merge(notebook_cell.changed(cell, cls().values()), injected)
        p = cls.from_values(values, source="the notebook's parameters")
        if injected:
            given = notebook_cell.command_line()
            whole = cls.from_values(yaml_file.merge(given, values), "papermill's parameters")
            actual, expected = (_keys_of_values(params.values()) for params in (p, whole))
            if lost := [name for name in actual if actual[name] != expected[name]]:
                raise AvomniError(
                    "papermill takes only the last of several options that name a section, and "
                    f"these were dropped: {', '.join(lost)}",
                    where="papermill's -f, -y and -b",
                    fix="name the file by -p extends FILE.yaml instead of -f, or the key alone by "
                    "-p section.key VALUE",
                )
        return p

    @property
    def is_fetched(self) -> bool:
        """Whether raw files come from a hub; if not, they already lie in dataset.local_dir."""
        source = self.dataset.source
        return source != "folder" and not (source == "lerobot" and self.dataset.lerobot.is_local)

    @property
    def lerobot_profile(self) -> str | None:
        """The profile of a LeRobot data set's columns; None for other sources."""
        is_lerobot = self.dataset.source == "lerobot"
        return self.dataset.lerobot.profile if is_lerobot else None

    @property
    def rendered(self) -> WorldParams | None:
        """The world that the clips are rendered from; None for other sources."""
        return self.dataset.world if self.dataset.source == "world" else None

    @property
    def notice(self) -> str | None:
        """The notice that all output of the run must carry; None for our own rendering."""
        if self.rendered is not None:
            return None
        is_free = FREE.get(self.lerobot_profile or "") == self.dataset.repo_id.split("/")[0]
        return NOT_ANONYMISED if is_free else CONFIDENTIAL

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
        """The parameters that train the ladder's second adapter on black frames, or None.

        No held-out figure selects a checkpoint: the adapter can only learn the most common answer.
        """
        if not self.training.blind_steps:
            return None
        steps = min(self.training.blind_steps, self.training.max_steps or self.training.blind_steps)
        blind = {"blind": True, "max_steps": steps, "heldout_windows": None, "patience": None}
        return self.model_copy(update={"training": self.training.model_copy(update=blind)})

    def limited(self, num_chunks: int) -> Params:
        """The same run over at most `num_chunks` chunks (`--limit`)."""
        few = {"target_chunks": min(num_chunks, self.download.target_chunks)}
        if self.download.chunks is not None:
            few["chunks"] = self.download.chunks[:num_chunks]
        return self.model_copy(update={"download": self.download.model_copy(update=few)})

    @property
    def user_code(self) -> dict[str, str]:
        """Parameters that name an object in user code, as `module:attribute`."""
        named = {"training.target": self.training.target, "vision.cameras": self.vision.cameras}
        named |= {f"driving.policies[{n}]": name for n, name in enumerate(self.driving.policies)}
        return {name: value for name, value in named.items() if user_code.is_reference(value)}

    def code_rows(self) -> list[tuple[str, str, str]]:
        """Rows of a plan that list the user code the run will execute; none of it is run here."""
        return [
            (key, source.reference, f"{source.path}, sha256 {source.sha256[:12]}…")
            for key, value in self.user_code.items()
            for source in [user_code.find(value, key)]
        ]

    def values(self, *names: str) -> dict[str, Any]:
        """The named sections (`processing`) or keys (`processing.sample_hz`) as plain values.

        For keys that name user code, a sha256 of its source is added. Camera addresses are stripped
        of passwords, because the values are written into results and reports.
        """
        plain = self.model_dump(mode="json")
        if sources := plain["live"]["sources"]:
            shown = {camera: without_passwords(url) for camera, url in sources.items()}
            plain["live"]["sources"] = shown
        picked = {}
        for name in names or tuple(plain):
            value: Any = plain
            for part in name.split("."):
                value = value[part]
            picked[name] = value
        for key, value in self.user_code.items():
            if key in names or key.partition(".")[0] in names:
                picked[f"source of {key}"] = user_code.find(value, key).sha256
        return picked

    def complete(self) -> dict[str, Any]:
        """All values as a params file that extends no other one."""
        values = self.values()
        values["live"]["sources"] = self.live.sources
        return {EXTENDS: None, **values}

    def digest(self, *names: str) -> str:
        """A sha256 of the named parameters, which shows whether a finished stage is stale."""
        return files.hash_json(self.values(*names))


def left_out(paths: Sequence[str | Path]) -> str | None:
    """A note on files that leave out values without naming a file that they extend, or None."""
    merged = _merged(paths)
    if EXTENDS in merged:
        return None
    named = _keys_of_values(merged)
    num = sum(key not in named for key in _keys_of_values(Params().values()))
    note = f"{' + '.join(map(str, paths))} leaves out {num} parameters: they are as in {DEMO_FILE}"
    return f"{note}; for those of another file write `{EXTENDS}: FILE.yaml`" if num else None


def _merged(paths: Sequence[str | Path]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in paths:
        merged = yaml_file.merge(merged, yaml_file.read(Path(path)))
    return merged


def _complete(
    values: Mapping[str, Any],
    source: str,
    own_path: Path | None = None,
    seen: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """The values merged over those of the file that they extend.

    A file that extends itself, and `params/demo.yaml`, are merged over the defaults.
    """
    values_set = {name: value for name, value in values.items() if name != EXTENDS}
    named = values.get(EXTENDS, DEMO_FILE)
    if named is None:
        return values_set
    if not isinstance(named, str) or not named.strip() or "$" in named:
        raise AvomniError(
            f"{EXTENDS} names one params file, by its path (got {named!r})",
            where=source,
            fix=f"write `{EXTENDS}: {DEMO_FILE}`; relative paths start at the project root",
        )
    path = files.resolve(named).resolve()
    if path == own_path:
        return values_set
    if path in seen:
        raise AvomniError(
            f"{EXTENDS} goes round in a circle: {' -> '.join(map(str, (*seen, path)))}",
            where=source,
            fix=f"let one of them extend {DEMO_FILE}",
        )
    user_code.look_in(path.parent)
    below = _complete(yaml_file.read(path), str(path), path, (*seen, path))
    return yaml_file.merge(below, values_set)


def _keys_of_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of each key."""
    keys: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            keys |= _keys_of_values(value, f"{prefix}{name}.")
        else:
            keys[prefix + name] = value
    return keys


def _schema(section: type[BaseModel] = Params, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every section and key, a section before its keys, by dotted name."""
    for key, field in section.model_fields.items():
        yield prefix + key, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _schema(field.annotation, f"{prefix}{key}.")


def _nearest(dotted: str) -> str:
    """A hint for an unknown name: the same key in another section, or a similar one."""
    section, _, word = dotted.rpartition(".")
    parts = [(name, *name.rpartition(".")[::2]) for name, _ in _schema()]
    elsewhere = [name for name, _, last in parts if last == word]
    siblings = {last: name for name, above, last in parts if above == section}
    if close := difflib.get_close_matches(word, siblings, n=1, cutoff=0.7):
        return f"did you mean {siblings[close[0]]}?"
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    for names in (siblings, {last: name for name, _, last in parts}):
        if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
            return f"did you mean {names[close[0]]}?"
    return "its section knows " + (", ".join(siblings) or ", ".join(Params.model_fields))


_MESSAGES = {
    "model_type": "a section of keys is wanted",
    "tuple_type": "a list is wanted, as in [1, 2]",
}


def _all_mistakes(error: ValidationError, source: str, values: Mapping[str, Any]) -> AvomniError:
    lines = []
    for mistake in error.errors():
        name = ".".join(str(part) for part in mistake["loc"])
        if mistake["type"] == "extra_forbidden":
            earlier = earlier_keys.mistake(name, values)
            lines.append(earlier or f"{name}: unknown parameter; {_nearest(name)}")
        elif mistake["type"] == "value_error" and not name:
            lines += str(mistake["ctx"]["error"]).splitlines()
        else:
            own_error = mistake.get("ctx", {}).get("error")
            got = re.sub(r"//[^/@]*@", "//***@", reprlib.repr(mistake["input"]))
            message = _MESSAGES.get(mistake["type"], str(own_error or mistake["msg"]))
            lines.append(f"{name}: {message} (got {got})")
    return AvomniError(
        f"parameters to fix: {len(lines)}" + "".join(f"\n  - {line}" for line in lines),
        where=source,
        fix="every parameter, its unit and default: docs/parameters.md",
    )


def table() -> str:
    """Every parameter with its default and meaning: the table of docs/parameters.md."""
    lines = ["| parameter | default | meaning |", "| --- | --- | --- |"]
    for name, field in _schema():
        if field.description is not None:  # sections have none
            default = yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]
            lines.append(f"| `{name}` | `{default}` | {field.description} |")
    return "\n".join(lines)
