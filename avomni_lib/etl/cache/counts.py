"""The counts of a cache: ranges against rows, clocks, offsets, clips.json against the shards."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.etl.cache import shard
from avomni_lib.etl.clip import prints

SPLITS = ("train", "val", "test")
STATES = ("ok", "damaged", "lost")
MAX_FRAMES_NAMED = 5


@dataclass
class CacheFaults:
    """What is wrong with a cache, each with the file concerned.

    Attributes:
        folder: The cache.
        lines: For people.
        shards: The folders that are to be made again.
    """

    folder: Path
    lines: list[str] = field(default_factory=list)
    shards: set[Path] = field(default_factory=set)

    def add(self, path: Path, what: str) -> None:
        self.lines.append(f"{path.relative_to(self.folder)}: {what}")
        if path.parent != self.folder:
            self.shards.add(path.parent)


def leaks(clips: Sequence[shard.CachedClip], num_frames: Sequence[int]) -> Iterator[str]:
    """What splits share: a clip that lies in the cache twice, and clips that share frames.

    Args:
        clips: All of a cache.
        num_frames: Of each shard.
    """
    splits, by_shard = defaultdict(list), defaultdict(list)
    for clip in clips:
        splits[clip.clip_id].append(clip.split)
        by_shard[clip.shard].append(clip)
    for clip_id, own in splits.items():
        if len(own) > 1:
            names = " and ".join(sorted(set(own)))
            yield f"clip {clip_id} lies in the cache {len(own)} times, in {names}"
    for number, shard_clips in by_shard.items():
        stop = 0
        for clip in sorted(shard_clips, key=lambda clip: clip.start):
            if clip.start < stop or clip.stop > num_frames[number]:
                yield (
                    f"clip {clip.clip_id} has rows {clip.start} to {clip.stop} of "
                    f"{shard.shard_name(clip.chunk)}, which are not its alone"
                )
            stop = clip.stop


def check_shard(each: shard.Shard, found: CacheFaults) -> None:
    """Ranges, shapes, clocks and offsets of a shard whose arrays are as its header says."""
    if _check_ranges(each, found) and _check_shapes(each, found):
        _check_clocks(each, found)
        if each.storage == "jpeg":
            _check_offsets(each, found)


def _check_ranges(each: shard.Shard, found: CacheFaults) -> bool:
    clips = shard.clips_of(each)
    rows_of = {name: said["shape"][0] for name, said in each.header["arrays"].items()}
    for what, ranges, rows in (
        ("frames", [(clip.start, clip.stop) for clip in clips], each.num_frames),
        ("track", [(clip.track_start, clip.track_stop) for clip in clips], rows_of["track"]),
        ("obstacles", [clip.obstacles for clip in clips], rows_of.get("obstacles", 0)),
    ):
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        least = 0 if what == "obstacles" else 1  # nobody may be there
        are_whole = all(start + least <= stop for start, stop in ranges)
        if not are_whole or [*starts, rows] != [0, *stops]:
            path = each.folder / shard.HEADER_FILE
            found.add(path, f"the clips' ranges of {what} do not share out its {rows:,} rows")
            return False
    return True


def _check_shapes(each: shard.Shard, found: CacheFaults) -> bool:
    grid, (width, height) = each.header["grid"], each.header["tile"]
    num_cameras = len(set(grid["cells"]) - {None})
    frames = [each.num_frames, grid["rows"] * height, grid["cols"] * width, 3]
    expected = {
        "frames": frames,
        "crc32": [each.num_frames],
        "prints": [each.num_frames, 2, prints.num_words(num_cameras)],
        "offsets": [each.num_frames + 1],
        "timestamps": [each.num_frames, num_cameras],
        "egomotion": [each.num_frames, len(shard.EGOMOTION_COLUMNS)],
    }
    before = len(found.lines)
    for name, said in each.header["arrays"].items():
        shape = expected.get(name, said["shape"])
        if name in ("track", "obstacles"):
            columns = shard.TRACK_COLUMNS if name == "track" else each.header["obstacle_columns"]
            shape = [said["shape"][0], len(columns)]
        if said["shape"] != shape:
            found.add(each.folder / f"{name}.npy", f"is {said['shape']}, it should be {shape}")
    if each.header.get("frames_shape", frames) != frames:
        said = each.header["frames_shape"]
        found.add(each.folder / shard.HEADER_FILE, f"frames are {said}, by grid and tile {frames}")
    return len(found.lines) == before


def _check_clocks(each: shard.Shard, found: CacheFaults) -> None:
    times, stamps, track = np.array(each.times), np.array(each.timestamps), np.array(each.track)
    others = np.array(each.obstacles) if "obstacles" in each.header["arrays"] else track[:0]
    for name, array in (("egomotion", each.egomotion), ("track", track), ("obstacles", others)):
        if not np.isfinite(array).all():
            found.add(each.folder / f"{name}.npy", "holds numbers that are not finite")
    for clip in shard.clips_of(each):
        own, taken = times[clip.start : clip.stop], stamps[clip.start : clip.stop]
        poses = track[clip.track_start : clip.track_stop, 0]
        seen = others[slice(*clip.obstacles), 0]
        for name, is_right, what in (
            ("times", (np.diff(own) > 0).all(), "the times do not rise"),
            ("timestamps", (np.diff(taken, axis=0) >= 0).all(), "a camera's clock goes back"),
            ("timestamps", (taken <= own[:, None]).all(), "a frame is later than its wanted time"),
            ("track", (np.diff(poses) > 0).all(), "the times do not rise"),
            ("obstacles", (np.diff(seen) >= 0).all(), "the times go back"),
            ("obstacles", (seen <= own[-1]).all(), "a label is later than the last frame"),
        ):
            if not is_right:
                found.add(each.folder / f"{name}.npy", f"clip {clip.clip_id}: {what}")


def _check_offsets(each: shard.Shard, found: CacheFaults) -> None:
    path = each.folder / "offsets.npy"
    offsets, num_bytes = (
        np.load(path, allow_pickle=False),
        each.header["arrays"]["jpeg"]["shape"][0],
    )
    if [offsets[0], offsets[-1]] != [0, num_bytes] or not (np.diff(offsets) > 0).all():
        found.add(path, f"the offsets do not rise from 0 to the {num_bytes:,} bytes of jpeg.npy")


def name_frames(each: shard.Shard, found: CacheFaults) -> None:
    """Name the frames of a shard of which jpeg.npy is damaged and all else is whole."""
    path, said = each.folder / "jpeg.npy", each.header["arrays"]["jpeg"]
    try:  # the file may be gone, or cut
        blob = np.memmap(path, np.uint8, "r", offset=said["bytes"] - said["shape"][0])
    except (ValueError, OSError):
        return
    offsets, crc32 = (
        np.load(each.folder / f"{name}.npy", allow_pickle=False) for name in ("offsets", "crc32")
    )
    spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), crc32.tolist(), strict=True)
    wrong = [n for n, (start, stop, crc) in enumerate(spans) if zlib.crc32(blob[start:stop]) != crc]
    for row in wrong[:MAX_FRAMES_NAMED]:
        found.add(path, f"{each.describe(row).partition(', ')[2]} is damaged")
    if len(wrong) > MAX_FRAMES_NAMED:
        found.add(path, f"{len(wrong) - MAX_FRAMES_NAMED:,} more frames are damaged")


def check_table(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    clips: Sequence[shard.CachedClip],
    found: CacheFaults,
) -> None:
    """The rows of clips.json, which is `path`, against the clips of the shards."""
    held = {clip.clip_id: clip for clip in clips}
    counts = Counter(row["clip_id"] for row in rows)
    for clip_id, count in counts.items():
        if count > 1:
            found.add(path, f"clip {clip_id} has {count} rows")
    for row in rows:
        clip, name = held.get(row["clip_id"]), f"clip {row['clip_id']}"
        if row["split"] not in SPLITS:
            found.add(path, f"{name} is of the split {row['split']!r}")
        if row["state"] not in STATES:
            found.add(path, f"{name} is in the state {row['state']!r}")
        elif (clip is not None) != (row["state"] == "ok"):
            where = "lies in a shard" if clip else "lies in no shard"
            found.add(path, f"{name} is {row['state']} and {where}")
        elif clip:
            here = (row["split"], row["chunk"], row.get("num_frames", len(clip)))
            there = (clip.split, clip.chunk, len(clip))
            if here != there:
                found.add(
                    path, f"{name} is {here} here and {there} in its shard (split, chunk, frames)"
                )
    for clip_id in sorted(set(held) - set(counts)):
        found.add(path, f"clip {clip_id} lies in a shard and has no row")
