"""The clips that 04 can show: those of the cache or, before there is one, the raw ones.

Of each, the sampled times and the ego motion at them; from the cache where it was sampled at the
rate that is asked for, else from the raw clip as 03 would sample it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.select.evicted import read_evicted
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS, Cache, CachedClip
from avomni_lib.etl.clip import sampling
from avomni_lib.etl.run import forecast
from avomni_lib.notebook.tiles.raw_frames import RawFrames
from avomni_lib.params import Params

VELOCITY = [EGOMOTION_COLUMNS.index(name) for name in ("vx", "vy", "vz")]
MOST_READ = 300  # raw clips whose speed is read for the list: some ms each
MOST_MOTIONS = 32


@dataclass(frozen=True)
class Listed:
    """A clip in the list; speeds (m/s) and country are None where they are not known."""

    clip_id: str
    split: str
    country: str | None
    mean_mps: float | None
    max_mps: float | None


@dataclass(frozen=True)
class Motion:
    """One clip's sampled times and ego motion, as a shard of a cache has them.

    Attributes:
        times: (N,) int64 µs.
        egomotion: (N, 11) float64, columns `EGOMOTION_COLUMNS`.
        track: (M, 9) float64, columns `TRACK_COLUMNS`.
    """

    times: np.ndarray
    egomotion: np.ndarray
    track: np.ndarray

    @property
    def speed_mps(self) -> np.ndarray:
        """(N,)."""
        return np.linalg.norm(self.egomotion[:, VELOCITY], axis=1)


@dataclass(frozen=True)
class OneClip:
    """A cache of one clip, as far as `Windows` looks at one for anything but frames."""

    clips: tuple[CachedClip]
    shards: tuple[Motion]

    @classmethod
    def of(cls, listed: Listed, motion: Motion) -> OneClip:
        sizes = (0, len(motion.times), 0, len(motion.track))
        return cls((CachedClip(listed.clip_id, listed.split, 0, 0, *sizes),), (motion,))


class Clips:
    """Which clips there are, and how each one moves.

    Attributes:
        cache: The run's; None where it is not there yet.
        listed: By clip_id, in the order of the cache or the catalog.
        is_evicted: Whether raw files of the run were removed on purpose.
    """

    def __init__(self, p: Params, raw: RawFrames):
        self.p, self.raw = p, raw
        self.cache = _cache_of(p)
        self.is_evicted = bool(read_evicted(p))
        self._motions: OrderedDict[tuple[str, float], Motion] = OrderedDict()
        self._cached = {clip.clip_id: clip for clip in self.cache.clips} if self.cache else {}
        splits = {name: clip.split for name, clip in self._cached.items()} or _chosen_splits(p)
        if not self._cached:
            splits = {name: splits[name] for name in raw.catalog.clip_ids() if name in splits}
        self.listed = {
            name: self._listed(name, split, number)
            for number, (name, split) in enumerate(splits.items())
        }
        if not self.listed:
            raise AvomniError(
                "no clip to look at", where=str(p.run_dir), fix="run 02_download, then 03_etl"
            )

    def motion(self, clip_id: str, sample_hz: float) -> Motion:
        """The clip's times and ego motion at this rate.

        Raw clips are timed by the cameras of the run's own setup, whatever setup is looked at, so
        that another one shows the same instants.

        Raises:
            AvomniError: it has to be read from raw files, and they are not there or damaged.
        """
        key = (clip_id, sample_hz)
        if key not in self._motions:
            is_cached = clip_id in self._cached and sample_hz == self.cache.sample_hz
            read = self._cached_motion if is_cached else self._raw_motion
            self._motions[key] = read(*key)
            while len(self._motions) > MOST_MOTIONS:
                self._motions.popitem(last=False)
        self._motions.move_to_end(key)
        return self._motions[key]

    def cached_frame(self, clip_id: str, frame: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB: a frame of the clip out of the cache.

        Args:
            frame: Counted from the clip's first.
        """
        clip = self._cached[clip_id]
        row = clip.start + frame
        return self.cache.shards[clip.shard].frames[row : row + 1][0]

    def _listed(self, clip_id: str, split: str, number: int) -> Listed:
        speeds, country = None, None
        with contextlib.suppress(AvomniError):
            if clip_id in self._cached:
                speeds = self._cached_motion(clip_id).speed_mps
            elif number < MOST_READ:
                speeds = self._raw_speeds(clip_id)
        with contextlib.suppress(AvomniError):
            country = self.raw.catalog.attributes(clip_id)["country"]
        told = (None, None) if speeds is None else (float(speeds.mean()), float(speeds.max()))
        return Listed(clip_id, split, country, *told)

    def _cached_motion(self, clip_id: str, _: float = 0.0) -> Motion:
        clip = self._cached[clip_id]
        shard, rows = self.cache.shards[clip.shard], slice(clip.start, clip.stop)
        track = shard.track[clip.track_start : clip.track_stop]
        return Motion(shard.times[rows], shard.egomotion[rows], track)

    def _raw_speeds(self, clip_id: str) -> np.ndarray:
        ego = self.raw.clip(clip_id).egomotion()
        # It starts before the video, which starts about 0, and runs far past it.
        last_us = 1e6 * forecast.clip_seconds(self.p)
        during = (ego["timestamp"] >= 0) & (ego["timestamp"] <= last_us)
        return np.linalg.norm([ego[name][during] for name in ("vx", "vy", "vz")], axis=0)

    def _raw_motion(self, clip_id: str, sample_hz: float) -> Motion:
        """As `sampling.sample_clip` samples a sound clip."""
        clip, horizon_s = self.raw.clip(clip_id), self.p.processing.horizon_s
        grid = cameras.grid(self.p.vision.cameras)
        stamps = [clip.timestamps(camera.name) for camera in grid.cameras]
        times, ego = sampling.clip_times(clip, stamps, sample_hz, horizon_s)
        return Motion(**sampling.clip_motion(ego, times, horizon_s))


def _cache_of(p: Params) -> Cache | None:
    """The run's cache; None where there is none, or it is not finished."""
    with contextlib.suppress(AvomniError):
        return Cache.open(p.cache_dir)
    return None


def _chosen_splits(p: Params) -> dict[str, str]:
    chosen = read_chosen(p).clip_ids
    return {clip_id: split for split, ids in chosen.items() for clip_id in ids}
