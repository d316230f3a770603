"""The names of the rig's cameras, and the values of `vision.cameras`: a preset or rows of names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from avomni_lib.params import user_code

Rows = tuple[tuple[str | None, ...], ...]

CameraName = Literal[
    "camera_front_wide_120fov",
    "camera_front_tele_30fov",
    "camera_cross_left_120fov",
    "camera_cross_right_120fov",
    "camera_rear_left_70fov",
    "camera_rear_right_70fov",
    "camera_rear_tele_30fov",
]
NAMES: tuple[str, ...] = get_args(CameraName)
_WIDE, _TELE, _CROSS_LEFT, _CROSS_RIGHT, _REAR_LEFT, _REAR_RIGHT, _REAR_TELE = NAMES
Preset = Literal["4-cam", "6-cam", "7-cam"]
PRESETS: dict[Preset, Rows] = {
    "4-cam": ((_WIDE, _TELE), (_REAR_LEFT, _REAR_RIGHT)),
    "6-cam": (
        (_CROSS_LEFT, _WIDE, _CROSS_RIGHT),
        (_REAR_LEFT, _REAR_TELE, _REAR_RIGHT),
    ),
    "7-cam": (
        (_CROSS_LEFT, _WIDE, _CROSS_RIGHT),
        (_REAR_LEFT, _TELE, _REAR_RIGHT),
        (None, _REAR_TELE, None),
    ),
}
MOST = 7  # rows or columns; with seven cameras in a line, any more would be empty


def checked(value: Any) -> str | Rows:
    """Validate a preset's name, `module:attribute`, or rows of camera names (null: empty cell).

    A name repeated over a rectangle of neighbouring cells is one camera shown larger. Rows equal to
    a preset's are returned as its name, so that both spellings are the same grid.

    Raises:
        ValueError: the value is none of these; the message lists all mistakes.
    """
    if isinstance(value, str):
        if value not in PRESETS and not user_code.is_reference(value):
            raise ValueError(
                f"there is no grid {value!r}: write {', '.join(PRESETS)}, rows of camera names as "
                "[[camera_front_wide_120fov, null], …], or module:attribute of such rows"
            )
        return value
    if not isinstance(value, Sequence) or not all(
        isinstance(row, Sequence) and not isinstance(row, str) for row in value
    ):
        raise ValueError(f"rows of camera names are wanted, or one of {', '.join(PRESETS)}")
    rows = tuple(map(tuple, value))
    if mistakes := _mistakes(rows):
        raise ValueError("; ".join(mistakes))
    return next((name for name, preset in PRESETS.items() if rows == preset), rows)


def _mistakes(rows: tuple[tuple[Any, ...], ...]) -> list[str]:
    cells = [cell for row in rows for cell in row]
    named = [cell for cell in cells if cell is not None]
    widths = [len(row) for row in rows]
    mistakes = []
    if len(set(widths)) > 1:
        mistakes.append(f"rows are equally long, these have {', '.join(map(str, widths))} cells")
    if not named:
        mistakes.append("no cell names a camera")
    if max([len(rows), *widths]) > MOST:
        mistakes.append(
            f"a grid has at most {MOST} rows and {MOST} columns, this one has {len(rows)} rows and "
            f"{max(widths)} columns"
        )
    unknown = dict.fromkeys(repr(cell) for cell in named if cell not in NAMES)
    if unknown:
        mistakes.append(f"there is no camera {', '.join(unknown)}; there are {', '.join(NAMES)}")
    torn = [name for name in dict.fromkeys(named) if name in NAMES and not _is_one(name, rows)]
    if torn:
        mistakes.append(
            f"{', '.join(torn)} stands in several cells that are no rectangle: repeat a name over "
            "neighbouring cells to show its camera larger, as in 2 rows of 2"
        )
    return mistakes


def _is_one(name: str, rows: tuple[tuple[Any, ...], ...]) -> bool:
    """Whether the cells of a name form a full rectangle."""
    places = [
        (row, col) for row, cells in enumerate(rows) for col, c in enumerate(cells) if c == name
    ]
    height, width = (max(index) - min(index) + 1 for index in zip(*places, strict=True))
    return len(places) == height * width
