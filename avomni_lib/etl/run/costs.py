"""What the chunks of a run weigh, and whether they go through under `download.target_size_gb`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import MANIFEST
from avomni_lib.dataset.select.forecast import forecast as expected_files
from avomni_lib.dataset.select.manifest import Chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import disk_budget, forecast
from avomni_lib.etl.run.disk_budget import Load, Moment
from avomni_lib.etl.run.parts import ChunkWork
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes

Verdict = tuple[list[tuple[str, str, str]], list[str], dict[str, Any]]
# A line of verified.json, evicted.json and clips.json for each file or clip, each written beside
# the old one; and a clip's ranges in its shard's header.
MANIFEST_BYTES, EVICTED_BYTES, TABLE_BYTES, HEADER_BYTES = 2 * 400, 2 * 400, 2 * 400, 300
FILES_A_SHARD = 8
# Sampled frames that a clip may have more than is published of all, or than its neighbours.
MORE_THAN_PUBLISHED, MORE_THAN_OTHERS = 2, 1
# What a chunk may take beyond the largest before it.
MEASURED_MARGIN = 1.25
NOTHING = Moment(0, 0)


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
    files_bytes = FILES_A_SHARD * disk_budget.BLOCK + num_clips * HEADER_BYTES
    stays = num_clips * forecast.clip_bytes(p, seconds, p.processing.storage)
    cache = forecast.chunk_cache_bytes(p, num_clips, seconds)
    if measured is not None:
        stays = math.ceil(num_clips * measured)
        # No more than was forecast, unless clips have turned out larger than that.
        larger = math.ceil(2 * stays * MEASURED_MARGIN)
        cache = larger if 2 * stays > cache else min(larger, cache)
    # While one of a few clips is written, nobody knows yet how little it takes.
    cache = max(cache, stays + most_of_part(p, seconds))
    cache += 2 * files_bytes + num_clips * disk_budget.BLOCK
    return Load(chunk, *raw, cache=cache, stays=stays + files_bytes)


def most_seconds(p: Params, clip: Clip | None = None) -> float:
    """How long a clip is at most: as published, or as one of its chunk."""
    more = MORE_THAN_OTHERS if clip else MORE_THAN_PUBLISHED
    return forecast.clip_seconds(p, clip) + more / p.processing.sample_hz


def most_of_part(p: Params, seconds: float) -> int:
    """Bytes of a clip's part at most, whatever its pictures show: what no JPEG exceeds."""
    return disk_budget.blocks(forecast.clip_bytes(p, seconds, "raw")) + disk_budget.BLOCK


def here(p: Params, file: RemoteFile) -> int:
    """Bytes of a file that are on the disk, whole or not."""
    partial = transfer.path_of(p.local_dir, file)
    return size_of(p.local_dir / file.path) + size_of(partial)


def size_below(folders: Iterable[Path]) -> int:
    """Bytes of all files in these folders."""
    total = 0
    for folder in folders:
        for where, _, names in os.walk(folder):
            total += sum(size_of(Path(where, name)) for name in names)
    return total


def metadata_bytes(p: Params, chosen: Chosen, works: Sequence[ChunkWork]) -> int:
    """What stays beside raw files and shards: the metadata and the records of files and clips."""
    of_chunks = {path.relative_to(p.local_dir).as_posix() for work in works for path in work.raw}
    metadata = sum(
        disk_budget.blocks(size_of(p.local_dir / n)) for n in set(chosen.files) - of_chunks
    )
    manifest = max(size_of(p.local_dir / MANIFEST), len(chosen.files) * MANIFEST_BYTES)
    records = len(chosen.files) * EVICTED_BYTES + chosen.num_clips * TABLE_BYTES
    return metadata + manifest + records + 16 * disk_budget.BLOCK


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


def need_room(p: Params, loads: Sequence[Load], start: Moment, parts: int) -> None:
    """Refuse what the disks do not have room for; raw files and cache may lie on different ones.

    Raises:
        AvomniError: a disk lacks room.
    """
    if not loads:
        return
    most, raw_here = disk_budget.most(loads, start), start.raw + sum(load.here for load in loads)
    cache_here = start.cache + parts
    if not p.download.evict_raw:
        files.need_room(p.cache_dir, most.cache - cache_here, "the cache")
    elif _volume(p.local_dir) == _volume(p.cache_dir):
        to_come = disk_budget.peak(loads, start) - raw_here - cache_here
        files.need_room(p.cache_dir, to_come, "raw files of one chunk at a time and the cache")
    else:
        files.need_room(p.local_dir, most.raw - raw_here, "the raw files of one chunk at a time")
        files.need_room(p.cache_dir, most.cache - cache_here, "the cache")


def expected(p: Params) -> list[Load]:
    """The chunks' loads as far as they can be told before 02_download has run."""
    told, seconds = expected_files(p), most_seconds(p)
    num_chunks = max(told.num_chunks, 1)
    raw, clips = (told.num_bytes // num_chunks, 0), math.ceil(told.num_clips / num_chunks)
    return [load_of(p, chunk, raw, clips, seconds) for chunk in range(told.num_chunks)]


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


def size_of(path: Path) -> int:
    """Bytes that a file takes on the disk; none if it is not there."""
    try:
        return disk_budget.blocks(path.stat().st_size)
    except OSError:
        return 0


def _volume(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return path.stat().st_dev
