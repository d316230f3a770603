"""Windows that show other frames: black ones, shuffled ones, one camera's alone.

What else is known of a window stays as it is, so that whatever takes windows takes these: the
ladder asks a model about them, and a model that is trained on black ones learns what words and
averages alone give away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import tiling


@dataclass(frozen=True)
class View:
    """Windows whose frames are others; everything else is asked of the windows themselves.

    Attributes:
        windows: `etl.windows.Windows`, or another view of them.
    """

    windows: Any

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Any:
        return self.windows[index]

    def __getattr__(self, name: str) -> Any:
        # Unpickling asks before there are windows.
        if name == "windows" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.windows, name)

    def frames(self, index: int) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB of the view, read-only.

        Raises:
            AvomniError: what the windows raise.
        """
        out = np.empty(self.windows.frame_shape, np.uint8)
        self.read_into(index, out)
        out.flags.writeable = False
        return out

    def read_into(self, index: int, out: np.ndarray) -> None:
        """Fill `out` (T, H, W, 3) uint8, C-contiguous, with the view of a window.

        Raises:
            AvomniError: what the windows raise.
        """
        self.windows.read_into(index, out)
        self._change(index, out)

    def _change(self, index: int, out: np.ndarray) -> None:
        """Make the view of what was read."""
        raise NotImplementedError


@dataclass(frozen=True)
class Black(View):
    """Every frame is black, as nothing is read of the cache's.

    `alike` says that all windows look the same: whoever is asked the same about them answers once.
    """

    alike = True

    def read_into(self, index: int, out: np.ndarray) -> None:
        if out.shape != self.windows.frame_shape or out.dtype != np.uint8:
            raise AvomniError(
                f"window {index} is {self.windows.frame_shape} uint8, it was asked for as "
                f"{out.shape} {out.dtype}"
            )
        out[:] = 0


@dataclass(frozen=True)
class Shuffled(View):
    """Each window's own frames in another order, which follows from seed, clip and number."""

    seed: int

    def order(self, index: int) -> np.ndarray:
        """(T,) int64: which frame stands at each place; never all at their own.

        Every other order is as likely as the next.

        Raises:
            AvomniError: a window of one frame has no other order.
        """
        length = self.windows.frame_shape[0]
        if length < 2:
            raise AvomniError(
                f"windows of {length} frame cannot be shuffled in time",
                where="processing.sequence_length",
                fix="take windows of two frames or more, or leave this row of the ladder out",
            )
        window = self.windows[index]
        clip = hashlib.sha256(window.clip_id.encode()).digest()[:8]
        rng = np.random.default_rng([self.seed, int.from_bytes(clip), window.number])
        while True:
            order = rng.permutation(length)
            if (order != np.arange(length)).any():
                return order

    def _change(self, index: int, out: np.ndarray) -> None:
        out[:] = out[self.order(index)]


@dataclass(frozen=True)
class OneCamera(View):
    """Only the tile of one camera is shown, at its place in the grid; the others are black.

    Raises:
        AvomniError: the camera is not in the grid.
    """

    camera: str

    def __post_init__(self) -> None:
        self.cache.grid.cell_of(self.camera)

    def _change(self, index: int, out: np.ndarray) -> None:
        shown = tiling.tile_of(out, self.cache.grid, self.cache.tile, self.camera).copy()
        out[:] = 0
        tiling.tile_of(out, self.cache.grid, self.cache.tile, self.camera)[:] = shown
