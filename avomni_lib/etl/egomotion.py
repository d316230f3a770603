"""Where the car was: checked poses, read at any time, and the path, chord and future they give.

Poses are rig to anchor: the anchor frame is the rig's at the clip's time 0 (x forward, y left, z
up, metres), and velocities are given in it too. Rates are not uniform, so everything is
interpolated on the timestamps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from avomni_lib.errors import AvomniError

COLUMNS = ("timestamp", "x", "y", "z", "qx", "qy", "qz", "qw", "vx", "vy", "vz")
MAX_GAP_S = 0.5
MAX_JUMP_M = 1.0
UNIT_TOLERANCE = 1e-3
PATH_TOLERANCE = (2.0, 0.1)  # m, and share of the path, by which positions and speeds may disagree
HOP_M, BACK_M = 0.5, 0.1
MAX_FAULTS = 32  # in one clip's ego motion; with more, none of it is believed


class BrokenRow(AvomniError):
    """A row that cannot be believed; `row` counts from the first one checked."""

    row = 0


@dataclass(frozen=True)
class Poses:
    """Poses at T times.

    Attributes:
        t_us: (T,) int64 µs.
        position: (T, 3) float64 m, anchor frame.
        quaternion: (T, 4) float64, x y z w, rig to anchor.
        velocity: (T, 3) float64 m/s, anchor frame.
        distance_m: (T,) float64, path length since the first row of the ego motion.
    """

    t_us: np.ndarray
    position: np.ndarray
    quaternion: np.ndarray
    velocity: np.ndarray
    distance_m: np.ndarray


@dataclass(frozen=True)
class Egomotion:
    """The checked rows of one clip's ego motion; attributes as in `Poses`, a row a measurement."""

    t_us: np.ndarray
    position: np.ndarray
    quaternion: np.ndarray
    velocity: np.ndarray
    distance_m: np.ndarray

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, np.ndarray], span_us: tuple[int, int] | None = None
    ) -> Egomotion:
        """Check the data set's columns and take them over.

        Args:
            columns: Arrays of N rows: timestamp (µs), x y z (m), qx qy qz qw, vx vy vz (m/s);
                others are ignored.
            span_us: Only the rows that this span needs are kept and checked: the data set's ego
                motion runs two minutes past its video, and a fault there is none of the clip's.

        Raises:
            AvomniError: a column is missing; a value is not finite; time does not increase; a
                quaternion is not of unit length; a gap of more than 0.5 s; a jump; positions and
                speeds that tell different stories.
        """
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise AvomniError(f"ego motion without the columns {', '.join(missing)}")
        t_us = np.asarray(columns["timestamp"])
        _refuse(~np.isfinite(t_us), t_us, "its time is not a number")
        t_us = t_us.astype(np.int64)
        if len(t_us) < 2:
            raise AvomniError(f"ego motion of {len(t_us)} rows; at least 2 are needed")
        _refuse(
            np.diff(t_us, prepend=t_us[0] - 1) <= 0, t_us, "its time is not after the row before"
        )
        first, stop = 0, len(t_us)
        if span_us is not None:
            first = max(int(np.searchsorted(t_us, span_us[0], side="right")) - 1, 0)
            stop = min(int(np.searchsorted(t_us, span_us[1], side="left")) + 1, len(t_us))
        if stop - first < 2:
            raise AvomniError(
                f"ego motion lasts from {t_us[0]} µs to {t_us[-1]} µs and says nothing about "
                f"{span_us[0]} to {span_us[1]} µs"
            )
        keep = slice(first, stop)
        t_us = t_us[keep]
        values = np.stack([np.asarray(columns[name], np.float64)[keep] for name in COLUMNS[1:]], 1)
        position, quaternion, velocity = values[:, :3], values[:, 3:7], values[:, 7:]
        _check(t_us, position, quaternion, velocity, first)
        quaternion = quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
        return cls(t_us, position, quaternion, velocity, path_length(position))

    @classmethod
    def soundest(
        cls,
        columns: Mapping[str, np.ndarray],
        span_us: tuple[int, int],
        video_us: tuple[int, int],
    ) -> tuple[Egomotion, AvomniError | None]:
        """As `from_columns`; where rows are damaged, the part between them that covers most video.

        Returns:
            The ego motion, and the first damage where it is not all of it.

        Raises:
            AvomniError: as `from_columns`, where no part is sound or too many rows are damaged.
        """
        parts: list[Egomotion] = []
        faults: dict[int, BrokenRow] = {}
        todo = [(0, len(columns.get("timestamp", ())))]
        while todo:
            start, stop = todo.pop()
            part = {name: values[start:stop] for name, values in columns.items()}
            try:
                parts.append(cls.from_columns(part, span_us))
            except BrokenRow as error:
                row = start + error.row
                faults[row] = error
                todo += [(start, row), (row + 1, stop)]
                if len(faults) > MAX_FAULTS:
                    break
            except AvomniError:
                if not faults:
                    raise
                # What is left of the rows is too short, or has nothing to do with the video.
        first = faults[min(faults)] if faults else None
        if not parts or len(faults) > MAX_FAULTS:
            raise first
        return max(parts, key=lambda part: part._overlap_us(video_us)), first

    def _overlap_us(self, span_us: tuple[int, int]) -> int:
        return int(min(self.t_us[-1], span_us[1]) - max(self.t_us[0], span_us[0]))

    def at(self, t_us: np.ndarray) -> Poses:
        """Poses at (T,) times in µs, in any order.

        Positions and velocities are interpolated linearly (at 100 Hz and 5 m/s² that is off by 0.06
        mm, across the largest gap allowed by 0.16 m), rotations by slerp.

        Raises:
            AvomniError: a time before the first row or after the last.
        """
        t_us = np.atleast_1d(np.asarray(t_us, dtype=np.int64))
        outside = (t_us < self.t_us[0]) | (t_us > self.t_us[-1])
        if outside.any():
            raise AvomniError(
                f"no ego motion at {t_us[outside][0]} µs: it lasts from {self.t_us[0]} µs "
                f"to {self.t_us[-1]} µs"
            )
        seconds, own = (t_us - self.t_us[0]) / 1e6, (self.t_us - self.t_us[0]) / 1e6
        turn = Slerp(own, Rotation.from_quat(self.quaternion))(seconds)
        return Poses(
            t_us,
            _interpolate(seconds, own, self.position),
            turn.as_quat(canonical=True),
            _interpolate(seconds, own, self.velocity),
            np.interp(seconds, own, self.distance_m),
        )

    def path_m(self, first_us: int, last_us: int) -> float:
        """Metres driven between two times, backwards counted too."""
        distance = self.at(np.array([first_us, last_us])).distance_m
        return float(distance[1] - distance[0])

    def chord_m(self, first_us: int, last_us: int) -> float:
        """Metres between the places at two times, as the crow flies."""
        position = self.at(np.array([first_us, last_us])).position
        return float(np.linalg.norm(position[1] - position[0]))

    def future(self, t0_us: int, offsets_s: np.ndarray) -> np.ndarray:
        """Where the car will be `offsets_s` after t0: (K, 3) float64 m, ego frame at t0.

        x is forward, y left, z up.

        Raises:
            AvomniError: a time that the ego motion does not cover.
        """
        offsets_us = np.rint(np.asarray(offsets_s, dtype=np.float64) * 1e6).astype(np.int64)
        poses = self.at(np.concatenate([[t0_us], t0_us + offsets_us]))
        to_ego = Rotation.from_quat(poses.quaternion[0]).inv()
        return to_ego.apply(poses.position[1:] - poses.position[0])


def path_length(position: np.ndarray) -> np.ndarray:
    """Metres driven up to each row: (N,) float64, starting at 0, never falling.

    The sum of steps between neighbours grows with the noise of each position, above all at
    standstill (1 cm at 100 Hz reads as more than 1 m/s). So the path is the polygon over rows at
    least 0.5 m apart, and over the places where the car turned back by more than 0.1 m: smaller
    noise adds nothing at rest and little in motion, and cutting the corner costs 0.04 % on a circle
    of 5 m radius. Only positions are used: speeds may be measured otherwise (wheels) and drift.
    """
    points = position.tolist()
    knot, done = points[0], 0.0
    far, far_hop = knot, 0.0
    distance = np.zeros(len(points))
    for row, point in enumerate(points):
        hop = math.dist(point, knot)
        if far_hop - hop > BACK_M:
            knot, done = far, done + far_hop
            hop, far_hop = math.dist(point, knot), 0.0
        distance[row] = done + hop
        if hop >= far_hop:
            far, far_hop = point, hop
        if hop >= HOP_M:
            knot, done, far_hop = point, done + hop, 0.0
    return np.maximum.accumulate(distance)


def _interpolate(at: np.ndarray, own: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(at, own, column) for column in values.T], axis=1)


def _check(t_us, position, quaternion, velocity, first_row: int) -> None:
    finite = np.isfinite(np.concatenate([position, quaternion, velocity], axis=1)).all(axis=1)
    _refuse(~finite, t_us, "a value is not a number", first_row)
    norm = np.linalg.norm(quaternion, axis=1)
    _refuse(abs(norm - 1) > UNIT_TOLERANCE, t_us, "its quaternion is not of unit length", first_row)
    dt = np.diff(t_us) / 1e6
    _refuse(
        np.concatenate([[False], dt > MAX_GAP_S]),
        t_us,
        f"a gap of {dt.max():.2f} s lies before it; {MAX_GAP_S} s is the most",
        first_row,
    )
    speed = np.linalg.norm((velocity[1:] + velocity[:-1]) / 2, axis=1)
    step = np.linalg.norm(np.diff(position, axis=0), axis=1)
    jump = abs(step - speed * dt)
    _refuse(
        np.concatenate([[False], jump > MAX_JUMP_M]),
        t_us,
        f"its position jumps by {jump.max():.1f} m against its speed",
        first_row,
    )
    driven, told = path_length(position)[-1], float((speed * dt).sum())
    if abs(driven - told) > PATH_TOLERANCE[0] + PATH_TOLERANCE[1] * max(driven, told):
        raise AvomniError(
            f"ego motion contradicts itself: its positions cover {driven:.1f} m, "
            f"its speeds {told:.1f} m"
        )


def _refuse(bad: np.ndarray, t_us: np.ndarray, why: str, first_row: int = 0) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        error = BrokenRow(f"ego motion is damaged at row {first_row + row} ({t_us[row]} µs): {why}")
        error.row = first_row + row
        raise error
