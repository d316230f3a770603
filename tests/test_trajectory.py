"""Poses before and after t0, compared with drives that are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from avomni_lib.etl.clip import trajectory
from avomni_lib.etl.clip.trajectory import FUTURE_STEPS, HISTORY_STEPS, STEP_US
from tests.known_paths import Arc

NOW_US = 8_000_000
EVERY_10_MS = np.arange(0, 20_000_001, 10_000)


def seen(arc: Arc, times_us: np.ndarray = EVERY_10_MS, now_us: int = NOW_US):
    now, track = arc.now(now_us), arc.track(times_us)
    return trajectory.past(now_us, now, track), trajectory.future(now_us, now, track)


def expected(arc: Arc, t_s: np.ndarray, now_us: int = NOW_US) -> tuple[np.ndarray, np.ndarray]:
    """The arc's positions and headings in the ego frame at `now_us`."""
    start = now_us / 1e6
    begun = arc.driven_m(np.array(start))
    moved = replace(arc, driven_m=lambda t: arc.driven_m(t + start) - begun)
    return moved.local(t_s)


def stops_at_9_s(t):
    return 6.0 * np.minimum(t, 9.0)


@pytest.mark.parametrize(
    "arc",
    [
        Arc.steady(12.0),
        Arc.steady(6.0, curvature=0.05),
        Arc.steady(6.0, curvature=-0.4),  # more than two whole turns in 6.4 s
        Arc.steady(-3.0, curvature=0.1),
        Arc(lambda t: 2.0 * t + 0.4 * t**2, curvature=-0.01),
        Arc.steady(0.0),
        Arc(stops_at_9_s, curvature=0.02),
    ],
    ids=["straight", "left", "two turns", "reverse", "accelerating", "standing", "stopping"],
)
def test_poses_are_in_the_ego_frame_at_t0(arc):
    away = replace(
        arc, place=(310.0, -70.0, 12.0), turn=Rotation.from_euler("ZYX", (2.6, 0.06, -0.03))
    )
    for part, num in zip(seen(away), (HISTORY_STEPS, FUTURE_STEPS), strict=True):
        assert len(part) == num
        xy, yaw = expected(arc, part.t_s)
        # Interpolation between poses 10 ms apart follows the chord, micrometres inside the arc.
        assert np.abs(part.xy_m - xy).max() < 1e-4
        assert np.abs(part.yaw_rad - yaw).max() < 1e-6
        assert part.speed_mps == pytest.approx(arc.speed_mps(NOW_US / 1e6), abs=1e-6)


def test_times_are_a_tenth_of_a_second_apart_and_exclude_t0():
    before, after = seen(Arc.steady(1.0))
    assert before.t_s.tolist() == [n / 10 for n in range(-16, 0)]
    assert after.t_s.tolist() == [n / 10 for n in range(1, 65)]


@given(
    st.integers(0, 2**32 - 1),
    st.floats(-20, 20),
    st.floats(-0.05, 0.05),
    st.integers(0, 159),
    st.integers(0, 999),
)
def test_track_may_have_any_rate(seed, speed, curvature, row, later_us):
    gaps_us = np.random.default_rng(seed).integers(1_000, 120_000, 200)
    arc, times = Arc.steady(speed, curvature=curvature), np.cumsum(gaps_us)
    now_us = int(times[row]) + later_us
    longest_s = max(gaps_us) / 1e6
    for part in seen(arc, times, now_us):
        if part is not None and len(part):
            xy, yaw = expected(arc, part.t_s, now_us)
            # The sagitta of an arc.
            height = (speed * longest_s) ** 2 * abs(curvature) / 8
            assert np.abs(part.xy_m - xy).max() < height * 1.01 + 1e-6
            assert np.abs(part.yaw_rad - yaw).max() < 1e-6


@given(st.integers(0, 2**32 - 1), st.sampled_from([10_000, 37_000, 100_000]))
def test_past_ignores_later_poses_and_future_ignores_earlier_ones(seed, gap_us):
    arc = Arc.steady(9.0, curvature=0.03)
    now, track = arc.now(NOW_US), arc.track(np.arange(0, 20_000_001, gap_us))
    garbage = np.random.default_rng(seed).normal(0, 1e3, track.shape)
    garbage[:, 0] = track[:, 0]
    later = track[:, 0] >= NOW_US
    for look, spoilt in ((trajectory.past, later), (trajectory.future, ~later)):
        expected_poses = look(NOW_US, now, track)
        spoilt_poses = look(NOW_US, now, np.where(spoilt[:, None], garbage, track))
        assert np.array_equal(expected_poses.xy_m, spoilt_poses.xy_m)
        assert np.array_equal(expected_poses.yaw_rad, spoilt_poses.yaw_rad)
        assert expected_poses.speed_mps == spoilt_poses.speed_mps


@pytest.mark.parametrize("steps", range(HISTORY_STEPS + 3))
@pytest.mark.parametrize("late_us", [0, 1])
def test_past_starts_with_the_track(steps, late_us):
    # Times near the clip's first microsecond, where rounding of tenths of a second would show.
    times = np.arange(late_us, 20_000_000, 5_000)
    before, _ = seen(Arc.steady(3.0), times, now_us=steps * STEP_US)
    assert len(before) == max(min(steps - late_us, HISTORY_STEPS), 0)


@pytest.mark.parametrize(("short_us", "is_known"), [(0, True), (1, False)])
def test_future_is_complete_or_none(short_us, is_known):
    times = np.append(np.arange(0, 14_000_000, 20_000), NOW_US + 6_400_000 - short_us)
    _, after = seen(Arc.steady(3.0), times)
    assert (after is not None) == is_known
    for tenths in range(1, 65):
        assert trajectory.covers(0, tenths * STEP_US - short_us, tenths * 0.1) == is_known


def test_past_or_future_outside_the_track_is_empty():
    arc = Arc.steady(4.0)
    before, after = seen(arc, np.arange(NOW_US, NOW_US + 7_000_000, 10_000))
    assert (len(before), len(after)) == (0, FUTURE_STEPS)
    assert before.xy_m.shape == (0, 2)
    assert before.speed_mps == pytest.approx(4.0)
    before, after = seen(arc, np.arange(0, NOW_US + 1, 10_000))
    assert (len(before), after) == (HISTORY_STEPS, None)
