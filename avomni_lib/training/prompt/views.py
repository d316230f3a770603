"""Windows with modified frames: black, shuffled in time, or of one camera only.

Everything else of a window is unchanged, so views can replace windows anywhere: in rows of the
ladder, and to train a model on black frames, which shows what can be learned without images.
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
    """Windows with modified frames; all other attributes are those of the windows.

    Attributes:
        windows: `etl.cache.windows.Windows`, or another view.
    """

    windows: Any

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Any:
        return self.windows[index]

    def __getattr__(self, name: str) -> Any:
        # Unpickling looks up attributes before `windows` is set.
        if name == "windows" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.windows, name)

    def frames(self, index: int) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB of the view, read-only.

        Raises:
            AvomniError: as the windows' method.
        """
        out = np.empty(self.windows.frame_shape, np.uint8)
        self.read_into(index, out)
        out.flags.writeable = False
        return out

    def read_into(self, index: int, out: np.ndarray) -> None:
        """Fill `out` (T, H, W, 3) uint8, C-contiguous, with the view of a window.

        Raises:
            AvomniError: as the windows' method.
        """
        self.windows.read_into(index, out)
        self._change(index, out)

    def _change(self, index: int, out: np.ndarray) -> None:
        """Modify the frames of a window in place."""
        raise NotImplementedError


@dataclass(frozen=True)
class Black(View):
    """Black frames; nothing is read from the cache.

    `alike` means that all windows have the same frames, so that equal prompts have equal answers.
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
    """Each window's frames in another order, a function of the seed, the clip and the window."""

    seed: int

    def order(self, index: int) -> np.ndarray:
        """(T,) int64: a uniformly random permutation of the frames, except the identity.

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
    """Only the tile of one camera is kept, at its place in the grid; the others are black.

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
