"""Contact of boxes and positions relative to a lane, in the ground plane: x east, y north, metres.

A box is (x, y, yaw, length, width): its centre, its heading and its size.
"""

from __future__ import annotations

import numpy as np

TOUCH_M = 1e-6  # boxes closer than this touch: tolerance for rounding


def boxes(poses: np.ndarray, size: tuple[float, float, float]) -> np.ndarray:
    """(…, 5) boxes of a car whose rear axle's centre is at poses (…, ≥ 3) x, y, yaw.

    Args:
        size: (length, width, rear), see `Episode`.
    """
    length, width, rear = size
    middle = moved(poses, length / 2 - rear)
    sides = np.broadcast_to((length, width), (*middle.shape[:-1], 2))
    return np.concatenate([middle, sides], axis=-1)


def moved(poses: np.ndarray, ahead_m: float | np.ndarray) -> np.ndarray:
    """(…, 3) x, y, yaw: poses (…, ≥ 3) moved ahead along their yaw."""
    x, y, yaw = np.moveaxis(np.asarray(poses, np.float64)[..., :3], -1, 0)
    moved = [x + ahead_m * np.cos(yaw), y + ahead_m * np.sin(yaw), yaw]
    return np.stack(np.broadcast_arrays(*moved), axis=-1)


def bumper(box: np.ndarray, sign: int) -> np.ndarray:
    """(…, 5) the front (+1) or rear (-1) edge of boxes (…, 5), as boxes of zero length."""
    edge = moved(box, sign * box[..., 3] / 2)
    return np.concatenate([edge, np.zeros_like(edge[..., :1]), box[..., 4:]], axis=-1)


def corners(box: np.ndarray) -> np.ndarray:
    """(…, 4, 2) corners of boxes (…, 5): front left, front right, rear right, rear left."""
    x, y, yaw, length, width = (part[..., None] for part in np.moveaxis(box, -1, 0))
    ahead, left = length / 2 * np.array([1, 1, -1, -1]), width / 2 * np.array([1, -1, -1, 1])
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.stack([x + ahead * cos - left * sin, y + ahead * sin + left * cos], axis=-1)


def touch(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(…) bool: whether boxes (…, 5) share a point, by the separating axis theorem.

    Touching edges share points. A box with a NaN in it touches nothing.
    """
    apart = b[..., :2] - a[..., :2]
    shared = np.array(True)
    for axis in (a[..., 2], a[..., 2] + np.pi / 2, b[..., 2], b[..., 2] + np.pi / 2):
        reach = sum(
            np.abs(np.cos(box[..., 2] - axis)) * box[..., 3] / 2
            + np.abs(np.sin(box[..., 2] - axis)) * box[..., 4] / 2
            for box in (a, b)
        )
        distance = np.abs(apart[..., 0] * np.cos(axis) + apart[..., 1] * np.sin(axis))
        shared = shared & (distance <= reach + TOUCH_M)
    return shared


def beside(line: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Project points (…, ≥ 2) onto a line (M, ≥ 3) x, y, yaw, each to its nearest point.

    Beyond either end of the line, the distance to the left is measured from its straight
    extension, and the distance along it is clipped.

    Returns:
        Three arrays (…): metres along the line, metres to the left of it, and its yaw there.
    """
    line, places = np.asarray(line, np.float64), np.asarray(points, np.float64)[..., :2]
    flat = places.reshape(-1, 2)
    steps = np.linalg.norm(np.diff(line[:, :2], axis=0), axis=1)
    line = line[np.insert(steps > 0, 0, True)]  # drop repeated points, where the car stands
    if len(line) < 2:
        left = np.array([-np.sin(line[0, 2]), np.cos(line[0, 2])])
        across = (flat - line[0, :2]) @ left
        shape = places.shape[:-1]
        return np.zeros(shape), across.reshape(shape), np.full(shape, line[0, 2])
    hops = np.diff(line[:, :2], axis=0)
    lengths = np.linalg.norm(hops, axis=1)
    ahead_x, ahead_y = (hops / lengths[:, None]).T
    away_x, away_y = (flat[:, None, axis] - line[:-1, axis] for axis in (0, 1))  # (P, M - 1)
    reached = away_x * ahead_x + away_y * ahead_y
    held = np.clip(reached, 0, lengths)
    squares = (away_x - held * ahead_x) ** 2 + (away_y - held * ahead_y) ** 2
    nearest = squares.argmin(axis=1)
    at = np.arange(len(flat)), nearest
    across = ahead_x[nearest] * away_y[at] - ahead_y[nearest] * away_x[at]
    left = np.copysign(np.sqrt(squares[at]), across)
    is_past = (nearest == len(hops) - 1) & (reached[at] > lengths[-1])
    is_before = (nearest == 0) & (reached[at] < 0)
    left, part = np.where(is_past | is_before, across, left), held[at]
    along = np.insert(np.cumsum(lengths), 0, 0.0)[nearest] + part
    yaws = np.unwrap(line[:, 2])
    yaw = yaws[nearest] + (yaws[nearest + 1] - yaws[nearest]) * part / lengths[nearest]
    shape = places.shape[:-1]
    return along.reshape(shape), left.reshape(shape), yaw.reshape(shape)


def length_of(line: np.ndarray) -> float:
    """Length in metres of a line (M, ≥ 2)."""
    return float(np.linalg.norm(np.diff(np.asarray(line)[:, :2], axis=0), axis=1).sum())
