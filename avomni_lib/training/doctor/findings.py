"""What the doctor finds: a line for each thing that training relies on, and the lines as a report.

Imports no torch.
"""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass

from avomni_lib.errors import AvomniError

# A note is worth reading and stops nothing.
OK, NOTE, WRONG = "ok", "note", "wrong"
LINE_WIDTH = 116  # characters of a report's line
COMMAND = "python -m avomni_lib doctor"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        name: What was looked at.
        state: `ok`, `note` or `wrong`.
        found: With the values.
        why: Why it matters, or what it comes from.
        fix: What to do, where something is to be done.
    """

    name: str
    state: str
    found: str
    why: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All lines, as a table in a terminal and in a notebook."""

    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.state == WRONG]

    @property
    def headline(self) -> str:
        """How many are wrong and how many are worth a look."""
        notes = sum(finding.state == NOTE for finding in self.findings)
        wrong = f"{len(self.wrong)} of {len(self.findings)}" if self.wrong else "nothing"
        is_one = len(self.wrong) < 2
        return f"{wrong} {'is' if is_one else 'are'} wrong, {notes} note{'s' * (notes != 1)}"

    def raise_if_wrong(self) -> None:
        """Refuse to go on where something is wrong.

        Raises:
            AvomniError: every wrong line with what to do about it.
        """
        if not self.wrong:
            return
        lines = [
            f"{finding.name}: {finding.found}"
            + (f"; {finding.why}" if finding.why else "")
            + (f"\n    what to do: {finding.fix}" if finding.fix else "")
            for finding in self.wrong
        ]
        raise AvomniError(
            "this machine does not compute what training relies on"
            + "".join(f"\n  - {line}" for line in lines),
            fix=f"mend what is named; {COMMAND} looks at everything again",
        )

    def __str__(self) -> str:
        width = max((len(finding.name) for finding in self.findings), default=0)
        indent = " " * (width + 9)
        lines = []
        for finding in self.findings:
            told = [finding.found]
            if finding.state != OK:
                told += [f"why: {finding.why}"] * bool(finding.why)
                told += [f"what to do: {finding.fix}"] * bool(finding.fix)
            head = f"{finding.name:<{width}}  {finding.state:<5}  "
            for text in told:
                lines += textwrap.wrap(
                    text,
                    LINE_WIDTH,
                    initial_indent=head,
                    subsequent_indent=indent,
                    # Commands are copied from here.
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                head = indent
        return "\n".join([*lines, self.headline])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = ("", "state", "found", "why", "what to do")
        rows = [(f.name, f.state, f.found, f.why, f.fix) for f in self.findings]
        body = "".join(_row(cells, "th" if cells is head else "td") for cells in [head, *rows])
        return f"<table>{body}</table><p>{html.escape(self.headline)}</p>"


def _row(cells: tuple[str, ...], tag: str) -> str:
    style = " style='text-align:left'"
    return "<tr>" + "".join(f"<{tag}{style}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"
