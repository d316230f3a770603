"""Frames from raw clips for any tiling: equal to the ETL's, and decoded once."""

import dataclasses

import numpy as np
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.etl.clip import sampling
from avomni_lib.etl.run.build import recipe_of
from avomni_lib.notebook.tiles import raw_frames
from avomni_lib.notebook.tiles.choice import TilingChoice, grid_of
from avomni_lib.notebook.tiles.preview import Place, Preview
from avomni_lib.notebook.tiles.raw_frames import RawFrames
from tests import cached_run
from tests.published_set import clip_id_of

NAME, SEVEN = clip_id_of(2), cameras.grid("7-cam")


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    return cached_run.make(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def times_us(p):
    return Preview(p).motion(NAME, cached_run.HZ).times[4:8]


def choice(p, **changes):
    return dataclasses.replace(TilingChoice.of(p), **changes)


def window_of(raw, times_us, wanted):
    """All frames of a window (T, H, W, 3)."""
    return np.stack([raw.grid_frame(NAME, times_us, k, wanted) for k in range(len(times_us))])


@pytest.mark.parametrize("fit", ["letterbox", "crop", "stretch"])
@pytest.mark.parametrize("setup", ["4-cam", "7-cam"])
def test_frames_and_motion_equal_those_of_the_etl(p, fit, setup):
    wanted = choice(p, fit=fit, grid=cameras.grid(setup), tile=(80, 32), sample_hz=7.0)
    laid = wanted.laid_over(p)
    raw = RawFrames(laid)
    made = sampling.sample_clip(raw.clip(NAME), recipe_of(laid)).arrays
    motion = Preview(laid).motion(NAME, wanted.sample_hz)
    for name in ("times", "egomotion", "track"):
        assert np.array_equal(getattr(motion, name), made[name]), name
    frames = window_of(raw, motion.times[3:9], wanted)
    assert np.array_equal(frames, made["frames"][3:9])


def test_changed_tiling_decodes_nothing_again(p, times_us):
    raw = RawFrames(p)
    window_of(raw, times_us, choice(p, grid=SEVEN))
    num = raw.num_decoded
    assert num == 7 * len(times_us)
    three_cameras = grid_of([camera.name for camera in cameras.CAMERAS[:3]])
    for changed in (
        {"tile": (160, 96)},
        {"tile": (20, 20), "fit": "crop"},
        {"grid": SEVEN, "fit": "letterbox"},
        {"grid": three_cameras},
    ):
        window_of(raw, times_us, choice(p, **changed))
    assert raw.num_decoded == num
    overlapping = Preview(p).motion(NAME, cached_run.HZ).times[6:10]
    window_of(raw, overlapping, choice(p))
    assert raw.num_decoded == num + 4 * 2, "two of its four frames are decoded already"


def test_memory_is_limited_except_for_the_latest_block(p, monkeypatch):
    monkeypatch.setattr(raw_frames, "BLOCK", 2)
    times = Preview(p).motion(NAME, cached_run.HZ).times
    one = RawFrames(p)
    one.grid_frame(NAME, times[:2], 0, choice(p))
    block = one.num_bytes
    raw = RawFrames(p, limit_bytes=4 * block)
    for start in range(0, len(times) - 2, 2):
        raw.grid_frame(NAME, times[start : start + 2], 0, choice(p))
        assert raw.num_bytes <= 4 * block
    num = raw.num_decoded
    raw.grid_frame(NAME, times[:2], 0, choice(p))
    assert raw.num_decoded == num + 8, "the oldest block was dropped and is decoded again"
    tight = RawFrames(p, limit_bytes=1)
    whole = window_of(tight, times[:4], choice(p, grid=SEVEN))
    assert np.array_equal(whole, window_of(RawFrames(p), times[:4], choice(p, grid=SEVEN)))


def test_only_the_block_of_the_shown_frame_is_decoded(p, monkeypatch):
    monkeypatch.setattr(raw_frames, "BLOCK", 4)
    raw = RawFrames(p)
    times = Preview(p).motion(NAME, cached_run.HZ).times[:12]
    raw.grid_frame(NAME, times, 9, choice(p))
    assert raw.num_decoded == 4 * 4


def test_changed_rate_or_length_keeps_the_time_shown(p):
    preview, before = Preview(p), TilingChoice.of(p)
    place = Place(NAME, 3, 0)
    start = preview.windows(NAME, before).times_us(3)[0]
    for changed in ({"sample_hz": 20.0}, {"sequence_length": 6}, {"sample_hz": 5.0}):
        wanted = choice(p, **changed)
        window_idx = preview.nearest_window(place, before, wanted)
        moved = preview.windows(NAME, wanted).times_us(window_idx)[0]
        step_us = 1e6 * p.processing.stride / wanted.sample_hz
        assert abs(int(moved) - int(start)) <= step_us / 2 + 20_000


@pytest.mark.parametrize(
    ("num", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (5, (2, 3)), (7, (3, 3))]
)
def test_grid_of_selected_cameras_is_nearly_square(num, shape):
    names = [camera.name for camera in cameras.CAMERAS[::-1][:num]]
    grid = grid_of(names)
    assert (grid.rows, grid.cols) == shape and len(grid.cells) == grid.rows * grid.cols
    assert [camera.name for camera in grid.cameras] == names
