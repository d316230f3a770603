"""The road, the bicycle on it and the anchor frame, for any seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_world.scene import drive, towns

SECONDS = 12.0
seeds = st.integers(0, 2**32 - 1)
town_names = st.sampled_from(["meadow", "harbour"])


def driven(seed: int, name: str) -> tuple[drive.Road, drive.Drive]:
    rng, town = np.random.default_rng(seed), towns.town(name)
    road = drive.make_road(rng, town, town.speed_mps[1] * (SECONDS + 1))
    return drive.anchor(road, drive.drive_along(rng, road, town, 2.85, SECONDS))


@settings(max_examples=25)
@given(seed=seeds, name=town_names)
def test_motion_follows_the_bicycle_model(seed, name):
    _, car = driven(seed, name)
    times, step = np.arange(-0.4, SECONDS - 0.1, 0.0173), 1e-3
    here, there = car.at(times), car.at(times + step)
    middle = car.at(times + step / 2)
    speed, yaw = middle["speed"], middle["yaw"]
    # The rear axle moves where the car points; the yaw turns by speed times curvature.
    assert np.abs((there["x"] - here["x"]) / step - speed * np.cos(yaw)).max() < 0.02
    assert np.abs((there["y"] - here["y"]) / step - speed * np.sin(yaw)).max() < 0.02
    turning = (there["yaw"] - here["yaw"]) / step
    assert np.abs(turning - speed * middle["curvature"]).max() < 0.01
    pulling = (there["speed"] - here["speed"]) / step
    is_rolling = speed > 0.1  # acceleration jumps when a car stops
    assert np.abs(pulling - middle["acceleration"])[is_rolling].max(initial=0.0) < 0.25
    assert np.abs(np.arctan(here["curvature"] * 2.85)).max() <= drive.MAX_STEER_RAD
    assert np.abs(middle["acceleration"]).max() < 4.0
    assert np.abs(speed**2 * middle["curvature"]).max() < 6.5


@settings(max_examples=25)
@given(seed=seeds, name=town_names)
def test_car_keeps_its_lane_and_speed_range(seed, name):
    road, car = driven(seed, name)
    motion = car.at(np.arange(-0.4, SECONDS, 0.05))
    lane, heading = road.place(motion["along"], np.array(drive.EGO_OFFSET_M))
    offset_m = np.hypot(lane[:, 0] - motion["x"], lane[:, 1] - motion["y"])
    assert offset_m.max() < 0.6
    assert np.abs(heading - motion["yaw"]).max() < 0.12
    low, high = towns.town(name).speed_mps
    assert low <= motion["speed"].min() and motion["speed"].max() < high + 0.5


@settings(max_examples=25)
@given(seed=seeds, name=town_names)
def test_rig_is_the_origin_at_time_zero(seed, name):
    _, car = driven(seed, name)
    zero = car.at(np.array([0.0]))
    for key in ("x", "y", "yaw"):
        assert abs(zero[key][0]) < 1e-9


@settings(max_examples=25)
@given(seed=seeds, name=town_names)
def test_road_curvature_and_heading_are_bounded(seed, name):
    town = towns.town(name)
    road = drive.make_road(np.random.default_rng(seed), town, 400.0)
    assert np.abs(road.headings).max() < drive.MAX_HEADING_RAD + 0.02
    curvature = np.abs(np.diff(road.headings)) / drive.ROAD_STEP_M
    assert curvature.max() <= 1 / town.radius_m[0] + 1e-9
    assert town.speed_mps[1] ** 2 * curvature.max() < 5.5
    gaps = np.hypot(*np.diff(road.points, axis=0).T)
    assert gaps == pytest.approx(drive.ROAD_STEP_M)


def test_speeds_cover_their_range_and_some_cars_stop_and_start():
    for name in ("meadow", "harbour"):
        high = towns.town(name).speed_mps[1]
        profiles = [
            drive.speed_profile(np.random.default_rng(seed), towns.town(name), 8.0)[0]
            for seed in range(300)
        ]
        means = np.array([profile.mean() for profile in profiles]) / high
        for part in range(4):  # a quarter of the range holds no less than an eighth of the clips
            share = ((means >= part / 4) & (means < (part + 1) / 4)).mean()
            assert share > 0.125, (name, part, share)
        assert np.mean([np.ptp(profile) for profile in profiles]) > 0.15 * high
        stopped = [profile.min() == 0.0 for profile in profiles]
        moving_again = [(p[:-1] == 0.0) & (p[1:] > 0.0) for p in profiles]
        assert 0.1 < np.mean(stopped) < 0.6
        assert sum(again.any() for again in moving_again) > 10


@settings(max_examples=25)
@given(seed=seeds, name=town_names)
def test_straying_car_returns_to_its_lane(seed, name):
    rng, town = np.random.default_rng(seed), towns.town(name)
    road = drive.make_road(rng, town, town.speed_mps[1] * (SECONDS + 1))
    before = rng.bit_generator.state
    straight = drive.drive_along(rng, road, town, 2.85, SECONDS)
    rng.bit_generator.state = before
    stray = drive.make_stray(np.random.default_rng(seed))
    car = drive.drive_along(rng, road, town, 2.85, SECONDS, stray)
    left, turned = stray.left_m, stray.turned_rad
    assert 0 < max(abs(left) / 2.0, abs(turned) / np.radians(12)) <= 1
    first, reference = car.state[0], straight.state[0]
    across = np.array([-np.sin(reference[2]), np.cos(reference[2])])
    assert first[:2] - reference[:2] == pytest.approx(left * across, abs=1e-9)
    assert first[2] - reference[2] == pytest.approx(turned)
    assert np.array_equal(car.state[:, 3:5], straight.state[:, 3:5])  # no slower, no faster
    lane, _ = road.place(car.state[:, 6], np.array(drive.EGO_OFFSET_M))
    offset_m = np.hypot(*(lane - car.state[:, :2]).T)
    assert offset_m.max() < 5.0
    if car.state[:, 3].min() > 3.0:  # a stopped car cannot return
        assert offset_m[int(9.0 / drive.STEP_S) :].max() < 0.6


def test_time_outside_the_drive_is_an_error():
    _, car = driven(1, "meadow")
    with pytest.raises(ValueError, match="the drive spans"):
        car.at(np.array([SECONDS + 1]))
