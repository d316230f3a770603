"""A clip sampled into the cache's arrays: times, frames and poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.etl.cache import shard
from avomni_lib.etl.clip import sampling, tiling
from avomni_lib.etl.clip.sampling import Recipe, sample_clip
from tests.published_set import (
    Drive,
    camera_times,
    clip_id_of,
    egomotion_times,
    read_frame,
    write_published_set,
)

SECONDS = 2.0
RECIPE = Recipe("4-cam", (32, 24), "stretch", 10.0, 1.5, "pyav")
DISTANCE = shard.EGOMOTION_COLUMNS.index("distance_m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_published_set(tmp_path_factory.mktemp("set"), 1, 3, SECONDS)


def clip_of(folder, number: int) -> Clip:
    return Clip(folder, Catalog.open(folder), clip_id_of(number))


@pytest.mark.parametrize("setup", ["4-cam", "7-cam"])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_tiles_show_the_last_frame_at_or_before_their_time(folder, setup, decoder):
    recipe = Recipe(setup, (32, 24), "stretch", 10.0, 1.5, decoder)
    arrays, grid = sample_clip(clip_of(folder, 1), recipe).arrays, cameras.grid(setup)
    assert arrays["frames"].shape[1:] == (grid.rows * 24, grid.cols * 32, 3)
    for column, camera in enumerate(grid.cameras):
        place = cameras.CAMERAS.index(camera)
        stamps = camera_times(1, place, SECONDS)
        tiles = tiling.tile_of(arrays["frames"], grid, (32, 24), camera.name)
        for tile, time, taken in zip(
            tiles, arrays["times"], arrays["timestamps"][:, column], strict=True
        ):
            frame_idx = int(np.flatnonzero(stamps <= time)[-1])
            assert read_frame(tile) == (1, place, frame_idx)
            assert taken == stamps[frame_idx]
    if setup == "7-cam":
        assert not arrays["frames"][:, 48:, :32].any() and not arrays["frames"][:, 48:, 64:].any()


def test_times_span_the_overlap_of_all_cameras(folder):
    times = sample_clip(clip_of(folder, 0), RECIPE).arrays["times"]
    stamps = [
        camera_times(0, cameras.CAMERAS.index(camera), SECONDS)
        for camera in cameras.grid("4-cam").cameras
    ]
    start = max(stamp[0] for stamp in stamps)
    assert start < times[0] < start + 33_333
    assert (np.diff(times) == 100_000).all()
    end = min(stamp[-1] for stamp in stamps)
    assert end - 100_000 < times[-1] <= end


@pytest.mark.parametrize("setup", ["4-cam", "7-cam"])
def test_timestamp_jitter_does_not_change_the_frame_interval(folder, setup):
    """Every third frame of 30 fps at 10 Hz, although timestamps are off by up to 0.4 ms."""
    for number in range(3):
        arrays = sample_clip(clip_of(folder, number), replace(RECIPE, setup=setup)).arrays
        for column, camera in enumerate(cameras.grid(setup).cameras):
            stamps = camera_times(number, cameras.CAMERAS.index(camera), SECONDS)
            taken = np.searchsorted(stamps, arrays["timestamps"][:, column])
            assert set(np.diff(taken)) == {3}


@given(
    st.lists(st.integers(-40_000, 40_000), min_size=1, max_size=7),
    st.integers(10_000, 100_000),
)
def test_sampling_starts_far_from_all_timestamps(offsets, interval):
    stamps = [np.arange(20) * interval + offset for offset in offsets]
    start, first = sampling.steady_start(stamps), max(offsets)
    assert first <= start <= first + interval
    nearest = min(abs(camera_stamps - start).min() for camera_stamps in stamps)
    assert nearest >= interval // (2 * len(offsets)) - 1


def test_poses_and_distances_match_the_drive(folder):
    for number in range(3):
        arrays, drive = sample_clip(clip_of(folder, number), RECIPE).arrays, Drive(number)
        ego, t_s = arrays["egomotion"], arrays["times"] / 1e6
        assert np.abs(ego[:, :3] - drive.position(t_s)).max() < 1e-3
        yaw = drive.curvature * drive.travelled(t_s)
        forward = Rotation.from_quat(ego[:, 3:7]).apply([1, 0, 0])
        assert np.abs(forward[:, :2] - np.stack([np.cos(yaw), np.sin(yaw)], 1)).max() < 1e-4
        speed = np.linalg.norm(ego[:, 7:10], axis=1)
        assert np.abs(speed - drive.speed(t_s)).max() < 1e-2
        way = drive.travelled(t_s) - drive.travelled(t_s[0])
        assert ego[0, DISTANCE] == 0
        assert ego[:, DISTANCE] == pytest.approx(way, abs=2e-3)


def test_track_extends_before_and_after_the_frames(folder):
    arrays, drive = sample_clip(clip_of(folder, 2), RECIPE).arrays, Drive(2)
    track, times = arrays["track"], arrays["times"]
    t_s = track[:, 0] / 1e6
    assert np.allclose(np.diff(track[:, 0]), 100_000)
    assert times[0] in track[:, 0]
    # Egomotion starts 0.2 s before the video; the horizon is 1.5 s after its last frame.
    assert 0.1 <= (times[0] - track[0, 0]) / 1e6 <= 0.3
    assert 1.4 < (track[-1, 0] - times[-1]) / 1e6 <= 1.5
    assert np.abs(track[:, 1:4] - drive.position(t_s)).max() < 1e-3
    way = drive.travelled(t_s) - drive.travelled(times[0] / 1e6)
    assert track[:, -1] == pytest.approx(way, abs=3e-3)
    long = sample_clip(clip_of(folder, 2), replace(RECIPE, fit="crop", horizon_s=60.0)).arrays
    last = egomotion_times(2, SECONDS)[-1]
    assert last - 100_000 < long["track"][-1, 0] <= last, "up to the end of the egomotion"


@given(
    start=st.integers(-200_000, 200_000),
    length=st.integers(0, 20_000_000),
    sample_hz=st.floats(0.5, 30),
)
def test_sample_times_are_evenly_spaced_within_the_span(start, length, sample_hz):
    times = sampling.sample_times(start, start + length, sample_hz)
    assert times[0] == start and times[-1] <= start + length
    assert np.abs(np.diff(times) - 1e6 / sample_hz).max(initial=0) <= 1
    assert start + length - times[-1] < 1e6 / sample_hz + 1
