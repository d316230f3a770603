"""Other road users: converts labels in the rig's frame to cache rows in the anchor frame.

Rows in the anchor frame can be read without the car's pose, and stationary objects have constant
positions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset.catalog import Catalog, optional_features
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.limits import HISTORY_S
from avomni_lib.dataset.select.manifest import Chosen, path_of
from avomni_lib.errors import AvomniError, system_error
from avomni_lib.etl.cache.shard import CachedClip
from avomni_lib.etl.clip.egomotion import Egomotion
from avomni_lib.params import Params

log = logging.getLogger(__name__)

COLUMNS = ("time_us", "track", "label", "x", "y", "z", "yaw", "length", "width", "height")
TIME, TRACK, LABEL, X, YAW, LENGTH = 0, 1, 2, 3, 6, 7
# All published or documented labels; `unknown`, the last one, replaces any other.
LABELS = (
    *("automobile", "person", "heavy_truck", "trailer", "bus", "rider", "other_vehicle"),
    *("protruding_object", "stroller", "animal", "train_or_tram_car", "trolley_bus", "unknown"),
)
HEADER = {"obstacle_columns": list(COLUMNS), "obstacle_labels": list(LABELS)}  # of all shards
UNIT_TOLERANCE = 0.01


def read(clip: Clip, ego: Egomotion, times: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a clip's labels of other road users, and its events as described by annotators.

    A clip with missing or damaged labels is still used: it has no rows, and its header says why.

    Args:
        ego: The clip's ego motion; labels at times that it does not cover are left out.
        times: (N,) int64 µs of the frames; labels from 1.6 s before the first to the last are kept.

    Returns:
        (K, 10) float64, columns `COLUMNS`, sorted by time and track: µs on the clip's clock; a
        number for each track_id of the clip; an index into `LABELS`; the box's centre in the clip's
        anchor frame, m; its heading there, rad to the left of x; its size, m. And optional fields
        of the clip's header row: `events` (start_us, text) and `unlabelled` (why there are no
        labels).

    Raises:
        AvomniError: the disk fails.
    """
    notes: dict[str, Any] = {}
    try:
        events = clip.catalog.events(clip.clip_id)
        notes["events"] = [{"start_us": event.start_us, "text": event.text} for event in events]
    except AvomniError as error:
        _raise_of_the_disk(error)
        log.warning("events are left out: %s (%s)", error.what, error.where)
    try:
        labels = clip.obstacles()
    except AvomniError as error:
        _raise_of_the_disk(error)
        labels, where = None, f" ({error.where})" if error.where else ""
        notes["unlabelled"] = (error.what + where).replace(f"{clip.folder}/", "")
    if labels is None:
        notes.setdefault("unlabelled", "the source has no labels of it")
        return np.zeros((0, len(COLUMNS))), notes
    return placed(labels, ego, int(times[0] - HISTORY_S * 1e6), int(times[-1])), notes


def _raise_of_the_disk(error: AvomniError) -> None:
    """Re-raise system errors, except for a missing file: the clip may just have no labels."""
    fault = system_error(error)
    if fault is not None and not isinstance(fault, FileNotFoundError):
        raise error


def placed(
    labels: Mapping[str, np.ndarray], ego: Egomotion, first_us: int, last_us: int
) -> np.ndarray:
    """Convert the labels of a time span to the rows of `read`; invalid ones are left out.

    Args:
        labels: Columns as returned by `dataset.clip.obstacle_columns`.
    """
    middle, size = (_axes(labels, name, "xyz") for name in ("center", "size"))
    turn, seen_us = _axes(labels, "orientation", "xyzw"), labels["timestamp_us"]
    rig_us = labels["reference_frame_timestamp_us"]
    is_sound = np.isfinite(np.hstack([middle, size])).all(axis=1)
    is_sound &= np.abs(np.linalg.norm(turn, axis=1) - 1) < UNIT_TOLERANCE
    is_sound &= (seen_us >= first_us) & (seen_us <= last_us)
    is_sound &= (rig_us >= ego.t_us[0]) & (rig_us <= ego.t_us[-1])
    if not is_sound.any():
        return np.zeros((0, len(COLUMNS)))
    middle, size, turn = middle[is_sound], size[is_sound], turn[is_sound]
    moments, at = np.unique(rig_us[is_sound], return_inverse=True)
    poses = ego.at(moments)
    to_anchor = Rotation.from_quat(poses.quaternion[at])
    nose = (to_anchor * Rotation.from_quat(turn)).apply((1.0, 0.0, 0.0))
    _, track = np.unique(labels["track_id"][is_sound].astype(str), return_inverse=True)
    number = {name: place for place, name in enumerate(LABELS)}
    kinds = [number.get(name, len(LABELS) - 1) for name in labels["label_class"][is_sound]]
    rows = np.column_stack(
        [
            *(seen_us[is_sound], track, kinds),
            to_anchor.apply(middle) + poses.position[at],
            np.arctan2(nose[:, 1], nose[:, 0]),
            size,
        ]
    ).astype(np.float64)
    return rows[np.lexsort((rows[:, TRACK], rows[:, TIME]))]


def fetched(p: Params, catalog: Catalog, chosen: Chosen) -> dict[int, list[str]]:
    """Chunk -> the label files to read; empty without `processing.obstacles`.

    Raises:
        AvomniError: labels are requested and listed in the release, but none were fetched.
    """
    features = catalog.listed(optional_features(p))
    listed = {chunk: catalog.files([chunk], features) for chunk in chosen.chunks}
    present = {
        chunk: [path for path in paths if path in chosen.files] for chunk, paths in listed.items()
    }
    if any(listed.values()) and not any(present.values()):
        raise AvomniError(
            f"processing.obstacles is true, and {', '.join(features)} was not fetched",
            where=str(path_of(p)),
            fix=f"{catalog.mend} (02_download then has to run again); if the source has none, set "
            "processing.obstacles to false",
        )
    return present


def figures(clips: Sequence[CachedClip]) -> dict[str, int]:
    """Counts for `result.json`."""
    return {
        "num_unlabelled": sum(bool(clip.unlabelled) for clip in clips),
        "num_events": sum(len(clip.events) for clip in clips),
    }


def _axes(labels: Mapping[str, np.ndarray], name: str, axes: str) -> np.ndarray:
    return np.stack([labels[f"{name}_{axis}"] for axis in axes], axis=1)
