"""The static part of a scene: the road, the ground, objects beside the road, the sky."""

from __future__ import annotations

import numpy as np

from avomni_world.scene import shapes, textures, towns
from avomni_world.scene.drive import Road
from avomni_world.scene.shapes import Mesh

VIEW_M = 300.0  # how far along the road the world is built around the drive
CELL_M = 40.0  # things are drawn in squares of this size
ROAD_CELL_M = 24.0
RUNG_M = 4.0
GROUND_HALF_M = 224.0

# Nearest and farthest distance from the centre line, and the free space around the centre.
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


def road_meshes(road: Road, start: float, end: float) -> list[Mesh]:
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
            [left / textures.ROAD_WIDTH_M + 0.5, along / textures.ROAD_PERIOD_M - cell], axis=-1
        )
        flat = np.concatenate([points, np.zeros((len(points), 1))], axis=-1)
        white = np.full(flat.shape, 255, np.uint8)
        meshes.append(
            Mesh(flat.astype(np.float32), white, uv.astype(np.float32), triangles, "road")
        )
    return meshes


def ground_meshes(
    rng: np.random.Generator, road: Road, last: float, town: towns.Town
) -> list[Mesh]:
    """Squares of ground around the drive, each corner with its own shade."""
    side = textures.GROUND_PERIOD_M
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
            x, y = (low[0] + col + grid_x) * side, (low[1] + row + grid_y) * side
            points = np.stack([x, y, np.zeros(x.shape)], axis=-1)
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


def place_things(
    rng: np.random.Generator, road: Road, town: towns.Town, start: float, end: float
) -> tuple[list[Mesh], np.ndarray]:
    """All solids beside the road, merged by squares, and the positions of the landmarks."""
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
    return [merge(cells[key]) for key in sorted(cells)], landmarks


def _dress(
    rng: np.random.Generator, kind: str, town: towns.Town, heading: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Yaw (n,), scale (n, 3) and colours (n, tints, 3) of each copy of a kind."""
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


def merge(parts: list[tuple[np.ndarray, np.ndarray, shapes.Shape]]) -> Mesh:
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


def sky_mesh(seed: int, town: towns.Town, radius: float = 100.0, sides: int = 36) -> Mesh:
    """A ring around a camera: hazy ground, hills against the sky, and the sky's lower part."""
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    hills = 2.2 + 1.3 * np.sin(3 * turn + phases[0]) + 0.8 * np.sin(7 * turn + phases[1])
    hills = np.maximum(hills + 0.5 * np.sin(15 * turn + phases[2]), 0.4)
    flat = np.zeros(sides + 1)
    ground = (np.array(town.ground) * 0.8 + np.array(town.hills) * 0.4).clip(0, 255)
    horizon, zenith = np.array(town.horizon), np.array(town.zenith)
    levels = [(flat + 8, 0.3), (flat + 20, 0.6), (flat + 38, 0.85), (flat + 70, 1.0)]
    bands = [(flat - 40, ground, flat, ground), (flat, town.hills, hills, town.hills)]
    low, low_colour = hills, horizon
    for high, part in levels:
        colour = horizon * (1 - part) + zenith * part
        bands.append((low, low_colour, high, colour))
        low, low_colour = high, colour
    around = np.stack([np.cos(turn) * radius, np.sin(turn) * radius], axis=-1)
    points, colours = [], []
    for low, low_colour, high, high_colour in bands:
        for height, colour in ((low, low_colour), (high, high_colour)):
            points.append(np.concatenate([around, height[:, None]], axis=-1))
            colours.append(np.broadcast_to(colour, (sides + 1, 3)))
    a = np.arange(sides) + np.arange(len(bands))[:, None] * 2 * (sides + 1)
    b = a + sides + 1
    triangles = np.stack([a, b, a + 1, a + 1, b, b + 1], axis=-1).reshape(-1, 3)
    return Mesh(
        np.concatenate(points).astype(np.float32),
        np.concatenate(colours).astype(np.uint8),
        np.zeros((len(points) * (sides + 1), 2), np.float32),
        triangles.astype(np.int32),
        "sky",
    )
