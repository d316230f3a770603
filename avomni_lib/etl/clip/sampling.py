"""One clip to the arrays of the cache: a pure function, run by the worker processes of `build`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avomni_lib import grids
from avomni_lib.dataset import calibration, cameras, checks, findings
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.limits import HISTORY_S
from avomni_lib.dataset.streams import Source
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import obstacles, phase, prints, tiling
from avomni_lib.etl.clip.egomotion import Egomotion
from avomni_lib.etl.video import reader, stream
from avomni_lib.etl.video.stream import Stream

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
        align: `keyframes`, or None: whether the wanted times are moved, as `phase` says.
    """

    setup: str | grids.Rows
    tile: tiling.Size
    fit: str
    sample_hz: float
    horizon_s: float
    decoder: str
    obstacles: bool = False
    align: str | None = None


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
        told: What the clip's row of the header tells of others and events; and `phase_us`, by how
            much `processing.align` has moved the wanted times.
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
    with contextlib.ExitStack() as held:
        videos: dict[str, Source | Stream] = {name: clip.video(name) for name in stamps}
        if recipe.align:
            # Opened once for their key frames and their pictures, so all of them are held.
            videos = {n: held.enter_context(stream.opened(videos[n])) for n in stamps}
        return _sample(clip, recipe, stamps, videos)


def _sample(
    clip: Clip,
    recipe: Recipe,
    stamps: Mapping[str, np.ndarray],
    videos: Mapping[str, Source | Stream],
) -> Sampled:
    grid = cameras.grid(recipe.setup)
    keys = [each.key_rows for each in videos.values() if isinstance(each, stream.Stream)]
    times, ego, phase_us = clip_times(
        clip, list(stamps.values()), recipe.sample_hz, recipe.horizon_s, keys
    )
    width, height = tiling.grid_size(grid, recipe.tile)
    frames = np.zeros((len(times), height, width, 3), dtype=np.uint8)
    taken = np.empty((len(times), len(grid.cameras)), dtype=np.int64)
    rows: list[tuple[str, str, Mapping[str, float], tuple[int, int] | None]] = []
    for column, camera in enumerate(grid.cameras):
        tile = tiling.tile_of(frames, grid, recipe.tile, camera.name)
        drawn = draw_camera(videos[camera.name], times, stamps[camera.name], recipe, tile)
        taken[:, column] = drawn.timestamps_us
        rows += [
            ("camera_intrinsics", camera.name, clip.intrinsics(camera.name), drawn.stored_size),
            ("sensor_extrinsics", camera.name, clip.extrinsics(camera.name), None),
        ]
    rows.append(("vehicle_dimensions", "vehicle", clip.vehicle(), None))
    for feature, name, row, size in rows:
        found = calibration.row(feature, name, row, size)
        findings.refuse(found, f"{feature} of clip {clip.clip_id}")
    hashes = prints.of_frames(frames, grid, recipe.tile)
    arrays = {"frames": frames, "prints": hashes, "timestamps": taken}
    arrays |= clip_motion(ego, times, recipe.horizon_s)
    told: dict[str, Any] = {}
    if recipe.obstacles:
        arrays["obstacles"], told = obstacles.read(clip, ego, times)
    if phase_us:
        told["phase_us"] = phase_us
    return Sampled(arrays, told)


def clip_times(
    clip: Clip,
    stamps: Sequence[np.ndarray],
    sample_hz: float,
    horizon_s: float,
    keys: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, Egomotion, int]:
    """When a clip is sampled, (N,) int64 µs, the ego motion that this follows from, and the phase.

    Args:
        stamps: (N,) int64 µs of each camera.
        keys: Of each camera the rows of its key frames; none where nothing is aligned.

    Raises:
        AvomniError: the ego motion is damaged or does not cover what all cameras show, or there is
            no such time.
    """
    first, last = checks.common([(int(s[0]), int(s[-1])) for s in stamps])
    where = f"egomotion of clip {clip.clip_id}"
    columns = clip.egomotion()
    findings.refuse(checks.egomotion(columns, first, last, horizon_s)[1], where)
    ego = Egomotion.from_columns(columns, (first, int(last + horizon_s * 1e6)))
    times, phase_us = times_of(stamps, last, sample_hz, keys)
    return times, ego, phase_us


def times_of(
    stamps: Sequence[np.ndarray], last_us: int, sample_hz: float, keys: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, int]:
    """(wanted times, (N,) int64 µs; by how much they were moved for key frames, µs).

    Moved ones begin within a step of where they would have: by a negative phase the first of them
    would be before all cameras show something, and is left out.

    Args:
        stamps, keys: As `clip_times` takes them.
        last_us: The last moment that all of them show.
    """
    # Where cameras share less than an interval, they share their last moment.
    start = min(steady_start(stamps), last_us)
    times = sample_times([start], [last_us], sample_hz)
    step_us = 1e6 / sample_hz
    moved = phase.shift_us(times, stamps, keys, step_us) if keys else 0
    first = start + moved + (round(step_us) if moved < 0 else 0)
    if not moved or first > last_us:
        return times, 0
    return sample_times([first], [last_us], sample_hz), moved


def clip_motion(ego: Egomotion, times: np.ndarray, horizon_s: float) -> dict[str, np.ndarray]:
    """The cache's `times`, `egomotion` and `track` of a clip that is sampled at these times.

    The track has poses at 10 Hz around the clip, its first time among them, as far as the ego
    motion goes.
    """
    before = min(HISTORY_S, (times[0] - ego.t_us[0]) / 1e6)
    after = min((times[-1] - times[0]) / 1e6 + horizon_s, (ego.t_us[-1] - times[0]) / 1e6)
    steps = np.arange(-int(before * TRACK_HZ), int(after * TRACK_HZ) + 1)
    poses, track = ego.at(times), ego.at(times[0] + steps * (1_000_000 // TRACK_HZ))
    way, track_way = (each.distance_m[:, None] - poses.distance_m[0] for each in (poses, track))
    return {
        "times": times,
        "egomotion": np.hstack([poses.position, poses.quaternion, poses.velocity, way]),
        "track": np.hstack([track.t_us[:, None], track.position, track.quaternion, track_way]),
    }


def draw_camera(
    video: Source | Stream,
    times: np.ndarray,
    stamps: np.ndarray,
    recipe: Recipe,
    tile: np.ndarray,
) -> reader.VideoFrames:
    """Fill one camera's tile in all frames; returns what was read."""
    size = tile.shape[2], tile.shape[1]
    frames = reader.read_frames(
        video,
        times,
        timestamps_us=stamps,
        size=lambda *source: tiling.fit_tile(source, size, recipe.fit).resized,
        decoder=recipe.decoder,
    )
    tiling.fit_tile(frames.source_size, size, recipe.fit).place(frames.images, tile)
    return frames
