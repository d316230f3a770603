"""Output of the command line: framed tables in a terminal, plain lines everywhere else.

Plain lines in pipes, logs and dumb terminals (`TERM=dumb`) work with grep and diff.
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
        text: Printed instead if there is no terminal; defaults to one line per row.
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
    """Print a command's output; `Rows` as a framed table in a terminal, without truncation."""
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
    """A console that prints text literally, without markup or emoji codes."""
    colours = None if os.environ.get("NO_COLOR") else "auto"
    plain = {"markup": False, "highlight": False, "emoji": False, "color_system": colours}
    return Console(**plain, **options)


def write_error(error: Any) -> None:
    """Print an error to stderr; in a terminal its first word is red."""
    out = _console(stderr=True, soft_wrap=True)
    out.print(Text("error: ", "bold red") if out.is_terminal else "error: ", end="")
    out.print(str(error), soft_wrap=True)
    sys.stderr.flush()
