"""The solids of a town, as plain arrays.

A shape is a template around its origin on the ground (x forward, y left, z up, metres); many copies
are made at once. All share one texture of 2 × 2 cells: plain, wall with windows, ribbed metal,
leaves.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import numpy as np

from avomni_world.scene.towns import Town

PLAIN, WALL, METAL, LEAVES = (0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)


@dataclass(frozen=True)
class Shape:
    """A template.

    Attributes:
        points: (V, 3) m.
        normals: (V, 3) unit.
        uv: (V, 2) into the shared texture.
        tints: (V,) index of the copy's colour for each vertex.
        triangles: (F, 3), counter-clockwise seen from outside.
    """

    points: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    tints: np.ndarray
    triangles: np.ndarray

    def __add__(self, other: Shape) -> Shape:
        return Shape(
            np.concatenate([self.points, other.points]),
            np.concatenate([self.normals, other.normals]),
            np.concatenate([self.uv, other.uv]),
            np.concatenate([self.tints, other.tints]),
            np.concatenate([self.triangles, other.triangles + len(self.points)]),
        )


@dataclass(frozen=True)
class Mesh:
    """Triangles ready to be drawn.

    Attributes:
        points: (V, 3) float32, m.
        colours: (V, 3) uint8, lit.
        uv: (V, 2) float32.
        triangles: (F, 3) int32.
        texture: Which of the town's textures: things, road or ground.
    """

    points: np.ndarray
    colours: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    texture: str


def _faces(corners: np.ndarray, cell: tuple[float, float], tint: int) -> Shape:
    """Quads (Q, 4, 3), counter-clockwise from outside, each showing a whole cell of the texture."""
    corners = np.asarray(corners, np.float64)
    count = len(corners)
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    square = np.array([[0.02, 0.02], [0.48, 0.02], [0.48, 0.48], [0.02, 0.48]]) + cell
    first = np.arange(count)[:, None] * 4
    return Shape(
        corners.reshape(-1, 3),
        np.repeat(normals, 4, axis=0),
        np.tile(square, (count, 1)),
        np.full(count * 4, tint),
        np.concatenate([first + (0, 1, 2), first + (0, 2, 3)]),
    )


def box(size, foot=(0.0, 0.0, 0.0), cell=PLAIN, tint=0, top_tint=None, taper=1.0) -> Shape:
    """An upright box centred on its origin: four sides and a top; `taper` narrows the top."""
    (length, width, height), (x, y, z) = size, foot
    low = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (length / 2, width / 2) + (x, y)
    high = (low - (x, y)) * taper + (x, y)
    bottom = [(*corner, z) for corner in low]
    top = [(*corner, z + height) for corner in high]
    sides = [[bottom[i - 1], bottom[i], top[i], top[i - 1]] for i in (1, 2, 3, 0)]
    top_tint = tint if top_tint is None else top_tint
    return _faces(sides, cell, tint) + _faces([top], PLAIN, top_tint)


def cone(radius, height, foot_z, sides=6, bottom=0.0) -> Shape:
    """A cone of flat sides; with `bottom` > 0 a second one hangs below it (m)."""
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = np.stack([np.cos(turn) * radius, np.sin(turn) * radius, np.full(sides, foot_z)], -1)
    apexes = [(foot_z + height, 1)] + ([(foot_z - bottom, -1)] if bottom else [])
    parts = []
    for z, up in apexes:
        nxt = np.roll(ring, -1, axis=0)
        first, second = (ring, nxt) if up == 1 else (nxt, ring)
        apex = np.broadcast_to((0.0, 0.0, z), ring.shape)
        quads = np.stack([first, second, apex, apex], axis=1)
        normals = np.cross(second - first, apex - first)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        square = np.array([[0.02, 0.02], [0.48, 0.02], [0.25, 0.48]]) + LEAVES
        part = Shape(
            quads[:, :3].reshape(-1, 3),
            np.repeat(normals, 3, axis=0),
            np.tile(square, (sides, 1)),
            np.zeros(sides * 3, int),
            np.arange(sides * 3).reshape(-1, 3),
        )
        parts.append(part)
    return _joined(*parts)


def _joined(*parts: Shape) -> Shape:
    return functools.reduce(operator.add, parts)


def ball(radius: float, around: int = 8, rings: int = 4) -> Shape:
    """A sphere around its origin, in one colour."""
    lat = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)
    lon = np.linspace(0, 2 * np.pi, around + 1)
    quads = []
    for low, high in zip(lat[:-1], lat[1:], strict=True):
        for here, there in zip(lon[:-1], lon[1:], strict=True):
            quads.append(
                [
                    (np.cos(a) * np.cos(o), np.cos(a) * np.sin(o), np.sin(a))
                    for a, o in ((low, here), (low, there), (high, there), (high, here))
                ]
            )
    return _faces(np.array(quads) * radius, PLAIN, 0)


def _house() -> Shape:
    walls = box((11, 8, 4.2), cell=WALL)
    eave, ridge = 4.2, 7.4
    slopes = [
        [(-6, -4.6, eave), (6, -4.6, eave), (6, 0, ridge), (-6, 0, ridge)],
        [(6, 4.6, eave), (-6, 4.6, eave), (-6, 0, ridge), (6, 0, ridge)],
    ]
    gables = [
        [(5.5, -4, eave), (5.5, 4, eave), (5.5, 0.01, ridge), (5.5, -0.01, ridge)],
        [(-5.5, 4, eave), (-5.5, -4, eave), (-5.5, -0.01, ridge), (-5.5, 0.01, ridge)],
    ]
    return walls + _faces(slopes, PLAIN, 1) + _faces(gables, PLAIN, 0)


def _crane() -> Shape:
    legs = [box((0.9, 0.9, 22), (x, y, 0), METAL) for x in (-6, 6) for y in (-5, 5)]
    beams = box((14, 12, 1.6), (0, 0, 22), METAL), box((1.6, 44, 1.6), (0, 0, 23.6), METAL)
    return _joined(*legs, *beams)


def _car() -> Shape:
    body = box((4.5, 1.8, 0.74), (0, 0, 0.22), taper=0.97)
    cabin = box((2.5, 1.62, 0.56), (-0.25, 0, 0.96), tint=1, top_tint=0, taper=0.78)
    wheels = _wheels((0.62, 0.22, 0.62), 1.4, 0.82)
    head = box((0.06, 1.5, 0.16), (2.23, 0, 0.62), tint=3)
    tail = box((0.06, 1.5, 0.16), (-2.23, 0, 0.62), tint=4)
    return _joined(body, cabin, *wheels, head, tail)


def _van() -> Shape:
    body = box((5.6, 2.0, 2.04), (-0.2, 0, 0.26), taper=0.96)
    windows = box((0.5, 1.82, 0.7), (2.36, 0, 1.35), tint=1)
    wheels = _wheels((0.7, 0.24, 0.7), 1.8, 0.92)
    head = box((0.06, 1.7, 0.2), (2.6, 0, 0.7), tint=3)
    tail = box((0.06, 1.7, 0.2), (-3.0, 0, 0.8), tint=4)
    return _joined(body, windows, *wheels, head, tail)


def _wheels(size, x, y) -> list[Shape]:
    return [box(size, (x * ahead, y * left, 0), tint=2) for ahead in (-1, 1) for left in (-1, 1)]


def _person() -> Shape:
    legs = box((0.26, 0.34, 0.84), tint=1, taper=0.9)
    coat = box((0.32, 0.52, 0.66), (0, 0, 0.84), taper=0.82)
    return legs + coat + box((0.22, 0.2, 0.26), (0, 0, 1.5), tint=2)


SHAPES: dict[str, Shape] = {
    "house": _house(),
    "block": box((16, 12, 15), cell=WALL, top_tint=1),
    "warehouse": box((26, 16, 8), cell=METAL, top_tint=1),
    "container": box((12.2, 2.5, 2.6), cell=METAL),
    "crane": _crane(),
    "tree": box((0.4, 0.4, 2.4), tint=1) + cone(2.1, 3.2, 3.4, bottom=1.6),
    "conifer": box((0.35, 0.35, 1.4), tint=1) + cone(1.9, 3.6, 1.2) + cone(1.35, 3.2, 3.4),
    "bush": cone(1.0, 1.0, 0.25, sides=5, bottom=0.25),
    "lamp": box((0.16, 0.16, 7.0), tint=1) + box((0.3, 2.2, 0.16), (0, -0.9, 7.0), tint=0),
    "post": box((0.14, 0.14, 0.85)) + box((0.16, 0.16, 0.2), (0, 0, 0.85), tint=1),
    "ball": ball(0.45),
    "car": _car(),
    "van": _van(),
    "person": _person(),
}


def stamp(
    shape: Shape,
    places: np.ndarray,
    yaws: np.ndarray,
    scales: np.ndarray,
    tints: np.ndarray,
    town: Town,
) -> tuple[np.ndarray, np.ndarray]:
    """Copies of a shape, lit by the town's sun.

    Args:
        places: (n, 3) m. yaws: (n,) rad. scales: (n, 3). tints: (n, T, 3) 0..255, a copy's colours.

    Returns:
        points (n, V, 3) float32 and colours (n, V, 3) uint8.
    """
    cos, sin = np.cos(yaws)[:, None], np.sin(yaws)[:, None]

    def turned(vectors: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(vectors, -1, 0)
        return np.stack([x * cos - y * sin, x * sin + y * cos, np.broadcast_to(z, x.shape)], -1)

    points = turned(shape.points[None] * scales[:, None]) + places[:, None]
    normals = turned(np.broadcast_to(shape.normals, (len(places), *shape.normals.shape)))
    sun = np.array(town.sun) / np.linalg.norm(town.sun)
    light = town.ambient + (1 - town.ambient) * np.clip(normals @ sun, 0, 1)
    colours = tints[:, shape.tints] * light[..., None]
    return points.astype(np.float32), np.clip(colours, 0, 255).astype(np.uint8)
