"""What an audit finds: one row a fault or remark, with its place and the values that show it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from avomni_lib.errors import AvomniError

# `damaged` must not be used as it is; `odd` can be, but look at it; `noted` is no fault.
DAMAGED, ODD, NOTED = "damaged", "odd", "noted"
SEVERITIES = (DAMAGED, ODD, NOTED)
# Kinds that are usual where recordings are not the data set's own.
USUAL = ("another frame rate", "variable frame rate", "shorter than the horizon")

# How far a finding reaches:
SET = "set"  # the data set or the disk
FILE = "file"  # the file, but none of its clips
WHOLE = "whole"  # the file and with it every clip in it
MEMBER = "member"  # one clip, because its part of the file is not what was published
CLIP = "clip"  # one clip, as it was published


@dataclass(frozen=True, slots=True)
class Finding:
    """One row.

    Attributes:
        severity: Of `SEVERITIES`.
        what: The kind, without values: findings of a kind are counted together.
        reason: With the values.
        reach: One of the words above.
        path: Below the data folder.
        feature: Empty for metadata and for findings about the set.
        clip_id: Empty where it is not about one clip.
    """

    severity: str
    what: str
    reason: str
    reach: str = CLIP
    path: str = ""
    feature: str = ""
    chunk: int | None = None
    clip_id: str = ""

    @property
    def is_files(self) -> bool:
        """Whether it speaks of the file as such: fetching it again may mend it."""
        return self.reach in (FILE, WHOLE, MEMBER)

    def hits(self, clip_id: str) -> bool:
        """Whether the clip suffers from it."""
        return self.reach == WHOLE or bool(self.clip_id) and self.clip_id == clip_id


def worst(findings: Iterable[Finding]) -> str | None:
    """The worst severity but `noted`; None where nothing is wrong."""
    severities = {finding.severity for finding in findings}
    return next((word for word in (DAMAGED, ODD) if word in severities), None)


def refuse(
    findings: Iterable[Finding],
    where: str,
    fix: str | None = None,
    kind: type[AvomniError] = AvomniError,
) -> None:
    """Raise an error of class `kind` for the first finding for which a clip must not be used."""
    for finding in findings:
        if finding.severity == DAMAGED:
            raise kind(finding.reason, where=where, fix=fix)


def reasons(findings: Iterable[Finding]) -> str:
    """What is wrong in one sentence, the worst first; each reason once."""
    order = sorted(
        (finding for finding in findings if finding.severity != NOTED),
        key=lambda finding: SEVERITIES.index(finding.severity),
    )
    return "; ".join(dict.fromkeys(finding.reason for finding in order))


def summary(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """One row a kind: severity, what, count, clips, and the first one as an example."""
    groups = defaultdict[tuple[str, str], list[Finding]](list)
    for finding in findings:
        groups[finding.severity, finding.what].append(finding)
    rows = []
    for (severity, what), group in groups.items():
        first = min(group, key=lambda f: (f.chunk or 0, f.path, f.clip_id))
        clips = {f.clip_id for f in group if f.clip_id}
        row = {"severity": severity, "what": what, "count": len(group), "clips": len(clips)}
        shown = ("clip_id", "feature", "path", "reason")
        rows.append(row | {name: getattr(first, name) for name in shown})
    return sorted(rows, key=lambda row: (SEVERITIES.index(row["severity"]), -row["count"]))
