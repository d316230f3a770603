"""The windows that a score is made on, and their ground truth."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset.catalog import Catalog
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation.metrics import Asked
from avomni_lib.params import Params
from avomni_lib.training.prompt import samples
from avomni_lib.training.targets import target

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows

ATTRIBUTES = ("country", "hour", "platform")


def windows_of(p: Params) -> Windows:
    """The windows of the split that the score is made on.

    Raises:
        AvomniError: no cache, splits that share a clip, or no window in the split.
    """
    from avomni_lib.etl.cache.windows import check_leaks

    windows = samples.windows_of(p, p.evaluation.split)
    check_leaks(windows.cache)
    if not len(windows):
        length, horizon = p.processing.sequence_length, target(p.training.target).horizon_s
        short = f" and {horizon:g} s of ego motion after them" if windows.num_short else ""
        raise AvomniError(
            f"no window to score: no clip of the split {p.evaluation.split!r} has {length} frames"
            + short,
            where=str(p.cache_dir),
            fix="take more chunks (download.target_chunks), choose another evaluation.split, "
            "or lower processing.sequence_length",
        )
    return windows


def thinned(num_windows: int, max_windows: int | None) -> list[int]:
    """Indices of at most `max_windows` windows, evenly spaced over all of them."""
    num = min(num_windows, max_windows or num_windows)
    return [i * num_windows // num for i in range(num)]


def asked(p: Params, windows: Windows, indices: Sequence[int]) -> list[Asked]:
    """The chosen windows with their ground truth and where they were driven."""
    catalog = None
    with contextlib.suppress(AvomniError):
        catalog = Catalog.of(p)  # a run may have been brought here without it
    return [
        Asked(
            windows[index].clip_id,
            windows[index].number,
            windows.truth(index),
            turn_rad(windows.egomotion(index)),
            _attributes(catalog, windows[index].clip_id),
        )
        for index in indices
    ]


def turn_rad(egomotion: np.ndarray) -> float:
    """How far the nose turns over a window's rows of `egomotion`, to the left positive."""
    ahead = Rotation.from_quat(egomotion[:, 3:7]).apply((1.0, 0.0, 0.0))
    heading = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
    return float(heading[-1] - heading[0])


def _attributes(catalog: Catalog | None, clip_id: str) -> dict[str, Any]:
    """What the catalog says of a clip; nothing where it does not know it."""
    known: dict[str, Any] = {}
    if catalog is not None:
        with contextlib.suppress(AvomniError):
            known = catalog.attributes(clip_id)
    return {name: known.get(name) for name in ATTRIBUTES}
