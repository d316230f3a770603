"""The same figure where it matters: by speed, by turn, by country, by hour and by platform."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from avomni_lib.evaluation import bootstrap
from avomni_lib.evaluation.scores import FALLBACK, MODEL, Scores

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
    slices_, nothing = [], bootstrap.Estimate(None, None, None)
    parts = [(by, part, value) for by, part in labels(scores).items() for value in part.categories]
    for by, part, value in parts:
        keep = (part == value) & scores.about(scores.primary)
        if not keep.any():
            continue
        measured, _ = bootstrap.estimates(scores.statistic(scores.primary, keep), seed=seed)
        known = dict(zip(scores.models_with(scores.primary), measured, strict=True))
        model = known.get(MODEL, nothing)
        slices_.append(
            {
                "by": by,
                "value": value,
                "metric": scores.primary,
                "num_windows": int(keep.sum()),
                "num_clips": len(np.unique(scores.clips[keep])),
                "model": model.value,
                "low": model.low,
                "high": model.high,
                "mean": known.get(FALLBACK, nothing).value,
            }
        )
    return slices_


def labels(scores: Scores) -> dict[str, pd.Categorical]:
    """What the windows are sliced by -> the slice of each of n windows, slices in table order."""
    speeds, turns = scores.ground_truth("speed_true_mps"), scores.ground_truth("turn_rad")
    slices_: dict[str, pd.Categorical] = {}
    if not np.isnan(speeds).all():
        edges = [*(least for least, _ in SPEEDS), math.inf]
        slices_["speed"] = pd.cut(speeds, edges, right=False, labels=[name for _, name in SPEEDS])
    if not np.isnan(turns).all():
        turned = np.select([turns >= TURNED_RAD, turns <= -TURNED_RAD], [1, 2], 0)
        slices_["turn"] = pd.Categorical.from_codes(turned, list(TURNS))
    hours = [None if hour is None else hour_name(hour) for hour in scores.ground_truth("hour")]
    named = {
        "country": (scores.ground_truth("country"), None),
        "hour": (np.array(hours, dtype=object), [name for _, name in HOURS]),
        "platform": (scores.ground_truth("platform"), None),
    }
    for by, (values, order) in named.items():
        known = sorted(set(values.tolist()) - {None})
        if known:
            values = np.where(np.equal(values, None), UNKNOWN, values)
            slices_[by] = pd.Categorical(values, [*(order or known), UNKNOWN])
    return slices_


def hour_name(hour: int) -> str:
    """The part of the day that an hour, 0 to 23, belongs to."""
    day = [each for each in HOURS if each[0] <= hour]
    return max(day)[1] if day else HOURS[0][1]
