"""Leaks: evaluation data that the model has seen in training.

These are refused: a clip in two splits; clips that share frames; a clip whose split differs from
the frozen one; a held-out clip in a recorded list of training clips; and near-duplicates, which are
clips of different splits that show the same stretch of a drive (copied, re-encoded, or cut at
another moment).

Two clips are near-duplicates if the pictures of consecutive frames agree by perceptual hash *and*
the car moves alike meanwhile. Motion alone is not enough: egomotion is local to a clip, so all
parked clips move alike, as do all clips that drive straight on at the same speed. Pictures alone
are not enough either: a car that stands at the same place at another time and leaves differently is
another drive.
"""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib import files, workers
from avomni_lib.dataset.select import split
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import windows
from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS, Cache, CachedClip
from avomni_lib.etl.clip import fingerprints as prints_of
from avomni_lib.params import Params
from avomni_lib.plan import Bar

MAX_NAMED = 3
RECORD_FILE = "record.json"  # of an adapter, a merged model and the tiny base
# Minimum overlap of two clips: consecutive frames and duration.
MIN_FRAMES, MIN_S = 4, 1.0
# Largest difference of poses relative to the overlap's first frame. A clip that was cut again is
# sampled up to half a sampled frame earlier or later, and its egomotion was estimated again.
MAX_APART_M, MAX_APART_SHARE, MAX_APART_RAD = 0.3, 0.02, 0.035
ROUNDING_M = 1e-6
QUERIES_AT_A_TIME, FRAMES_AT_A_TIME = 64, 1 << 10  # sized to fit a core's cache


def check(cache: Cache, progress: type[Bar] = Bar) -> None:
    """Refuse a cache in which splits share a drive.

    Raises:
        AvomniError: naming the pairs and what agrees in them.
    """
    leaks = near_duplicates(cache, progress)
    if leaks:
        named = "\n".join(f"  {leak}" for leak in leaks[:MAX_NAMED])
        more = f"\n  and {len(leaks) - MAX_NAMED} more" if len(leaks) > MAX_NAMED else ""
        raise AvomniError(
            f"clips of different splits are near-duplicates ({len(leaks)} such pairs):\n"
            f"{named}{more}",
            where=str(cache.folder),
            fix="leave one clip of each pair out: name the clips to keep in "
            "download.clips.clip_ids and run 02_download and 03_etl again; if the pair is of the "
            "data set's own making, report it to its makers",
        )


def check_training_lists(
    held_out_ids: Collection[str], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to score a model on clips that it, or a model it was derived from, was trained on.

    Args:
        records: Description of a model ("the adapter in …") -> its record; records without
            `training_clip_ids` are skipped.

    Raises:
        AvomniError: a held-out clip is in one of the lists.
    """
    held_out = set(held_out_ids)
    for name, record in records.items():
        seen = sorted(held_out & set(record.get("training_clip_ids") or ()))
        if seen:
            raise AvomniError(
                f"{name} was trained on {len(seen)} of the {len(held_out)} clips held out, "
                f"such as {seen[0]}",
                where=f"clip {seen[0]}",
                fix="if the splits have changed since, run 05_train again; a base model that knows "
                "them cannot be scored on them: choose another one (model.base_model), or another "
                "evaluation.split",
            )


def base_records(
    base_model: str, locate: Callable[[str], str | Path] = files.resolve
) -> dict[str, dict[str, Any]]:
    """The records of a base model and of its own base models, as far as they are on this machine.

    A merged model keeps the record of the adapter that was merged into it, which names its base
    model in turn. A model from the hub has no record: its training data is not known.

    Args:
        base_model: As in `model.base_model`.
        locate: Name -> its folder, or a path that is no folder.

    Returns:
        "the base model NAME" -> the content of its record.json.

    Raises:
        AvomniError: a record is not JSON.
    """
    records: dict[str, dict[str, Any]] = {}
    name: str | None = base_model
    while name and f"the base model {name}" not in records:
        path = Path(locate(name)) / RECORD_FILE
        if not path.is_file():
            break
        records[f"the base model {name}"] = record = files.read_json(path)
        name = record.get("base_model")
    return records


def check_all(
    p: Params,
    cache: Cache,
    held_out_ids: Collection[str] = (),
    adapter_record: Mapping[str, Any] | None = None,
    locate: Callable[[str], str | Path] = files.resolve,
    progress: type[Bar] = Bar,
) -> None:
    """All checks of this module, as 03_etl, 05_train and 06_evaluate call them.

    Args:
        adapter_record: Record of the adapter to score; None before there is one.
        locate: As in `base_records`.

    Raises:
        AvomniError: a clip is in two splits, shares frames with another one, or is not in its
            frozen split; a held-out clip was trained on; or there are near-duplicates.
    """
    windows.check_leaks(cache)
    split.check(p, {clip.clip_id: clip.split for clip in cache.clips})
    records = base_records(p.model.base_model, locate)
    check_training_lists(held_out_ids, {"the adapter": adapter_record or {}} | records)
    check(cache, progress)


@dataclass(frozen=True)
class Leak:
    """A stretch shared by two clips of different splits.

    Attributes:
        starts: The stretch's first frame in each clip.
        num_frames: Length in sampled frames.
        different: Mean share of differing hash bits, 0 to `prints.MAX_DIFFERENT`.
        apart_m: Largest distance between the poses, relative to the first frame.
        path_m: Length of the path driven in it.
    """

    clip_ids: tuple[str, str]
    splits: tuple[str, str]
    starts: tuple[int, int]
    num_frames: int
    seconds: float
    different: float
    apart_m: float
    path_m: float

    def __str__(self) -> str:
        one, other = (
            f"{clip_id} ({split}) frames {start} to {start + self.num_frames - 1}"
            for clip_id, split, start in zip(self.clip_ids, self.splits, self.starts, strict=True)
        )
        return (
            f"{one} and {other}: pictures agree over {self.num_frames} frames ({self.seconds:.1f} "
            f"s; {self.different:.1%} of the hash's bits differ), poses within "
            f"{self.apart_m:.2f} m over {self.path_m:.1f} m"
        )


def near_duplicates(cache: Cache, progress: type[Bar] = Bar) -> list[Leak]:
    """Near-duplicates among clips of different splits: each pair once, longest stretch first.

    Overlaps shorter than `MIN_S` and clips with too little texture are not detected. The cost is
    quadratic in the number of clips: 2,000 clips take 3 CPU seconds, 10,000 take 47.

    Raises:
        AvomniError: a file of the cache is cut short.
    """
    if len({clip.split for clip in cache.clips}) < 2:
        return []
    prints = [np.array(cache.shards[c.shard].prints[c.start : c.stop]) for c in cache.clips]
    leaks = []
    for one, other in sorted(_candidates(cache, prints, progress)):
        stretches = list(_stretches(cache, (one, other), (prints[one], prints[other])))
        if stretches:  # the longest; among equals, the one with the closest pictures
            leaks.append(max(stretches, key=lambda leak: (leak.num_frames, -leak.different)))
    return sorted(leaks, key=lambda leak: -leak.num_frames)


def _candidates(
    cache: Cache, prints: Sequence[np.ndarray], progress: type[Bar]
) -> set[tuple[int, int]]:
    """Pairs of clips of different splits that may share a stretch.

    At the first frame of a shared stretch the pictures agree, and over its minimum length both cars
    cover the same distance. So frames are sorted by the distance covered, and each is compared only
    with its neighbours in this order; no shared stretch is missed.
    """
    length, enough = _least_frames(cache), prints_of.least_common(len(cache.cameras))
    steps = [
        poses[length - 1 :] - poses[: max(len(poses) - length + 1, 0)]
        for poses in (_poses(cache, clip) for clip in cache.clips)
    ]
    clip = np.repeat(np.arange(len(steps)), [len(clip_steps) for clip_steps in steps])
    step = np.concatenate(steps)
    starts = np.concatenate(
        [hashes[: len(clip_steps)] for hashes, clip_steps in zip(prints, steps, strict=True)]
    )
    far = np.linalg.norm(step[:, :3], axis=1)
    order = np.argsort(far, kind="stable")
    order = order[prints_of.has_texture(starts[order], enough)]
    clip, far, starts = clip[order], far[order], starts[order]
    apart = _may_be_apart(step[order, 7]) + ROUNDING_M
    splits = np.array([cached.split for cached in cache.clips])[clip]
    candidates: set[tuple[int, int]] = set()

    def compare(
        queries: np.ndarray, later: np.ndarray, lows: np.ndarray, highs: np.ndarray
    ) -> set[tuple[int, int]]:
        pairs: set[tuple[int, int]] = set()
        others = later[lows.min() : highs.max()]
        for at in range(0, len(others), FRAMES_AT_A_TIME):
            block = others[at : at + FRAMES_AT_A_TIME]
            rows, columns = prints_of.agreeing(starts[queries], starts[block], enough)
            both = np.sort(np.stack([clip[queries[rows]], clip[block[columns]]], axis=1), axis=1)
            pairs.update(map(tuple, both.tolist()))
        return pairs

    with (
        progress(total=len(order), unit="frame", label="near-duplicates") as bar,
        concurrent.futures.ThreadPoolExecutor(workers.num_cores()) as threads,
    ):
        for split in sorted(set(splits)):  # each against the splits that follow it
            queries, later = np.flatnonzero(splits == split), np.flatnonzero(splits > split)
            lows = np.searchsorted(far[later], far[queries] - apart[queries])
            highs = np.searchsorted(far[later], far[queries] + apart[queries], "right")
            cuts = range(QUERIES_AT_A_TIME, len(queries), QUERIES_AT_A_TIME)
            blocks, low_blocks, high_blocks = (np.split(a, cuts) for a in (queries, lows, highs))
            results = threads.map(compare, blocks, itertools.repeat(later), low_blocks, high_blocks)
            for block, pairs in zip(blocks, results, strict=True):
                candidates |= pairs
                bar.update(len(block))
    return candidates


def _stretches(
    cache: Cache, places: tuple[int, int], prints: tuple[np.ndarray, np.ndarray]
) -> Iterator[Leak]:
    """All stretches, at any shift, in which the pictures agree and the cars move alike."""
    one, other = (cache.clips[place] for place in places)
    alike, share = prints_of.agree(*prints, prints_of.least_common(len(cache.cameras)))
    poses = _poses(cache, one), _poses(cache, other)
    least = _least_frames(cache)
    for shift in range(least - len(one), len(other) - least + 1):
        before = max(-shift, 0), max(shift, 0)  # frames of each before the other one starts
        closeness = np.diagonal(share, shift)
        for start, stop in _runs(np.diagonal(alike, shift), least):
            first, second = (poses[i][before[i] + start : before[i] + stop] for i in range(2))
            for begin, end, apart_m, path_m in _moves_alike(first, second, least):
                begin, end = start + begin, start + end
                yield Leak(
                    clip_ids=(one.clip_id, other.clip_id),
                    splits=(one.split, other.split),
                    starts=(before[0] + begin, before[1] + begin),
                    num_frames=end - begin,
                    seconds=(end - begin - 1) / cache.sample_hz,
                    different=float(closeness[begin:end].mean()),
                    apart_m=apart_m,
                    path_m=path_m,
                )


def _least_frames(cache: Cache) -> int:
    """Minimum number of consecutive frames that a stretch must have."""
    return max(MIN_FRAMES, round(MIN_S * cache.sample_hz) + 1)


def _runs(alike: np.ndarray, least: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of true values with at least this length."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], alike.astype(np.int8), [0]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        if stop - start >= least:
            yield start, stop


def _poses(cache: Cache, clip: CachedClip) -> np.ndarray:
    """(frames, 8) float64: x, y, z, qx, qy, qz, qw and distance_m at a clip's frames."""
    columns = [EGOMOTION_COLUMNS.index(name) for name in (*"xyz", "qx", "qy", "qz", "qw")]
    columns.append(EGOMOTION_COLUMNS.index("distance_m"))
    return np.array(cache.shards[clip.shard].egomotion[clip.start : clip.stop, columns])


def _moves_alike(
    one: np.ndarray, other: np.ndarray, least: int
) -> Iterator[tuple[int, int, float, float]]:
    """Stretches in which two cars move alike, each relative to its pose at the first frame.

    Args:
        one, other: (frames, 8) as returned by `_poses`.

    Yields:
        (first frame, one past the last, largest distance in m, metres driven).
    """
    begin = 0
    while begin + least <= len(one):
        seen = [_seen_from_first(poses[begin:]) for poses in (one, other)]
        apart = np.linalg.norm(seen[0][0] - seen[1][0], axis=1)
        turned = (seen[0][1].inv() * seen[1][1]).magnitude()
        path, other_path = (poses[begin:, 7] - poses[begin, 7] for poses in (one, other))
        allowed = np.minimum(_may_be_apart(path), _may_be_apart(other_path))
        off = np.flatnonzero((apart > allowed) | (turned > MAX_APART_RAD))
        end = begin + (int(off[0]) if len(off) else len(apart))
        if end - begin >= least:
            last = end - begin
            yield begin, end, float(apart[:last].max()), float(path[last - 1])
        begin = end


def _may_be_apart(path_m: np.ndarray) -> np.ndarray:
    """Largest allowed distance of poses (m) after a path of this length."""
    allowed: np.ndarray = MAX_APART_M + MAX_APART_SHARE * np.abs(path_m)
    return allowed


def _seen_from_first(poses: np.ndarray) -> tuple[np.ndarray, Rotation]:
    """Positions (frames, 3), m, and rotations in the rig's frame at the first frame."""
    turns = Rotation.from_quat(poses[:, 3:7])
    back = turns[0].inv()
    return back.apply(poses[:, :3] - poses[0, :3]), back * turns
