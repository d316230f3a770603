"""Windows to batches, ahead of the step: one background thread, a bounded queue, uint8 frames.

A window is tens of megabytes that only have to be copied; a thread does that while the device
works, where worker processes would copy each batch once more through shared memory.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from avomni_lib.errors import AvomniError

DEPTH = 2  # batches ready before they are asked for


class Frames(Protocol):
    """What batches are read from; `etl.windows.Windows` is one."""

    def __len__(self) -> int: ...

    def frames(self, index: int) -> np.ndarray:
        """(T, H, W, 3) uint8."""


@dataclass(frozen=True)
class Order:
    """Which windows each batch of a run holds: a function of the seed and the batch's number.

    One shuffled pass over all windows follows another; batches are cut from that endless row, so
    that every batch is full and any of them can be the next one after a restart.

    Attributes:
        num_windows: Windows to choose from.
        batch_size: Windows in a batch of one rank.
        num_batches: Batches that each rank takes in the whole run.
        seed: Of the shuffles.
        rank, num_ranks: This process's share where several train together.
    """

    num_windows: int
    batch_size: int
    num_batches: int
    seed: int
    rank: int = 0
    num_ranks: int = 1

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, batch: int) -> list[int]:
        if not 0 <= batch < self.num_batches:
            raise IndexError(batch)
        first = (batch * self.num_ranks + self.rank) * self.batch_size
        return [self.window_at(place) for place in range(first, first + self.batch_size)]

    def window_at(self, place: int) -> int:
        """The window at a place in the endless row."""
        epoch, offset = divmod(place, self.num_windows)
        return int(_shuffled(self.num_windows, self.seed, epoch)[offset])


@functools.lru_cache(maxsize=2)
def _shuffled(num_windows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_windows)


class Loader:
    """Batches by number, read ahead; asking for another number than the next one starts there.

    Args:
        windows: Where frames come from.
        batches: The windows of each batch.
        tokens: Windows of a batch -> its tensors but the frames.
        depth: Batches kept ready.
        pin: Page-locked memory, for a fast copy to an accelerator.

    A batch is the dict of `tokens` with `frames` (B, T, H, W, 3) uint8. Errors of the thread are
    raised to whoever asks for the batch. `waited_s` is the time that callers waited so far.
    """

    def __init__(
        self,
        windows: Frames,
        batches: Sequence[Sequence[int]],
        tokens: Callable[[Sequence[int]], dict[str, Any]],
        *,
        depth: int = DEPTH,
        pin: bool = False,
    ):
        self.windows, self.batches, self.tokens = windows, batches, tokens
        self.depth, self.pin = depth, pin
        self.waited_s = 0.0
        self._spare: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        self._thread: threading.Thread | None = None
        self._next = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> dict[str, Any]:
        if not 0 <= batch < len(self.batches):
            raise IndexError(batch)
        if self._thread is None or batch != self._next:
            self._start(batch)
        asked = time.perf_counter()
        found = self._ready.get()
        self.waited_s += time.perf_counter() - asked
        if isinstance(found, BaseException):
            self.close()
            raise found
        self._next = batch + 1
        if self._next == len(self.batches):
            self.close()
        return found

    def give_back(self, frames: torch.Tensor) -> None:
        """Return a batch's frames once nothing reads them: their memory serves a later batch.

        Fresh memory for each batch would cost as much time as the copy itself.
        """
        spare = self._spare[tuple(frames.shape)]
        if len(spare) <= self.depth:
            spare.append(frames)

    def close(self) -> None:
        """Stop the thread and drop what it has read; the loader can be used again."""
        if self._thread is None:
            return
        self._stop.set()
        while self._thread.is_alive():
            try:  # it may be waiting for room
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.01)
        self._thread = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, batch: int) -> None:
        self.close()
        self._next = batch
        # Each thread has its own queue and signal: one that is late cannot disturb its successor.
        self._ready: queue.Queue = queue.Queue(maxsize=self.depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._work,
            args=(batch, self._ready, self._stop),
            name="avomni-loader",
            daemon=True,
        )
        self._thread.start()

    def _work(self, batch: int, ready: queue.Queue, stop: threading.Event) -> None:
        for number in range(batch, len(self.batches)):
            try:
                made: Any = self._make(self.batches[number])
            except BaseException as error:  # the caller raises it
                made = error
            ready.put(made)
            if stop.is_set() or isinstance(made, BaseException):
                return

    def _make(self, indices: Sequence[int]) -> dict[str, Any]:
        first = self.windows.frames(indices[0])
        frames = self._memory((len(indices), *first.shape))
        view = frames.numpy()
        for row, index in enumerate(indices):
            window = first if row == 0 else self.windows.frames(index)
            if window.shape != first.shape or window.dtype != np.uint8:
                raise AvomniError(
                    f"window {index} is {window.shape} {window.dtype}, "
                    f"its batch is {first.shape} uint8",
                    fix="run 03_etl again",
                )
            view[row] = window
        return {**self.tokens(indices), "frames": frames}

    def _memory(self, shape: tuple[int, ...]) -> torch.Tensor:
        spare = self._spare[shape]
        return spare.pop() if spare else torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin)
