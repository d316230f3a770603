"""Conversion of rows of a LeRobot table to poses, with checks of consistency.

Frame of reference: a level map, x east, y north, z up, m; the car's axes are x forward, y left, z
up. `own.poses.egomotion` converts it to the clip's anchor frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import limits
from avomni_lib.dataset.findings import DAMAGED, ODD, Finding
from avomni_lib.dataset.own.poses import GivenPoses, level
from avomni_lib.errors import AvomniError

KMH_TO_MPS = 1 / 3.6
# L2D stores degrees as float32, with steps of 0.4 m at 50° north. Averaged over three seconds, this
# is accurate to centimetres, and dead reckoning drifts by less.
GPS_SMOOTHING_S = 3.0
# Over this span, GPS steps are at most a tenth of the distance at the lowest speed compared.
SPAN_S, LEAST_MPS = 2.0, 3.0
# Limits for a clip's medians: a speedometer shows at most a tenth too much (UNECE R39), a wrong
# unit is a factor of 2 or 3.6; a heading in another convention is off by a quarter turn.
SPEED_SHARE, HEADING_DEG = 0.2, 20.0
# Limits for one stretch of `SPAN_S`: beyond them the GPS fix was lost, or a wheel slips.
STRETCH_SHARE, STRETCH_MPS = 0.3, 2.0


@dataclass(frozen=True)
class EpisodeMotion:
    """Poses of an episode.

    Attributes:
        position: (N, 3) m on a level map.
        turn: (N,) rotations from the car's axes to the map's.
        velocity: (N, 3) m/s in the map's frame.
        findings: Contradictions between the columns; without a place.
    """

    position: np.ndarray
    turn: Rotation
    velocity: np.ndarray
    findings: tuple[Finding, ...] = ()


def need_numbers(columns: Mapping[str, np.ndarray]) -> None:
    """Refuse values that are not numbers, before they spread through the arithmetic.

    Raises:
        AvomniError: naming the column and the row.
    """
    for name, values in columns.items():
        for row in np.flatnonzero(~(np.abs(values) <= limits.MAX_NUMBER))[:1]:
            reason = "not a number" if np.isnan(values[row]) else "not plausible"
            raise AvomniError(f"{name} is {values[row]} at row {row}, which is {reason}")


def of_poses(columns: Mapping[str, np.ndarray], t_s: np.ndarray) -> EpisodeMotion:
    """From x, y, z (m), qx, qy, qz, qw (scalar last) and vx, vy, vz (m/s), in one level frame."""
    need_numbers(columns)

    def stacked(names: str, prefix: str = "") -> np.ndarray:
        return np.stack([columns[prefix + name] for name in names], axis=1)

    quaternion = stacked("xyzw", "q")
    norm = np.linalg.norm(quaternion, axis=1)
    for row in np.flatnonzero(np.abs(norm - 1) > limits.UNIT_TOLERANCE)[:1]:
        raise AvomniError(f"no rotation at row {row}: |q| = {norm[row]:.4f}")
    return EpisodeMotion(stacked("xyz"), Rotation.from_quat(quaternion), stacked("xyz", "v"))


def of_speed_heading_and_gps(columns: Mapping[str, np.ndarray], t_s: np.ndarray) -> EpisodeMotion:
    """From L2D's speed in km/h, heading in degrees clockwise from north, and latitude and longitude
    in degrees (WGS 84, float32).

    - speed / 3.6 is m/s; yaw = 90° - heading, counter-clockwise from east;
    - PROJ converts degrees to metres east and north (topocentric, `own.poses.level`);
    - positions are dead reckoning (speed along yaw) plus its difference to GPS, smoothed over 3 s:
      float32 degrees alone would jump by 0.4 m. The road is assumed to be level.

    Speed and heading are compared with GPS, see `disagreements`.

    Raises:
        AvomniError: a value is not a number, or not a position on the Earth.
    """
    need_numbers(columns)
    degrees = np.stack([columns["hp_loc_latitude"], columns["hp_loc_longitude"]], axis=1)
    for row in np.flatnonzero((np.abs(degrees) > (90, 180)).any(axis=1))[:1]:
        lat, lon = degrees[row]
        raise AvomniError(f"latitude {lat:g}, longitude {lon:g} at row {row} is no place")
    speed, yaw = columns["speed"] * KMH_TO_MPS, np.radians(90 - columns["heading"])
    place = np.column_stack([degrees, np.zeros(len(degrees))])
    gps = level(GivenPoses("wgs84", "flu", t_s, place, None, None, None, None))[0][:, :2]
    velocity = speed[:, None] * np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    steps = (velocity[1:] + velocity[:-1]) / 2 * np.diff(t_s)[:, None]
    reckoned = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    # Smooth with a Gaussian around a linear trend in time.
    off, basis = gps - reckoned, np.stack([np.ones_like(t_s), t_s - t_s.mean()], axis=1)
    line = basis @ np.linalg.lstsq(basis, off, rcond=None)[0]
    sigma = GPS_SMOOTHING_S / float(np.median(np.diff(t_s)))
    correction = line + gaussian_filter1d(off - line, sigma, axis=0, mode="nearest")
    flat = np.zeros((len(t_s), 1))
    return EpisodeMotion(
        np.hstack([reckoned + correction, flat]),
        Rotation.from_euler("z", yaw[:, None]),
        np.hstack([velocity + np.gradient(correction, t_s, axis=0), flat]),
        tuple(disagreements(t_s, speed, yaw, gps)),
    )


def disagreements(
    t_s: np.ndarray, speed: np.ndarray, yaw: np.ndarray, gps: np.ndarray
) -> Iterator[Finding]:
    """Compare a clip's speed (N,) m/s and yaw (N,) rad with positions (N, 2) m east and north.

    Uses stretches of two seconds in which the car drives at 3 m/s or more.
    """
    marks = np.arange(t_s[0], t_s[-1], SPAN_S)
    if len(marks) < 2:
        return

    def at(values: np.ndarray) -> np.ndarray:
        interpolated: np.ndarray = np.interp(marks, t_s, values)
        return interpolated

    steps = np.stack([np.diff(at(column)) for column in gps.T], axis=1)
    way = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(t_s))])
    by_speed, by_gps = np.diff(at(way)) / SPAN_S, np.linalg.norm(steps, axis=1) / SPAN_S
    moves = np.maximum(by_speed, by_gps) > LEAST_MPS
    if not moves.any():
        return
    ratio = float(np.median(by_gps[moves] / np.maximum(by_speed[moves], 1e-6)))
    if abs(ratio - 1) > SPEED_SHARE:
        reason = (
            f"by GPS the car is {ratio:.2f} times as fast as its speed column says "
            f"(median of {moves.sum()} stretches): is the column in km/h?"
        )
        yield Finding(DAMAGED, "speed and GPS disagree", reason)
        return
    middle = np.interp((marks[1:] + marks[:-1]) / 2, t_s, np.unwrap(yaw))
    off = np.arctan2(steps[:, 1], steps[:, 0]) - middle
    off = np.degrees(np.abs((off + np.pi) % (2 * np.pi) - np.pi))
    if (turned := float(np.median(off[moves]))) > HEADING_DEG:
        reason = (
            f"the course by GPS is {turned:.0f}° beside the heading (median of {moves.sum()} "
            "stretches): is the heading in degrees, clockwise from north?"
        )
        yield Finding(DAMAGED, "heading and GPS disagree", reason)
        return
    apart = np.abs(by_gps - by_speed) - STRETCH_SHARE * by_speed
    place = int(np.argmax(apart))
    if apart[place] > STRETCH_MPS:
        reason = (
            f"from {marks[place]:.1f} to {marks[place + 1]:.1f} s the car drives at "
            f"{by_speed[place]:.1f} m/s by its speed column and at {by_gps[place]:.1f} m/s by GPS"
        )
        yield Finding(ODD, "speed and GPS disagree in a stretch", reason)
