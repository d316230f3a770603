"""Where points in the rig's frame are seen in a camera's picture, by the published calibration.

The lens is an f-theta polynomial: r = sum of fw_poly_i · θ^i, px from the principal point for a ray
θ radians off the axis (NVIDIA's physical_ai_av, camera_models). A camera's frame is x right, y
down, z out of the lens; the rig's is x forward, y left, z up, with its origin below the rear axle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.spatial.transform import Rotation

STEPS = 64  # points that a path is drawn through
LARGEST_ANGLE = np.pi / 2 * 0.98  # rad off the axis; what is farther aside is not drawn


@dataclass(frozen=True)
class Camera:
    """One camera of a clip.

    Attributes:
        width, height: px.
        centre: (cx, cy) px.
        fw_poly: (5,) px from rad.
        position: (3,) m in the rig's frame.
        to_rig: Turns directions of the camera's frame into the rig's.
    """

    width: int
    height: int
    centre: np.ndarray
    fw_poly: np.ndarray
    position: np.ndarray
    to_rig: Rotation

    @classmethod
    def of(cls, intrinsics: Mapping[str, float], extrinsics: Mapping[str, float]) -> Self:
        """From rows as `Clip.intrinsics` and `Clip.extrinsics` give them."""
        return cls(
            int(intrinsics["width"]),
            int(intrinsics["height"]),
            np.array([intrinsics["cx"], intrinsics["cy"]]),
            np.array([intrinsics[f"fw_poly_{i}"] for i in range(5)]),
            np.array([extrinsics[axis] for axis in "xyz"]),
            Rotation.from_quat([extrinsics[f"q{axis}"] for axis in "xyzw"]),
        )

    def pixels(self, points_m: np.ndarray) -> np.ndarray:
        """(N, 3) m in the rig's frame -> (N, 2) px, the first pixel's centre at (0.5, 0.5).

        NaN behind the camera and where the lens does not reach.
        """
        rays = self.to_rig.inv().apply(np.asarray(points_m, np.float64) - self.position)
        side = np.linalg.norm(rays[:, :2], axis=1)
        angle = np.arctan2(side, rays[:, 2])
        radius = np.polynomial.polynomial.polyval(angle, self.fw_poly)
        radius[angle > LARGEST_ANGLE] = np.nan
        return rays[:, :2] * (radius / np.maximum(side, 1e-12))[:, None] + self.centre


def along(xy_m: np.ndarray) -> np.ndarray:
    """(STEPS, 2) points evenly spaced along a path (N, 2), so that a lens bends it smoothly."""
    way = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(xy_m, axis=0), axis=1))]
    at = np.linspace(0, way[-1], STEPS)
    return np.column_stack([np.interp(at, way, column) for column in xy_m.T])
