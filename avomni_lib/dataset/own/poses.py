"""Poses as somebody has them: read, taken to one level frame, and to the data set's columns.

The level frame is east, north, up, in metres. Headings are then counter-clockwise from x (east),
and rotations turn the car's axes (x forward, y left, z up) into the frame's. Conversions are
scipy's and PROJ's.
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
from avomni_lib.errors import AvomniError

FRAMES = {
    "enu": "a level map: x east, y north, z up, m; headings counter-clockwise from x",
    "ned": "north, east, down, m; headings clockwise from north",
    "wgs84": "latitude and longitude in degrees, altitude in m; headings clockwise from north",
    "ecef": "geocentric x, y, z, m; headings clockwise from north",
}
# Forward, left and up in the axes of a car that are named by where x, y and z point.
AXES = {
    "flu": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "frd": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "rfu": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "rdf": ((0, 0, 1), (-1, 0, 0), (0, -1, 0)),
}
NED_TO_ENU = ((0, 1, 0), (1, 0, 0), (0, 0, -1))
USUAL_STEP_S = 0.03
# From the Dead Sea's shore to above the highest road, from the Earth's centre.
EARTH_M = (6.33e6, 6.40e6)
# No speed can be had from positions that are stored more coarsely; 1e-7° is about 1 cm.
RESOLUTION_M, DEGREES_RESOLUTION = 1e-2, 1e-7
# m and m/s, so that arithmetic does not overflow: the Moon's distance, and more than 3600 km/h.
FARTHEST_M, FASTEST_MPS = 3.8e8, 1e6
# A quaternion printed with two decimals is this far from unit length.
UNIT_TOLERANCE = 0.02
# Two whole turns: a heading beyond was hardly counted on, and 13 is a usual one in degrees.
LARGEST_HEADING_RAD = 4 * np.pi


@dataclass(frozen=True)
class Poses:
    """Poses as they were given, read and found to fit each other in shape.

    Attributes:
        frame, axes: Of `FRAMES` and `AXES`.
        t_s: (K,) s, rising.
        position: (K, 3) in the frame's units.
        heading: (K,) rad in the frame's direction, or None.
        quaternion: (K, 4) x, y, z, w, or None; one of the two is given.
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


def read(clip: Any, mistakes: Mistakes, where: str) -> Poses | None:
    """An `OwnClip`'s poses; None after anything that keeps them from being read."""
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
    # Without its times an argument's length is compared with the positions'.
    count = len(t_s) if t_s is not None else _length(clip.position_m)
    if count < 2:
        mistakes.append(at("t_s").error(f"{count} poses, expected at least two"))
        return None
    given: dict[str, np.ndarray | None] = {}
    with mistakes.kept():
        given["position"] = position = _position(clip.position_m, frame, at("position_m"), count)
        if frame in ("enu", "ned") and is_geocentric(position):
            what = (
                f"position_m lies {np.linalg.norm(position[0]) / 1e3:,.0f} km from the zero of "
                f"frame={frame!r}, the distance to the centre of the Earth: it looks geocentric"
            )
            mistakes.append(at("position_m").error(what, fix="frame='ecef'"))
            if clip.quaternion is None:
                return None
            # What else is wrong can only be seen in the right frame.
            frame, before = "ecef", before + 1
    num_absent = (clip.heading_rad is None) + (clip.quaternion is None)
    if num_absent != 1:
        have = "both heading_rad and quaternion" if not num_absent else "neither of them"
        what = f"poses need either heading_rad or quaternion, and have {have}"
        mistakes.append(AvomniError(what, where=where))
    if clip.heading_rad is not None and axes != "flu":
        what = f"axes={axes!r} goes with a quaternion; a heading has no axes of the car"
        fix = "leave axes out; headings clockwise from north are frame='ned'"
        mistakes.append(at("axes").error(what, fix=fix))
    for name, argument, read_one, shape in (
        ("heading", "heading_rad", _heading, (count,)),
        ("quaternion", "quaternion", _quaternion, (count, 4)),
        ("velocity_mps", "velocity_mps", _speed, (count, 3)),
        ("speed_mps", "speed_m_s", _speed, (count,)),
    ):
        with mistakes.kept():
            value = getattr(clip, argument)
            given[name] = None if value is None else read_one(value, at(argument), shape)
    if len(mistakes) > before:
        return None
    return Poses(frame, axes, t_s, **given)  # type: ignore[arg-type]


def level(poses: Poses) -> tuple[np.ndarray, Rotation]:
    """(K, 3) m east, north and up of the first position, or in the given level map; and the
    rotation that takes vectors of the frame into them.

    Latitudes, longitudes and geocentric positions go through PROJ's `cart` and `topocentric`: the
    plane that touches the WGS 84 ellipsoid at the first position, without the distortion of a map.
    """
    frame, position = poses.frame, poses.position
    if frame == "enu":
        return position, Rotation.identity()
    if frame == "ned":
        turn = Rotation.from_matrix(NED_TO_ENU)
        return turn.apply(position), turn
    from pyproj import Transformer

    zero = [repr(float(value)) for value in position[0]]
    if frame == "wgs84":
        pipeline = (
            "+proj=pipeline +step +proj=unitconvert +xy_in=deg +xy_out=rad "
            "+step +proj=cart +ellps=WGS84 +step +proj=topocentric +ellps=WGS84 "
            f"+lat_0={zero[0]} +lon_0={zero[1]} +h_0={zero[2]}"
        )
        north, east, up = position.T
        local = Transformer.from_pipeline(pipeline).transform(east, north, up)
        return np.stack(local, axis=1), Rotation.identity()
    pipeline = f"+proj=topocentric +ellps=WGS84 +X_0={zero[0]} +Y_0={zero[1]} +Z_0={zero[2]}"
    into = Transformer.from_pipeline(pipeline)
    # The transformation is linear, so its rotation is what it makes of steps along the axes.
    steps_m = 1e6
    axes = np.stack(into.transform(*(position[0] + steps_m * np.eye(3)).T), axis=1) / steps_m
    return np.stack(into.transform(*position.T), axis=1), Rotation.from_matrix(axes.T)


def turns(poses: Poses, into: Rotation) -> Rotation:
    """(K,) rotations from the car's axes (x forward, y left, z up) to the level frame's.

    Args:
        poses: As they were given.
        into: Of `level`.
    """
    if poses.quaternion is None:
        angle = poses.heading
        assert angle is not None
        if poses.frame != "enu":
            angle = np.pi / 2 - angle
        return Rotation.from_euler("z", angle[:, None])
    # Forward, left and up, in the axes of a car that are called so.
    car = Rotation.from_matrix(np.transpose(AXES[poses.axes]))
    return into * Rotation.from_quat(poses.quaternion) * car


def is_geocentric(position: np.ndarray) -> bool:
    """Whether positions lie on the Earth as counted from its centre.

    UTM's easting and northing may be as large, at a height that no geocentric z has outside of the
    tropics.
    """
    radius = np.linalg.norm(position, axis=1)
    return bool(
        position.shape[1] == 3
        and (radius > EARTH_M[0]).all()
        and (radius < EARTH_M[1]).all()
        and np.abs(position[:, 2]).min() > 1e4
    )


def egomotion(
    t_s: np.ndarray,
    position: np.ndarray,
    turn: Rotation,
    velocity: np.ndarray | None = None,
    zero_s: float = 0.0,
) -> dict[str, np.ndarray]:
    """The columns of `clip.EGOMOTION_COLUMNS`, each (K,): timestamp int64 µs, the rest float64.

    Everything is given in the frame of the car at the pose nearest to `zero_s` (x forward, y left,
    z up). Velocities that are not known, and accelerations, are central differences.

    Args:
        t_s: (K,) s, rising.
        position: (K, 3) m in a Cartesian frame that stands still.
        turn: (K,) from the car's axes to that frame's.
        velocity: (K, 3) m/s in that frame.
        zero_s: What is time 0 of the clip.
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
    # At a walking pace a turn has no curvature that could be believed.
    columns["curvature"] = np.gradient(yaw, t_s) / np.maximum(speed, limits.MOVES_MPS)
    return columns


def microseconds(t_s: np.ndarray) -> np.ndarray:
    """(N,) int64 µs."""
    return np.rint(np.asarray(t_s) * 1e6).astype(np.int64)


def _heading(value: Any, at: Argument, shape: tuple[int, ...]) -> np.ndarray:
    heading = arguments.array(value, at, shape)
    for row in np.flatnonzero(np.abs(heading) > LARGEST_HEADING_RAD)[:1]:
        what = f"heading_rad is {heading[row]:g} at row {row}, more than two whole turns: it looks "
        fix = (
            "give np.radians(heading_rad); or, if turns were counted on, heading_rad % (2 * np.pi)"
        )
        raise at.error(what + "like degrees", row, fix)
    return heading


def _quaternion(value: Any, at: Argument, shape: tuple[int, ...]) -> np.ndarray:
    """Of unit length, in the given order; or out of scipy's Rotation."""
    value = value.as_quat() if isinstance(value, Rotation) else value
    quaternion = arguments.array(value, at, shape)
    norm = np.linalg.norm(quaternion, axis=1)
    for row in np.flatnonzero(np.abs(norm - 1) > UNIT_TOLERANCE)[:1]:
        what = f"quaternion is no rotation at row {row}: {quaternion[row].tolist()} has length "
        fix = "leave out rows without a rotation; divide the others by their length"
        raise at.error(what + f"{norm[row]:.4g}, not 1", row, fix)
    return quaternion


def _speed(value: Any, at: Argument, shape: tuple[int, ...]) -> np.ndarray:
    return arguments.array(value, at, shape, most=FASTEST_MPS)


def _position(value: Any, frame: str, at: Argument, count: int) -> np.ndarray:
    # The range of degrees is looked at below, where times 1e7 is known too.
    is_angle = frame == "wgs84"
    most, fineness = (np.inf, DEGREES_RESOLUTION) if is_angle else (FARTHEST_M, RESOLUTION_M)
    shapes = (count, 2), (count, 3)
    position = arguments.array(value, at, *shapes, most=most, resolution=fineness)
    if is_angle:
        beyond = (np.abs(position[:, :2]) > (90, 180)).any(axis=1)
        for row in np.flatnonzero(beyond)[:1]:
            first, second = position[row, :2]
            fix = "they look like metres (frame='enu', 'ned' or 'ecef') or NMEA's ddmm.mmmm"
            if abs(first) <= 180 and abs(second) <= 90:
                fix = "the order is latitude, longitude"
            elif is_geocentric(position):
                fix = "they look like geocentric metres: frame='ecef'"
            elif abs(first) <= 90e7 and abs(second) <= 180e7 and (position[:, :2] % 1 == 0).all():
                fix = "they look like degrees times 1e7: divide by 1e7"
            what = f"latitude {first:g}, longitude {second:g} at row {row} is no place on the Earth"
            raise at.error(what, row, fix)
    elif frame == "ecef":
        if position.shape[1] != 3:
            what = f"position_m of shape {position.shape}, expected ({count}, 3) for frame='ecef'"
            raise at.error(what)
        radius = np.linalg.norm(position, axis=1)
        for row in np.flatnonzero((radius < EARTH_M[0]) | (radius > EARTH_M[1]))[:1]:
            what = (
                f"position_m is {radius[row] / 1e3:,.3f} km from the centre of the Earth at row "
                f"{row}, and frame='ecef' counts from there in metres"
            )
            raise at.error(what, row, "choose another frame, or give metres")
    if position.shape[1] == 2:
        position = np.column_stack([position, np.zeros(count)])
    return position


def _check_step(t_s: np.ndarray, at: Argument) -> None:
    """Poses less often than twice a second, or times in another unit."""
    step = float(np.median(np.diff(t_s))) if len(t_s) > 1 else 0.0
    if step > limits.MAX_GAP_S:
        unit = arguments.unit_of(step, USUAL_STEP_S)
        what = f"t_s rises by {step:g} s from pose to pose, and at least two poses a second are "
        what += "needed" + (f"; it looks like {unit}" if unit else "")
        fix = f"if t_s is in {unit}, divide by {arguments.UNITS[unit]:g}; else " if unit else ""
        fix += "give more poses (np.interp between them, if the car drove evenly)"
        raise at.error(what, fix=fix)


def _length(value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        return 0
