"""Whether a cache is what was written: every hash, every count, and nothing in two splits.

Nothing is taken from the parameters: a cache that was carried elsewhere is checked by its own
headers. All that is wrong is told at once.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files, workers
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import counts, shard
from avomni_lib.etl.cache.counts import CacheFaults
from avomni_lib.etl.cache.shard import BUILD_AGAIN, CLIPS_FILE, HEADER_FILE
from avomni_lib.plan import Bar, Tally, gigabytes

MAX_THREADS, MAX_LINES = 8, 100
BLOCK_BYTES = 1 << 20
POLL_S = 0.2
CHANGED = "has changed since it was written: its sha256 is another"


@dataclass(frozen=True)
class VerifiedCache:
    """A cache that is sound: what was read and counted."""

    num_shards: int
    num_arrays: int
    num_bytes: int
    num_clips: int
    num_frames: int
    clips_by_split: dict[str, int]

    def __str__(self) -> str:
        splits = ", ".join(f"{count:,} {name}" for name, count in self.clips_by_split.items())
        return (
            f"sound: {self.num_clips:,} clips ({splits}) of {self.num_frames:,} frames in "
            f"{self.num_shards:,} shard{'s' if self.num_shards > 1 else ''}, "
            f"{self.num_arrays:,} arrays, {gigabytes(self.num_bytes)}"
        )


def verify(folder: Path, progress: type[Bar] = Bar) -> VerifiedCache:
    """Read all of a cache and compare it with its hashes and counts.

    Arrays are hashed by several threads, and the bar counts bytes.

    Raises:
        AvomniError: there is no finished cache, or it is not what was written: all that is wrong,
            each with its file, and which shards to remove.
    """
    folder, found = Path(folder), CacheFaults(Path(folder))
    record, table = read_record(folder), folder / CLIPS_FILE
    # The first caches had neither hash.
    has_hashes = {"headers", "sha256"} & record.keys()
    if has_hashes and record.get("sha256") != record_hash(record):
        found.add(table, CHANGED)
    named = [folder / name for name in record["shards"]]
    for path in sorted(set(folder.glob("shard_*")) - set(named)):
        found.add(path / HEADER_FILE, f"{table.name} does not name this shard")
    shards = [opened for path in named if (opened := _open(path, record, found))]
    wrong = _check_hashes(shards, found, progress)
    for each in shards:
        if each.folder not in wrong and _check_types(each, found):
            counts.check_shard(each, found)
    clips = [clip for n, each in enumerate(shards) for clip in shard.clips_of(each, n)]
    unread = {path.name for path in named} - {each.folder.name for each in shards}
    rows = [row for row in record["clips"] if shard.shard_name(row["chunk"]) not in unread]
    counts.check_table(table, rows, clips, found)
    for what in counts.leaks(clips, [each.num_frames for each in shards]):
        found.add(table, what)
    if found.lines:
        raise _error(found)
    arrays = [said for each in shards for said in each.header["arrays"].values()]
    return VerifiedCache(
        num_shards=len(shards),
        num_arrays=len(arrays),
        num_bytes=sum(said["bytes"] for said in arrays),
        num_clips=len(clips),
        num_frames=sum(map(len, clips)),
        clips_by_split={name: sum(c.split == name for c in clips) for name in counts.SPLITS},
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a cache's clips.json.

    Raises:
        AvomniError: there is no cache, or it is not finished, or of another format version.
    """
    path = folder / CLIPS_FILE
    if not path.exists():
        what = "the cache is not finished" if folder.exists() else "there is no cache"
        raise AvomniError(what, where=str(folder), fix="run 03_etl")
    record = files.read_json(path)
    shard.check_version(record, path)
    rows = record.get("clips")
    if not (isinstance(rows, list) and {"common", "shards"} <= record.keys()) or not all(
        {"clip_id", "split", "chunk", "state"} <= row.keys() for row in rows
    ):
        raise AvomniError("not a table of clips of this version", where=str(path), fix=BUILD_AGAIN)
    return record


def record_hash(record: Mapping[str, Any]) -> str:
    """A sha256 of all of clips.json but this."""
    return files.hash_json({key: value for key, value in record.items() if key != "sha256"})


def _error(found: CacheFaults) -> AvomniError:
    count = len(found.lines)
    lines = found.lines[:MAX_LINES]
    if count > MAX_LINES:
        lines.append(f"and {count - MAX_LINES:,} more")
    remove = ", ".join(map(str, sorted(found.shards)))
    return AvomniError(
        "the cache is not what was written, "
        + ("one thing is wrong:" if count == 1 else f"{count:,} things are wrong:")
        + "".join(f"\n  - {line}" for line in lines),
        where=str(found.folder),
        fix=(f"remove {remove}; " if remove else "") + BUILD_AGAIN,
    )


def _open(folder: Path, record: Mapping[str, Any], found: CacheFaults) -> shard.Shard | None:
    """A shard by its header alone; None where that cannot be used."""
    path = folder / HEADER_FILE
    if not path.exists():
        found.add(path, "is missing")
        return None
    if record.get("headers", {}).get(folder.name) not in (None, files.sha256_file(path)):
        found.add(path, CHANGED)
        return None
    try:
        opened = shard.Shard(folder, files.read_json(path))
        shard.check_version(opened.header, path)
        for key, value in record["common"].items():
            if opened.header[key] != value:
                found.add(path, f"{key} is {opened.header[key]}, the cache's is {value}")
        for clip in shard.clips_of(opened):
            if folder.name != shard.shard_name(clip.chunk):
                found.add(path, f"holds clip {clip.clip_id} of chunk {clip.chunk}")
        if set(opened.header["arrays"]) != set(shard.arrays_in(opened.header)):
            found.add(path, f"names the arrays {', '.join(opened.header['arrays'])}")
            return None
        for said in opened.header["arrays"].values():
            _need(said, "shape", "bytes", "sha256")
        _need(opened.header, "tile")
        _need(opened.header["grid"], "rows", "cols", "cells")
    except AvomniError as error:
        found.add(path, error.what)
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found.add(path, f"is no header of a shard: {error!r}")
        return None
    return opened


def _need(values: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        values[key]


def _check_hashes(
    shards: Sequence[shard.Shard], found: CacheFaults, progress: type[Bar]
) -> dict[Path, list[str]]:
    """Hash every array, several at a time, as fast as the disk or the cores allow.

    Returns:
        Of each shard the arrays that are not what was written.
    """
    arrays, wrong = [], {}
    for each in shards:
        for name, said in each.header["arrays"].items():
            path = each.folder / f"{name}.npy"
            size = path.stat().st_size if path.exists() else None
            if size == said["bytes"]:
                arrays.append((each, name, path))
            else:
                state = "is missing" if size is None else f"has {size:,} of {said['bytes']:,} bytes"
                found.add(path, state)
                wrong.setdefault(each.folder, []).append(name)
    for (each, name, path), done in zip(arrays, _hashes(arrays, progress), strict=True):
        error = done.exception()
        if not error and done.result() == each.header["arrays"][name]["sha256"]:
            continue
        found.add(path, f"cannot be read: {error}" if error else CHANGED)
        wrong.setdefault(each.folder, []).append(name)
    for each in shards:
        if wrong.get(each.folder) == ["jpeg"]:
            counts.name_frames(each, found)
    return wrong


def _hashes(
    arrays: Sequence[tuple[shard.Shard, str, Path]], progress: type[Bar]
) -> list[concurrent.futures.Future[str]]:
    stop, counted = threading.Event(), Tally()
    total = sum(each.header["arrays"][name]["bytes"] for each, name, _ in arrays)
    with (
        progress(total=total, unit="B", label="verify") as bar,
        concurrent.futures.ThreadPoolExecutor(min(workers.num_cores(), MAX_THREADS)) as threads,
    ):
        hashes = [threads.submit(_hash, path, counted, stop) for _, _, path in arrays]
        try:
            left = set(hashes)
            while left:
                left = concurrent.futures.wait(left, POLL_S).not_done
                bar.update(counted.take())
        finally:
            stop.set()  # on Ctrl-C, what still reads ends at once
    return hashes


def _check_types(each: shard.Shard, found: CacheFaults) -> bool:
    """Whether all arrays have the type and shape that the header says."""
    before = len(found.lines)
    for name, dtype in shard.arrays_in(each.header).items():
        path, said = each.folder / f"{name}.npy", each.header["arrays"][name]["shape"]
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy's parser lets many kinds through
            found.add(path, f"is no .npy file: {error}")
            continue
        if (list(array.shape), array.dtype) != (said, np.dtype(dtype)):
            is_so = f"holds {list(array.shape)} {array.dtype}"
            found.add(path, f"{is_so}, it should hold {said} {np.dtype(dtype)}")
    return len(found.lines) == before


def _hash(path: Path, counted: Tally, stop: threading.Event) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while not stop.is_set() and (size := file.readinto(block)):
            digest.update(block[:size])
            counted.add(size)
    return digest.hexdigest()
