"""Poses as somebody has them, to the columns that the data set gives of a car's motion."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset.own import arguments, conventions
from avomni_lib.dataset.own.conventions import MOVES_MPS, Track
from avomni_lib.errors import AvomniError


def egomotion(
    t_s: np.ndarray,
    position_m: np.ndarray,
    heading_rad: np.ndarray | None = None,
    quaternion: np.ndarray | None = None,
    velocity_mps: np.ndarray | None = None,
    zero_s: float = 0.0,
    where: str | None = None,
) -> dict[str, np.ndarray]:
    """The columns of `clip.EGOMOTION_COLUMNS`, each (K,): timestamp int64 µs, the rest float64.

    Everything is given in the frame of the car at the pose nearest to `zero_s` (x forward, y left,
    z up). Velocities that are not known, and accelerations, are central differences.

    Args:
        t_s: (K,) s, rising.
        position_m: (K, 2) or (K, 3) m in a Cartesian frame that stands still.
        heading_rad: (K,) to the left of x; the frame's z is then up.
        quaternion: (K, 4) instead of it: x y z w, from the car's axes to the frame's.
        velocity_mps: (K, 3) m/s in that frame.
        zero_s: What is time 0 of the clip.
        where: What an error names.

    Raises:
        AvomniError: arrays do not fit each other, a value is no number, or the car moves otherwise
            than it points.
    """
    t_s = arguments.times(t_s, "t_s", where)
    position = arguments.places(position_m, "position_m", where, len(t_s))
    if position.shape[1] == 2:
        position = np.column_stack([position, np.zeros(len(t_s))])
    turn = _turns(heading_rad, quaternion, len(t_s), where)
    if velocity_mps is None:
        velocity = np.gradient(position, t_s, axis=0)
    else:
        velocity = arguments.array(velocity_mps, "velocity_mps", where, ((len(t_s), 3),))
    track = Track.of(t_s, position)
    for wrong in conventions.contradictions(track, turn, is_level=False):
        raise AvomniError(wrong, where=where, fix=conventions.CONVENTIONS)
    anchor = int(np.argmin(np.abs(t_s - zero_s)))
    into = turn[anchor].inv()
    position, velocity = into.apply(position - position[anchor]), into.apply(velocity)
    turn = into * turn
    speed, nose = np.linalg.norm(velocity, axis=1), turn.apply((1.0, 0.0, 0.0))
    yaw = np.unwrap(np.arctan2(nose[:, 1], nose[:, 0]))
    slopes = np.gradient(velocity, t_s, axis=0)
    columns = {"timestamp": microseconds(t_s - zero_s)}
    columns |= dict(zip(("qx", "qy", "qz", "qw"), turn.as_quat(canonical=True).T, strict=True))
    columns |= dict(zip("xyz", position.T, strict=True))
    columns |= dict(zip(("vx", "vy", "vz"), velocity.T, strict=True))
    columns |= dict(zip(("ax", "ay", "az"), slopes.T, strict=True))
    # At a walking pace a turn has no curvature that could be believed.
    return columns | {"curvature": np.gradient(yaw, t_s) / np.maximum(speed, MOVES_MPS)}


def microseconds(t_s: np.ndarray) -> np.ndarray:
    """(N,) int64 µs."""
    return np.rint(np.asarray(t_s) * 1e6).astype(np.int64)


def _turns(
    heading_rad: np.ndarray | None, quaternion: np.ndarray | None, count: int, where: str | None
) -> Rotation:
    if (heading_rad is None) == (quaternion is None):
        raise AvomniError("poses need either heading_rad or quaternion", where=where)
    if heading_rad is None:
        return Rotation.from_quat(arguments.quaternions(quaternion, where, count))
    heading = arguments.headings(heading_rad, where, count)
    return Rotation.from_euler("z", heading[:, None])
