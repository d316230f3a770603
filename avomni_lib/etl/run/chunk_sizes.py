"""What the chunks of a run take on the disk, and whether they go through under the budget."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import MANIFEST
from avomni_lib.dataset.select.forecast import forecast as expected_files
from avomni_lib.dataset.select.manifest import Chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import disk_budget, forecast
from avomni_lib.etl.run.disk_budget import Load, Moment
from avomni_lib.etl.run.forecast import bytes_below, size_of
from avomni_lib.etl.run.parts import ChunkWork
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes

Verdict = tuple[list[tuple[str, str, str]], list[str], dict[str, Any]]
# In reserve for headers and the blocks that files fill up: of a shard, and of each of its clips.
SHARD_RESERVE, CLIP_RESERVE = 1 << 15, 1 << 12
# What a chunk may take beyond the largest before it.
MEASURED_MARGIN = 1.25
# Lines of a file in verified.json and evicted.json, and of a clip in clips.json: each is written
# beside the old one.
RECORD_BYTES = 2 * 400
# Sampled frames that a clip may have more than is published of all, or than its neighbours.
FRAMES_MORE = 2
NOTHING = Moment(0, 0)


class ChunkSizes:
    """Estimates what chunks take; learns as their raw files come and their shards are made.

    Args:
        chosen: The run's files.
        works: All its chunks.
        done: Those whose shards are whole.

    Attributes:
        remote: Chunk -> its raw files, as chosen.
        seconds: Of a clip, at most.
        shards: Chunk -> bytes on the disk of those that are done.
        parts: Chunk -> bytes of its parts, and of a shard that is still to be made anew from them.
        start: What stays: metadata and shards.
    """

    def __init__(
        self, p: Params, chosen: Chosen, works: Sequence[ChunkWork], done: Collection[int]
    ):
        self.p, self._works, self._done = p, {work.chunk: work for work in works}, set(done)
        self.remote = {work.chunk: _remote_files(p, chosen, work) for work in works}
        self.seconds, self._clip_bytes = most_seconds(p), 0.0
        there = next((work.chunk for work in works if work.has_raw()), None)
        if there is not None:
            self.learn_seconds(there)
        self.shards = dict.fromkeys(self._works, 0)
        self.parts = {work.chunk: bytes_below(work.parts_folder) for work in works}
        for work in works:
            if work.shard:
                held = self.shards if work.chunk in self._done else self.parts
                held[work.chunk] += self.learn_size(work.chunk)
        of_chunks = {file.path for remote in self.remote.values() for file in remote}
        metadata = sum(size_of(p.local_dir / name) for name in set(chosen.files) - of_chunks)
        manifest = max(size_of(p.local_dir / MANIFEST), len(chosen.files) * RECORD_BYTES)
        records = (len(chosen.files) + chosen.num_clips) * RECORD_BYTES
        metadata += manifest + records + 2 * SHARD_RESERVE
        self.start = Moment(metadata, sum(self.shards.values()))

    @property
    def left(self) -> list[Load]:
        """The chunks without a whole shard; first those of which most lies there: they free it."""
        loads = [self.load(chunk) for chunk in self._works if chunk not in self._done]
        return sorted(loads, key=lambda load: (-load.here - self.parts[load.chunk], load.chunk))

    def load(self, chunk: int) -> Load:
        raw = sum(file.size for file in self.remote[chunk]), self.here(chunk)
        clips, measured = len(self._works[chunk].clips), self._clip_bytes or None
        return load_of(self.p, chunk, raw, clips, self.seconds, measured)

    def here(self, chunk: int) -> int:
        """Bytes of the chunk's raw files that are on the disk, whole or not."""
        folder = self.p.local_dir
        return sum(
            size_of(folder / file.path) + size_of(transfer.path_of(folder, file))
            for file in self.remote[chunk]
        )

    def learn_seconds(self, chunk: int) -> None:
        """Clips are as long as the first of a chunk that is there."""
        clips = self._works[chunk].clips
        if clips:
            clip = Clip(self.p.local_dir, self._catalog, clips[0]["clip_id"])
            self.seconds = most_seconds(self.p, clip)

    def learn_size(self, chunk: int) -> int:
        """Clips take what they took in the shard where they were largest; returns its bytes."""
        size, shard = bytes_below(self._works[chunk].shard_folder), self._works[chunk].shard
        if shard is not None and shard.header["clips"]:
            self._clip_bytes = max(self._clip_bytes, size / len(shard.header["clips"]))
        return size

    def to_evict(self, done: Collection[int]) -> list[str]:
        """What a run that evicts will remove: all of chunks to come, what is there of the rest."""
        return [
            file.path
            for chunk, remote in self.remote.items()
            for file in remote
            if chunk not in done or (self.p.local_dir / file.path).exists()
        ]

    @functools.cached_property
    def _catalog(self) -> Catalog:
        return Catalog.of(self.p)


def _remote_files(p: Params, chosen: Chosen, work: ChunkWork) -> list[RemoteFile]:
    names = [path.relative_to(p.local_dir).as_posix() for path in work.raw]
    listed = [(name, chosen.files[name]) for name in names if name in chosen.files]
    return [RemoteFile(name, file["size"], file["sha256"]) for name, file in listed]


def load_of(
    p: Params,
    chunk: int,
    raw: tuple[int, int],
    num_clips: int,
    seconds: float,
    measured: float | None = None,
) -> Load:
    """What a chunk puts on the disk.

    Args:
        raw: Bytes of its raw files, and of these on the disk.
        seconds: Of a clip, at most.
        measured: Bytes of a clip in the shards so far; None: none is whole yet.
    """
    reserve = SHARD_RESERVE + num_clips * CLIP_RESERVE
    stays = num_clips * forecast.clip_bytes(p, seconds, p.processing.storage) + reserve
    cache = forecast.chunk_cache_bytes(p, num_clips, seconds) + 2 * reserve
    if measured is not None:
        stays = math.ceil(num_clips * measured)
        # No more than was forecast, unless clips have turned out larger than that.
        larger = math.ceil(2 * stays * MEASURED_MARGIN)
        cache = larger if 2 * stays > cache else min(larger, cache)
    # While one of a few clips is written, nobody knows yet how little it takes.
    cache = max(cache, stays + most_of_part(p, seconds))
    return Load(chunk, *raw, cache=cache, stays=stays)


def most_seconds(p: Params, clip: Clip | None = None) -> float:
    """How long a clip is at most: as published, or as one of its chunk."""
    return forecast.clip_seconds(p, clip) + FRAMES_MORE / p.processing.sample_hz


def most_of_part(p: Params, seconds: float) -> int:
    """Bytes of a clip's part at most, whatever its pictures show: what no JPEG exceeds."""
    return forecast.clip_bytes(p, seconds, "raw") + CLIP_RESERVE


def need_budget(p: Params, loads: Sequence[Load], start: Moment, num_done: int) -> None:
    """Refuse before the first fetch what cannot go through.

    Raises:
        AvomniError: the chunks' raw files, parts and shards would outgrow the budget; it says how
            many chunks would not.
    """
    limit = round(p.download.target_size_gb * 1e9)
    needed = disk_budget.peak(loads, start)
    if needed > limit:
        fitting = num_done + disk_budget.num_fitting(loads, start, limit)
        raise too_large(p, fitting, num_done + len(loads), needed)


def need_room(p: Params, loads: Sequence[Load], start: Moment, parts: int) -> None:
    """Refuse what the disks do not have room for; raw files and cache may lie on different ones.

    Raises:
        AvomniError: a disk lacks room.
    """
    if not loads:
        return
    moments = disk_budget.fullest(loads, start)
    raw = max(moment.raw for moment in moments) - start.raw - sum(load.here for load in loads)
    cache = max(moment.cache for moment in moments) - start.cache - parts
    if not p.download.evict_raw:
        files.need_room(p.cache_dir, cache, "the cache")
    elif _volume(p.local_dir) == _volume(p.cache_dir):
        here = start.total + sum(load.here for load in loads) + parts
        to_come = disk_budget.peak(loads, start) - here
        files.need_room(p.cache_dir, to_come, "raw files of one chunk at a time and the cache")
    else:
        files.need_room(p.local_dir, raw, "the raw files of one chunk at a time")
        files.need_room(p.cache_dir, cache, "the cache")


def expected(p: Params) -> list[Load]:
    """The chunks' loads as far as they can be estimated before 02_download has run."""
    estimate, seconds = expected_files(p), most_seconds(p)
    num_chunks = max(estimate.num_chunks, 1)
    raw, clips = (estimate.num_bytes // num_chunks, 0), math.ceil(estimate.num_clips / num_chunks)
    return [load_of(p, chunk, raw, clips, seconds) for chunk in range(estimate.num_chunks)]


def verdict(
    p: Params, loads: Sequence[Load], start: Moment = NOTHING, num_done: int = 0
) -> Verdict:
    """(rows, warnings, figures) of a plan: whether the chunks go through under the budget.

    Args:
        loads: Of the chunks that have no whole shard yet, in their order.
        start: What lies there and stays.
        num_done: Chunks that have one.
    """
    needed, limit = disk_budget.peak(loads, start), round(p.download.target_size_gb * 1e9)
    fitting = num_done + disk_budget.num_fitting(loads, start, limit)
    note = "at most at a time: a chunk's raw files and parts beside all shards"
    rows = [("on the disk", f"{gigabytes(needed)} of {gigabytes(limit)}", note)]
    warnings = []
    if needed > limit:
        error = too_large(p, fitting, num_done + len(loads), needed)
        warnings.append(f"{error.what}; {error.fix}")
    return rows, warnings, {"peak_bytes": needed, "num_chunks_fitting": fitting}


def too_large(p: Params, num_fitting: int, num_chunks: int, needed: int) -> AvomniError:
    """What to say where raw files, parts and shards outgrow the budget."""
    named = p.download.chunks is not None
    ways = [f"download.target_size_gb: {_enough(needed)} or more"]
    if num_fitting:
        fewer = f"name {num_fitting} chunks" if named else f"download.target_chunks: {num_fitting}"
        ways.insert(0, fewer)
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
    """What to say where raw files that stay leave no room for the next chunk."""
    return AvomniError(
        f"the raw files of {num_chunks} chunks stay, as clips of theirs were lost or another run "
        f"needs them ({gigabytes(num_bytes)}); beside them no chunk fits into "
        f"{p.download.target_size_gb:g} GB",
        where="download.target_size_gb",
        fix="run the same command again: it tries the lost clips first, and goes on; or set "
        f"download.target_size_gb: {_enough(needed)} or more",
    )


def _enough(needed: int) -> str:
    """Bytes as a budget (GB) that holds them."""
    return f"{math.ceil(needed * 1.001 / 1e4) / 1e5:.5f}".rstrip("0").rstrip(".")


def _volume(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return os.stat(path).st_dev
