"""Ticks to windows, windows to answers: the newest wins, and nothing queues."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.etl.clip import tiling
from avomni_lib.etl.video.pyav_reader import picture, upright_size
from avomni_lib.live.ticks import Tick
from avomni_lib.params import Params
from avomni_lib.training.prompt import past, tokens


@dataclass(frozen=True)
class Ready:
    """A whole window that may be asked about.

    Attributes:
        tick: Number of its last tick.
        frames: (T, H, W, 3) uint8 RGB.
        captured_ns: Wanted time of its last tick, which is when the cameras saw it at the latest.
        closed_ns: When its last tick was settled.
        made_ns: When its last grid was made.
    """

    tick: int
    frames: np.ndarray
    captured_ns: int
    closed_ns: int
    made_ns: int


class Sliding:
    """The grids of the last ticks; a gap starts the window anew.

    Args:
        p: The run's: grid, tile, fit and length of a window.
        hop: A window every so many ticks.
        now_ns: The clock.
    """

    def __init__(self, p: Params, hop: int, now_ns: Callable[[], int]):
        self.grid, self.fit = cameras.grid(p.vision.cameras), p.processing.fit
        self.tile = p.processing.tile_width, p.processing.tile_height
        self.hop, self._now_ns = hop, now_ns
        rows = np.array(past.rows(p, tokens.backbone_of(p)))
        # Counted from the oldest frame on.
        self.rows = rows - rows[0]
        self._grids: deque[np.ndarray] = deque(maxlen=int(self.rows[-1]) + 1)
        self.num_gaps = 0

    def add(self, tick: Tick) -> Ready | None:
        """Take a tick in; returns the window that ends with it, where one is whole and due."""
        if tick.missing:
            self._grids.clear()
            self.num_gaps += 1
            return None
        self._grids.append(self.compose({name: frame for name, (_, frame) in tick.frames.items()}))
        if len(self._grids) < self._grids.maxlen or tick.number % self.hop:
            return None
        frames = np.stack([self._grids[row] for row in self.rows])
        made_ns = self._now_ns()
        return Ready(tick.number, frames, tick.time_ns, tick.closed_ns, made_ns)

    @property
    def newest(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, the last tick's grid."""
        return self._grids[-1]

    def compose(self, frames: dict[str, Any]) -> np.ndarray:
        """(H, W, 3) uint8 RGB of decoded frames by camera, as the ETL makes it."""
        width, height = tiling.grid_size(self.grid, self.tile)
        image = np.zeros((1, height, width, 3), np.uint8)
        for camera in self.grid.cameras:
            frame = frames[camera.name]
            own = tiling.tile_size(self.grid, self.tile, camera.name)
            placed = tiling.fit_tile(upright_size(frame), own, self.fit)
            tile = tiling.tile_of(image, self.grid, self.tile, camera.name)
            placed.place(picture(frame, *placed.resized)[None], tile)
        return image[0]


@dataclass
class Mailbox:
    """One place for the newest window: what is overtaken is counted and forgotten."""

    num_overtaken: int = 0
    _ready: Ready | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_closed: bool = False

    def put(self, ready: Ready) -> None:
        with self._changed:
            self.num_overtaken += self._ready is not None
            self._ready = ready
            self._changed.notify()

    def take(self, timeout_s: float | None = None) -> Ready | None:
        """The newest window, waited for; None when there will be none, or at the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_closed, timeout_s)
            ready, self._ready = self._ready, None
            return ready

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
