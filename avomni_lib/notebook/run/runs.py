"""A run's folder: the state of its stages, and their `result.json`.

A stage is done when its `result.json` exists, which is written last and atomically. It is stale if
a parameter that it reads, an output of a stage before it or one of its own files has changed, or if
a stage that it depends on is stale. The executed notebook is not evidence: after a kernel was
killed, all of its cells say "completed".

Paths in `result.json` are relative to the run's folder, and files are identified by their sha256,
so a run that was copied with other modification times stays done. A file with the recorded size and
time is not read again; changed bytes under an unchanged time are not noticed here
(`python -m avomni_lib verify` reads the whole cache).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files, hardware
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.select import split
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.shard import HEADER_FILE
from avomni_lib.notebook.run import faults, raw_files
from avomni_lib.notebook.run.stages import BY_NAME, Stage, stages_of
from avomni_lib.notebook.run.stages import STAGES as STAGES
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.training.fit import job
from avomni_lib.training.model import model_input

RESULT, FORMAT, CHECKED = "result.json", 2, ".checked.json"
ANOTHER = "is not what was written, its sha256 is another"
# Required fields of `result.json` and their types.
KINDS = dict.fromkeys(("finished_at", "digest", "params_digest"), str)
KINDS |= dict.fromkeys(("figures", "inputs", "params", "outputs"), dict)
# How long a second process waits while the first one renders; the demo takes two minutes.
WORLD_WAIT_S = 900.0
WORLD_OWNER = "avomni/"


@dataclass(frozen=True)
class StageState:
    """Whether a stage is done, with the reason.

    Attributes:
        makes_the_same: Running it is not expected to change its outputs for later stages.
        cause: For a stale stage, the stage that caused it and what changed there.
    """

    stage: Stage
    done: bool
    reason: str
    result: dict[str, Any] | None = None
    makes_the_same: bool = False
    cause: tuple[str, str] | None = None


def stage_dir(p: Params, name: str) -> Path:
    return p.run_dir / name


def executed_path(p: Params, stage: Stage) -> Path:
    """Path of the stage's executed notebook."""
    return stage_dir(p, stage.name) / f"{stage.name}.ipynb"


def read_result(p: Params, name: str) -> dict[str, Any] | None:
    """The stage's `result.json`; None if it is missing or damaged."""
    path = stage_dir(p, name) / RESULT
    try:
        return files.read_record(path, **KINDS)
    except AvomniError:
        return None


def state(p: Params, name: str, look: bool = True) -> StageState:
    """Whether the stage has to run, and why; without `look` from parameters and inputs alone."""
    current = _state(p, BY_NAME[name], look, look)
    if name == "05_train" and (at_work := job.at_work(p)) is not None:
        about = at_work[1]
        what = "training waits for its notebook" if about.get("waits") else "training now"
        words = f"{what}: process {about.get('pid')} since {about.get('started_at')}"
        return dataclasses.replace(current, done=False, reason=words)
    more = ""
    if name == "03_etl" and not current.done:
        more = raw_files.cache_in_words(p, current.result is None)
    elif name in ("01_audit", "04_tiles") and current.done:
        more = raw_files.evicted_in_words(p)
        more += "; it reads the cache" if name == "04_tiles" and more else ""
    return dataclasses.replace(current, reason=f"{current.reason}; {more}") if more else current


def _state(p: Params, stage: Stage, look: bool = True, raw: bool = True) -> StageState:
    """As `state`, ignoring a running training; `raw` checks the raw files too."""
    result = read_result(p, stage.name)
    if result is None:
        is_damaged = (stage_dir(p, stage.name) / RESULT).exists()
        return StageState(
            stage, False, f"stale: its {RESULT} is damaged" if is_damaged else "not run yet"
        )

    def stale(words: str, same: bool = False) -> StageState:
        same = same or stage.is_report
        return StageState(stage, False, f"stale: {words}", result, same, (stage.name, words))

    if result.get("format") != FORMAT:
        return stale("another version of this program ran it")
    for need in stage.needs:
        before = _state(p, BY_NAME[need], look, raw=False)
        if before.result is None:
            return stale(f"{need} has to run first")
        if not before.done and not before.makes_the_same:
            name, words = before.cause or (need, before.reason)
            because = f"stale because {name} is: {words}"
            return StageState(stage, False, because, result, stage.is_report, (name, words))
        if before.result["digest"] != result["inputs"].get(need):
            return stale(f"{need} made something else since")
    if look:
        for name, words in _wrong_files(p.run_dir, stage.name, result["outputs"]):
            return stale(f"{name} {words}")
    if changed := _changed_params(p, stage, result):
        same = stage.name == "03_etl" and list(changed) == [raw_files.EVICT]
        return stale(", ".join(changed.values()), same)
    finished = result["finished_at"]
    if stage.name == "03_etl" and (num := result["figures"].get("num_lost")):
        goes_on = read_result(p, "05_train") is None and job.goes_on(p, result["digest"])
        words = f"{num:,} clip{'s' * (num > 1)} lost to a fault of the machine: "
        words += (
            "tried again when the training that has begun is through"
            if goes_on
            else "the next run tries again, and where that goes well the stages after it run too"
        )
        return StageState(stage, goes_on, f"done {finished}; {words}", result, not goes_on)
    if stage.name == "02_download" and raw:
        done, reason = raw_files.download_in_words(p, _state(p, BY_NAME["03_etl"]).done)
        reason = f"done {finished}; {reason}" if done else f"stale: {reason}"
        return StageState(stage, done, reason, result)
    return StageState(stage, True, f"done {finished}, nothing that it reads has changed", result)


def states(p: Params) -> list[StageState]:
    return [state(p, stage.name) for stage in stages_of(p)]


class OpenStage:
    """A stage that runs in its notebook; `finish` writes its `result.json`."""

    def __init__(self, p: Params, stage: Stage):
        self.p, self.stage = p, stage
        self.folder = stage_dir(p, stage.name)
        self.figures_dir = self.folder / "figures"
        self._started, self._began_ns = time.monotonic(), time.time_ns()
        # Recorded at the start, as another process may rebuild the inputs in the meantime.
        self._inputs = {
            need: before["digest"] for need in stage.needs if (before := read_result(p, need))
        }

    @property
    def seconds(self) -> float:
        """Seconds since the stage was opened."""
        return round(time.monotonic() - self._started, 1)

    def save(self, figure: Any, name: str) -> Any:
        """Save a figure as `figures/<name>.png` beside the notebook and return it.

        A figure made from confidential clips gets a banner with the notice.
        """
        if self.p.notice:
            figure.banner(self.p.notice)
        with files.write_whole(self.figures_dir / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=100)
        return figure

    def finish(
        self,
        figures: dict[str, Any],
        outputs: Sequence[Path] | Mapping[Path, str | None] = (),
        digest: str | None = None,
    ) -> dict[str, Any]:
        """Write `result.json`: the stage is done.

        Args:
            figures: The stage's figures as plain values.
            outputs: Files in the run's folder whose change or loss makes the stage stale,
                optionally with their sha256.
            digest: Identifies the outputs for later stages, which are stale when it changes;
                defaults to the hash of the outputs.
        """
        described = _describe(self.p.run_dir, self.stage.name, outputs, self._began_ns)
        if digest is None:
            digest = files.hash_json([entry["sha256"] for entry in described.values()])
        result = {
            "format": FORMAT,
            "stage": self.stage.name,
            "finished_at": files.now(),
            "seconds": self.seconds,
            "peak_memory_gb": round(hardware.peak_host_gb(), 2),
            "figures": figures,
            "digest": digest,
            "inputs": self._inputs,
            "params_digest": self.p.digest(*self.stage.reads),
            "params": self.p.values(*self.stage.reads),
            "split_sha256": split.sha256_of(self.p),
            "outputs": described,
            "provenance": hardware.provenance(),
        }
        files.write_json(self.folder / RESULT, result)
        return {key: result[key] for key in ("stage", "seconds", "peak_memory_gb", "figures")}


def forget(p: Params, stage: Stage) -> None:
    """Remove the files from which a stage would resume.

    Raises:
        AvomniError: a training is running in the folder.
    """
    if stage.name == "05_train" and job.at_work(p) is not None:
        raise AvomniError(
            "a training works in this run folder",
            where=str(p.checkpoints_dir),
            fix="stop it first: python -m avomni_lib stop PARAMS.yaml",
        )
    for name in stage.keeps:
        path = p.run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def drop_damaged(p: Params, stage: Stage) -> None:
    """Invalidate damaged shards of the cache, so that 03 rebuilds only these."""
    result = read_result(p, stage.name)
    if stage.name != "03_etl" or result is None or result.get("format") != FORMAT:
        return
    for name, _ in list(_wrong_files(p.run_dir, stage.name, result["outputs"])):
        folder = (p.run_dir / name).parent
        if folder.parent == p.cache_dir:
            (folder / HEADER_FILE).unlink(missing_ok=True)  # a shard without header is incomplete


def start(p: Params, name: str) -> OpenStage:
    """Open a stage; removes its old `result.json` and partially written files.

    Raises:
        AvomniError: a stage before it is not done, or the notebook belongs to another copy of the
            project.
    """
    if other := files.copy_in_sight():
        raise AvomniError(
            f"this notebook is of {other}, and the package of {files.PROJECT_ROOT}: "
            "the run would use that one's code and outputs",
            where=sys.executable,
            fix=f"pip install -e {other}, or run python -m avomni_lib in that folder",
        )
    stage = BY_NAME[name]
    for need in stage.needs:
        if read_result(p, need) is None:
            raise AvomniError(
                f"{name} needs what {need} makes, and {need} is not done",
                where=str(stage_dir(p, need) / RESULT),
                fix=f"run notebooks/{need}.ipynb first or all: python -m avomni_lib run",
            )
    faults.show_messages()
    drop_damaged(p, stage)
    folder = stage_dir(p, name)
    (folder / RESULT).unlink(missing_ok=True)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    files.sweep_partials(folder)
    return OpenStage(p, stage)


def world_dir(p: Params) -> Path:
    """Folder of the rendered world, shared by all runs with the same `dataset.world`."""
    return files.resolve(p.run.outputs_dir) / "world" / p.digest("dataset.world")[:12]


def raw_folders(p: Params) -> list[Path]:
    """Folders that may hold raw files: the downloads, and the rendered world with all cameras."""
    return [p.local_dir, world_dir(p)] if p.rendered else [p.local_dir]


def open_hub(p: Params, progress: type[Bar] = Bar) -> Hub | None:
    """The hub from which the stages download; None for `dataset.source: folder`.

    For the demo the world is rendered if it is missing, and a hub on a free port of 127.0.0.1
    serves it until this process exits.

    Raises:
        AvomniError: `dataset.source` is `world` and `dataset.repo_id` names another data set.
    """
    if not p.is_fetched:
        return None
    if not p.rendered:
        return Hub(
            p.dataset.repo_id,
            revision=p.dataset.revision,
            endpoint=p.dataset.endpoint,
            allow_plain_http=p.dataset.allow_plain_http,
        )
    if not p.dataset.repo_id.startswith(WORLD_OWNER):
        raise AvomniError(
            f"dataset.source is world, which renders its own clips, and dataset.repo_id names "
            f"{p.dataset.repo_id}",
            where="dataset.source",
            fix="set dataset.source to hub or folder, write `extends: params/mi300x.yaml` into "
            f"the params file, or call the rendered clips {WORLD_OWNER}…",
        )
    # The renderer takes a second to import, and only this source needs it.
    from avomni_world import local_hub
    from avomni_world.publish import dataset

    folder = world_dir(p)
    busy = "another process is rendering this world"
    with files.hold(folder.with_name(f".{folder.name}.lock"), busy, WORLD_WAIT_S):
        dataset.publish(p, folder, progress=progress)
    server = _serving.enter_context(local_hub.LocalHub(folder, p.dataset.repo_id))
    revision = p.dataset.revision or server.commit
    return Hub(p.dataset.repo_id, revision=revision, endpoint=server.endpoint)


_serving = contextlib.ExitStack()
atexit.register(_serving.close)


def _changed_params(p: Params, stage: Stage, result: dict[str, Any]) -> dict[str, str]:
    """Changed parameters that make the stage stale -> description of the change."""
    if result["params_digest"] == p.digest(*stage.reads):
        return {}
    then, now = model_input.flat(result["params"]), model_input.flat(p.values(*stage.reads))
    names = [
        name
        for name in dict.fromkeys([*then, *now])
        if name not in then or name not in now or then[name] != now[name]
    ]
    changed = {
        name: f"{name} changed (was {_short(_at(then, name))}, is {_short(_at(now, name))})"
        for name in names
        if not any(name.startswith(f"{other}.") for other in names)
    }
    matter = raw_files.what_matters(p, stage.name, list(changed), result["params"])
    return {name: changed[name] for name in matter}


def _at(flat: Mapping[str, Any], name: str) -> Any:
    """A value of flat parameters; nested keys are collected into a dictionary."""
    nested = {key[len(name) + 1 :]: flat[key] for key in flat if key.startswith(f"{name}.")}
    return nested or flat.get(name)


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder="…")


def _describe(
    run_dir: Path, stage: str, made: Sequence[Path] | Mapping[Path, str | None], since_ns: int
) -> dict[str, dict[str, Any]]:
    """Path relative to the run's folder -> {"bytes", "sha256"} of a stage's output files.

    Args:
        made: The files, optionally with their sha256.
        since_ns: Start of the stage; older files are read even if their sha256 is given.

    Raises:
        AvomniError: the sha256 of an older file is not the given one.
    """
    hashes = made if isinstance(made, Mapping) else {}
    known, described, checked = _read_checked(run_dir / stage), {}, {}
    for path in made:
        name = Path(os.path.relpath(path, run_dir)).as_posix()
        size, date = files.state_of(Path(path)) or (0, 0)
        sha256 = hashes.get(path)
        if not sha256 or (date < since_ns and known.get(name) != [size, date, sha256]):
            actual = files.sha256_file(path)
            if sha256 not in (None, actual):
                raise AvomniError(
                    f"{name} {ANOTHER}",
                    where=str(path),
                    fix=f"remove {Path(path).parent} and run {stage} again",
                )
            sha256 = actual
        described[name] = {"bytes": size, "sha256": sha256}
        checked[name] = [size, date, sha256]
    _write_checked(run_dir / stage, checked)
    return described


def _wrong_files(
    run_dir: Path, stage: str, described: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """(path relative to the run's folder, problem) of each file that has changed or is missing.

    A file of the right size is read only if its modification time is not the recorded one.
    """
    known, fresh = _read_checked(run_dir / stage), {}
    try:
        for name, entry in described.items():
            state = files.state_of(run_dir / name)
            if state is None:
                yield name, "is missing"
            elif state[0] != entry["bytes"]:
                yield name, f"has another size, {state[0]:,} for {entry['bytes']:,} bytes"
            elif known.get(name) != [*state, entry["sha256"]]:
                try:
                    is_same = files.sha256_once(run_dir / name) == entry["sha256"]
                except OSError as error:
                    yield name, f"cannot be read: {error.strerror}"
                    continue
                if is_same:
                    fresh[name] = [*state, entry["sha256"]]
                else:
                    yield name, ANOTHER
    finally:
        if fresh:
            _write_checked(run_dir / stage, known | fresh)


def _read_checked(folder: Path) -> dict[str, Any]:
    """Sizes, times and hashes of verified files; empty if they are not recorded."""
    with contextlib.suppress(AvomniError, OSError):
        known = files.read_json(folder / CHECKED)
        return known if isinstance(known, dict) else {}
    return {}


def _write_checked(folder: Path, checked: Mapping[str, Any]) -> None:
    # If this cannot be written, files are read again next time.
    with contextlib.suppress(OSError, AvomniError):
        files.write_json(folder / CHECKED, dict(checked))
