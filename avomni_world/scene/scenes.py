"""One clip's world: a road, a drive along it and everything that stands or moves beside it.

A scene is a function of its seed, town and length. All its coordinates are in the data set's anchor
frame: the rig at time 0, x forward, y left, z up, metres.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from avomni_world.scene import drive as drives
from avomni_world.scene import events, scenery, textures, towns, traffic
from avomni_world.scene.events import SceneEvent
from avomni_world.scene.lens import Mount, make_mounts
from avomni_world.scene.shapes import Mesh
from avomni_world.scene.traffic import Vehicle

EGO_FUTURE_S = 10.6  # driven past the video, so that a future of 6.4 s exists at its last frame
VIDEO_MARGIN_S = 0.3  # the cameras run this much past the clip's length


@dataclass(frozen=True)
class VehicleDimensions:
    """As `vehicle_dimensions` publishes them, metres."""

    length: float
    width: float
    height: float
    rear_axle_to_bbox_center: float
    wheelbase: float
    track_width: float


VEHICLES = {
    "passenger car": VehicleDimensions(4.87, 2.12, 1.48, 1.37, 2.85, 1.62),
    "long car": VehicleDimensions(5.29, 2.15, 1.51, 1.53, 3.165, 1.66),
    "van": VehicleDimensions(5.53, 2.28, 2.42, 1.62, 3.20, 1.75),
}


@dataclass(frozen=True)
class Scene:
    """A clip's world and the drive through it.

    Attributes:
        seconds: Length of the clip; the drive continues for `EGO_FUTURE_S`.
        vehicle: The car with the cameras.
        mounts: Camera name -> its mount.
        meshes: What stands still.
        vehicles: What moves.
        landmarks: (N, 3) m, the centres of the balls in the town `survey`.
        event: What happens in the clip; None unless requested.
    """

    seed: int
    town: towns.Town
    seconds: float
    vehicle: VehicleDimensions
    mounts: dict[str, Mount]
    road: drives.Road
    drive: drives.Drive
    textures: dict[str, np.ndarray] = field(repr=False)
    meshes: tuple[Mesh, ...] = field(repr=False)
    vehicles: tuple[Vehicle, ...] = field(repr=False)
    landmarks: np.ndarray = field(repr=False)
    event: SceneEvent | None = None

    def egomotion(self, t_us: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of the `egomotion` feature at timestamps.

        Poses are rig -> anchor with scalar-last quaternions; velocity and acceleration are in the
        anchor frame, as upstream has them.

        Args:
            t_us: (N,) int64.

        Returns:
            timestamp int64 and qx … curvature float64, each (N,).
        """
        t_us = np.asarray(t_us, np.int64)
        motion = self.drive.at(t_us / 1e6)
        cos, sin = np.cos(motion["yaw"]), np.sin(motion["yaw"])
        speed, forward = motion["speed"], motion["acceleration"]
        sideways = speed**2 * motion["curvature"]
        zero = np.zeros(len(t_us))
        return {
            "timestamp": t_us,
            "qx": zero,
            "qy": zero,
            "qz": np.sin(motion["yaw"] / 2),
            "qw": np.cos(motion["yaw"] / 2),
            "x": motion["x"],
            "y": motion["y"],
            "z": zero,
            "vx": speed * cos,
            "vy": speed * sin,
            "vz": zero,
            "ax": forward * cos - sideways * sin,
            "ay": forward * sin + sideways * cos,
            "az": zero,
            "curvature": motion["curvature"],
        }

    def camera_poses(self, camera: str, times_s: np.ndarray) -> np.ndarray:
        """(T, 4, 4) camera -> anchor at each time; the camera's axes are x right, y down, z out."""
        motion = self.drive.at(np.asarray(times_s))
        return self.mounts[camera].ride(motion["x"], motion["y"], motion["yaw"])

    def vehicle_poses(self, times_s: np.ndarray) -> np.ndarray:
        """(T, vehicles, 3): x, y (m) and yaw (rad) of the others at each time."""
        times_s = np.asarray(times_s, np.float64)
        if not self.vehicles:
            return np.zeros((len(times_s), 0, 3))
        ego = self.drive.at(times_s)["along"]
        follows = np.array([v.follows for v in self.vehicles])
        start = np.array([v.along_m for v in self.vehicles])
        speed = np.array([v.speed_mps for v in self.vehicles])
        along = np.where(follows, ego[:, None] + start, start + times_s[:, None] * speed)
        left = np.stack([v.left_m + v.walked_m(times_s) for v in self.vehicles], axis=-1)
        points, heading = self.road.place(along, left)
        heading = heading + [v.turn_rad for v in self.vehicles]
        return np.concatenate([points, heading[..., None]], axis=-1)


def make_scene(
    seed: int,
    town: str | towns.Town,
    seconds: float,
    with_event: bool = False,
    strays: bool = False,
) -> Scene:
    """The world of one clip; the same arguments give the same world.

    Args:
        town: One of `TOWNS` by name, or a `Town`.
        with_event: Describe an event, and add a pedestrian if the car brakes without a reason. The
            drive and the static part of the scene do not change.
        strays: The car begins beside its lane, or turned away from it, and comes back.

    Raises:
        AvomniError: no town has this name.
    """
    look = towns.town(town) if isinstance(town, str) else town
    streams = np.random.SeedSequence([seed, zlib.crc32(look.name.encode())]).spawn(8)
    roads, driving, mounting, painting, placing, meeting, happening, straying = map(
        np.random.default_rng, streams
    )
    driven_s = seconds + EGO_FUTURE_S
    road = drives.make_road(roads, look, look.speed_mps[1] * (driven_s + 1))
    kinds = ["van"] if look.camera_rise_m else ["passenger car"] * 9 + ["long car"]
    vehicle = VEHICLES[kinds[mounting.integers(len(kinds))]]
    stray = drives.make_stray(straying) if strays else drives.IN_LANE
    drive = drives.drive_along(driving, road, look, vehicle.wheelbase, driven_s, stray)
    road, drive = drives.anchor(road, drive)
    last = float(drive.at(np.array([seconds + VIDEO_MARGIN_S]))["along"][0])
    span = -scenery.VIEW_M, last + scenery.VIEW_M
    things, landmarks = scenery.place_things(placing, road, look, *span)
    others, event = traffic.cars(meeting, look, drive, seconds), None
    if with_event:
        front_m = vehicle.rear_axle_to_bbox_center + vehicle.length / 2
        event, others = events.happen(happening, look, drive, front_m, seconds, others)
    return Scene(
        seed=seed,
        town=look,
        seconds=seconds,
        vehicle=vehicle,
        mounts=make_mounts(mounting, look),
        road=road,
        drive=drive,
        textures=textures.textures(painting, look),
        meshes=(
            *scenery.road_meshes(road, *span),
            *scenery.ground_meshes(painting, road, last, look),
            *things,
        ),
        vehicles=others,
        landmarks=landmarks,
        event=event,
    )
