"""Progress that people see: a widget bar in a live notebook, plain lines everywhere else.

A stage's notebook writes `fetch(p, hub, progress=progress.bar())`. Lines carry a time of day, so
that the log of a night tells when it slowed down. A widget bar is replaced by its last line when it
ends, so that no executed notebook shows a bar that is dead at 0 %. The counts are tqdm's.
"""

from __future__ import annotations

import os
import sys
import threading
from datetime import datetime

from tqdm import tqdm

from avomni_lib.plan import Bar

HEADLESS_VARIABLE = "AVOMNI_HEADLESS"
BYTE_UNITS = ("B", "byte", "bytes")
# Of the last lines' rates: what a resumed run finds done already counts at once, and an average
# over all time would promise too much.
SMOOTHING = 0.6


class _Meter(tqdm):
    """tqdm without a thread and a process-wide lock of its own: a bar that failed holds neither."""

    monitor_interval = 0

    def refresh(self, *_: object, **__: object) -> bool:
        self.display()
        return True


_Meter.set_lock(threading.RLock())


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


class LineBar(Bar):
    """Lines with a time of day: the first, at most one every ten seconds, and the last."""

    every_s = 10.0

    def __init__(self, total: float | None = None, unit: str = "", label: str = ""):
        super().__init__(total, unit, label)
        self._lock = threading.Lock()
        is_bytes = unit in BYTE_UNITS
        self._amount, end = "{n_fmt}{unit}", ""
        if total is not None:
            self._amount = "{n_fmt}/{total_fmt}{unit} ({percentage:.0f}%)"
            end = ", {remaining} left"
        self.meter = _Meter(
            desc=label or "work",
            total=total,
            unit="B" if is_bytes else f" {unit}" if unit else "",
            unit_scale=is_bytes,
            bar_format=f"{{desc}}: {self._amount} in {{elapsed}}, {{rate_fmt}}{end}{{postfix}}",
            mininterval=self.every_s,
            miniters=0,
            smoothing=SMOOTHING,
            position=0,
            disable=False,
            file=self,
        )

    def update(self, amount: float = 1, note: str = "") -> None:
        with self._lock:
            super().update(amount, note)
            if note:
                self.meter.set_postfix_str(note, refresh=False)
            self.meter.update(amount)

    def close(self, failed: bool = False) -> None:
        stopped = "stopped at " if failed else ""
        self.meter.bar_format = f"{{desc}}: {stopped}{self._amount} in {{elapsed}}, {{rate_fmt}}"
        self.meter.close()

    def __exit__(self, kind: object = None, *_: object) -> None:
        self.close(failed=kind is not None)

    def show(self, line: str) -> None:
        # sys.stdout is looked up late: a kernel gives every cell its own.
        sys.stdout.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n")
        sys.stdout.flush()

    def write(self, text: str) -> None:
        """What tqdm writes to a file: the line, and characters that would move a cursor."""
        if line := text.strip():
            self.show(line)

    def flush(self) -> None:
        pass


class WidgetBar(LineBar):
    """An ipywidgets bar; when it ends, one line of text takes its place in the notebook."""

    every_s = 0.2

    def __init__(self, total: float | None = None, unit: str = "", label: str = ""):
        import ipywidgets
        from IPython.display import display

        self.text = ipywidgets.Label()
        self.progress = ipywidgets.FloatProgress(max=total or 1.0, layout={"width": "240px"})
        self.box = ipywidgets.HBox([self.progress, self.text])
        super().__init__(total, unit, label)
        # A notebook whose kernel dies at work keeps this text, not a bar that stands still.
        shown = self.box._repr_mimebundle_() | {"text/plain": self.text.value}
        self._handle = display(shown, raw=True, display_id=True)

    def show(self, line: str) -> None:
        self.text.value = line
        # With no total the bar stays full, for there is no share to show; the text counts.
        self.progress.value = self.progress.max if self.total is None else self.count

    def close(self, failed: bool = False) -> None:
        is_open = not self.meter.disable
        super().close(failed)
        if is_open and self._handle is not None:
            self._handle.update({"text/plain": self.text.value}, raw=True)
        for widget in (self.box, self.progress, self.text):
            widget.close()
