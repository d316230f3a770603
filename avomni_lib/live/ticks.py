"""Frames of several cameras onto one clock: at each tick one grid, or a gap; ticks to windows.

`Ticks` neither waits nor reads a clock: the caller says what time it is.
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
KEPT_S = 2.0  # of each camera's frames at most, and the deadline
STEADY_FRAMES = 4  # after which a camera's interval is known
STEADY_S = 2.0  # for which the first tick waits until those of all cameras are
COMPARED = 40  # ticks over which a camera is compared with the others


@dataclass(frozen=True)
class Tick:
    """One moment at which the model looks.

    Attributes:
        number: From 0.
        time_ns: Wanted time.
        closed_ns: When it was known what it shows.
        frames: Camera -> (capture time in ns, decoded frame): the last one at or before the time.
        missing: Cameras that have shown nothing recent enough; not empty is a gap.
    """

    number: int
    time_ns: int
    closed_ns: int
    frames: dict[str, tuple[int, Any]]
    missing: tuple[str, ...]


@dataclass
class Feed:
    """What one camera has shown lately, and what was wrong with it."""

    frames: deque[tuple[int, Any]] = field(default_factory=deque)
    num_frames: int = 0
    num_late: int = 0  # came after the tick that would have taken them was closed
    has_ended: bool = False
    # At the last ticks: by how many ns it was older than the newest camera; and when the tick was
    # settled, with `num_frames` until then.
    behind: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=COMPARED))
    is_warned: bool = False


class Ticks:
    """Collects frames, and says what each tick shows.

    A tick is closed when every camera has shown a later frame or has ended, or `deadline_s` after
    its time. Of each camera the last frame at or before the time is taken, if it is not older than
    `max_age_s`; else the tick is a gap. Before the first tick all cameras are waited for, for
    `STEADY_S` at most.

    A camera whose frames are half an interval of ticks older than those of the others, as a rule,
    or as much ahead of the clock, is named in the log once.

    Args:
        cameras: Names.
        hz: Ticks a second.
        deadline_s: How long a tick waits for the slowest camera.
        max_age_s: How old a frame may be.
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
        """A camera has shown a frame, taken at this time."""
        feed = self.feeds[camera]
        feed.num_frames += 1
        if self._first_ns is None:
            self._first_ns = time_ns
        if feed.frames and time_ns <= feed.frames[-1][0]:
            return  # nothing older than what was shown is shown
        if self._number and time_ns <= self._time_ns(self._number - 1):
            feed.num_late += 1
        frames = feed.frames
        frames.append((time_ns, frame))
        # No tick will ask for what is before the last frame that the next one may show.
        next_ns = None if self._start_ns is None else self._time_ns(self._number)
        while len(frames) > 1 and (
            time_ns - frames[0][0] > self._kept_ns
            or (next_ns is not None and frames[1][0] <= next_ns)
        ):
            frames.popleft()

    def end(self, camera: str) -> None:
        """No more frames will come."""
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
        """Start as the ETL does, once every camera has shown some frames, or after `STEADY_S`.

        Of cameras that show a frame at the same moment as the ticks, now this one would be taken
        and now the one before it: `sampling.steady_start` keeps away from their moments.
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
            last = next((each for each in reversed(feed.frames) if each[0] <= time_ns), None)
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
                    "camera %s: by its times its frames are taken %.0f ms from now, where ticks "
                    "lie %.0f ms apart; lower its live.offset_ms",
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
            # A camera that was away for longer has broken off: its reader says so.
            if feed.is_warned or len(feed.behind) < COMPARED:
                continue
            behind_ns = median(each for each, _, _ in feed.behind)
            if behind_ns < self._every_ns / 2:
                continue
            feed.is_warned = True
            _, then_ns, num_then = feed.behind[0]
            log.warning(
                "camera %s: at the ticks its frames are %.0f ms older than those of the newest "
                "camera, where ticks lie %.0f ms apart; it shows %.1f frames a second. If it is "
                "late, raise live.deadline_ms; if its clock is off, set its live.offset_ms",
                name,
                behind_ns / 1e6,
                self._every_ns / 1e6,
                (feed.num_frames - num_then) / (max(now_ns - then_ns, 1) / 1e9),
            )


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
