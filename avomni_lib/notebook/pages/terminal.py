"""What the command line says, as a person reads it: tables in a terminal, lines everywhere else.

In a pipe, a log or a terminal that can only print (`TERM=dumb`) the frame of a table is in the way
of grep and diff; there all is the aligned text that it prints itself as.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from avomni_lib.plan import Plan, gigabytes, text_table

if TYPE_CHECKING:
    from avomni_lib.etl.cache.verify import VerifiedCache
    from avomni_lib.evaluation.comparison import Compared
    from avomni_lib.training.doctor.findings import Report

STATES = {"ok": "green", "note": "yellow", "wrong": "bold red"}
VERDICTS = {"A is better": "cyan", "B is better": "green"}


@dataclass(frozen=True)
class Rows:
    """A table of text: without a terminal a line a row, its cells apart by two spaces or more."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [[" ".join(cell.split()) for cell in row] for row in (self.head, *self.rows)]
        return f"{self.title}\n{text_table(lines)}"


def show(shown: Any, framed: Callable[[Any], RenderableType] | None = None) -> None:
    """Print what a command found.

    Args:
        shown: Something that prints itself.
        framed: Makes a table of it, for a terminal.
    """
    out = _console()
    if framed is not None and out.is_terminal and not out.is_dumb_terminal:
        out.print(framed(shown))
    else:
        print(shown, flush=True)


def _console(**options: Any) -> Console:
    """Prints what it is given: brackets and colons in a path or in a message mean nothing."""
    colours = None if os.environ.get("NO_COLOR") else "auto"
    plain = {"markup": False, "highlight": False, "emoji": False, "color_system": colours}
    return Console(**plain, **options)


def rows(shown: Rows) -> Table:
    """A row a stage. No cell is cut off where the terminal is narrow: it goes on below."""
    table = Table(title=shown.title)
    for name in shown.head:
        table.add_column(name, overflow="fold")
    for row in shown.rows:
        table.add_row(*map(Text, row))
    return table


def plan(planned: Plan) -> Group:
    """Name, value and note of each row; what to read before starting comes last."""
    table = Table(title=planned.title, title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column(style="dim")
    for row in planned.rows:
        table.add_row(*row)
    return Group(table, *(Text(f"! {warning}", "yellow") for warning in planned.warnings))


def report(found: Report) -> Group:
    """The doctor's lines. No frame, so that a command can be copied out of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in found.findings:
        lines = [Text(finding.found)]
        if finding.state != "ok":
            lines += [Text(f"why: {finding.why}", "dim")] * bool(finding.why)
            lines += [Text(f"what to do: {finding.fix}", "bold")] * bool(finding.fix)
        state = Text(finding.state, STATES.get(finding.state, ""))
        table.add_row(finding.name, state, Text("\n").join(lines))
    return Group(table, Text(found.headline, "bold red" if found.wrong else "green"))


def compared(result: Compared) -> Group:
    """Two runs side by side; who is better stands in colour as well as in words."""
    # Whoever has such an answer has this module at hand; it takes numpy and pyarrow to import.
    from avomni_lib.evaluation.comparison import HEAD

    table = Table(*HEAD, box=box.SIMPLE_HEAD)
    for column in table.columns[2:6]:
        column.justify = "right"
    before = None
    for row, *cells, verdict in result.lines():
        shown = Text(verdict, VERDICTS.get(verdict, "dim"))
        table.add_row(Text("" if row == before else row, "bold"), *cells, shown)
        before = row
    warnings = (Text(f"! {warning}", "yellow") for warning in result.figures["warnings"])
    return Group(*map(Text, result.title()), *warnings, table)


def verified(reports: Mapping[str, VerifiedCache]) -> Table:
    """Sound caches, a row each."""
    head = ("cache", "", "clips", "of these", "frames", "shards", "arrays", "size")
    table = Table(*head, box=box.SIMPLE_HEAD)
    for column in (2, 4, 5, 6, 7):
        table.columns[column].justify = "right"
    for folder, each in reports.items():
        splits = ", ".join(f"{count:,} {name}" for name, count in each.clips_by_split.items())
        counts = (each.num_frames, each.num_shards, each.num_arrays)
        cells = (f"{each.num_clips:,}", splits, *map("{:,}".format, counts))
        table.add_row(folder, Text("sound", "green"), *cells, gigabytes(each.num_bytes))
    return table


def write_error(error: Any) -> None:
    """To stderr: what, where and what to do, the first word in red where that is a terminal."""
    out = _console(stderr=True, soft_wrap=True)
    out.print(Text("error: ", "bold red") if out.is_terminal else "error: ", end="")
    out.print(str(error), soft_wrap=True)
    sys.stderr.flush()
