"""The upstream repository's layout: which feature is in which file, and all files of a data set."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from avomni_lib import files
from avomni_lib.dataset import calibration, cameras
from avomni_lib.dataset.catalog import OBSTACLES
from avomni_lib.dataset.own import layout as packed
from avomni_lib.params.sections import WorldParams
from avomni_world.publish import tables
from avomni_world.publish.attributes import circumstances

CALIBRATION, EVENTS = "calibration.json", "events.json"  # names of a part's members
INTRINSICS = (*calibration.SIZE, *calibration.BW, *calibration.FW)
TEXT, WHOLE, FLOAT, TRUTH = pa.string(), pa.int64(), pa.float64(), pa.bool_()


# Feature -> kind -> ending of a clip's member in its zip; empty for tables.
CAMERA = packed.CAMERA_MEMBERS | {"blurred_boxes": "blurred_boxes.parquet"}
FEATURES: dict[str, dict[str, str]] = {
    **{label: {label: "parquet"} for label in (packed.EGOMOTION, OBSTACLES)},
    **dict.fromkeys(calibration.TABLES, {}),
    **dict.fromkeys(sorted(cameras.BY_NAME), CAMERA),
}


@dataclass(frozen=True)
class WorldClip:
    """One clip of a world: its number gives its seed, its seed its scene and its clip_id."""

    number: int
    clip_id: str
    seed: int
    chunk: int
    split: str


def published(world: WorldParams) -> list[str]:
    """The features of the world's clips; the tables list the other cameras as absent."""
    absent = set(cameras.BY_NAME).difference(world.camera_names)
    return [feature for feature in FEATURES if feature not in absent]


def _members(feature: str, clip_id: str) -> dict[str, str]:
    """Kind -> name of the clip's member."""
    return {kind: f"{clip_id}.{feature}.{ending}" for kind, ending in FEATURES[feature].items()}


def assemble(
    clips: Sequence[WorldClip], world: WorldParams, parts: Sequence[Path], folder: Path
) -> None:
    """Write all files of the set: chunks in the order of the clips, then the index and metadata.

    Args:
        parts: One zip per clip: its members, `CALIBRATION`, and `EVENTS` if it has any.
    """
    events: dict[str, str] = {}
    for chunk in sorted({clip.chunk for clip in clips}):
        mine = [
            (clip.clip_id, zipfile.ZipFile(part))
            for clip, part in zip(clips, parts, strict=True)
            if clip.chunk == chunk
        ]
        rows_of = {clip_id: json.loads(part.read(CALIBRATION)) for clip_id, part in mine}
        events |= {
            clip_id: part.read(EVENTS).decode()
            for clip_id, part in mine
            if EVENTS in part.namelist()
        }
        for feature in published(world):
            path = folder / packed.chunk_path(feature).format(chunk_id=chunk)
            if feature in calibration.TABLES:
                files.write_bytes(path, _calibration_table(feature, rows_of))
                continue
            names = ((p, name) for i, p in mine for name in _members(feature, i).values())
            packed.write_zip(path, ((name, part.read(name)) for part, name in names))
        for _, part in mine:
            part.close()
    for name, data in _metadata(clips, world, events):
        files.write_bytes(folder / name, data)


def _calibration_table(feature: str, rows_of: dict[str, dict]) -> bytes:
    rows = [
        (clip_id, sensor, *values)
        for clip_id, features in rows_of.items()
        for sensor, values in features[feature].items()
    ]
    key, names = calibration.TABLES[feature]
    names = INTRINSICS if feature == "camera_intrinsics" else names
    columns = dict(zip(("clip_id", key, *names), zip(*rows, strict=True), strict=True))
    index = ["clip_id", key] if key else ["clip_id"]
    types = dict.fromkeys(names, FLOAT) | dict.fromkeys(index, TEXT)
    if feature == "camera_intrinsics":
        types |= {"width": WHOLE, "height": WHOLE}
    return tables.parquet(columns, types, index)


def _metadata(
    clips: Sequence[WorldClip], world: WorldParams, events: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    def table(rows: Sequence[WorldClip], columns: dict[str, tuple[pa.DataType, list]]) -> bytes:
        columns["clip_id"] = TEXT, [clip.clip_id for clip in rows]
        values = {name: held for name, (_, held) in columns.items()}
        types = {name: kind for name, (kind, _) in columns.items()}
        return tables.parquet(values, types, ["clip_id"])

    features = ((name, packed.chunk_path(name), _members(name, "{clip_id}")) for name in FEATURES)
    yield "features.csv", packed.features_csv(features)
    everywhere = TRUTH, [True] * len(clips)
    index = {
        "clip_is_valid": everywhere,
        "chunk": (WHOLE, [clip.chunk for clip in clips]),
        "split": (TEXT, [clip.split for clip in clips]),
    }
    yield "clip_index.parquet", table(clips, index)
    of = [circumstances(c.clip_id, c.number, c.chunk, world.town) for c in clips]
    collected = {
        "country": (TEXT, [each.country for each in of]),
        "month": (WHOLE, [each.month for each in of]),
        "hour_of_day": (WHOLE, [each.hour for each in of]),
        "platform_class": (TEXT, [each.platform for each in of]),
        "radar_config": (TEXT, [None] * len(clips)),
    }
    yield "metadata/data_collection.parquet", table(clips, collected)
    there = published(world)
    presence = {name: (TRUTH, [name in there] * len(clips)) for name in FEATURES}
    yield "metadata/feature_presence.parquet", table(clips, presence)
    clusters = {c.clip_id: each.event_cluster for c, each in zip(clips, of, strict=True)}
    special = [clip for clip in clips if clusters[clip.clip_id]]
    reasoning = {
        "feature": (TEXT, [cameras.FRONT_WIDE.name] * len(special)),
        "event_cluster": (TEXT, [clusters[clip.clip_id] for clip in special]),
        "events": (TEXT, [events.get(clip.clip_id) for clip in special]),
        # The source's own table has no test clips.
        "split": (TEXT, ["train" if clip.split == "train" else "val" for clip in special]),
    }
    yield "reasoning/ood_reasoning.parquet", table(special, reasoning)
