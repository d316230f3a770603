"""What a stage reports before it starts (`Plan`) and while it works (`Bar`), and number formats.

Functions take `progress: type[Bar] = Bar`; the silent bar here is the default, the visible ones are
in `notebook/progress.py`.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What a dry run returns: counts, sizes and times, before anything is done."""

    title: str
    rows: list[tuple[str, str, str]]  # (name, value, note) as shown
    warnings: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)  # for `result.json` and `--json`

    def __str__(self) -> str:
        width = max((len(name) for name, _, _ in self.rows), default=0)
        rows = [(f"  {name:<{width}}  {value}", note) for name, value, note in self.rows]
        lines = [line + (f"  ({note})" if note else "") for line, note in rows]
        return "\n".join([self.title, *lines, *(f"  ! {text}" for text in self.warnings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left'>{}</td>"
        cells = ["".join(cell.format(html.escape(text)) for text in row) for row in self.rows]
        table = "".join(f"<tr>{row}</tr>" for row in cells)
        notes = "".join(f"<p><b>Note:</b> {html.escape(text)}</p>" for text in self.warnings)
        return f"<b>{html.escape(self.title)}</b><table>{table}</table>{notes}"


class Bar:
    """A silent bar: `with progress(total=9, unit="clip", label="ETL") as bar: bar.update(1)`."""

    def __init__(self, total: float | None = None, unit: str = "", label: str = ""):
        self.total, self.unit, self.label = total, unit, label
        self.count = 0.0

    def update(self, amount: float = 1, note: str = "") -> None:
        self.count += amount

    def close(self) -> None:
        pass

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Tally:
    """A counter that worker threads add to and the main thread shows: widgets need that thread."""

    def __init__(self) -> None:
        self._amount, self._lock = 0.0, threading.Lock()

    def add(self, amount: float) -> None:
        with self._lock:
            self._amount += amount

    def take(self) -> float:
        """The amount added since the last call."""
        with self._lock:
            amount, self._amount = self._amount, 0.0
            return amount


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Format lines of cells as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def unit_of(num_bytes: float) -> tuple[str, float]:
    """The largest decimal unit that fits into a number of bytes, and its size in bytes."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next(((unit, size) for unit, size in units if num_bytes >= size), ("B", 1.0))


def gigabytes(num_bytes: float) -> str:
    """Format bytes with a decimal unit, such as `1.5 GB`."""
    unit, size = unit_of(num_bytes)
    digits = 0 if unit == "B" else 1 if num_bytes >= 10 * size else 2
    return f"{num_bytes / size:.{digits}f} {unit}"


def minutes(seconds: float) -> str:
    """Format seconds as s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
