"""The upstream repository's layout: which feature is in which file, and all files of a data set."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from avomni_lib.dataset import calibration, cameras
from avomni_lib.dataset.own import layout as packed
from avomni_lib.params.sections import WorldParams
from avomni_world.publish import tables
from avomni_world.publish.circumstances import circumstances

CALIBRATION, EVENTS = "calibration.json", "events.json"  # names of a part's members
INTRINSICS = (*calibration.SIZE, *calibration.BW, *calibration.FW)
TEXT, WHOLE, FLOAT, TRUTH = pa.string(), pa.int64(), pa.float64(), pa.bool_()


@dataclass(frozen=True)
class PublishedFeature:
    """One feature of the data set.

    Attributes:
        directory: labels, calibration or camera.
        members: Kind -> suffix of a member's name after the feature's; empty for tables.
        index: Of a calibration table.
        columns: Of a calibration table.
    """

    name: str
    directory: str
    members: dict[str, str]
    index: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def chunk_path(self) -> str:
        """Path template of one chunk, with `{chunk_id:04d}`."""
        ending = "zip" if self.members else "parquet"
        return f"{self.directory}/{self.name}/{self.name}.chunk_{{chunk_id:04d}}.{ending}"

    def member(self, clip_id: str, kind: str) -> str:
        return f"{clip_id}.{self.name}{self.members[kind]}"


CAMERA = {"video": ".mp4", "frame_timestamps": ".timestamps.parquet"}
CAMERA["blurred_boxes"] = ".blurred_boxes.parquet"
FEATURES = (
    PublishedFeature("egomotion", "labels", {"egomotion": ".parquet"}),
    PublishedFeature("obstacle.offline", "labels", {"obstacle.offline": ".parquet"}),
    PublishedFeature(
        "camera_intrinsics", "calibration", {}, ("clip_id", "camera_name"), INTRINSICS
    ),
    PublishedFeature(
        "sensor_extrinsics", "calibration", {}, ("clip_id", "sensor_name"), calibration.POSE
    ),
    PublishedFeature("vehicle_dimensions", "calibration", {}, ("clip_id",), calibration.VEHICLE),
    *(PublishedFeature(camera, "camera", CAMERA) for camera in sorted(cameras.BY_NAME)),
)


@dataclass(frozen=True)
class WorldClip:
    """One clip of a world: its number gives its seed, its seed its scene and its clip_id."""

    number: int
    clip_id: str
    seed: int
    chunk: int
    split: str


def published(world: WorldParams) -> list[PublishedFeature]:
    """The features of the world's clips; the tables list the other cameras as absent."""
    absent = set(cameras.BY_NAME).difference(world.camera_names)
    return [feature for feature in FEATURES if feature.name not in absent]


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
            path = folder / feature.chunk_path.format(chunk_id=chunk)
            if feature.members:
                names = (
                    (part, feature.member(clip_id, kind))
                    for clip_id, part in mine
                    for kind in feature.members
                )
                packed.write_zip(path, ((name, part.read(name)) for part, name in names))
            else:
                packed.write(path, _calibration_table(feature, rows_of))
        for _, part in mine:
            part.close()
    for name, data in _metadata(clips, world, events):
        packed.write(folder / name, data)


def _calibration_table(feature: PublishedFeature, rows_of: dict[str, dict]) -> bytes:
    rows = [
        (clip_id, sensor, *values)
        for clip_id, features in rows_of.items()
        for sensor, values in features[feature.name].items()
    ]
    keys = feature.index if len(feature.index) == 2 else (*feature.index, None)
    columns = dict(zip((*keys, *feature.columns), zip(*rows, strict=True), strict=True))
    types = dict.fromkeys(feature.columns, FLOAT) | dict.fromkeys(feature.index, TEXT)
    if feature.name == "camera_intrinsics":
        types |= {"width": WHOLE, "height": WHOLE}
    return tables.parquet(columns, types, feature.index)


def _metadata(
    clips: Sequence[WorldClip], world: WorldParams, events: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    def table(rows: Sequence[WorldClip], columns: dict[str, tuple[pa.DataType, list]]) -> bytes:
        columns["clip_id"] = TEXT, [clip.clip_id for clip in rows]
        values = {name: held for name, (_, held) in columns.items()}
        types = {name: kind for name, (kind, _) in columns.items()}
        return tables.parquet(values, types, ["clip_id"])

    members = {f.name: {kind: f.member("{clip_id}", kind) for kind in f.members} for f in FEATURES}
    features = [(f.name, f.chunk_path, members[f.name]) for f in FEATURES]
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
    presence = {each.name: (TRUTH, [each in there] * len(clips)) for each in FEATURES}
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
