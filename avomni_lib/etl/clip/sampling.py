"""One clip to the arrays of the cache: a pure function, run by the worker processes of `build`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avomni_lib import grids
from avomni_lib.dataset import calibration, cameras, checks, findings
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.limits import HISTORY_S
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import obstacles, prints, tiling
from avomni_lib.etl.clip.egomotion import Egomotion, Poses
from avomni_lib.etl.video import reader

TRACK_HZ = 10


@dataclass(frozen=True)
class Recipe:
    """All that a clip's arrays depend on besides the clip.

    Attributes:
        setup: The grid, as `vision.cameras` says it: a preset's name or rows of cameras.
        tile: (width, height) px of one camera.
        fit: `letterbox`, `crop` or `stretch`.
        sample_hz: Sampled frames a second.
        horizon_s: Seconds of ego motion kept after the last frame.
        decoder: `pyav` or `decord`.
        obstacles: Whether other road users and events are kept.
    """

    setup: str | grids.Rows
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
        arrays: The cache's, N frames of them: frames, prints, timestamps, times, egomotion and
            track; and obstacles where the recipe asks for them.
        told: What the clip's row of the header tells of others and events.
    """

    arrays: dict[str, np.ndarray]
    told: dict[str, Any] = field(default_factory=dict)


def sample_clip(clip: Clip, recipe: Recipe) -> Sampled:
    """One clip's arrays.

    Each camera's frame is the last one at or before the wanted time. Distances count from the first
    of these, so that those of the track before it are negative.

    Raises:
        AvomniError: a part of the clip is missing, or is what a full audit calls damaged.
    """
    grid = cameras.grid(recipe.setup)
    stamps = {camera.name: clip.timestamps(camera.name) for camera in grid.cameras}
    times, ego = clip_times(clip, list(stamps.values()), recipe.sample_hz, recipe.horizon_s)
    width, height = tiling.grid_size(grid, recipe.tile)
    frames = np.zeros((len(times), height, width, 3), dtype=np.uint8)
    taken = np.empty((len(times), len(grid.cameras)), dtype=np.int64)
    for column, camera in enumerate(grid.cameras):
        tile = tiling.tile_of(frames, grid, recipe.tile, camera.name)
        drawn = draw_camera(clip, camera.name, times, stamps[camera.name], recipe, tile)
        taken[:, column] = drawn.timestamps_us
        _check_calibration(clip, camera.name, drawn.stored_size)
    _refuse(clip, "vehicle_dimensions", "vehicle", clip.vehicle())
    motion_of = clip_motion(ego, times, recipe.horizon_s)
    hashes = prints.of_frames(frames, grid, recipe.tile)
    arrays = {"frames": frames, "prints": hashes, "timestamps": taken, **motion_of}
    told: dict[str, Any] = {}
    if recipe.obstacles:
        arrays["obstacles"], told = obstacles.read(clip, ego, times)
    return Sampled(arrays, told)


def clip_times(
    clip: Clip, stamps: Sequence[np.ndarray], sample_hz: float, horizon_s: float
) -> tuple[np.ndarray, Egomotion]:
    """When a clip is sampled, (N,) int64 µs, and the ego motion that this follows from.

    Args:
        stamps: (N,) int64 µs of each camera.

    Raises:
        AvomniError: the ego motion is damaged or does not cover what all cameras show, or there is
            no such time.
    """
    first, last = checks.common([(int(s[0]), int(s[-1])) for s in stamps])
    where = f"egomotion of clip {clip.clip_id}"
    columns = clip.egomotion()
    findings.refuse(checks.egomotion(columns, first, last, horizon_s)[1], where)
    ego = Egomotion.from_columns(columns, (first, int(last + horizon_s * 1e6)))
    # Where cameras share less than an interval, they share their last moment.
    return sample_times([min(steady_start(stamps), last)], [last], sample_hz), ego


def _check_calibration(clip: Clip, camera: str, size: tuple[int, int]) -> None:
    _refuse(clip, "camera_intrinsics", camera, clip.intrinsics(camera), size)
    _refuse(clip, "sensor_extrinsics", camera, clip.extrinsics(camera))


def _refuse(
    clip: Clip,
    feature: str,
    name: str,
    row: Mapping[str, float],
    size: tuple[int, int] | None = None,
) -> None:
    found = calibration.row(feature, name, row, size)
    findings.refuse(found, f"{feature} of clip {clip.clip_id}")


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
) -> reader.VideoFrames:
    """Fill one camera's tile in all frames; returns what was read."""
    size = tile.shape[2], tile.shape[1]
    frames = reader.read_frames(
        clip.video(name),
        times,
        timestamps_us=stamps,
        size=lambda *source: tiling.fit_tile(source, size, recipe.fit).resized,
        decoder=recipe.decoder,
    )
    tiling.fit_tile(frames.source_size, size, recipe.fit).place(frames.images, tile)
    return frames


def _track(ego: Egomotion, times: np.ndarray, horizon_s: float) -> Poses:
    """Poses at 10 Hz around the clip, its first time among them, as far as the ego motion goes."""
    before = min(HISTORY_S, (times[0] - ego.t_us[0]) / 1e6)
    after = min((times[-1] - times[0]) / 1e6 + horizon_s, (ego.t_us[-1] - times[0]) / 1e6)
    steps = np.arange(-int(before * TRACK_HZ), int(after * TRACK_HZ) + 1)
    return ego.at(times[0] + steps * (1_000_000 // TRACK_HZ))


def _columns(poses: Poses, *more: np.ndarray) -> np.ndarray:
    return np.hstack([poses.position, poses.quaternion, *more])
