"""Progress that people see: a widget bar in a live notebook, plain lines everywhere else.

A stage's notebook writes `fetch(p, hub, progress=progress.bar())`. Lines carry a time, the rate
and the time left, so that the log of a night tells when it slowed down; a widget bar is replaced by
its last line when it ends, so that no executed notebook shows a bar that is dead at 0 %.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import TextIO

from avomni_lib.plan import Bar, gigabytes, minutes

HEADLESS_VARIABLE = "AVOMNI_HEADLESS"
LINE_EVERY_S = 10.0
WIDGET_EVERY_S = 0.2
RATE_OVER_S = 60.0
BYTE_UNITS = ("B", "byte", "bytes")


def bar() -> type[Bar]:
    """The bar that suits who is watching: `WidgetBar` before a live front end, else `LineBar`."""
    return WidgetBar if has_front_end() else LineBar


def has_front_end() -> bool:
    """Whether a person at a front end runs this kernel.

    papermill and nbclient execute cells with `allow_stdin=False`; Lab and its like with True.
    """
    if os.environ.get(HEADLESS_VARIABLE, "") not in ("", "0"):
        return False
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


class Meter:
    """Counts work and words it: how far, how fast over the last minute, how long still.

    The rate is that of the last `RATE_OVER_S` seconds: what a resumed run finds done already counts
    at once and would make an average over all time promise too much.
    """

    def __init__(
        self,
        total: float | None,
        unit: str,
        label: str,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.unit, self.label, self.clock = total, unit, label, clock
        self.count, self.note = 0.0, ""
        self.started_s = clock()
        self._recent = deque([(self.started_s, 0.0)])

    def add(self, amount: float, note: str = "") -> None:
        self.count += amount
        self.note = note or self.note
        now = self.clock()
        self._recent.append((now, self.count))
        while len(self._recent) > 2 and self._recent[1][0] < now - RATE_OVER_S:
            self._recent.popleft()

    @property
    def seconds(self) -> float:
        return self.clock() - self.started_s

    @property
    def rate(self) -> float | None:
        """Units a second over the last minute; None while nothing has been counted."""
        (start, before), (_, count) = self._recent[0], self._recent[-1]
        passed = self.clock() - start
        return (count - before) / passed if count > before and passed > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this rate; None where no total or no rate is known."""
        if self.total is None or self.rate is None:
            return None
        return max(self.total - self.count, 0) / self.rate

    def amount(self, count: float) -> str:
        if self.unit in BYTE_UNITS:
            return gigabytes(count)
        return f"{_number(count)} {self.unit}{'' if count == 1 or not self.unit else 's'}".rstrip()

    def heading(self) -> str:
        total = "" if self.total is None else f": {self.amount(self.total)}"
        return f"{self.label or 'work'}{total}"

    def line(self) -> str:
        """For the middle of the work: `ETL: 37 of 100 clips (37%), 12.3 clips/s, 5 s left`."""
        rate, eta = self.rate, self.eta_s
        parts = [self._reached()]
        if rate is not None:
            parts.append(self._per_second(rate))
        if eta is not None:
            parts.append(f"{minutes(eta)} left")
        if self.note:
            parts.append(self.note)
        return f"{self.label or 'work'}: " + ", ".join(parts)

    def closing(self, failed: bool = False) -> str:
        """For the end, as in `ETL: 100 clips in 8 s (12.3 clips/s)`, or where it stopped."""
        seconds = self.seconds
        pace = f" ({self._per_second(self.count / seconds)})" if self.count and seconds > 0 else ""
        complete = not failed and (self.total is None or self.count >= self.total)
        reached = self.amount(self.count) if complete else self._reached()
        word = "stopped at " if failed else ""
        return f"{self.label or 'work'}: {word}{reached} in {minutes(seconds)}{pace}"

    def _reached(self) -> str:
        if self.total is None:
            return self.amount(self.count)
        share = f" ({min(self.count / self.total, 1):.0%})" if self.total else ""
        done = gigabytes(self.count) if self.unit in BYTE_UNITS else _number(self.count)
        return f"{done} of {self.amount(self.total)}{share}"

    def _per_second(self, rate: float) -> str:
        if self.unit in BYTE_UNITS:
            return f"{gigabytes(rate)}/s"
        if rate < 0.1:
            return f"{minutes(1 / rate)} a {self.unit or 'unit'}"
        return f"{rate:,.{0 if rate >= 100 else 1}f} {self.unit}{'s' if self.unit else ''}/s"


def _number(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 or float(count).is_integer() else f"{count:.1f}"


class LineBar(Bar):
    """Lines with a time of day: the first, at most one every ten seconds, and the last."""

    def __init__(
        self,
        total: float | None = None,
        unit: str = "",
        label: str = "",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(total, unit, label)
        self.meter = Meter(total, unit, label, clock)
        self._stream, self._closed, self._lock = stream, False, threading.Lock()
        self._last_s = self.meter.started_s
        self._write(self.meter.heading())

    def update(self, amount: float = 1, note: str = "") -> None:
        with self._lock:
            super().update(amount, note)
            self.meter.add(amount, note)
            now = self.meter.clock()
            if now - self._last_s >= LINE_EVERY_S:
                self._last_s = now
                self._write(self.meter.line())

    def close(self, failed: bool = False) -> None:
        if not self._closed:
            self._closed = True
            self._write(self.meter.closing(failed))

    def __exit__(self, kind: object = None, *_: object) -> None:
        self.close(failed=kind is not None)

    def _write(self, line: str) -> None:
        # sys.stdout is looked up late: a kernel gives every cell its own.
        stream = self._stream or sys.stdout
        stream.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n")
        stream.flush()


class WidgetBar(Bar):
    """An ipywidgets bar; when it ends, one line of text takes its place in the notebook."""

    def __init__(self, total: float | None = None, unit: str = "", label: str = ""):
        import ipywidgets
        from IPython.display import display

        super().__init__(total, unit, label)
        self.meter = Meter(total, unit, label)
        self.text = ipywidgets.Label(self.meter.heading())
        self.progress = ipywidgets.FloatProgress(
            value=0.0, min=0.0, max=max(total or 1.0, 1e-9), layout={"width": "240px"}
        )
        self.box = ipywidgets.HBox([self.progress, self.text])
        self._last_s, self._closed, self._lock = self.meter.started_s, False, threading.Lock()
        # A notebook whose kernel dies at work keeps this text, not a bar that stands still.
        shown = self.box._repr_mimebundle_() | {"text/plain": self.meter.heading()}
        self._handle = display(shown, raw=True, display_id=True)

    def update(self, amount: float = 1, note: str = "") -> None:
        with self._lock:
            super().update(amount, note)
            self.meter.add(amount, note)
            now = self.meter.clock()
            if now - self._last_s >= WIDGET_EVERY_S:
                self._last_s = now
                self.text.value = self.meter.line()
                # With no total the bar stays full, for there is no share to show; the text counts.
                self.progress.value = self.progress.max if self.total is None else self.count

    def close(self, failed: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        if self._handle is not None:
            self._handle.update({"text/plain": self.meter.closing(failed)}, raw=True)
        for widget in (self.box, self.progress, self.text):
            widget.close()

    def __exit__(self, kind: object = None, *_: object) -> None:
        self.close(failed=kind is not None)
