"""Calibration: its tables, and what is wrong with a row of a clip and a camera."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from avomni_lib.dataset import limits
from avomni_lib.dataset.findings import DAMAGED, Finding
from avomni_lib.dataset.tables import key_column, read_table

SIZE = ("width", "height", "cx", "cy")
FW, BW = (tuple(f"{name}_poly_{n}" for n in range(5)) for name in ("fw", "bw"))
POSE = ("qx", "qy", "qz", "qw", "x", "y", "z")
VEHICLE = ("length", "width", "height", "rear_axle_to_bbox_center", "wheelbase", "track_width")
# Feature -> (column of the sensor's name or None, numbers that a row must have).
TABLES = {
    "camera_intrinsics": ("camera_name", (*SIZE, *FW, *BW)),
    "sensor_extrinsics": ("sensor_name", POSE),
    "vehicle_dimensions": (None, VEHICLE),
}


def row(
    feature: str, name: str, values: Mapping[str, float], size: tuple[int, int] | None = None
) -> Iterator[Finding]:
    """What is wrong with one row of a feature of `TABLES`; the findings have no place.

    Args:
        name: The sensor, or `vehicle`.
        size: Width and height of the camera's video, where they are known.
    """
    for column in TABLES[feature][1]:
        value = values.get(column)
        if value is None or not abs(value) <= limits.MAX_NUMBER:
            yield Finding(DAMAGED, "not a number", f"{column} of {name} is {value}")
            return
    if feature == "camera_intrinsics" and size is not None:
        width, height = values["width"], values["height"]
        if (width, height) != tuple(size):
            reason = f"the lens of {name} is for {width:g}×{height:g} px, its video is "
            reason += f"{size[0]}×{size[1]}"
            yield Finding(DAMAGED, "image size is not the video's", reason)
    if feature == "sensor_extrinsics":
        norm = float(np.linalg.norm([values[key] for key in ("qx", "qy", "qz", "qw")]))
        if abs(norm - 1) > limits.UNIT_TOLERANCE:
            yield Finding(DAMAGED, "|q| is not 1", f"no rotation of {name}: |q| = {norm:.4f}")


def sensors(feature: str, camera_names: Sequence[str]) -> tuple[str | None, ...]:
    """The rows that a clip must have in a table."""
    return tuple(camera_names) if TABLES[feature][0] else (None,)


class CalibrationTable:
    """A chunk's calibration: its numbers as columns, found by (clip_id, sensor).

    Args:
        key: The column of the sensor's name; None where a clip has one row.
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

    def count(self, clip_id: str, sensor: str | None) -> int:
        """How many rows there are of it."""
        return self._count[clip_id, sensor]

    def row(self, clip_id: str, sensor: str | None) -> dict[str, float] | None:
        """The numbers of a row; None where there is none, or more than one."""
        place = self._place.get((clip_id, sensor))
        if place is None or self.count(clip_id, sensor) > 1:
            return None
        return {name: values[place].item() for name, values in self._columns.items()}
