"""The seven cameras of the rig, their order, and the grids of `vision.cameras`."""

from __future__ import annotations

from dataclasses import dataclass

from avomni_lib.errors import AvomniError
from avomni_lib.params import grids, user_code


@dataclass(frozen=True, slots=True)
class Camera:
    """One named view: upstream's feature name and the short label used in pictures."""

    name: str
    label: str
    fov_deg: int


def _camera(name: str) -> Camera:
    """The camera of a name such as `camera_front_wide_120fov`: side, kind, field of view."""
    _, side, kind, fov = name.split("_")
    return Camera(name, f"{side} {kind}", int(fov.removesuffix("fov")))


CAMERAS = tuple(map(_camera, grids.NAMES))
FRONT_WIDE, FRONT_TELE, CROSS_LEFT, CROSS_RIGHT, REAR_LEFT, REAR_RIGHT, REAR_TELE = CAMERAS
BY_NAME = {camera.name: camera for camera in CAMERAS}
OWN = "own"  # the name of all grids that are no preset


@dataclass(frozen=True)
class Grid:
    """Rows × cols of cameras, row by row; `None` is a black tile.

    A camera that is repeated over a rectangle of cells is one larger tile.
    """

    name: str
    rows: int
    cols: int
    cells: tuple[Camera | None, ...]

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The cameras in the order of their first cells."""
        return tuple(dict.fromkeys(cell for cell in self.cells if cell is not None))

    @property
    def front(self) -> Camera:
        """The camera that is shown alone and has paths drawn in it: front wide, or the first."""
        return FRONT_WIDE if FRONT_WIDE in self.cameras else self.cameras[0]

    @property
    def is_uneven(self) -> bool:
        """Whether a camera's tile spans several cells."""
        return any(self.span_of(camera.name) != (1, 1) for camera in self.cameras)

    def cell_of(self, name: str) -> tuple[int, int]:
        """(row, col) of the camera's cell, the upper left one if it has several."""
        return self._cells_of(name)[0]

    def span_of(self, name: str) -> tuple[int, int]:
        """(rows, cols) of cells that the camera's tile spans."""
        (top, left), (bottom, right) = (self._cells_of(name)[place] for place in (0, -1))
        return bottom - top + 1, right - left + 1

    def _cells_of(self, name: str) -> list[tuple[int, int]]:
        cells = [
            divmod(place, self.cols)
            for place, cell in enumerate(self.cells)
            if cell is not None and cell.name == name
        ]
        if not cells:
            raise AvomniError(
                f"camera {name!r} is not in the grid", where=f"vision.cameras: {self.name}"
            )
        return cells

    @classmethod
    def of_rows(cls, rows: grids.Rows, name: str = OWN) -> Grid:
        """Create from rows of camera names as returned by `grids.checked`."""
        cells = tuple(BY_NAME[cell] if cell else None for row in rows for cell in row)
        return cls(name, len(rows), len(rows[0]), cells)

    @property
    def value(self) -> str | grids.Rows:
        """The grid as a value of `vision.cameras`: a preset's name, or rows of names."""
        names = [cell and cell.name for cell in self.cells]
        rows = [names[i : i + self.cols] for i in range(0, len(names), self.cols)]
        return grids.checked(rows)

    def __str__(self) -> str:
        return self.name if self.name != OWN else f"{self.rows}×{self.cols} cameras of your own"


GRIDS: dict[str, Grid] = {name: Grid.of_rows(rows, name) for name, rows in grids.PRESETS.items()}


def grid(value: str | grids.Rows) -> Grid:
    """The grid that `vision.cameras` names.

    Raises:
        AvomniError: there is no such grid, or the module that it is named in cannot be imported.
    """
    is_own = isinstance(value, str) and user_code.is_reference(value)
    named = user_code.load(str(value), "vision.cameras") if is_own else value
    try:
        known = grids.checked(named)
    except ValueError as error:
        raise AvomniError(str(error), where=f"vision.cameras: {value!r}") from None
    if user_code.is_reference(known):
        raise AvomniError(f"{value} names another name: {known!r}", where="vision.cameras")
    return GRIDS[known] if isinstance(known, str) else Grid.of_rows(known)
