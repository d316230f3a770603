"""`full_v1`: all other targets in one answer, the summary first."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from avomni_lib.training.targets.coc import COC_V1
from avomni_lib.training.targets.form import Content, Target, bare
from avomni_lib.training.targets.future import FUTURE_V1
from avomni_lib.training.targets.meta import META_V1
from avomni_lib.training.targets.summary import SUMMARY_V1

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Truth

PARTS = (SUMMARY_V1, META_V1, FUTURE_V1, COC_V1)
CAUSE = "Cause: "
PATTERN = "\n".join(
    [SUMMARY_V1.pattern, META_V1.pattern, FUTURE_V1.pattern, CAUSE + COC_V1.pattern]
)
_STRICT = re.compile(PATTERN, re.ASCII)
_TITLE = re.compile(r"\bcause\s*:", re.ASCII | re.IGNORECASE)


def content_of(truth: Truth) -> Content:
    return _merged(*(part.of(truth) for part in PARTS))


def write(content: Content) -> str:
    parts = [part.write(content) for part in PARTS[:3]]
    return "\n".join([*parts, CAUSE + COC_V1.write(content)])


def parse(text: str) -> Content | None:
    text = bare(text)
    if not _STRICT.fullmatch(text):
        return None
    summary, meta, future, cause = text.rsplit("\n", 3)
    return _merged(
        SUMMARY_V1.parse(summary),
        META_V1.parse(meta),
        FUTURE_V1.parse(future),
        COC_V1.parse(cause.removeprefix(CAUSE)),
    )


def lenient(text: str) -> Content | None:
    """Read the cause after its title, and the other targets before it."""
    title = _TITLE.search(text)
    if not title:
        return None
    before, cause = text[: title.start()], text[title.end() :]
    parts = [*(part.read(before) for part in PARTS[:3]), COC_V1.read(cause)]
    return _merged(*parts) if all(parts) else None


def _merged(summary: Content, meta: Content, future: Content, cause: Content) -> Content:
    return replace(
        summary,
        along=meta.along,
        across=meta.across,
        waypoints_m=future.waypoints_m,
        cause=cause.cause,
        cause_from=cause.cause_from,
    )


FULL_V1 = Target(
    name="full_v1",
    question=" ".join(part.question for part in PARTS),
    figure=SUMMARY_V1.figure,
    of=content_of,
    write=write,
    parse=parse,
    lenient=lenient,
    error=SUMMARY_V1.error,
    pattern=PATTERN,
    horizon_s=FUTURE_V1.horizon_s,
    # The answer contains the summary, which a history up to the last frame would reveal.
    history_ends=SUMMARY_V1.history_ends,
    scenes=True,
)
