"""Clocks and videos of a recorded clip."""

import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.dataset import cameras
from avomni_world.publish import recording
from avomni_world.scene.scenes import EGO_FUTURE_S, VIDEO_MARGIN_S

seeds = st.integers(0, 2**32 - 1)
lengths = st.floats(1.0, 20.0)


@settings(max_examples=40)
@given(seed=seeds, seconds=lengths)
def test_camera_clocks_are_asynchronous_and_increasing(seed, seconds):
    clocks = recording.camera_clocks(seed, seconds)
    assert clocks.shape == (recording.num_frames(seconds), len(cameras.CAMERAS))
    steps = np.diff(clocks, axis=0)
    assert steps.min() > 33_200 and steps.max() < 33_500
    assert clocks[0].min() > -33_333 and clocks[-1].min() >= seconds * 1e6
    assert clocks[-1].max() / 1e6 < seconds + VIDEO_MARGIN_S
    assert len(set(clocks[0].tolist())) > 1  # asynchronous
    assert np.array_equal(clocks, recording.camera_clocks(seed, seconds))


def test_clip_of_20_s_has_605_frames():
    assert recording.num_frames(20.0) == 605


@settings(max_examples=40)
@given(seed=seeds, seconds=lengths)
def test_egomotion_clock_is_uneven_and_outlasts_the_video_by_10_s(seed, seconds):
    clock = recording.egomotion_clock(seed, seconds)
    steps = np.diff(clock)
    assert clock.dtype == np.int64 and 8_000 < steps.min() < steps.max() < 12_000
    assert np.mean(steps) == pytest.approx(10_000, rel=0.02)
    clocks = recording.camera_clocks(seed, seconds)
    assert clock[0] < clocks[0].min() and clock[-1] >= clocks[-1].max() + 10_000_000
    assert clock[-1] / 1e6 < seconds + EGO_FUTURE_S


@pytest.mark.parametrize("codec", recording.CODECS)
def test_videos_have_the_data_sets_encoding(codec: str):
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 216, (65, 2, 9, 16, 3), np.uint8)
    pictures = coarse.repeat(4, axis=2).repeat(4, axis=3)
    first, again = (recording.encode(iter(pictures), 2, 64, 36, codec) for _ in range(2))
    assert first == again  # byte for byte
    for idx, video in enumerate(first):
        with av.open(io.BytesIO(video)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == codec and stream.pix_fmt == "yuv420p"
            assert stream.average_rate == 30 and (stream.width, stream.height) == (64, 36)
            frames = list(container.decode(video=0))
        step = frames[1].pts
        assert [frame.pts for frame in frames] == [n * step for n in range(65)]
        keys = [n for n, frame in enumerate(frames) if frame.key_frame]
        assert keys == [0, 30, 60]
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(int)
        assert np.abs(seen - pictures[:, idx]).mean() < 16
