"""Disk space of raw files and cache, and whether it stays within `download.target_size_gb`.

With `download.evict_raw`, a chunk's raw files are fetched, its clips become parts, the parts become
a shard, and the raw files are removed; shards stay. The limit must hold all shards, the raw files,
and twice the shards of the chunks being read (their parts, and the shard made from them). The next
chunk is fetched ahead if its raw files fit too.
"""

from __future__ import annotations

import bisect
import functools
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip, open_clip
from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.select.forecast import forecast as expected_files
from avomni_lib.dataset.select.manifest import Chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import forecast
from avomni_lib.etl.run.forecast import bytes_below, size_of
from avomni_lib.etl.run.parts import ChunkWork
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes

Verdict = tuple[list[tuple[str, str, str]], list[str], dict[str, Any]]
# Reserve for headers and partly filled disk blocks, per shard and per clip.
SHARD_RESERVE, CLIP_RESERVE = 1 << 15, 1 << 12
# Bytes per file in verified.json and evicted.json, and per clip in clips.json; twice, as the new
# version is written beside the old one.
RECORD_BYTES = 2 * 400
MEASURED_MARGIN = 1.25  # a chunk may exceed the largest one so far by this factor
FRAMES_MORE = 2  # a clip may have this many sampled frames more than its neighbours


@dataclass(frozen=True)
class Load:
    """Disk space of one chunk in bytes.

    Attributes:
        raw: All its raw files.
        here: The part of `raw` that is on the disk already, including partial files.
        cache: Upper bound while its shard is made, with the parts beside it.
        stays: Expected size of the shard.
    """

    chunk: int
    raw: int
    here: int
    cache: int
    stays: int


def load_of(
    p: Params, chunk: int, raw: int, here: int, num_clips: int, seconds: float, measured: float = 0
) -> Load:
    """The load of a chunk.

    Args:
        seconds: Maximum duration of a clip.
        measured: Bytes per clip in the shards so far; 0 if there are none yet.
    """
    storage, most_of_jpeg = p.processing.storage, forecast.JPEG_SHARE_MOST
    reserve = SHARD_RESERVE + num_clips * CLIP_RESERVE
    stays = reserve + num_clips * forecast.clip_bytes(p, seconds, storage)
    cache = 2 * (reserve + num_clips * forecast.clip_bytes(p, seconds, storage, most_of_jpeg))
    if measured:
        stays = math.ceil(num_clips * measured)
        # At most the forecast, unless clips have turned out larger.
        larger = math.ceil(2 * stays * MEASURED_MARGIN)
        cache = larger if 2 * stays > cache else min(larger, cache)
    # A part being written counts with its maximum size, which matters for chunks of few clips.
    return Load(chunk, raw, here, max(cache, stays + most_of_part(p, seconds)), stays)


def most_of_part(p: Params, seconds: float) -> int:
    """Upper bound of the bytes of a clip's part, whatever its pictures show."""
    return forecast.clip_bytes(p, seconds, "raw") + CLIP_RESERVE


def most_seconds(p: Params, clip: Clip | None = None) -> float:
    """Maximum duration of a clip in seconds: as published, or from a clip of its chunk."""
    return forecast.clip_seconds(p, clip) + FRAMES_MORE / p.processing.sample_hz


def fullest(loads: Sequence[Load], raw: int = 0) -> list[tuple[int, int]]:
    """Maximum (raw, cache) bytes on the disk during each chunk, processed in this order.

    Args:
        raw: Bytes of metadata, which stay.
    """
    raw += sum(load.here for load in loads)
    cache, moments = 0, []
    for load in loads:
        raw -= load.here
        moments.append((raw + load.raw, cache + load.cache))
        cache += load.stays
    return moments


def peak(loads: Sequence[Load], standing: int = 0) -> int:
    """Maximum bytes on the disk at any time, including `standing` bytes that stay."""
    return max([standing, *map(sum, fullest(loads, standing))])


def num_fitting(loads: Sequence[Load], standing: int, limit: float) -> int:
    """How many of the chunks, processed in this order, stay within `limit` bytes."""
    return bisect.bisect_right(
        range(len(loads)), limit, key=lambda last: peak(loads[: last + 1], standing)
    )


class DiskBudget:
    """Upper bound of the bytes on the disk, and of those reserved.

    Args:
        metadata: Bytes that stay beside the raw files.
        shards: Bytes of complete shards.
        raw: Chunk -> bytes of its raw files, counted in full from the start of their download.
        parts: Chunk -> bytes of its parts.

    Attributes:
        reserved: Chunk being read -> bytes that its parts and shard may take.
        writing: A worker's current task -> bytes that it may write.
    """

    def __init__(
        self, limit: float, metadata: int, shards: int, raw: dict[int, int], parts: dict[int, int]
    ):
        self.limit, self.metadata, self.shards = limit, metadata, shards
        self.raw, self.parts = raw, parts
        self.reserved: dict[int, int] = {}
        self.writing: dict[object, int] = {}

    @property
    def now(self) -> tuple[int, int]:
        """Upper bounds of the (raw, cache) bytes on the disk."""
        written = sum(self.parts.values()) + sum(self.writing.values())
        return self.metadata + sum(self.raw.values()), self.shards + written

    def may_write(self, num_bytes: int) -> bool:
        """Whether this many bytes fit beside what is on the disk; this limit always holds."""
        return sum(self.now) + num_bytes <= self.limit

    def _may_promise(self, num_bytes: int) -> bool:
        cache = sum(max(size, self.reserved.get(chunk, 0)) for chunk, size in self.parts.items())
        promised = self.metadata + sum(self.raw.values()) + self.shards + cache
        return max(promised, sum(self.now)) + num_bytes <= self.limit

    def may_work(self, load: Load) -> bool:
        """Whether the chunk's parts and shard fit beside everything reserved."""
        return self._may_promise(load.cache - self.parts[load.chunk])

    def may_fetch(self, load: Load) -> bool:
        """Whether its raw files fit; if no chunk is being read, also its parts and shard."""
        cache = 0 if self.reserved else load.cache - self.parts[load.chunk]
        return self._may_promise(load.raw - self.raw[load.chunk] + cache)


class ChunkSizes:
    """Estimates the chunks' sizes, and refines them as raw files arrive and shards are made.

    Args:
        done: Chunks whose shards are complete.

    Attributes:
        remote: Chunk -> its raw files, as chosen.
        seconds: Maximum duration of a clip.
        shards: Chunk -> bytes of its shard, if done.
        parts: Chunk -> bytes of its parts, and of an older shard that they will replace.
        metadata: Bytes of everything else that stays beside the raw files.
    """

    def __init__(
        self, p: Params, chosen: Chosen, works: Sequence[ChunkWork], done: Collection[int]
    ):
        self.p, self._works, self._done = p, {work.chunk: work for work in works}, done
        self.remote: dict[int, list[RemoteFile]] = {}
        for work in works:
            names = (path.relative_to(p.local_dir).as_posix() for path in work.raw)
            listed = [(name, chosen.files[name]) for name in names if name in chosen.files]
            self.remote[work.chunk] = [RemoteFile(n, f["size"], f["sha256"]) for n, f in listed]
        self._measured, self.seconds = 0.0, most_seconds(p)
        self._released: set[int] = set()
        self._users: dict[str, list[int]] = {}  # raw file -> the chunks that have clips in it
        for chunk, remote in self.remote.items():
            for file in remote:
                self._users.setdefault(file.path, []).append(chunk)
        if there := [work.chunk for work in works if work.has_raw()]:
            self.learn_seconds(there[0])
        self.shards = dict.fromkeys(self._works, 0)
        self.parts = {work.chunk: bytes_below(work.parts_folder) for work in works}
        for work in works:
            if work.shard:
                held = self.shards if work.chunk in done else self.parts
                held[work.chunk] += self.learn_size(work.chunk)
        of_chunks = {file.path for remote in self.remote.values() for file in remote}
        self.metadata = sum(size_of(p.local_dir / name) for name in set(chosen.files) - of_chunks)
        self.metadata += (2 * len(chosen.files) + chosen.num_clips) * RECORD_BYTES
        self.metadata += 2 * SHARD_RESERVE

    @property
    def standing(self) -> int:
        """Bytes on the disk that stay."""
        return self.metadata + sum(self.shards.values())

    @property
    def left(self) -> list[Load]:
        """The chunks without a complete shard; those with most bytes on the disk come first."""
        loads = [self.load(chunk) for chunk in self._works if chunk not in self._done]
        return sorted(loads, key=lambda load: (-load.here - self.parts[load.chunk], load.chunk))

    def load(self, chunk: int) -> Load:
        raw, here = sum(file.size for file in self.remote[chunk]), self.here(chunk)
        num_clips = len(self._works[chunk].clips)
        return load_of(self.p, chunk, raw, here, num_clips, self.seconds, self._measured)

    def here(self, chunk: int) -> int:
        """Bytes of the chunk's raw files on the disk, including partial ones.

        A file that several chunks share counts for the first that needs it.
        """
        folder = self.p.local_dir
        return sum(
            size_of(folder / file.path) + size_of(transfer.path_of(folder, file))
            for file in self.remote[chunk]
            if self._user(file.path) in (None, chunk)
        )

    def learn_seconds(self, chunk: int) -> None:
        """Take the duration of clips from the first clip of a chunk that is on the disk."""
        if clips := self._works[chunk].clips:
            clip = open_clip(self.p.local_dir, self._catalog, clips[0]["clip_id"])
            self.seconds = most_seconds(self.p, clip)

    @functools.cached_property
    def _catalog(self) -> Catalog:
        return Catalog.of(self.p)

    def learn_size(self, chunk: int) -> int:
        """Update the bytes per clip from a chunk's shard if it exceeds them; returns its size."""
        size, shard = bytes_below(self._works[chunk].shard_folder), self._works[chunk].shard
        if shard is not None and (num_clips := len(shard.header["clips"])):
            self._measured = max(self._measured, size / num_clips)
        return size

    def to_evict(self) -> list[str]:
        """Raw files that an evicting run will remove: of chunks to come, and any on the disk."""
        return [
            file.path
            for chunk, remote in self.remote.items()
            for file in remote
            if chunk not in self._done or (self.p.local_dir / file.path).exists()
        ]

    def let_go(self, chunk: int) -> list[str]:
        """Mark the chunk as done; returns its raw files that no remaining chunk needs."""
        self._released.add(chunk)
        return [file.path for file in self.remote[chunk] if self._user(file.path) is None]

    def _user(self, path: str) -> int | None:
        """The first chunk that still needs a raw file."""
        left = (c for c in self._users[path] if c not in self._done and c not in self._released)
        return next(left, None)

    def need_budget(self) -> None:
        """Check before the first download that all chunks fit into the budget.

        Raises:
            AvomniError: the chunks' raw files, parts and shards would exceed the budget.
        """
        left, limit = self.left, self.p.download.target_size_gb * 1e9
        if (needed := peak(left, self.standing)) > limit:
            fitting = len(self._done) + num_fitting(left, self.standing, limit)
            raise too_large(self.p, fitting, len(self._works), needed)

    def need_room(self) -> None:
        """Check the free space of the disks; raw files and cache may be on different ones.

        Raises:
            AvomniError: a disk lacks room.
        """
        if not (left := self.left):
            return
        moments = fullest(left)
        raw = max(raw for raw, _ in moments) - sum(load.here for load in left)
        cache = max(cache for _, cache in moments) - sum(self.parts.values())
        if self.p.download.evict_raw:
            if _volume(self.p.local_dir) == _volume(self.p.cache_dir):
                cache += raw
            else:
                files.need_room(self.p.local_dir, raw, "the raw files of one chunk at a time")
        files.need_room(self.p.cache_dir, cache, "the cache")


def _volume(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return os.stat(path).st_dev


def expected(p: Params) -> list[Load]:
    """Estimated loads of the chunks before 02_download has run."""
    estimate, seconds = expected_files(p), most_seconds(p)
    num_chunks = max(estimate.num_chunks, 1)
    raw, clips = estimate.num_bytes // num_chunks, math.ceil(estimate.num_clips / num_chunks)
    return [load_of(p, chunk, raw, 0, clips, seconds) for chunk in range(estimate.num_chunks)]


def verdict(p: Params, loads: Sequence[Load], standing: int = 0, num_done: int = 0) -> Verdict:
    """(rows, warnings, figures) of a plan: whether the chunks fit into the budget.

    Args:
        loads: Loads of the chunks without a complete shard, in their order.
        standing: Bytes on the disk that stay.
        num_done: Number of chunks that have a shard.
    """
    needed, limit = peak(loads, standing), p.download.target_size_gb * 1e9
    fitting = num_done + num_fitting(loads, standing, limit)
    note = "at most at a time: a chunk's raw files and parts beside all shards"
    rows = [("on the disk", f"{gigabytes(needed)} of {gigabytes(limit)}", note)]
    warnings = []
    if needed > limit:
        error = too_large(p, fitting, num_done + len(loads), needed)
        warnings.append(f"{error.what}; {error.fix}")
    return rows, warnings, {"peak_bytes": needed, "num_chunks_fitting": fitting}


def too_large(p: Params, num_fitting: int, num_chunks: int, needed: int) -> AvomniError:
    """The error if raw files, parts and shards exceed the budget."""
    ways = [f"download.target_size_gb: {_enough(needed)} or more"]
    if num_fitting and p.download.chunks is not None:
        ways.insert(0, f"name {num_fitting} chunks")
    elif num_fitting:
        ways.insert(0, f"download.target_chunks: {num_fitting}")
    if p.processing.storage == "raw":
        ways.append("processing.storage: jpeg (about a tenth of the cache)")
    ways.append("smaller tiles (processing.tile_width, tile_height)")
    return AvomniError(
        f"{num_fitting} of {num_chunks} chunks go through with a budget of "
        f"{p.download.target_size_gb:g} GB for raw files and cache together; all of them need "
        f"{gigabytes(needed)}, as each leaves its shard",
        where="download.target_size_gb",
        fix="set " + ", or ".join(ways),
    )


def held(p: Params, num_chunks: int, num_bytes: int, needed: int) -> AvomniError:
    """The error if raw files that stay leave no room for the next chunk."""
    return AvomniError(
        f"the raw files of {num_chunks} chunks stay, as clips of theirs were lost or another run "
        f"needs them ({gigabytes(num_bytes)}); beside them no chunk fits into "
        f"{p.download.target_size_gb:g} GB",
        where="download.target_size_gb",
        fix="run the same command again: it tries the lost clips first, and goes on; or set "
        f"download.target_size_gb: {_enough(needed)} or more",
    )


def _enough(needed: int) -> str:
    """Format a budget in GB that holds this many bytes."""
    return f"{math.ceil(needed * 1.001 / 1e4) / 1e5:.5f}".rstrip("0").rstrip(".")
