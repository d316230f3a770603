"""The upstream repository's layout: which feature lies in which file, and all files of a set."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_world.publish import tables
from avomni_world.publish.circumstances import circumstances

CALIBRATION, EVENTS = "calibration.json", "events.json"  # members of a part
TEXT, WHOLE, FLOAT, TRUTH = pa.string(), pa.int64(), pa.float64(), pa.bool_()


@dataclass(frozen=True)
class Feature:
    """One feature of the data set.

    Attributes:
        directory: labels, calibration or camera.
        members: Kind -> what follows the feature's name in a member's name; empty for tables.
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
        """Of one chunk, with `{chunk_id:04d}` to be filled in."""
        ending = "zip" if self.members else "parquet"
        return f"{self.directory}/{self.name}/{self.name}.chunk_{{chunk_id:04d}}.{ending}"

    def member(self, clip_id: str, kind: str) -> str:
        return f"{clip_id}.{self.name}{self.members[kind]}"


def _calibration(name: str, sensor: str | None, columns: tuple[str, ...]) -> Feature:
    return Feature(
        name, "calibration", {}, ("clip_id", sensor) if sensor else ("clip_id",), columns
    )


FEATURES = (
    Feature("egomotion", "labels", {"egomotion": ".parquet"}),
    Feature("obstacle.offline", "labels", {"obstacle.offline": ".parquet"}),
    _calibration("camera_intrinsics", "camera_name", tables.INTRINSICS),
    _calibration("sensor_extrinsics", "sensor_name", tables.EXTRINSICS),
    _calibration("vehicle_dimensions", None, tables.DIMENSIONS),
    *(
        Feature(
            camera,
            "camera",
            {
                "video": ".mp4",
                "frame_timestamps": ".timestamps.parquet",
                "blurred_boxes": ".blurred_boxes.parquet",
            },
        )
        for camera in sorted(cameras.BY_NAME)
    ),
)


@dataclass(frozen=True)
class WorldClip:
    """One clip of a world: its number gives its seed, its seed its scene and its clip_id."""

    number: int
    clip_id: str
    seed: int
    chunk: int
    split: str


def stored_zip(file: IO[bytes], members: Iterator[tuple[str, bytes]]) -> None:
    """A zip without compression whose dates and rights are always the same."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)


def assemble(clips: Sequence[WorldClip], town: str, parts: Sequence[Path], folder: Path) -> None:
    """Write all files of the set: chunks in the order of the clips, then the index and metadata.

    Args:
        parts: Each clip's own zip: its members, `CALIBRATION`, and `EVENTS` where it has some.
    """
    events: dict[str, str] = {}
    for chunk in sorted({clip.chunk for clip in clips}):
        mine = [
            (clip.clip_id, zipfile.ZipFile(part))
            for clip, part in zip(clips, parts, strict=True)
            if clip.chunk == chunk
        ]
        calibration = {clip_id: json.loads(part.read(CALIBRATION)) for clip_id, part in mine}
        events |= {
            clip_id: part.read(EVENTS).decode()
            for clip_id, part in mine
            if EVENTS in part.namelist()
        }
        for feature in FEATURES:
            path = folder / feature.chunk_path.format(chunk_id=chunk)
            with files.write_whole(path) as file:
                if feature.members:
                    names = (
                        (part, feature.member(clip_id, kind))
                        for clip_id, part in mine
                        for kind in feature.members
                    )
                    stored_zip(file, ((name, part.read(name)) for part, name in names))
                else:
                    file.write(_calibration_table(feature, calibration))
        for _, part in mine:
            part.close()
    for name, data in _metadata(clips, town, events):
        with files.write_whole(folder / name) as file:
            file.write(data)


def _calibration_table(feature: Feature, calibration: dict[str, dict]) -> bytes:
    rows = [
        (clip_id, sensor, *values)
        for clip_id, features in calibration.items()
        for sensor, values in features[feature.name].items()
    ]
    keys = feature.index if len(feature.index) == 2 else (*feature.index, None)
    columns = dict(zip((*keys, *feature.columns), zip(*rows, strict=True), strict=True))
    types = dict.fromkeys(feature.columns, FLOAT) | dict.fromkeys(feature.index, TEXT)
    if feature.name == "camera_intrinsics":
        types |= {"width": WHOLE, "height": WHOLE}
    return tables.parquet(columns, types, feature.index)


def _metadata(
    clips: Sequence[WorldClip], town: str, events: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    count = len(clips)
    ids = {"clip_id": [clip.clip_id for clip in clips]}

    def table(columns: dict[str, list], types: dict[str, pa.DataType]) -> bytes:
        return tables.parquet(columns | ids, types | {"clip_id": TEXT}, ["clip_id"])

    yield "features.csv", _features_csv()
    index = {
        "clip_is_valid": [True] * count,
        "chunk": [clip.chunk for clip in clips],
        "split": [clip.split for clip in clips],
    }
    yield "clip_index.parquet", table(index, dict(zip(index, (TRUTH, WHOLE, TEXT), strict=True)))
    of = [circumstances(c.clip_id, c.number, c.chunk, town) for c in clips]
    collected = {
        "country": [each.country for each in of],
        "month": [each.month for each in of],
        "hour_of_day": [each.hour for each in of],
        "platform_class": [each.platform for each in of],
        "radar_config": [None] * count,
    }
    types = dict(zip(collected, (TEXT, WHOLE, WHOLE, TEXT, TEXT), strict=True))
    yield "metadata/data_collection.parquet", table(collected, types)
    presence = {feature.name: [True] * count for feature in FEATURES}
    yield "metadata/feature_presence.parquet", table(presence, dict.fromkeys(presence, TRUTH))
    special = [pair for pair in zip(clips, of, strict=True) if pair[1].event_cluster]
    reasoning = {
        "feature": [cameras.FRONT_WIDE.name] * len(special),
        "event_cluster": [each.event_cluster for _, each in special],
        "events": [events.get(clip.clip_id) for clip, _ in special],
        # The source's own table knows no test clips.
        "split": ["train" if clip.split == "train" else "val" for clip, _ in special],
        "clip_id": [clip.clip_id for clip, _ in special],
    }
    types = dict.fromkeys(reasoning, TEXT)
    yield "reasoning/ood_reasoning.parquet", tables.parquet(reasoning, types, ["clip_id"])


def _features_csv() -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("feature", "directory", "chunk_path", "clip_files_in_zip"))
    for feature in FEATURES:
        members = {kind: feature.member("{clip_id}", kind) for kind in feature.members}
        row = feature.name, feature.directory, feature.chunk_path
        writer.writerow((*row, json.dumps(members) if members else ""))
    return text.getvalue().encode()
