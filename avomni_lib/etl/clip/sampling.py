"""Conversion of one clip to the arrays of the cache, as run by the worker processes of `build`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avomni_lib.dataset import calibration, cameras, checks, findings
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.limits import HISTORY_S
from avomni_lib.dataset.streams import Source
from avomni_lib.etl.clip import fingerprints, obstacles, tiling
from avomni_lib.etl.clip.egomotion import Egomotion
from avomni_lib.etl.video import reader, stream
from avomni_lib.etl.video.stream import Stream
from avomni_lib.params import grids

TRACK_HZ = 10
LEAST_SHARE = 0.5  # shift the wanted times only if this share of the frames become key frames


@dataclass(frozen=True)
class Recipe:
    """Everything that a clip's arrays depend on besides the clip.

    Attributes:
        setup: The grid as in `vision.cameras`: a preset's name or rows of cameras.
        tile: (width, height) px of one camera.
        fit: `letterbox`, `crop` or `stretch`.
        horizon_s: Seconds of ego motion kept after the last frame.
        decoder: `pyav` or `decord`.
        obstacles: Whether other road users and events are kept.
        align: `keyframes` to shift the wanted times by `shift_us`, or None.
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
    """The wanted times start + k / sample_hz up to the end, (N,) int64 µs."""
    count = int((end_us - start_us) * sample_hz / 1e6) + 1
    times = start_us + np.rint(np.arange(count + 1) * 1e6 / sample_hz).astype(np.int64)
    return times[times <= end_us]


def steady_start(stamps: Sequence[np.ndarray]) -> int:
    """Time to start sampling, µs: within a frame after every camera has its first picture.

    If wanted times coincided with a camera's timestamps, which jitter by some tens of µs, either
    that frame or the one before it would be selected: on 30 fps clips sampled at 10 Hz, 7 to 15 %
    of the intervals were a frame too short or too long. So the middle of the widest gap between
    timestamps is used.

    Args:
        stamps: (N,) int64 µs of each camera.
    """
    first = max(int(times[0]) for times in stamps)
    interval = min(int(np.median(np.diff(times))) for times in stamps if len(times) > 1)
    within = [times[(times >= first) & (times <= first + interval)] for times in stamps]
    edges = np.unique(np.concatenate([*within, [first, first + interval]]))
    widest = int(np.argmax(np.diff(edges)))
    return int(edges[widest : widest + 2].mean())


@dataclass(frozen=True)
class Sampled:
    """The result of `sample_clip`.

    Attributes:
        arrays: The arrays of the cache: frames, prints, timestamps, times, egomotion and track;
            with `Recipe.obstacles` also obstacles.
        notes: Optional fields of the clip's header row: those of `obstacles.read`, and `phase_us`,
            by which `processing.align` has shifted the wanted times.
    """

    arrays: dict[str, np.ndarray]
    notes: dict[str, Any] = field(default_factory=dict)


def sample_clip(clip: Clip, recipe: Recipe) -> Sampled:
    """Convert a clip to arrays.

    Each camera's frame is the last one at or before the wanted time. Distances are relative to the
    first wanted time, so those of the track before it are negative.

    Raises:
        AvomniError: a part of the clip is missing, or damaged by the criteria of a full audit.
    """
    grid = cameras.grid(recipe.setup)
    stamps = {camera.name: clip.timestamps(camera.name) for camera in grid.cameras}
    with contextlib.ExitStack() as stack:
        videos: dict[str, Source | Stream] = {name: clip.video(name) for name in stamps}
        if recipe.align:
            # Kept open, as both their key frames and their pictures are needed.
            videos = {n: stack.enter_context(stream.opened(videos[n])) for n in stamps}
        keys = [video.key_rows for video in videos.values() if isinstance(video, stream.Stream)]
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
        faults = calibration.row(feature, name, row, size)
        findings.refuse(faults, f"{feature} of clip {clip.clip_id}")
    hashes = fingerprints.of_frames(frames, grid, recipe.tile)
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
    """The wanted times (N,) int64 µs, the checked ego motion, and the shift of `times_of`, µs.

    Args:
        stamps: (N,) int64 µs of each camera.
        keys: Rows of each camera's key frames; empty to shift nothing.

    Raises:
        AvomniError: the ego motion is damaged or does not cover the time shared by all cameras.
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
    """(wanted times, (N,) int64 µs; their shift towards key frames, µs).

    If the shift is negative, the first time is left out: not all cameras have started by then.

    Args:
        stamps, keys: As in `clip_times`.
        last_us: The last moment shown by all cameras.
    """
    # If the cameras share less than one interval, sample their last shared moment.
    start = min(steady_start(stamps), last_us)
    times = sample_times(start, last_us, sample_hz)
    step_us = 1e6 / sample_hz
    moved = shift_us(times, stamps, keys, step_us) if keys else 0
    first = start + moved + (round(step_us) if moved < 0 else 0)
    if not moved or first > last_us:
        return times, 0
    return sample_times(first, last_us, sample_hz), moved


def clip_motion(ego: Egomotion, times: np.ndarray, horizon_s: float) -> dict[str, np.ndarray]:
    """The cache's `times`, `egomotion` and `track` of a clip sampled at these times.

    The track has poses at 10 Hz aligned with the first time, from `HISTORY_S` before the clip to
    `horizon_s` after it, as far as the ego motion covers that.
    """
    before = min(HISTORY_S, (times[0] - ego.t_us[0]) / 1e6)
    after = min((times[-1] - times[0]) / 1e6 + horizon_s, (ego.t_us[-1] - times[0]) / 1e6)
    steps = np.arange(-int(before * TRACK_HZ), int(after * TRACK_HZ) + 1)
    poses, track = ego.at(times), ego.at(times[0] + steps * (1_000_000 // TRACK_HZ))
    way, track_way = (p.distance_m[:, None] - poses.distance_m[0] for p in (poses, track))
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
    """Compose grid images.

    Args:
        videos, stamps: By camera; stamps are (M,) int64 µs, one per frame of the video.
        times: (N,) int64 µs, the wanted times.

    Returns:
        Grid images (N, H, W, 3) uint8; and by camera the capture times of its frames, (N,) int64
        µs, and the stored (width, height) px of its video.
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
    """The shift of the wanted times that selects most key frames, µs, in (-step/2, step/2].

    It is 0 unless at least `LEAST_SHARE` of the frames become key frames. As timestamps jitter, the
    middle of the widest range of best shifts is used; among equally wide ranges, the smallest.

    Args:
        times: (T,) int64 µs, unshifted.
        stamps: (N,) int64 µs of each camera; a time selects the last frame at or before it.
        keys: (K,) int of each camera, rows of `stamps` that are key frames.
        step_us: Interval of the wanted times.
    """
    is_key = [np.isin(np.arange(len(s)), rows) for s, rows in zip(stamps, keys, strict=True)]

    def count(shift: float) -> int:
        moved = times + shift
        num_keys = 0
        for camera_stamps, key in zip(stamps, is_key, strict=True):
            inside = moved[(moved >= camera_stamps[0]) & (moved <= camera_stamps[-1])]
            num_keys += int(key[np.searchsorted(camera_stamps, inside, side="right") - 1].sum())
        return num_keys

    # A time selects a key frame from that frame's timestamp until the next one's.
    edges = [
        camera_stamps[edge]
        for camera_stamps, rows in zip(stamps, keys, strict=True)
        for edge in (rows, np.minimum(rows + 1, len(camera_stamps) - 1))
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
