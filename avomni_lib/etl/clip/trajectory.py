"""Past and future trajectory at a moment: poses every 0.1 s in the car's frame at that moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

STEP_S, STEP_US = 0.1, 100_000
HISTORY_STEPS, FUTURE_STEPS = 16, 64  # 1.6 s and 6.4 s, as NVIDIA samples them
FUTURE_S = FUTURE_STEPS * STEP_US / 1e6


@dataclass(frozen=True)
class Trajectory:
    """Poses before or after a moment, in the rig's frame at that moment: x forward, y left.

    The moment's own pose, (0, 0) with heading 0, is not included.

    Attributes:
        t_s: (K,) float64 seconds from the moment, increasing in steps of `STEP_S`; past is
            negative.
        xy_m: (K, 2) float64.
        yaw_rad: (K,) float64, positive to the left, unwrapped.
        speed_mps: At the moment, along x; negative when reversing.
    """

    t_s: np.ndarray
    xy_m: np.ndarray
    yaw_rad: np.ndarray
    speed_mps: float

    def __len__(self) -> int:
        return len(self.t_s)


def past(now_us: int, now: np.ndarray, track: np.ndarray) -> Trajectory:
    """Up to `HISTORY_STEPS` poses before a moment, as far back as the track reaches.

    Nothing later than the moment is used, not even to interpolate.

    Args:
        now: (11,) its row of the cache's `egomotion`.
        track: (N, 9) rows of the cache's `track`.
    """
    track = track[track[:, 0] < now_us]
    first_us = track[0, 0] if len(track) else now_us
    steps = np.arange(-HISTORY_STEPS, 0)
    # In integer µs, as 3 × 0.1 s would exceed 0.3 s, which the track may only just reach.
    steps = steps[now_us + steps * STEP_US >= first_us]
    return _seen(now_us, now, track, steps * STEP_US / 1e6)


def future(now_us: int, now: np.ndarray, track: np.ndarray) -> Trajectory | None:
    """The `FUTURE_STEPS` poses after a moment, or None if the track ends before the last."""
    track = track[track[:, 0] > now_us]
    if not len(track) or not covers(now_us, float(track[-1, 0])):
        return None
    return _seen(now_us, now, track, np.arange(1, FUTURE_STEPS + 1) * STEP_US / 1e6)


def covers(now_us: int, last_us: float, horizon_s: float = FUTURE_S) -> bool:
    """Whether a track that ends at `last_us` covers `horizon_s` after a moment."""
    return last_us >= now_us + round(horizon_s * 1e6)


def _seen(now_us: int, now: np.ndarray, track: np.ndarray, t_s: np.ndarray) -> Trajectory:
    now, track = np.array(now), np.array(track)  # scipy refuses the cache's read-only rows
    to_rig = Rotation.from_quat(now[3:7]).inv()
    forward = float(to_rig.apply(now[7:10])[0])
    if not len(t_s):
        return Trajectory(t_s, np.zeros((0, 2)), np.zeros(0), forward)
    places = to_rig.apply(track[:, 1:4] - now[:3])[:, :2]
    ahead = (to_rig * Rotation.from_quat(track[:, 4:8])).apply((1.0, 0.0, 0.0))
    yaw = np.arctan2(ahead[:, 1], ahead[:, 0])
    # Insert the moment itself as a knot, at the end of the past or the start of the future.
    at = np.searchsorted(track[:, 0], now_us)
    knots_s = np.insert((track[:, 0] - now_us) / 1e6, at, 0.0)
    places = np.insert(places, at, 0.0, axis=0)
    yaw = np.unwrap(np.insert(yaw, at, 0.0))
    yaw -= yaw[at]
    xy = np.stack([np.interp(t_s, knots_s, column) for column in places.T], axis=1)
    return Trajectory(t_s, xy, np.interp(t_s, knots_s, yaw), forward)
