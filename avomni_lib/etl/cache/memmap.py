"""The cache of a run: its shards, and the table of all clips that it was built from.

cache/shard_NNNN/ holds one chunk (see `shard`), each sampled frame once. cache/clips.json lists
every requested clip, sound or damaged, and is written last.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.cameras import BY_NAME, Grid
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.shard import (
    BUILD_AGAIN,
    CLIPS_FILE,
    EGOMOTION_COLUMNS,
    FORMAT_VERSION,
    HEADER_FILE,
    TRACK_COLUMNS,
    CachedClip,
    Shard,
    clips_of,
    open_shard,
)
from avomni_lib.etl.cache.verify import VerifiedCache, read_record, record_hash, verify

__all__ = [
    "CLIPS_FILE",
    "EGOMOTION_COLUMNS",
    "FORMAT_VERSION",
    "TRACK_COLUMNS",
    "Cache",
    "CachedClip",
    "Shard",
    "VerifiedCache",
    "verify",
    "write_table",
]


@dataclass(frozen=True)
class Cache:
    """All shards of a run; created by `Cache.open`.

    Attributes:
        header: The header fields shared by all shards: grid, tile, fit, sample_hz, storage, source.
        shards: In the order of their chunks.
        clips: In the order of the catalog.
        table: Rows of clips.json, including those of damaged clips.
    """

    folder: Path
    header: dict[str, Any]
    shards: tuple[Shard, ...]
    clips: tuple[CachedClip, ...]
    table: tuple[dict[str, Any], ...]

    @classmethod
    def open(cls, folder: Path) -> Cache:
        """Open a finished cache without reading any array.

        Raises:
            AvomniError: there is none, it is unfinished or of another format version, or a file is
                missing or differs in size from its header.
        """
        folder = Path(folder)
        record = read_record(folder)
        shards = tuple(open_shard(folder / name) for name in record["shards"])
        clips = [clip for n, shard in enumerate(shards) for clip in clips_of(shard, n)]
        for shard in shards:
            for key, value in record["common"].items():
                if shard.header[key] != value:
                    raise AvomniError(
                        f"the shards differ in {key}: {shard.header[key]} and {value}",
                        where=str(shard.folder),
                        fix=BUILD_AGAIN,
                    )
        return cls(folder, record["common"], shards, tuple(clips), tuple(record["clips"]))

    @functools.cached_property
    def grid(self) -> Grid:
        grid = self.header["grid"]
        cells = tuple(name and BY_NAME[name] for name in grid["cells"])
        return Grid(grid["name"], grid["rows"], grid["cols"], cells)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras' names, in the order of the columns of `timestamps`."""
        return tuple(camera.name for camera in self.grid.cameras)

    @property
    def held_out_ids(self) -> list[str]:
        """The clips that must not be trained on."""
        return [clip.clip_id for clip in self.clips if clip.split != "train"]

    @property
    def tile(self) -> tuple[int, int]:
        """(width, height) px."""
        return tuple(self.header["tile"])

    @property
    def sample_hz(self) -> float:
        return self.header["sample_hz"]

    @property
    def files(self) -> dict[Path, str | None]:
        """All files of the cache; arrays with the sha256 that their headers state."""
        hashes: dict[Path, str | None] = {self.folder / CLIPS_FILE: None}
        for shard in self.shards:
            hashes[shard.folder / HEADER_FILE] = None
            for name, entry in shard.header["arrays"].items():
                hashes[shard.folder / f"{name}.npy"] = entry["sha256"]
        return hashes

    @functools.cached_property
    def digest(self) -> str:
        """A sha256 of all headers, and thereby of the arrays, whose hashes they contain."""
        return files.hash_json([shard.header for shard in self.shards])


def write_table(
    folder: Path,
    common: Mapping[str, Any],
    shards: Sequence[Path],
    clips: Sequence[Mapping[str, Any]],
) -> None:
    """Write clips.json, which completes the cache."""
    record = {
        "format_version": FORMAT_VERSION,
        "common": common,
        "shards": [shard.name for shard in shards],
        "headers": {shard.name: files.sha256_file(shard / HEADER_FILE) for shard in shards},
        "clips": list(clips),
    }
    files.write_json(folder / CLIPS_FILE, record | {"sha256": record_hash(record)})
