"""`future_v1`: the car's positions in the next 6.4 s, as 16 waypoints 0.4 s apart."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.trajectory import FUTURE_S, FUTURE_STEPS
from avomni_lib.training.targets.form import Content, Target, bare

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Truth

NUM_WAYPOINTS = 16
STEPS_APART = FUTURE_STEPS // NUM_WAYPOINTS
LIMIT_M = 1e4  # no car gets this far in 6.4 s; numbers have at most four digits before the point

_WHOLE = r"(?:0|[1-9][0-9]{0,3})"
# A unique form of each number: no -0.00, no leading zeros.
_NUMBER = (
    rf"(?:{_WHOLE}\.[0-9][0-9]"
    r"|-(?:[1-9][0-9]{0,3}\.[0-9][0-9]|0\.[1-9][0-9]|0\.0[1-9]))"
)
PATTERN = rf"Waypoints:(?: \({_NUMBER},{_NUMBER}\)){{{NUM_WAYPOINTS}}}"
_STRICT = re.compile(PATTERN)
# (64, 16): weight of each waypoint in each step of 0.1 s.
_WEIGHTS = np.stack(
    [
        np.interp(np.arange(1, FUTURE_STEPS + 1), STEPS_APART * np.arange(NUM_WAYPOINTS + 1), one)
        for one in np.eye(NUM_WAYPOINTS + 1)[1:]
    ],
    axis=1,
)
_ANY_NUMBER = r"([+-]?[0-9]{1,4}(?:\.[0-9]{1,9})?)\s*m?"
# Pairs in any brackets; a truncated pair has no closing one.
_PAIR = re.compile(rf"[(\[]\s*{_ANY_NUMBER}\s*[,;]\s*{_ANY_NUMBER}\s*[)\]]", re.IGNORECASE)


def content_of(truth: Truth) -> Content:
    if truth.future is None:
        raise AvomniError(
            "the car's path after this window is not known",
            fix=f"take the windows with horizon_s={FUTURE_S}",
        )
    at = truth.future.xy_m[STEPS_APART - 1 :: STEPS_APART]
    return Content(waypoints_m=tuple((float(x), float(y)) for x, y in at))


def write(content: Content) -> str:
    points = content.waypoints_m
    numbers = np.array(points, dtype=np.float64)
    # Values that round up to the limit are refused too, and NaN.
    if numbers.shape != (NUM_WAYPOINTS, 2) or not (np.abs(numbers) < LIMIT_M - 0.01).all():
        raise AvomniError(
            f"{points} are not {NUM_WAYPOINTS} places that a car can reach in {FUTURE_S} s",
            fix="run 01_audit, it names clips with damaged ego motion",
        )
    return "Waypoints: " + " ".join(f"({x:z.2f},{y:z.2f})" for x, y in points)


def parse(text: str) -> Content | None:
    text = bare(text)
    return _content(_PAIR.findall(text)) if _STRICT.fullmatch(text) else None


def lenient(text: str) -> Content | None:
    """The first 16 bracketed pairs of numbers, as x and y."""
    pairs = _PAIR.findall(text)
    return _content(pairs[:NUM_WAYPOINTS]) if len(pairs) >= NUM_WAYPOINTS else None


def error(predicted: Content, true: Content) -> float:
    """Average displacement error (ADE): mean distance (m) of the two paths over 64 points."""
    apart = at_10hz(predicted.waypoints_m) - at_10hz(true.waypoints_m)
    return float(np.linalg.norm(apart, axis=1).mean())


def at_10hz(waypoints_m: tuple[tuple[float, float], ...] | np.ndarray) -> np.ndarray:
    """(…, 64, 2) float64: the path every 0.1 s, from 0.1 to 6.4 s.

    Linear interpolation between the waypoints, starting from (0, 0) at the last frame. All figures
    of the future use it, so that they can be reproduced without knowing a smoother curve.

    Args:
        waypoints_m: (…, 16, 2), 0.4 to 6.4 s.
    """
    return _WEIGHTS @ np.asarray(waypoints_m, dtype=np.float64)


def _content(pairs: list[tuple[str, str]]) -> Content:
    return Content(waypoints_m=tuple((float(x), float(y)) for x, y in pairs))


FUTURE_V1 = Target(
    name="future_v1",
    question=(
        f"State where the car will be in the next {FUTURE_S} s: {NUM_WAYPOINTS} waypoints 0.4 s "
        "apart as (x,y) in metres, x forward and y left of where it is in the last frame."
    ),
    figure="ade_m",
    of=content_of,
    write=write,
    parse=parse,
    lenient=lenient,
    error=error,
    pattern=PATTERN,
    horizon_s=FUTURE_S,
    history_ends="last",
)
