"""The window that a model answers, from a cache, a clip or videos, built as in the ETL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import open_clip
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import CLIPS_FILE, Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip import sampling
from avomni_lib.etl.run.build import recipe_of
from avomni_lib.etl.video import reader
from avomni_lib.evaluation.answer import held_out_windows
from avomni_lib.params import Params
from avomni_lib.training.prompt import history, past, samples, tokens
from avomni_lib.training.targets import Content, target_of


@dataclass(frozen=True)
class Subject:
    """A window to answer.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        times_us: (T,) int64 µs on the clip's clock.
        history: Text of the car's past motion; empty unless `prompt.ego_history` is on.
        truth: The ground truth as the target's text; None if unknown.
        true: The ground truth as numbers; None if unknown.
        lens: Intrinsics and pose of the front camera, as returned by `Clip`; None if unknown.
    """

    name: str
    frames: np.ndarray
    times_us: np.ndarray
    history: str = ""
    truth: str | None = None
    true: Content | None = None
    lens: tuple[Mapping[str, float], Mapping[str, float]] | None = None


def of_window(p: Params, index: int) -> Subject:
    """A window of `evaluation.split`, by its index among the windows of 06.

    Raises:
        AvomniError: there is no cache, or no window of that index.
    """
    windows = held_out_windows(p)
    if not 0 <= index < len(windows):
        raise AvomniError(
            f"no window {index}: the split {p.evaluation.split!r} has {len(windows):,}",
            where="--window",
            fix=f"choose from 0 to {len(windows) - 1}",
        )
    return _cached(p, windows, index)


def of_clip(p: Params, clip_id: str, at_s: float | None = None) -> Subject:
    """The last window of a clip, or the last one that ends at or before `at_s` seconds.

    It is read from the run's cache if the clip is in it, else from the clip's raw files.

    Raises:
        AvomniError: no such clip, its raw files are missing or damaged, or it is too short.
    """
    cache = Cache.open(p.cache_dir) if (p.cache_dir / CLIPS_FILE).exists() else None
    if cache is not None and clip_id in {clip.clip_id for clip in cache.clips}:
        shape = (cache, p.processing.sequence_length, p.processing.stride)
        older = samples.past_of(p)
        windows = Windows(*shape, horizon_s=target_of(p).horizon_s, past=older)
        if not any(window.clip_id == clip_id for window in windows):
            windows = Windows(*shape, past=older)
        indices = [i for i, window in enumerate(windows) if window.clip_id == clip_id]
        if at_s is not None and indices:
            cached = cache.clips[windows[indices[0]].clip_idx]
            last_us = cache.shards[cached.shard].times[cached.start] + (at_s + 1e-9) * 1e6
            indices = [i for i in indices if windows.times_us(i)[-1] <= last_us]
        if not indices:
            raise _too_short(p, f"clip {clip_id}", at_s)
        return _cached(p, windows, indices[-1])
    clip = open_clip(p.local_dir, Catalog.of(p), clip_id)
    arrays = sampling.sample_clip(clip, _recipe(p)).arrays
    rows = _rows(p, arrays["times"], f"clip {clip_id}", at_s)
    refuse_history(p, f"clip {clip_id}")
    return Subject(
        f"clip {clip_id}, {_seconds(arrays['times'], rows)}",
        arrays["frames"][rows],
        arrays["times"][rows],
        lens=lens_of(p, clip_id),
    )


def of_folder(p: Params, folder: Path, at_s: float | None = None) -> Subject:
    """A window of videos named after the grid's cameras (`camera_front_wide_120fov.mp4`).

    All videos start at the same time; frames are sampled by each file's own timestamps.

    Raises:
        AvomniError: a camera's video is missing or damaged, the videos are too short, or the
            prompt needs the car's past motion, which videos do not contain.
    """
    refuse_history(p, f"videos in {folder}")
    names = [camera.name for camera in cameras.grid(p.vision.cameras).cameras]
    paths = {name: folder / f"{name}.mp4" for name in names}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        raise AvomniError(
            f"videos are missing: {', '.join(missing)}",
            where=str(folder),
            fix="name one mp4 a camera of vision.cameras by the camera's name",
        )
    stamps = {name: reader.frame_times(path) for name, path in paths.items()}
    end_us = min(int(times[-1]) for times in stamps.values())
    keys = [reader.key_rows(path) for path in paths.values()] if p.processing.align else []
    times, _ = sampling.times_of(list(stamps.values()), end_us, p.processing.sample_hz, keys)
    rows = _rows(p, times, f"videos in {folder}", at_s)
    frames, _ = sampling.draw(paths, stamps, times[rows], _recipe(p))
    return Subject(f"{folder.name}, {_seconds(times, rows)}", frames, times[rows])


def _cached(p: Params, windows: Windows, index: int) -> Subject:
    window, asked = windows[index], target_of(p)
    truth = windows.truth(index)
    is_known = not asked.horizon_s or truth.future is not None
    past_motion = ""
    if p.prompt.ego_history:
        past_motion = history.of_window(windows, index, asked, p.processing.own_from_s)
    return Subject(
        f"window {window.number} of clip {window.clip_id}",
        np.array(windows.frames(index)),
        np.array(windows.times_us(index)),
        past_motion,
        asked.render(truth) if is_known else None,
        asked.of(truth) if is_known else None,
        lens_of(p, window.clip_id),
    )


def _recipe(p: Params) -> sampling.Recipe:
    """The run's sampling recipe without anything beyond the last frame."""
    return replace(recipe_of(p), horizon_s=0.0, obstacles=False)


def _rows(p: Params, times: np.ndarray, what: str, at_s: float | None) -> np.ndarray:
    """Rows of the last window, or of the last one that ends at or before `at_s`."""
    shown = np.array(past.rows(p, tokens.backbone_of(p)))
    last = len(times) - 1
    if at_s is not None:
        last = int(np.searchsorted((times - times[0]) / 1e6, at_s + 1e-9, "right")) - 1
    if last - shown[-1] + shown[0] < 0:
        raise _too_short(p, what, at_s)
    return shown + last - shown[-1]


def _too_short(p: Params, what: str, at_s: float | None) -> AvomniError:
    span = p.processing.sequence_length + p.processing.reach
    seconds = (span - 1) / p.processing.sample_hz
    until = "" if at_s is None else f" before {at_s:g} s"
    return AvomniError(
        f"no window{until}: {span} frames at {p.processing.sample_hz:g} Hz take {seconds:g} s",
        where=what,
        fix="name a later --at" if at_s is not None else "take a longer recording",
    )


def refuse_history(p: Params, what: str) -> None:
    """Refuse a source without past motion if the prompt needs it.

    Raises:
        AvomniError: `prompt.ego_history` is on.
    """
    if p.prompt.ego_history:
        raise AvomniError(
            "the prompt of this model contains the car's past motion, which is not known here",
            where=what,
            fix="ask about a window of the run's cache (--window), or use an adapter that was "
            "trained with prompt.ego_history: false",
        )


def _seconds(times: np.ndarray, rows: np.ndarray) -> str:
    first, last = ((times[row] - times[0]) / 1e6 for row in (rows[0], rows[-1]))
    return f"{first:.1f} s to {last:.1f} s"


def lens_of(p: Params, clip_id: str) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
    """The front camera's calibration; None if its files are missing or it is only assumed."""
    name = cameras.grid(p.vision.cameras).front.name
    if p.lerobot_profile:
        return None
    try:
        clip = open_clip(p.local_dir, Catalog.of(p), clip_id)
        return clip.intrinsics(name), clip.extrinsics(name)
    except AvomniError:
        return None
