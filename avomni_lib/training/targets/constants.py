"""The best that can be said of every window alike: the constants of the training windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.training.targets.form import Said

NUMBERS = ("speed_mps", "displacement_m", "action_m", "waypoints_m", "numbers")
WORDS = ("along", "across", "cause")


def constants(true: Iterable[Said]) -> dict[str, Said]:
    """Mean and median of what is true of the training windows; the median has the least MAE.

    Waypoints are taken number by number. Of words the most frequent stand in both, of equals the
    first that comes.

    Args:
        true: Of each training window; never of one of a held-out clip.

    Raises:
        AvomniError: there are no training windows.
    """
    saids = list(true)
    if not saids:
        raise AvomniError(
            "no training window to take the mean and the median of",
            where="split train of the cache",
            fix="take more clips (download.target_chunks) or a shorter processing.sequence_length",
        )
    words = {name: _most_frequent([getattr(said, name) for said in saids]) for name in WORDS}
    return {
        name: Said(**{key: _of(middle, key, saids) for key in NUMBERS}, **words)
        for name, middle in (("mean", np.mean), ("median", np.median))
    }


def _of(middle, name: str, saids: list[Said]):
    values = [getattr(said, name) for said in saids]
    if any(value is None for value in values):
        return None
    found = middle(np.array(values, dtype=np.float64), axis=0)
    if found.ndim == 2:
        return tuple(map(tuple, found.tolist()))
    return float(found) if found.ndim == 0 else tuple(found.tolist())


def _most_frequent(values: list[str | None]) -> str | None:
    known = Counter(value for value in values if value is not None)
    return known.most_common(1)[0][0] if known else None
