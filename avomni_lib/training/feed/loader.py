"""Prefetches batches of windows: one background thread, a ring of buffers, uint8 frames.

A window is tens of megabytes that only have to be copied. The thread does so while the device
works, into reused memory; worker processes would copy each batch once more, into newly allocated
shared memory.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from avomni_lib.errors import AvomniError

DEPTH = 2  # number of batches that are prefetched


class Frames(Protocol):
    """Source of the frames, such as `etl.cache.windows.Windows`."""

    def __len__(self) -> int: ...

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of each window."""

    def read_into(self, index: int, out: np.ndarray) -> None:
        """Fill `out` (T, H, W, 3) uint8, C-contiguous."""


@dataclass(frozen=True)
class Order:
    """The windows of each batch of a run, as a function of the seed and the batch's number.

    Batches are cut from an endless sequence of shuffled passes over all windows, so that every
    batch is full and a training can be resumed at any of them.

    Attributes:
        num_batches: Batches of each rank in the whole run.
        rank, num_ranks: This process's rank if several train together.
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
        """The window at a place in the endless sequence."""
        epoch, offset = divmod(place, self.num_windows)
        return int(_shuffled(self.num_windows, self.seed, epoch)[offset])


@functools.lru_cache(maxsize=2)
def _shuffled(num_windows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_windows)


@dataclass(eq=False, slots=True)
class _Buffer:
    """A buffer of the ring.

    Attributes:
        frames: (B, T, H, W, 3) uint8, B of the largest batch.
        after: Event to wait for before the buffer is written again.
    """

    frames: torch.Tensor
    after: torch.cuda.Event | None = None


class Loader:
    """Batches by number, prefetched; a number out of sequence restarts the prefetching there.

    A batch is the dict of `tokens` with `frames` (B, T, H, W, 3) uint8, which the caller has to
    give back. Errors of the thread are raised on access to the batch. `waited_s` is the total time
    that the caller has waited. Not thread-safe.

    Frames are stored in a ring of depth + held + 1 buffers of the largest batch, allocated at the
    first batch (page-locked ones rounded up to a power of two bytes). Nothing else depends on a
    window's size.

    Args:
        tokens: Windows of a batch -> its tensors except the frames; called by the thread.
        depth: Number of prefetched batches.
        held: Number of batches that the caller keeps before it gives one back.
        pin: Use page-locked memory, for a fast copy to an accelerator.
    """

    def __init__(
        self,
        windows: Frames,
        batches: Sequence[Sequence[int]],
        tokens: Callable[[Sequence[int]], dict[str, Any]],
        *,
        depth: int = DEPTH,
        held: int = 1,
        pin: bool = False,
    ):
        self.windows, self.batches, self.tokens = windows, batches, tokens
        self.depth, self.held, self.pin = depth, held, pin
        self.waited_s = 0.0
        self._ring: list[_Buffer] = []
        self._lent: dict[int, _Buffer] = {}  # address -> buffer, held by the caller
        self._thread: threading.Thread | None = None
        self._next = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> dict[str, Any]:
        if not 0 <= batch < len(self.batches):
            raise IndexError(batch)
        if len(self._lent) == self._num_buffers:  # the thread would wait forever
            raise AvomniError(
                f"batch {batch} was asked for while all {self._num_buffers} that the loader has "
                "memory for are with the caller",
                fix="give_back(batch['frames']) once a batch's frames are read, or make the loader "
                f"with held={len(self._lent)}",
            )
        if self._thread is None or batch != self._next:
            self._start(batch)
        asked = time.perf_counter()
        item = self._ready.get()
        self.waited_s += time.perf_counter() - asked
        if isinstance(item, BaseException):
            self.close()
            raise item
        buffer, made = item
        frames = buffer.frames[: len(self.batches[batch])]
        self._lent[frames.data_ptr()] = buffer
        self._next = batch + 1
        if self._next == len(self.batches):
            self.close()
        return {**made, "frames": frames}

    def give_back(self, frames: torch.Tensor, after: torch.cuda.Event | None = None) -> None:
        """Return a batch's frames, whose memory is reused for a later batch.

        Args:
            frames: The batch's `frames`, not a copy or a part.
            after: Event after the last use of the frames, such as an asynchronous copy to the
                device. The thread waits for it; a `torch.cuda.Event` should have blocking=True, or
                the wait occupies a core.

        Raises:
            AvomniError: the frames are not the loader's, or were returned already.
        """
        buffer = self._lent.pop(frames.data_ptr(), None)
        if buffer is None:
            raise AvomniError(
                f"frames {tuple(frames.shape)} were given back that the loader has not lent",
                fix="give each batch's frames back once, as they came and not a copy or a part",
            )
        buffer.after = after
        if self._thread is not None:
            self._free.put(buffer)

    def close(self) -> None:
        """Stop the thread and drop prefetched batches; the loader can be used again.

        Batches held by the caller stay valid and can still be given back.
        """
        if self._thread is None:
            return
        self._stop.set()
        self._free.put(None)  # wakes a thread that waits for a buffer
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _num_buffers(self) -> int:
        return self.depth + self.held + 1

    @functools.cached_property
    def _shape(self) -> tuple[int, ...]:
        if isinstance(self.batches, Order):  # no need to shuffle the whole run for it
            largest = self.batches.batch_size
        else:
            largest = max(map(len, self.batches))
        return (largest, *self.windows.frame_shape)

    def _start(self, batch: int) -> None:
        self.close()
        if not self._ring:
            self._ring = [_Buffer(_zeros(self._shape, self.pin)) for _ in range(self._num_buffers)]
        self._next = batch
        # Every thread has its own queues and stop event, independent of its predecessor's.
        self._free: queue.SimpleQueue = queue.SimpleQueue()
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._stop = threading.Event()
        lent = list(self._lent.values())
        for buffer in self._ring:
            if buffer not in lent:
                self._free.put(buffer)
        self._thread = threading.Thread(
            target=self._work,
            args=(batch, self._free, self._ready, self._stop),
            name="avomni-loader",
            daemon=True,
        )
        self._thread.start()

    def _work(
        self,
        batch: int,
        free: queue.SimpleQueue,
        ready: queue.SimpleQueue,
        stop: threading.Event,
    ) -> None:
        for number in range(batch, len(self.batches)):
            buffer = free.get()
            if stop.is_set():
                return
            try:
                made: Any = buffer, self._fill(buffer, self.batches[number])
            except BaseException as error:  # the caller raises it
                made = error
            ready.put(made)
            if isinstance(made, BaseException):
                return

    def _fill(self, buffer: _Buffer, indices: Sequence[int]) -> dict[str, Any]:
        if buffer.after is not None:
            buffer.after.synchronize()
            buffer.after = None
        view = buffer.frames.numpy()
        for row, index in enumerate(indices):
            self.windows.read_into(index, view[row])
        return self.tokens(indices)


def _zeros(shape: tuple[int, ...], pin: bool) -> torch.Tensor:
    """Memory whose pages are already mapped, so that reading causes no page faults."""
    if pin:
        return torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
    # Large NumPy arrays use huge pages, into which reading is 3 to 15 % faster. But they start 16
    # bytes into one, and reading to an address that is not a multiple of 64 takes up to twice as
    # long.
    size = math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    memory[:] = 0
    start = -memory.ctypes.data % 64
    return torch.from_numpy(memory[start : start + size]).view(shape)
