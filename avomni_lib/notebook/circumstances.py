"""What the chosen clips are like before anything is built of them: speed, turn, hour, country.

Hour and country come from the catalog. Speed and turn come from the ego motion where it can be
read: raw files on the disk, the rendered world, or the cache of a run whose raw files are evicted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit.audit import NOT_CHOSEN, Audit
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS, Cache
from avomni_lib.etl.run import forecast
from avomni_lib.etl.video import reader
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params

if TYPE_CHECKING:
    import pandas as pd

MOST_READ = 300  # clips whose ego motion is read: some ms each
WIDTH_PX = 460  # of a first frame; it is shown smaller
COLUMNS = (
    *("clip_id", "split", "state", "chunk", "country", "hour", "platform"),
    *("speed_mps", "turn_deg"),
)
NOTHING_THERE = "no raw file is on the disk yet: run this notebook again after 02_download"


@dataclass(frozen=True)
class FirstFrame:
    """How a clip begins: (H, W, 3) uint8 RGB, or None and why there is none."""

    clip_id: str
    split: str
    image: np.ndarray | None = field(repr=False)
    reason: str = ""


def clips(p: Params, found: Audit) -> pd.DataFrame:
    """What the chosen clips of an audit are like: a row a clip, by clip_id, with `COLUMNS`.

    `speed_mps` is the mean speed, `turn_deg` the heading at the end less that at the start, left
    positive. They are NaN, and the others None, where they are not known.
    """
    import pandas as pd

    catalog, chosen = Catalog.of(p), _chosen(found)
    motions = _Motions(p, catalog)
    motion_of = {row["clip_id"]: motions.of(row["clip_id"]) for row in _spread(chosen, MOST_READ)}
    rows = [_row(catalog, row, motion_of.get(row["clip_id"])) for row in chosen]
    table = pd.DataFrame(rows, columns=COLUMNS).set_index("clip_id")
    return table.astype({"speed_mps": float, "turn_deg": float})


def first_frames(p: Params, found: Audit, num: int = 10) -> list[FirstFrame]:
    """The first frame of the front wide camera of some clips, evenly taken.

    Returns:
        One a clip whose file is there; empty where none is.
    """
    catalog = Catalog.of(p)
    own = cameras.grid(p.vision.cameras).cameras
    camera = (cameras.FRONT_WIDE if cameras.FRONT_WIDE in own else own[0]).name
    there = [row for row in _chosen(found) if _clip(p, catalog, row["clip_id"], camera) is not None]
    frames = []
    for row in _spread(there, num):
        image, reason = None, ""
        try:
            source = _clip(p, catalog, row["clip_id"], camera).video(camera)
            image = reader.read_frames(source, np.zeros(1), size=_shrunk).images[0]
        except AvomniError as error:
            reason = error.what
        frames.append(FirstFrame(row["clip_id"], row["split"], image, reason))
    return frames


def _shrunk(width: int, height: int) -> tuple[int, int]:
    return WIDTH_PX, round(WIDTH_PX * height / width)


def _chosen(found: Audit) -> list[dict[str, Any]]:
    return [row for row in found.clips if row["state"] != NOT_CHOSEN]


def _spread(rows: list[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    """`num` rows evenly spread, the first and the last among them."""
    return [rows[int(place)] for place in np.linspace(0, len(rows) - 1, min(num, len(rows)))]


def _row(
    catalog: Catalog, row: Mapping[str, Any], motion: tuple[float, float] | None
) -> dict[str, Any]:
    known: Mapping[str, Any] = {}
    with contextlib.suppress(AvomniError):
        known = catalog.attributes(row["clip_id"])
    speed, turn = motion or (np.nan, np.nan)
    values = {**row, **known, "speed_mps": speed, "turn_deg": turn}
    return {name: values.get(name) for name in COLUMNS}


def _clip(p: Params, catalog: Catalog, clip_id: str, feature: str) -> Clip | None:
    """A clip where the feature's file lies: on the disk, or in the world that is the source."""
    path = catalog.path(feature, catalog.chunk_of(clip_id))
    there = next((folder for folder in runs.raw_folders(p) if (folder / path).exists()), None)
    return None if there is None else Clip(there, catalog, clip_id)


class _Motions:
    """Reads how clips drive, from where their ego motion can be read."""

    def __init__(self, p: Params, catalog: Catalog):
        self._p, self._catalog = p, catalog
        self._cache: Cache | None = None
        with contextlib.suppress(AvomniError):
            self._cache = Cache.open(p.cache_dir)
        self._cached = {clip.clip_id: clip for clip in self._cache.clips} if self._cache else {}

    def of(self, clip_id: str) -> tuple[float, float] | None:
        """(mean speed m/s, turn in degrees); None where nothing can be read."""
        clip = _clip(self._p, self._catalog, clip_id, "egomotion")
        with contextlib.suppress(AvomniError):
            if clip is not None:
                return _speed_and_turn(self._during(clip))
            if clip_id in self._cached:
                cached = self._cached[clip_id]
                rows = self._cache.shards[cached.shard].egomotion[cached.start : cached.stop]
                return _speed_and_turn(dict(zip(EGOMOTION_COLUMNS, rows.T, strict=True)))
        return None

    def _during(self, clip: Clip) -> dict[str, np.ndarray]:
        """Ego motion of the video: it starts before it and runs far past it."""
        ego, last_us = clip.egomotion(), 1e6 * forecast.clip_seconds(self._p, clip)
        during = (ego["timestamp"] >= 0) & (ego["timestamp"] <= last_us)
        return {name: values[during] for name, values in ego.items()}


def _speed_and_turn(ego: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    if len(ego["vx"]) < 2:
        return None
    speed = np.linalg.norm([ego[name] for name in ("vx", "vy", "vz")], axis=0)
    x, y, z, w = (ego[name] for name in ("qx", "qy", "qz", "qw"))
    yaw = np.unwrap(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
    return float(speed.mean()), float(np.degrees(yaw[-1] - yaw[0]))
