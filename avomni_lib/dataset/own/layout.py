"""The files of a packed data set: zips and calibration of each chunk, and the catalog's tables.

They contain only what the catalog and the stages need; docs/own_clips.md lists it.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avomni_lib import files
from avomni_lib.dataset import calibration, cameras
from avomni_lib.dataset.catalog import FEATURES_FILE, PRESENCE_FILE
from avomni_lib.dataset.clip_index import COLLECTION_FILE, INDEX_FILE

EGOMOTION = "egomotion"
CAMERA_MEMBERS = {"video": "mp4", "frame_timestamps": "timestamps.parquet"}
MEMBERS = {EGOMOTION: {EGOMOTION: "parquet"}} | {c.name: CAMERA_MEMBERS for c in cameras.CAMERAS}
# Dimensions of an average car in the order of calibration.VEHICLE, m.
CAR = (4.9, 1.9, 1.5, 1.4, 2.9, 1.6)
NO_TURN = (0.0, 0.0, 0.0, 1.0)


def chunk_path(feature: str) -> str:
    """Template of a feature's file, with `{chunk_id:04d}`."""
    directory = "camera" if feature in cameras.BY_NAME else "labels"
    directory = "calibration" if feature in calibration.TABLES else directory
    ending = "parquet" if directory == "calibration" else "zip"
    return f"{directory}/{feature}/{feature}.chunk_{{chunk_id:04d}}.{ending}"


def write_zip(path: Path, members: Iterable[tuple[str, Path | bytes]]) -> None:
    """Write a reproducible zip of stored (not deflated) members, which are byte ranges of it."""
    with files.write_whole(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            if isinstance(content, bytes):
                archive.writestr(info, content)
                continue
            with open(content, "rb") as source, archive.open(info, "w", force_zip64=True) as member:
                shutil.copyfileobj(source, member, files.BLOCK_BYTES)


def member(feature: str, clip_id: str, kind: str) -> str:
    return f"{clip_id}.{feature}.{MEMBERS[feature][kind]}"


def parquet(columns: Mapping[str, Any]) -> bytes:
    """A table as the bytes of a parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), file)
    return file.getvalue()


def stand_in(feature: str, sizes: Mapping[str, Mapping[str, tuple[int, int]]]) -> bytes:
    """A placeholder for a chunk's calibration table, for a rig that was not calibrated.

    Lenses are equidistant (r = f·θ, with the nominal field of view over the picture's width), all
    mounted at the middle of the rear axle and looking forward. `sizes` is clip_id -> camera ->
    (width, height) px.
    """
    key, names = calibration.TABLES[feature]
    rows = []
    for clip_id, size_of in sizes.items():
        if key is None:
            rows.append((clip_id, *CAR))
        for name, (width, height) in size_of.items() if key else ():
            focal = width / np.radians(cameras.BY_NAME[name].fov_deg)
            fw, bw = (0.0, focal, 0.0, 0.0, 0.0), (0.0, 1 / focal, 0.0, 0.0, 0.0)
            lens = (float(width), float(height), width / 2, height / 2, *fw, *bw)
            mount = (*NO_TURN, 0.0, 0.0, 0.0)
            rows.append((clip_id, name, *(lens if feature == "camera_intrinsics" else mount)))
    keys = ("clip_id",) if key is None else ("clip_id", key)
    return parquet(dict(zip((*keys, *names), map(list, zip(*rows, strict=True)), strict=True)))


def write_metadata(folder: Path, clips: Sequence[Any], clips_per_chunk: int) -> None:
    """Write features.csv and the tables of clips (`OwnClip`), in the order of the chunks."""
    names = [*MEMBERS, *calibration.TABLES]
    members = {
        name: {kind: member(name, "{clip_id}", kind) for kind in MEMBERS.get(name, ())}
        for name in names
    }

    def column(attribute: str, kind: type = str) -> pa.Array:
        """A column of built-in types, converted from NumPy's."""
        values = [getattr(clip, attribute) for clip in clips]
        plain = [None if value is None else kind(value) for value in values]
        return pa.array(plain, pa.int64() if kind is int else pa.string())

    clip_ids = [clip.clip_id for clip in clips]
    index = {"chunk": [place // clips_per_chunk for place in range(len(clips))]}
    index |= {"split": column("split"), "clip_id": clip_ids}
    features = [{*clip.videos, EGOMOTION, *calibration.TABLES} for clip in clips]
    presence = {name: [name in clip_features for clip_features in features] for name in names}
    collection = {
        "country": column("country"),
        "month": column("month", int),
        "hour_of_day": column("hour", int),
        "platform_class": column("platform"),
        "clip_id": clip_ids,
    }
    features_file = features_csv((name, chunk_path(name), members[name]) for name in names)
    files.write_bytes(folder / FEATURES_FILE, features_file)
    files.write_bytes(folder / INDEX_FILE, parquet(index))
    files.write_bytes(folder / PRESENCE_FILE, parquet(presence | {"clip_id": clip_ids}))
    files.write_bytes(folder / COLLECTION_FILE, parquet(collection))


def features_csv(features: Iterable[tuple[str, str, Mapping[str, str]]]) -> bytes:
    """Content of features.csv for (name, template of a chunk's file, kind -> member template)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("feature", "directory", "chunk_path", "clip_files_in_zip"))
    for name, path, members in features:
        writer.writerow((name, path.split("/")[0], path, json.dumps(members) if members else ""))
    return text.getvalue().encode()
