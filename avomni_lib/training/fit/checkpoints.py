"""A training's folder on the disk: checkpoints that are whole or not there, and its metrics.

transformers writes a checkpoint file by file into a folder that already bears its final name, so
that one killed in the middle of it looks like a checkpoint. Here it writes below `partial/`; the
folder gets the checksums of its files, is flushed to the disk and takes its name by one rename.
Before a training goes on from a checkpoint, the checksums are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.training.fit import heldout

NAME = re.compile(r"checkpoint-(?:0|[1-9]\d*)")
METRICS_FILE = "metrics.jsonl"
HISTORY_FILE = "heldout.json"  # in a checkpoint: its held-out figure and those before it
PLAN_FILE = "training.json"
CHECKSUMS_FILE = "checksums.json"  # in a checkpoint and an adapter: size and sha256 of each file
DAMAGED = "damaged-"  # how the name of a checkpoint begins that cannot be used


class Start(NamedTuple):
    """Where a training goes on from.

    Attributes:
        checkpoint: Its folder; None where the training starts anew.
        step: The optimizer step that it was made after, else 0.
        passed_over: Each newer checkpoint that cannot be used, with the reason, newest first.
    """

    checkpoint: Path | None
    step: int
    passed_over: list[str]

    def __str__(self) -> str:
        return f"from {self.checkpoint.name}" if self.checkpoint else "from the beginning"


class Checkpoints:
    """The checkpoints and metrics of one training; another training has another folder.

    Attributes:
        history: The held-out figures so far, one a checkpoint, oldest first.

    Args:
        folder: Below `run/checkpoints`; made if missing.
        plan: What makes this training this one, kept beside it for people.
        writes: Whether this process writes here; of several that train together one does.
        kept: The newest checkpoints that stay, two or more: the one before the last serves where
            the last is damaged.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], writes: bool = True, kept: int = 2):
        self.folder, self.kept = Path(folder), kept
        self.partial = self.folder / "partial"
        self.training = files.hash_json(plan)
        self.writes = writes
        self.history: list[dict[str, float]] = []
        self.metrics = Metrics(self.folder / METRICS_FILE)
        if writes:
            self.sweep()
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / PLAN_FILE, plan)

    def all(self) -> list[Path]:
        """The folders that bear a checkpoint's name, oldest first."""
        found = [path for path in self.folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
        return sorted((path for path in found if path.is_dir()), key=step_of)

    def last(self) -> Path | None:
        """The newest one, or None."""
        return next(reversed(self.all()), None)

    def at(self, step: int) -> Path:
        """Where the checkpoint after `step` lies, if there is one."""
        return self.folder / f"checkpoint-{step}"

    def resume(self) -> Start:
        """The newest checkpoint whose files are what was written; metrics and history are its own.

        Newer ones are renamed to `damaged-checkpoint-<step>`, for a person to look at: the
        training writes them anew. Processes that train together each come to the same answer.
        """
        found, passed_over = self.all(), []
        while found and (reason := self.fault(found[-1])):
            damaged = found.pop()
            passed_over.append(f"{damaged.name} is damaged: {reason}")
            if self.writes:
                aside = damaged.with_name(f"{DAMAGED}{damaged.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(damaged, aside)
        last = found[-1] if found else None
        self.history = _history_of(last) if last else []
        if self.writes:
            self.metrics.take_from(last)
            self._drop_old()  # which a kill may have left, whole or in part
        return Start(last, step_of(last) if last else 0, passed_over)

    def fault(self, checkpoint: Path) -> str | None:
        """Why a checkpoint cannot be used, in words; None where it can.

        It can where it is this training's, of the step that its name says, its files are what was
        written, and the same holds of the best checkpoint so far, whose adapter may come out.
        """
        step = step_of(checkpoint)
        reason = checksum_fault(checkpoint, step=step, training=self.training)
        if reason:
            return reason
        best = heldout.best(_history_of(checkpoint))
        if best is None or best["step"] == step:
            return None
        reason = checksum_fault(self.at(best["step"]), step=best["step"], training=self.training)
        return reason and f"the best one before it, {self.at(best['step']).name}: {reason}"

    def adopt(self, step: int, history: Sequence[dict[str, float]] = ()) -> Path:
        """Make `partial/checkpoint-<step>` a checkpoint, and drop all but the newest and the best.

        Args:
            history: The held-out figures up to this step.
        """
        written, name = self.partial / f"checkpoint-{step}", self.at(step)
        self.history = list(history)
        if history:
            files.write_json(written / HISTORY_FILE, self.history)
        self.metrics.copy_to(written)
        write_checksums(written, step=step, training=self.training)
        rename_folder(written, name)
        self._drop_old()
        return name

    def sweep(self, all_damaged: bool = False) -> None:
        """Remove what was written and is no checkpoint.

        Args:
            all_damaged: Also those that `resume` has passed over.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        for path in self.folder.glob(f"{DAMAGED}*") if all_damaged else ():
            shutil.rmtree(path, ignore_errors=True)

    def _drop_old(self) -> None:
        best = heldout.best(self.history)
        for old in self.all()[: -self.kept]:
            if best is None or step_of(old) != best["step"]:
                shutil.rmtree(old)


class Metrics:
    """`metrics.jsonl`, a line a logged step; a restart takes up the lines of its checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All lines; one that was cut off by a kill or is damaged is left out."""
        lines = []
        if self.path.exists():
            for text in self.path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    line = json.loads(text)
                    if isinstance(line, dict) and "step" in line:
                        lines.append(line)
        return lines

    def add(self, line: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def copy_to(self, checkpoint: Path) -> None:
        """Keep the lines so far in a checkpoint: whoever finds it finds its lines."""
        if self.path.exists():
            shutil.copyfile(self.path, checkpoint / self.path.name)

    def take_from(self, checkpoint: Path | None) -> None:
        """Have the lines that a checkpoint keeps and no others; none without a checkpoint."""
        kept = checkpoint and checkpoint / self.path.name
        files.write_text(self.path, kept.read_text() if kept and kept.exists() else "")


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was made after."""
    return int(checkpoint.name.rpartition("-")[2])


def _history_of(checkpoint: Path) -> list[dict[str, float]]:
    """The held-out figures up to a checkpoint."""
    path = checkpoint / HISTORY_FILE
    return files.read_json(path) if path.exists() else []


def rename_folder(written: Path, name: Path) -> None:
    """Flush a folder's files to the disk and give it its name; a folder that bears it is replaced.

    Raises:
        AvomniError: there is no room left on the disk to flush to.
    """
    try:
        for path in written.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            else:
                files.fsync_folder(path)
        files.fsync_folder(written)
    except OSError as error:
        raise AvomniError(f"cannot write: {error}", where=str(written)) from None
    if name.exists():
        old = name.with_name(f".{name.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(name, old)
        os.rename(written, name)
        shutil.rmtree(old)
    else:
        os.rename(written, name)
    files.fsync_folder(name.parent)


def write_checksums(folder: Path, **about: Any) -> None:
    """Write `checksums.json` for the files that lie in `folder` now; the caller flushes it.

    Args:
        about: Plain values that are kept beside the checksums and compared by `checksum_fault`.
    """
    found = {
        name: {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
        for name, path in _files_in(folder).items()
    }
    text = json.dumps({"about": about, "files": found}, indent=2) + "\n"
    (folder / CHECKSUMS_FILE).write_text(text)


def checksum_fault(folder: Path, only: Collection[str] | None = None, **about: Any) -> str | None:
    """What is wrong with a folder that `write_checksums` has described; None where nothing is.

    Hidden files are left aside: file systems and editors leave them.

    Args:
        only: Names of files to compare; None compares all, and lets no other file be there.
        about: What it has to be about; see `write_checksums`.
    """
    try:
        kept = files.read_json(folder / CHECKSUMS_FILE)
        written, of = kept["files"], kept["about"]
        expected = {name: (each["bytes"], each["sha256"]) for name, each in written.items()}
    except (AvomniError, OSError):
        return f"{CHECKSUMS_FILE} is missing or cannot be read"
    except (TypeError, KeyError, AttributeError):
        return f"{CHECKSUMS_FILE} does not hold checksums"
    if of != about:
        wrong = [name for name in about if not isinstance(of, dict) or of.get(name) != about[name]]
        return f"{CHECKSUMS_FILE} is about another {' and '.join(wrong or ['folder'])}"
    try:
        found = _files_in(folder)
        if only is not None:
            found = {name: path for name, path in found.items() if name in only}
            expected = {name: expected.get(name, (0, "")) for name in only}
        if missing := sorted(expected.keys() - found.keys()):
            return f"{', '.join(missing)} is missing"
        if extra := sorted(found.keys() - expected.keys()):
            return f"{', '.join(extra)} was not written by the training"
        for name, path in found.items():
            size, digest = expected[name]
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes, {size:,} were written"
            if files.sha256_file(path) != digest:
                return f"{name} is not what was written: its sha256 differs"
    except OSError as error:
        return f"it cannot be read: {error}"
    return None


def _files_in(folder: Path) -> dict[str, Path]:
    """The folder's files by their relative names, without hidden ones and the checksums."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: path
        for name, path in found.items()
        if not path.is_dir() and name != CHECKSUMS_FILE and not path.name.startswith(".")
    }
