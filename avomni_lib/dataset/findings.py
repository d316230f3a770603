"""Findings: results of checks, one row per fault or remark, with its place and values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from avomni_lib.errors import AvomniError

# `damaged` must not be used; `odd` can be used but is unusual; `noted` is no fault.
DAMAGED, ODD, NOTED = "damaged", "odd", "noted"
SEVERITIES = (DAMAGED, ODD, NOTED)
# Kinds of findings that are normal for recordings from other sources.
USUAL = ("another frame rate", "variable frame rate", "shorter than the horizon")

# What a finding affects:
SET = "set"  # the data set or the disk
FILE = "file"  # the file, but none of its clips
WHOLE = "whole"  # the file and all clips in it
MEMBER = "member"  # one clip, because its part of the file differs from what was published
CLIP = "clip"  # one clip, as it was published


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault or remark.

    Attributes:
        severity: One of `SEVERITIES`.
        what: The kind of finding, without values; findings of a kind are counted together.
        reason: The text with values.
        reach: What is affected, see above.
        path: Path below the data folder.
        feature: Empty for metadata and for findings about the data set.
        clip_id: Empty if it is not about a single clip.
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
        """Whether it is about the file as such, so that fetching it again may help."""
        return self.reach in (FILE, WHOLE, MEMBER)


def worst(findings: Iterable[Finding]) -> str | None:
    """The worst severity, ignoring `noted`; None if there is no fault."""
    severities = {finding.severity for finding in findings}
    return next((word for word in (DAMAGED, ODD) if word in severities), None)


def refuse(
    findings: Iterable[Finding],
    where: str,
    fix: str | None = None,
    kind: type[AvomniError] = AvomniError,
) -> None:
    """Raise an error of class `kind` for the first `damaged` finding, if any."""
    for finding in findings:
        if finding.severity == DAMAGED:
            raise kind(finding.reason, where=where, fix=fix)


def reasons(findings: Iterable[Finding]) -> str:
    """All distinct reasons in one sentence, worst first."""
    order = sorted(
        (finding for finding in findings if finding.severity != NOTED),
        key=lambda finding: SEVERITIES.index(finding.severity),
    )
    return "; ".join(dict.fromkeys(finding.reason for finding in order))


def summary(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """One row per kind: severity, what, count, clips, and the first finding as an example."""
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
