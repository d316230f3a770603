"""Displacement errors and comfort of predicted paths.

Paths are (x, y) in metres in the rig's frame at the last frame of a window: x forward, y left, the
rig at (0, 0) at t = 0. A path is predicted as 16 waypoints 0.4 s apart and evaluated at the 64
steps of 0.1 s of the ground truth. Leading axes are windows, samples or both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from avomni_lib.etl.clip.trajectory import STEP_S
from avomni_lib.training.targets.future import STEPS_APART, at_10hz

APART_S = STEPS_APART * STEP_S
MOMENTS_S = {"at_1s_m": 1.0, "at_3s_m": 3.0, "at_5s_m": 5.0, "at_6_4s_m": 6.4}
MISS_M = 2.0
# Shorter hops have no direction of travel: 1 cm, between the steps before and after, is the noise
# of good positions; 20 cm between waypoints is well above the digits to which they are rounded.
STANDSTILL_M, STANDSTILL_APART_M = 0.01, 0.2

# (least, most), in m/s², m/s³, rad/s and rad/s²: nuPlan's devkit, `ego_is_comfortable` with the
# thresholds of its low-level metrics (motional/nuplan-devkit, nuplan/planning/metrics).
COMFORT = {
    "lon_accel": (-4.05, 2.40),
    "lat_accel": (-4.89, 4.89),
    "jerk": (-8.37, 8.37),
    "lon_jerk": (-4.13, 4.13),
    "yaw_rate": (-0.95, 0.95),
    "yaw_accel": (-1.93, 1.93),
}


def distances(predicted_m: np.ndarray, ground_truth_m: np.ndarray) -> np.ndarray:
    """(…, 64) metres between two paths (…, 64, 2), step by step."""
    return np.linalg.norm(np.asarray(predicted_m) - ground_truth_m, axis=-1)


def ade(predicted_m: np.ndarray, ground_truth_m: np.ndarray) -> np.ndarray:
    """(…) metres: average displacement error, the mean distance over 6.4 s."""
    return distances(predicted_m, ground_truth_m).mean(axis=-1)


def min_ade(samples_m: np.ndarray, ground_truth_m: np.ndarray) -> np.ndarray:
    """(N,) metres: smallest ADE of K samples (N, K, 64, 2) to a path (N, 64, 2)."""
    return ade(samples_m, np.asarray(ground_truth_m)[..., None, :, :]).min(axis=-1)


def along_across(
    predicted_m: np.ndarray, ground_truth_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signed errors along and across the driven path, two arrays (…, 64) in metres.

    Positive is ahead and to the left. The direction of the driven path at a step is that from the
    step before to the step after; while the car stands, its last direction of travel, and before
    it has moved, the rig's x.
    """
    truth = np.asarray(ground_truth_m, dtype=np.float64)
    path = _from_origin(truth)
    after = np.concatenate([path[..., 2:, :], path[..., -1:, :]], axis=-2)
    ahead = _directions(after - path[..., :-1, :], STANDSTILL_M)
    error = np.asarray(predicted_m) - truth
    along = (error * ahead).sum(axis=-1)
    return along, ahead[..., 0] * error[..., 1] - ahead[..., 1] * error[..., 0]


def figures(waypoints_m: np.ndarray, ground_truth_m: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of the paths predicted for N windows; the scores are their means over windows.

    Args:
        waypoints_m: (N, 16, 2) predicted.
        ground_truth_m: (N, 64, 2) driven.

    Returns:
        Arrays (N,): `ade_m`, `fde_m` (the distance after 6.4 s), `at_1s_m` … `at_6_4s_m`,
        `along_m` and `across_m` (mean absolute errors), and `miss_rate` (the path ends more than
        2 m off) and `comfort_share`, which are 0 or 1.
    """
    predicted = at_10hz(waypoints_m)
    error_m = distances(predicted, ground_truth_m)
    along, across = along_across(predicted, ground_truth_m)
    return {
        "ade_m": error_m.mean(axis=-1),
        "fde_m": error_m[..., -1],
        **{name: error_m[..., round(t_s / STEP_S) - 1] for name, t_s in MOMENTS_S.items()},
        "along_m": np.abs(along).mean(axis=-1),
        "across_m": np.abs(across).mean(axis=-1),
        "miss_rate": (error_m[..., -1] > MISS_M).astype(np.float64),
        "comfort_share": within_bounds(comfort(waypoints_m)).astype(np.float64),
    }


def comfort(waypoints_m: np.ndarray) -> dict[str, np.ndarray]:
    """Comfort quantities of a path (…, 16, 2), by the names of `COMFORT`.

    Computed from differences of the waypoints: after interpolation to 10 Hz each waypoint would be
    a corner. The heading is the direction of the path, held while the car stands, and reversed
    while it drives backwards. As in nuPlan, `jerk` is the change of the acceleration's magnitude;
    unlike there, nothing is smoothed, as steps of 0.4 s smooth already.

    Returns:
        (…, 15) accelerations and yaw rate, 0.4 s apart from t = 0.4 s on; (…, 14) their
        derivatives.
    """
    hops = np.diff(_from_origin(np.asarray(waypoints_m, dtype=np.float64)), axis=-2)
    ahead = _directions(hops, STANDSTILL_APART_M)
    yaw = np.arctan2(ahead[..., 1], ahead[..., 0])
    # A car cannot turn by 90 degrees in 0.4 s: such a change of direction is a change to reverse.
    # The first heading is the rig's, 0.
    yaw = np.concatenate([np.zeros_like(yaw[..., :1]), yaw], axis=-1)
    yaw = np.unwrap(yaw, period=np.pi)[..., 1:]
    speed = (hops[..., 0] * np.cos(yaw) + hops[..., 1] * np.sin(yaw)) / APART_S
    yaw_rate = np.diff(yaw) / APART_S
    lon_accel = np.diff(speed) / APART_S
    lat_accel = (speed[..., 1:] + speed[..., :-1]) / 2 * yaw_rate
    return {
        "lon_accel": lon_accel,
        "lat_accel": lat_accel,
        "jerk": np.diff(np.hypot(lon_accel, lat_accel)) / APART_S,
        "lon_jerk": np.diff(lon_accel) / APART_S,
        "yaw_rate": yaw_rate,
        "yaw_accel": np.diff(yaw_rate) / APART_S,
    }


def within_bounds(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """(…) bool: whether values (…, T) by the names of `COMFORT` stay within all of its bounds."""
    within = [
        ((least <= values[name]) & (values[name] <= most)).all(axis=-1)
        for name, (least, most) in COMFORT.items()
    ]
    return np.logical_and.reduce(within)


def _from_origin(path_m: np.ndarray) -> np.ndarray:
    """A path with the rig's position at t = 0 prepended."""
    return np.concatenate([np.zeros_like(path_m[..., :1, :]), path_m], axis=-2)


def _directions(hops_m: np.ndarray, least_m: float) -> np.ndarray:
    """Unit vectors along hops (…, K, 2); a hop shorter than `least_m` repeats the previous one."""
    hops = np.concatenate([np.broadcast_to((1.0, 0.0), hops_m[..., :1, :].shape), hops_m], axis=-2)
    length = np.linalg.norm(hops, axis=-1)
    moving = length >= least_m
    moving[..., 0] = True
    last = np.maximum.accumulate(np.where(moving, np.arange(moving.shape[-1]), 0), axis=-1)
    unit = hops / np.where(moving, length, 1.0)[..., None]
    return np.take_along_axis(unit, last[..., None], axis=-2)[..., 1:, :]
