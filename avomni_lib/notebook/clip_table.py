"""Attributes of the chosen clips before the cache is built: speed, turn, hour, country.

Hour and country come from the catalog. Speed and turn come from the egomotion if it can be read:
from raw files on disk, the rendered world, or the cache of a run whose raw files are evicted.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit.audit import NOT_CHOSEN, Audit
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip, open_clip
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS, Cache
from avomni_lib.etl.run import forecast
from avomni_lib.etl.video import reader
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params

if TYPE_CHECKING:
    import pandas as pd

MOST_READ = 300  # number of clips whose egomotion is read, at a few ms each
WIDTH_PX = 460  # width at which a first frame is read; it is shown smaller
COLUMNS = (
    *("clip_id", "split", "state", "chunk", "country", "hour", "platform"),
    *("speed_mps", "turn_deg"),
)
NOTHING_THERE = "no raw file is on the disk yet: run this notebook again after 02_download"


@dataclass(frozen=True)
class FirstFrame:
    """The first frame of a clip, (H, W, 3) uint8 RGB, or None with the reason."""

    clip_id: str
    split: str
    image: np.ndarray | None = field(repr=False)
    reason: str = ""


class Motions:
    """Egomotion of clips, from wherever it can be read.

    Attributes:
        cache: The run's cache; None if it is missing or unfinished.
    """

    def __init__(self, p: Params):
        self.p, self.cache = p, None
        with contextlib.suppress(AvomniError):
            self.cache = Cache.open(p.cache_dir)
        self.cached = {clip.clip_id: clip for clip in self.cache.clips} if self.cache else {}

    @functools.cached_property
    def catalog(self) -> Catalog:
        return Catalog.of(self.p)

    def raw(self, clip_id: str) -> dict[str, np.ndarray] | None:
        """Egomotion during the video, by column; None if its file cannot be read."""
        with contextlib.suppress(AvomniError):
            clip = open_there(self.p, self.catalog, clip_id, "egomotion")
            if clip is not None:  # it starts before the video and runs far past it
                ego, last_us = clip.egomotion(), 1e6 * forecast.clip_seconds(self.p, clip)
                rows = (ego["timestamp"] >= 0) & (ego["timestamp"] <= last_us)
                return {name: values[rows] for name, values in ego.items()}
        return None

    def sampled(self, clip_id: str) -> dict[str, np.ndarray] | None:
        """Egomotion at the frames of the cache, by column; None if the clip is not in it."""
        if clip_id not in self.cached:
            return None
        clip = self.cached[clip_id]
        rows = self.cache.shards[clip.shard].egomotion[clip.start : clip.stop]
        return dict(zip(EGOMOTION_COLUMNS, rows.T, strict=True))


def clips(p: Params, found: Audit) -> pd.DataFrame:
    """Attributes of an audit's chosen clips: one row per clip, indexed by clip_id, with `COLUMNS`.

    `speed_mps` is the mean speed and `turn_deg` the change of heading, positive to the left. They
    are NaN if unknown, the other columns None.
    """
    import pandas as pd

    chosen, motions = _chosen(found), Motions(p)
    read = {chosen[place]["clip_id"] for place in canvas.evenly(len(chosen), MOST_READ)}
    rows = []
    for row in chosen:
        clip_id, values = row["clip_id"], {**row, "speed_mps": np.nan, "turn_deg": np.nan}
        with contextlib.suppress(AvomniError):
            values |= motions.catalog.attributes(clip_id)
        ego = (motions.raw(clip_id) or motions.sampled(clip_id)) if clip_id in read else None
        if ego is not None and len(ego["vx"]) > 1:
            heading = yaw(ego)
            values["speed_mps"] = speed(ego).mean()
            values["turn_deg"] = np.degrees(heading[-1] - heading[0])
        rows.append({name: values.get(name) for name in COLUMNS})
    table = pd.DataFrame(rows, columns=COLUMNS).set_index("clip_id")
    return table.astype({"speed_mps": float, "turn_deg": float})


def yaw(ego: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) heading in rad, positive to the left, without jumps at ±π."""
    x, y, z, w = (ego[name] for name in ("qx", "qy", "qz", "qw"))
    return np.unwrap(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def speed(ego: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) speed in m/s."""
    return np.linalg.norm([ego[name] for name in ("vx", "vy", "vz")], axis=0)


def first_frames(p: Params, found: Audit, num: int = 10) -> list[FirstFrame]:
    """First frames of the front camera of some clips, spread evenly over the chosen ones.

    Returns:
        One per clip whose file is on disk.
    """

    def shrunk(width: int, height: int) -> tuple[int, int]:
        return WIDTH_PX, round(WIDTH_PX * height / width)

    catalog = Catalog.of(p)
    camera = cameras.grid(p.vision.cameras).front.name
    there = [
        row for row in _chosen(found) if open_there(p, catalog, row["clip_id"], camera) is not None
    ]
    frames = []
    for row in (there[place] for place in canvas.evenly(len(there), num)):
        image, reason = None, ""
        try:
            source = open_there(p, catalog, row["clip_id"], camera).video(camera)
            image = reader.read_frames(source, np.zeros(1), size=shrunk).images[0]
        except AvomniError as error:
            reason = error.what
        frames.append(FirstFrame(row["clip_id"], row["split"], image, reason))
    return frames


def _chosen(found: Audit) -> list[dict[str, Any]]:
    return [row for row in found.clips if row["state"] != NOT_CHOSEN]


def open_there(p: Params, catalog: Catalog, clip_id: str, feature: str) -> Clip | None:
    """A clip opened in the folder that holds the feature's file; None if there is none."""
    path = catalog.path(feature, catalog.chunk_of(clip_id))
    there = next((folder for folder in runs.raw_folders(p) if (folder / path).exists()), None)
    return None if there is None else open_clip(there, catalog, clip_id)
