"""`obstacle.offline`: boxes around other road users, labelled by machine ten times a second."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from avomni_lib.dataset.tables import number_column, text_column, time_column
from avomni_lib.errors import AvomniError

TIMES = ("timestamp_us", "reference_frame_timestamp_us")
NUMBERS = (
    *(f"center_{axis}" for axis in "xyz"),
    *(f"size_{axis}" for axis in "xyz"),
    *(f"orientation_{axis}" for axis in "xyzw"),
)
TEXTS = ("track_id", "label_class")
FRAME = "rig"


def columns(table: pa.Table, where: str) -> dict[str, np.ndarray]:
    """The columns of a clip's table, each (N,): `TIMES` int64, `NUMBERS` float64, `TEXTS` object.

    A box's middle (m), size (m, x to its nose) and turn box -> rig (quaternion, scalar last) are in
    the frame of the rig (x forward, y left, z up, origin below the rear axle) at
    `reference_frame_timestamp_us`; `timestamp_us` says when it was there. Both are on the clip's
    clock. `track_id` names the same road user in all rows of the clip.

    Raises:
        AvomniError: a column is missing, of another kind or has gaps; or boxes are told in another
            frame.
    """
    values = {name: time_column(table, name, where) for name in TIMES}
    values |= {name: number_column(table, name, where).astype(np.float64) for name in NUMBERS}
    values |= {name: _text(table, name, where) for name in TEXTS}
    others = set(_text(table, "reference_frame", where)) - {FRAME}
    if others:
        raise AvomniError(
            f"boxes are in the frame of {', '.join(map(str, sorted(others)))}, not of the {FRAME}",
            where=where,
        )
    return values


def _text(table: pa.Table, name: str, where: str) -> np.ndarray:
    """(N,) object: a column of text without gaps."""
    values = text_column(table, name, where)
    if None in values:
        raise AvomniError(f"{values.count(None)} values of {name} are missing", where=where)
    return np.array(values, object)
