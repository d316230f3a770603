"""CPU time of one step of the driving environment at the demo's size, by part.

    python -m tests.benchmarks.driving_step

Prints it; one core, four cameras of 128×72, `idm` traffic, waypoints straight ahead.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from avomni_world.driving.env import DriveEnv
from avomni_world.driving.vehicle import WAYPOINT_S

SEEDS, STEPS = range(6), 80


def measure(cameras: str | None) -> tuple[float, float]:
    """Median ms of CPU a step, and of a reset."""
    env, steps, resets = DriveEnv(cameras=cameras), [], []
    for seed in SEEDS:
        used = time.process_time()
        env.reset(seed=seed)
        resets.append(time.process_time() - used)
        for _ in range(STEPS):
            # Along the road, as fast as it goes.
            along = env.along_m + env.state.speed * WAYPOINT_S * np.arange(1, 17)
            points, _ = env.scene.road.place(along, np.full(16, -1.8))
            action = env.to_rig(points)
            used = time.process_time()
            env.step(action)
            steps.append(time.process_time() - used)
    env.close()
    return 1e3 * median(steps), 1e3 * median(resets)


def main() -> None:
    print("cameras  ms of CPU a step  a reset")
    for cameras in ("4-cam", "7-cam", None):
        step, reset = measure(cameras)
        print(f"{cameras or 'none':7}  {step:16.1f}  {reset:7.0f}")


if __name__ == "__main__":
    main()
