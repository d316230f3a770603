"""Places camera pictures in tiles, and tiles in the grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avomni_lib.dataset.cameras import Grid
from avomni_lib.errors import AvomniError, pick

Size = tuple[int, int]
FITS = ("letterbox", "crop", "stretch")


@dataclass(frozen=True)
class Placement:
    """How a picture fills its tile: it is resized as a whole, then a part is copied.

    Attributes:
        resized: (width, height) px that the whole picture is scaled to.
        tile: (width, height) px.
        source: (x, y) of the copied part in the resized picture.
        target: (x, y) of the copied part in the tile.
        size: (width, height) of the copied part.
    """

    resized: Size
    tile: Size
    source: tuple[int, int]
    target: tuple[int, int]
    size: Size

    def place(self, images: np.ndarray, tiles: np.ndarray | None = None) -> np.ndarray:
        """Tiles (T, h, w, 3) uint8 of resized images (T, height, width, 3); the rest is black.

        If given, `tiles` (such as a view of the grid) is filled and returned.
        """
        if images.shape[1:3] != self.resized[::-1]:
            raise AvomniError(
                f"images of {images.shape[2]}×{images.shape[1]} px, expected "
                f"{self.resized[0]}×{self.resized[1]}"
            )
        if tiles is None:
            tiles = np.empty((len(images), self.tile[1], self.tile[0], 3), dtype=np.uint8)
        (x, y), (left, top), (width, height) = self.source, self.target, self.size
        if self.size != self.tile:
            tiles[:] = 0
        tiles[:, top : top + height, left : left + width] = images[:, y : y + height, x : x + width]
        return tiles

    def move(self, pixels: np.ndarray, picture: Size) -> np.ndarray:
        """Map positions (N, 2) px in a picture of (width, height) px to positions in its tile."""
        scale = np.array(self.resized) / np.array(picture)
        moved: np.ndarray = pixels * scale - np.array(self.source) + np.array(self.target) - 0.5
        return moved


def fit_tile(picture: Size, tile: Size, fit: str) -> Placement:
    """The placement of a picture of (width, height) px in a tile of (width, height) px.

    `letterbox` keeps the whole picture and its aspect ratio, centred between black bars; `crop`
    keeps the aspect ratio and fills the tile, cutting off both sides equally; `stretch` keeps the
    whole picture and fills the tile.

    Raises:
        AvomniError: an unknown fit, or a size below 1 px.
    """
    if min(*picture, *tile) < 1:
        raise AvomniError(f"a picture of {picture} px does not fit a tile of {tile} px")
    if fit == "stretch":
        return Placement(tile, tile, (0, 0), (0, 0), tile)
    pick(dict.fromkeys(FITS), fit, "fit", "processing.fit")
    scales = (tile[0] / picture[0], tile[1] / picture[1])
    scale = min(scales) if fit == "letterbox" else max(scales)
    resized = tuple(max(round(side * scale), 1) for side in picture)
    # Despite rounding, the picture must fit into the tile (letterbox) or cover it (crop).
    bound = min if fit == "letterbox" else max
    resized = (bound(resized[0], tile[0]), bound(resized[1], tile[1]))
    size = (min(resized[0], tile[0]), min(resized[1], tile[1]))
    source = ((resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2)
    target = ((tile[0] - size[0]) // 2, (tile[1] - size[1]) // 2)
    return Placement(resized, tile, source, target, size)


def grid_size(grid: Grid, tile: Size) -> Size:
    """(width, height) px of the composed grid."""
    return grid.cols * tile[0], grid.rows * tile[1]


def tile_size(grid: Grid, tile: Size, name: str) -> Size:
    """(width, height) px of one camera's tile, which may span several cells.

    Args:
        tile: (width, height) px of a cell.
    """
    rows, cols = grid.span_of(name)
    return cols * tile[0], rows * tile[1]


def tile_of(images: np.ndarray, grid: Grid, tile: Size, name: str) -> np.ndarray:
    """View of one camera's tile in grid images (T, H, W, 3)."""
    row, col = grid.cell_of(name)
    width, height = tile_size(grid, tile, name)
    top, left = row * tile[1], col * tile[0]
    return images[:, top : top + height, left : left + width]


def compose(tiles: Mapping[str, np.ndarray], grid: Grid) -> np.ndarray:
    """Grid images (T, rows · h, cols · w, 3) uint8 of one (T, h, w, 3) array per camera.

    Cells without a camera are black. The array of a camera that spans several cells is larger by
    its number of rows and columns.

    Raises:
        AvomniError: a camera of the grid has no tiles, or they differ in shape.
    """
    missing = [camera.name for camera in grid.cameras if camera.name not in tiles]
    if missing:
        raise AvomniError(f"no tiles of {', '.join(missing)}", where=f"grid {grid.name}")
    shapes = set()
    for camera in grid.cameras:
        count, height, width, colours = tiles[camera.name].shape
        rows, cols = grid.span_of(camera.name)
        shapes.add((count, height / rows, width / cols, colours))
    if len(shapes) > 1:
        raise AvomniError(f"tiles of different shapes: {sorted(shapes)}", where=f"grid {grid.name}")
    count, height, width = map(int, list(shapes.pop())[:3])
    images = np.zeros((count, grid.rows * height, grid.cols * width, 3), dtype=np.uint8)
    for camera in grid.cameras:
        tile_of(images, grid, (width, height), camera.name)[:] = tiles[camera.name]
    return images
