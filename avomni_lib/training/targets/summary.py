"""`summary_v1`: average speed and displacement in the window; the user's format, byte for byte."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from avomni_lib.errors import AvomniError
from avomni_lib.training.targets.form import Content, Target, bare

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Truth

LIMIT = 1e7  # beyond any car, m/s or m; numbers have at most seven digits before the point
_NUMBER = r"(?:0|[1-9]\d{0,6})"
PATTERN = (
    rf"<think>\nAvg Velocity: ({_NUMBER}\.\d\d)m/s\. "
    rf"Total displacement: ({_NUMBER}\.\d\d)m\.\n</think>\n"
    rf"Action: Displacement of ({_NUMBER}\.\d) meters\."
)
_STRICT = re.compile(PATTERN, re.ASCII)
# After a few words and signs, but no minus; a truncated number has no unit.
_ANY_NUMBER = r"[^\d.-]{0,40}(\d{1,7}(?:\.\d{1,9})?)\s*"
_METRES = r"m(?:et(?:er|re)s?)?\b"
_LENIENT = re.compile(
    rf"velocity{_ANY_NUMBER}m/s.*?displacement{_ANY_NUMBER}{_METRES}"
    rf"(?:.*?displacement\s+of{_ANY_NUMBER}{_METRES})?",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)


def content_of(truth: Truth) -> Content:
    return Content(truth.speed_mps, truth.path_m, truth.path_m)


def write(content: Content) -> str:
    speed, path = float(content.speed_mps), float(content.displacement_m)
    # Values that round up to the limit are refused too, and NaN.
    if not (0 <= speed < LIMIT - 0.1 and 0 <= path < LIMIT - 0.1):
        raise AvomniError(
            f"speed {speed} m/s and path {path} m are out of range",
            fix="run 01_audit, it names clips with damaged ego motion",
        )
    # Each number is printed from the unrounded value: 42.149 m is 42.15 and 42.1.
    # abs() drops the sign of -0.0, which would be printed.
    speed, path = abs(speed), abs(path)
    return (
        f"<think>\nAvg Velocity: {speed:.2f}m/s. Total displacement: {path:.2f}m.\n</think>\n"
        f"Action: Displacement of {path:.1f} meters."
    )


def parse(text: str) -> Content | None:
    match = _STRICT.fullmatch(bare(text))
    return Content(*map(float, match.groups())) if match else None


def lenient(text: str) -> Content | None:
    match = _LENIENT.search(text)
    if not match:
        return None
    speed, path, action = (number and float(number) for number in match.groups())
    return Content(speed, path, path if action is None else action)


def error(predicted: Content, true: Content) -> float:
    return abs(predicted.speed_mps - true.speed_mps)


SUMMARY_V1 = Target(
    name="summary_v1",
    question="State the car's average velocity and how far it drives in this video.",
    figure="speed_mae_mps",
    of=content_of,
    write=write,
    parse=parse,
    lenient=lenient,
    error=error,
    pattern=PATTERN,
)
