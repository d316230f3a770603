"""As many clips of each group as there can be, the same ones each time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def shares(sizes: np.ndarray, total: int | None) -> np.ndarray:
    """How many to take of each group, as equal as possible.

    Groups that are large enough get the same number, or one more; smaller ones all they have.

    Args:
        sizes: (groups,) int, what each has.
        total: At most so many altogether; None: of each as many as the smallest that has any.
    """
    if total is None:
        return np.minimum(sizes, min(sizes[sizes > 0], default=0))
    # Water stands in joined vessels at one level; those that are lower are full.
    rising = np.sort(sizes)
    full = np.cumsum(rising) - rising
    levels = (total - full) // np.arange(len(sizes), 0, -1)
    unfilled = np.flatnonzero(levels < rising)
    taken = np.minimum(sizes, levels[unfilled[0]]) if len(unfilled) else sizes.copy()
    larger = np.flatnonzero(sizes > taken)
    taken[larger[: total - int(taken.sum())]] += 1
    return taken


def pick(clip_ids: Sequence[str], group: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """(clips,) bool which clips to take: so many of each group, drawn by their names and the seed.

    A clip's luck depends on no other clip's, so that a set which grows keeps its picks.

    Args:
        group: (clips,) int, each clip's group.
        wanted: (groups,) int, from `shares`.
    """
    is_taken = np.zeros(len(group), bool)
    have = np.bincount(group, minlength=len(wanted))
    for place in np.flatnonzero((have > 0) & (wanted > 0)):
        rows = np.flatnonzero(group == place)
        if have[place] > wanted[place]:
            luck = [hashlib.sha256(f"{seed}/{clip_ids[row]}".encode()).digest() for row in rows]
            rows = rows[sorted(range(len(rows)), key=luck.__getitem__)[: wanted[place]]]
        is_taken[rows] = True
    return is_taken
