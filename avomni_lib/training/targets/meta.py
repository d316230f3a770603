"""`meta_v1`: the manoeuvre of the next 3 s, along the road and across it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import manoeuvre
from avomni_lib.etl.clip.manoeuvre import ACROSS, ALONG, HORIZON_S
from avomni_lib.etl.clip.trajectory import FUTURE_S
from avomni_lib.training.targets.form import Content, Target, bare

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Truth

PATTERN = rf"Manoeuvre: (?:{'|'.join(ALONG)}), (?:{'|'.join(ACROSS)})\."
_STRICT = re.compile(PATTERN)
_TITLE = re.compile(r"man(?:oeu|eu)v(?:re|er)", re.ASCII | re.IGNORECASE)


def _label(labels: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern that finds a label as whole words, joined by spaces, hyphens or underscores."""
    words = (re.sub(r"[ -]", r"[\\s_-]*", label) for label in labels)
    return re.compile(rf"\b({'|'.join(words)})\b", re.ASCII | re.IGNORECASE)


_LENIENT = (_label(ALONG), _label(ACROSS))


def content_of(truth: Truth) -> Content:
    if truth.future is None:
        raise AvomniError(
            "the car's motion after this window is not known",
            fix=f"take the windows with horizon_s={FUTURE_S}",
        )
    along, across = manoeuvre.decide(truth.future)
    return Content(along=along, across=across)


def write(content: Content) -> str:
    if content.along not in ALONG or content.across not in ACROSS:
        raise AvomniError(
            f"{content.along!r} and {content.across!r} are no manoeuvre",
            fix=f"choose of {', '.join(ALONG)} and of {', '.join(ACROSS)}",
        )
    return f"Manoeuvre: {content.along}, {content.across}."


def parse(text: str) -> Content | None:
    text = bare(text)
    if not _STRICT.fullmatch(text):
        return None
    along, across = text.removeprefix("Manoeuvre: ").removesuffix(".").split(", ")
    return Content(along=along, across=across)


def lenient(text: str) -> Content | None:
    """The first label of each kind, after the word manoeuvre if present."""
    title = _TITLE.search(text)
    matches = [label.search(text, title.end() if title else 0) for label in _LENIENT]
    if not all(matches):
        return None
    along, across = (
        next(label for label in labels if _letters(label) == _letters(match[1]))
        for labels, match in zip((ALONG, ACROSS), matches, strict=True)
    )
    return Content(along=along, across=across)


def error(predicted: Content, true: Content) -> float:
    """Share of wrong labels: 0, 0.5 or 1."""
    return ((predicted.along != true.along) + (predicted.across != true.across)) / 2


def _letters(label: str) -> str:
    return re.sub(r"[^a-z]", "", label.lower())


META_V1 = Target(
    name="meta_v1",
    question=(
        f"State what the car does in the next {HORIZON_S:.0f} s. "
        f"Along the road, one of: {', '.join(ALONG)}. Across it, one of: {', '.join(ACROSS)}."
    ),
    figure="manoeuvre_error",
    of=content_of,
    write=write,
    parse=parse,
    lenient=lenient,
    error=error,
    pattern=PATTERN,
    # The labels need 3 s of it, but a future is only available as a whole.
    horizon_s=FUTURE_S,
    history_ends="last",
)
