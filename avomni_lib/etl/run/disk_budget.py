"""Raw files and cache under `download.target_size_gb`: the arithmetic, without a disk.

With `download.evict_raw` a chunk's raw files come, its clips become parts, the parts a shard, and
the raw files go; the shards stay. One rule bounds the disk: the shards, the raw files and twice the
shards of the chunks in work (their parts, and the shard that is made of these) fit into the limit.
The next chunk is fetched ahead where its raw files fit too.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What one chunk puts on the disk, in bytes.

    Attributes:
        raw: All its raw files.
        here: Of these, what lies there already, files that are not whole yet included.
        cache: At most while its shard is made, the parts beside it.
        stays: Of the shard, as expected.
    """

    chunk: int
    raw: int
    here: int
    cache: int
    stays: int


@dataclass(frozen=True)
class Moment:
    """Bytes of raw files and of the cache at one time."""

    raw: int
    cache: int

    @property
    def total(self) -> int:
        return self.raw + self.cache


def fullest(loads: Sequence[Load], start: Moment) -> list[Moment]:
    """The fullest moment of each chunk, one after another in this order.

    Args:
        start: What stays all the time: metadata, and shards that are whole.
    """
    waiting, shards, moments = sum(load.here for load in loads), start.cache, []
    for load in loads:
        waiting -= load.here
        moments.append(Moment(start.raw + waiting + load.raw, shards + load.cache))
        shards += load.stays
    return moments


def peak(loads: Sequence[Load], start: Moment) -> int:
    """The most bytes at any time."""
    return max(moment.total for moment in [start, *fullest(loads, start)])


def num_fitting(loads: Sequence[Load], start: Moment, limit: int) -> int:
    """How many of the chunks, taken in this order, would stay within `limit` bytes."""
    return bisect.bisect_right(
        range(len(loads)), limit, key=lambda last: peak(loads[: last + 1], start)
    )


class DiskBudget:
    """What lies on the disk and what is promised to it; nothing is allowed beyond `limit`.

    Args:
        limit: Bytes.
        start: What is there and stays: metadata, and shards that are whole.
        parts: Chunk -> bytes of the parts that a killed run left of it.

    Attributes:
        peak: The most bytes so far.
    """

    def __init__(
        self, limit: float, start: Moment, loads: Sequence[Load], parts: Mapping[int, int]
    ):
        self.limit, self._metadata, self._shards = limit, start.raw, start.cache
        self._raw = {load.chunk: load.here for load in loads}
        self._parts = {load.chunk: parts.get(load.chunk, 0) for load in loads}
        self._in_work: dict[int, Load] = {}  # chunks whose clips are read
        self._writing: dict[object, int] = {}
        self.peak = self.now.total

    @property
    def now(self) -> Moment:
        """At most this lies there now: what is fetched or written counts in full from its start."""
        written = sum(self._parts.values()) + sum(self._writing.values())
        return Moment(self._metadata + sum(self._raw.values()), self._shards + written)

    @property
    def promised(self) -> int:
        """Bytes that lie there, with all that the chunks in work may still write."""
        cache = sum(
            max(self._in_work[chunk].cache, 2 * size) if chunk in self._in_work else size
            for chunk, size in self._parts.items()
        )
        return self._metadata + sum(self._raw.values()) + self._shards + cache

    @property
    def standing(self) -> Moment:
        """What stays: metadata and shards."""
        return Moment(self._metadata, self._shards)

    @property
    def is_idle(self) -> bool:
        """Whether no worker writes."""
        return not self._writing

    def parts_of(self, chunk: int) -> int:
        return self._parts[chunk]

    def may_fetch(self, load: Load) -> bool:
        """Whether the chunk's raw files fit beside the chunks in work, and its cache after them."""
        to_come = load.raw - self._raw[load.chunk]
        if max(self.promised, self.now.total) + to_come > self.limit:
            return False
        # Once those are done: their raw files are gone, their shards stay.
        waiting = {chunk for chunk in self._raw if chunk not in self._in_work}
        after = self._metadata + self._shards + sum(each.stays for each in self._in_work.values())
        after += to_come + sum(self._raw[chunk] + self._parts[chunk] for chunk in waiting)
        return after - self._parts[load.chunk] + load.cache <= self.limit

    def fetch(self, load: Load) -> None:
        """The chunk's raw files are on their way."""
        self._raw[load.chunk] = load.raw
        self._note()

    def may_work(self, load: Load) -> bool:
        """Whether the chunk's parts and shard fit beside what lies there and is promised."""
        return self.promised - self._parts[load.chunk] + load.cache <= self.limit

    def work(self, load: Load) -> None:
        """The chunk's clips are read from now on."""
        self._in_work[load.chunk] = load

    def may_write(self, num_bytes: int) -> bool:
        """Whether so many bytes fit beside what really lies there: the bound that always holds."""
        return self.now.total + num_bytes <= self.limit

    def begin(self, job: object, num_bytes: int) -> None:
        """A worker writes at most so many bytes."""
        self._writing[job] = num_bytes
        self._note()

    def end(self, job: object, chunk: int, part_bytes: int) -> None:
        """It has ended and left a part of so many bytes, or none."""
        self._writing.pop(job)
        self._parts[chunk] += part_bytes
        self._note()

    def release(self, chunk: int, shard_bytes: int, raw_left: int) -> None:
        """The chunk's shard is whole and so many bytes larger, its parts are gone.

        Args:
            raw_left: Bytes of its raw files that stay on the disk.
        """
        self._in_work.pop(chunk, None)
        self._parts[chunk], self._raw[chunk] = 0, raw_left
        self._shards += shard_bytes
        self._note()

    def _note(self) -> None:
        self.peak = max(self.peak, self.now.total)
