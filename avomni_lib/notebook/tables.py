"""Small tables that a notebook shows: as HTML in Lab, as text in a terminal."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NUM_SHOWN = 20
SOUND = ("ok", "sound", "missing")


@dataclass(frozen=True)
class Table:
    """A head, rows of cells, and a sentence where there is no row."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if_empty: str = "nothing"

    def __repr__(self) -> str:
        if not self.rows:
            return self.if_empty
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<p>{html.escape(self.if_empty)}</p>"
        body = "".join(_line(row, "td") for row in self.rows)
        return f"<table>{_line(self.head, 'th')}{body}</table>"


def counts(counted: Mapping[str, int], what: str) -> Table:
    """Name and number."""
    return Table(("", what), [(name, f"{number:,}") for name, number in counted.items()])


def damaged(clips: Iterable[Mapping[str, Any]]) -> Table:
    """The clips that are neither sound nor merely not fetched yet, each with its reason."""
    bad = [
        (row["clip_id"], row["state"], row["reason"]) for row in clips if row["state"] not in SOUND
    ]
    shown = bad[:NUM_SHOWN]
    if len(bad) > len(shown):
        shown.append((f"and {len(bad) - len(shown)} more", "", ""))
    return Table(("clip", "state", "reason"), shown, "no damaged clip")


def choices(chosen: Mapping[str, tuple[Any, str]]) -> Table:
    """What was chosen for the user, and why."""
    rows = [(name, str(value), reason) for name, (value, reason) in chosen.items()]
    return Table(("choice", "taken", "because"), rows)


def _line(cells: tuple[str, ...], tag: str) -> str:
    style = " style='text-align:left'"
    return "<tr>" + "".join(f"<{tag}{style}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"
