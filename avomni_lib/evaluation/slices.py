"""The same figure where it matters: by speed, by turn, by country, by hour and by platform."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from avomni_lib.evaluation import bootstrap
from avomni_lib.evaluation.aligned import FALLBACK, MODEL, Aligned
from avomni_lib.evaluation.scores import Scores

# Least speed (m/s) and name.
SPEEDS = (
    (-math.inf, "standing (below 2 m/s)"),
    (2.0, "2–8 m/s"),
    (8.0, "8–15 m/s"),
    (15.0, "15–22 m/s"),
    (22.0, "over 22 m/s"),
)
# At 30 m/s a motorway's bend of 1,000 m radius turns a car by 13° in 7.5 s: still straight on.
TURNED_RAD = math.radians(15)
TURNS = ("straight (within 15°)", "left", "right")
# First hour and name; what is before the first of them is night too.
HOURS = (
    (22, "night (22–6 h)"),
    (6, "morning (6–10 h)"),
    (10, "day (10–17 h)"),
    (17, "evening (17–22 h)"),
)
UNKNOWN = "unknown"


def slices(scores: Scores, seed: int = 0) -> list[dict[str, Any]]:
    """The primary figure of the model and of the mean in each part of the windows.

    What is unknown of all windows makes no slices. Clips are resampled within a slice.

    Returns:
        {by, value, metric, num_windows, num_clips, model, low, high, mean} each: `model` with its
        interval, `mean` the mean row's; None where there is no such row or nothing to say.
    """
    of, found = scores.aligned, []
    rows = scores.rows(scores.primary)
    for by, value, keep in _parts(of):
        keep = keep & scores.about(scores.primary)
        if not keep.any():
            continue
        measured, _ = bootstrap.estimates(scores.statistic(scores.primary, keep), seed=seed)
        known = dict(zip(rows, measured, strict=True))
        nothing = bootstrap.Estimate(None, None, None)
        model = known.get(MODEL, nothing)
        found.append(
            {
                "by": by,
                "value": value,
                "metric": scores.primary,
                "num_windows": int(keep.sum()),
                "num_clips": len(np.unique(of.clips[keep])),
                "model": model.value,
                "low": model.low,
                "high": model.high,
                "mean": known.get(FALLBACK, nothing).value,
            }
        )
    return found


def _parts(of: Aligned) -> Iterator[tuple[str, str, np.ndarray]]:
    """(by, value, (n,) bool) in the order in which a table shows them."""
    speeds, turns = of.true("speed_true_mps"), of.true("turn_rad")
    if not np.isnan(speeds).all():
        edges = [least for least, _ in SPEEDS[1:]]
        yield from _each("speed", [name for _, name in SPEEDS], np.digitize(speeds, edges))
    if not np.isnan(turns).all():
        turned = np.select([turns >= TURNED_RAD, turns <= -TURNED_RAD], [1, 2], 0)
        yield from _each("turn", list(TURNS), turned)
    yield from _named("country", of.true("country"))
    hours = [None if hour is None else hour_name(hour) for hour in of.true("hour")]
    yield from _named("hour", np.array(hours, dtype=object), [name for _, name in HOURS])
    yield from _named("platform", of.true("platform"))


def hour_name(hour: int) -> str:
    """The part of the day that an hour, 0 to 23, belongs to."""
    day = [each for each in HOURS if each[0] <= hour]
    return max(day)[1] if day else HOURS[0][1]


def _named(
    by: str, values: np.ndarray, order: list[str] | None = None
) -> Iterator[tuple[str, str, np.ndarray]]:
    known = set(values.tolist()) - {None}
    if not known:
        return
    names = [*(order or sorted(known)), UNKNOWN]
    places = [names.index(UNKNOWN if value is None else value) for value in values]
    yield from _each(by, names, np.array(places))


def _each(by: str, names: list[str], places: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    for place, name in enumerate(names):
        yield by, name, places == place
