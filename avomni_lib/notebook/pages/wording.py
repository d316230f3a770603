"""Labels and number formats of the ladder for plots and pages, and the standing of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from avomni_lib.evaluation.claims import FEWEST_CLIPS, ROWS
from avomni_lib.evaluation.scores import Metric, metric

BEATEN, EVEN, AHEAD = "beaten", "even", "ahead"


def row(name: str) -> str:
    """Label of a row of the ladder."""
    return ROWS.get(name, name.replace("_", " "))


def is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None, sign: bool = False) -> str:
    """A figure as text: `1.08`, `+5.59`, or a dash if there is none."""
    if not is_number(value):
        return "–"
    plus, digits = "+" if sign else "", 2 if abs(value) < 99.995 else 0
    return f"{value:{plus},.{digits}f}"


def amount(figure: Metric, value: float | None) -> str:
    """A figure with its unit: `1.08 m/s`."""
    return f"{number(value)} {figure.unit}".rstrip()


def interval(low: float | None, high: float | None, sign: bool = False) -> str:
    """`0.90 to 1.31`, or an empty string without an interval."""
    return f"{number(low, sign)} to {number(high, sign)}" if is_number(low) else ""


def axis(figure: Metric) -> str:
    """Label of an axis for a figure."""
    unit = f", {figure.unit}" if figure.unit else ""
    return f"{figure.words}{unit}" + (" (more is better)" if figure.more_is_better else "")


def standing(entry: Mapping[str, Any]) -> str:
    """Whether the model has BEATEN a row, is EVEN with it, or the row is AHEAD.

    EVEN means that the interval of the difference contains 0 or comes from fewer than
    `FEWEST_CLIPS` clips.
    """
    low, high = entry["difference_low"], entry["difference_high"]
    if entry["num_clips"] < FEWEST_CLIPS or not is_number(low) or low <= 0 <= high:
        return EVEN
    return AHEAD if (low > 0) == metric(entry["metric"]).more_is_better else BEATEN
