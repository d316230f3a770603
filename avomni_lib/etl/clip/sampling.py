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
from avomni_lib.etl.clip import obstacles, prints, tiling
from avomni_lib.etl.clip.egomotion import Egomotion
from avomni_lib.etl.video import reader, stream
from avomni_lib.etl.video.stream import Stream

TRACK_HZ = 10
LEAST_SHARE = 0.5  # of the wanted frames must become key frames; else nothing is moved


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
        align: `keyframes`, or None: whether the wanted times are moved, as `shift_us` says.
    """

    setup: str | grids.Rows
    tile: tiling.Size
    fit: str
    sample_hz: float
    horizon_s: float
    decoder: str
    obstacles: bool = False
    align: str | None = None


def sample_times(start_us: int, end_us: int, sample_hz: float) -> np.ndarray:
    """The wanted times: start + k / sample_hz up to the end, (N,) int64 µs."""
    count = int((end_us - start_us) * sample_hz / 1e6) + 1
    times = start_us + np.rint(np.arange(count + 1) * 1e6 / sample_hz).astype(np.int64)
    return times[times <= end_us]


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
        notes: What the clip's row of the header tells of others and events; and `phase_us`, by how
            much `processing.align` has moved the wanted times.
    """

    arrays: dict[str, np.ndarray]
    notes: dict[str, Any] = field(default_factory=dict)


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
        keys = [each.key_rows for each in videos.values() if isinstance(each, stream.Stream)]
        times, ego, phase_us = clip_times(
            clip, list(stamps.values()), recipe.sample_hz, recipe.horizon_s, keys
        )
        frames, drawn = draw(videos, stamps, times, recipe)
    rows: list[tuple[str, str, Mapping[str, float], tuple[int, int] | None]] = []
    for name, (_, size) in drawn.items():
        rows.append(("camera_intrinsics", name, clip.intrinsics(name), size))
        rows.append(("sensor_extrinsics", name, clip.extrinsics(name), None))
    rows.append(("vehicle_dimensions", "vehicle", clip.vehicle(), None))
    for feature, name, row, size in rows:
        found = calibration.row(feature, name, row, size)
        findings.refuse(found, f"{feature} of clip {clip.clip_id}")
    hashes = prints.of_frames(frames, grid, recipe.tile)
    taken = np.stack([taken_us for taken_us, _ in drawn.values()], axis=1)
    arrays = {"frames": frames, "prints": hashes, "timestamps": taken}
    arrays |= clip_motion(ego, times, recipe.horizon_s)
    notes: dict[str, Any] = {}
    if recipe.obstacles:
        arrays["obstacles"], notes = obstacles.read(clip, ego, times)
    if phase_us:
        notes["phase_us"] = phase_us
    return Sampled(arrays, notes)


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
        AvomniError: the ego motion is damaged or does not cover what all cameras show.
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
    times = sample_times(start, last_us, sample_hz)
    step_us = 1e6 / sample_hz
    moved = shift_us(times, stamps, keys, step_us) if keys else 0
    first = start + moved + (round(step_us) if moved < 0 else 0)
    if not moved or first > last_us:
        return times, 0
    return sample_times(first, last_us, sample_hz), moved


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


def draw(
    videos: Mapping[str, Source | Stream],
    stamps: Mapping[str, np.ndarray],
    times: np.ndarray,
    recipe: Recipe,
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, tiling.Size]]]:
    """Grid images (N, H, W, 3) uint8; and by camera when its frames were taken, (N,) int64 µs, and
    the (width, height) px that its video is stored in.

    Args:
        videos, stamps: By camera; stamps are (M,) int64 µs, one a frame of the video.
        times: (N,) int64 µs, wanted.
    """
    grid, drawn = cameras.grid(recipe.setup), {}
    width, height = tiling.grid_size(grid, recipe.tile)
    frames = np.zeros((len(times), height, width, 3), dtype=np.uint8)
    for name, video in videos.items():
        tile = tiling.tile_of(frames, grid, recipe.tile, name)
        size = tile.shape[2], tile.shape[1]
        read = reader.read_frames(
            video,
            times,
            timestamps_us=stamps[name],
            size=lambda *source, size=size: tiling.fit_tile(source, size, recipe.fit).resized,
            decoder=recipe.decoder,
        )
        tiling.fit_tile(read.source_size, size, recipe.fit).place(read.images, tile)
        drawn[name] = read.timestamps_us, read.stored_size
    return frames, drawn


def shift_us(
    times: np.ndarray, stamps: Sequence[np.ndarray], keys: Sequence[np.ndarray], step_us: float
) -> int:
    """By how much to move the wanted times, µs, from above -step/2 to step/2; mostly 0.

    Of the shifts with the most key frames, the one in the middle of the widest range of such
    shifts, as stamps jitter; of these the smallest.

    Args:
        times: (T,) int64 µs, as they are without it.
        stamps: Of each camera (N,) int64 µs; wanted is the last frame at or before a time.
        keys: Of each camera (K,) int, rows of `stamps` that are key frames.
        step_us: From one wanted time to the next.
    """
    is_key = [np.isin(np.arange(len(own)), rows) for own, rows in zip(stamps, keys, strict=True)]

    def count(shift: float) -> int:
        moved = times + shift
        found = 0
        for own, key in zip(stamps, is_key, strict=True):
            inside = moved[(moved >= own[0]) & (moved <= own[-1])]
            found += int(key[np.searchsorted(own, inside, side="right") - 1].sum())
        return found

    # A time shows a key frame from its stamp on until the next one's.
    edges = [
        own[edge]
        for own, rows in zip(stamps, keys, strict=True)
        for edge in (rows, np.minimum(rows + 1, len(own) - 1))
    ]
    offsets = (np.concatenate(edges) - times[0] + step_us / 2) % step_us - step_us / 2
    bounds = np.unique(np.concatenate([offsets, [-step_us / 2, step_us / 2]]))
    middles = (bounds[:-1] + bounds[1:]) / 2
    best = max(
        zip(map(count, middles), np.diff(bounds), -np.abs(middles), middles, strict=True),
        default=None,
    )
    total = len(times) * len(stamps)
    if best is None or best[0] <= count(0.0) or best[0] < LEAST_SHARE * total:
        return 0
    return round(float(best[3]))
