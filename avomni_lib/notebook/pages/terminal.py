"""What the command line says, as a person reads it: tables in a terminal, lines everywhere else.

In a pipe, a log or a terminal that can only print (`TERM=dumb`) the frame of a table is in the way
of grep and diff.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from avomni_lib.plan import text_table

STYLES = {"ok": "green", "sound": "green", "note": "yellow", "wrong": "bold red"}
STYLES |= {"A is better": "cyan", "B is better": "green"}


@dataclass(frozen=True)
class Rows:
    """A table of text.

    Attributes:
        notes: Lines below it.
        text: What is printed where there is no terminal; a line a row where it is left out.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    text: str = ""

    def __str__(self) -> str:
        lines = [[" ".join(cell.split()) for cell in row] for row in (self.head, *self.rows)]
        return self.text or "\n".join([self.title, text_table(lines), *self.notes])


def show(shown: Any) -> None:
    """Print what a command found; `Rows` with a frame in a terminal, where no cell is cut off."""
    out = _console()
    if not isinstance(shown, Rows) or not out.is_terminal or out.is_dumb_terminal:
        print(shown, flush=True)
        return
    table = Table(
        title=Text(shown.title, "bold"), title_justify="left", show_header=any(shown.head)
    )
    for name in shown.head:
        table.add_column(name, overflow="fold")
    for row in shown.rows:
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    out.print(table, *map(Text, shown.notes), sep="\n")


def _console(**options: Any) -> Console:
    """Prints what it is given: brackets and colons in a path or in a message mean nothing."""
    colours = None if os.environ.get("NO_COLOR") else "auto"
    plain = {"markup": False, "highlight": False, "emoji": False, "color_system": colours}
    return Console(**plain, **options)


def write_error(error: Any) -> None:
    """To stderr: what, where and what to do, the first word in red where that is a terminal."""
    out = _console(stderr=True, soft_wrap=True)
    out.print(Text("error: ", "bold red") if out.is_terminal else "error: ", end="")
    out.print(str(error), soft_wrap=True)
    sys.stderr.flush()
