"""Near-duplicates: two clips of different splits that hold one stretch of the same drive.

Copied, encoded again or cut from another moment on, it lies in both under two names. Clips are
near-duplicates where the pictures of consecutive frames agree by perceptual hash *and* the car
moves alike meanwhile. Motion alone proves nothing: egomotion is local to a clip, so all parked
clips move alike, and so do all that go straight on at one speed. Nor do pictures alone: who stands
at the same place at another time and drives off otherwise is another drive.

Candidates are found by sorting: in some tables of hashes, each with the bits in another order,
frames that agree in many bits come to lie beside each other. Sources: Charikar, "Similarity
Estimation Techniques from Rounding Algorithms" (2002); Manku, Jain and Das Sarma, "Detecting
Near-Duplicates for Web Crawling" (2007).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS, Cache, CachedClip
from avomni_lib.etl.leaks import fingerprint
from avomni_lib.etl.leaks.fingerprint import Prints
from avomni_lib.plan import Bar

# What two clips must share: so many consecutive frames, and for so long.
MIN_FRAMES, MIN_S = 4, 1.0
# How far apart the poses may be, seen from the overlap's first frame. A clip cut anew is sampled up
# to half a sampled frame earlier or later, and its egomotion is estimated anew.
MAX_APART_M, MAX_APART_SHARE, MAX_APART_RAD = 0.3, 0.02, 0.035
TABLES, KEY_BITS, SEARCHED_BITS, NEIGHBOURS = 16, 64, 192, 4
PAIRS_AT_A_TIME = 1 << 16
BALANCE_ROWS = 20_000


@dataclass(frozen=True)
class Leak:
    """A stretch that two clips of different splits share.

    Attributes:
        clip_ids, splits: Of the two.
        starts: The stretch's first frame in each.
        num_frames: Its length in sampled frames.
        seconds: Its duration.
        different: Mean share of different bits of the hashes, 0 to `fingerprint.MAX_DIFFERENT`.
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

    What was found is remembered for as long as the process lives. Shorter overlaps than `MIN_S`
    are not found, nor clips whose frames have too little texture.

    Args:
        progress: One unit a clip.

    Raises:
        AvomniError: a frame cannot be decoded, or a file of the cache is cut short.
    """
    if len({clip.split for clip in cache.clips}) < 2:
        return []
    key = (cache.digest, cache.clips)
    if key not in _found:
        prints = fingerprint.of_cache(cache, progress)
        leaks = [_overlap(cache, prints, *pair) for pair in sorted(_candidates(cache, prints))]
        _found.clear()
        _found[key] = sorted((leak for leak in leaks if leak), key=lambda leak: -leak.num_frames)
    return list(_found[key])


_found: dict[Any, list[Leak]] = {}


def _candidates(cache: Cache, prints: Sequence[Prints]) -> set[tuple[int, int]]:
    """Pairs of clips of different splits that have at least one frame in common."""
    names = sorted({clip.split for clip in cache.clips})
    every = Prints.joined(prints)
    rows = np.flatnonzero(every.tells)
    clip = np.repeat(np.arange(len(prints)), [len(own) for own in prints])[rows]
    side = np.array([names.index(each.split) for each in cache.clips])[clip]
    tell, found = every[rows], set()
    for key in _keys(tell):
        order = np.argsort(key, kind="stable")
        own = clip[order]
        # The frames of a car that stands lie side by side and would be one another's neighbours.
        order = order[np.flatnonzero(np.diff(own, append=-1))]
        for step in range(1, NEIGHBOURS + 1):
            ones, others = order[:-step], order[step:]
            across = side[ones] != side[others]
            ones, others = ones[across], others[across]
            for at in range(0, len(ones), PAIRS_AT_A_TIME):
                one, other = ones[at : at + PAIRS_AT_A_TIME], others[at : at + PAIRS_AT_A_TIME]
                hit, _ = fingerprint.agree(tell[one], tell[other])
                pairs = np.sort(np.stack([clip[one[hit]], clip[other[hit]]], axis=1), axis=1)
                found.update(map(tuple, pairs.tolist()))
    return found


def _keys(prints: Prints) -> Iterator[np.ndarray]:
    """(N,) uint64 sort keys, each of other bits in another order, of those that tell most.

    Those are bits that mean something in most frames and are set in about half of them.
    """
    some = prints[:: max(1, len(prints) // BALANCE_ROWS)]
    bits, mask = (
        np.unpackbits(words.view(np.uint8), axis=1).astype(bool) for words in (some.bits, some.mask)
    )
    meant = mask.sum(axis=0)
    share = (bits & mask).sum(axis=0) / np.maximum(meant, 1)
    best = np.argsort(-meant * share * (1 - share), kind="stable")[:SEARCHED_BITS]
    octets, dice = prints.bits.view(np.uint8), np.random.default_rng(0)
    for _ in range(TABLES):
        order = dice.permutation(best)[:KEY_BITS]
        chosen = octets[:, order // 8] >> (7 - order % 8).astype(np.uint8) & 1
        packed = np.ascontiguousarray(np.packbits(chosen, axis=1))
        yield packed.view(">u8")[:, 0].astype(np.uint64)


def _overlap(cache: Cache, prints: Sequence[Prints], one: int, other: int) -> Leak | None:
    """The longest stretch that two clips share, of equals the one whose pictures are closest."""
    stretches = _stretches(cache, (one, other), (prints[one], prints[other]))
    return max(stretches, key=lambda leak: (leak.num_frames, -leak.different), default=None)


def _stretches(
    cache: Cache, places: tuple[int, int], prints: tuple[Prints, Prints]
) -> Iterator[Leak]:
    """All stretches, at any shift, in which the pictures agree and the cars move alike."""
    one, other = (cache.clips[place] for place in places)
    alike, share = fingerprint.agree(prints[0][:, None], prints[1][None])
    poses = _poses(cache, one), _poses(cache, other)
    least = max(MIN_FRAMES, round(MIN_S * cache.sample_hz) + 1)
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
        path = one[begin:, 7] - one[begin, 7]
        may_be = MAX_APART_M + MAX_APART_SHARE * np.abs(path)
        off = np.flatnonzero((apart > may_be) | (turned > MAX_APART_RAD))
        end = begin + (int(off[0]) if len(off) else len(apart))
        if end - begin >= least:
            last = end - begin
            yield begin, end, float(apart[:last].max()), float(path[last - 1])
        begin = end


def _seen_from_first(poses: np.ndarray) -> tuple[np.ndarray, Rotation]:
    """Positions (frames, 3), m, and rotations in the rig's frame at the first frame."""
    turns = Rotation.from_quat(poses[:, 3:7])
    back = turns[0].inv()
    return back.apply(poses[:, :3] - poses[0, :3]), back * turns
