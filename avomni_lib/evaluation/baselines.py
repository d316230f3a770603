"""What a model must beat before it has seen anything: the best constants of the training split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from avomni_lib.errors import AvomniError


@dataclass(frozen=True, slots=True)
class Constant:
    """The same answer for every window."""

    speed_mps: float
    displacement_m: float


def constants(true: Iterable[tuple[float, float]]) -> dict[str, Constant]:
    """Mean and median of the training windows' truth; the median has the least MAE.

    Args:
        true: (speed m/s, displacement m) of each training window; never one of a held-out clip.

    Raises:
        AvomniError: there are no training windows.
    """
    values = np.array(list(true), dtype=np.float64).reshape(-1, 2)
    if not len(values):
        raise AvomniError(
            "no training window to take the mean and the median of",
            where="split train of the cache",
            fix="take more clips (download.target_chunks) or a shorter processing.sequence_length",
        )
    return {
        "mean": Constant(*(float(x) for x in values.mean(axis=0))),
        "median": Constant(*(float(x) for x in np.median(values, axis=0))),
    }
