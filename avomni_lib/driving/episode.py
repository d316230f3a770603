"""The record of one drive, from which all of its scores are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episode:
    """The record of one drive at 10 Hz, in the world's frame.

    Units are metres, radians and seconds; x points east, y north, and yaw turns from x to y.

    Attributes:
        time_s: (T,) starts at 0.
        ego: (T, 4) x, y, yaw, speed (m/s) of the centre of the rear axle, on the ground.
        size: (length, width, rear) of the ego's box in metres; `rear` is the distance from the
            rear bumper to the rear axle.
        actors: (T, N, 6) x, y, yaw of the box's centre, speed, length, width; NaN while an actor
            is absent.
        is_static: (N,) bool: the actor never moves.
        road: (M, 3) x, y, yaw of the lane centre in driving direction, at most 1 m apart.
        lane_width: Metres; the lane is road ± lane_width / 2.
        drivable: (left, right) metres from the lane centre to the edges of the drivable surface,
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
