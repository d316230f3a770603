"""One clip, read in place from its chunk's files, without unpacking them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from avomni_lib.dataset import checks, findings, limits
from avomni_lib.dataset.calibration import TABLES, CalibrationTable
from avomni_lib.dataset.catalog import OBSTACLES, Catalog
from avomni_lib.dataset.stored_zip import ByteRange, member
from avomni_lib.dataset.streams import TimeRange
from avomni_lib.dataset.tables import number_column, read_table, text_column, time_column
from avomni_lib.errors import AvomniError

# fmt: off
EGOMOTION_COLUMNS = (
    "timestamp", "qx", "qy", "qz", "qw", "x", "y", "z",
    "vx", "vy", "vz", "ax", "ay", "az", "curvature",
)
# fmt: on
# Boxes around other road users, labelled automatically at 10 Hz (`obstacle.offline`).
BOX_TIMES = ("timestamp_us", "reference_frame_timestamp_us")
BOX_NUMBERS = (
    *(f"center_{axis}" for axis in "xyz"),
    *(f"size_{axis}" for axis in "xyz"),
    *(f"orientation_{axis}" for axis in "xyzw"),
)
BOX_TEXTS = ("track_id", "label_class")
BOX_FRAME = "rig"


class Clip:
    """A clip of the data set on the disk.

    If something is missing or damaged, every method raises an AvomniError that names file and clip.
    """

    def __init__(self, folder: Path, catalog: Catalog, clip_id: str):
        self.folder, self.catalog, self.clip_id = Path(folder), catalog, clip_id
        self.chunk = catalog.chunk_of(clip_id)

    def __repr__(self) -> str:
        return f"Clip({self.clip_id}, chunk {self.chunk})"

    def video(self, camera: str) -> ByteRange | TimeRange:
        """The camera's mp4 inside its chunk's zip."""
        return self._member(camera, "video")

    def timestamps(self, camera: str) -> np.ndarray:
        """(N,) int64 µs on the clip's clock, increasing: the end of each frame's exposure."""
        times_us: np.ndarray = self._content(camera, "frame_timestamps")
        findings.refuse(checks.clock(times_us)[1], self._where(camera))
        return times_us

    def egomotion(self) -> dict[str, np.ndarray]:
        """The columns of the table, each (N,): timestamp int64 µs, the rest float64.

        Pose of the rig (x forward, y left, z up, origin below the rear axle) in the clip's anchor
        frame, m; quaternion scalar last; velocity and acceleration in the anchor frame; curvature
        1/m. It starts before the video and continues long after it, at about 100 Hz, not uniformly.
        """
        table: dict[str, np.ndarray] = self._content("egomotion", "egomotion")
        return table

    def obstacles(self) -> dict[str, np.ndarray] | None:
        """Labels of other road users, one row per box and time, as `obstacle_columns`.

        None if the release or the clip has no labels, which does not mean that nobody was there.
        """
        is_listed = self.catalog.listed([OBSTACLES])
        if not is_listed or not self.catalog.present(self.clip_id, OBSTACLES):
            return None
        table: dict[str, np.ndarray] = self._content(OBSTACLES, OBSTACLES)
        return table

    def intrinsics(self, camera: str) -> dict[str, float]:
        """f-theta lens: width, height, cx, cy (px), fw_poly_0..4 (angle -> px), bw_poly_0..4."""
        return self._row("camera_intrinsics", camera)

    def extrinsics(self, sensor: str) -> dict[str, float]:
        """Pose of the sensor in the rig's frame: qx, qy, qz, qw, x, y, z (m)."""
        return self._row("sensor_extrinsics", sensor)

    def vehicle(self) -> dict[str, float]:
        """length, width, height, rear_axle_to_bbox_center, wheelbase, track_width in m."""
        return self._row("vehicle_dimensions", None)

    def _path(self, feature: str) -> Path:
        return self.folder / self.catalog.path(feature, self.chunk)

    def _where(self, feature: str) -> str:
        return f"clip {self.clip_id} in {self._path(feature)}"

    @contextlib.contextmanager
    def _mended(self, feature: str, about: str = "") -> Iterator[None]:
        """Re-raise errors of the block with the clip's file, and how to get the file again."""
        fix = self.catalog.mend
        try:
            yield
        except FileNotFoundError:
            raise AvomniError("file not found", where=self._where(feature), fix=fix) from None
        except AvomniError as error:
            what = about + error.what
            raise AvomniError(what, where=self._where(feature), fix=fix) from None

    def _member(self, feature: str, kind: str) -> ByteRange:
        with self._mended(feature):
            name = self.catalog.member(feature, self.clip_id, kind)
            return member(self._path(feature), name)

    def _content(self, feature: str, kind: str) -> Any:
        part = self._member(feature, kind)
        with self._mended(feature, f"{kind} is "):
            content = part.read()
        return columns(kind, content, self._where(feature))

    def _row(self, feature: str, sensor: str | None) -> dict[str, float]:
        path, key = self._path(feature), TABLES[feature][0]
        with self._mended(feature):
            state = path.stat()
            rows = _calibration(path, key, state.st_size, state.st_mtime_ns)
        if fault := rows.fault(self.clip_id, sensor):
            raise AvomniError(f"{feature} {fault[1]}", where=self._where(feature))
        return rows.row(self.clip_id, sensor)


def open_clip(folder: Path, catalog: Catalog, clip_id: str) -> Clip:
    """Open a clip of a catalog whose files are in a folder."""
    clip: Clip = (catalog.clip_type or Clip)(folder, catalog, clip_id)
    return clip


def columns(kind: str, content: bytes, where: str) -> Any:
    """Read a member's table without checking its values.

    Returns:
        For `frame_timestamps` (N,) int64 µs; for `egomotion` or `OBSTACLES` columns as in `Clip`.

    Raises:
        AvomniError: the content is no such table.
    """
    table = read_table(content, where, max_rows=limits.MAX_ROWS)
    if kind == OBSTACLES:
        return obstacle_columns(table, where)
    times_us = time_column(table, "timestamp", where)
    if kind == "frame_timestamps":
        return times_us
    rest = EGOMOTION_COLUMNS[1:]
    read = {name: number_column(table, name, where).astype(np.float64) for name in rest}
    return {"timestamp": times_us, **read}


def obstacle_columns(table: pa.Table, where: str) -> dict[str, np.ndarray]:
    """The columns of a clip's table, each (N,): `BOX_TIMES` int64, `BOX_NUMBERS` float64,
    `BOX_TEXTS` object.

    A box's centre (m), size (m, x along its heading) and rotation box -> rig (quaternion, scalar
    last) are in the frame of the rig (x forward, y left, z up, origin below the rear axle) at
    `reference_frame_timestamp_us`; `timestamp_us` is the time of the box. Both are on the clip's
    clock. `track_id` identifies a road user throughout the clip.
    """
    values = {name: time_column(table, name, where) for name in BOX_TIMES}
    values |= {name: number_column(table, name, where).astype(np.float64) for name in BOX_NUMBERS}
    values |= {name: _text(table, name, where) for name in BOX_TEXTS}
    others = set(_text(table, "reference_frame", where)) - {BOX_FRAME}
    if others:
        named = ", ".join(map(str, sorted(others)))
        raise AvomniError(f"boxes are in the frame of {named}, not of the {BOX_FRAME}", where=where)
    return values


def _text(table: pa.Table, name: str, where: str) -> np.ndarray:
    """(N,) object: a column of text without gaps."""
    values = text_column(table, name, where)
    if None in values:
        raise AvomniError(f"{values.count(None)} values of {name} are missing", where=where)
    return np.array(values, object)


# A worker reads chunk by chunk, with three tables each; one of 100 clips takes about 1 MB.
@functools.lru_cache(maxsize=12)
def _calibration(path: Path, key: str | None, size: int, mtime_ns: int) -> CalibrationTable:
    """Cached while the file is unchanged."""
    return CalibrationTable(path, key, str(path))
