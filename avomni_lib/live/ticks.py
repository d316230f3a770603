"""Frames of several cameras onto one clock: at each tick one grid, or a gap.

Pure bookkeeping, which neither waits nor reads a clock: whoever calls it says what time it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avomni_lib.etl.clip import sampling

KEPT_S = 2.0  # of each camera's frames
STEADY_FRAMES = 4  # after which a camera's interval is known


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


class Ticks:
    """Collects frames, and says what each tick shows.

    A tick is closed when every camera has shown a later frame or has ended, or `deadline_s` after
    its time. Of each camera the last frame at or before the time is taken, if it is not older than
    `max_age_s`; else the tick is a gap.

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
        self._start_ns: int | None = None
        self._number = 0

    def push(self, camera: str, time_ns: int, frame: Any) -> None:
        """A camera has shown a frame, taken at this time."""
        feed = self.feeds[camera]
        feed.num_frames += 1
        if feed.frames and time_ns <= feed.frames[-1][0]:
            return  # nothing older than what was shown is shown
        if self._number and time_ns <= self._time_ns(self._number - 1):
            feed.num_late += 1
        feed.frames.append((time_ns, frame))
        while time_ns - feed.frames[0][0] > KEPT_S * 1e9 and len(feed.frames) > 1:
            feed.frames.popleft()

    def end(self, camera: str) -> None:
        """No more frames will come."""
        self.feeds[camera].has_ended = True

    def closed(self, now_ns: int) -> Iterator[Tick]:
        """The ticks that are settled by now, in order."""
        if self._start_ns is None and not self._begin(now_ns):
            return
        while True:
            time_ns = self._time_ns(self._number)
            waiting = [
                feed
                for feed in self.feeds.values()
                if not feed.has_ended and not (feed.frames and feed.frames[-1][0] > time_ns)
            ]
            if time_ns > now_ns or (waiting and now_ns < time_ns + self._deadline_ns):
                return
            if all(feed.has_ended for feed in self.feeds.values()) and not self._is_covered(
                time_ns
            ):
                return
            yield self._tick(time_ns, now_ns)
            self._number += 1

    def _begin(self, now_ns: int) -> bool:
        """Start as the ETL does, once every camera has shown some frames, or after the deadline.

        Of cameras that show a frame at the same moment as the ticks, now this one would be taken
        and now the one before it: `sampling.steady_start` keeps away from their moments.
        """
        there = [feed for feed in self.feeds.values() if feed.frames]
        if not there:
            return False
        is_steady = all(len(feed.frames) >= STEADY_FRAMES for feed in self.feeds.values())
        if not is_steady and now_ns < min(feed.frames[0][0] for feed in there) + self._deadline_ns:
            return False
        stamps = [np.array([taken for taken, _ in feed.frames]) for feed in there]
        self._start_ns = max(int(own[0]) for own in stamps)
        if is_steady:
            self._start_ns = sampling.steady_start([own // 1000 for own in stamps]) * 1000
        return True

    def _is_covered(self, time_ns: int) -> bool:
        return any(feed.frames and feed.frames[-1][0] >= time_ns for feed in self.feeds.values())

    def _tick(self, time_ns: int, now_ns: int) -> Tick:
        frames: dict[str, tuple[int, Any]] = {}
        for name, feed in self.feeds.items():
            last = next((each for each in reversed(feed.frames) if each[0] <= time_ns), None)
            if last is not None and time_ns - last[0] <= self._max_age_ns:
                frames[name] = last
        missing = tuple(name for name in self.feeds if name not in frames)
        return Tick(self._number, time_ns, now_ns, frames, missing)

    def _time_ns(self, number: int) -> int:
        assert self._start_ns is not None
        return self._start_ns + round(number * self._every_ns)
