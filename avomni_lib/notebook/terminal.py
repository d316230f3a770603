"""What the command line says, as a person reads it: tables in a terminal, lines everywhere else.

In a pipe or a log the frame of a table is in the way of grep and diff; there a plan, a report and
a comparison are the aligned text that they print themselves as.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from avomni_lib.plan import Plan, gigabytes

if TYPE_CHECKING:
    from avomni_lib.etl.verification import Verified
    from avomni_lib.evaluation.comparison import Compared
    from avomni_lib.training.findings import Report

WIDTH = 140  # where there is no terminal to measure: enough for the figures of a run
STATES = {"ok": "green", "note": "yellow", "wrong": "bold red"}
VERDICTS = {"A is better": "cyan", "B is better": "green"}


def show(told: Any, framed: Callable[[Any], RenderableType] | None = None) -> None:
    """Print what a command found.

    Args:
        told: A table, or something that prints itself.
        framed: Makes a table of it, for a terminal.
    """
    # Brackets in a path or in a message are no markup.
    out = Console(markup=False, highlight=False)
    if not out.is_terminal:
        out = Console(width=WIDTH, markup=False, highlight=False)
    if isinstance(told, Table):
        out.print(told)
    elif framed is not None and out.is_terminal:
        out.print(framed(told))
    else:
        print(told, flush=True)


def plan(told: Plan) -> Group:
    """Name, value and note of each row; what to read before starting comes last."""
    table = Table(title=told.title, title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column(style="dim")
    for row in told.rows:
        table.add_row(*row)
    return Group(table, *(Text(f"! {warning}", "yellow") for warning in told.warnings))


def report(told: Report) -> Group:
    """The doctor's lines. No frame, so that a command can be copied out of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in told.findings:
        lines = [Text(finding.found)]
        if finding.state != "ok":
            lines += [Text(f"why: {finding.why}", "dim")] * bool(finding.why)
            lines += [Text(f"what to do: {finding.fix}", "bold")] * bool(finding.fix)
        state = Text(finding.state, STATES.get(finding.state, ""))
        table.add_row(finding.name, state, Text("\n").join(lines))
    return Group(table, Text(told.headline, "bold red" if told.wrong else "green"))


def compared(told: Compared) -> Group:
    """Two runs side by side; who is better stands in colour as well as in words."""
    # Whoever has such an answer has this module at hand; it takes numpy and pyarrow to import.
    from avomni_lib.evaluation.comparison import HEAD

    table = Table(*HEAD, box=box.SIMPLE_HEAD)
    for column in table.columns[2:6]:
        column.justify = "right"
    before = None
    for row, *cells, verdict in told.lines():
        shown = Text(verdict, VERDICTS.get(verdict, "dim"))
        table.add_row(Text("" if row == before else row, "bold"), *cells, shown)
        before = row
    warnings = (Text(f"! {warning}", "yellow") for warning in told.figures["warnings"])
    return Group(*map(Text, told.title()), *warnings, table)


def verified(told: Mapping[str, Verified]) -> Table:
    """Sound caches, a row each."""
    head = ("cache", "", "clips", "of these", "frames", "shards", "arrays", "size")
    table = Table(*head, box=box.SIMPLE_HEAD)
    for column in (2, 4, 5, 6, 7):
        table.columns[column].justify = "right"
    for folder, each in told.items():
        splits = ", ".join(f"{count:,} {name}" for name, count in each.clips_by_split.items())
        counts = (each.num_frames, each.num_shards, each.num_arrays)
        cells = (f"{each.num_clips:,}", splits, *map("{:,}".format, counts))
        table.add_row(folder, Text("sound", "green"), *cells, gigabytes(each.num_bytes))
    return table


def write_error(error: Any) -> None:
    """To stderr: what, where and what to do, the first word in red where that is a terminal."""
    out = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    out.print(Text("error: ", "bold red") if out.is_terminal else "error: ", end="")
    out.print(str(error), soft_wrap=True)
    sys.stderr.flush()
