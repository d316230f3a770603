"""What happened in one drive: all that its scores are made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episode:
    """What happened in one drive, 10 Hz, in the world's frame.

    Metres, radians, seconds; x east, y north, yaw from x to y.

    Attributes:
        seed: Of the episode.
        policy: Name of who drove.
        time_s: (T,) from 0 on.
        ego: (T, 4) x, y, yaw, speed (m/s) of the rear axle's middle on the ground.
        size: (length, width, rear) of the ego's box in metres: `rear` from the rear bumper to the
            rear axle.
        actors: (T, N, 6) x, y, yaw of the box's middle, speed, length, width; NaN where it is not
            there.
        is_static: (N,) bool: it never moves.
        road: (M, 3) x, y, yaw of the lane's middle in driving direction, at most 1 m apart.
        lane_width: metres; the lane is road +- lane_width / 2.
        drivable: (left, right) metres from the lane's middle to the edges of the drivable surface,
            both positive.
        reference: (T2, 4) x, y, yaw, speed of the recorded (scripted) drive, 10 Hz.
    """

    seed: int
    policy: str
    time_s: np.ndarray
    ego: np.ndarray
    size: tuple[float, float, float]
    actors: np.ndarray
    is_static: np.ndarray
    road: np.ndarray
    lane_width: float
    drivable: tuple[float, float]
    reference: np.ndarray
