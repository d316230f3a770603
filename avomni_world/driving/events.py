"""Events of an episode: a leader that brakes and stops, a stopped car, a cut-in.

Each event draws from a random stream of its own, so the world and its traffic stay the same, except
for those that are removed to make room: the recorded car ahead, people on foot, and oncoming cars
that would hit a car that cuts in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from avomni_world.scene import traffic
from avomni_world.scene.drive import EGO_OFFSET_M
from avomni_world.scene.scenes import Scene
from avomni_world.scene.traffic import Vehicle

STEP_S = 0.1
SLOWEST_MPS = 5.0  # of whoever is in the way, however slow the recorded drive is
ROOM_M = 12.0  # between the centres of two cars that meet
LANE_LEFT_M = -1.0  # a car farther to the left is in the way of oncoming cars


@dataclass(frozen=True)
class Course:
    """The planned motion of an additional car, every 0.1 s of the clip.

    Attributes:
        along, left: (T,) m, along the road and to the left of its centre line.
        speed: (T,) m/s along the road.
    """

    vehicle: Vehicle
    along: np.ndarray
    left: np.ndarray
    speed: np.ndarray


def braking_leader(rng: np.random.Generator, scene: Scene, times: np.ndarray, now: int) -> Course:
    """A car ahead in the lane drives as fast as the recorded drive, then brakes and stops."""
    motion = scene.drive.at(times)
    speed = np.maximum(motion["speed"], SLOWEST_MPS)
    brakes = now + round(rng.uniform(1.0, 3.0) / STEP_S)
    speed = _slowed(speed, brakes, rng.uniform(2.5, 4.0), 0.0)
    vehicle = _car(rng, scene)
    gap = 6.0 + motion["speed"][now] * rng.uniform(1.2, 2.0)
    start = motion["along"][now] + _between(scene, vehicle) + gap
    return Course(vehicle, _way(speed, now, start), np.full(len(times), EGO_OFFSET_M), speed)


def stopped_car(rng: np.random.Generator, scene: Scene, times: np.ndarray, now: int) -> Course:
    """A car stands in the lane, far enough ahead to brake at 3 m/s² after a second."""
    motion = scene.drive.at(times[now : now + 1])
    fast = float(motion["speed"][0])
    vehicle = _car(rng, scene)
    gap = max(20.0, 10.0 + fast + fast**2 / 6) * rng.uniform(1.0, 1.2)
    start = float(motion["along"][0]) + _between(scene, vehicle) + gap
    left = EGO_OFFSET_M + rng.uniform(-0.3, 0.3)
    still = np.zeros(len(times))
    return Course(vehicle, still + start, still + left, still)


def cut_in(rng: np.random.Generator, scene: Scene, times: np.ndarray, now: int) -> Course:
    """A car that overtakes, moves into the lane just ahead, and slows down."""
    motion = scene.drive.at(times)
    faster = rng.uniform(1.0, 2.0)
    speed = np.maximum(motion["speed"], SLOWEST_MPS) + faster
    begins = now + round(rng.uniform(0.5, 2.0) / STEP_S)
    takes = round(rng.uniform(2.5, 3.5) / STEP_S)
    slowed = rng.uniform(0.5, 0.75) * speed[min(begins + takes, len(speed) - 1)]
    speed = _slowed(speed, begins + takes, rng.uniform(1.0, 2.0), slowed)
    vehicle = _car(rng, scene)
    start = motion["along"][now] + _between(scene, vehicle) + rng.uniform(2.0, 6.0)
    part = np.clip((np.arange(len(times)) - begins) / takes, 0.0, 1.0)
    left = -EGO_OFFSET_M + 2 * EGO_OFFSET_M * part**2 * (3 - 2 * part)
    return Course(vehicle, _way(speed, now, float(start)), left, speed)


EVENTS: dict[str, Callable[[np.random.Generator, Scene, np.ndarray, int], Course]] = {
    "braking_leader": braking_leader,
    "stopped_car": stopped_car,
    "cut_in": cut_in,
}


def makes_room(course: Course, special: Course) -> bool:
    """Whether a road user of the recorded scene is removed for a car with this course."""
    vehicle = course.vehicle
    if vehicle.walk is not None or (vehicle.follows and vehicle.along_m > 0):
        return True
    if vehicle.follows:
        return False
    in_their_lane = special.left > LANE_LEFT_M
    return bool((np.abs(course.along - special.along)[in_their_lane] < ROOM_M).any())


def _car(rng: np.random.Generator, scene: Scene) -> Vehicle:
    return Vehicle(traffic.car(rng, scene.town), 0.0, EGO_OFFSET_M, 0.0)


def _between(scene: Scene, vehicle: Vehicle) -> float:
    """From the rig's origin to the origin of a car whose rear touches the ego's front."""
    size, middle = vehicle.box
    nose = scene.vehicle.rear_axle_to_bbox_center + scene.vehicle.length / 2
    return float(nose + size[0] / 2 - middle[0])


def _slowed(speed: np.ndarray, start: int, deceleration: float, slowest: float) -> np.ndarray:
    """Speeds that fall to `slowest` from an instant on."""
    later = np.maximum(np.arange(len(speed)) - start, 0) * STEP_S
    at_start = speed[min(start, len(speed) - 1)]
    braked = np.maximum(at_start - deceleration * later, slowest)
    return np.asarray(np.where(later > 0, braked, speed))


def _way(speed: np.ndarray, now: int, start_m: float) -> np.ndarray:
    """(T,) m along the road, `start_m` at instant `now`."""
    way = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2) * STEP_S])
    return np.asarray(start_m + way - way[now])
