"""Errors of predicted paths, compared with closed forms and plain Python loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from avomni_lib.evaluation import trajectories

T = np.arange(1, 65) * 0.1
EVERY_04_S = slice(3, None, 4)
places = st.floats(-100, 100, allow_subnormal=False)


def straight(speed, heading=0.0, t=T):
    return np.stack([speed * t * math.cos(heading), speed * t * math.sin(heading)], axis=-1)


def circle(speed, radius, t=T):
    turned = speed * t / radius
    return np.stack([radius * np.sin(turned), radius * (1 - np.cos(turned))], axis=-1)


def braking(speed, brake, t=T):
    t = np.minimum(t, speed / brake)
    return np.stack([speed * t - brake * t**2 / 2, np.zeros_like(t)], axis=-1)


def bend(speed, before, after, at_s):
    """A path whose yaw rate jumps at `at_s`, integrated in steps of 1 ms."""
    t = (np.arange(6400) + 0.5) / 1000
    yaw = before * np.minimum(t, at_s) + after * np.maximum(t - at_s, 0)
    path = np.cumsum(speed * np.exp(1j * yaw)) / 1000
    return np.stack([path.real, path.imag], axis=-1)[99::100]


def waypoints(path):
    return path[..., EVERY_04_S, :]


# Between waypoints.


@given(st_np.arrays(np.float64, (3, 16, 2), elements=places))
def test_waypoints_are_interpolated_linearly_to_10_hz(predicted):
    path = trajectories.at_10hz(predicted)
    assert path.shape == (3, 64, 2)
    assert (path[:, EVERY_04_S] == predicted).all()
    for step in range(1, 65):
        before, quarter = divmod(step, 4)
        left = [0.0, 0.0] if before == 0 else predicted[1, before - 1]
        right = predicted[1, min(before, 15)]
        wanted = [a + (b - a) * quarter / 4 for a, b in zip(left, right, strict=True)]
        assert path[1, step - 1] == pytest.approx(wanted, abs=1e-9)


def test_interpolation_error_on_a_circle_is_the_sagitta():
    speed, radius = 8.0, 20.0
    path = circle(speed, radius)
    off = trajectories.distances(trajectories.at_10hz(waypoints(path)), path)
    # R (1 - cos(v T / 2 R)) at the midpoint between two waypoints.
    sagitta = radius * (1 - math.cos(speed * 0.4 / radius / 2))
    assert off[1::4] == pytest.approx(sagitta, rel=1e-3)
    assert off.max() <= sagitta * (1 + 1e-9)


# Closed forms of the errors.


def test_constant_speed_error_grows_linearly_with_time():
    predicted, true = straight(11.0), straight(10.0)
    figures = trajectories.figures(waypoints(predicted), true)
    assert trajectories.ade(predicted, true) == figures["ade_m"] == pytest.approx(T.mean())
    for name, after_s in {"fde_m": 6.4, **trajectories.MOMENTS_S}.items():
        assert figures[name] == pytest.approx(after_s)
    along, across = trajectories.along_across(predicted, true)
    assert along == pytest.approx(T)
    assert across == pytest.approx(np.zeros(64), abs=1e-9)


def test_errors_of_a_straight_path_on_a_circle_match_the_closed_form():
    speed, radius = 10.0, 50.0
    predicted, true = straight(speed), circle(speed, radius)
    turned = speed * T / radius
    apart = np.stack([speed * T - radius * np.sin(turned), -radius * (1 - np.cos(turned))], -1)
    assert trajectories.distances(predicted, true) == pytest.approx(np.hypot(*apart.T))
    along, across = trajectories.along_across(predicted, true)
    ahead = np.stack([np.cos(turned), np.sin(turned)], -1)
    # The difference of the steps before and after is parallel to the tangent; the last step uses
    # the difference to the step before.
    assert along[:-1] == pytest.approx((apart * ahead).sum(-1)[:-1], abs=1e-9)
    left = np.stack([-np.sin(turned), np.cos(turned)], -1)
    assert across[:-1] == pytest.approx((apart * left).sum(-1)[:-1], abs=1e-9)
    assert (across < 0).all() and (along < 0).all()


def test_direction_of_a_standing_car_is_its_last_direction():
    true = np.concatenate([np.zeros((10, 2)), np.stack([np.zeros(20), np.arange(1.0, 21)], -1)])
    true = np.concatenate([true, np.repeat(true[-1:], 34, axis=0)])
    along, across = trajectories.along_across(true + (3.0, 4.0), true)
    # Before the car moves the direction is the rig's x axis, then left, and left when it stands.
    assert along[:9] == pytest.approx(3.0) and across[:9] == pytest.approx(4.0)
    assert along[9:] == pytest.approx(4.0) and across[9:] == pytest.approx(-3.0)


@given(
    st_np.arrays(np.float64, (2, 64, 2), elements=places),
    st_np.arrays(np.float64, (2, 64, 2), elements=places),
)
def test_along_and_across_errors_combine_to_the_distance(predicted, true):
    along, across = trajectories.along_across(predicted, true)
    assert np.hypot(along, across) == pytest.approx(
        trajectories.distances(predicted, true), abs=1e-9
    )


@pytest.mark.parametrize(("off_m", "is_missed"), [(1.99, False), (2.01, True)])
def test_final_error_above_two_metres_is_a_miss(off_m, is_missed):
    predicted, true = straight(10.0), straight(10.0)
    predicted[:-1] += 50.0
    predicted[-1, 1] += off_m
    assert trajectories.figures(waypoints(predicted), true)["miss_rate"] == is_missed


# Comparison with loops that share no code with the module.


def loops(predicted, true):
    """ADE of one path in plain Python."""
    pairs = zip(predicted.tolist(), true.tolist(), strict=True)
    return sum(math.dist(one, other) for one, other in pairs) / len(true)


@given(st.data(), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=50)
def test_ade_and_min_ade_match_plain_loops(data, num, num_samples):
    elements = {"elements": places}
    samples = data.draw(st_np.arrays(np.float64, (num, num_samples, 64, 2), **elements))
    true = data.draw(st_np.arrays(np.float64, (num, 64, 2), **elements))
    wanted_ade = np.array([[loops(one, true[n]) for one in samples[n]] for n in range(num)])
    assert trajectories.ade(samples, true[:, None]) == pytest.approx(wanted_ade, abs=1e-9)
    best = [min(row) for row in wanted_ade.tolist()]
    assert trajectories.min_ade(samples, true) == pytest.approx(best, abs=1e-9)


# Comfort.


def test_lateral_acceleration_on_a_circle_is_speed_squared_over_radius():
    speed, radius = 8.0, 30.0
    felt = trajectories.comfort(waypoints(circle(speed, radius)))
    assert felt["yaw_rate"] == pytest.approx(speed / radius)
    assert felt["lat_accel"] == pytest.approx(speed**2 / radius, rel=1e-3)
    for name in ("lon_accel", "lon_jerk", "jerk", "yaw_accel"):
        assert felt[name] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_longitudinal_acceleration_is_signed_in_both_directions(sign):
    path = sign * straight(2.0) + np.stack([sign * T**2, np.zeros(64)], -1)
    felt = trajectories.comfort(waypoints(path))
    assert felt["lon_accel"] == pytest.approx(sign * 2.0)
    for name in ("lat_accel", "jerk", "yaw_rate", "yaw_accel"):
        assert felt[name] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("path", "felt_too_much"),
    [
        (np.zeros((64, 2)), set()),
        (straight(30.0, 0.0), set()),
        (straight(-3.0), set()),
        (circle(10.0, 25.0), set()),
        (circle(-2.0, 10.0), set()),
        (braking(11.4, 3.0), {"lon_jerk"}),  # it stops abruptly
        (straight(2.0) + np.stack([1.3 * T**2, 0 * T], -1), {"lon_accel"}),
        (straight(40.0) - np.stack([2.1 * T**2, 0 * T], -1), {"lon_accel"}),
        (circle(15.0, 45.0), {"lat_accel"}),
        (circle(4.0, 4.0), {"yaw_rate"}),
        (bend(24.0, 0.0, 0.2, 2.2), {"jerk"}),
        (bend(1.5, -0.6, 0.6, 2.2), {"yaw_accel"}),
    ],
)
def test_each_comfort_limit_is_exceeded_on_its_own(path, felt_too_much):
    felt = trajectories.comfort(waypoints(path))
    exceeded = {
        name
        for name, (least, most) in trajectories.COMFORT.items()
        if felt[name].min() < least or felt[name].max() > most
    }
    assert exceeded == felt_too_much
    assert trajectories.within_bounds(felt) == (not felt_too_much)


@given(st_np.arrays(np.float64, (64, 2), elements=st.floats(-0.005, 0.005)))
def test_rounding_to_a_centimetre_stays_comfortable(noise):
    for path in (np.zeros((64, 2)), straight(0.3), straight(15.0), circle(6.0, 20.0)):
        felt = trajectories.comfort(waypoints(path + noise))
        assert trajectories.within_bounds(felt)


def test_slow_change_to_reverse_is_no_turn():
    speed = 1.0 - 0.5 * T
    path = np.stack([T - 0.25 * T**2, np.zeros(64)], -1)
    assert speed[0] > 0 > speed[-1]
    felt = trajectories.comfort(waypoints(path))
    assert felt["yaw_rate"] == pytest.approx(0, abs=1e-12)
    assert felt["lon_accel"] == pytest.approx(-0.5)
    assert trajectories.within_bounds(felt)
