"""Poses in the frame in which somebody has them, to one level frame: east, north, up, in metres.

Headings are then counter-clockwise from x (east), and rotations turn the car's axes (x forward, y
left, z up) into the frame's. Conversions are scipy's and PROJ's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import limits
from avomni_lib.dataset.own import arguments
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
# About 1 cm.
DEGREES_RESOLUTION = 1e-7


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


def read(clip: Any, mistakes: arguments.Mistakes, where: str) -> Poses | None:
    """An `OwnClip`'s poses; None after anything that keeps them from being read."""
    before = len(mistakes)
    frame, axes = clip.frame, clip.axes
    for name, value, known in (("frame", frame, FRAMES), ("axes", axes, AXES)):
        if not isinstance(value, str) or value not in known:
            fix = f"choose one of {', '.join(known)}"
            mistakes.append(
                AvomniError(f"unknown {name} {value!r}", where=f"{name}, {where}", fix=fix)
            )
    t_s: Any = None
    with mistakes.kept():
        t_s = arguments.times(clip.t_s, "t_s", where)
        _check_pace(t_s, where)
    # Without its times an argument's length is compared with the positions'.
    count = len(t_s) if t_s is not None else _length(clip.position_m)
    if count < 2:
        mistakes.append(AvomniError(f"{count} poses, expected at least two", where=f"t_s, {where}"))
        return None
    given: dict[str, np.ndarray | None] = {}
    with mistakes.kept():
        given["position"] = _position(clip.position_m, frame, where, count)
    if "position" in given and frame in ("enu", "ned") and is_geocentric(given["position"]):
        far_km = np.linalg.norm(given["position"][0]) / 1e3
        mistakes.append(
            AvomniError(
                f"position_m lies {far_km:,.0f} km from the zero of frame={frame!r}, the distance "
                "to the centre of the Earth: it looks geocentric",
                where=f"position_m, {where}",
                fix="frame='ecef'",
            )
        )
        if clip.quaternion is None:
            return None
        # What else is wrong can only be seen in the right frame.
        frame, before = "ecef", before + 1
    turns = (clip.heading_rad is None) + (clip.quaternion is None)
    if turns != 1:
        what = "both heading_rad and quaternion" if not turns else "neither of them"
        mistakes.append(
            AvomniError(
                f"poses need either heading_rad or quaternion, and have {what}", where=where
            )
        )
    if clip.heading_rad is not None:
        with mistakes.kept():
            given["heading"] = arguments.headings(clip.heading_rad, where, count)
        if axes != "flu":
            mistakes.append(
                AvomniError(
                    f"axes={axes!r} goes with a quaternion; a heading has no axes of the car",
                    where=f"axes, {where}",
                    fix="leave axes out; headings clockwise from north are frame='ned'",
                )
            )
    if clip.quaternion is not None:
        with mistakes.kept():
            given["quaternion"] = arguments.quaternions(clip.quaternion, where, count)
    if clip.velocity_mps is not None:
        with mistakes.kept():
            given["velocity_mps"] = arguments.array(
                clip.velocity_mps, "velocity_mps", where, ((count, 3),), arguments.FASTEST_MPS
            )
    if clip.speed_m_s is not None:
        with mistakes.kept():
            given["speed_mps"] = arguments.array(
                clip.speed_m_s, "speed_m_s", where, ((count,),), arguments.FASTEST_MPS
            )
    if len(mistakes) > before:
        return None
    names = ("position", "heading", "quaternion", "velocity_mps", "speed_mps")
    return Poses(frame, axes, t_s, *(given.get(name) for name in names))  # type: ignore[arg-type]


def level(poses: Poses, frame: str | None = None) -> tuple[np.ndarray, Rotation]:
    """(K, 3) m east, north and up of the first position, or in the given level map; and the
    rotation that takes vectors of the frame into them.

    Latitudes, longitudes and geocentric positions go through PROJ's `cart` and `topocentric`: the
    plane that touches the WGS 84 ellipsoid at the first position, without the distortion of a map.

    Args:
        poses: As they were given.
        frame: What to take them for instead of `poses.frame`.
    """
    frame, position = frame or poses.frame, poses.position
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


def turns(
    poses: Poses, into: Rotation, heading: np.ndarray | None = None, axes: str | None = None
) -> Rotation:
    """(K,) rotations from the car's axes (x forward, y left, z up) to the level frame's.

    Args:
        poses: As they were given.
        into: Of `level`.
        heading, axes: What to take instead of the poses' own.
    """
    if poses.quaternion is None:
        angle = poses.heading if heading is None else heading
        assert angle is not None
        if poses.frame != "enu":
            angle = np.pi / 2 - angle
        return Rotation.from_euler("z", angle[:, None])
    return into * Rotation.from_quat(poses.quaternion) * car(axes or poses.axes)


def car(axes: str) -> Rotation:
    """From forward, left and up to the axes of a car that are called so."""
    return Rotation.from_matrix(np.transpose(AXES[axes]))


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


def _position(value: Any, frame: str, where: str, count: int) -> np.ndarray:
    # The range of degrees is looked at below, where times 1e7 is known too.
    fineness = (DEGREES_RESOLUTION, np.inf) if frame == "wgs84" else ()
    position = arguments.places(value, "position_m", where, count, *fineness)
    place = f"position_m, {where}"
    if frame == "wgs84":
        beyond = np.abs(position[:, :2]) > (90, 180)
        if beyond.any():
            row = int(np.argmax(beyond.any(axis=1)))
            first, second = position[row, :2]
            is_swapped = abs(first) <= 180 and abs(second) <= 90
            fix = "they look like metres (frame='enu', 'ned' or 'ecef') or NMEA's ddmm.mmmm"
            if is_geocentric(position):
                fix = "they look like geocentric metres: frame='ecef'"
            elif abs(first) <= 90e7 and abs(second) <= 180e7 and (position[:, :2] % 1 == 0).all():
                fix = "they look like degrees times 1e7: divide by 1e7"
            fix = "the order is latitude, longitude" if is_swapped else fix
            raise AvomniError(
                f"latitude {first:g}, longitude {second:g} at row {row} is no place on the Earth",
                where=f"position_m, row {row}, {where}",
                fix=fix,
            )
    elif frame == "ecef":
        if position.shape[1] != 3:
            what = f"position_m of shape {position.shape}, expected ({count}, 3) for frame='ecef'"
            raise AvomniError(what, where=place)
        radius = np.linalg.norm(position, axis=1)
        beyond = (radius < EARTH_M[0]) | (radius > EARTH_M[1])
        if beyond.any():
            row = int(np.argmax(beyond))
            raise AvomniError(
                f"position_m is {radius[row] / 1e3:,.3f} km from the centre of the Earth at row "
                f"{row}, and frame='ecef' counts from there in metres",
                where=f"position_m, row {row}, {where}",
                fix="choose another frame, or give metres",
            )
    if position.shape[1] == 2:
        position = np.column_stack([position, np.zeros(count)])
    return position


def _check_pace(t_s: np.ndarray, where: str) -> None:
    """Poses less often than twice a second, or times in another unit."""
    step = float(np.median(np.diff(t_s))) if len(t_s) > 1 else 0.0
    if step <= limits.MAX_GAP_S:
        return
    unit = arguments.unit_of(step, USUAL_STEP_S)
    scale = f"if t_s is in {unit}, divide by {arguments.UNITS[unit]:g}; else " if unit else ""
    looks = f"; it looks like {unit}" if unit else ""
    raise AvomniError(
        f"t_s rises by {step:g} s from pose to pose, and at least two poses a second are needed"
        f"{looks}",
        where=f"t_s, {where}",
        fix=f"{scale}give more poses (np.interp between them, if the car drove evenly)",
    )


def _length(value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        return 0
