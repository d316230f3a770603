"""Which file holds what: features.csv, the clip index and the presence of features."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avomni_lib.dataset import rig
from avomni_lib.dataset.tables import key_column, number_column, read_table
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

FEATURES_FILE = "features.csv"
INDEX_FILE = "clip_index.parquet"
PRESENCE_FILE = "metadata/feature_presence.parquet"
# Before revision 26.03; it knows cameras, lidar and radars only.
OLD_PRESENCE_FILE = "metadata/sensor_presence.parquet"
METADATA_FILES = (FEATURES_FILE, INDEX_FILE, PRESENCE_FILE, OLD_PRESENCE_FILE)
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Feature:
    """One sensor or label stream, and the names of its files.

    Attributes:
        name: As `camera_front_wide_120fov`.
        directory: Its group: labels, calibration, camera, lidar, radar.
        chunk_path: Template of a chunk's file, with `{chunk_id:04d}`.
        members: Kind -> template of a clip's member in the chunk's zip, with `{clip_id}`; empty
            where a chunk's file is one parquet table.
    """

    name: str
    directory: str
    chunk_path: str
    members: Mapping[str, str]


class Catalog:
    """What a revision of the data set holds; made by `Catalog.open`.

    Attributes:
        folder: Where it was read.
        features: Every feature by its name, in the order of features.csv.
        chunks: The chunks' numbers, rising.
    """

    def __init__(
        self,
        folder: Path,
        features: dict[str, Feature],
        clip_ids: list[str],
        chunk: np.ndarray,
        split: list[str],
        is_valid: np.ndarray,
        presence: dict[str, np.ndarray],
    ):
        self.folder, self.features = folder, features
        self._clip_ids, self._chunk, self._split = clip_ids, chunk, split
        self._is_valid, self._presence = is_valid, presence
        self._row = {clip_id: row for row, clip_id in enumerate(clip_ids)}
        order = np.argsort(chunk, kind="stable")
        numbers, starts = np.unique(chunk[order], return_index=True)
        rows = np.split(order, starts[1:])
        self._rows = {int(n): part for n, part in zip(numbers, rows, strict=True)}
        self.chunks = tuple(self._rows)

    @classmethod
    def open(cls, folder: Path) -> Catalog:
        """Read `METADATA_FILES` in `folder` (one presence table is enough).

        Raises:
            AvomniError: one is missing, damaged or contradicts itself.
        """
        folder = Path(folder)
        features = _read_features(folder / FEATURES_FILE)
        where = str(folder / INDEX_FILE)
        index = read_table(folder / INDEX_FILE, where)
        clip_ids = key_column(index, "clip_id", where)
        if not clip_ids:
            raise AvomniError("the clip index lists no clip", where=where)
        ((most, count),) = Counter(clip_ids).most_common(1)
        if count > 1:
            raise AvomniError(f"clip {most} is listed {count} times", where=where)
        is_valid = np.ones(len(clip_ids), bool)
        if "clip_is_valid" in index.column_names:
            is_valid = index["clip_is_valid"].fill_null(False).to_numpy().astype(bool)
        stored = [None] * len(clip_ids)
        if "split" in index.column_names:
            stored = index["split"].to_pylist()
        split = [name or split_by_hash(c) for name, c in zip(stored, clip_ids, strict=True)]
        unknown = sorted(set(split) - set(SPLITS))
        if unknown:
            raise AvomniError(f"unknown split {unknown[0]!r}", where=where)
        chunk = number_column(index, "chunk", where)
        presence = _read_presence(folder, features, clip_ids)
        return cls(folder, features, clip_ids, chunk, split, is_valid, presence)

    def clip_ids(self, chunk: int | None = None, split: str | None = None) -> tuple[str, ...]:
        """The valid clips (of a chunk, of a split), in the order of the clip index."""
        rows = range(len(self._clip_ids)) if chunk is None else self._rows_of(chunk)
        return tuple(
            self._clip_ids[row]
            for row in rows
            if self._is_valid[row] and split in (None, self._split[row])
        )

    def chunk_of(self, clip_id: str) -> int:
        return int(self._chunk[self._row_of(clip_id)])

    def split_of(self, clip_id: str) -> str:
        """train, val or test: the data set's own column, else by the clip's id."""
        return self._split[self._row_of(clip_id)]

    def present(self, clip_id: str, feature: str) -> bool:
        """Whether the source says that the clip has the feature."""
        return bool(self._presence[self._feature(feature).name][self._row_of(clip_id)])

    def path(self, feature: str, chunk: int) -> str:
        """The file of one feature of one chunk, relative to the folder."""
        return self._feature(feature).chunk_path.format(chunk_id=chunk)

    def member(self, feature: str, clip_id: str, kind: str) -> str:
        """The name of a clip's member in its chunk's zip, as kind `video` of a camera."""
        members = self._feature(feature).members
        if kind not in members:
            raise AvomniError(f"{feature} has no {kind!r}; it has {', '.join(members) or 'none'}")
        return members[kind].format(clip_id=clip_id)

    def files(self, chunks: Iterable[int], features: Iterable[str]) -> list[str]:
        """The files of these chunks and features; without those that no clip of the chunk has."""
        features = list(features)
        return [
            self.path(feature, chunk)
            for chunk in chunks
            for feature in features
            if self._presence[self._feature(feature).name][self._rows_of(chunk)].any()
        ]

    def usable(self, chunk: int, features: Iterable[str]) -> tuple[str, ...]:
        """The valid clips of a chunk that have every one of these features."""
        rows = self._rows_of(chunk)
        is_usable = self._is_valid[rows]
        for feature in features:
            is_usable &= self._presence[self._feature(feature).name][rows]
        return tuple(self._clip_ids[row] for row in rows[is_usable])

    def _rows_of(self, chunk: int) -> np.ndarray:
        if chunk not in self._rows:
            raise AvomniError(
                f"unknown chunk {chunk}; there are {ranges(self.chunks)}",
                where="download.chunks",
                fix="name chunks that exist, or leave it out to take the first",
            )
        return self._rows[chunk]

    def _row_of(self, clip_id: str) -> int:
        if clip_id not in self._row:
            raise AvomniError(f"unknown clip {clip_id}", where=str(self.folder / INDEX_FILE))
        return self._row[clip_id]

    def _feature(self, name: str) -> Feature:
        if name not in self.features:
            raise AvomniError(
                f"unknown feature {name!r}; there are {', '.join(self.features)}",
                where=str(self.folder / FEATURES_FILE),
            )
        return self.features[name]


def required_features(p: Params) -> tuple[str, ...]:
    """What a clip must have to be used: the setup's cameras, ego motion and calibration."""
    cameras = tuple(camera.name for camera in rig.grid(p.vision.camera_setup).cameras)
    return (*cameras, "egomotion", "camera_intrinsics", "sensor_extrinsics", "vehicle_dimensions")


def split_by_hash(clip_id: str) -> str:
    """For clips without a split at the source: 80 % train, 10 % val, 10 % test, by id alone."""
    share = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def _read_features(path: Path) -> dict[str, Feature]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {
            row["feature"]: Feature(
                row["feature"],
                row["directory"],
                row["chunk_path"],
                json.loads(row["clip_files_in_zip"] or "{}"),
            )
            for row in rows
        }
    except FileNotFoundError:
        raise AvomniError(
            "this folder is not in the data set's layout: no features.csv",
            where=str(path.parent),
            fix="run 02_download, or check dataset.local_dir",
        ) from None
    except (KeyError, ValueError, TypeError) as error:
        raise AvomniError(f"not the data set's features.csv: {error!r}", where=str(path)) from None


def _read_presence(
    folder: Path, features: Mapping[str, Feature], clip_ids: list[str]
) -> dict[str, np.ndarray]:
    path = folder / PRESENCE_FILE
    if not path.exists():
        path = folder / OLD_PRESENCE_FILE
    table = read_table(path, str(path))
    row_of = {clip_id: n for n, clip_id in enumerate(key_column(table, "clip_id", str(path)))}
    rows = np.array([row_of.get(clip_id, -1) for clip_id in clip_ids], int)
    presence = {}
    for name in features:
        if name in table.column_names:
            column = table[name].fill_null(False).to_numpy().astype(bool)
            presence[name] = np.append(column, False)[rows]
        else:
            # The old table names sensors only: as NVIDIA's kit, take the rest for present.
            presence[name] = np.ones(len(clip_ids), bool)
    return presence


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 as `0-2, 5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
