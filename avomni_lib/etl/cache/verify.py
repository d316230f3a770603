"""Verification of a cache: all hashes and counts, and that no clip is in two splits.

Parameters are not needed: a cache is checked against its own headers, wherever it was copied to.
All faults are reported at once.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import threading
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files, workers
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.shard import (
    BUILD_AGAIN,
    CLIPS_FILE,
    EGOMOTION_COLUMNS,
    HEADER_FILE,
    TRACK_COLUMNS,
    CachedClip,
    Shard,
    arrays_in,
    check_version,
    clips_of,
    shard_name,
)
from avomni_lib.etl.clip import fingerprints
from avomni_lib.plan import Bar, Tally, gigabytes

SPLITS, STATES = ("train", "val", "test"), ("ok", "damaged", "lost")
MAX_THREADS, MAX_LINES, MAX_FRAMES_NAMED = 8, 100, 5
BLOCK_BYTES = 1 << 20
POLL_S = 0.2
CHANGED = "has changed since it was written: its sha256 is another"


@dataclass(frozen=True)
class VerifiedCache:
    """Counts of a cache that passed verification."""

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


class Faults:
    """The faults of a cache: lines of the message, and the folders of shards to rebuild."""

    def __init__(self, folder: Path):
        self.folder, self.lines, self.shards = folder, list[str](), set[Path]()

    def add(self, path: Path, what: str) -> None:
        self.lines.append(f"{path.relative_to(self.folder)}: {what}")
        if path.parent != self.folder:
            self.shards.add(path.parent)

    @property
    def error(self) -> AvomniError:
        count, lines = len(self.lines), self.lines[:MAX_LINES]
        if count > MAX_LINES:
            lines.append(f"and {count - MAX_LINES:,} more")
        remove = ", ".join(map(str, sorted(self.shards)))
        return AvomniError(
            "the cache is not what was written, "
            + ("one thing is wrong:" if count == 1 else f"{count:,} things are wrong:")
            + "".join(f"\n  - {line}" for line in lines),
            where=str(self.folder),
            fix=(f"remove {remove}; " if remove else "") + BUILD_AGAIN,
        )


def verify(folder: Path, progress: type[Bar] = Bar) -> VerifiedCache:
    """Read a whole cache and compare it with its hashes and counts.

    Arrays are hashed by several threads; the bar counts bytes.

    Raises:
        AvomniError: there is no finished cache, or it differs from what was written; the message
            lists all faults with their files, and the shards to remove.
    """
    folder, faults = Path(folder), Faults(Path(folder))
    record, table = read_record(folder), folder / CLIPS_FILE
    if record.get("sha256") != record_hash(record):
        faults.add(table, CHANGED)
    named = [folder / name for name in record["shards"]]
    for path in sorted(set(folder.glob("shard_*")) - set(named)):
        faults.add(path / HEADER_FILE, f"{table.name} does not name this shard")
    shards = [opened for path in named if (opened := _open(path, record, faults))]
    wrong = _check_hashes(shards, faults, progress)
    for shard in shards:
        if wrong.get(shard.folder) == ["jpeg"]:
            for what in damaged_frames(shard):
                faults.add(shard.folder / "jpeg.npy", what)
        elif shard.folder not in wrong:
            for name, what in of_shard(shard):
                faults.add(shard.folder / name, what)
    clips = [clip for n, shard in enumerate(shards) for clip in clips_of(shard, n)]
    unread = {path.name for path in named} - {shard.folder.name for shard in shards}
    rows = [row for row in record["clips"] if shard_name(row["chunk"]) not in unread]
    num_frames = [shard.num_frames for shard in shards]
    for what in [*of_table(rows, clips), *leaks(clips, num_frames)]:
        faults.add(table, what)
    if faults.lines:
        raise faults.error
    arrays = [entry for shard in shards for entry in shard.header["arrays"].values()]
    return VerifiedCache(
        num_shards=len(shards),
        num_arrays=len(arrays),
        num_bytes=sum(entry["bytes"] for entry in arrays),
        num_clips=len(clips),
        num_frames=sum(map(len, clips)),
        clips_by_split={name: sum(c.split == name for c in clips) for name in SPLITS},
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a cache's clips.json.

    Raises:
        AvomniError: there is no cache, or it is unfinished or of another format version.
    """
    path = folder / CLIPS_FILE
    if not path.exists():
        what = "the cache is not finished" if folder.exists() else "there is no cache"
        raise AvomniError(what, where=str(folder), fix="run 03_etl")
    record = files.read_json(path)
    check_version(record, path)
    rows = record.get("clips")
    if not (isinstance(rows, list) and {"common", "shards"} <= record.keys()) or not all(
        {"clip_id", "split", "chunk", "state"} <= row.keys() for row in rows
    ):
        raise AvomniError("not a table of clips of this version", where=str(path), fix=BUILD_AGAIN)
    return record


def record_hash(record: Mapping[str, Any]) -> str:
    """A sha256 of clips.json without its own `sha256`."""
    return files.hash_json({key: value for key, value in record.items() if key != "sha256"})


def _open(folder: Path, record: Mapping[str, Any], faults: Faults) -> Shard | None:
    """Open a shard by its header alone; None if the header cannot be used."""
    path = folder / HEADER_FILE
    if not path.exists():
        faults.add(path, "is missing")
        return None
    if record.get("headers", {}).get(folder.name) != files.sha256_file(path):
        faults.add(path, CHANGED)
        return None
    try:
        opened = Shard(folder, files.read_json(path))
        header = opened.header
        check_version(header, path)
        for key, value in record["common"].items():
            if header[key] != value:
                faults.add(path, f"{key} is {header[key]}, the cache's is {value}")
        for clip in clips_of(opened):
            if folder.name != shard_name(clip.chunk):
                faults.add(path, f"holds clip {clip.clip_id} of chunk {clip.chunk}")
        if set(header["arrays"]) != set(arrays_in(header)):
            faults.add(path, f"names the arrays {', '.join(header['arrays'])}")
            return None
        for entry in header["arrays"].values():
            entry["shape"], entry["bytes"], entry["sha256"]
        header["tile"], header["grid"]["rows"], header["grid"]["cols"], header["grid"]["cells"]
    except AvomniError as error:
        faults.add(path, error.what)
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        faults.add(path, f"is no header of a shard: {error!r}")
        return None
    return opened


def _check_hashes(
    shards: list[Shard], faults: Faults, progress: type[Bar]
) -> dict[Path, list[str]]:
    """Hash all arrays, several at a time; returns shard folder -> arrays that have changed."""
    arrays, wrong = [], {}
    for shard in shards:
        for name, entry in shard.header["arrays"].items():
            path = shard.folder / f"{name}.npy"
            size = path.stat().st_size if path.exists() else None
            if size == entry["bytes"]:
                arrays.append((path, entry))
            else:
                state = (
                    "is missing" if size is None else f"has {size:,} of {entry['bytes']:,} bytes"
                )
                faults.add(path, state)
                wrong.setdefault(shard.folder, []).append(name)
    stop, counted, total = threading.Event(), Tally(), sum(entry["bytes"] for _, entry in arrays)
    with (
        progress(total=total, unit="B", label="verify") as bar,
        concurrent.futures.ThreadPoolExecutor(min(workers.num_cores(), MAX_THREADS)) as threads,
    ):
        hashes = [threads.submit(_hash, path, counted, stop) for path, _ in arrays]
        try:
            left = set(hashes)
            while left:
                left = concurrent.futures.wait(left, POLL_S).not_done
                bar.update(counted.take())
        finally:
            stop.set()  # on Ctrl-C, what still reads ends at once
    for (path, entry), done in zip(arrays, hashes, strict=True):
        if (error := done.exception()) or done.result() != entry["sha256"]:
            faults.add(path, f"cannot be read: {error}" if error else CHANGED)
            wrong.setdefault(path.parent, []).append(path.stem)
    return wrong


def _hash(path: Path, counted: Tally, stop: threading.Event) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while not stop.is_set() and (size := file.readinto(block)):
            digest.update(block[:size])
            counted.add(size)
    return digest.hexdigest()


def leaks(clips: Sequence[CachedClip], num_frames: Sequence[int]) -> Iterator[str]:
    """Messages about clips that lie in the cache twice, and clips that share frames.

    Args:
        num_frames: Number of frames of each shard.
    """
    splits, stops = defaultdict(list), defaultdict(int)
    for clip in clips:
        splits[clip.clip_id].append(clip.split)
    for clip_id, names in splits.items():
        if len(names) > 1:
            where = " and ".join(sorted(set(names)))
            yield f"clip {clip_id} lies in the cache {len(names)} times, in {where}"
    for clip in sorted(clips, key=lambda clip: (clip.shard, clip.start)):
        if clip.start < stops[clip.shard] or clip.stop > num_frames[clip.shard]:
            yield (
                f"clip {clip.clip_id} has rows {clip.start} to {clip.stop} of "
                f"{shard_name(clip.chunk)}, which are not its alone"
            )
        stops[clip.shard] = clip.stop


def of_shard(shard: Shard) -> Iterator[tuple[str, str]]:
    """(file, fault) pairs of a shard whose files are those that its header names."""
    misfits = [*_ranges(shard)] or [*_misfits(shard)]
    yield from misfits or _clocks(shard)
    if not misfits and shard.storage == "jpeg":
        offsets = np.load(shard.folder / "offsets.npy", allow_pickle=False)
        size = shard.header["arrays"]["jpeg"]["shape"][0]
        if [offsets[0], offsets[-1]] != [0, size] or not (np.diff(offsets) > 0).all():
            what = f"the offsets do not rise from 0 to the {size:,} bytes of jpeg.npy"
            yield "offsets.npy", what


def _ranges(shard: Shard) -> Iterator[tuple[str, str]]:
    clips = clips_of(shard)
    rows_of = {name: entry["shape"][0] for name, entry in shard.header["arrays"].items()}
    for what, ranges, rows in (
        ("frames", [(clip.start, clip.stop) for clip in clips], shard.num_frames),
        ("track", [(clip.track_start, clip.track_stop) for clip in clips], rows_of["track"]),
        ("obstacles", [clip.obstacles for clip in clips], rows_of.get("obstacles", 0)),
    ):
        least = 0 if what == "obstacles" else 1  # a clip may have no other road users
        are_whole = all(start + least <= stop for start, stop in ranges)
        if not are_whole or [*(s for s, _ in ranges), rows] != [0, *(s for _, s in ranges)]:
            problem = f"the clips' ranges of {what} do not share out its {rows:,} rows"
            yield HEADER_FILE, problem


def _misfits(shard: Shard) -> Iterator[tuple[str, str]]:
    grid, (width, height) = shard.header["grid"], shard.header["tile"]
    num_frames, num_cameras = shard.num_frames, len(set(grid["cells"]) - {None})
    frames = [num_frames, grid["rows"] * height, grid["cols"] * width, 3]
    shapes = {
        "frames": frames,
        "crc32": [num_frames],
        "prints": [num_frames, 2, fingerprints.num_words(num_cameras)],
        "offsets": [num_frames + 1],
        "timestamps": [num_frames, num_cameras],
        "egomotion": [num_frames, len(EGOMOTION_COLUMNS)],
        "track": [None, len(TRACK_COLUMNS)],
        "obstacles": [None, len(shard.header.get("obstacle_columns", ()))],
    }
    for name, dtype in arrays_in(shard.header).items():
        entry = shard.header["arrays"][name]["shape"]
        expected = [entry[0] if n is None else n for n in shapes.get(name, entry)]
        try:
            array = np.load(shard.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy's parser lets many kinds through
            yield f"{name}.npy", f"is no .npy file: {error}"
            continue
        if array.dtype != np.dtype(dtype) or not list(array.shape) == entry == expected:
            actual = f"holds {list(array.shape)} {array.dtype}"
            yield f"{name}.npy", f"{actual}, it should hold {expected} {np.dtype(dtype)}"
    if (entry := shard.header.get("frames_shape", frames)) != frames:
        yield HEADER_FILE, f"frames are {entry}, by grid and tile {frames}"


def _clocks(shard: Shard) -> Iterator[tuple[str, str]]:
    times, stamps, track = np.array(shard.times), np.array(shard.timestamps), np.array(shard.track)
    others = np.array(shard.obstacles) if "obstacles" in shard.header["arrays"] else track[:0]
    for name, array in (("egomotion", shard.egomotion), ("track", track), ("obstacles", others)):
        if not np.isfinite(array).all():
            yield f"{name}.npy", "holds numbers that are not finite"
    for clip in clips_of(shard):
        wanted, taken = times[clip.start : clip.stop], stamps[clip.start : clip.stop]
        poses = track[clip.track_start : clip.track_stop, 0]
        seen = others[slice(*clip.obstacles), 0]
        for name, is_right, what in (
            ("times", (np.diff(wanted) > 0).all(), "the times do not rise"),
            ("timestamps", (np.diff(taken, axis=0) >= 0).all(), "a camera's clock goes back"),
            (
                "timestamps",
                (taken <= wanted[:, None]).all(),
                "a frame is later than its wanted time",
            ),
            ("track", (np.diff(poses) > 0).all(), "the times do not rise"),
            ("obstacles", (np.diff(seen) >= 0).all(), "the times go back"),
            ("obstacles", (seen <= wanted[-1]).all(), "a label is later than the last frame"),
        ):
            if not is_right:
                yield f"{name}.npy", f"clip {clip.clip_id}: {what}"


def damaged_frames(shard: Shard) -> Iterator[str]:
    """Messages that name the damaged frames of a shard of which only jpeg.npy is damaged."""
    entry = shard.header["arrays"]["jpeg"]
    try:  # the file may be gone, or cut
        start = entry["bytes"] - entry["shape"][0]
        blob = np.memmap(shard.folder / "jpeg.npy", np.uint8, "r", offset=start)
    except (ValueError, OSError):
        return
    offsets, crc32 = (
        np.load(shard.folder / f"{n}.npy", allow_pickle=False).tolist()
        for n in ("offsets", "crc32")
    )
    wrong = [
        row
        for row, crc in enumerate(crc32)
        if zlib.crc32(blob[offsets[row] : offsets[row + 1]]) != crc
    ]
    for row in wrong[:MAX_FRAMES_NAMED]:
        yield f"{shard.describe(row).partition(', ')[2]} is damaged"
    if len(wrong) > MAX_FRAMES_NAMED:
        yield f"{len(wrong) - MAX_FRAMES_NAMED:,} more frames are damaged"


def of_table(rows: Sequence[Mapping[str, Any]], clips: Sequence[CachedClip]) -> Iterator[str]:
    """Faults of the rows of clips.json, compared with the clips of the shards."""
    held = {clip.clip_id: clip for clip in clips}
    counts = Counter(row["clip_id"] for row in rows)
    for clip_id, count in counts.items():
        if count > 1:
            yield f"clip {clip_id} has {count} rows"
    for row in rows:
        clip, name = held.get(row["clip_id"]), f"clip {row['clip_id']}"
        if row["split"] not in SPLITS:
            yield f"{name} is of the split {row['split']!r}"
        if row["state"] not in STATES:
            yield f"{name} is in the state {row['state']!r}"
        elif (clip is not None) != (row["state"] == "ok"):
            yield f"{name} is {row['state']} and lies in {'a' if clip else 'no'} shard"
        elif clip:
            here = (row["split"], row["chunk"], row.get("num_frames", len(clip)))
            there = (clip.split, clip.chunk, len(clip))
            if here != there:
                yield f"{name} is {here} here and {there} in its shard (split, chunk, frames)"
    for clip_id in sorted(set(held) - set(counts)):
        yield f"clip {clip_id} lies in a shard and has no row"
