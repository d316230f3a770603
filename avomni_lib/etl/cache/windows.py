"""Windows over the cache: index arithmetic only, so that changing length or stride needs no ETL."""

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
from avomni_lib.etl.clip.scene import Surroundings
from avomni_lib.etl.clip.trajectory import Trajectory
from avomni_lib.params.sections import ProcessingParams

DISTANCE = EGOMOTION_COLUMNS.index("distance_m")


@dataclass(frozen=True)
class Window:
    """A run of consecutive frames of one clip; `Windows.offsets` adds the older frames, if any.

    Attributes:
        clip_idx: Index into `Cache.clips`.
        shard: Index into `Cache.shards`.
        start, stop: Rows of the shard's arrays.
        number: Index of the window within its clip, from 0. The window starts at `number * stride`;
            if older frames are shown, the first numbers are left out.
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
    """The ground truth of a window.

    Attributes:
        duration_s: Last wanted time minus the first.
        chord_m: Straight distance from the first position to the last.
        speed_mps: Path over duration.
        future: The next 6.4 s, relative to the last frame; None without a horizon.
        scene: Other road users at the last frame; None unless scenes were requested.
    """

    duration_s: float
    path_m: float
    chord_m: float
    speed_mps: float
    future: Trajectory | None = None
    scene: Surroundings | None = None


def numbers(num_frames: int, sequence_length: int, stride: int, reach: int = 0) -> range:
    """The numbers of the windows that fit on a clip of `num_frames`.

    Args:
        reach: Rows that a window needs before its start for older frames.
    """
    last = (num_frames - sequence_length) // stride
    return range(-(-reach // stride), max(last, -1) + 1)


def num_windows(num_frames: int, sequence_length: int, stride: int, reach: int = 0) -> int:
    """How many windows fit on a clip of `num_frames`."""
    return len(numbers(num_frames, sequence_length, stride, reach))


def none_fits(num_frames: int, processing: ProcessingParams, where: str) -> AvomniError:
    """The error if no window fits on any clip; its fix names the longest window that would.

    Args:
        num_frames: Frames of the longest clip.
        where: Which clips these are.
    """
    length, stride, reach = processing.sequence_length, processing.stride, processing.reach
    seconds, hz = num_frames / processing.sample_hz, processing.sample_hz
    start = -(-reach // stride) * stride  # of the first window with a complete past
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
    """The windows of a cache, clip by clip; no window extends over two clips.

    Args:
        stride: Frames from one window's start to the next one's.
        split: Only the clips of this split; None takes all.
        horizon_s: Leave out windows after whose last frame the clip's ego motion ends earlier than
            this.
        scenes: Include other road users in the truth. Windows of clips without labels are left
            out, unless an event describes the moment.
        past: Rows of older frames relative to a window's start, negative and increasing. They only
            add frames: times, ego motion, truth and trajectories cover the consecutive frames.

    Attributes:
        offsets: Rows of all T frames, relative to a window's start.
        reach: Rows between the oldest frame and the window's start.
        num_short: Number of windows left out because their horizon is not covered.
        num_unknown: Number of windows left out because other road users are not labelled.

    Raises:
        AvomniError: scenes are requested, and the cache was built without other road users.
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
        covered = list(filter(self._covered, windows)) if horizon_s else windows
        self._windows = list(filter(self._known, covered)) if scenes else covered
        self.num_short = len(windows) - len(covered)
        self.num_unknown = len(covered) - len(self._windows)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        return self._windows[index]

    def only(self, indices: Iterable[int]) -> Windows:
        """A subset of the windows, in this order."""
        subset = copy.copy(self)
        subset._windows = [self._windows[index] for index in indices]
        return subset

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of each window, including older frames."""
        return (len(self.offsets), *self.cache.shards[0].frame_shape)

    def read_into(self, index: int, out: np.ndarray) -> None:
        """Fill `out` (T, H, W, 3) uint8, C-contiguous, with a window's frames, oldest first.

        Rows that follow each other in the cache are read at once.

        Raises:
            AvomniError: its file is cut short, a JPEG is damaged, or `out` has another shape.
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
        """(T, H, W, 3) uint8 RGB, read-only: a view of the memory-mapped cache, or decoded JPEGs.

        With older frames it is a copy.

        Raises:
            AvomniError: a JPEG is damaged.
        """
        if not self.reach:
            return self._rows("frames", index)
        out = np.empty(self.frame_shape, np.uint8)
        self.read_into(index, out)
        out.flags.writeable = False
        return out

    def times_us(self, index: int) -> np.ndarray:
        """(sequence_length,) int64 µs on the clip's clock: wanted times of consecutive frames."""
        return self._rows("times", index)

    def egomotion(self, index: int) -> np.ndarray:
        """(sequence_length, 11) float64, columns `memmap.EGOMOTION_COLUMNS`."""
        return self._rows("egomotion", index)

    def truth(self, index: int) -> Truth:
        """The ground truth, from the ego motion at the wanted times."""
        times, ego = self.times_us(index), self.egomotion(index)
        duration = float(times[-1] - times[0]) / 1e6
        chord = float(np.linalg.norm(ego[-1, :3] - ego[0, :3]))
        # `distance_m` is measured along a polygon: for a window that starts within one of its
        # edges, the path would come out some micrometres shorter than the chord.
        path = max(float(ego[-1, DISTANCE] - ego[0, DISTANCE]), chord)
        after = self.future(index) if self.horizon_s else None
        around = self.scene(index) if self.scenes else None
        return Truth(duration, path, chord, path / duration, after, around)

    def past(self, index: int, frame: int = -1) -> Trajectory:
        """Up to 1.6 s before one of the consecutive frames (0 is the first, -1 the last)."""
        return trajectory.past(*self._moment(index, frame))

    def future(self, index: int) -> Trajectory | None:
        """The 6.4 s after the window's last frame; None if the ego motion ends before."""
        return trajectory.future(*self._moment(index, -1))

    def scene(self, index: int) -> Surroundings:
        """Other road users at the window's last frame, and the event at that moment, if any.

        No label of a later time is used; an event may begin up to 3 s later.

        Raises:
            AvomniError: the cache was built without other road users.
        """
        _need_obstacles(self.cache)
        now_us, now, _ = self._moment(index, -1)
        window = self._windows[index]
        clip = self.cache.clips[window.clip_idx]
        rows = self.cache.shards[window.shard].obstacles[slice(*clip.obstacles)]
        around = scene.others(now_us, now, rows)
        return Surroundings(around, scene.event(now_us, clip.events), not clip.unlabelled)

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
    """(index of its first frame, offset, length) of each run of consecutive rows."""
    edges = [0, *(np.flatnonzero(np.diff(offsets) != 1) + 1).tolist(), len(offsets)]
    return [(a, offsets[a], b - a) for a, b in itertools.pairwise(edges)]


def _need_obstacles(cache: Cache) -> None:
    if "obstacle_columns" not in cache.header:
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
    leaks = list(verify.leaks(cache.clips, [shard.num_frames for shard in cache.shards]))
    if leaks:
        raise AvomniError(
            leaks[0] + (f"; and {len(leaks) - 1} more such" if len(leaks) > 1 else ""),
            where=str(cache.folder),
            fix="remove the cache and run 03_etl; if it stays, the data set's clip index is at "
            "fault",
        )
