"""Poses of own recordings: validation, and conversion to a level frame and the data set's columns.

The level frame is east, north, up, in metres. In it, headings are counter-clockwise from x (east),
and rotations are from the car's axes (x forward, y left, z up) to the frame's. SciPy and PROJ do
the conversions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import limits
from avomni_lib.dataset.own import arguments
from avomni_lib.dataset.own.arguments import Argument, Mistakes

FRAMES = {
    "enu": "a level map: x east, y north, z up, m; headings counter-clockwise from x",
    "ned": "north, east, down, m; headings clockwise from north",
    "wgs84": "latitude and longitude in degrees, altitude in m; headings clockwise from north",
    "ecef": "geocentric x, y, z, m; headings clockwise from north",
}
# Forward, left and up in a car's axes, which are named by the directions of x, y and z.
AXES = {
    "flu": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "frd": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "rfu": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "rdf": ((0, 0, 1), (-1, 0, 0), (0, -1, 0)),
}
FLIP = Rotation.from_matrix(((0, 1, 0), (1, 0, 0), (0, 0, -1)))  # ned to enu and back
USUAL_STEP_S = 0.03
# Distance from the Earth's centre: from the shore of the Dead Sea to above the highest road.
EARTH_M = (6.33e6, 6.40e6)
# Coarser positions do not allow to compute speeds; 1e-7° is about 1 cm.
RESOLUTION_M, DEGREES_RESOLUTION = 1e-2, 1e-7
# Limits that prevent overflows: the Moon's distance (m), and far above any car's speed (m/s).
FARTHEST_M, FASTEST_MPS = 3.8e8, 1e6
# Deviation from unit length of a quaternion printed with two decimals.
UNIT_TOLERANCE = 0.02
# Two full turns: larger headings are likely in degrees, where 13 is a common value.
LARGEST_HEADING_RAD = 4 * np.pi


@dataclass(frozen=True)
class GivenPoses:
    """Validated poses in the frame in which they were given.

    Attributes:
        frame, axes: Keys of `FRAMES` and `AXES`.
        t_s: (K,) s, increasing.
        position: (K, 3) in the frame's units.
        heading: (K,) rad in the frame's convention, or None.
        quaternion: (K, 4) x, y, z, w, or None; exactly one of the two is given.
        velocity_mps: (K, 3) m/s, along east, north and up for wgs84, else along the frame's axes.
        speed_mps: (K,) m/s of the wheels or another source.
    """

    frame: str
    axes: str
    t_s: np.ndarray
    position: np.ndarray
    heading: np.ndarray | None
    quaternion: np.ndarray | None
    velocity_mps: np.ndarray | None
    speed_mps: np.ndarray | None


def read(clip: Any, mistakes: Mistakes, where: str) -> GivenPoses | None:
    """Read an `OwnClip`'s poses; returns None if there are mistakes, which are collected."""
    before, frame, axes = len(mistakes), clip.frame, clip.axes
    at = functools.partial(Argument, clip=where)
    for name, value, known in (("frame", frame, FRAMES), ("axes", axes, AXES)):
        if not isinstance(value, str) or value not in known:
            fix = f"choose one of {', '.join(known)}"
            mistakes.append(at(name).error(f"unknown {name} {value!r}", fix=fix))
    t_s: Any = None
    with mistakes.kept():
        t_s = arguments.times(clip.t_s, at("t_s"))
        _check_step(t_s, at("t_s"))
    # If the times are invalid, lengths are compared with that of the positions.
    position = clip.position_m if hasattr(clip.position_m, "__len__") else ()
    count = len(position if t_s is None else t_s)
    if count < 2:
        mistakes.append(at("t_s").error(f"{count} poses, expected at least two"))
        return None
    with mistakes.kept():
        position = _position(clip.position_m, frame, at("position_m"), count)
        if frame in ("enu", "ned") and is_geocentric(position):
            what = (
                f"position_m lies {np.linalg.norm(position[0]) / 1e3:,.0f} km from the zero of "
                f"frame={frame!r}, the distance to the centre of the Earth: it looks geocentric"
            )
            mistakes.append(at("position_m").error(what, fix="frame='ecef'"))
            if clip.quaternion is None:
                return None
            # Continue in the right frame, to detect further mistakes.
            frame, before = "ecef", before + 1
    num_given = (clip.heading_rad is not None) + (clip.quaternion is not None)
    if num_given != 1:
        have = "both" if num_given else "neither"
        what = f"poses need either heading_rad or quaternion, and have {have}"
        mistakes.append(at("heading_rad").error(what))
    if clip.heading_rad is not None and axes != "flu":
        what = f"axes={axes!r} goes with a quaternion; a heading has no axes of the car"
        fix = "leave axes out; headings clockwise from north are frame='ned'"
        mistakes.append(at("axes").error(what, fix=fix))
    given = []
    for argument, shape in (
        ("heading_rad", (count,)),
        ("quaternion", (count, 4)),
        ("velocity_mps", (count, 3)),
        ("speed_m_s", (count,)),
    ):
        value = getattr(clip, argument)
        with mistakes.kept():
            if value is not None:
                value = value.as_quat() if isinstance(value, Rotation) else value
                most = FASTEST_MPS if argument.startswith(("vel", "speed")) else np.inf
                value = arguments.array(value, at(argument), shape, most=most)
                _check_turns(value, at(argument))
        given.append(value)
    return GivenPoses(frame, axes, t_s, position, *given) if len(mistakes) == before else None


def _check_turns(values: np.ndarray, at: Argument) -> None:
    """Check that headings are in radians and quaternions have unit length."""
    if at.name == "heading_rad":
        for row in np.flatnonzero(np.abs(values) > LARGEST_HEADING_RAD)[:1]:
            what = f"heading_rad is {values[row]:g} at row {row}, more than two whole turns: "
            fix = "give np.radians(heading_rad); or, if turns were counted on, heading_rad % "
            raise at.error(what + "it looks like degrees", row, fix + "(2 * np.pi)")
    elif at.name == "quaternion":
        norm = np.linalg.norm(values, axis=1)
        for row in np.flatnonzero(np.abs(norm - 1) > UNIT_TOLERANCE)[:1]:
            what = f"quaternion is no rotation at row {row}: {values[row].tolist()} has length "
            fix = "leave out rows without a rotation; divide the others by their length"
            raise at.error(what + f"{norm[row]:.4g}, not 1", row, fix)


def _position(value: Any, frame: str, at: Argument, count: int) -> np.ndarray:
    """(K, 3) in the frame's units; a missing height is 0."""
    is_angle = frame == "wgs84"
    most, fineness = (np.inf, DEGREES_RESOLUTION) if is_angle else (FARTHEST_M, RESOLUTION_M)
    shapes = ((count, 3),) if frame == "ecef" else ((count, 2), (count, 3))
    position = arguments.array(value, at, *shapes, most=most, resolution=fineness)
    if is_angle:
        beyond = (np.abs(position[:, :2]) > (90, 180)).any(axis=1)
        for row in np.flatnonzero(beyond)[:1]:
            first, second = position[row, :2]
            raise at.error(
                f"latitude {first:g}, longitude {second:g} at row {row} is no place on the Earth",
                row,
                "the order is latitude, longitude, in degrees: not NMEA's ddmm.mmmm, not degrees "
                "times 1e7; metres go with frame='enu', 'ned' or, geocentric ones, frame='ecef'",
            )
    elif frame == "ecef":
        radius = np.linalg.norm(position, axis=1)
        for row in np.flatnonzero((radius < EARTH_M[0]) | (radius > EARTH_M[1]))[:1]:
            what = (
                f"position_m is {radius[row] / 1e3:,.3f} km from the centre of the Earth at row "
                f"{row}, and frame='ecef' counts from there in metres"
            )
            raise at.error(what, row, "choose another frame, or give metres")
    return np.column_stack([position, np.zeros((count, 3 - position.shape[1]))])


def _check_step(t_s: np.ndarray, at: Argument) -> None:
    """Refuse poses less often than twice a second, and times in another unit."""
    step = float(np.median(np.diff(t_s))) if len(t_s) > 1 else 0.0
    if step > limits.MAX_GAP_S:
        what = f"t_s rises by {step:g} s from pose to pose; at least two poses a second are needed"
        fix = "give more poses (np.interp between them, if the car drove evenly)"
        if unit := arguments.unit_of(step, USUAL_STEP_S):
            fix = f"if t_s is in {unit}, divide by {arguments.UNITS[unit]:g}; else {fix}"
        raise at.error(what, fix=fix)


def is_geocentric(position: np.ndarray) -> bool:
    """Whether positions are on the Earth's surface relative to its centre.

    UTM coordinates may be as large, but their height is smaller than a geocentric z outside of the
    tropics.
    """
    radius = np.linalg.norm(position, axis=1)
    is_near = (radius > EARTH_M[0]) & (radius < EARTH_M[1])
    return bool(position.shape[1] == 3 and (is_near & (np.abs(position[:, 2]) > 1e4)).all())


def level(poses: GivenPoses) -> tuple[np.ndarray, Rotation]:
    """Convert positions to a level frame; returns (K, 3) m and the rotation of vectors into it.

    Its axes are east, north and up: those of a level map, or else relative to the first position.
    Latitudes, longitudes and geocentric positions are converted by PROJ's `cart` and `topocentric`,
    to the plane tangential to the WGS 84 ellipsoid there, without the distortion of a map.
    """
    frame, position = poses.frame, poses.position
    if frame == "enu":
        return position, Rotation.identity()
    if frame == "ned":
        return FLIP.apply(position), FLIP
    from pyproj import Transformer

    x, y, z = (repr(float(value)) for value in position[0])
    if frame == "wgs84":
        into = Transformer.from_pipeline(
            "+proj=pipeline +step +proj=unitconvert +xy_in=deg +xy_out=rad "
            "+step +proj=cart +ellps=WGS84 +step +proj=topocentric +ellps=WGS84 "
            f"+lat_0={x} +lon_0={y} +h_0={z}"
        )
        lat, lon, up = position.T
        return np.stack(into.transform(lon, lat, up), axis=1), Rotation.identity()
    into = Transformer.from_pipeline(f"+proj=topocentric +ellps=WGS84 +X_0={x} +Y_0={y} +Z_0={z}")
    # The transformation is linear: steps along the axes give its rotation.
    steps_m = 1e6
    axes = np.stack(into.transform(*(position[0] + steps_m * np.eye(3)).T), axis=1) / steps_m
    return np.stack(into.transform(*position.T), axis=1), Rotation.from_matrix(axes.T)


def turns(poses: GivenPoses, into: Rotation) -> Rotation:
    """(K,) rotations from the car's axes (x forward, y left, z up) to the frame of `level`."""
    if poses.heading is not None:
        angle = poses.heading if poses.frame == "enu" else np.pi / 2 - poses.heading
        return Rotation.from_euler("z", angle[:, None])
    car = Rotation.from_matrix(np.transpose(AXES[poses.axes]))
    return into * Rotation.from_quat(poses.quaternion) * car


def egomotion(
    t_s: np.ndarray,
    position: np.ndarray,
    turn: Rotation,
    velocity: np.ndarray | None = None,
    zero_s: float = 0.0,
) -> dict[str, np.ndarray]:
    """The columns of `clip.EGOMOTION_COLUMNS`, each (K,): timestamp int64 µs, the rest float64.

    The frame of reference is that of the car (x forward, y left, z up) at the pose nearest to
    `zero_s`. Accelerations, and velocities if they are not given, are central differences.

    Args:
        t_s: (K,) s, increasing.
        position: (K, 3) m in a stationary Cartesian frame.
        turn: (K,) rotations from the car's axes to that frame's.
        velocity: (K, 3) m/s in that frame.
        zero_s: Time 0 of the clip on the clock of `t_s`.
    """
    velocity = np.gradient(position, t_s, axis=0) if velocity is None else velocity
    anchor = int(np.argmin(np.abs(t_s - zero_s)))
    into = turn[anchor].inv()
    position, velocity = into.apply(position - position[anchor]), into.apply(velocity)
    turn = into * turn
    speed, nose = np.linalg.norm(velocity, axis=1), turn.apply((1.0, 0.0, 0.0))
    yaw = np.unwrap(np.arctan2(nose[:, 1], nose[:, 0]))
    columns = {"timestamp": microseconds(t_s - zero_s)}
    columns |= zip(("qx", "qy", "qz", "qw"), turn.as_quat(canonical=True).T, strict=True)
    columns |= zip("xyz", position.T, strict=True)
    columns |= zip(("vx", "vy", "vz"), velocity.T, strict=True)
    columns |= zip(("ax", "ay", "az"), np.gradient(velocity, t_s, axis=0).T, strict=True)
    # Below walking pace, curvature is not meaningful.
    columns["curvature"] = np.gradient(yaw, t_s) / np.maximum(speed, limits.MOVES_MPS)
    return columns


def microseconds(t_s: np.ndarray) -> np.ndarray:
    """(N,) int64 µs."""
    return np.rint(np.asarray(t_s) * 1e6).astype(np.int64)
