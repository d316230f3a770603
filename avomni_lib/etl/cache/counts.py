"""The counts of a cache: ranges against rows, clocks, offsets, clips.json against the shards."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from avomni_lib.etl.cache import shard
from avomni_lib.etl.clip import prints

SPLITS = ("train", "val", "test")
STATES = ("ok", "damaged", "lost")
MAX_FRAMES_NAMED = 5


def leaks(clips: Sequence[shard.CachedClip], num_frames: Sequence[int]) -> Iterator[str]:
    """What splits share: a clip that lies in the cache twice, and clips that share frames.

    Args:
        clips: All of a cache.
        num_frames: Of each shard.
    """
    splits, stops = defaultdict(list), defaultdict(int)
    for clip in clips:
        splits[clip.clip_id].append(clip.split)
    for clip_id, own in splits.items():
        if len(own) > 1:
            names = " and ".join(sorted(set(own)))
            yield f"clip {clip_id} lies in the cache {len(own)} times, in {names}"
    for clip in sorted(clips, key=lambda clip: (clip.shard, clip.start)):
        if clip.start < stops[clip.shard] or clip.stop > num_frames[clip.shard]:
            yield (
                f"clip {clip.clip_id} has rows {clip.start} to {clip.stop} of "
                f"{shard.shard_name(clip.chunk)}, which are not its alone"
            )
        stops[clip.shard] = clip.stop


def of_shard(each: shard.Shard) -> Iterator[tuple[str, str]]:
    """(file, what is wrong with it) of a shard whose arrays are as its header says."""
    found = [*_ranges(each)] or [*_shapes(each)]
    yield from found or _clocks(each)
    if not found and each.storage == "jpeg":
        offsets = np.load(each.folder / "offsets.npy", allow_pickle=False)
        size = each.header["arrays"]["jpeg"]["shape"][0]
        if [offsets[0], offsets[-1]] != [0, size] or not (np.diff(offsets) > 0).all():
            what = f"the offsets do not rise from 0 to the {size:,} bytes of jpeg.npy"
            yield "offsets.npy", what


def _ranges(each: shard.Shard) -> Iterator[tuple[str, str]]:
    clips = shard.clips_of(each)
    rows_of = {name: said["shape"][0] for name, said in each.header["arrays"].items()}
    for what, ranges, rows in (
        ("frames", [(clip.start, clip.stop) for clip in clips], each.num_frames),
        ("track", [(clip.track_start, clip.track_stop) for clip in clips], rows_of["track"]),
        ("obstacles", [clip.obstacles for clip in clips], rows_of.get("obstacles", 0)),
    ):
        least = 0 if what == "obstacles" else 1  # nobody may be there
        are_whole = all(start + least <= stop for start, stop in ranges)
        if not are_whole or [*(s for s, _ in ranges), rows] != [0, *(s for _, s in ranges)]:
            problem = f"the clips' ranges of {what} do not share out its {rows:,} rows"
            yield shard.HEADER_FILE, problem


def _shapes(each: shard.Shard) -> Iterator[tuple[str, str]]:
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
    columns = {"track": shard.TRACK_COLUMNS, "obstacles": each.header.get("obstacle_columns", ())}
    for name, said in each.header["arrays"].items():
        shape = expected.get(name, said["shape"])
        if name in columns:
            shape = [said["shape"][0], len(columns[name])]
        if said["shape"] != shape:
            yield f"{name}.npy", f"is {said['shape']}, it should be {shape}"
    if (said := each.header.get("frames_shape", frames)) != frames:
        yield shard.HEADER_FILE, f"frames are {said}, by grid and tile {frames}"


def _clocks(each: shard.Shard) -> Iterator[tuple[str, str]]:
    times, stamps, track = np.array(each.times), np.array(each.timestamps), np.array(each.track)
    others = np.array(each.obstacles) if "obstacles" in each.header["arrays"] else track[:0]
    for name, array in (("egomotion", each.egomotion), ("track", track), ("obstacles", others)):
        if not np.isfinite(array).all():
            yield f"{name}.npy", "holds numbers that are not finite"
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
                yield f"{name}.npy", f"clip {clip.clip_id}: {what}"


def damaged_frames(each: shard.Shard) -> Iterator[str]:
    """Names the frames of a shard of which jpeg.npy is damaged and all else is whole."""
    said = each.header["arrays"]["jpeg"]
    try:  # the file may be gone, or cut
        start = said["bytes"] - said["shape"][0]
        blob = np.memmap(each.folder / "jpeg.npy", np.uint8, "r", offset=start)
    except (ValueError, OSError):
        return
    offsets, crc32 = (
        np.load(each.folder / f"{n}.npy", allow_pickle=False).tolist() for n in ("offsets", "crc32")
    )
    wrong = [
        row
        for row, crc in enumerate(crc32)
        if zlib.crc32(blob[offsets[row] : offsets[row + 1]]) != crc
    ]
    for row in wrong[:MAX_FRAMES_NAMED]:
        yield f"{each.describe(row).partition(', ')[2]} is damaged"
    if len(wrong) > MAX_FRAMES_NAMED:
        yield f"{len(wrong) - MAX_FRAMES_NAMED:,} more frames are damaged"


def of_table(rows: Sequence[Mapping[str, Any]], clips: Sequence[shard.CachedClip]) -> Iterator[str]:
    """What is wrong with the rows of clips.json, against the clips of the shards."""
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
