"""What a model says about windows: greedy, in batches, and kept as it comes.

A batch is answered once: every finished one is appended to a file beside the stage's outputs, and
a run that is killed goes on after the last whole one. Batches always hold the same windows, so that
the end is the same to the last bit with or without an interruption.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from avomni_lib import files
from avomni_lib.plan import Bar
from avomni_lib.training.generation import say

if TYPE_CHECKING:
    from avomni_lib.training.conversation import Conversation

logger = logging.getLogger(__name__)


class Seen(Protocol):
    """What gives a window's frames (`etl/windows.py`: Windows)."""

    def frames(self, i: int) -> np.ndarray: ...


class Kept:
    """Finished batches of answers, for as long as nothing that they follow from changes.

    Args:
        path: A file of one JSON object a line; made by the first answer.
        key: Hash of all that the answers follow from; answers under another key are dropped.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.key = Path(path), key
        self.batches: dict[tuple[str, int], list[str]] = {}
        for row in _whole_lines(self.path):
            if row.get("key") == key:
                self.batches[row["model"], row["batch"]] = row["answers"]
        if self.batches:
            logger.info("%d batches of answers are kept in %s", len(self.batches), self.path)
        elif self.path.exists():
            self.path.unlink()

    def add(self, model: str, batch: int, answers: list[str]) -> None:
        """Append a batch; it is on the disk when this returns."""
        self.batches[model, batch] = answers
        row = {"key": self.key, "model": model, "batch": batch, "answers": answers}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            # A line that was cut short by a kill ends here, and is skipped for ever after.
            lead = b"\n" if file.tell() else b""
            file.write(lead + json.dumps(row).encode())
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # cut short
    return [row for row in rows if isinstance(row, dict)]


def key_of(**follows_from: Any) -> str:
    """The key of answers that follow from these plain values."""
    return files.hash_json(follows_from)


def blind_answers(
    model: Any, talk: Conversation, windows: Seen, indices: Sequence[int], max_new_tokens: int
) -> list[str]:
    """The same with every frame black: what the words alone give away.

    Black windows are all alike, and every window is asked with the very same words, so one is asked
    and its answer stands for all.
    """
    if not len(indices):
        return []
    black = np.zeros_like(windows.frames(int(indices[0])))
    return say(model, talk, black[None], max_new_tokens) * len(indices)


def answers(
    model: Any,
    talk: Conversation,
    windows: Seen,
    indices: Sequence[int],
    *,
    batch_size: int,
    max_new_tokens: int,
    name: str = "adapted",
    kept: Kept | None = None,
    bar: Bar | None = None,
) -> list[str]:
    """The model's answer for each of these windows, in their order.

    Args:
        windows: Whose `frames(i)` are (T, H, W, 3) uint8 RGB.
        indices: Which of them.
        batch_size: Windows answered at a time.
        name: The model's name in the ladder, under which its batches are kept.
        kept: Where finished batches go, and come from.
        bar: Moves by one a window.
    """
    spoken: list[str] = []
    for number, first in enumerate(range(0, len(indices), batch_size)):
        chosen = indices[first : first + batch_size]
        batch = kept.batches.get((name, number)) if kept else None
        if batch is None:
            frames = np.stack([windows.frames(int(i)) for i in chosen])
            batch = say(model, talk, frames, max_new_tokens)
            if kept:
                kept.add(name, number, batch)
        spoken += batch
        if bar:
            bar.update(len(chosen), note=name)
    return spoken
