"""Constant predictions: mean and median of the training windows' targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.training.targets.form import Content

NUMBERS = ("speed_mps", "displacement_m", "action_m", "waypoints_m", "numbers")
WORDS = ("along", "across", "cause")


def constants(true: Iterable[Content]) -> dict[str, Content]:
    """`mean` and `median` of the training windows' targets; the median minimises the MAE.

    Waypoints are averaged per coordinate. Both contain the most frequent words, ties broken by
    first occurrence.

    Args:
        true: Ground truth of each training window, and of no held-out clip.

    Raises:
        AvomniError: there are no training windows.
    """
    contents = list(true)
    if not contents:
        raise AvomniError(
            "no training window to take the mean and the median of",
            where="split train of the cache",
            fix="take more clips (download.target_chunks) or a shorter processing.sequence_length",
        )
    words = {
        name: _most_frequent([getattr(content, name) for content in contents]) for name in WORDS
    }
    return {
        name: Content(**{key: _average(average, key, contents) for key in NUMBERS}, **words)
        for name, average in (("mean", np.mean), ("median", np.median))
    }


def _average(average, name: str, contents: list[Content]):
    values = [getattr(content, name) for content in contents]
    if any(value is None for value in values):
        return None
    constant = average(np.array(values, dtype=np.float64), axis=0)
    if constant.ndim == 2:
        return tuple(map(tuple, constant.tolist()))
    return float(constant) if constant.ndim == 0 else tuple(constant.tolist())


def _most_frequent(values: list[str | None]) -> str | None:
    known = Counter(value for value in values if value is not None)
    return known.most_common(1)[0][0] if known else None
