"""A scene is a function of its arguments, and no object is in the way of the car."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.dataset import cameras
from avomni_world.scene import scenes
from avomni_world.scene.scenes import make_scene

seeds = st.integers(0, 2**32 - 1)
town_names = st.sampled_from(["meadow", "harbour"])


def bytes_of(scene: scenes.Scene) -> bytes:
    meshes = [*scene.meshes, *(vehicle.mesh for vehicle in scene.vehicles)]
    arrays = [scene.drive.state, scene.road.points, *scene.textures.values()]
    arrays += [array for mesh in meshes for array in (mesh.points, mesh.colours, mesh.uv)]
    return b"".join(array.tobytes() for array in arrays)


def test_same_arguments_give_the_same_scene():
    assert bytes_of(make_scene(7, "harbour", 2.0)) == bytes_of(make_scene(7, "harbour", 2.0))
    others = [make_scene(8, "harbour", 2.0), make_scene(7, "meadow", 2.0)]
    assert len({bytes_of(scene)[:5000] for scene in [make_scene(7, "harbour", 2.0), *others]}) == 3


@settings(max_examples=12)
@given(seed=seeds, town=town_names)
def test_no_solid_object_is_on_the_cars_path(seed, town):
    scene = make_scene(seed, town, 4.0)
    motion = scene.drive.at(np.arange(-0.2, 4.2, 0.05))
    path = np.stack([motion["x"], motion["y"]], axis=-1)
    solid = np.concatenate([mesh.points for mesh in scene.meshes if mesh.texture == "things"])
    low = solid[solid[:, 2] < 2.5, :2]
    nearest = np.linalg.norm(low[:, None] - path[None, ::4], axis=-1).min()
    assert nearest > 1.3


@settings(max_examples=12)
@given(seed=seeds, town=town_names)
def test_other_vehicles_keep_their_lanes_and_never_collide(seed, town):
    scene = make_scene(seed, town, 4.0)
    times = np.arange(-0.2, 4.2, 0.1)
    poses, motion = scene.vehicle_poses(times), scene.drive.at(times)
    ego = np.stack([motion["x"], motion["y"]], axis=-1)
    for idx, vehicle in enumerate(scene.vehicles):
        gap = np.linalg.norm(poses[:, idx, :2] - ego, axis=-1)
        assert gap.min() > (9.0 if vehicle.follows else 2.4)
        if vehicle.follows:
            assert np.ptp(gap) < 4.0  # a curve's chord; the gap tells nothing about the speed
        else:
            assert vehicle.left_m > 0 > vehicle.speed_mps  # the other lane, towards us
            step = np.diff(poses[:, idx, :2], axis=0)
            nose = np.stack([np.cos(poses[:-1, idx, 2]), np.sin(poses[:-1, idx, 2])], axis=-1)
            moved = np.linalg.norm(step, axis=-1)
            inside = moved > 0.1
            assert ((step * nose).sum(axis=-1) > 0.9 * moved)[inside].all()


def test_egomotion_columns_and_derivatives_are_consistent():
    scene = make_scene(21, "meadow", 6.0)
    t_us = np.arange(-100_000, 16_000_000, 10_000)
    columns = scene.egomotion(t_us)
    assert list(columns) == [
        *("timestamp", "qx", "qy", "qz", "qw", "x", "y", "z"),
        *("vx", "vy", "vz", "ax", "ay", "az", "curvature"),
    ]
    assert columns["timestamp"].dtype == np.int64
    assert all(columns[name].dtype == np.float64 for name in list(columns)[1:])
    norm = sum(columns[name] ** 2 for name in ("qx", "qy", "qz", "qw"))
    assert norm == pytest.approx(1.0)
    for axis in "xy":
        velocity = np.gradient(columns[axis], 0.01)[1:-1]
        assert np.abs(velocity - columns[f"v{axis}"][1:-1]).max() < 0.05
    rolling = np.hypot(columns["vx"], columns["vy"])[2:-2] > 0.2
    for axis in "xy":
        pull = np.gradient(columns[f"v{axis}"], 0.01)[2:-2]
        assert np.abs(pull - columns[f"a{axis}"][2:-2])[rolling].max() < 0.3


def test_camera_poses_are_fixed_to_the_rig():
    scene = make_scene(5, "harbour", 4.0)
    for camera in cameras.CAMERAS:
        pose = scene.camera_poses(camera.name, np.array([0.0, 3.0]))
        mount = scene.mounts[camera.name]
        assert pose[0, :3, 3] == pytest.approx(mount.position)  # the anchor is the rig at 0
        assert pose[0, :3, :3] == pytest.approx(mount.rotation)
        later = scene.drive.at(np.array([3.0]))
        height = np.hypot(*(pose[1, :2, 3] - (later["x"][0], later["y"][0])))
        assert height == pytest.approx(np.hypot(*mount.position[:2]))
        assert pose[1, 2, 3] == pytest.approx(mount.position[2])
