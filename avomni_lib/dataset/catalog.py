"""The catalog of a data set: features.csv, the clip index and the presence of features."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.dataset import names
from avomni_lib.dataset.cameras import grid
from avomni_lib.dataset.clip_index import (
    COLLECTION_FILE,
    INDEX_FILE,
    REASONING_FILE,
    SOURCES,
    SPLITS,
    ClipIndex,
    Event,
    Values,
    split_by_hash,
)
from avomni_lib.dataset.findings import Finding
from avomni_lib.dataset.tables import ClipTable
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

__all__ = ["FEATURES_FILE", "INDEX_FILE", "SPLITS", "Catalog", "Feature", "split_by_hash"]

FEATURES_FILE = "features.csv"
PRESENCE_FILE = "metadata/feature_presence.parquet"
OBSTACLES = "obstacle.offline"  # other road users; since 26.03, for 97 % of the clips
# Before revision 26.03; covers cameras, lidar and radars only.
OLD_PRESENCE_FILE = "metadata/sensor_presence.parquet"
# What to do about a missing or damaged file, depending on the source.
FETCH_AGAIN = "run 02_download: it fetches what is missing or damaged"
COPY_AGAIN = "put a whole copy of the file into dataset.local_dir"
EITHER = f"{COPY_AGAIN}; 02_download does, unless dataset.source is folder"
METADATA_FILES = (
    *(FEATURES_FILE, INDEX_FILE, PRESENCE_FILE, OLD_PRESENCE_FILE),
    *(COLLECTION_FILE, REASONING_FILE),
)


@dataclass(frozen=True)
class Feature:
    """A sensor or label stream, and the names of its files.

    Attributes:
        chunk_path: Template of a chunk's file, with `{chunk_id:04d}`.
        members: Kind -> template of a clip's member in the chunk's zip, with `{clip_id}`; empty if
            a chunk's file is a parquet table.
    """

    name: str
    chunk_path: str
    members: Mapping[str, str]


def read_features(path: Path) -> dict[str, Feature]:
    """Feature name -> feature, in the order of the file; unknown columns are ignored.

    Names and templates become file names, so they are checked here.
    """
    features: dict[str, Feature] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                members = json.loads(row["clip_files_in_zip"] or "{}")
                feature = Feature(row["feature"], row["chunk_path"], members)
                _check(feature, str(path))
                if feature.name in features:
                    raise AvomniError(f"feature {feature.name} is listed twice", where=str(path))
                features[feature.name] = feature
        return features
    except FileNotFoundError:
        raise AvomniError(
            "this folder is not in the data set's layout: no features.csv",
            where=str(path.parent),
            fix="check dataset.local_dir; unless dataset.source is folder, run 02_download",
        ) from None
    except (KeyError, ValueError, TypeError, OSError, RecursionError, csv.Error) as error:
        raise AvomniError(f"not the data set's features.csv: {error!r}", where=str(path)) from None


def _check(feature: Feature, path: str) -> None:
    names.need("the name of a feature", feature.name, names.name_fault(feature.name), path)
    where, members = f"{feature.name} in {path}", feature.members
    fault = names.template_fault(feature.chunk_path, "chunk_id")
    names.need("the template chunk_path", feature.chunk_path, fault, where)
    fault = None if isinstance(members, dict) else "it is not an object of names"
    names.need("clip_files_in_zip", members, fault, where)
    for kind, template in members.items():
        names.need("a name in clip_files_in_zip", kind, names.name_fault(kind), where)
        fault = names.template_fault(template, "clip_id")
        names.need(f"the template of {kind}", template, fault, where)


class Catalog:
    """The contents of a revision of the data set; created by `Catalog.open`.

    Clips (306,152 in the real data set) are stored as columns: a clip is a row of the clip index.
    Columns of other tables are read on first access.

    Attributes:
        features: Name -> feature, in the order of features.csv.
        chunks: The chunks' numbers, ascending.
        chunk_idx: (clips,) int64 index into `chunks` of each clip's chunk.
        mend: What to do about a missing or damaged file.
        metadata_files: The tables about all clips; a release may lack some.
        clip_type: The class that reads a clip; None is `clip.Clip`.
    """

    mend = EITHER
    metadata_files: tuple[str, ...] = METADATA_FILES
    clip_type: type | None = None

    def __init__(
        self,
        folder: Path,
        features: dict[str, Feature],
        clips: ClipIndex,
        presence: ClipTable | None,
    ):
        self.folder, self.features, self.clips = folder, features, clips
        numbers, self.chunk_idx = np.unique(clips.chunk, return_inverse=True)
        self.chunks = tuple(numbers.tolist())
        self._place = {number: place for place, number in enumerate(self.chunks)}
        self._by_chunk = np.argsort(self.chunk_idx, kind="stable")
        self._ends = np.cumsum(np.bincount(self.chunk_idx))
        self._presence_table = presence
        self._presence: dict[str, np.ndarray] = {}
        self._num_present: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: Path) -> Catalog:
        """Read features.csv, the clip index and one of the two tables of presence."""
        folder = Path(folder)
        features = read_features(folder / FEATURES_FILE)
        clips = ClipIndex(folder)
        presence = folder / PRESENCE_FILE
        if not presence.exists():
            presence = folder / OLD_PRESENCE_FILE
        return cls(folder, features, clips, ClipTable(presence, clips.clip_ids))

    @classmethod
    def of(cls, p: Params) -> Catalog:
        """As `open`, for a run's raw files."""
        catalog = cls.read_as(p.local_dir, p.lerobot_profile)
        catalog.mend = FETCH_AGAIN if p.is_fetched else COPY_AGAIN
        return catalog

    @classmethod
    def read_as(cls, folder: Path, lerobot_profile: str | None) -> Catalog:
        """As `open`; with the name of a profile, for a folder in LeRobot's layout."""
        if lerobot_profile is None:
            return cls.open(folder)
        from avomni_lib.dataset.lerobot.episodes import EpisodeCatalog

        return EpisodeCatalog.read(folder, lerobot_profile)

    def clip_ids(self, chunk: int | None = None, split: str | None = None) -> tuple[str, ...]:
        """The valid clips (of a chunk, of a split), in the order of the clip index."""
        return self.clips.ids(self._rows(chunk, split))

    def chunk_of(self, clip_id: str) -> int:
        return self.chunks[self.chunk_idx[self.clips.row_of(clip_id)]]

    def split_of(self, clip_id: str) -> str:
        """train, val or test: the data set's column, else by a hash of the clip's id."""
        return SPLITS[self.clips.split[self.clips.row_of(clip_id)]]

    def attributes(self, clip_id: str) -> dict[str, str | int | None]:
        """country, month (1-12), hour (0-23), platform and event_cluster; None if unknown."""
        row = self.clips.row_of(clip_id)
        return {name: self.values(name).of(row) for name in SOURCES}

    def present(self, clip_id: str, feature: str) -> bool:
        """Whether the clip has the feature according to the source."""
        return bool(self.presence(feature)[self.clips.row_of(clip_id)])

    def listed(self, features: Iterable[str]) -> tuple[str, ...]:
        """The given features that the release contains."""
        return tuple(name for name in features if name in self.features)

    def events(self, clip_id: str) -> tuple[Event, ...]:
        """Events that annotators described, sorted by time; empty for nearly all clips."""
        return self.clips.events(clip_id)

    def path(self, feature: str, chunk: int) -> str:
        """The file of one feature of one chunk, relative to the folder."""
        return self._feature(feature).chunk_path.format(chunk_id=chunk)

    def member(self, feature: str, clip_id: str, kind: str) -> str:
        """Name of a clip's member in its chunk's zip; `kind` is such as `video` for a camera."""
        members = self._feature(feature).members
        if kind not in members:
            raise AvomniError(f"{feature} has no {kind!r}; it has {', '.join(members) or 'none'}")
        return members[kind].format(clip_id=clip_id)

    def files(self, chunks: Iterable[int], features: Iterable[str]) -> list[str]:
        """The files of these chunks and features, except those that no clip of the chunk has."""
        counts = [(name, self.num_present(name)) for name in features]
        paths: dict[str, None] = {}
        for chunk in chunks:
            place = self.place(chunk)
            paths |= {self.path(name, chunk): None for name, count in counts if count[place]}
        return list(paths)

    def clips_in(self, feature: str, chunk: int) -> tuple[str, ...]:
        """The valid clips with data in the chunk's file of the feature."""
        return self.usable(chunk, [feature])

    def parts(self, clip_ids: Iterable[str]) -> tuple[Any, ...]:
        """The clips as `lerobot.clip.EpisodeEntry`, which check their parts of a file; empty for
        the data set's zips and tables, which the audit reads itself."""
        return ()

    def remarks(self) -> Iterator[Finding]:
        """Remarks on the whole data set."""
        return iter(())

    def usable(self, chunk: int, features: Iterable[str]) -> tuple[str, ...]:
        """The valid clips of a chunk that have all of these features."""
        rows = self._rows(chunk)
        for feature in features:
            rows = rows[self.presence(feature)[rows]]
        return self.clips.ids(rows)

    def values(self, attribute: str) -> Values:
        """`split` or one of `attributes`, for all clips."""
        return self.clips.values(attribute)

    def presence(self, feature: str) -> np.ndarray:
        """(clips,) bool: which clips have the feature according to the source."""
        name = self._feature(feature).name
        if name not in self._presence:
            # The old table covers sensors only; like NVIDIA's kit, assume the others are present.
            table = self._presence_table
            assert table is not None
            present = table.truths(name) if name in table.names else True
            # Leave out clips whose id is not a plain name.
            self._presence[name] = present & self.clips.is_named
        return self._presence[name]

    def num_present(self, feature: str) -> np.ndarray:
        """(chunks,) int64: number of clips of each chunk that have the feature."""
        if feature not in self._num_present:
            places = self.chunk_idx[self.presence(feature)]
            self._num_present[feature] = np.bincount(places, minlength=len(self.chunks))
        return self._num_present[feature]

    def place(self, chunk: int) -> int:
        """Index of a chunk in `chunks`."""
        if chunk not in self._place:
            raise AvomniError(
                f"unknown chunk {chunk}; there are {ranges(self.chunks)}",
                where="download.chunks",
                fix="name chunks that exist, or leave it out to take the first",
            )
        return self._place[chunk]

    def _rows(self, chunk: int | None, split: str | None = None) -> np.ndarray:
        if chunk is None:
            rows = np.arange(len(self.clips))
        else:
            place = self.place(chunk)
            rows = self._by_chunk[self._ends[place - 1] if place else 0 : self._ends[place]]
        rows = rows[self.clips.is_valid[rows]]
        return rows if split is None else rows[self.clips.split[rows] == SPLITS.index(split)]

    def _feature(self, name: str) -> Feature:
        if name not in self.features:
            raise AvomniError(
                f"unknown feature {name!r}; there are {', '.join(self.features)}",
                where=str(self.folder / FEATURES_FILE),
            )
        return self.features[name]


def optional_features(p: Params) -> tuple[str, ...]:
    """Features that are fetched if the source has them; clips without them are used too."""
    if p.lerobot_profile:
        return ()
    return (OBSTACLES,) if p.processing.obstacles else ()


def required_features(p: Params) -> tuple[str, ...]:
    """Features that a clip needs to be used: the grid's cameras, ego motion and calibration."""
    cameras = tuple(camera.name for camera in grid(p.vision.cameras).cameras)
    if p.lerobot_profile:
        return (*cameras, "egomotion")
    return (*cameras, "egomotion", "camera_intrinsics", "sensor_extrinsics", "vehicle_dimensions")


def ranges(numbers: Iterable[int]) -> str:
    """Format ascending numbers: 0, 1, 2, 5 as `0-2, 5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
