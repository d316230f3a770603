"""One clip to the arrays of the cache: a pure function, run by the worker processes of `build`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avomni_lib.dataset import rig
from avomni_lib.dataset.clip import Clip
from avomni_lib.errors import AvomniError
from avomni_lib.etl import tiling, video
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
        decoder: `pyav` or `decord`.
    """

    setup: str
    tile: tiling.Size
    fit: str
    sample_hz: float
    horizon_s: float
    decoder: str


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


def sample_clip(clip: Clip, recipe: Recipe) -> dict[str, np.ndarray]:
    """The arrays of `memmap.ARRAYS` for one clip, N frames of them.

    Each camera's frame is the last one at or before the wanted time. Distances count from the
    clip's first time, so that those of the track before it are negative.

    Raises:
        AvomniError: a part of the clip is missing or damaged, a camera stops for longer than half a
            second, or cameras and ego motion share no time.
    """
    grid = rig.grid(recipe.setup)
    stamps = {camera.name: clip.timestamps(camera.name) for camera in grid.cameras}
    for name, stamp in stamps.items():
        video.frame_indices(stamp, stamp[:1], f"{name} of clip {clip.clip_id}")
    first, last = max(s[0] for s in stamps.values()), min(s[-1] for s in stamps.values())
    try:
        span = (int(first - HISTORY_S * 1e6), int(last + recipe.horizon_s * 1e6))
        ego = Egomotion.from_columns(clip.egomotion(), span)
    except AvomniError as error:
        where = error.where or f"egomotion of clip {clip.clip_id}"
        raise AvomniError(error.what, where=where, fix=error.fix) from None
    times = sample_times(
        [steady_start(list(stamps.values())), int(ego.t_us[0])],
        [int(last), int(ego.t_us[-1])],
        recipe.sample_hz,
    )
    width, height = tiling.grid_size(grid, recipe.tile)
    frames = np.zeros((len(times), height, width, 3), dtype=np.uint8)
    taken = np.empty((len(times), len(grid.cameras)), dtype=np.int64)
    for column, camera in enumerate(grid.cameras):
        tile = tiling.tile_of(frames, grid, recipe.tile, camera.name)
        taken[:, column] = draw_camera(clip, camera.name, times, stamps[camera.name], recipe, tile)
    track = _track(ego, times, recipe.horizon_s)
    poses = ego.at(times)
    zero = poses.distance_m[0]
    return {
        "frames": frames,
        "timestamps": taken,
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
) -> np.ndarray:
    """Fill one camera's tile in all frames; returns when each picture was taken, (N,) int64 µs."""
    frames = video.read_frames(
        clip.video(name),
        times,
        timestamps_us=stamps,
        size=lambda *source: tiling.fit_tile(source, recipe.tile, recipe.fit).resized,
        decoder=recipe.decoder,
    )
    age = times - frames.timestamps_us
    if age.max() > MAX_AGE_S * 1e6:
        raise AvomniError(
            f"nothing new for {age.max() / 1e6:.2f} s at {times[age.argmax()]} µs; "
            f"{MAX_AGE_S} s is the most",
            where=f"{name} of clip {clip.clip_id}",
        )
    tiling.fit_tile(frames.source_size, recipe.tile, recipe.fit).place(frames.images, tile)
    return frames.timestamps_us


def _track(ego: Egomotion, times: np.ndarray, horizon_s: float) -> Poses:
    """Poses at 10 Hz around the clip, its first time among them, as far as the ego motion goes."""
    before = min(HISTORY_S, (times[0] - ego.t_us[0]) / 1e6)
    after = min((times[-1] - times[0]) / 1e6 + horizon_s, (ego.t_us[-1] - times[0]) / 1e6)
    steps = np.arange(-int(before * TRACK_HZ), int(after * TRACK_HZ) + 1)
    return ego.at(times[0] + steps * (1_000_000 // TRACK_HZ))


def _columns(poses: Poses, *more: np.ndarray) -> np.ndarray:
    return np.hstack([poses.position, poses.quaternion, *more])
