"""A training's folder: atomic checkpoints with checksums, and its metrics.

transformers writes a checkpoint file by file into its final folder, so that an incomplete one left
by a kill looks like a checkpoint. Here it writes below `partial/`; then the checksums of its files
are added, the folder is flushed to disk and renamed. The checksums are verified before a training
is resumed from a checkpoint.
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
DAMAGED = "damaged-"  # prefix of the name of a checkpoint that cannot be used


class Start(NamedTuple):
    """Where a training starts or resumes.

    Attributes:
        checkpoint: Folder of the checkpoint; None if the training starts from the beginning.
        step: The checkpoint's optimizer step, else 0.
        passed_over: Newer checkpoints that cannot be used, with reasons, newest first.
    """

    checkpoint: Path | None
    step: int
    passed_over: list[str]

    def __str__(self) -> str:
        return f"from {self.checkpoint.name}" if self.checkpoint else "from the beginning"


class Checkpoints:
    """The checkpoints and metrics of one training; every training has its own folder.

    Args:
        folder: Folder below `run/checkpoints`; created if missing.
        plan: Everything that identifies this training, also stored for people.
        writes: Whether this process writes here; only one of several ranks does.
        kept: Number of newest checkpoints to keep, two or more, so that the one before the last can
            be used if the last is damaged.

    Attributes:
        history: The held-out figures so far, one per checkpoint, oldest first.
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
        """The folders with the name of a checkpoint, oldest first."""
        named = [path for path in self.folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
        return sorted((path for path in named if path.is_dir()), key=step_of)

    def last(self) -> Path | None:
        """The newest one, or None."""
        return next(reversed(self.all()), None)

    def at(self, step: int) -> Path:
        """Path of the checkpoint of a step, whether or not it exists."""
        return self.folder / f"checkpoint-{step}"

    def resume(self) -> Start:
        """Find the newest intact checkpoint, and restore its metrics and history.

        Newer, damaged ones are renamed to `damaged-checkpoint-<step>` for inspection, and the
        training writes them again. All ranks reach the same result.
        """
        usable, passed_over = self.all(), []
        while usable and (reason := self.fault(usable[-1])):
            damaged = usable.pop()
            passed_over.append(f"{damaged.name} is damaged: {reason}")
            if self.writes:
                aside = damaged.with_name(f"{DAMAGED}{damaged.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(damaged, aside)
        last = usable[-1] if usable else None
        self.history = _history_of(last) if last else []
        if self.writes:
            self.metrics.take_from(last)
            self._drop_old()  # a kill may have left old checkpoints
        return Start(last, step_of(last) if last else 0, passed_over)

    def fault(self, checkpoint: Path) -> str | None:
        """Why a checkpoint cannot be used; None if it can.

        A usable checkpoint belongs to this training and to the step in its name, and its files are
        intact. The same must hold for the best checkpoint so far, which may become the adapter.
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
        """Turn `partial/checkpoint-<step>` into a checkpoint; keeps only the newest and the best.

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
        """Remove partially written checkpoints.

        Args:
            all_damaged: Also remove those that `resume` has passed over.
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
    """`metrics.jsonl`, one line per logged step; resuming restores the lines of the checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All lines except truncated or damaged ones."""
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
        """Copy the lines so far into a checkpoint."""
        if self.path.exists():
            shutil.copyfile(self.path, checkpoint / self.path.name)

    def take_from(self, checkpoint: Path | None) -> None:
        """Restore the lines stored in a checkpoint; without a checkpoint, remove all."""
        kept = checkpoint and checkpoint / self.path.name
        files.write_text(self.path, kept.read_text() if kept and kept.exists() else "")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _history_of(checkpoint: Path) -> list[dict[str, float]]:
    path = checkpoint / HISTORY_FILE
    return files.read_json(path) if path.exists() else []


def rename_folder(written: Path, name: Path) -> None:
    """Flush a folder's files to disk and rename it; an existing folder of that name is replaced.

    Raises:
        AvomniError: the disk is full.
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
    """Write `checksums.json` for the present files of `folder`; the caller flushes it.

    Args:
        about: Plain values that are stored with the checksums and compared by `checksum_fault`.
    """
    checksums = {
        name: {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
        for name, path in _files_in(folder).items()
    }
    text = json.dumps({"about": about, "files": checksums}, indent=2) + "\n"
    (folder / CHECKSUMS_FILE).write_text(text)


def checksum_fault(folder: Path, only: Collection[str] | None = None, **about: Any) -> str | None:
    """Compare a folder with its `checksums.json`; returns the first difference, or None.

    Hidden files are ignored, as file systems and editors create them.

    Args:
        only: Names of files to compare; None compares all and allows no others.
        about: Expected values, see `write_checksums`.
    """
    try:
        kept = files.read_json(folder / CHECKSUMS_FILE)
        written, recorded = kept["files"], kept["about"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in written.items()}
    except (AvomniError, OSError):
        return f"{CHECKSUMS_FILE} is missing or cannot be read"
    except (TypeError, KeyError, AttributeError):
        return f"{CHECKSUMS_FILE} does not hold checksums"
    if recorded != about:
        recorded = recorded if isinstance(recorded, dict) else {}
        wrong = [name for name in about if recorded.get(name) != about[name]]
        return f"{CHECKSUMS_FILE} is about another {' and '.join(wrong or ['folder'])}"
    try:
        present = _files_in(folder)
        if only is not None:
            present = {name: path for name, path in present.items() if name in only}
            expected = {name: expected.get(name, (0, "")) for name in only}
        if missing := sorted(expected.keys() - present.keys()):
            return f"{', '.join(missing)} is missing"
        if extra := sorted(present.keys() - expected.keys()):
            return f"{', '.join(extra)} was not written by the training"
        for name, path in present.items():
            size, digest = expected[name]
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes, {size:,} were written"
            if files.sha256_file(path) != digest:
                return f"{name} is not what was written: its sha256 differs"
    except OSError as error:
        return f"it cannot be read: {error}"
    return None


def _files_in(folder: Path) -> dict[str, Path]:
    """Relative name -> path of the folder's files, without hidden files and the checksums."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: path
        for name, path in paths.items()
        if not path.is_dir() and name != CHECKSUMS_FILE and not path.name.startswith(".")
    }
