"""One clip to the arrays of the cache: a pure function, run by the worker processes of `build`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avomni_lib.dataset import rig
from avomni_lib.dataset.clip import Clip
from avomni_lib.errors import AvomniError
from avomni_lib.etl import obstacles, tiling, video
from avomni_lib.etl.egomotion import Egomotion, Poses

HISTORY_S = 1.6
TRACK_HZ = 10
MAX_AGE_S = 0.5


@dataclass(frozen=True)
class Recipe:
    """All that a clip's arrays depend on besides the clip.

    Attributes:
        setup: Name of the grid.
        tile: (width, height) px of one camera.
        fit: `letterbox`, `crop` or `stretch`.
        sample_hz: Sampled frames a second.
        horizon_s: Seconds of ego motion kept after the last frame.
        decoder: `pyav`, `decord` or `torchcodec`.
        obstacles: Whether other road users and events are kept.
    """

    setup: str
    tile: tiling.Size
    fit: str
    sample_hz: float
    horizon_s: float
    decoder: str
    obstacles: bool = False


def sample_times(starts_us: list[int], ends_us: list[int], sample_hz: float) -> np.ndarray:
    """The wanted times: t_start + k / sample_hz, (N,) int64 µs.

    t_start is the first time at which every source (the cameras by `steady_start`, and the ego
    motion) has something to show, and the times go on as long as all of them do.

    Raises:
        AvomniError: they share no time.
    """
    start, end = max(starts_us), min(ends_us)
    if end < start:
        raise AvomniError(
            f"cameras and ego motion share no time: the last one starts at {start} µs, "
            f"the first one ends at {end} µs"
        )
    count = int((end - start) * sample_hz / 1e6) + 1
    times = start + np.rint(np.arange(count + 1) * 1e6 / sample_hz).astype(np.int64)
    return times[times <= end]


def steady_start(stamps: Sequence[np.ndarray]) -> int:
    """When to start sampling, µs: within a frame of when every camera has its first picture.

    Times that fall on a camera's stamps would take now this frame and now the one before it, as
    stamps jitter by some tens of µs: 7 to 15 % of the intervals were a frame too short or too long
    on 30 fps clips sampled at 10 Hz. So the middle of the widest gap between stamps is taken.

    Args:
        stamps: (N,) int64 µs of each camera.
    """
    first = max(int(each[0]) for each in stamps)
    interval = min(int(np.median(np.diff(each))) for each in stamps if len(each) > 1)
    within = [each[(each >= first) & (each <= first + interval)] for each in stamps]
    edges = np.unique(np.concatenate([*within, [first, first + interval]]))
    widest = int(np.argmax(np.diff(edges)))
    return int(edges[widest : widest + 2].mean())


@dataclass(frozen=True)
class Sampled:
    """What `sample_clip` makes of a clip.

    Attributes:
        arrays: The cache's, N frames of them: frames, timestamps, times, egomotion and track; and
            obstacles where the recipe asks for them.
        note: Which part of the clip they are, and why not all of it; None for a whole clip.
        told: What the clip's row of the header tells of others and events.
    """

    arrays: dict[str, np.ndarray]
    note: str | None
    told: dict[str, Any] = field(default_factory=dict)


def sample_clip(clip: Clip, recipe: Recipe) -> Sampled:
    """One clip's arrays.

    Each camera's frame is the last one at or before the wanted time. Of a clip that is damaged in
    places the longest run of times is taken at which all cameras and the ego motion are sound.
    Distances count from the run's first time, so that those of the track before it are negative.

    Raises:
        AvomniError: a part of the clip is missing, cameras and ego motion share no time, or nothing
            that lasts is sound.
    """
    grid = rig.grid(recipe.setup)
    stamps = {camera.name: clip.timestamps(camera.name) for camera in grid.cameras}
    for name, stamp in stamps.items():
        video.frame_indices(stamp, stamp[:1], f"{name} of clip {clip.clip_id}")
    first, last = max(s[0] for s in stamps.values()), min(s[-1] for s in stamps.values())
    times, ego, fault = clip_times(clip, list(stamps.values()), recipe.sample_hz, recipe.horizon_s)
    width, height = tiling.grid_size(grid, recipe.tile)
    frames = np.zeros((len(times), height, width, 3), dtype=np.uint8)
    taken = np.empty((len(times), len(grid.cameras)), dtype=np.int64)
    faults: dict[int, AvomniError] = {}
    for column, camera in enumerate(grid.cameras):
        tile = tiling.tile_of(frames, grid, recipe.tile, camera.name)
        drawn = draw_camera(clip, camera.name, times, stamps[camera.name], recipe, tile)
        taken[:, column] = drawn.timestamps_us
        faults = {**_faults(drawn, times, f"{camera.name} of clip {clip.clip_id}"), **faults}
    run, reasons = _longest_run(times, faults)
    times, reasons = times[run], [fault, *reasons] if fault else reasons
    arrays = {
        "frames": frames[run],
        "timestamps": taken[run],
        **clip_motion(ego, times, recipe.horizon_s),
    }
    told: dict[str, Any] = {}
    if recipe.obstacles:
        arrays["obstacles"], told = obstacles.read(clip, ego, times)
    return Sampled(arrays, _note(clip, times, int(first), int(last), reasons), told)


def clip_times(
    clip: Clip, stamps: Sequence[np.ndarray], sample_hz: float, horizon_s: float
) -> tuple[np.ndarray, Egomotion, AvomniError | None]:
    """When a clip is sampled, and the ego motion that this follows from.

    Args:
        stamps: (N,) int64 µs of each camera.

    Returns:
        (N,) int64 µs, the sound ego motion, and why it is not all where it is not.

    Raises:
        AvomniError: no ego motion is sound, or it shares no time with the cameras.
    """
    first, last = max(int(s[0]) for s in stamps), min(int(s[-1]) for s in stamps)
    ego, fault = _egomotion(clip, first, last, horizon_s)
    starts, ends = [steady_start(stamps), int(ego.t_us[0])], [last, int(ego.t_us[-1])]
    return sample_times(starts, ends, sample_hz), ego, fault


def clip_motion(ego: Egomotion, times: np.ndarray, horizon_s: float) -> dict[str, np.ndarray]:
    """The cache's `times`, `egomotion` and `track` of a clip that is sampled at these times."""
    poses, track = ego.at(times), _track(ego, times, horizon_s)
    zero = poses.distance_m[0]
    return {
        "times": times,
        "egomotion": _columns(poses, poses.velocity, (poses.distance_m - zero)[:, None]),
        "track": np.hstack(
            [track.t_us[:, None], _columns(track, (track.distance_m - zero)[:, None])]
        ),
    }


def draw_camera(
    clip: Clip,
    name: str,
    times: np.ndarray,
    stamps: np.ndarray,
    recipe: Recipe,
    tile: np.ndarray,
) -> video.Frames:
    """Fill one camera's tile in all frames that its video yields; returns what was read."""
    frames = video.read_frames(
        clip.video(name),
        times,
        timestamps_us=stamps,
        size=lambda *source: tiling.fit_tile(source, recipe.tile, recipe.fit).resized,
        decoder=recipe.decoder,
        partly=True,
    )
    tiling.fit_tile(frames.source_size, recipe.tile, recipe.fit).place(frames.images, tile)
    return frames


def _egomotion(
    clip: Clip, first_us: int, last_us: int, horizon_s: float
) -> tuple[Egomotion, AvomniError | None]:
    """The clip's ego motion, or the most of it that is sound, and why it is not all."""
    span = (int(first_us - HISTORY_S * 1e6), int(last_us + horizon_s * 1e6))
    try:
        return Egomotion.soundest(clip.egomotion(), span, (first_us, last_us))
    except AvomniError as error:
        where = error.where or f"egomotion of clip {clip.clip_id}"
        raise AvomniError(error.what, where=where, fix=error.fix) from None


def _faults(frames: video.Frames, times: np.ndarray, where: str) -> dict[int, AvomniError]:
    """Index of a time -> why the camera has nothing to show then."""
    age = times - frames.timestamps_us
    stale = {
        int(i): AvomniError(
            f"nothing new for {age[i] / 1e6:.2f} s at {times[i]} µs; {MAX_AGE_S} s is the most",
            where=where,
        )
        for i in np.flatnonzero(age > MAX_AGE_S * 1e6)
    }
    return stale | frames.lost


def _longest_run(
    times: np.ndarray, faults: dict[int, AvomniError]
) -> tuple[slice, list[AvomniError]]:
    """The longest run of times without a fault, the first of equals; and what bounds it.

    Raises:
        AvomniError: no two times in a row are without.
    """
    if not faults:
        return slice(None), []
    edges = [-1, *sorted(faults), len(times)]
    start, stop = max(
        ((before + 1, after) for before, after in itertools.pairwise(edges)),
        key=lambda run: run[1] - run[0],
    )
    if stop - start < 2:
        raise faults[min(faults)]
    return slice(start, stop), [faults[i] for i in (start - 1, stop) if i in faults]


def _note(
    clip: Clip, times: np.ndarray, first_us: int, last_us: int, reasons: list[AvomniError]
) -> str | None:
    if not reasons:
        return None
    used = f"used {(times[0] - first_us) / 1e6:.1f} to {(times[-1] - first_us) / 1e6:.1f} s"
    told = [error.what + (f" ({error.where})" if error.where else "") for error in reasons]
    why = "; ".join(dict.fromkeys(told)).replace(f"{clip.folder}/", "")
    return f"{used} of {(last_us - first_us) / 1e6:.1f} s: {why}"


def _track(ego: Egomotion, times: np.ndarray, horizon_s: float) -> Poses:
    """Poses at 10 Hz around the clip, its first time among them, as far as the ego motion goes."""
    before = min(HISTORY_S, (times[0] - ego.t_us[0]) / 1e6)
    after = min((times[-1] - times[0]) / 1e6 + horizon_s, (ego.t_us[-1] - times[0]) / 1e6)
    steps = np.arange(-int(before * TRACK_HZ), int(after * TRACK_HZ) + 1)
    return ego.at(times[0] + steps * (1_000_000 // TRACK_HZ))


def _columns(poses: Poses, *more: np.ndarray) -> np.ndarray:
    return np.hstack([poses.position, poses.quaternion, *more])
