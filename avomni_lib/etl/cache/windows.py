"""Windows over the cache: index arithmetic, so that another length or stride needs no new ETL."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import verify
from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS, Cache
from avomni_lib.etl.clip import scene, trajectory
from avomni_lib.etl.clip.scene import Scene
from avomni_lib.etl.clip.trajectory import Trajectory
from avomni_lib.sections import ProcessingParams

DISTANCE = EGOMOTION_COLUMNS.index("distance_m")


@dataclass(frozen=True)
class Window:
    """A run of frames of one clip; older ones before it are the same for all (`Windows.offsets`).

    Attributes:
        clip_idx: Index into `Cache.clips`.
        shard: Index into `Cache.shards`.
        start, stop: Rows of the shard's arrays.
        number: Index of the window within its clip, from 0. It says where the window starts,
            whether or not older frames are shown: the first ones are left out then.
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
        future: The next 6.4 s, seen from the last frame; None where nobody asked for a horizon.
        scene: Other road users at the last frame; None where nobody asked for them.
    """

    duration_s: float
    path_m: float
    chord_m: float
    speed_mps: float
    future: Trajectory | None = None
    scene: Scene | None = None


def numbers(num_frames: int, sequence_length: int, stride: int, reach: int = 0) -> range:
    """The numbers of the windows that lie on a clip of `num_frames`.

    Args:
        reach: Rows of older frames that a window needs before its own.
    """
    last = (num_frames - sequence_length) // stride
    return range(-(-reach // stride), max(last, -1) + 1)


def num_windows(num_frames: int, sequence_length: int, stride: int, reach: int = 0) -> int:
    """How many windows lie on a clip of `num_frames`."""
    return len(numbers(num_frames, sequence_length, stride, reach))


def none_fits(num_frames: int, processing: ProcessingParams, where: str) -> AvomniError:
    """The error where no window lies on any clip; its remedy names the longest that does.

    Args:
        num_frames: Of the longest clip.
        where: What the clips are of.
    """
    length, stride, reach = processing.sequence_length, processing.stride, processing.reach
    seconds, hz = num_frames / processing.sample_hz, processing.sample_hz
    start = -(-reach // stride) * stride  # of the first window that has its whole past
    older = f" after {reach} of the past" if reach else ""
    ways = ["raise processing.sample_hz"]
    if reach and num_frames >= length:
        left = (num_frames - length) // stride * stride / hz
        longest = f"{left:g} at most" if left * processing.past.hz >= 1 else "null"
        ways.insert(0, f"lower processing.past.seconds to {longest}")
    if num_frames - start >= 2:
        ways.insert(0, f"lower processing.sequence_length to {num_frames - start} at most")
    return AvomniError(
        f"no window fits on a clip: the longest has {num_frames} frames at {hz:g} Hz "
        f"({seconds:.3g} s), and a window needs {length}{older}",
        where=where,
        fix=", or ".join(ways),
    )


class Windows(Sequence[Window]):
    """The windows of a cache, clip after clip; none crosses from one clip into the next.

    Args:
        cache: An open cache.
        sequence_length: Frames in a window.
        stride: Frames from one window's start to the next one's.
        split: Only the clips of this split; None takes all.
        horizon_s: Windows are left out whose clip's ego motion does not go on for so long past
            their last frame.
        scenes: The truth tells of other road users too; windows are left out of which nobody knows
            who else was there, unless an event is told.
        past: Rows of older frames that are shown before a window's own, counted from its start:
            below 0 and rising. Only the frames are more for it: times, ego motion, truth and
            trajectories are those of the window's own run.

    Attributes:
        offsets: Rows of all T frames, counted from a window's start.
        reach: Rows between the oldest frame and the window's start.
        num_short: Windows that are left out as their horizon is not covered.
        num_unknown: Windows that are left out as others are not known.

    Raises:
        AvomniError: scenes are wanted of a cache that was built without other road users.
    """

    def __init__(
        self,
        cache: Cache,
        sequence_length: int,
        stride: int,
        split: str | None = None,
        horizon_s: float = 0.0,
        scenes: bool = False,
        past: Sequence[int] = (),
    ):
        self.cache, self.sequence_length, self.stride = cache, sequence_length, stride
        self.horizon_s, self.scenes = horizon_s, scenes
        self.offsets = (*past, *range(sequence_length))
        if any(b <= a for a, b in itertools.pairwise(self.offsets)):
            raise ValueError(f"rows of older frames rise and are below 0, not {tuple(past)}")
        self.reach = max(-self.offsets[0], 0)
        self._runs = _neighbours(self.offsets)
        if scenes:
            _need_obstacles(cache)
        windows = [
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
            for number in numbers(len(clip), sequence_length, stride, self.reach)
        ]
        covered = [each for each in windows if self._covered(each)] if horizon_s else windows
        self._windows = [each for each in covered if self._known(each)] if scenes else covered
        self.num_short = len(windows) - len(covered)
        self.num_unknown = len(covered) - len(self._windows)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        return self._windows[index]

    def only(self, indices: Iterable[int]) -> Windows:
        """These windows alone, in this order."""
        some = copy.copy(self)
        some._windows = [self._windows[index] for index in indices]
        return some

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of each window, older frames among them."""
        return (len(self.offsets), *self.cache.shards[0].frame_shape)

    def read_into(self, index: int, out: np.ndarray) -> None:
        """Fill `out` (T, H, W, 3) uint8, C-contiguous, with a window's frames, the oldest first.

        A run of neighbours in the cache is one read.

        Raises:
            AvomniError: its file is cut short, a JPEG is damaged, or it has another shape.
        """
        window = self._windows[index]
        shard = self.cache.shards[window.shard]
        shape = (len(self.offsets), *shard.frame_shape)
        if out.shape != shape or out.dtype != np.uint8:
            raise AvomniError(
                f"window {index} is {shape} uint8, it was asked for as {out.shape} {out.dtype}",
                where=str(shard.folder),
                fix="run 03_etl again: all shards of a cache have frames of one size",
            )
        if shard.storage == "jpeg":
            shard.frames.read([window.start + offset for offset in self.offsets], out)
            return
        for place, offset, length in self._runs:
            shard.read_frames(window.start + offset, out[place : place + length])

    def frames(self, index: int) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB, read-only: a view of the mapped cache, or decoded from its JPEGs.

        With older frames before the window's own it is a copy.

        Raises:
            AvomniError: a JPEG is damaged, and which.
        """
        if not self.reach:
            return self._rows("frames", index)
        out = np.empty(self.frame_shape, np.uint8)
        self.read_into(index, out)
        out.flags.writeable = False
        return out

    def times_us(self, index: int) -> np.ndarray:
        """(sequence_length,) int64 µs on the clip's clock: the wanted times of its own frames."""
        return self._rows("times", index)

    def egomotion(self, index: int) -> np.ndarray:
        """(sequence_length, 11) float64, columns `memmap.EGOMOTION_COLUMNS`."""
        return self._rows("egomotion", index)

    def truth(self, index: int) -> Truth:
        """What the car did, from the ego motion at the wanted times."""
        times, ego = self.times_us(index), self.egomotion(index)
        duration = float(times[-1] - times[0]) / 1e6
        chord = float(np.linalg.norm(ego[-1, :3] - ego[0, :3]))
        # No path is shorter than the chord; a window that starts within a hop of the path's
        # polygon would be so by some micrometres.
        path = max(float(ego[-1, DISTANCE] - ego[0, DISTANCE]), chord)
        after = self.future(index) if self.horizon_s else None
        around = self.scene(index) if self.scenes else None
        return Truth(duration, path, chord, path / duration, after, around)

    def past(self, index: int, frame: int = -1) -> Trajectory:
        """Up to 1.6 s before one of the window's own frames (0 is the first, -1 the last)."""
        return trajectory.past(*self._moment(index, frame))

    def future(self, index: int) -> Trajectory | None:
        """The 6.4 s after the window's last frame; None where the ego motion ends before."""
        return trajectory.future(*self._moment(index, -1))

    def scene(self, index: int) -> Scene:
        """Other road users at the window's last frame, and the event that it is about, if any.

        Nobody's label of a later time is looked at; an event may begin up to 3 s later.

        Raises:
            AvomniError: the cache was built without other road users.
        """
        _need_obstacles(self.cache)
        now_us, now, _ = self._moment(index, -1)
        window = self._windows[index]
        clip = self.cache.clips[window.clip_idx]
        rows = self.cache.shards[window.shard].obstacles[slice(*clip.obstacles)]
        around = scene.others(now_us, now, rows)
        return Scene(around, scene.event(now_us, clip.events), not clip.unlabelled)

    def _moment(self, index: int, frame: int) -> tuple[int, np.ndarray, np.ndarray]:
        now_us, now = int(self.times_us(index)[frame]), self.egomotion(index)[frame]
        return now_us, now, self._track(self._windows[index])

    def _track(self, window: Window) -> np.ndarray:
        clip = self.cache.clips[window.clip_idx]
        return self.cache.shards[window.shard].track[clip.track_start : clip.track_stop]

    def _covered(self, window: Window) -> bool:
        last_us = int(self.cache.shards[window.shard].times[window.stop - 1])
        track = self._track(window)
        return bool(len(track)) and trajectory.covers(last_us, track[-1, 0], self.horizon_s)

    def _known(self, window: Window) -> bool:
        clip = self.cache.clips[window.clip_idx]
        last_us = int(self.cache.shards[window.shard].times[window.stop - 1])
        return not clip.unlabelled or scene.event(last_us, clip.events) is not None

    def _rows(self, name: str, index: int) -> np.ndarray:
        window = self._windows[index]
        return getattr(self.cache.shards[window.shard], name)[window.start : window.stop]


def _neighbours(offsets: Sequence[int]) -> list[tuple[int, int, int]]:
    """(place among the frames, offset, length) of each run of rows that follow each other."""
    edges = [0, *(np.flatnonzero(np.diff(offsets) != 1) + 1).tolist(), len(offsets)]
    return [(a, offsets[a], b - a) for a, b in itertools.pairwise(edges)]


def _need_obstacles(cache: Cache) -> None:
    if not cache.has_obstacles:
        raise AvomniError(
            "the cache was built without other road users",
            where=str(cache.folder),
            fix="set processing.obstacles to true, then run 02_download and 03_etl again",
        )


def check_leaks(cache: Cache) -> None:
    """Refuse a cache whose splits share a clip, or whose clips share frames.

    Raises:
        AvomniError: naming the clips.
    """
    lengths = [shard.num_frames for shard in cache.shards]
    found = list(verify.leaks(cache.clips, lengths))
    if found:
        raise AvomniError(
            found[0] + (f"; and {len(found) - 1} more such" if len(found) > 1 else ""),
            where=str(cache.folder),
            fix="remove the cache and run 03_etl; if it stays, the data set's clip index is at "
            "fault",
        )
