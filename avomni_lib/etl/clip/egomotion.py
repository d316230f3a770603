"""Ego motion: poses of the car at any time.

Poses are rig to anchor. The anchor frame is the rig's frame at the clip's time 0 (x forward, y
left, z up, m); velocities are in the anchor frame too. Rows are not uniformly spaced, so values are
interpolated by timestamp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from avomni_lib.dataset import checks
from avomni_lib.dataset.checks import path_length
from avomni_lib.errors import AvomniError

COLUMNS = ("x", "y", "z", "qx", "qy", "qz", "qw", "vx", "vy", "vz")


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


class Egomotion(Poses):
    """The rows of one clip's ego motion, one per measurement."""

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, np.ndarray], span_us: tuple[int, int] | None = None
    ) -> Egomotion:
        """Create from columns that passed `checks.egomotion`.

        Args:
            columns: Arrays of N rows: timestamp (int64 µs), x y z (m), qx qy qz qw, vx vy vz (m/s);
                others are ignored.
            span_us: (first, last) µs of the cameras: only the rows needed for these times and the
                history before them are kept. The data set's ego motion continues for two minutes
                after the video.
        """
        t_us = columns["timestamp"]
        keep = slice(0, len(t_us)) if span_us is None else checks.needed(t_us, *span_us)
        values = np.stack([columns[name][keep] for name in COLUMNS], axis=1).astype(np.float64)
        position, quaternion, velocity = values[:, :3], values[:, 3:7], values[:, 7:]
        quaternion = quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
        return cls(t_us[keep], position, quaternion, velocity, path_length(position))

    def at(self, t_us: np.ndarray) -> Poses:
        """Poses at (T,) times in µs, in any order.

        Positions and velocities are interpolated linearly, rotations by slerp. At 5 m/s² the error
        of positions is 0.06 mm at 100 Hz, and 0.19 m across the largest allowed gap.

        Raises:
            AvomniError: a time is before the first row or after the last.
        """
        t_us = np.atleast_1d(np.asarray(t_us, dtype=np.int64))
        outside = (t_us < self.t_us[0]) | (t_us > self.t_us[-1])
        if outside.any():
            raise AvomniError(
                f"no ego motion at {t_us[outside][0]} µs: it lasts from {self.t_us[0]} µs "
                f"to {self.t_us[-1]} µs"
            )
        wanted_s, row_s = (t_us - self.t_us[0]) / 1e6, (self.t_us - self.t_us[0]) / 1e6
        turn = Slerp(row_s, Rotation.from_quat(self.quaternion))(wanted_s)
        rows = np.column_stack([self.position, self.velocity, self.distance_m])
        values = np.stack([np.interp(wanted_s, row_s, column) for column in rows.T], axis=1)
        quaternion = turn.as_quat(canonical=True)
        return Poses(t_us, values[:, :3], quaternion, values[:, 3:6], values[:, 6])
