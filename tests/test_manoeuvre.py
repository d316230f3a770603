"""The manoeuvre of the next 3 s: its signals in closed form, and the thresholds of labels."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.etl.clip import manoeuvre
from avomni_lib.etl.clip.manoeuvre import ACROSS, ALONG, THRESHOLDS, levels
from avomni_lib.etl.clip.trajectory import FUTURE_STEPS, STEP_S, Trajectory
from tests.known_paths import Arc, truths

T_S = np.arange(FUTURE_STEPS + 1) * STEP_S


def along(speed_at) -> str:
    """The label of a straight drive with this speed (m/s) at each of `T_S`."""
    fine = np.linspace(0, T_S[-1], 6401)
    speed = speed_at(fine)
    driven = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2) * (fine[1] - fine[0])])
    x = np.interp(T_S[1:], fine, driven)
    after = Trajectory(T_S[1:], np.stack([x, 0 * x], axis=1), 0 * x, float(speed[0]))
    return manoeuvre.decide(after).along


def across(heading_at, speed: float = 12.0) -> str:
    """The label of a drive with this heading (rad) at each of `T_S`."""
    fine = np.linspace(0, T_S[-1], 6401)
    yaw = heading_at(fine)
    path = np.cumsum(speed * np.exp(1j * yaw)) * (fine[1] - fine[0])
    x, y = (np.interp(T_S[1:], fine, part) for part in (path.real, path.imag))
    heading = np.interp(T_S[1:], fine, yaw)
    return manoeuvre.decide(Trajectory(T_S[1:], np.stack([x, y], axis=1), heading, speed)).across


def lane_change(width_m: float, seconds: float, speed: float = 12.0):
    """The heading along a cosine-shaped lane change."""

    def heading(t):
        slope = np.pi * width_m / 2 / (speed * seconds) * np.sin(np.pi * t / seconds)
        return np.where((t > 0) & (t < seconds), np.arctan(slope), 0.0)

    return heading


@pytest.mark.parametrize("speed", [20.0, 3.0, -2.0])
@pytest.mark.parametrize("acceleration", [0.0, 0.9, -0.9])
@pytest.mark.parametrize("curvature", [0.0, 0.02, -0.05])
def test_signals_of_steady_motion_match_the_closed_form(speed, acceleration, curvature):
    after = Arc(lambda t: speed * t + acceleration * t**2 / 2, curvature).future()
    seen = manoeuvre.signals(after)
    t = seen.t_s
    assert t.tolist() == pytest.approx([n / 10 for n in range(31)])
    # A chord is shorter than its arc by a share of (yaw rate · 0.1 s)² / 24.
    assert seen.speed_mps == pytest.approx(speed + acceleration * t, rel=2e-3, abs=2e-3)
    assert seen.acceleration_mps2 == pytest.approx(np.full(31, acceleration), abs=0.05)
    driven = speed * t + acceleration * t**2 / 2
    # A line fitted over a second of a changing turn rate has a small error.
    assert seen.heading_rad == pytest.approx(curvature * driven, abs=0.012)
    assert np.abs(seen.offset_m).max() < 0.01


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.7, 4.0, 15.0, 30.0]))
def test_noise_is_no_manoeuvre(seed, speed):
    # 1 cm and a tenth of a degree.
    rng, after = np.random.default_rng(seed), Arc.steady(speed).future()
    noisy = replace(
        after,
        xy_m=after.xy_m + rng.normal(0, 0.01, after.xy_m.shape),
        yaw_rad=after.yaw_rad + rng.normal(0, np.radians(0.1), len(after)),
    )
    assert manoeuvre.decide(noisy) == ("stop" if speed == 0 else "hold", "straight")


@given(truths(), st.integers(0, 2**32 - 1))
def test_label_ignores_poses_after_3_s(truth, seed):
    after, rng = truth.future, np.random.default_rng(seed)
    xy, yaw = after.xy_m.copy(), after.yaw_rad.copy()
    xy[30:], yaw[30:] = rng.normal(0, 99, xy[30:].shape), rng.normal(0, 9, len(yaw[30:]))
    label = manoeuvre.decide(after)
    assert manoeuvre.decide(replace(after, xy_m=xy, yaw_rad=yaw)) == label
    short = Trajectory(after.t_s[:30], after.xy_m[:30], after.yaw_rad[:30], after.speed_mps)
    assert manoeuvre.decide(short) == label
    assert label.along in ALONG and label.across in ACROSS


def test_future_shorter_than_3_s_is_refused():
    after = Arc.steady(5.0).future()
    short = Trajectory(after.t_s[:29], after.xy_m[:29], after.yaw_rad[:29], 5.0)
    with pytest.raises(ValueError, match="29 steps"):
        manoeuvre.decide(short)


@pytest.mark.parametrize(
    ("speed_at", "label"),
    [
        (lambda t: 0 * t, "stop"),
        (lambda t: np.maximum(5 - 2.5 * t, 0), "stop"),
        (lambda t: np.maximum(9 - 2.5 * t, 0), "strong brake"),
        (lambda t: 12 - 1.0 * t, "gentle brake"),
        (lambda t: 12 + 0 * t, "hold"),
        (lambda t: 12 + 0.4 * t, "hold"),
        (lambda t: 12 + 0.7 * t, "gentle accelerate"),
        (lambda t: 2 + 2.5 * t, "strong accelerate"),
        (lambda t: 0 * t - 1.5, "reverse"),
        (lambda t: 1 - 1.0 * t, "reverse"),
        (lambda t: -1 + 1.0 * t, "gentle accelerate"),
        (lambda t: 1.5 * np.maximum(t - 2.3, 0), "gentle accelerate"),  # pulls away late
        (lambda t: 0.15 * t, "stop"),  # 0.45 m/s is below the speed that ends a stop
        (lambda t: 0.5 + 0 * t, "hold"),  # 0.5 m/s is above the speed that begins a stop
        (lambda t: 0.5 - 0.1 * t, "stop"),
        (lambda t: 12 - 1.0 * np.minimum(t, 0.6), "hold"),  # too short to be a brake
        (lambda t: 12 - 1.0 * np.minimum(t, 1.3), "gentle brake"),
        (lambda t: 15 - 1.0 * t - 2.5 * np.clip(t - 1, 0, 1), "strong brake"),
    ],
)
def test_labels_along_the_road(speed_at, label):
    assert along(speed_at) == label


@pytest.mark.parametrize(
    ("heading_at", "label"),
    [
        (lambda t: 0 * t, "straight"),
        (lambda t: 0.02 * t, "straight"),  # a bend of 600 m
        (lambda t: 0.1 * t, "straight"),  # one of 120 m: 17° in 3 s
        (lambda t: 0.2 * t, "turn left"),
        (lambda t: -0.2 * t, "turn right"),
        (lambda t: 0.8 * t, "u-turn"),
        (lambda t: -0.8 * t, "u-turn"),
        (lambda t: np.minimum(0.8 * t, np.pi / 2), "turn left"),
        (lane_change(3.5, 4.0), "nudge left"),
        (lane_change(-3.5, 4.0), "nudge right"),
        (lane_change(0.9, 2.5), "nudge left"),
        (lane_change(0.3, 2.5), "straight"),
        # Out by 0.9 m and back to 0.35 m, which does not end a nudge, or to 0.1 m, which does.
        (lambda t: lane_change(0.9, 1.3)(t) + lane_change(-0.55, 1.2)(t - 1.4), "nudge left"),
        (lambda t: lane_change(0.9, 1.3)(t) + lane_change(-0.8, 1.2)(t - 1.4), "straight"),
        # 34° and back to 20°, which does not end a turn.
        (lambda t: 0.6 * np.clip(t, 0, 1) - 0.25 * np.clip(t - 1.5, 0, 1), "turn left"),
        # Into a bend and out of a bend, without returning to the initial heading.
        (lambda t: 0.19 * np.minimum(t, 1.5), "straight"),
        (lambda t: -0.19 * np.maximum(t - 1.5, 0), "straight"),
        # The same bend with a change of lane in it.
        (lambda t: 0.02 * t + lane_change(3.5, 3.0)(t), "nudge left"),
    ],
)
def test_labels_across_the_road(heading_at, label):
    assert across(heading_at) == label


def test_turn_of_a_reversing_car_follows_its_heading():
    after = Arc.steady(-2.0, curvature=0.15).future()
    assert manoeuvre.decide(after) == ("reverse", "turn right")


def test_yaw_offset_of_the_rig_is_no_nudge():
    after = Arc.steady(25.0).future()
    turn = np.radians(0.6)
    askew = replace(after, xy_m=after.xy_m @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), 1]])
    assert manoeuvre.decide(askew).across == "straight"


def test_label_persists_between_its_thresholds_after_it_began():
    signal = np.array([0.4, 0.5, 0.4, 0.3, 0.29, 0.4, -0.4, -0.5, -0.4, 0.4, 0.6])
    assert levels(signal, 0.5, 0.3).tolist() == [0, 1, 1, 1, 0, 0, 0, -1, -1, 0, 1]
    assert levels(signal[:2], 0.5, 0.3, before=1).tolist() == [1, 1]
    assert levels(signal[:2], 0.5, 0.3, before=-1).tolist() == [0, 1]


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=60), st.floats(0.1, 2), st.floats(0.1, 0.9))
def test_levels_follow_the_hysteresis_thresholds(values, begin, share):
    signal = np.array(values)
    labels = levels(signal, begin, begin * share)
    assert (labels[signal >= begin] == 1).all() and (labels[signal <= -begin] == -1).all()
    assert (labels[np.abs(signal) < begin * share] == 0).all()
    switched = labels[1:] != labels[:-1]
    # A label begins only at or above the upper threshold.
    assert (np.abs(signal[1:][switched & (labels[1:] != 0)]) >= begin).all()


def test_end_thresholds_are_below_begin_thresholds():
    at = {field.name: getattr(THRESHOLDS, field.name) for field in fields(THRESHOLDS)}
    pairs = [(at[name.replace("_end", "")], at[name]) for name in at if "_end" in name]
    assert len(pairs) == 5
    assert all(begin > end > 0 for begin, end in [*pairs, (at["move_mps"], at["stand_mps"])])
