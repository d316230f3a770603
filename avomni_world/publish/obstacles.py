"""The `obstacle.offline` labels of a scene: the other road users, ten times a second."""

from __future__ import annotations

import numpy as np

from avomni_world.publish import tables
from avomni_world.scene.scenes import Scene

STEP_US = 100_000
RANGE_M = 150.0  # objects farther from the rig are not labelled
SOURCE = "scene:obstacles:rendered"  # the real data set has `autolabels:v2` here
FRAME = "rig"


def table(scene: Scene) -> bytes:
    """All labels of a clip, from its start to its length, as bytes of parquet.

    A row's box is in the rig's frame at `reference_frame_timestamp_us`, which here is the row's own
    time: centre and size in m, the rotation box -> rig as a scalar-last quaternion.
    """
    t_us = np.arange(0, round(scene.seconds * 1e6) + 1, STEP_US)
    motion, poses = scene.drive.at(t_us / 1e6), scene.vehicle_poses(t_us / 1e6)
    boxes = [vehicle.box for vehicle in scene.vehicles]
    size = np.array([size for size, _ in boxes]).reshape(-1, 3)
    middle = np.array([middle for _, middle in boxes]).reshape(-1, 3)
    # From each origin to its box's centre, then to the rig.
    apart = poses[..., :2] + _turned(middle[None, :, :2], poses[..., 2])
    apart -= np.stack([motion["x"], motion["y"]], axis=-1)[:, None]
    place = _turned(apart, np.broadcast_to(-motion["yaw"][:, None], apart.shape[:2]))
    turn = (poses[..., 2] - motion["yaw"][:, None]) / 2
    time, who = np.nonzero(np.hypot(*np.moveaxis(place, -1, 0)) <= RANGE_M)
    zero = np.zeros(len(time))
    columns = {
        "timestamp_us": t_us[time],
        "source": [SOURCE] * len(time),
        "track_id": [str(number) for number in who.tolist()],
        "center_x": place[time, who, 0],
        "center_y": place[time, who, 1],
        "center_z": middle[who, 2],
        "size_x": size[who, 0],
        "size_y": size[who, 1],
        "size_z": size[who, 2],
        "orientation_x": zero,
        "orientation_y": zero,
        "orientation_z": np.sin(turn[time, who]),
        "orientation_w": np.cos(turn[time, who]),
        "label_class": [scene.vehicles[number].label for number in who.tolist()],
        "reference_frame": [FRAME] * len(time),
        "reference_frame_timestamp_us": t_us[time],
    }
    return tables.parquet(columns, tables.OBSTACLES)


def _turned(points: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """(..., 2) points rotated to the left by (...) rad."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y = points[..., 0], points[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)
