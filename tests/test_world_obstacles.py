"""Labels of other road users: the data set's columns, and the positions of the scene."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from avomni_world.publish import obstacles
from avomni_world.scene.scenes import Scene, make_scene

SECONDS = 4.0


def labels(scene: Scene) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(obstacles.table(scene)))


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A scene with a car ahead, one behind, and some oncoming."""
    scene = make_scene(5, "harbour", SECONDS)
    assert len({vehicle.follows for vehicle in scene.vehicles}) == 2
    return scene


def test_columns_are_the_data_sets(scene):
    schema = pq.read_schema(io.BytesIO(obstacles.table(scene)))
    numbers = [
        *(f"center_{axis}" for axis in "xyz"),
        *(f"size_{axis}" for axis in "xyz"),
        *(f"orientation_{axis}" for axis in "xyzw"),
    ]
    assert schema.names == [
        *("timestamp_us", "source", "track_id", *numbers),
        *("label_class", "reference_frame", "reference_frame_timestamp_us"),
    ]
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert {types[name] for name in numbers} == {"double"}
    assert types["timestamp_us"] == types["reference_frame_timestamp_us"] == "uint64"
    for name in ("source", "track_id", "label_class", "reference_frame"):
        assert types[name] == "string"
    table = labels(scene)
    assert set(table["reference_frame"]) == {"rig"} and set(table["label_class"]) == {"automobile"}
    assert sorted(set(table["timestamp_us"])) == list(range(0, 4_000_001, 100_000))
    assert not table.duplicated(["timestamp_us", "track_id"]).any()


def test_boxes_match_the_vehicles_of_the_scene(scene):
    """The boxes, transformed to the world, enclose the vehicles' meshes exactly."""
    table = labels(scene)
    seen = set()
    for (t_us, track), row in table.set_index(["timestamp_us", "track_id"]).iterrows():
        ego = scene.egomotion(np.array([t_us], np.int64))
        to_anchor = Rotation.from_quat([ego[q][0] for q in ("qx", "qy", "qz", "qw")])
        ego_xyz = np.array([ego[axis][0] for axis in "xyz"])
        box_to_rig = Rotation.from_quat(row[[f"orientation_{a}" for a in "xyzw"]].astype(float))
        middle = row[[f"center_{a}" for a in "xyz"]].to_numpy(float)
        size = row[[f"size_{a}" for a in "xyz"]].to_numpy(float)
        vehicle = scene.vehicles[int(track)]
        x, y, yaw = scene.vehicle_poses([t_us / 1e6])[0, int(track)]
        points = Rotation.from_rotvec([0, 0, yaw]).apply(vehicle.mesh.points) + (x, y, 0.0)
        inside = box_to_rig.inv().apply(to_anchor.inv().apply(points - ego_xyz) - middle)
        assert np.abs(inside).max(axis=0) == pytest.approx(size / 2, abs=1e-4)
        seen.add(int(track))
    assert {number for number, vehicle in enumerate(scene.vehicles) if vehicle.follows} <= seen


def test_all_vehicles_within_range_are_labelled(scene):
    table = labels(scene)
    times = np.arange(41) / 10
    motion, poses = scene.drive.at(times), scene.vehicle_poses(times)
    apart = np.hypot(poses[..., 0] - motion["x"][:, None], poses[..., 1] - motion["y"][:, None])
    near, far = (apart < obstacles.RANGE_M - 1).sum(), (apart < obstacles.RANGE_M + 1).sum()
    assert 0 < near <= len(table) <= far < apart.size
    assert np.hypot(table["center_x"], table["center_y"]).max() <= obstacles.RANGE_M


def test_scene_without_vehicles_gives_an_empty_table(scene):
    table = labels(dataclasses.replace(scene, vehicles=()))
    assert not len(table) and list(table.columns) == list(labels(scene).columns)
