"""Progress bars: a widget in a live notebook, plain lines everywhere else.

Usage in a notebook: `fetch(p, hub, progress=progress.bar())`. Lines carry a timestamp, so that a
log shows when a run slowed down. When a widget bar ends it is replaced by its last line, because an
executed notebook cannot show a widget. Rates are computed by tqdm.
"""

from __future__ import annotations

import sys
import threading
from datetime import datetime

from tqdm import tqdm

from avomni_lib.plan import Bar

BYTE_UNITS = ("B", "byte", "bytes")
# Weight of recent rates: a resumed run counts finished work at once, and an average over the whole
# time would be too optimistic.
SMOOTHING = 0.6


class _Meter(tqdm):
    """tqdm without a monitor thread or process-wide lock, so a failed bar leaves neither behind."""

    monitor_interval = 0

    def refresh(self, *_: object, **__: object) -> bool:
        self.display()
        return True


_Meter.set_lock(threading.RLock())


def bar() -> type[Bar]:
    """`WidgetBar` if the kernel has a live front end, else `LineBar`."""
    return WidgetBar if has_front_end() else LineBar


def has_front_end() -> bool:
    """Whether this kernel is run interactively.

    papermill and nbclient execute cells with `allow_stdin=False`, JupyterLab with True.
    """
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


class LineBar(Bar):
    """Lines with a timestamp: the first, at most one every ten seconds, and the last."""

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
        # sys.stdout is looked up on every call, because a kernel replaces it for each cell.
        sys.stdout.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n")
        sys.stdout.flush()

    def write(self, text: str) -> None:
        """Called by tqdm with a line and with characters that move the cursor."""
        if line := text.strip():
            self.show(line)

    def flush(self) -> None:
        pass


class WidgetBar(LineBar):
    """An ipywidgets bar; when it ends, a line of text replaces it in the notebook."""

    every_s = 0.2

    def __init__(self, total: float | None = None, unit: str = "", label: str = ""):
        import ipywidgets
        from IPython.display import display

        self.text = ipywidgets.Label()
        self.progress = ipywidgets.FloatProgress(max=total or 1.0, layout={"width": "240px"})
        self.box = ipywidgets.HBox([self.progress, self.text])
        super().__init__(total, unit, label)
        # If the kernel dies, the notebook keeps this text instead of a frozen bar.
        shown = self.box._repr_mimebundle_() | {"text/plain": self.text.value}
        self._handle = display(shown, raw=True, display_id=True)

    def show(self, line: str) -> None:
        self.text.value = line
        # Without a total the bar stays full, and only the text counts.
        self.progress.value = self.progress.max if self.total is None else self.count

    def close(self, failed: bool = False) -> None:
        is_open = not self.meter.disable
        super().close(failed)
        if is_open and self._handle is not None:
            self._handle.update({"text/plain": self.text.value}, raw=True)
        for widget in (self.box, self.progress, self.text):
            widget.close()
