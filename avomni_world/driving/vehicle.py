"""How the ego moves: a kinematic bicycle at 100 Hz, and a controller that follows waypoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from avomni_world.scene.drive import MAX_STEER_RAD, MAX_STEER_RATE

STEP_S = 0.01
MAX_SPEED_MPS = 40.0
MIN_ACCELERATION, MAX_ACCELERATION = -8.0, 4.0  # m/s²
PEDAL_S, WHEEL_S = 0.15, 0.15  # time constants of the response to a command
GRIP_MPS2 = 8.0  # lateral; steering angles are limited to it

WAYPOINT_S, NUM_WAYPOINTS = 0.4, 16
SPEED_AHEAD = 2  # waypoints until the speed should match
STOP_M, STOP_MPS2 = 0.1, -0.5  # a path shorter than this within them means: brake to a stop
PATH_M = 1.0  # too short a path to steer by


@dataclass(frozen=True, slots=True)
class VehicleState:
    """The ego's state at one instant, in the world's frame.

    Attributes:
        x, y: m, the rear axle's middle on the ground.
        yaw: rad.
        speed: m/s, never negative: the car does not reverse.
        acceleration: m/s², along the car.
        steer: rad, the front wheels' angle to the left.
    """

    x: float
    y: float
    yaw: float
    speed: float
    acceleration: float
    steer: float


Steering = Callable[[VehicleState], float]


def advance(
    state: VehicleState, wheelbase_m: float, acceleration: float, steering: Steering, seconds: float
) -> VehicleState:
    """The state after `seconds` of a commanded acceleration and of `steering`, in steps of 10 ms.

    Throttle, brake and steering respond with a delay; the wheels turn at `MAX_STEER_RATE` at most,
    and not at all while the car stands.
    """
    acceleration = min(max(acceleration, MIN_ACCELERATION), MAX_ACCELERATION)
    for _ in range(round(seconds / STEP_S)):
        grip = math.atan(GRIP_MPS2 * wheelbase_m / max(state.speed, 1.0) ** 2)
        most = min(MAX_STEER_RAD, grip)
        wanted = min(max(steering(state), -most), most)
        turned = (wanted - state.steer) * STEP_S / WHEEL_S
        limit = MAX_STEER_RATE * STEP_S if state.speed > 0.1 else 0.0
        steer = state.steer + min(max(turned, -limit), limit)
        pull = state.acceleration + (acceleration - state.acceleration) * STEP_S / PEDAL_S
        speed = min(max(state.speed + pull * STEP_S, 0.0), MAX_SPEED_MPS)
        pull = (speed - state.speed) / STEP_S if speed in (0.0, MAX_SPEED_MPS) else pull
        middle = (state.speed + speed) / 2
        turn = middle * math.tan((state.steer + steer) / 2) / wheelbase_m * STEP_S
        state = VehicleState(
            state.x + middle * STEP_S * math.cos(state.yaw + turn / 2),
            state.y + middle * STEP_S * math.sin(state.yaw + turn / 2),
            state.yaw + turn,
            speed,
            pull,
            steer,
        )
    return state


def track(state: VehicleState, waypoints: np.ndarray, wheelbase_m: float) -> tuple[float, Steering]:
    """Controls that follow waypoints: an acceleration, and a function from state to steering angle.

    The acceleration is proportional to the difference between the speed and the mean speed to
    waypoint `SPEED_AHEAD`, which is exact if that acceleration is constant. The steering is pure
    pursuit (Coulter, CMU-RI-TR-92-01) with the scripted driver's lookahead distance.

    Args:
        state: The state in which the waypoints were made.
        waypoints: (16, 2) m, `WAYPOINT_S` apart, in the rig's frame then: x forward, y left.
    """
    horizon_s = SPEED_AHEAD * WAYPOINT_S
    x, y = waypoints[SPEED_AHEAD - 1].tolist()
    way = math.copysign(math.hypot(x, y), x)
    acceleration = 2 / horizon_s * (max(way, 0.0) / horizon_s - state.speed)
    if way < STOP_M:
        acceleration = min(acceleration, STOP_MPS2)
    points = [(0.0, 0.0), *map(tuple, waypoints.tolist())]
    cos, sin = math.cos(state.yaw), math.sin(state.yaw)

    def steering(now: VehicleState) -> float:
        dx, dy = now.x - state.x, now.y - state.y
        here = dx * cos + dy * sin, dy * cos - dx * sin
        target = _ahead(points, here, 4.0 + 0.55 * now.speed)
        if target is None:
            return now.steer
        bearing = math.atan2(target[1] - here[1], target[0] - here[0]) - (now.yaw - state.yaw)
        distance = math.hypot(target[0] - here[0], target[1] - here[1])
        return math.atan2(2 * wheelbase_m * math.sin(bearing), distance)

    return acceleration, steering


def _ahead(
    points: list[tuple[float, float]], here: tuple[float, float], distance: float
) -> tuple[float, float] | None:
    """The point where a path leaves the circle around `here`, extended straight from its end if it
    stays inside."""
    before = points[0]
    for point in points[1:]:
        if math.dist(point, here) >= distance:
            dx, dy = point[0] - before[0], point[1] - before[1]
            fx, fy = before[0] - here[0], before[1] - here[1]
            a, b, c = dx * dx + dy * dy, fx * dx + fy * dy, fx * fx + fy * fy - distance**2
            if c > 0.0:  # the path begins outside
                return point
            part = (math.sqrt(max(b * b - a * c, 0.0)) - b) / a
            return before[0] + part * dx, before[1] + part * dy
        before = point
    last = points[-1]
    for point in reversed(points):
        if (length := math.dist(point, last)) >= PATH_M:
            more = (distance - math.dist(last, here)) / length
            return last[0] + more * (last[0] - point[0]), last[1] + more * (last[1] - point[1])
    return None
