"""One clip's world: a road, a drive along it and everything that stands or moves beside it.

A scene is a function of its seed, town and length. All its coordinates are in the data set's anchor frame:
the rig at time 0, x forward, y left, z up, metres.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from avomni_lib.world import drive as drives
from avomni_lib.world import shapes, towns
from avomni_lib.world.lens import Mount, make_mounts
from avomni_lib.world.shapes import Mesh

EGO_FUTURE_S = 10.6  # driven past the video, so that a future of 6.4 s exists at its last frame
VIDEO_MARGIN_S = 0.3  # the cameras run this much past the clip's length
VIEW_M = 300.0  # how far along the road the world is built around the drive
CELL_M = 40.0  # things are drawn in squares of this size
ROAD_CELL_M = 24.0
RUNG_M = 4.0
GROUND_HALF_M = 224.0

# Nearest and farthest place beside the centre line, and the room that a thing needs around its middle.
BESIDE: dict[str, tuple[float, float, float]] = {
    "house": (17, 50, 14),
    "block": (26, 70, 18),
    "warehouse": (26, 75, 23),
    "container": (10, 40, 12),
    "crane": (45, 90, 30),
    "tree": (8, 50, 7),
    "conifer": (8, 70, 7),
    "bush": (6, 24, 5.6),
    "ball": (5, 22, 5),
}
BESIDE_AT = {"post": 5.1, "lamp": 5.9}  # these stand in a row


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
class Vehicle:
    """Another road user.

    Attributes:
        mesh: Around its own foot, nose to +x.
        along_m: Where it is at time 0: along the road, or ahead of the rig if it `follows` it.
        left_m: To the left of the centre line.
        speed_mps: Along the road; negative comes towards us. Unused if it `follows`.
        follows: Keeps its distance to the rig, so that the gap says nothing about the speed.
    """

    mesh: Mesh
    along_m: float
    left_m: float
    speed_mps: float
    follows: bool = False


@dataclass(frozen=True)
class Scene:
    """A clip's world and the drive through it.

    Attributes:
        seconds: Length of the clip; the drive goes on for `EGO_FUTURE_S`.
        vehicle: What carries the cameras.
        mounts: Camera name -> where it sits.
        meshes: What stands still.
        vehicles: What moves.
        landmarks: (N, 3) m, the middles of the survey's balls.
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

    def egomotion(self, t_us: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of the `egomotion` feature (facts of the data set: rig -> anchor, scalar-last
        quaternion, velocity and acceleration in the anchor frame) at timestamps in microseconds.

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
        cos, sin = np.cos(motion["yaw"]), np.sin(motion["yaw"])
        pose = np.zeros((len(cos), 4, 4))
        pose[:, 0, 0], pose[:, 0, 1], pose[:, 0, 3] = cos, -sin, motion["x"]
        pose[:, 1, 0], pose[:, 1, 1], pose[:, 1, 3] = sin, cos, motion["y"]
        pose[:, 2, 2] = pose[:, 3, 3] = 1.0
        mount = np.eye(4)
        mount[:3, :3], mount[:3, 3] = self.mounts[camera].rotation, self.mounts[camera].position
        return pose @ mount

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
        left = np.broadcast_to([v.left_m for v in self.vehicles], along.shape)
        points, heading = self.road.place(along, left)
        heading = heading + np.where(speed < 0, np.pi, 0.0)
        return np.concatenate([points, heading[..., None]], axis=-1)


def make_scene(seed: int, town: str, seconds: float) -> Scene:
    """The world of one clip; the same arguments give the same world.

    Raises:
        AvomniError: no town has this name.
    """
    look = towns.town(town)
    streams = np.random.SeedSequence([seed, zlib.crc32(town.encode())]).spawn(6)
    roads, driving, mounting, painting, placing, traffic = map(np.random.default_rng, streams)
    driven_s = seconds + EGO_FUTURE_S
    road = drives.make_road(roads, look, look.speed_mps[1] * (driven_s + 1))
    kinds = ["van"] if look.camera_rise_m else ["passenger car"] * 9 + ["long car"]
    vehicle = VEHICLES[kinds[mounting.integers(len(kinds))]]
    drive = drives.drive_along(driving, road, look, vehicle.wheelbase, driven_s)
    road, drive = drives.anchor(road, drive)
    last = float(drive.at(np.array([seconds + VIDEO_MARGIN_S]))["along"][0])
    things, landmarks = _place_things(placing, road, look, -VIEW_M, last + VIEW_M)
    return Scene(
        seed=seed,
        town=look,
        seconds=seconds,
        vehicle=vehicle,
        mounts=make_mounts(mounting, look),
        road=road,
        drive=drive,
        textures=shapes.textures(painting, look),
        meshes=(
            *_road_meshes(road, -VIEW_M, last + VIEW_M),
            *_ground_meshes(painting, road, last, look),
            *things,
        ),
        vehicles=_traffic(traffic, look, drive, seconds),
        landmarks=landmarks,
    )


def _road_meshes(road: drives.Road, start: float, end: float) -> list[Mesh]:
    """The strip of lanes, shoulders and verges, in pieces of one period of its texture."""
    columns = np.array([-14.0, -4.6, 4.6, 14.0])
    rungs = int(ROAD_CELL_M / RUNG_M) + 1
    quads = []
    for rung in range(rungs - 1):
        for col in range(3):
            a = rung * 4 + col
            quads += [(a, a + 5, a + 1), (a, a + 4, a + 5)]
    triangles = np.array(quads, np.int32)
    meshes = []
    for cell in range(int(start // ROAD_CELL_M), int(end // ROAD_CELL_M) + 1):
        along = np.repeat(cell * ROAD_CELL_M + np.arange(rungs) * RUNG_M, 4)
        left = np.tile(columns, rungs)
        points, _ = road.place(along, left)
        uv = np.stack(
            [left / shapes.ROAD_WIDTH_M + 0.5, along / shapes.ROAD_PERIOD_M - cell], axis=-1
        )
        flat = np.concatenate([points, np.zeros((len(points), 1))], axis=-1)
        white = np.full(flat.shape, 255, np.uint8)
        meshes.append(
            Mesh(flat.astype(np.float32), white, uv.astype(np.float32), triangles, "road")
        )
    return meshes


def _ground_meshes(
    rng: np.random.Generator, road: drives.Road, last: float, town: towns.Town
) -> list[Mesh]:
    """Squares of ground around the drive, each corner with its own shade."""
    side = shapes.GROUND_PERIOD_M
    path, _ = road.place(np.arange(-VIEW_M, last + VIEW_M, 20.0), np.array(0.0))
    low = np.floor((path.min(0) - GROUND_HALF_M) / side).astype(int)
    high = np.ceil((path.max(0) + GROUND_HALF_M) / side).astype(int)
    columns, rows = (high - low).tolist()
    shade = np.ones((rows + 1, columns + 1, 3))
    if not town.landmarks:
        shade = 0.72 + 0.28 * rng.random((rows + 1, columns + 1, 1)) * (1.0, 0.97, 0.9)
    meshes = []
    step = 4  # squares a side of one mesh
    for row in range(0, rows, step):
        for col in range(0, columns, step):
            h, w = min(step, rows - row), min(step, columns - col)
            centre = (low + (col + w / 2, row + h / 2)) * side
            if np.linalg.norm(path - centre, axis=1).min() > GROUND_HALF_M:
                continue
            grid_y, grid_x = np.mgrid[0 : h + 1, 0 : w + 1].reshape(2, -1)
            points = np.stack(
                [
                    (low[0] + col + grid_x) * side,
                    (low[1] + row + grid_y) * side,
                    np.zeros(grid_x.shape),
                ],
                axis=-1,
            )
            a = (np.arange(h)[:, None] * (w + 1) + np.arange(w)).reshape(-1)
            triangles = np.concatenate(
                [np.stack([a, a + 1, a + w + 2], -1), np.stack([a, a + w + 2, a + w + 1], -1)]
            )
            colours = (shade[row + grid_y, col + grid_x] * 255).astype(np.uint8)
            uv = np.stack([grid_x, grid_y], -1).astype(np.float32)
            meshes.append(
                Mesh(points.astype(np.float32), colours, uv, triangles.astype(np.int32), "ground")
            )
    return meshes


def _place_things(
    rng: np.random.Generator, road: drives.Road, town: towns.Town, start: float, end: float
) -> tuple[list[Mesh], np.ndarray]:
    """Everything solid beside the road, merged by squares, and the places of the landmarks."""
    path, _ = road.place(np.arange(start - 40, end + 40, 4.0), np.array(0.0))
    cells: dict[tuple[int, int], list[tuple[np.ndarray, ...]]] = {}
    landmarks = np.zeros((0, 3))
    for kind, amount in town.per_100_m.items():
        count = int(amount * (end - start) / 100)
        side = rng.choice((-1.0, 1.0), count)
        if kind in BESIDE_AT:
            along = start + (np.arange(count) + 0.5) * (end - start) / count
            left = np.where(np.arange(count) % 2, 1.0, -1.0) * BESIDE_AT[kind]
            near = 0.0
        else:
            nearest, farthest, near = BESIDE[kind]
            along = rng.uniform(start, end, count)
            left = side * (nearest + (farthest - nearest) * rng.random(count) ** 1.4)
        points, heading = road.place(along, left)
        clear = np.linalg.norm(points[:, None] - path, axis=-1).min(axis=1) > near * 0.98
        points, heading, left = points[clear], heading[clear], left[clear]
        placed = len(points)
        height = rng.uniform(0.5, 7.0, placed) if kind == "ball" else np.zeros(placed)
        places = np.concatenate([points, height[:, None]], axis=-1)
        yaws, scales, tints = _dress(rng, kind, town, heading, left)
        shape = shapes.SHAPES[kind]
        corners, colours = shapes.stamp(shape, places, yaws, scales, tints, town)
        if kind == "ball":
            landmarks = places
        keys = np.floor(points / CELL_M).astype(int)
        for key in {tuple(key) for key in keys.tolist()}:
            mine = (keys == key).all(axis=1)
            cells.setdefault(key, []).append((corners[mine], colours[mine], shape))
    return [_merge(cells[key]) for key in sorted(cells)], landmarks


def _dress(
    rng: np.random.Generator, kind: str, town: towns.Town, heading: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How each copy of a kind is turned (n,), stretched (n, 3) and coloured (n, tints, 3)."""
    count = len(heading)

    def pick(colours) -> np.ndarray:
        chosen = np.array(colours, float)[rng.integers(len(colours), size=count)]
        return chosen * rng.uniform(0.85, 1.1, (count, 1))

    scales = np.ones((count, 3)) * rng.uniform(0.8, 1.3, (count, 1))
    if kind in ("house", "block", "warehouse", "container", "crane"):
        yaws = heading + rng.integers(2, size=count) * np.pi / 2 + rng.normal(0, 0.06, count)
        first, second = pick(town.walls), pick(town.roofs)
        if kind in ("container", "crane"):
            first = pick(towns.CAR_COLOURS)
            scales = np.ones((count, 3))
        if kind == "container":
            scales[:, 2] = rng.integers(1, 4, count)
        elif kind != "house":
            scales[:, 2] *= rng.uniform(0.7, 1.3, count)
        return yaws, scales, np.stack([first, second], axis=1)
    if kind in ("post", "lamp"):
        yaws = heading + np.where(left > 0, 0.0, np.pi)
        white, dark = np.full((count, 3), 235.0), np.full((count, 3), 60.0)
        if kind == "lamp":
            white = np.broadcast_to((255.0, 226.0, 170.0), (count, 3))
        return yaws, np.ones((count, 3)), np.stack([white, dark], axis=1)
    if kind == "ball":
        return np.zeros(count), np.ones((count, 3)), np.full((count, 1, 3), 255.0)
    trunk = np.broadcast_to((84.0, 66.0, 48.0), (count, 3))
    return rng.uniform(0, 2 * np.pi, count), scales, np.stack([pick(town.crowns), trunk], axis=1)


def _merge(parts: list[tuple[np.ndarray, np.ndarray, shapes.Shape]]) -> Mesh:
    points, colours, uv, triangles, first = [], [], [], [], 0
    for corners, tinted, shape in parts:
        copies, size = corners.shape[:2]
        points.append(corners.reshape(-1, 3))
        colours.append(tinted.reshape(-1, 3))
        uv.append(np.tile(shape.uv, (copies, 1)))
        starts = first + np.arange(copies)[:, None, None] * size
        triangles.append((shape.triangles[None] + starts).reshape(-1, 3))
        first += copies * size
    return Mesh(
        np.concatenate(points),
        np.concatenate(colours),
        np.concatenate(uv).astype(np.float32),
        np.concatenate(triangles).astype(np.int32),
        "things",
    )


def _traffic(
    rng: np.random.Generator, town: towns.Town, drive: drives.Drive, seconds: float
) -> tuple[Vehicle, ...]:
    """Oncoming cars at one common speed, and at times one car ahead and one behind in our lane."""
    if town.landmarks:
        return ()
    speed = rng.uniform(4.0, max(town.speed_mps[1], 8.0))
    far = float(drive.at(np.array([seconds]))["along"][0]) + speed * seconds + 250
    vehicles, along = [], rng.uniform(-30.0, 60.0)
    while along < far and len(vehicles) < 12:
        vehicles.append(Vehicle(_vehicle_mesh(rng, town), along, -drives.EGO_OFFSET_M, -speed))
        along += 16.0 + rng.exponential(55.0)
    for side in (1.0, -1.0):
        if rng.random() < 0.5:
            gap = side * rng.uniform(13.0, 45.0)
            mesh = _vehicle_mesh(rng, town)
            vehicles.append(Vehicle(mesh, gap, drives.EGO_OFFSET_M, 0.0, follows=True))
    return tuple(vehicles)


def _vehicle_mesh(rng: np.random.Generator, town: towns.Town) -> Mesh:
    shape = shapes.SHAPES["van" if rng.random() < 0.25 else "car"]
    body = np.array(towns.CAR_COLOURS[rng.integers(len(towns.CAR_COLOURS))], float)
    glass, tyre = np.array([38.0, 44.0, 54.0]), np.array([24.0, 24.0, 26.0])
    head, tail = np.array([400.0, 390.0, 340.0]), np.array([330.0, 40.0, 30.0])
    tints = np.stack([body, glass, tyre, head, tail])[None]
    zero = np.zeros((1, 3))
    points, colours = shapes.stamp(shape, zero, np.zeros(1), np.ones((1, 3)), tints, town)
    return _merge([(points, colours, shape)])
