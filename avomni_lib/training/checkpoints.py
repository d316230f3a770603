"""A training's folder on the disk: checkpoints that are whole or not there, and its metrics.

transformers writes a checkpoint file by file into a folder that already bears its final name, so
that one killed in the middle of it looks like a checkpoint. Here it writes below `partial/`; the
folder is flushed to the disk and takes its name by one rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.training import heldout

KEPT = 2  # checkpoints; the one before the last serves where the last was damaged by hand or disk
METRICS_FILE = "metrics.jsonl"
HISTORY_FILE = "heldout.json"  # in a checkpoint: its held-out figure and those before it
PLAN_FILE = "training.json"


class Checkpoints:
    """The checkpoints and metrics of one training; another training has another folder.

    Args:
        folder: Below `run/checkpoints`; made if missing.
        plan: What makes this training this one, kept beside it for people.
        writes: Whether this process writes here; of several that train together one does.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], writes: bool = True):
        self.folder = Path(folder)
        self.partial = self.folder / "partial"
        self.writes = writes
        self.metrics = Metrics(self.folder / METRICS_FILE)
        if writes:
            self.sweep()
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / PLAN_FILE, plan)
            self._drop_old()  # which a kill may have left, whole or in part

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob("checkpoint-*"), key=step_of)

    def last(self) -> Path | None:
        """The one to go on from, or None to start anew."""
        return next(reversed(self.all()), None)

    def at(self, step: int) -> Path:
        """Where the checkpoint after `step` lies, if there is one."""
        return self.folder / f"checkpoint-{step}"

    def history(self) -> list[dict[str, float]]:
        """The held-out figures up to the last checkpoint, one a checkpoint, oldest first."""
        last = self.last()
        path = last and last / HISTORY_FILE
        return files.read_json(path) if path and path.exists() else []

    def adopt(self, step: int, history: Sequence[dict[str, float]] = ()) -> Path:
        """Make `partial/checkpoint-<step>` a checkpoint, and drop all but the newest and the best.

        Args:
            history: The held-out figures up to this step.
        """
        self.metrics.sync()  # whoever finds the checkpoint finds its lines
        written, name = self.partial / f"checkpoint-{step}", self.at(step)
        if history:
            files.write_json(written / HISTORY_FILE, list(history))
        rename_folder(written, name)
        self._drop_old()
        return name

    def sweep(self) -> None:
        """Remove what was written and is no checkpoint."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _drop_old(self) -> None:
        best = heldout.best(self.history())
        for old in self.all()[:-KEPT]:
            if best is None or step_of(old) != best["step"]:
                shutil.rmtree(old)


class Metrics:
    """`metrics.jsonl`, a line a logged step; a restart drops the lines after its checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All lines; a last one that was cut off by a kill is left out."""
        lines = []
        if self.path.exists():
            for text in self.path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(text))
        return lines

    def cut_after(self, step: int) -> None:
        """Keep the lines up to and with `step`."""
        kept = [json.dumps(line) + "\n" for line in self.read() if line["step"] <= step]
        files.write_text(self.path, "".join(kept))

    def add(self, line: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def sync(self) -> None:
        if self.path.exists():
            with open(self.path, "a") as file:
                os.fsync(file.fileno())


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was made after."""
    return int(checkpoint.name.rpartition("-")[2])


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
