"""Synchronises frames of several cameras: each tick is one grid or a gap; ticks make windows.

`Ticks` neither waits nor reads a clock: the caller passes the time.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.etl.clip import sampling, tiling
from avomni_lib.etl.video.pyav_reader import picture, upright_size
from avomni_lib.params import Params
from avomni_lib.training.prompt import past, tokens

log = logging.getLogger(__name__)
KEPT_S = 2.0  # frames of a camera are kept for this time plus the deadline
STEADY_FRAMES = 4  # frames after which a camera's interval is known
STEADY_S = 2.0  # longest time for which the first tick waits for all cameras' intervals
COMPARED = 40  # number of ticks over which a camera is compared with the others


@dataclass(frozen=True)
class Tick:
    """One sampling time of the model.

    Attributes:
        number: From 0.
        time_ns: Nominal time.
        closed_ns: When its frames were settled.
        frames: Camera -> (capture time in ns, decoded frame): the last one at or before `time_ns`.
        missing: Cameras without a recent frame; if not empty, the tick is a gap.
    """

    number: int
    time_ns: int
    closed_ns: int
    frames: dict[str, tuple[int, Any]]
    missing: tuple[str, ...]


@dataclass
class Feed:
    """Recent frames of one camera, and statistics for warnings."""

    frames: deque[tuple[int, Any]] = field(default_factory=deque)
    num_frames: int = 0
    num_late: int = 0  # frames that arrived after their tick was closed
    has_ended: bool = False
    # For the last ticks: delay relative to the newest camera (ns), time at which the tick was
    # settled, and `num_frames` at that time.
    behind: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=COMPARED))
    is_warned: bool = False


class Ticks:
    """Collects frames and selects those of each tick.

    A tick is closed when every camera has delivered a later frame or has ended, at the latest
    `deadline_s` after its time. Each camera's last frame at or before the tick's time is used; if
    one is older than `max_age_s`, the tick is a gap. The first tick waits for all cameras, for at
    most `STEADY_S`.

    A camera whose frames are usually half a tick interval older than those of the newest camera,
    or that far ahead of the clock, is reported in the log once.

    Args:
        deadline_s: How long a tick waits for the slowest camera.
    """

    def __init__(self, cameras: Sequence[str], hz: float, deadline_s: float, max_age_s: float):
        self.feeds = {name: Feed() for name in cameras}
        self._every_ns = 1e9 / hz
        self._deadline_ns, self._max_age_ns = round(deadline_s * 1e9), round(max_age_s * 1e9)
        self._kept_ns = round(KEPT_S * 1e9) + self._deadline_ns
        self._first_ns: int | None = None
        self._start_ns: int | None = None
        self._number = 0

    def push(self, camera: str, time_ns: int, frame: Any) -> None:
        """Add a frame that a camera took at `time_ns`."""
        feed = self.feeds[camera]
        feed.num_frames += 1
        if self._first_ns is None:
            self._first_ns = time_ns
        if feed.frames and time_ns <= feed.frames[-1][0]:
            return  # frames out of order are dropped
        if self._number and time_ns <= self._time_ns(self._number - 1):
            feed.num_late += 1
        frames = feed.frames
        frames.append((time_ns, frame))
        # Drop frames before the last one that the next tick may use.
        next_ns = None if self._start_ns is None else self._time_ns(self._number)
        while len(frames) > 1 and (
            time_ns - frames[0][0] > self._kept_ns
            or (next_ns is not None and frames[1][0] <= next_ns)
        ):
            frames.popleft()

    def end(self, camera: str) -> None:
        """Mark a camera as ended."""
        self.feeds[camera].has_ended = True

    def closed(self, now_ns: int) -> Iterator[Tick]:
        """The ticks that are settled by now, in order."""
        if self._start_ns is None and not self._begin(now_ns):
            return
        self._warn_of_those_ahead(now_ns)
        while True:
            time_ns = self._time_ns(self._number)
            waiting = [
                feed
                for feed in self.feeds.values()
                if not feed.has_ended and not (feed.frames and feed.frames[-1][0] > time_ns)
            ]
            if time_ns > now_ns or (waiting and now_ns < time_ns + self._deadline_ns):
                return
            feeds = self.feeds.values()
            is_covered = any(feed.frames and feed.frames[-1][0] >= time_ns for feed in feeds)
            if all(feed.has_ended for feed in feeds) and not is_covered:
                return
            yield self._tick(time_ns, now_ns)
            self._number += 1

    def _begin(self, now_ns: int) -> bool:
        """Start as the ETL does, once every camera has some frames, or after `STEADY_S`.

        If ticks coincided with the frames of a camera, jitter would decide between a frame and the
        one before it; `sampling.steady_start` keeps the ticks away from the frames' times.
        """
        if self._first_ns is None:
            return False
        feeds = self.feeds.values()
        steady = [feed for feed in feeds if len(feed.frames) >= STEADY_FRAMES]
        is_waiting = any(len(feed.frames) < STEADY_FRAMES and not feed.has_ended for feed in feeds)
        if is_waiting and now_ns < self._first_ns + max(self._deadline_ns, STEADY_S * 1e9):
            return False
        if steady:
            stamps = [np.array([taken for taken, _ in feed.frames]) // 1000 for feed in steady]
            self._start_ns = sampling.steady_start(stamps) * 1000
        else:
            self._start_ns = max(feed.frames[0][0] for feed in feeds if feed.frames)
        return True

    def _tick(self, time_ns: int, now_ns: int) -> Tick:
        frames: dict[str, tuple[int, Any]] = {}
        for name, feed in self.feeds.items():
            last = next((frame for frame in reversed(feed.frames) if frame[0] <= time_ns), None)
            if last is not None and time_ns - last[0] <= self._max_age_ns:
                frames[name] = last
        missing = tuple(name for name in self.feeds if name not in frames)
        self._warn_of_those_behind(time_ns, now_ns, frames)
        return Tick(self._number, time_ns, now_ns, frames, missing)

    def _time_ns(self, number: int) -> int:
        assert self._start_ns is not None
        return self._start_ns + round(number * self._every_ns)

    def _warn_of_those_ahead(self, now_ns: int) -> None:
        for name, feed in self.feeds.items():
            ahead_ns = feed.frames[-1][0] - now_ns if feed.frames else 0
            if ahead_ns >= self._every_ns / 2 and not feed.is_warned:
                feed.is_warned = True
                log.warning(
                    "camera %s: by their times its frames are %.0f ms in the future, where ticks "
                    "are %.0f ms apart; lower its live.offset_ms",
                    name,
                    ahead_ns / 1e6,
                    self._every_ns / 1e6,
                )

    def _warn_of_those_behind(
        self, time_ns: int, now_ns: int, frames: dict[str, tuple[int, Any]]
    ) -> None:
        newest_ns = max((taken for taken, _ in frames.values()), default=time_ns)
        for name, feed in self.feeds.items():
            if name in frames:
                feed.behind.append((newest_ns - frames[name][0], now_ns, feed.num_frames))
            elif feed.frames and time_ns - feed.frames[-1][0] < COMPARED / 2 * self._every_ns:
                feed.behind.append((self._max_age_ns, now_ns, feed.num_frames))
            # A longer absence means that the connection broke, which the reader reports.
            if feed.is_warned or len(feed.behind) < COMPARED:
                continue
            behind_ns = median(delay_ns for delay_ns, _, _ in feed.behind)
            if behind_ns < self._every_ns / 2:
                continue
            feed.is_warned = True
            _, then_ns, num_then = feed.behind[0]
            log.warning(
                "camera %s: at the ticks its frames are %.0f ms older than those of the newest "
                "camera, where ticks are %.0f ms apart; it shows %.1f frames a second. If it is "
                "late, raise live.deadline_ms; if its clock is off, set its live.offset_ms",
                name,
                behind_ns / 1e6,
                self._every_ns / 1e6,
                (feed.num_frames - num_then) / (max(now_ns - then_ns, 1) / 1e9),
            )


@dataclass(frozen=True)
class Ready:
    """A complete window, ready to be answered.

    Attributes:
        tick: Number of its last tick.
        frames: (T, H, W, 3) uint8 RGB.
        captured_ns: Nominal time of its last tick, the latest capture time of its frames.
        closed_ns: When its last tick was settled.
        made_ns: When its last grid was composed.
    """

    tick: int
    frames: np.ndarray
    captured_ns: int
    closed_ns: int
    made_ns: int


class Sliding:
    """A sliding window over the grids of the last ticks; a gap restarts it.

    Args:
        p: The run's parameters: grid, tile, fit and length of a window.
        hop: Number of ticks between windows.
    """

    def __init__(self, p: Params, hop: int, now_ns: Callable[[], int]):
        self.grid, self.fit = cameras.grid(p.vision.cameras), p.processing.fit
        self.tile = p.processing.tile_width, p.processing.tile_height
        self.hop, self._now_ns = hop, now_ns
        rows = np.array(past.rows(p, tokens.backbone_of(p)))
        self.rows = rows - rows[0]  # relative to the oldest frame
        self._grids: deque[np.ndarray] = deque(maxlen=int(self.rows[-1]) + 1)
        self.num_gaps = 0

    def add(self, tick: Tick) -> Ready | None:
        """Add a tick; returns the window that ends with it, if it is complete and due."""
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
        """(H, W, 3) uint8 RGB grid of decoded frames by camera, composed as in the ETL."""
        width, height = tiling.grid_size(self.grid, self.tile)
        image = np.zeros((1, height, width, 3), np.uint8)
        for camera in self.grid.cameras:
            frame = frames[camera.name]
            size = tiling.tile_size(self.grid, self.tile, camera.name)
            placed = tiling.fit_tile(upright_size(frame), size, self.fit)
            tile = tiling.tile_of(image, self.grid, self.tile, camera.name)
            placed.place(picture(frame, *placed.resized)[None], tile)
        return image[0]


@dataclass
class Mailbox:
    """Holds the newest window; a window that is replaced before it is taken is counted."""

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
        """Wait for the newest window; None at the timeout or when the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_closed, timeout_s)
            ready, self._ready = self._ready, None
            return ready

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
