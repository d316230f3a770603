"""Calibration: its tables, checks of their rows, and projection of points into a picture.

The lens is an f-theta polynomial: r = sum of fw_poly_i · θ^i, in px from the principal point for a
ray θ radians off the axis (NVIDIA's physical_ai_av, camera_models). A camera's frame is x right, y
down, z out of the lens; the rig's is x forward, y left, z up, with its origin below the rear axle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras, limits
from avomni_lib.dataset.findings import DAMAGED, ODD, Finding
from avomni_lib.dataset.tables import key_column, read_table

SIZE = ("width", "height", "cx", "cy")
FW, BW = (tuple(f"{name}_poly_{n}" for n in range(5)) for name in ("fw", "bw"))
POSE = ("qx", "qy", "qz", "qw", "x", "y", "z")
VEHICLE = ("length", "width", "height", "rear_axle_to_bbox_center", "wheelbase", "track_width")
# Feature -> (column of the sensor's name or None, required columns of numbers).
TABLES = {
    "camera_intrinsics": ("camera_name", (*SIZE, *FW, *BW)),
    "sensor_extrinsics": ("sensor_name", POSE),
    "vehicle_dimensions": (None, VEHICLE),
}
# fw and bw are fitted separately; a difference of 2 px in 1,920 is the error of the fit.
INVERSE_TOLERANCE = 2 / 1920
# Ratio of a lens's field of view to the one in its camera's name; mixed-up lenses differ by more.
VIEW_TOLERANCE = 1.5
# Largest distance of a sensor from the rear axle.
MAX_LEVER_M = 10.0
# Lengths of road vehicles, m.
VEHICLE_LIMITS = (0.2, 30.0)
PATH_POINTS = 64  # points of a drawn path
LARGEST_ANGLE = np.pi / 2 * 0.98  # rad off the axis; points beyond it are not drawn


def row(
    feature: str, name: str, values: Mapping[str, float], size: tuple[int, int] | None = None
) -> Iterator[Finding]:
    """Check one row; yields findings without a place.

    Args:
        feature: A key of `TABLES`.
        name: The sensor, or `vehicle`.
        values: Column -> number.
        size: Width and height of the camera's video, if known.
    """
    for column in TABLES[feature][1]:
        value = values.get(column)
        if value is None or not abs(value) <= limits.MAX_NUMBER:
            yield Finding(DAMAGED, "not a number", f"{column} of {name} is {value}")
            return
    if feature == "camera_intrinsics":
        yield from _lens(name, values, size)
    elif feature == "sensor_extrinsics":
        norm = float(np.linalg.norm([values[key] for key in ("qx", "qy", "qz", "qw")]))
        if abs(norm - 1) > limits.UNIT_TOLERANCE:
            yield Finding(DAMAGED, "|q| is not 1", f"no rotation of {name}: |q| = {norm:.4f}")
        lever = float(np.linalg.norm([values[axis] for axis in "xyz"]))
        if lever > MAX_LEVER_M:
            reason = f"{name} is {lever:.1f} m from the rear axle"
            yield Finding(ODD, "a sensor that is not on the car", reason)
    else:
        low, high = VEHICLE_LIMITS
        wheelbase, length = values["wheelbase"], values["length"]
        reasons = [f"{n} is {values[n]:g} m" for n in VEHICLE if not low <= values[n] <= high]
        if wheelbase >= length:
            reasons.append(f"wheelbase {wheelbase:g} m, length {length:g} m")
        yield from (Finding(ODD, "no car's dimensions", reason) for reason in reasons)


def _lens(
    name: str, values: Mapping[str, float], size: tuple[int, int] | None
) -> Iterator[Finding]:
    polyval = np.polynomial.polynomial.polyval
    width, height, cx, cy = (values[column] for column in SIZE)
    fw, bw = ([values[column] for column in columns] for columns in (FW, BW))
    if size is not None and (width, height) != tuple(size):
        reason = f"the lens of {name} is for {width:g}×{height:g} px, its video is "
        reason += f"{size[0]}×{size[1]}"
        yield Finding(DAMAGED, "image size is not the video's", reason)
    if not (0 < cx < width and 0 < cy < height):
        reason = f"the axis of {name} at ({cx:.1f}, {cy:.1f}) px, outside of it"
        yield Finding(ODD, "principal point outside the image", reason)
        return
    # theta = sum bw_i * r^i from the axis to the farthest corner, and back with fw.
    radius = np.linspace(0, np.hypot(max(cx, width - cx), max(cy, height - cy)), 200)
    theta = polyval(radius, bw)
    back = polyval(theta, fw)
    for column, curve in (("bw_poly", theta), ("fw_poly", back)):
        for fall in np.flatnonzero(np.diff(curve) <= 0)[:1]:
            reason = f"{column} of {name} falls at {radius[fall]:.0f} px from the axis"
            # The fit may turn around in the corners, which are black for a wide lens.
            severity = DAMAGED if radius[fall] < min(width, height) / 2 else ODD
            yield Finding(severity, "a lens that folds the image", reason)
            return
    off = np.abs(back - radius)
    at = int(np.argmax(off))
    if off[at] > max(INVERSE_TOLERANCE * width, 0.5):
        reason = f"fw_poly and bw_poly of {name} differ by {off[at]:.1f} px at {radius[at]:.0f} px"
        yield Finding(ODD, "fw and bw are not inverse", reason)
    view = float(np.degrees(polyval([cx, width - cx], bw).sum()))
    nominal = cameras.BY_NAME[name].fov_deg if name in cameras.BY_NAME else view
    if not nominal / VIEW_TOLERANCE < view < nominal * VIEW_TOLERANCE:
        reason = f"{name} sees {view:.0f}° across"
        yield Finding(ODD, "another field of view than its name says", reason)


class CalibrationTable:
    """A chunk's calibration table: columns of numbers, indexed by (clip_id, sensor).

    Args:
        key: The column of the sensor's name; None if a clip has a single row.
    """

    def __init__(self, source: Path | bytes, key: str | None, where: str):
        table = read_table(source, where, max_rows=limits.MAX_ROWS)
        clip_ids = key_column(table, "clip_id", where)
        sensors = key_column(table, key, where, level=1) if key else [None] * len(clip_ids)
        pairs = list(zip(clip_ids, sensors, strict=True))
        self.clip_ids, self.column_names = frozenset(clip_ids), tuple(table.column_names)
        self._place = {pair: row for row, pair in enumerate(pairs)}
        self._count = Counter(pairs)
        names = (name for name in self.column_names if self.column_names.count(name) == 1)
        columns = {name: table[name] for name in names}
        self._columns = {
            name: column.to_numpy()
            for name, column in columns.items()
            if pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        }

    def fault(self, clip_id: str, sensor: str | None) -> tuple[str, str] | None:
        """(kind, reason) unless there is exactly one row of a sensor of a clip."""
        count = self._count[clip_id, sensor]
        if count == 1:
            return None
        of = f" of {sensor}" if sensor else ""
        if count:
            return "rows that contradict", f"has {count} rows{of}"
        return "no row", f"has no row{of}"

    def row(self, clip_id: str, sensor: str | None) -> dict[str, float]:
        """The numbers of a row without `fault`."""
        place = self._place[clip_id, sensor]
        return {name: values[place].item() for name, values in self._columns.items()}


@dataclass(frozen=True)
class Projection:
    """Projection of points in the rig's frame into the picture of one camera.

    Attributes:
        width, height: px.
        centre: (cx, cy) px.
        fw_poly: (5,) coefficients, px from rad.
        position: (3,) m in the rig's frame.
        to_rig: Rotation from the camera's frame to the rig's.
    """

    width: int
    height: int
    centre: np.ndarray
    fw_poly: np.ndarray
    position: np.ndarray
    to_rig: Rotation

    @classmethod
    def of(cls, intrinsics: Mapping[str, float], extrinsics: Mapping[str, float]) -> Self:
        """Create from rows as returned by `Clip.intrinsics` and `Clip.extrinsics`."""
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

        NaN behind the camera and outside the lens's range.
        """
        rays = self.to_rig.inv().apply(np.asarray(points_m, np.float64) - self.position)
        side = np.linalg.norm(rays[:, :2], axis=1)
        angle = np.arctan2(side, rays[:, 2])
        radius = np.polynomial.polynomial.polyval(angle, self.fw_poly)
        radius[angle > LARGEST_ANGLE] = np.nan
        pixels: np.ndarray = rays[:, :2] * (radius / np.maximum(side, 1e-12))[:, None] + self.centre
        return pixels


def along(xy_m: np.ndarray) -> np.ndarray:
    """Resample a path (N, 2) to (PATH_POINTS, 2) evenly, so that a lens bends it smoothly."""
    way = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(xy_m, axis=0), axis=1))]
    at = np.linspace(0, way[-1], PATH_POINTS)
    return np.column_stack([np.interp(at, way, column) for column in xy_m.T])
