"""What 04 shows of a clip, a window and a frame under a choice of tiling; no widgets here."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS
from avomni_lib.etl.cache.windows import Window, Windows, none_fits
from avomni_lib.notebook.plots import tiles
from avomni_lib.notebook.tiles.choice import Choice
from avomni_lib.notebook.tiles.clips import Clips, OneClip
from avomni_lib.notebook.tiles.cost import Footage
from avomni_lib.notebook.tiles.raw_frames import RawFrames
from avomni_lib.params import Params
from avomni_lib.training.prompt import samples
from avomni_lib.training.targets import target


@dataclasses.dataclass(frozen=True)
class Place:
    """What is looked at: a frame of a window of a clip."""

    clip_id: str
    window: int
    frame: int


class Preview:
    """Grids, drives and answers of a run's clips under any choice.

    Args:
        p: The run; its cache must be there, or the raw clips that 02 has fetched.

    Raises:
        AvomniError: there is neither.
    """

    def __init__(self, p: Params):
        self.p, self.raw = p, RawFrames(p)
        self.clips = Clips(p, self.raw)
        self._footage: Footage | None = None

    def is_cached(self, choice: Choice) -> bool:
        """Whether the cache has the frames of this choice."""
        cache = self.clips.cache
        if cache is None:
            return False
        header = (cache.grid.cells, cache.grid.cols, cache.tile, cache.header["fit"])
        wanted = (choice.grid.cells, choice.grid.cols, choice.tile, choice.fit)
        return header == wanted and cache.sample_hz == choice.sample_hz

    def windows(self, clip_id: str, choice: Choice, horizon_s: float = 0.0) -> Windows:
        """The windows of one clip that have the past that the run shows."""
        motion = self.clips.motion(clip_id, choice.sample_hz)
        one = OneClip.of(self.clips.listed[clip_id], motion)
        length, stride = choice.sequence_length, self.p.processing.stride
        past = samples.past_of(choice.laid_over(self.p))
        return Windows(one, length, stride, horizon_s=horizon_s, past=past)

    def count(self, clip_id: str, choice: Choice) -> int:
        """How many windows the clip has; 0 where its motion cannot be read."""
        with contextlib.suppress(AvomniError):
            return len(self.windows(clip_id, choice))
        return 0

    def nearest_window(self, place: Place, before: Choice, choice: Choice) -> int:
        """The window of a new rate or length that starts nearest to where one started before."""
        count = self.count(place.clip_id, choice)
        if not count or not self.count(place.clip_id, before):
            return 0
        old, new = self.windows(place.clip_id, before), self.windows(place.clip_id, choice)
        start = old.times_us(min(place.window, len(old) - 1))[0]
        return int(np.argmin([abs(new.times_us(i)[0] - start) for i in range(count)]))

    def grid_frame(self, place: Place, choice: Choice) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the frame as the model would see it.

        Raises:
            AvomniError: the choice needs raw files that are not on the disk, or damaged; or the
                clip has no such window.
        """
        windows = self._need_window(place, choice)
        if self.is_cached(choice):
            row = windows[place.window].start + place.frame
            return self.clips.cached_frame(place.clip_id, row)
        times_us = windows.times_us(place.window)
        return self.raw.grid_frame(place.clip_id, times_us, place.frame, choice)

    def drive(self, place: Place, choice: Choice) -> tiles.Drive:
        """Where the car goes during the clip, with the window and the frame shown.

        Raises:
            AvomniError: as `grid_frame`.
        """
        window = self._need_window(place, choice)[place.window]
        motion = self.clips.motion(place.clip_id, choice.sample_hz)
        ego = dict(zip(EGOMOTION_COLUMNS, motion.egomotion.T, strict=True))
        turn = Rotation.from_quat(np.stack([ego[name] for name in ("qx", "qy", "qz", "qw")], 1))
        return tiles.Drive(
            times_s=(motion.times - motion.times[0]) / 1e6,
            xy_m=np.stack([ego["x"], ego["y"]], axis=1),
            yaw_rad=turn.as_euler("ZYX")[:, 0],
            speed_mps=motion.speed_mps,
            start=window.start,
            stop=window.stop,
            now=window.start + place.frame,
        )

    def answer(self, place: Place, choice: Choice) -> str:
        """The text that the model must say about the window; or why there is none.

        Raises:
            AvomniError: as `grid_frame`.
        """
        asked = target(self.p.training.target)
        if asked.scenes:
            return self._answer_of_scenes(place, choice)
        told = self.windows(place.clip_id, choice, asked.horizon_s)
        index = _index_of(told, self._need_window(place, choice)[place.window])
        if index is None:
            return (
                f"05_train leaves this window out: the clip's ego motion ends before the "
                f"{asked.horizon_s:g} s after it that {asked.name} speaks of"
            )
        return asked.render(told.truth(index))

    def footage(self) -> Footage:
        """What the run's clips are like, from the first raw one where it can be read."""
        if self._footage is None:
            clip = None
            with contextlib.suppress(AvomniError):
                clip = self.raw.clip(next(iter(self.clips.listed)))
            self._footage = Footage.of(self.p, len(self.clips.listed), clip)
        return self._footage

    def too_short(self, clip_id: str, choice: Choice) -> AvomniError:
        """Why a clip has no window."""
        frames = len(self.clips.motion(clip_id, choice.sample_hz).times)
        return none_fits(frames, choice.laid_over(self.p).processing, f"clip {clip_id}")

    def _need_window(self, place: Place, choice: Choice) -> Windows:
        windows = self.windows(place.clip_id, choice)
        if not len(windows):
            raise self.too_short(place.clip_id, choice)
        return windows

    def _answer_of_scenes(self, place: Place, choice: Choice) -> str:
        """Other road users are in the cache alone, and at its own rate."""
        cache, asked = self.clips.cache, self.p.training.target
        if cache is None or choice.sample_hz != cache.sample_hz:
            return f"{asked} speaks of other road users: 03_etl reads them, at the rate of the run"
        try:
            split = self.clips.listed[place.clip_id].split
            told = samples.windows_of(choice.laid_over(self.p), split, cache)
        except AvomniError as error:
            return str(error)
        index = _index_of(told, self._need_window(place, choice)[place.window])
        if index is None:
            return "05_train leaves this window out: the clip's ego motion ends too soon after it"
        return target(asked).render(told.truth(index))


def _index_of(windows: Windows, window: Window) -> int | None:
    """Where a window stands among those that a target can be told of."""
    wanted = (window.clip_id, window.number)
    return next((i for i, w in enumerate(windows) if (w.clip_id, w.number) == wanted), None)


def source_in_words(preview: Preview, choice: Choice) -> str:
    """Where the picture comes from."""
    told = "the cache" if preview.is_cached(choice) else "the raw clip"
    if preview.clips.cache is None:
        told += "; there is no cache yet"
    return told + ("; raw files are evicted" if preview.clips.is_evicted else "")
