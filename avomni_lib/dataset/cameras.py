"""The seven cameras of the rig, their order, and the grids that a camera setup places them in."""

from __future__ import annotations

from dataclasses import dataclass

from avomni_lib.errors import AvomniError, pick


@dataclass(frozen=True, slots=True)
class Camera:
    """One named view: upstream's feature name and the short label that pictures carry."""

    name: str
    label: str
    fov_deg: int


FRONT_WIDE = Camera("camera_front_wide_120fov", "front wide", 120)
FRONT_TELE = Camera("camera_front_tele_30fov", "front tele", 30)
CROSS_LEFT = Camera("camera_cross_left_120fov", "cross left", 120)
CROSS_RIGHT = Camera("camera_cross_right_120fov", "cross right", 120)
REAR_LEFT = Camera("camera_rear_left_70fov", "rear left", 70)
REAR_RIGHT = Camera("camera_rear_right_70fov", "rear right", 70)
REAR_TELE = Camera("camera_rear_tele_30fov", "rear tele", 30)

CAMERAS = (FRONT_WIDE, FRONT_TELE, CROSS_LEFT, CROSS_RIGHT, REAR_LEFT, REAR_RIGHT, REAR_TELE)
BY_NAME = {camera.name: camera for camera in CAMERAS}


@dataclass(frozen=True)
class Grid:
    """Rows × cols of cameras, row by row; `None` is a black tile."""

    name: str
    rows: int
    cols: int
    cells: tuple[Camera | None, ...]

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The cameras in the order of their cells."""
        return tuple(cell for cell in self.cells if cell is not None)

    def cell_of(self, name: str) -> tuple[int, int]:
        """(row, col) of the camera called `name`."""
        for place, cell in enumerate(self.cells):
            if cell is not None and cell.name == name:
                return divmod(place, self.cols)
        raise AvomniError(
            f"camera {name!r} is not in the grid", where=f"vision.camera_setup: {self.name}"
        )


GRIDS = {
    "4-cam": Grid("4-cam", 2, 2, (FRONT_WIDE, FRONT_TELE, REAR_LEFT, REAR_RIGHT)),
    "7-cam": Grid(
        "7-cam",
        3,
        3,
        (
            CROSS_LEFT,
            FRONT_WIDE,
            CROSS_RIGHT,
            REAR_LEFT,
            FRONT_TELE,
            REAR_RIGHT,
            None,
            REAR_TELE,
            None,
        ),
    ),
}

# px: what a grid's height and width must be multiples of, by model.backbone: patch × merge.
SIDE_MULTIPLES = {"qwen3_vl": 32}


def grid(setup: str) -> Grid:
    """The grid of a camera setup.

    Raises:
        AvomniError: no setup has this name.
    """
    return pick(GRIDS, setup, "camera setup", "vision.camera_setup")
