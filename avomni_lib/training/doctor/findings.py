"""What the doctor reports: a line for each thing that training relies on. Imports no torch."""

from __future__ import annotations

import html
import textwrap
from dataclasses import astuple, dataclass

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

    @classmethod
    def refusal(cls, name: str, error: AvomniError) -> Finding:
        return cls(name, WRONG, error.what, error.where or "", error.fix or "")


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
        verb = "is" if len(self.wrong) < 2 else "are"
        return f"{wrong} {verb} wrong, {notes} note{'s' * (notes != 1)}"

    def raise_if_wrong(self) -> None:
        """Refuse to go on where something is wrong.

        Raises:
            AvomniError: every wrong line with what to do about it.
        """
        if self.wrong:
            lines = [
                f"\n  - {finding.name}: {finding.found}"
                + (f"; {finding.why}" if finding.why else "")
                + (f"\n    what to do: {finding.fix}" if finding.fix else "")
                for finding in self.wrong
            ]
            raise AvomniError(
                f"this machine does not compute what training relies on{''.join(lines)}",
                fix=f"mend what is named; {COMMAND} looks at everything again",
            )

    def __str__(self) -> str:
        width = max((len(finding.name) for finding in self.findings), default=0)
        indent = " " * (width + 9)
        # Commands are copied from here: they are not broken.
        wrapper = textwrap.TextWrapper(
            LINE_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines = []
        for finding in self.findings:
            wrapper.initial_indent = f"{finding.name:<{width}}  {finding.state:<5}  "
            lines += wrapper.wrap(finding.found)
            wrapper.initial_indent = indent
            if finding.state != OK:
                lines += wrapper.wrap(f"why: {finding.why}") if finding.why else []
                lines += wrapper.wrap(f"what to do: {finding.fix}") if finding.fix else []
        return "\n".join([*lines, self.headline])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [("", "state", "found", "why", "what to do"), *map(astuple, self.findings)]
        cell = "<td style='text-align:left'>{}</td>"
        body = "".join(
            f"<tr>{''.join(cell.format(html.escape(text)) for text in row)}</tr>" for row in rows
        )
        return f"<table>{body}</table><p>{html.escape(self.headline)}</p>"
