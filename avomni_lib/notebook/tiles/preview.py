"""The data that 04 shows of a clip, window and frame for a choice of tiling, without widgets.

The clips are those of the cache, or the raw ones if there is no cache yet. Times and egomotion come
from the cache if it has the chosen rate, else from the raw clip, sampled as in 03.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.select.evicted import read_evicted
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS, CachedClip
from avomni_lib.etl.cache.windows import Windows, none_fits
from avomni_lib.etl.clip import sampling
from avomni_lib.etl.video import reader
from avomni_lib.notebook import clip_table
from avomni_lib.notebook.plots import tiles
from avomni_lib.notebook.tiles.choice import Footage, TilingChoice
from avomni_lib.notebook.tiles.raw_frames import RawFrames
from avomni_lib.params import Params
from avomni_lib.training.prompt import samples
from avomni_lib.training.targets import target

LEFT_OUT = "05_train leaves this window out: the clip's ego motion ends too soon after it"


@dataclass(frozen=True)
class Place:
    """The selected frame: clip, index of the window in the clip, index of the frame in it."""

    clip_id: str
    window: int
    frame: int


@dataclass(frozen=True)
class Listed:
    """A clip in the list; speeds (m/s) and country are None if unknown."""

    clip_id: str
    split: str
    country: str | None
    mean_mps: float | None
    max_mps: float | None


@dataclass(frozen=True)
class ClipMotion:
    """One clip's sampled times and egomotion, in the layout of a cache shard.

    Attributes:
        times: (N,) int64 µs.
        egomotion: (N, 11) float64, columns `EGOMOTION_COLUMNS`.
        track: (M, 9) float64, columns `TRACK_COLUMNS`.
    """

    times: np.ndarray
    egomotion: np.ndarray
    track: np.ndarray

    @property
    def ego(self) -> dict[str, np.ndarray]:
        """Column -> (N,) values."""
        return dict(zip(EGOMOTION_COLUMNS, self.egomotion.T, strict=True))


class Preview:
    """Grids, drives and target texts of a run's clips for any choice of tiling.

    Args:
        p: The run's parameters; it needs a cache or the raw clips of 02.

    Attributes:
        cache: The run's cache; None if it is missing or unfinished.
        listed: clip_id -> `Listed`, in the order of the cache or the catalog.

    Raises:
        AvomniError: there is neither a cache nor a raw clip.
    """

    def __init__(self, p: Params):
        self.p, self.raw = p, RawFrames(p)
        self._motions = clip_table.Motions(p)
        self.cache, self._cached = self._motions.cache, self._motions.cached
        self.motion = functools.lru_cache(32)(self._motion)
        splits = {name: clip.split for name, clip in self._cached.items()}
        if not splits:
            chosen = read_chosen(p).clip_ids
            by_clip = {name: split for split, names in chosen.items() for name in names}
            names = [name for name in self.raw.catalog.clip_ids() if name in by_clip]
            splits = {name: by_clip[name] for name in names}
        if not splits:
            raise AvomniError(
                "no clip to look at", where=str(p.run_dir), fix="run 02_download, then 03_etl"
            )
        self.listed = {
            name: self._listed(name, split, number)
            for number, (name, split) in enumerate(splits.items())
        }

    def _listed(self, clip_id: str, split: str, number: int) -> Listed:
        mean = most = country = None
        ego = self._motions.sampled(clip_id)
        if ego is None and number < clip_table.MOST_READ:
            ego = self._motions.raw(clip_id)
        if ego is not None:
            speeds = clip_table.speed(ego)
            mean, most = float(speeds.mean()), float(speeds.max())
        with contextlib.suppress(AvomniError):
            country = self.raw.catalog.attributes(clip_id)["country"]
        return Listed(clip_id, split, country, mean, most)

    def _motion(self, clip_id: str, sample_hz: float) -> ClipMotion:
        """The clip's times and egomotion at this rate, as `sampling.sample_clip` computes them.

        Raw clips are timed by the cameras of the run's grid whatever the choice, so that every
        choice shows the same instants.

        Raises:
            AvomniError: raw files are needed, and they are missing or damaged.
        """
        if clip_id in self._cached and sample_hz == self.cache.sample_hz:
            cached = self._cached[clip_id]
            shard, rows = self.cache.shards[cached.shard], slice(cached.start, cached.stop)
            track = shard.track[cached.track_start : cached.track_stop]
            return ClipMotion(shard.times[rows], shard.egomotion[rows], track)
        clip, horizon_s = self.raw.clip(clip_id), self.p.processing.horizon_s
        names = [camera.name for camera in cameras.grid(self.p.vision.cameras).cameras]
        stamps = [clip.timestamps(name) for name in names]
        keys = []
        if self.p.processing.align:
            keys = [reader.key_rows(clip.video(name)) for name in names]
        times, ego, _ = sampling.clip_times(clip, stamps, sample_hz, horizon_s, keys)
        return ClipMotion(**sampling.clip_motion(ego, times, horizon_s))

    def is_cached(self, choice: TilingChoice) -> bool:
        """Whether the cache has the frames of this choice."""
        cache, grid = self.cache, choice.grid
        return cache is not None and (
            (cache.grid.cells, cache.grid.cols, cache.tile, cache.header["fit"], cache.sample_hz)
            == (grid.cells, grid.cols, choice.tile, choice.fit, choice.sample_hz)
        )

    def source_in_words(self, choice: TilingChoice) -> str:
        """The source of the frames, as text."""
        words = "the cache" if self.is_cached(choice) else "the raw clip"
        words += "; there is no cache yet" if self.cache is None else ""
        return words + ("; raw files are evicted" if read_evicted(self.p) else "")

    def windows(self, clip_id: str, choice: TilingChoice, horizon_s: float = 0.0) -> Windows:
        """The windows of one clip that have the past frames of the run's parameters."""
        motion, split = self.motion(clip_id, choice.sample_hz), self.listed[clip_id].split
        sizes = (0, len(motion.times), 0, len(motion.track))
        # A stand-in for a cache of one clip, with what `Windows` uses except frames.
        one = SimpleNamespace(clips=(CachedClip(clip_id, split, 0, 0, *sizes),), shards=(motion,))
        length, stride = choice.sequence_length, self.p.processing.stride
        past = samples.past_of(choice.laid_over(self.p))
        return Windows(one, length, stride, horizon_s=horizon_s, past=past)

    def count(self, clip_id: str, choice: TilingChoice) -> int:
        """Number of windows of the clip; 0 if its motion cannot be read."""
        with contextlib.suppress(AvomniError):
            return len(self.windows(clip_id, choice))
        return 0

    def nearest_window(self, place: Place, before: TilingChoice, choice: TilingChoice) -> int:
        """Index of the window at a new rate or length whose start is nearest to the old one's."""
        if not self.count(place.clip_id, choice) or not self.count(place.clip_id, before):
            return 0
        old, new = self.windows(place.clip_id, before), self.windows(place.clip_id, choice)
        start = old.times_us(min(place.window, len(old) - 1))[0]
        return int(np.argmin([abs(new.times_us(i)[0] - start) for i in range(len(new))]))

    def grid_frame(self, place: Place, choice: TilingChoice) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the frame as the model would see it.

        Raises:
            AvomniError: raw files are needed, and they are missing or damaged; or the clip has no
                window.
        """
        windows = self._need_window(place, choice)
        if self.is_cached(choice):
            clip = self._cached[place.clip_id]
            row = clip.start + windows[place.window].start + place.frame
            return self.cache.shards[clip.shard].frames[row : row + 1][0]
        times_us = windows.times_us(place.window)
        return self.raw.grid_frame(place.clip_id, times_us, place.frame, choice)

    def drive(self, place: Place, choice: TilingChoice) -> tiles.WindowMotion:
        """The car's path during the clip, with the selected window and frame.

        Raises:
            AvomniError: as `grid_frame`.
        """
        window = self._need_window(place, choice)[place.window]
        motion = self.motion(place.clip_id, choice.sample_hz)
        ego = motion.ego
        return tiles.WindowMotion(
            times_s=(motion.times - motion.times[0]) / 1e6,
            xy_m=np.stack([ego["x"], ego["y"]], axis=1),
            yaw_rad=clip_table.yaw(ego),
            speed_mps=clip_table.speed(ego),
            start=window.start,
            stop=window.stop,
            now=window.start + place.frame,
        )

    def answer(self, place: Place, choice: TilingChoice) -> str:
        """The target's text for the window, or the reason why there is none.

        Raises:
            AvomniError: as `grid_frame`.
        """
        window = self._need_window(place, choice)[place.window]
        asked = target(self.p.training.target)
        windows = None if asked.scenes else self.windows(place.clip_id, choice, asked.horizon_s)
        if windows is None:  # only the cache has other road users, at its own rate
            if self.cache is None or choice.sample_hz != self.cache.sample_hz:
                return f"{asked.name} speaks of other road users: 03_etl reads them, at its rate"
            try:
                split = self.listed[place.clip_id].split
                windows = samples.windows_of(choice.laid_over(self.p), split, self.cache)
            except AvomniError as error:
                return str(error)
        wanted = (window.clip_id, window.number)
        matching = (i for i, w in enumerate(windows) if (w.clip_id, w.number) == wanted)
        index = next(matching, None)
        return LEFT_OUT if index is None else asked.render(windows.truth(index))

    @functools.cached_property
    def footage(self) -> Footage:
        """Number, duration and video properties of the run's clips."""
        clip = None
        with contextlib.suppress(AvomniError):
            clip = self.raw.clip(next(iter(self.listed)))
        return Footage.of(self.p, len(self.listed), clip)

    def _need_window(self, place: Place, choice: TilingChoice) -> Windows:
        windows = self.windows(place.clip_id, choice)
        if not len(windows):
            frames = len(self.motion(place.clip_id, choice.sample_hz).times)
            raise none_fits(frames, choice.laid_over(self.p).processing, f"clip {place.clip_id}")
        return windows
