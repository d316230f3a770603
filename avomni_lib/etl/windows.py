"""Windows over the cache: index arithmetic, so that another length or stride needs no new ETL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl import counts
from avomni_lib.etl.memmap import EGOMOTION_COLUMNS, Cache

DISTANCE = EGOMOTION_COLUMNS.index("distance_m")


@dataclass(frozen=True)
class Window:
    """A run of frames of one clip.

    Attributes:
        clip_idx: Index into `Cache.clips`.
        shard: Index into `Cache.shards`.
        start, stop: Rows of the shard's arrays.
        number: The clip's how-many-th window, from 0.
    """

    clip_id: str
    split: str
    clip_idx: int
    shard: int
    start: int
    stop: int
    number: int


@dataclass(frozen=True)
class Truth:
    """What the car did in a window.

    Attributes:
        duration_s: Last wanted time minus the first.
        path_m: Length of the path driven.
        chord_m: From the first place to the last as the crow flies.
        speed_mps: Path over duration.
    """

    duration_s: float
    path_m: float
    chord_m: float
    speed_mps: float


def num_windows(num_frames: int, sequence_length: int, stride: int) -> int:
    """How many windows lie on a clip of `num_frames`."""
    return max((num_frames - sequence_length) // stride + 1, 0)


class Windows(Sequence[Window]):
    """The windows of a cache, clip after clip; none crosses from one clip into the next.

    Args:
        cache: An open cache.
        sequence_length: Frames in a window.
        stride: Frames from one window's start to the next one's.
        split: Only the clips of this split; None takes all.
    """

    def __init__(self, cache: Cache, sequence_length: int, stride: int, split: str | None = None):
        self.cache, self.sequence_length, self.stride = cache, sequence_length, stride
        self._windows = [
            Window(
                clip.clip_id,
                clip.split,
                clip_idx,
                clip.shard,
                clip.start + number * stride,
                clip.start + number * stride + sequence_length,
                number,
            )
            for clip_idx, clip in enumerate(cache.clips)
            if split in (None, clip.split)
            for number in range(num_windows(len(clip), sequence_length, stride))
        ]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:
        return self._windows[index]

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of each window."""
        return (self.sequence_length, *self.cache.shards[0].frame_shape)

    def read_into(self, index: int, out: np.ndarray) -> None:
        """Fill `out` (T, H, W, 3) uint8, C-contiguous, with a window's frames.

        Raises:
            AvomniError: its file is cut short, a JPEG is damaged, or it has another shape.
        """
        window = self._windows[index]
        shard = self.cache.shards[window.shard]
        shape = (self.sequence_length, *shard.frame_shape)
        if out.shape != shape or out.dtype != np.uint8:
            raise AvomniError(
                f"window {index} is {shape} uint8, it was asked for as {out.shape} {out.dtype}",
                where=str(shard.folder),
                fix="run 03_etl again: all shards of a cache have frames of one size",
            )
        shard.read_frames(window.start, out)

    def frames(self, index: int) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB, read-only: a view of the mapped cache, or decoded from its JPEGs.

        Raises:
            AvomniError: a JPEG is damaged, and which.
        """
        return self._rows("frames", index)

    def times_us(self, index: int) -> np.ndarray:
        """(T,) int64 µs on the clip's clock: the wanted times."""
        return self._rows("times", index)

    def egomotion(self, index: int) -> np.ndarray:
        """(T, 11) float64, columns `memmap.EGOMOTION_COLUMNS`."""
        return self._rows("egomotion", index)

    def truth(self, index: int) -> Truth:
        """What the car did, from the ego motion at the wanted times."""
        times, ego = self.times_us(index), self.egomotion(index)
        duration = float(times[-1] - times[0]) / 1e6
        chord = float(np.linalg.norm(ego[-1, :3] - ego[0, :3]))
        # No path is shorter than the chord; a window that starts within a hop of the path's
        # polygon would be so by some micrometres.
        path = max(float(ego[-1, DISTANCE] - ego[0, DISTANCE]), chord)
        return Truth(duration, path, chord, path / duration)

    def _rows(self, name: str, index: int) -> np.ndarray:
        window = self._windows[index]
        return getattr(self.cache.shards[window.shard], name)[window.start : window.stop]


def check_leaks(cache: Cache) -> None:
    """Refuse a cache whose splits share a clip, or whose clips share frames.

    Raises:
        AvomniError: naming the clips.
    """
    lengths = [shard.num_frames for shard in cache.shards]
    found = list(counts.leaks(cache.clips, lengths))
    if found:
        raise AvomniError(
            found[0] + (f"; and {len(found) - 1} more such" if len(found) > 1 else ""),
            where=str(cache.folder),
            fix="remove the cache and run 03_etl; if it stays, the data set's clip index is at "
            "fault",
        )
