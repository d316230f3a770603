"""Leaks: what a score is made on and the model has seen before.

A clip in two splits, clips that share frames, so that windows straddle a split, a clip that is not
of the split that was frozen, a held-out clip in a recorded training list, and near-duplicates: two
clips of different splits that hold one stretch of the same drive.

Copied, encoded again or cut from another moment on, it lies in both under two names. Clips are
near-duplicates where the pictures of consecutive frames agree by perceptual hash *and* the car
moves alike meanwhile. Motion alone proves nothing: egomotion is local to a clip, so all parked
clips move alike, and so do all that go straight on at one speed. Nor do pictures alone: who stands
at the same place at another time and drives off otherwise is another drive.
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
from avomni_lib.etl.clip import prints as prints_of
from avomni_lib.params import Params
from avomni_lib.plan import Bar

MAX_NAMED = 3
RECORD_FILE = "record.json"  # of an adapter, a merged model and the tiny base
# What two clips must share: so many consecutive frames, and for so long.
MIN_FRAMES, MIN_S = 4, 1.0
# How far apart the poses may be, seen from the overlap's first frame. A clip cut anew is sampled up
# to half a sampled frame earlier or later, and its egomotion is estimated anew.
MAX_APART_M, MAX_APART_SHARE, MAX_APART_RAD = 0.3, 0.02, 0.035
ROUNDING_M = 1e-6
QUERIES_AT_A_TIME, FRAMES_AT_A_TIME = 64, 1 << 10  # whose bits fit a core's own cache


def check(cache: Cache, progress: type[Bar] = Bar) -> None:
    """Refuse a cache in which splits share a drive.

    Raises:
        AvomniError: naming the pairs and what agrees in them.
    """
    found = near_duplicates(cache, progress)
    if found:
        named = "\n".join(f"  {leak}" for leak in found[:MAX_NAMED])
        more = f"\n  and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        raise AvomniError(
            f"clips of different splits are near-duplicates ({len(found)} such pairs):\n"
            f"{named}{more}",
            where=str(cache.folder),
            fix="leave one clip of each pair out: name the clips to keep in "
            "download.clips.clip_ids and run 02_download and 03_etl again; if the pair is of the "
            "data set's own making, report it to its makers",
        )


def check_training_lists(
    held_out_ids: Collection[str], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to score a model on what it, or what it was made from, was trained on.

    Args:
        held_out_ids: The clips that are scored on.
        records: What is asked, in words ("the adapter in …") -> its record; one that names no
            `training_clip_ids` cannot be asked.

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
    """The records of a base model and of what it was made from in turn, as far as they lie here.

    A merged model keeps the record of the adapter that was folded into it, and that one names its
    own base model. A model of the hub has no such record: what it has seen nobody can tell.

    Args:
        base_model: As `model.base_model` names it.
        locate: Such a name -> its folder, or something that is no folder.

    Returns:
        "the base model NAME" -> what stands in its record.json.

    Raises:
        AvomniError: a record is not JSON.
    """
    found: dict[str, dict[str, Any]] = {}
    name: str | None = base_model
    while name and f"the base model {name}" not in found:
        path = Path(locate(name)) / RECORD_FILE
        if not path.is_file():
            break
        found[f"the base model {name}"] = record = files.read_json(path)
        name = record.get("base_model")
    return found


def check_all(
    p: Params,
    cache: Cache,
    held_out_ids: Collection[str] = (),
    adapter_record: Mapping[str, Any] | None = None,
    locate: Callable[[str], str | Path] = files.resolve,
    progress: type[Bar] = Bar,
) -> None:
    """Everything that stops a run: what 03_etl, 05_train and 06_evaluate call.

    Args:
        held_out_ids: The clips that will be scored on.
        adapter_record: Of the adapter that is scored; None before there is one.
        locate: As `base_records` takes it.
        progress: One unit a frame that is compared.

    Raises:
        AvomniError: a clip lies in two splits, or its windows hold another clip's frames; it is not
            of the split that was frozen; a held-out clip was trained on; near-duplicates.
    """
    windows.check_leaks(cache)
    split.check(p, {clip.clip_id: clip.split for clip in cache.clips})
    records = base_records(p.model.base_model, locate)
    check_training_lists(held_out_ids, {"the adapter": adapter_record or {}} | records)
    check(cache, progress)


@dataclass(frozen=True)
class Leak:
    """A stretch that two clips of different splits share.

    Attributes:
        clip_ids, splits: Of the two.
        starts: The stretch's first frame in each.
        num_frames: Its length in sampled frames.
        seconds: Its duration.
        different: Mean share of different bits of the hashes, 0 to `prints.MAX_DIFFERENT`.
        apart_m: How far apart the poses are at most, seen from the first frame.
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
    """The near-duplicates among clips of different splits, each pair once, the longest first.

    Shorter overlaps than `MIN_S` are not found, nor clips whose frames have too little texture. The
    work grows with the square of the clips: 2,000 clips take 3 CPU seconds, 10,000 take 47.

    Args:
        progress: One unit a frame.

    Raises:
        AvomniError: a file of the cache is cut short.
    """
    if len({clip.split for clip in cache.clips}) < 2:
        return []
    prints = [np.array(cache.shards[c.shard].prints[c.start : c.stop]) for c in cache.clips]
    leaks = []
    for one, other in sorted(_candidates(cache, prints, progress)):
        stretches = list(_stretches(cache, (one, other), (prints[one], prints[other])))
        if stretches:  # the longest, of equals the one whose pictures are closest
            leaks.append(max(stretches, key=lambda leak: (leak.num_frames, -leak.different)))
    return sorted(leaks, key=lambda leak: -leak.num_frames)


def _candidates(
    cache: Cache, prints: Sequence[np.ndarray], progress: type[Bar]
) -> set[tuple[int, int]]:
    """Pairs of clips of different splits that may share a stretch.

    At a stretch's first frame the pictures agree, and over the least frames that a stretch has both
    cars come equally far. So frames are sorted by how far the car comes, and each is compared with
    those nearby in this order only; that leaves out no stretch.
    """
    length, enough = _least_frames(cache), prints_of.least_common(len(cache.cameras))
    steps = [
        poses[length - 1 :] - poses[: max(len(poses) - length + 1, 0)]
        for poses in (_poses(cache, clip) for clip in cache.clips)
    ]
    clip = np.repeat(np.arange(len(steps)), [len(own) for own in steps])
    step = np.concatenate(steps)
    starts = np.concatenate([own[: len(ways)] for own, ways in zip(prints, steps, strict=True)])
    far = np.linalg.norm(step[:, :3], axis=1)
    order = np.argsort(far, kind="stable")
    order = order[prints_of.tells(starts[order], enough)]
    clip, far, starts = clip[order], far[order], starts[order]
    apart = _may_be_apart(step[order, 7]) + ROUNDING_M
    splits = np.array([each.split for each in cache.clips])[clip]
    found: set[tuple[int, int]] = set()

    def compare(
        own: np.ndarray, later: np.ndarray, lows: np.ndarray, highs: np.ndarray
    ) -> set[tuple[int, int]]:
        pairs: set[tuple[int, int]] = set()
        others = later[lows.min() : highs.max()]
        for at in range(0, len(others), FRAMES_AT_A_TIME):
            block = others[at : at + FRAMES_AT_A_TIME]
            rows, columns = prints_of.agreeing(starts[own], starts[block], enough)
            both = np.sort(np.stack([clip[own[rows]], clip[block[columns]]], axis=1), axis=1)
            pairs.update(map(tuple, both.tolist()))
        return pairs

    with (
        progress(total=len(order), unit="frame", label="near-duplicates") as bar,
        concurrent.futures.ThreadPoolExecutor(workers.num_cores()) as threads,
    ):
        for split in sorted(set(splits)):  # against those of the splits that come after it
            owns, later = np.flatnonzero(splits == split), np.flatnonzero(splits > split)
            lows = np.searchsorted(far[later], far[owns] - apart[owns])
            highs = np.searchsorted(far[later], far[owns] + apart[owns], "right")
            cuts = range(QUERIES_AT_A_TIME, len(owns), QUERIES_AT_A_TIME)
            own_blocks, low_blocks, high_blocks = (np.split(a, cuts) for a in (owns, lows, highs))
            pairs = threads.map(
                compare, own_blocks, itertools.repeat(later), low_blocks, high_blocks
            )
            for own, shared in zip(own_blocks, pairs, strict=True):
                found |= shared
                bar.update(len(own))
    return found


def _stretches(
    cache: Cache, places: tuple[int, int], prints: tuple[np.ndarray, np.ndarray]
) -> Iterator[Leak]:
    """All stretches, at any shift, in which the pictures agree and the cars move alike."""
    one, other = (cache.clips[place] for place in places)
    alike, share = prints_of.agree(*prints, prints_of.least_common(len(cache.cameras)))
    poses = _poses(cache, one), _poses(cache, other)
    least = _least_frames(cache)
    for shift in range(least - len(one), len(other) - least + 1):
        before = max(-shift, 0), max(shift, 0)  # frames of each that the other does not reach
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
    """Consecutive frames that two clips must share."""
    return max(MIN_FRAMES, round(MIN_S * cache.sample_hz) + 1)


def _runs(alike: np.ndarray, least: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of true values of at least this length."""
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
    """Stretches in which two cars move alike, each seen from its own pose at the first frame.

    Args:
        one, other: (frames, 8) as `_poses` returns them.
        least: Frames that a stretch must have.

    Yields:
        (first frame, one past the last, metres apart at most, metres driven).
    """
    begin = 0
    while begin + least <= len(one):
        seen = [_seen_from_first(own[begin:]) for own in (one, other)]
        apart = np.linalg.norm(seen[0][0] - seen[1][0], axis=1)
        turned = (seen[0][1].inv() * seen[1][1]).magnitude()
        path, other_path = (own[begin:, 7] - own[begin, 7] for own in (one, other))
        may_be = np.minimum(_may_be_apart(path), _may_be_apart(other_path))
        off = np.flatnonzero((apart > may_be) | (turned > MAX_APART_RAD))
        end = begin + (int(off[0]) if len(off) else len(apart))
        if end - begin >= least:
            last = end - begin
            yield begin, end, float(apart[:last].max()), float(path[last - 1])
        begin = end


def _may_be_apart(path_m: np.ndarray) -> np.ndarray:
    """Metres that poses may be apart after so long a path."""
    may_be: np.ndarray = MAX_APART_M + MAX_APART_SHARE * np.abs(path_m)
    return may_be


def _seen_from_first(poses: np.ndarray) -> tuple[np.ndarray, Rotation]:
    """Positions (frames, 3), m, and rotations in the rig's frame at the first frame."""
    turns = Rotation.from_quat(poses[:, 3:7])
    back = turns[0].inv()
    return back.apply(poses[:, :3] - poses[0, :3]), back * turns
