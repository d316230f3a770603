"""`coc_v1` (chain of causation): one sentence that states what the car does and why.

A sentence is a line of printable ASCII without `<`, `>` and `|`, so that it contains no special
token or tag. Its only full stop is at its end, so that a truncated answer never matches.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.trajectory import FUTURE_S
from avomni_lib.training.targets import causes
from avomni_lib.training.targets.form import END_TOKENS, Content, Target, bare

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Truth

LONGEST = 240  # characters
_SIGN = r"[!-\-/-;=?-{}~]"  # from `!` to `~`, without `.`, `<`, `>` and `|`
_SIGN_OR_SPACE = r"[ -\-/-;=?-{}~]"
PATTERN = rf"{_SIGN}{_SIGN_OR_SPACE}{{0,{LONGEST - 2}}}\."
_STRICT = re.compile(PATTERN)
_TITLE = re.compile(r"\bcause\s*:", re.ASCII | re.IGNORECASE)
_TYPOGRAPHIC = str.maketrans("‘’“”‐‒–—−⁄", "''\"\"-----/")
_WORD = re.compile(r"[a-z0-9]+(?:[,.'][a-z0-9]+)*")


def content_of(truth: Truth) -> Content:
    if truth.scene is None:
        raise AvomniError(
            "the cache has no other road users, so no cause can be given",
            where="processing.obstacles",
            fix="set processing.obstacles: true and run 03_etl again",
        )
    event = sentence(truth.scene.event or "")
    if event:
        return Content(cause=event, cause_from="event")
    return Content(cause=sentence(causes.cause(truth)), cause_from="template")


def sentence(text: str) -> str:
    """Convert text to a sentence of this form; empty if it has no word.

    Whitespace is collapsed, typographic signs and accents become ASCII, other scripts are dropped.
    Several sentences are joined by semicolons, decimal points become commas, other inner full stops
    are removed. Text that is too long is cut at a word.
    """
    text = unicodedata.normalize("NFKD", text).translate(_TYPOGRAPHIC)
    text = text.encode("ascii", "ignore").decode()
    text = " ".join(re.sub(r"[<>|\x00-\x1f\x7f]", " ", text).split())
    text = re.sub(r"[.!?]+ ", "; ", text)
    text = re.sub(r"(?<=[0-9])\.(?=[0-9])", ",", text).replace(".", "")
    if len(text) >= LONGEST:
        text = text[:LONGEST].rpartition(" ")[0] or text[: LONGEST - 1]
    text = text.strip(" !?;:,-")
    return f"{text}." if _words(text) else ""


def write(content: Content) -> str:
    text = bare(content.cause or "")
    text = text if _STRICT.fullmatch(text) else sentence(text)
    if not text:
        raise AvomniError(
            f"{content.cause!r} is no sentence",
            fix="write a cause with at least one word of Latin letters",
        )
    return text


def parse(text: str) -> Content | None:
    text = bare(text)
    return Content(cause=text) if _STRICT.fullmatch(text) else None


def lenient(text: str) -> Content | None:
    """The text up to its last sentence end, after `Cause:` if present, converted to this form."""
    for token in END_TOKENS:
        text = text.replace(token, " ")
    title = _TITLE.search(text)
    ends = list(re.finditer(r"[.!?](?=\W|$)", text))
    text = text[title.end() if title else 0 : ends[-1].end() if ends else 0]
    cause = sentence(re.sub(r"</?think>", " ", text))
    return Content(cause=cause) if cause else None


def error(predicted: Content, true: Content) -> float:
    return 1.0 - word_f1(predicted.cause or "", true.cause or "")


def word_f1(predicted: str, true: str) -> float:
    """F1 of the words of two sentences, 0 to 1, with multiplicity and in any order.

    The harmonic mean of precision and recall over words: SQuAD's F1 (Rajpurkar et al., 2016,
    arXiv:1606.05250), but articles count. Case and punctuation are ignored. The F1 of two sentences
    without words is 1.
    """
    one, other = Counter(_words(predicted)), Counter(_words(true))
    if not one or not other:
        return float(one == other)
    return 2 * (one & other).total() / (one.total() + other.total())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


COC_V1 = Target(
    name="coc_v1",
    question="State in one sentence what the car does after the last frame and why.",
    figure="cause_error",
    of=content_of,
    write=write,
    parse=parse,
    lenient=lenient,
    error=error,
    pattern=PATTERN,
    horizon_s=FUTURE_S,
    history_ends="last",
    scenes=True,
)
