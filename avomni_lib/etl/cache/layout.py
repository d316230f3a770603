"""How a shard is laid out: arrays, their columns and types, and what the header says of a clip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.errors import AvomniError

FORMAT_VERSION = 1
HEADER_FILE = "header.json"
CLIPS_FILE = "clips.json"  # of the whole cache
# Explicit byte order: a cache can be carried to another machine.
_ROWS = {"timestamps": "<i8", "times": "<i8", "egomotion": "<f8", "track": "<f8"}
STORAGES = {
    "raw": {"frames": "|u1", **_ROWS},
    "jpeg": {"jpeg": "|u1", "offsets": "<i8", "crc32": "<u4", **_ROWS},
}
OBSTACLES = {"obstacles": "<f8"}
EGOMOTION_COLUMNS = ("x", "y", "z", "qx", "qy", "qz", "qw", "vx", "vy", "vz", "distance_m")
TRACK_COLUMNS = ("time_us", "x", "y", "z", "qx", "qy", "qz", "qw", "distance_m")


@dataclass(frozen=True)
class CachedClip:
    """Where a clip lies in the cache.

    Attributes:
        shard: Index into `Cache.shards`.
        start, stop: Its rows of frames, timestamps, times and egomotion.
        track_start, track_stop: Its rows of track.
        note: Which part of a damaged clip it is, and why; empty for a whole one.
        obstacles: Its rows (start, stop) of obstacles, in a cache that has them.
        unlabelled: Why nothing is known of other road users; empty where they are labelled.
        events: (start_us, text) of what people wrote about it.
    """

    clip_id: str
    split: str
    chunk: int
    shard: int
    start: int
    stop: int
    track_start: int
    track_stop: int
    note: str = ""
    obstacles: tuple[int, int] = (0, 0)
    unlabelled: str = ""
    events: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start


def arrays_in(header: Mapping[str, Any]) -> Mapping[str, str]:
    """Array -> dtype of a shard that has this header."""
    found = STORAGES[header.get("storage", "raw")]
    return found | OBSTACLES if "obstacle_columns" in header else found


def beside(told: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a clip's row of the header tells of others and events, as one of its arrays."""
    told = {name: told[name] for name in ("events", "unlabelled") if told.get(name)}
    return {"told": np.array(json.dumps(told))} if told else {}


def told(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What `beside` and a `note` among a clip's arrays say, as fields of its row of the header."""
    note = {"note": str(arrays["note"])} if "note" in arrays else {}
    return note | (json.loads(str(arrays["told"])) if "told" in arrays else {})


def check_version(header: Mapping[str, Any], path: Path) -> None:
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise AvomniError(
            f"the cache has format version {version}, this program reads {FORMAT_VERSION}",
            where=str(path),
            fix="run 03_etl again: it makes the cache anew; or use the program that wrote it "
            f"({header.get('generator', 'unknown')})",
        )
