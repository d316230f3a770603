"""How a stage's long work went, moment by moment, for its pictures.

`tempo = Tempo()` and `fetch(p, hub, progress=tempo.bar)`: the bar that people see, which also keeps
when it had counted how much, and how much CPU time this process and its children had taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from avomni_lib.notebook import progress
from avomni_lib.plan import Bar

EVERY_S = 0.5
MOST_MOMENTS = 2000


@dataclass
class Track:
    """What one bar has counted.

    Attributes:
        label, unit, total: As the bar was asked for.
        moments: (seconds from its start, count, CPU seconds since its start), rising; the first is
            at 0, the last when the bar was closed.
    """

    label: str
    unit: str
    total: float | None
    moments: list[tuple[float, float, float]] = field(default_factory=lambda: [(0.0, 0.0, 0.0)])

    @property
    def seconds(self) -> float:
        return self.moments[-1][0]

    @property
    def count(self) -> float:
        return self.moments[-1][1]

    @property
    def cores(self) -> float:
        """How many cores were busy, on average."""
        return self.moments[-1][2] / self.seconds if self.seconds else 0.0


class CpuTime:
    """CPU seconds of this process and of its children, those that have ended included.

    A child that begins and ends between two calls of `seconds` is not seen.
    """

    def __init__(self) -> None:
        self._own, self._known = psutil.Process(), {}

    def seconds(self) -> float:
        for process in [self._own, *self._own.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.Error:  # it has ended
                continue
            self._known[process.pid, process.create_time()] = times.user + times.system
        return sum(self._known.values())


class Tempo:
    """What the bars of a stage have counted.

    Attributes:
        tracks: One a bar, in the order in which they began.
    """

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic):
        self.every_s, self.clock = every_s, clock
        self.tracks: list[Track] = []

    def track(self, label: str) -> Track | None:
        """What the last bar with this label has counted; None where there was none."""
        return next((track for track in reversed(self.tracks) if track.label == label), None)

    @property
    def bar(self) -> type[Bar]:
        """The bar that suits who is watching; what it counts is kept here."""
        tempo, shown = self, progress.bar()

        class Kept(shown):  # type: ignore[valid-type]
            def __init__(self, total: float | None = None, unit: str = "", label: str = ""):
                super().__init__(total, unit, label)
                self._keeper = _Keeper(tempo, Track(label, unit, total))

            def update(self, amount: float = 1, note: str = "") -> None:
                super().update(amount, note)
                self._keeper.note(self.count)

            def close(self, *failed: Any, **named: Any) -> None:
                super().close(*failed, **named)
                self._keeper.note(self.count, is_last=True)

        return Kept


class _Keeper:
    """Writes down a bar's moments, now and then."""

    def __init__(self, tempo: Tempo, track: Track):
        self._tempo, self._track, self._lock = tempo, track, threading.Lock()
        self._every_s, self._is_over = tempo.every_s, False
        self._cpu = CpuTime()
        self._began, self._cpu_began = tempo.clock(), self._cpu.seconds()
        tempo.tracks.append(track)

    def note(self, count: float, is_last: bool = False) -> None:
        with self._lock:
            moments, passed = self._track.moments, self._tempo.clock() - self._began
            is_early = passed - moments[-1][0] < self._every_s
            if self._is_over or (is_early and not is_last):
                return
            self._is_over = is_last
            moments.append((passed, count, self._cpu.seconds() - self._cpu_began))
            if len(moments) > MOST_MOMENTS:
                # A download of days is drawn as well from fewer points.
                del moments[1:-1:2]
                self._every_s *= 2
