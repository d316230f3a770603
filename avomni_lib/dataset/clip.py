"""One clip out of its chunk's files, read where it lies: nothing is unpacked."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from avomni_lib.dataset import clocks, limits, obstacles
from avomni_lib.dataset.audit import findings
from avomni_lib.dataset.catalog import OBSTACLES, Catalog
from avomni_lib.dataset.stored_zip import ByteRange, member
from avomni_lib.dataset.tables import key_column, number_column, read_table, time_column
from avomni_lib.errors import AvomniError

# fmt: off
EGOMOTION_COLUMNS = (
    "timestamp", "qx", "qy", "qz", "qw", "x", "y", "z",
    "vx", "vy", "vz", "ax", "ay", "az", "curvature",
)
# fmt: on
__all__ = ["EGOMOTION_COLUMNS", "ByteRange", "CalibrationTable", "Clip"]


class Clip:
    """A clip of the data set on the disk.

    Every method raises an AvomniError that names file and clip where something is missing or
    damaged.

    Args:
        folder: In the data set's layout.
        catalog: Of the same revision.
        clip_id: One of the catalog's.
    """

    def __init__(self, folder: Path, catalog: Catalog, clip_id: str):
        self.folder, self.catalog, self.clip_id = Path(folder), catalog, clip_id
        self.chunk = catalog.chunk_of(clip_id)

    def __repr__(self) -> str:
        return f"Clip({self.clip_id}, chunk {self.chunk})"

    def video(self, camera: str) -> ByteRange:
        """The camera's mp4 inside its chunk's zip."""
        return self._member(camera, "video")

    def timestamps(self, camera: str) -> np.ndarray:
        """(N,) int64 µs on the clip's clock, rising, one a frame: the end of its exposure."""
        table, where = self._table(camera, "frame_timestamps")
        times_us = time_column(table, "timestamp", where)
        findings.refuse(clocks.check(times_us)[1], where)
        return times_us

    def egomotion(self) -> dict[str, np.ndarray]:
        """The columns of the table, each (N,): timestamp int64 µs, the rest float64.

        Pose of the rig (x forward, y left, z up, origin below the rear axle) in the clip's anchor
        frame, m; quaternion scalar last; velocity and acceleration in the anchor frame; curvature
        1/m. It starts before the video and runs far past it, at about 100 Hz but not uniformly.
        """
        table, where = self._table("egomotion", "egomotion")
        return motion_columns(table, EGOMOTION_COLUMNS, where)

    def obstacles(self) -> dict[str, np.ndarray] | None:
        """Labels of other road users, one row a box and moment, as `obstacles.columns` has them.

        None where the release or the clip has none, which does not mean that nobody was there.
        """
        if not self.catalog.listed([OBSTACLES]):
            return None
        if not self.catalog.present(self.clip_id, OBSTACLES):
            return None
        table, where = self._table(OBSTACLES, OBSTACLES)
        return obstacles.columns(table, where)

    def intrinsics(self, camera: str) -> dict[str, float]:
        """f-theta lens: width, height, cx, cy (px), fw_poly_0..4 (angle -> px), bw_poly_0..4."""
        return self._row("camera_intrinsics", ("camera_name", camera))

    def extrinsics(self, sensor: str) -> dict[str, float]:
        """Pose of the sensor in the rig's frame: qx, qy, qz, qw, x, y, z (m)."""
        return self._row("sensor_extrinsics", ("sensor_name", sensor))

    def vehicle(self) -> dict[str, float]:
        """length, width, height, rear_axle_to_bbox_center, wheelbase, track_width in m."""
        return self._row("vehicle_dimensions", None)

    def _path(self, feature: str) -> Path:
        return self.folder / self.catalog.path(feature, self.chunk)

    def _where(self, feature: str) -> str:
        return f"clip {self.clip_id} in {self._path(feature)}"

    def _member(self, feature: str, kind: str) -> ByteRange:
        where = self._where(feature)
        try:
            name = self.catalog.member(feature, self.clip_id, kind)
        except AvomniError as error:
            raise AvomniError(error.what, where=where) from None
        try:
            return member(self._path(feature), name)
        except AvomniError as error:
            raise AvomniError(error.what, where=where, fix=self.catalog.mend) from None

    def _table(self, feature: str, kind: str) -> tuple[pa.Table, str]:
        where = self._where(feature)
        part = self._member(feature, kind)
        try:
            content = part.read()
        except AvomniError as error:
            what = f"{kind} is {error.what}"
            raise AvomniError(what, where=where, fix=self.catalog.mend) from None
        return read_table(content, where, max_rows=limits.MAX_ROWS), where

    def _row(self, feature: str, key: tuple[str, str] | None) -> dict[str, float]:
        path, where = self._path(feature), self._where(feature)
        try:
            state = path.stat()
            rows = _calibration(path, key and key[0], state.st_size, state.st_mtime_ns)
            row = rows.row(self.clip_id, key and key[1])
        except FileNotFoundError:
            raise AvomniError("file not found", where=where, fix=self.catalog.mend) from None
        except AvomniError as error:
            raise AvomniError(error.what, where=where, fix=self.catalog.mend) from None
        if row is None:
            count = rows.count(self.clip_id, key and key[1])
            reason = f"{feature} has {f'{count} rows' if count else 'no row'}"
            raise AvomniError(reason + (f" of {key[1]}" if key else ""), where=where)
        return row


def motion_columns(table: pa.Table, names: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """Columns of a table of ego motion, (N,) each: timestamp int64 µs, the rest float64.

    Raises:
        AvomniError: one is missing, stands there twice or holds no numbers.
    """
    return {
        name: time_column(table, name, where)
        if name == "timestamp"
        else number_column(table, name, where).astype(np.float64)
        for name in names
    }


class CalibrationTable:
    """A chunk's calibration: its numbers as columns, found by (clip_id, sensor).

    Args:
        source: The parquet file, or its bytes.
        key: The column of the sensor's name; None where a clip has one row.
        where: For errors.
    """

    def __init__(self, source: Path | bytes, key: str | None, where: str):
        table = read_table(source, where, max_rows=limits.MAX_ROWS)
        clip_ids = key_column(table, "clip_id", where)
        sensors = key_column(table, key, where, level=1) if key else [None] * len(clip_ids)
        pairs = list(zip(clip_ids, sensors, strict=True))
        self._place = {pair: row for row, pair in enumerate(pairs)}
        self._count = Counter(pairs)
        names = (name for name in table.column_names if table.column_names.count(name) == 1)
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


# A worker goes chunk after chunk, with three tables each; one of 100 clips takes about 1 MB.
@functools.lru_cache(maxsize=12)
def _calibration(path: Path, key: str | None, size: int, mtime_ns: int) -> CalibrationTable:
    """Kept while the file does not change."""
    return CalibrationTable(path, key, str(path))
