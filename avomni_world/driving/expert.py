"""A driver that knows the lane and the other cars: keeps to the lane's centre and keeps its
distance."""

from __future__ import annotations

import math

import numpy as np

from avomni_world.driving import traffic
from avomni_world.driving.env import DriveEnv
from avomni_world.driving.events import SLOWEST_MPS, STEP_S
from avomni_world.driving.vehicle import NUM_WAYPOINTS, WAYPOINT_S
from avomni_world.scene import drive as drives

NUM_STEPS = round(NUM_WAYPOINTS * WAYPOINT_S / STEP_S)
SIDEWAYS_MPS2 = 4.0  # in curves
SLOWS_MPS2 = 1.5  # before them
FORESEES_S = 1.5  # for somebody stepping into the lane
BACK_S, BACK_M = 1.2, 6.0  # in which a strayed car's distance falls to 1/e, whichever is farther
JERK, HARD_JERK = 3.0, 30.0  # m/s³; the second where comfort is not enough
COMFORT_MPS2 = -2.5


def waypoints(env: DriveEnv) -> np.ndarray:
    """(16, 2) float32 m, the action: where to be in the next 6.4 s, in the rig's frame.

    At up to the recorded drive's highest speed, limited by the lane's curves and by the car ahead,
    which is assumed to keep its deceleration.
    """
    way = _way(env)[round(WAYPOINT_S / STEP_S) - 1 :: round(WAYPOINT_S / STEP_S)]
    beside = env.left_m * np.exp(-way / max(BACK_S * env.state.speed, BACK_M))
    points, _ = env.scene.road.place(env.along_m + way, drives.EGO_OFFSET_M + beside)
    return env.to_rig(points).astype(np.float32)


def _way(env: DriveEnv) -> np.ndarray:
    """(64,) m along the road in the next 6.4 s, every 0.1 s."""
    top = max(float(env.recorded(np.arange(env.num_steps + 1) * STEP_S)[:, 3].max()), SLOWEST_MPS)
    limits = _curve_limits(env)
    ahead = _ahead(env)
    speed, pull, gone = env.state.speed, env.state.acceleration, 0.0
    ways = np.empty(NUM_STEPS)
    for step in range(NUM_STEPS):
        cap = min(top, limits[min(int(gone), len(limits) - 1)])
        wanted = traffic.ACCELERATION * (1 - (speed / cap) ** 4)
        wanted = max(wanted, -SLOWS_MPS2 - 0.5)
        for idx, (gap, other, slows) in enumerate(ahead):
            wanted = min(wanted, traffic.car_following(speed, gap - gone, other, slows))
            after = max(other + slows * STEP_S, 0.0)
            ahead[idx] = gap + (other + after) / 2 * STEP_S, after, slows if after else 0.0
        jerk = HARD_JERK if wanted < COMFORT_MPS2 else JERK
        pull += min(max(wanted - pull, -jerk * STEP_S), jerk * STEP_S)
        after = max(speed + pull * STEP_S, 0.0)
        gone += (speed + after) / 2 * STEP_S
        pull = (after - speed) / STEP_S if after == 0.0 else pull
        speed, ways[step] = after, gone
    return ways


def _curve_limits(env: DriveEnv) -> np.ndarray:
    """(M,) m/s at every metre ahead, so that each curve is entered slowly enough."""
    along = env.along_m + np.arange(300.0)
    _, heading = env.scene.road.place(along, np.zeros(len(along)))
    bend = np.abs(np.gradient(heading))
    limit: np.ndarray = np.sqrt(SIDEWAYS_MPS2 / np.maximum(bend, 1e-4))
    for idx in range(len(limit) - 2, -1, -1):
        limit[idx] = min(limit[idx], math.sqrt(limit[idx + 1] ** 2 + 2 * SLOWS_MPS2))
    return limit


def _ahead(env: DriveEnv) -> list[tuple[float, float, float]]:
    """(gap m, speed m/s, deceleration m/s² ≤ 0) of all that are ahead in the lane, or soon will be.

    A car in the other lane that drives our way is overtaking, and will be in ours.
    """
    others, (ego, half) = env.traffic, env.ego_box()
    middle, left = others.middles()
    room = env.scene.vehicle.width / 2 + others.half[:, 1] + traffic.BESIDE_M
    soon = left + FORESEES_S * others.sideways
    away = np.minimum(np.abs(left - drives.EGO_OFFSET_M), np.abs(soon - drives.EGO_OFFSET_M))
    chosen = ((away < room) | (others.speed > 0)) & (middle > ego[0])
    gaps = middle - others.half[:, 0] - ego[0] - half[0]
    return [
        (float(gap), float(max(speed, 0.0)), float(min(slows, 0.0)))
        for gap, speed, slows in zip(
            gaps[chosen], others.speed[chosen], others.acceleration[chosen], strict=True
        )
    ]
