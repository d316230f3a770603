"""What the chosen clips are like before anything is built of them: speed, turn, hour, country.

Hours and countries come from the catalog. Speed and turn come from the ego motion where it can be
read: raw files on the disk, the rendered world, or the cache of a run whose raw files are evicted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
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
class Circumstances:
    """What is known of the chosen clips.

    Attributes:
        num_clips: Chosen.
        hours: Hour of the day, 0 to 23 -> clips.
        countries: Name -> clips, the most first.
        speed_mps, turn_deg: (n,) of the clips whose ego motion was read: mean speed, and heading at
            the end less that at the start, left positive.
        why_not: Why no ego motion could be read; empty where some was.
        rows: One a clip, with the keys `COLUMNS`; what is not known of a clip is None or NaN.
    """

    num_clips: int
    hours: Mapping[int, int]
    countries: Mapping[str, int]
    speed_mps: np.ndarray
    turn_deg: np.ndarray
    why_not: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def clips(self) -> pd.DataFrame:
        """A data frame, a row a clip, by clip_id."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=COLUMNS).set_index("clip_id")


@dataclass(frozen=True)
class FirstFrame:
    """How a clip begins: (H, W, 3) uint8 RGB, or None and why there is none."""

    clip_id: str
    split: str
    image: np.ndarray | None = field(repr=False)
    reason: str = ""


def circumstances(p: Params, found: Audit) -> Circumstances:
    """What the clips that an audit has found to be chosen are like.

    A clip whose ego motion is missing or damaged is left out of speed and turn.
    """
    catalog, chosen = Catalog.of(p), _chosen(found)
    motions, looked_at = _Motions(p, catalog), _spread(chosen, MOST_READ)
    motion_of = {row["clip_id"]: motions.of(row["clip_id"]) for row in looked_at}
    read = [motion for motion in motion_of.values() if motion is not None]
    why_not = "" if read else NOTHING_THERE if chosen else "no clip is chosen"
    speeds, turns = np.array(read, dtype=float).reshape(-1, 2).T
    hours, countries = (_counted(catalog, name, chosen) for name in ("hour", "country"))
    return Circumstances(
        len(chosen),
        dict(sorted(hours.items())),
        countries,
        speeds,
        turns,
        why_not,
        [_row(catalog, row, motion_of.get(row["clip_id"])) for row in chosen],
    )


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


def _counted(catalog: Catalog, name: str, rows: Iterable[Mapping[str, Any]]) -> dict[Any, int]:
    """Value -> clips, the most first; a damaged table tells nothing, which the audit has said."""
    with contextlib.suppress(AvomniError):
        places = [catalog.clips.row_of(row["clip_id"]) for row in rows]
        return catalog.values(name).counts(np.array(places, dtype=int))
    return {}


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
