"""The text of an event matches the drive, the labels and the rendered frames."""

import dataclasses
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from avomni_lib.dataset import cameras
from avomni_world.publish import obstacles
from avomni_world.scene import events
from avomni_world.scene.render import Renderer
from avomni_world.scene.scenes import Scene, make_scene
from tests.test_projection import seen_by
from tests.test_world_scene import bytes_of

SECONDS = 8.0
WALKER, AHEAD = "m ahead crosses from the right", "because the automobile"
STOPS, SLOWS = "The car stops because", "The car slows down because"
FRONT = [cameras.FRONT_WIDE]
seeds, town_names = st.integers(0, 2**32 - 1), st.sampled_from(["meadow", "harbour"])


def eventful(seed: int, town: str = "harbour") -> Scene:
    return make_scene(seed, town, SECONDS, with_event=True)


def walker_of(scene: Scene) -> tuple[int, np.ndarray]:
    """Index of the pedestrian among the vehicles."""
    (number,) = [n for n, v in enumerate(scene.vehicles) if v.label == "person"]
    return number


@pytest.fixture(scope="module")
def crossed() -> Scene:
    """A scene in which the car stops for a pedestrian."""
    for seed in range(100):
        scene = eventful(seed)
        if scene.event and scene.event.text.startswith(STOPS) and WALKER in scene.event.text:
            return scene
    raise AssertionError("no car stops")


@settings(max_examples=15)
@given(seed=seeds, town=town_names)
def test_event_text_matches_the_drive(seed, town):
    scene = eventful(seed, town)
    assume(scene.event is not None)
    start_s, text = scene.event.start_us / 1e6, scene.event.text
    assert 0 < start_s < SECONDS
    after = scene.drive.at(np.arange(start_s, scene.drive.end_s, 0.05))
    speed = after["speed"]
    if text.startswith((STOPS, SLOWS)):
        stops = set()
        for gentle in (0.15, 0.05):
            ends = np.flatnonzero(after["acceleration"] > -gentle)
            end = min(ends[ends > 12], default=len(speed) - 1)  # braking begins with a delay
            stops.add(bool(speed[end : end + 6].min() < 0.2))
        assert speed[end] <= speed[0] - 1.0
        # After long braking the pedestrian may be gone before the car stops.
        assert text.startswith(STOPS) in (stops | {False} if WALKER in text else stops)
    elif text.startswith("The car accelerates because"):
        assert speed[:80].max() >= speed[0] + 1.0
    else:
        assert text.startswith("The car holds its speed because")
        assert abs(speed[:6] - speed[0]).max() < 0.5
    leaders = [v for v in scene.vehicles if v.follows and v.along_m > 0]
    assert (AHEAD in text) == bool(leaders)
    if leaders:
        gap = float(re.search(r"(\d+) m ahead", text)[1])
        assert abs(leaders[0].along_m - gap) < 10  # from the ego's front to the other car's rear
    assert (WALKER in text) == any(vehicle.label == "person" for vehicle in scene.vehicles)


@settings(max_examples=15)
@given(seed=seeds, town=town_names)
def test_pedestrian_crosses_ahead_without_collision(seed, town):
    scene = eventful(seed, town)
    assume(scene.event is not None and WALKER in scene.event.text)
    number = walker_of(scene)
    times = np.arange(-0.4, scene.drive.end_s, 0.02)
    motion, poses = scene.drive.at(times), scene.vehicle_poses(times)
    walker_xy = poses[:, number, :2]
    left = scene.vehicles[number].left_m + scene.vehicles[number].walked_m(times)
    is_in_lane = np.abs(left + 1.8) < 1.8
    start = np.searchsorted(times, scene.event.start_us / 1e6)
    assert not is_in_lane[: start - 60].any(), "not long before the car brakes"
    assert is_in_lane.sum() * 0.02 > 1.5
    # In the ego frame the pedestrian is ahead of the car while in its lane.
    apart = walker_xy - np.stack([motion["x"], motion["y"]], axis=-1)
    ahead = apart[:, 0] * np.cos(motion["yaw"]) + apart[:, 1] * np.sin(motion["yaw"])
    nose = scene.vehicle.rear_axle_to_bbox_center + scene.vehicle.length / 2
    later = times > 0
    assert ahead[is_in_lane & later].min() > nose + 1.0
    others = np.delete(poses[..., :2], number, axis=1) - walker_xy[:, None]
    assert np.linalg.norm(others, axis=-1)[np.abs(left) < 3.6].min(initial=9.0) > 2.8


@settings(max_examples=10)
@given(seed=seeds, town=town_names)
def test_event_changes_neither_the_drive_nor_static_objects(seed, town):
    with_it, without = eventful(seed, town), make_scene(seed, town, SECONDS)
    assert without.event is None
    bare = [dataclasses.replace(scene, vehicles=()) for scene in (with_it, without)]
    assert bytes_of(bare[0]) == bytes_of(bare[1])
    vehicles = [vehicle for vehicle in with_it.vehicles if vehicle.label != "person"]
    ids = [
        (vehicle.along_m, vehicle.left_m, vehicle.speed_mps, vehicle.follows)
        for vehicle in without.vehicles
    ]
    assert all((v.along_m, v.left_m, v.speed_mps, v.follows) in ids for v in vehicles)
    assert bytes_of(with_it) == bytes_of(eventful(seed, town))


def test_survey_has_no_vehicles():
    for seed in range(6):
        scene = make_scene(seed, "survey", SECONDS, with_event=True)
        assert scene.vehicles == ()
        assert scene.event is None or "because the lane ahead is free" in scene.event.text


def test_events_are_written_in_upstreams_format(crossed):
    (event,) = json.loads(crossed.event.json)
    assert set(event) == {"event_start_frame", "event_start_timestamp", "coc"}
    assert event["coc"] == crossed.event.text
    # As in the data set: frame 16 is at 1,448,872 µs.
    start_us = 1_448_872 + (event["event_start_frame"] - 16) * 100_000
    assert event["event_start_timestamp"] == crossed.event.start_us == start_us
    braking = events.change(crossed.drive, SECONDS, -1)
    assert abs(braking.start_s - start_us / 1e6) <= 0.051


def test_pedestrian_is_drawn_where_the_label_says(crossed):
    """The pixels that change without the pedestrian are at the labelled position."""
    number = walker_of(crossed)
    walker = crossed.vehicles[number]
    alone = dataclasses.replace(
        crossed, vehicles=tuple(v for v in crossed.vehicles if v is not walker)
    )
    # The pedestrian is in the middle of the road and near.
    time = walker.walk.start_s + 0.6 * walker.walk.length_m / walker.walk.speed_mps
    t_us = round(time * 10) * 100_000
    with Renderer(320, 180, FRONT) as renderer:
        pictures = []
        for scene in (crossed, alone):
            renderer.open(scene)
            pictures.append(next(renderer.frames(np.array([t_us / 1e6])))[0].astype(int))
        lens = renderer.lenses[FRONT[0].name]
    differs = np.abs(pictures[0] - pictures[1]).sum(axis=-1) > 12
    assert differs.sum() > 8
    table = pd.read_parquet(io.BytesIO(obstacles.table(crossed)))
    row = table[(table["timestamp_us"] == t_us) & (table["label_class"] == "person")].iloc[0]
    middle = np.array([row.center_x, row.center_y, row.center_z])
    pixel = seen_by(lens, crossed.mounts[FRONT[0].name]).pixels(middle[None])[0]
    rows, cols = np.nonzero(differs)
    assert abs(cols.mean() - pixel[0]) < 3 and abs(rows.mean() - pixel[1]) < 4
    assert row.size_z == pytest.approx(1.76, abs=0.05)
