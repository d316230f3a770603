"""Where sampling starts, so that wanted frames are key frames: `processing.align: keyframes`.

A key frame decodes alone; another one needs all that it refers to since the key frame before it.
Where the key frames of a camera lie a whole part of the sampling step apart (15 frames at 30 fps
and 2 Hz), moving all wanted times by half a step at most makes every wanted frame one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIGNS = ("keyframes",)  # values of `processing.align` besides null
LEAST_SHARE = 0.5  # of the wanted frames must become key frames; else nothing is moved


def shift_us(
    times: np.ndarray, stamps: Sequence[np.ndarray], keys: Sequence[np.ndarray], step_us: float
) -> int:
    """By how much to move the wanted times, µs, from above -step/2 to step/2; mostly 0.

    Of the shifts with the most key frames, the one in the middle of the widest range of such
    shifts, as stamps jitter; of these the smallest.

    Args:
        times: (T,) int64 µs, as they are without it.
        stamps: Of each camera (N,) int64 µs; wanted is the last frame at or before a time.
        keys: Of each camera (K,) int, rows of `stamps` that are key frames.
        step_us: From one wanted time to the next.
    """
    is_key = [np.isin(np.arange(len(own)), rows) for own, rows in zip(stamps, keys, strict=True)]

    def count(shift: float) -> int:
        moved = times + shift
        found = 0
        for own, key in zip(stamps, is_key, strict=True):
            inside = moved[(moved >= own[0]) & (moved <= own[-1])]
            found += int(key[np.searchsorted(own, inside, side="right") - 1].sum())
        return found

    # A time shows a key frame from its stamp on until the next one's.
    edges = [
        own[edge]
        for own, rows in zip(stamps, keys, strict=True)
        for edge in (rows, np.minimum(rows + 1, len(own) - 1))
    ]
    offsets = (np.concatenate(edges) - times[0] + step_us / 2) % step_us - step_us / 2
    bounds = np.unique(np.concatenate([offsets, [-step_us / 2, step_us / 2]]))
    middles = (bounds[:-1] + bounds[1:]) / 2
    best = max(
        zip(map(count, middles), np.diff(bounds), -np.abs(middles), middles, strict=True),
        default=None,
    )
    total = len(times) * len(stamps)
    if best is None or best[0] <= count(0.0) or best[0] < LEAST_SHARE * total:
        return 0
    return round(float(best[3]))
