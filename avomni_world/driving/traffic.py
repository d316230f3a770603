"""How the other road users move in a simulated drive.

`replay`: as recorded, whatever the ego does. A car ahead or behind keeps its distance to the place
where the *recorded* ego would be.
`idm`: along the same lines, but no faster than the one ahead allows, which may be the ego.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from avomni_world.driving import events
from avomni_world.driving.events import STEP_S, Course
from avomni_world.scene.scenes import Scene
from avomni_world.scene.traffic import Vehicle

KINDS = ("replay", "idm")

# Of the car-following model; the first four as Treiber and Kesting give them for a motorway.
ACCELERATION, DECELERATION = 1.5, 2.0  # m/s², what is comfortable
HEADWAY_S, STANDSTILL_M = 1.2, 2.0
COOLNESS = 0.99
HARDEST = 8.0  # m/s²
BESIDE_M = 0.3  # a smaller lateral gap counts as in the way
STANDING_MPS = 0.5


def car_following(
    speed: float, gap: float, speed_ahead: float, acceleration_ahead: float = 0.0
) -> float:
    """Acceleration behind another car, m/s², at least `-HARDEST`.

    The interaction term of the Intelligent Driver Model, without its overreaction to a sudden small
    gap. Sources: Treiber, Hennecke, Helbing, Phys. Rev. E 62 (2000), with the free term separated
    as in Schakel, Knoop, van Arem, TRR 2316 (2012); Kesting, Treiber, Helbing, Phil. Trans.
    R. Soc. A 368 (2010), eq. 2.5 and 2.7, for the constant-acceleration heuristic.

    Args:
        gap: Bumper to bumper, m.
    """
    gap = max(gap, 0.1)
    closing = speed - speed_ahead
    dynamic = speed * HEADWAY_S + speed * closing / (2 * math.sqrt(ACCELERATION * DECELERATION))
    idm = ACCELERATION * (1 - ((STANDSTILL_M + max(dynamic, 0.0)) / gap) ** 2)
    ahead = min(acceleration_ahead, ACCELERATION)
    slack = speed_ahead**2 - 2 * gap * ahead
    if speed_ahead * closing <= -2 * gap * ahead and slack > 1e-6:
        heuristic = speed**2 * ahead / slack
    else:
        heuristic = ahead - max(closing, 0.0) ** 2 / (2 * gap)
    if idm < heuristic:
        cool = heuristic + DECELERATION * math.tanh((idm - heuristic) / DECELERATION)
        idm = (1 - COOLNESS) * idm + COOLNESS * cool
    return max(idm, -HARDEST)


def _recorded(vehicle: Vehicle, scene: Scene, times: np.ndarray) -> Course:
    """Where one of the scene's road users is, computed as in the scene itself."""
    motion, still = scene.drive.at(times), np.zeros(len(times))
    if vehicle.follows:
        along, speed = motion["along"] + vehicle.along_m, motion["speed"]
    else:
        along, speed = vehicle.along_m + times * vehicle.speed_mps, still + vehicle.speed_mps
    return Course(vehicle, along, vehicle.left_m + vehicle.walked_m(times), speed)


class Traffic:
    """All others of a scene, every 0.1 s from the clip's start on.

    Args:
        kind: One of `KINDS`.
        event: One of `EVENTS`, or None.
        now: Steps from the clip's start to the start of the simulation.
        num_steps: From the clip's start to the last step.

    Attributes:
        vehicles: The road users. An event removes those in its way.
        along, left, speed, acceleration: (N,) m, m, m/s and m/s² now, along the road.
        sideways: (N,) m/s, to the left across the road.
        turn: (N,) rad, each heading relative to the road's.
        half: (N, 2) m, half the length and half the width of each box.
        to_middle: (N, 2) m, from each origin to its box's centre, ahead and to the left.
        walks: (N,) bool, on foot: keeps walking in any case.
        is_static: (N,) bool, never moves.
    """

    def __init__(self, scene: Scene, kind: str, event: str | None, now: int, num_steps: int):
        self._road, self._reacts = scene.road, kind == "idm"
        times = np.arange(num_steps + 1) / round(1 / STEP_S)
        courses = [_recorded(vehicle, scene, times) for vehicle in scene.vehicles]
        if event is not None:
            stream = [scene.seed, zlib.crc32(scene.town.name.encode()), zlib.crc32(event.encode())]
            special = events.EVENTS[event](np.random.default_rng(stream), scene, times, now)
            courses = [c for c in courses if not events.makes_room(c, special)]
            if not self._reacts:  # a car that follows the recorded ego would hit an ego that brakes
                courses = [c for c in courses if not c.vehicle.follows]
            courses.append(special)
        self.vehicles: tuple[Vehicle, ...] = tuple(course.vehicle for course in courses)
        shape = len(times), len(courses)
        self._along, self._left, self._speed = (
            np.array([getattr(course, name) for course in courses]).T.reshape(shape)
            for name in ("along", "left", "speed")
        )
        self._drift = np.gradient(self._left, STEP_S, axis=0)
        boxes = [vehicle.box for vehicle in self.vehicles]
        self.half = np.array([size[:2] / 2 for size, _ in boxes]).reshape(-1, 2)
        self.to_middle = np.array([middle[:2] for _, middle in boxes]).reshape(-1, 2)
        self.walks = np.array([v.walk is not None for v in self.vehicles], bool)
        follows = np.array([v.follows for v in self.vehicles], bool)
        self.is_static = ~((self._speed != 0) | (self._drift != 0)).any(axis=0) & ~follows
        self._turns = np.array([v.turn_rad for v in self.vehicles])
        self._direction = np.where((self._speed < 0).any(axis=0), -1.0, 1.0)
        # A car behind the ego does not stop where the recorded ego stopped.
        is_behind = follows & np.array([v.along_m < 0 for v in self.vehicles], bool)
        free = max(float(self._speed[:, is_behind].max(initial=0.0)), events.SLOWEST_MPS)
        self._wanted = np.where(is_behind, free, self._speed)
        self._delay = np.zeros(len(courses), int)
        self.show(0)

    def show(self, step: int) -> None:
        """Place everybody as recorded, this many steps after the clip's start."""
        self._step = step
        self.along, self.speed = self._along[step].copy(), self._speed[step].copy()
        self.acceleration = (self.speed - self._speed[max(step - 1, 0)]) / STEP_S
        self._turn_to(np.full(len(self.along), step))

    def _turn_to(self, steps: np.ndarray) -> None:
        """Move everybody sideways to their planned position at steps (N,)."""
        who = np.arange(len(steps))
        self.left, self.sideways = self._left[steps, who], self._drift[steps, who]
        slope = np.arctan2(self.sideways, np.maximum(np.abs(self.speed), 1.0))
        self.turn = self._turns + np.where(self.walks, 0.0, slope)

    def step(self, ego: tuple[float, float, float], ego_half: tuple[float, float]) -> None:
        """Advance by 0.1 s.

        Args:
            ego: Its box's centre along the road and to the left of it, m, and its speed along the
                road, m/s, at the beginning of the step.
            ego_half: Half its extent along the road and across it, m.
        """
        if not self._reacts or not len(self.along):
            self.show(self._step + 1)
            return
        following = self._accelerations(ego, ego_half)
        self._step += 1
        planned = self._wanted[self._step]
        direction = self._direction
        pace = direction * self.speed
        free = np.clip((direction * planned - pace) / STEP_S, -HARDEST, 2 * ACCELERATION)
        pull = np.where(self.walks, free, np.minimum(free, following))
        after = np.maximum(pace + pull * STEP_S, 0.0)
        self.acceleration = direction * (after - pace) / STEP_S
        self.along = self.along + direction * (pace + after) / 2 * STEP_S
        self.speed = direction * after
        self._change_lanes(ego, ego_half)

    def _change_lanes(self, ego: tuple[float, float, float], ego_half: tuple[float, float]) -> None:
        """A car that cuts in does so once its rear is past the ego's front, and not while it
        stands."""
        at, who = self._step - self._delay, np.arange(len(self._delay))
        moves = (self._drift[at, who] != 0) & ~self.walks
        begins = moves & (self._drift[at - 1, who] == 0)
        room = self.along + self.to_middle[:, 0] - self.half[:, 0] - ego[0] - ego_half[0]
        stands = np.abs(self.speed) < STANDING_MPS
        self._delay += (begins & (room < STANDSTILL_M)) | (moves & stands)
        self._turn_to(self._step - self._delay)

    def _accelerations(
        self, ego: tuple[float, float, float], ego_half: tuple[float, float]
    ) -> np.ndarray:
        """(N,) m/s² that the nearest one ahead in each one's way allows, in its direction."""
        middle, left = self.middles()
        middle, left = np.append(middle, ego[0]), np.append(left, ego[1])
        half = np.vstack([self.half, ego_half])
        speed = np.append(self.speed, ego[2])
        acceleration = np.append(self.acceleration, 0.0)
        direction = self._direction
        ahead = direction[:, None] * (middle - middle[:-1, None])
        width = half[:, 1] + half[:-1, None, 1] + BESIDE_M
        in_the_way = (np.abs(left - left[:-1, None]) < width) & (ahead > 0)
        gap = np.where(in_the_way, ahead - half[:, 0] - half[:-1, None, 0], np.inf)
        nearest = gap.argmin(axis=1)
        allowed = np.full(len(nearest), np.inf)
        for idx, other in enumerate(nearest.tolist()):
            if math.isfinite(gap[idx, other]):
                sign = float(direction[idx])
                allowed[idx] = car_following(
                    sign * float(speed[idx]),
                    float(gap[idx, other]),
                    sign * float(speed[other]),
                    sign * float(acceleration[other]),
                )
        return allowed

    def middles(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) m each: the centre of every box along the road and to the left of it."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        ahead, aside = self.to_middle.T
        return self.along + ahead * cos - aside * sin, self.left + ahead * sin + aside * cos

    def poses(self) -> np.ndarray:
        """(N, 3) x, y (m) and yaw (rad) of every origin in the world's frame."""
        points, heading = self._road.place(self.along, self.left)
        return np.concatenate([points, (heading + self.turn)[:, None]], axis=-1)

    def actors(self) -> np.ndarray:
        """(N, 6) as `Episode.actors` has them; NaN beyond the ends of the road."""
        x, y, yaw = self.poses().T
        ahead, aside = self.to_middle.T
        x, y = (
            x + ahead * np.cos(yaw) - aside * np.sin(yaw),
            y + ahead * np.sin(yaw) + aside * np.cos(yaw),
        )
        pace = np.hypot(self.speed, self.sideways)
        rows = np.column_stack([x, y, yaw, pace, 2 * self.half])
        is_off = (self.along <= self._road.start_m) | (self.along >= self._road.end_m)
        rows[is_off] = np.nan
        return rows
