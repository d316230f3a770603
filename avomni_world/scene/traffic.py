"""The other road users of a scene: oncoming cars, cars ahead and behind, people on foot."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from avomni_world.scene import drive as drives
from avomni_world.scene import scenery, shapes, towns
from avomni_world.scene.shapes import Mesh

SKIN: tuple[towns.Colour, ...] = ((224, 178, 148), (150, 104, 76), (92, 62, 46))


@dataclass(frozen=True)
class Walk:
    """A walk across the road at a right angle; before and after it the person stands.

    Attributes:
        start_s: On the clip's clock.
        speed_mps: To the left.
        length_m: Length of the walk.
    """

    start_s: float
    speed_mps: float
    length_m: float


@dataclass(frozen=True)
class Vehicle:
    """Another road user, people on foot among them.

    Attributes:
        mesh: Around its origin on the ground, front towards +x.
        along_m: Position at time 0: along the road, or ahead of the rig if it `follows` it.
        left_m: To the left of the centre line; for a pedestrian, before the walk.
        speed_mps: Along the road; negative is oncoming. Unused if it `follows`.
        follows: Keeps its distance to the rig, so that the gap says nothing about the speed.
        label: As the data set's `label_class` names its kind.
        walk: For a pedestrian who crosses the road.
    """

    mesh: Mesh
    along_m: float
    left_m: float
    speed_mps: float
    follows: bool = False
    label: str = "automobile"
    walk: Walk | None = None

    def walked_m(self, times_s: np.ndarray) -> np.ndarray:
        """(T,) m to the left of `left_m` at each time."""
        if self.walk is None:
            return np.zeros(len(times_s))
        way = (times_s - self.walk.start_s) * self.walk.speed_mps
        return np.clip(way, 0.0, self.walk.length_m)

    @property
    def turn_rad(self) -> float:
        """Its heading relative to the road's."""
        if self.walk is not None:
            return np.pi / 2
        return np.pi if self.speed_mps < 0 else 0.0

    @functools.cached_property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Its size and the box's centre relative to its origin, each (3,) m, x forward."""
        low, high = self.mesh.points.min(axis=0), self.mesh.points.max(axis=0)
        return (high - low).astype(np.float64), ((high + low) / 2).astype(np.float64)


def cars(
    rng: np.random.Generator, town: towns.Town, drive: drives.Drive, seconds: float
) -> tuple[Vehicle, ...]:
    """Oncoming cars at a common speed, and sometimes a car ahead and one behind in our lane."""
    if town.landmarks:
        return ()
    speed = rng.uniform(4.0, max(town.speed_mps[1], 8.0))
    far = float(drive.at(np.array([seconds]))["along"][0]) + speed * seconds + 250
    vehicles, along = [], rng.uniform(-30.0, 60.0)
    while along < far and len(vehicles) < 12:
        vehicles.append(Vehicle(car(rng, town), along, -drives.EGO_OFFSET_M, -speed))
        along += 16.0 + rng.exponential(55.0)
    for side in (1.0, -1.0):
        if rng.random() < 0.5:
            gap = side * rng.uniform(13.0, 45.0)
            mesh = car(rng, town)
            vehicles.append(Vehicle(mesh, gap, drives.EGO_OFFSET_M, 0.0, follows=True))
    return tuple(vehicles)


def car(rng: np.random.Generator, town: towns.Town) -> Mesh:
    """A car or, in one of four cases, a van, in a random colour."""
    shape = shapes.SHAPES["van" if rng.random() < 0.25 else "car"]
    body = np.array(towns.CAR_COLOURS[rng.integers(len(towns.CAR_COLOURS))], float)
    glass, tyre = np.array([38.0, 44.0, 54.0]), np.array([24.0, 24.0, 26.0])
    head, tail = np.array([400.0, 390.0, 340.0]), np.array([330.0, 40.0, 30.0])
    return _mesh(shape, np.stack([body, glass, tyre, head, tail]), town)


def person(rng: np.random.Generator, town: towns.Town) -> Mesh:
    """A pedestrian, in random colours."""
    coat = np.array(towns.CAR_COLOURS[rng.integers(len(towns.CAR_COLOURS))], float)
    skin = np.array(SKIN[rng.integers(len(SKIN))], float)
    return _mesh(shapes.SHAPES["person"], np.stack([coat, np.full(3, 44.0), skin]), town)


def _mesh(shape: shapes.Shape, tints: np.ndarray, town: towns.Town) -> Mesh:
    zero = np.zeros((1, 3))
    points, colours = shapes.stamp(shape, zero, np.zeros(1), np.ones((1, 3)), tints[None], town)
    return scenery.merge([(points, colours, shape)])
