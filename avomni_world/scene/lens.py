"""The cameras' lenses and mounts: what calibration publishes, and how pictures are drawn with them.

A lens is an f-theta polynomial, r = sum of fw_i θ^i (pixels from the principal point for a ray θ
radians off the axis). The renderer draws a perspective projection. `Raster` gives its size and, for
each pixel of the lens's picture, the drawn pixels that it is made of, so the pictures follow the
published polynomial exactly. Pixel coordinates have their origin at the top left corner of the
image: the first pixel's centre is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras
from avomni_world.scene.towns import Town

# Camera frame (x right, y down, z out of the lens) in the rig's frame (x forward, y left, z up).
CAMERA_TO_RIG = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])

# On the passenger car: (x, y, z) m in the rig's frame, yaw to the left and pitch down in degrees.
PLACES: dict[str, tuple[tuple[float, float, float], float, float]] = {
    cameras.FRONT_WIDE.name: ((1.75, 0.00, 1.46), 0.0, 2.0),
    cameras.FRONT_TELE.name: ((1.75, -0.12, 1.46), 0.0, 0.8),
    cameras.CROSS_LEFT.name: ((2.35, 0.96, 1.02), 65.0, 4.0),
    cameras.CROSS_RIGHT.name: ((2.35, -0.96, 1.02), -65.0, 4.0),
    cameras.REAR_LEFT.name: ((2.10, 0.98, 0.98), 148.0, 3.0),
    cameras.REAR_RIGHT.name: ((2.10, -0.98, 0.98), -148.0, 3.0),
    cameras.REAR_TELE.name: ((-0.85, 0.00, 1.38), 180.0, 1.0),
}

# k in r = f (θ + k θ³): 0 is equidistant, r ~ θ; 1/3 is near a pinhole, r ~ tan θ.
# Wide lenses are near equidistant. Up to this value the backward polynomial of degree 4 is within
# 0.02 px for a picture 128 px wide.
PINHOLE_LEAN = {"wide": 0.10, "middle": 0.25, "tele": 0.32}


@dataclass(frozen=True)
class Lens:
    """One camera's intrinsics, as `camera_intrinsics` publishes them.

    Attributes:
        width, height: Pixels.
        cx, cy: Principal point, pixels.
        fw: (5,) r in pixels from θ in radians.
        bw: (5,) θ in radians from r in pixels.
    """

    width: int
    height: int
    cx: float
    cy: float
    fw: tuple[float, ...]
    bw: tuple[float, ...]

    @property
    def max_angle(self) -> float:
        """θ of the farthest corner, radians."""
        far = math.hypot(max(self.cx, self.width - self.cx), max(self.cy, self.height - self.cy))
        return float(_angles(self.fw, far))

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Unit directions (…, 3) of pixels (…, 2): the forward polynomial's exact inverse."""
        out = np.asarray(pixels, np.float64) - (self.cx, self.cy)
        radius = np.linalg.norm(out, axis=-1)
        angle = _angles(self.fw, radius)
        side = np.sin(angle) / np.maximum(radius, 1e-12)
        return np.concatenate([out * side[..., None], np.cos(angle)[..., None]], axis=-1)


def _angles(fw: tuple[float, ...], radius: np.ndarray) -> np.ndarray:
    """θ of a radius, by Newton's method: the polynomials are monotonic over an image."""
    slope, angle = np.polynomial.polynomial.polyder(fw), np.asarray(radius) / fw[1]
    for _ in range(8):
        error = np.polynomial.polynomial.polyval(angle, fw) - radius
        angle = angle - error / np.polynomial.polynomial.polyval(angle, slope)
    return angle


def make_lens(camera: cameras.Camera, town: Town, width: int, height: int) -> Lens:
    """The lens of a camera in a town: its horizontal field of view fills the width."""
    half = math.radians(town.fov_deg.get(camera.name, camera.fov_deg)) / 2
    lean = PINHOLE_LEAN["wide" if half > 0.8 else "middle" if half > 0.45 else "tele"]
    focal = width / 2 / (half + lean * half**3)
    fw = (0.0, focal, 0.0, lean * focal, 0.0)
    # The principal point is slightly off the centre, as in real rigs, so that it cannot be ignored.
    cx, cy = width * 0.5021, height * 0.5037
    far = math.hypot(max(cx, width - cx), max(cy, height - cy))
    angle = np.linspace(0, _angles(fw, far), 2000)[1:]
    radius = np.polynomial.polynomial.polyval(angle, fw)
    powers = np.stack([(radius / far) ** i for i in range(1, 5)], axis=-1)
    fitted = np.linalg.lstsq(powers, angle, rcond=None)[0] / far ** np.arange(1, 5)
    return Lens(width, height, cx, cy, fw, (0.0, *fitted.tolist()))


@dataclass(frozen=True)
class Mount:
    """A camera's mount: the pose camera -> rig, as `sensor_extrinsics` publishes it.

    Attributes:
        position: (3,) m in the rig's frame.
        rotation: (3, 3); columns are the camera's axes in the rig's frame.
    """

    position: np.ndarray
    rotation: np.ndarray

    @property
    def quaternion(self) -> np.ndarray:
        """(4,) qx, qy, qz, qw."""
        return Rotation.from_matrix(self.rotation).as_quat(canonical=True)

    def ride(self, x: np.ndarray, y: np.ndarray, yaw: np.ndarray) -> np.ndarray:
        """(T, 4, 4) camera -> anchor with the rig at (T,) x, y (m) and yaw (rad)."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        pose = np.zeros((len(cos), 4, 4))
        pose[:, 0, 0], pose[:, 0, 1], pose[:, 0, 3] = cos, -sin, x
        pose[:, 1, 0], pose[:, 1, 1], pose[:, 1, 3] = sin, cos, y
        pose[:, 2, 2] = pose[:, 3, 3] = 1.0
        mount = np.eye(4)
        mount[:3, :3], mount[:3, 3] = self.rotation, self.position
        return pose @ mount


def make_mounts(rng: np.random.Generator, town: Town) -> dict[str, Mount]:
    """The mounts of one car: the town's positions with small deviations, as between real cars."""
    mounts = {}
    for camera in cameras.CAMERAS:
        place, yaw, pitch = PLACES[camera.name]
        position = np.array(place) + (0, 0, town.camera_rise_m) + rng.normal(0, 0.01, 3)
        yaw, pitch, roll = np.array([yaw, pitch, 0.0]) + rng.normal(0, 0.4, 3)
        turn = Rotation.from_euler("ZYX", [yaw, pitch, roll], degrees=True)
        mounts[camera.name] = Mount(position, turn.as_matrix() @ CAMERA_TO_RIG)
    return mounts


@dataclass(frozen=True)
class Raster:
    """A perspective drawing that covers a lens's picture.

    Attributes:
        width, height: Pixels of the drawing; its principal point is its centre.
        focal: Pixels.
        rows, cols: (4, H, W) intp: the drawing's pixels whose mean is each pixel of the picture.
    """

    width: int
    height: int
    focal: float
    rows: np.ndarray
    cols: np.ndarray

    @classmethod
    def of(cls, lens: Lens, density: float) -> Raster:
        """The smallest drawing with `density` pixels to one of the picture's, on the axis."""
        quarters = np.array([0.25, 0.75])
        sub = np.stack(np.meshgrid(quarters, quarters), axis=-1).reshape(4, 1, 1, 2)
        corner = np.stack(np.meshgrid(np.arange(lens.width), np.arange(lens.height)), axis=-1)
        rays = lens.rays(corner + sub)
        flat = rays[..., :2] / rays[..., 2:] * lens.fw[1] * density
        half_x = math.ceil(np.abs(flat[..., 0]).max() + 0.01)
        half_y = math.ceil(np.abs(flat[..., 1]).max() + 0.01)
        # p3tinydisplay maps a view of n pixels onto n - 0.5 of them (TinyGL's viewport scale).
        width, height = 2 * half_x, 2 * half_y
        cols = np.floor((flat[..., 0] + half_x) * (1 - 0.5 / width)).astype(np.intp)
        rows = np.floor((flat[..., 1] + half_y) * (1 - 0.5 / height)).astype(np.intp)
        return cls(width, height, lens.fw[1] * density, rows, cols)


def pack(rasters: Sequence[Raster]) -> tuple[list[tuple[int, int]], int, int]:
    """(left, top) of each drawing in one buffer, in rows, and the buffer's width and height."""
    area = sum(raster.width * raster.height for raster in rasters)
    widest = max(round(math.sqrt(area * 1.9)), *(raster.width for raster in rasters))
    places: list[tuple[int, int]] = [(0, 0)] * len(rasters)
    left = top = row_height = width = 0
    for idx in sorted(range(len(rasters)), key=lambda i: -rasters[i].height):
        if left and left + rasters[idx].width > widest:
            left, top, row_height = 0, top + row_height, 0
        places[idx] = (left, top)
        left += rasters[idx].width
        row_height = max(row_height, rasters[idx].height)
        width = max(width, left)
    return places, width, top + row_height
