"""Pixels are placed by the fit, and tiles by the grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import tiling

sides = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
tile_sides = st.tuples(st.integers(8, 700), st.integers(8, 700))
setups = st.sampled_from(sorted(cameras.GRIDS))


@given(picture=sides, tile=tile_sides, fit=st.sampled_from(tiling.FITS))
def test_placement_is_within_the_image_and_the_tile(picture, tile, fit):
    placement = tiling.fit_tile(picture, tile, fit)
    for axis in (0, 1):
        assert placement.size[axis] == min(placement.resized[axis], tile[axis]) >= 1
        for place, room in ((placement.source, placement.resized), (placement.target, tile)):
            before = place[axis]
            after = room[axis] - before - placement.size[axis]
            assert before >= 0 and after >= 0
            assert after - before in (0, 1), "centred, with an odd pixel at the end"


@given(picture=sides, tile=tile_sides)
def test_letterbox_shows_the_whole_image_at_its_aspect_ratio(picture, tile):
    placement = tiling.fit_tile(picture, tile, "letterbox")
    assert placement.size == placement.resized and placement.source == (0, 0)
    assert any(a == b for a, b in zip(placement.resized, tile, strict=True))
    assert_shape_kept(picture, placement.resized)


@given(picture=sides, tile=tile_sides)
def test_crop_fills_the_tile_at_the_aspect_ratio(picture, tile):
    placement = tiling.fit_tile(picture, tile, "crop")
    assert placement.size == tile and placement.target == (0, 0)
    assert any(a == b for a, b in zip(placement.resized, tile, strict=True))
    assert_shape_kept(picture, placement.resized)


@given(picture=sides, tile=tile_sides)
def test_stretch_fills_the_tile_with_the_whole_image(picture, tile):
    assert tiling.fit_tile(picture, tile, "stretch") == tiling.Placement(
        tile, tile, (0, 0), (0, 0), tile
    )


def assert_shape_kept(picture, resized):
    """Each side differs from the aspect ratio by at most rounding, and is at least one pixel."""
    scale = max(resized[0] / picture[0], resized[1] / picture[1])
    others = min(resized[0] / picture[0], resized[1] / picture[1])
    exact = [scale, others]
    assert any(
        all(
            abs(r - max(s * side, 1)) <= 0.5 + 1e-6
            for r, side in zip(resized, picture, strict=True)
        )
        for s in exact
    )


@given(picture=st.tuples(st.integers(2, 60), st.integers(2, 60)), tile=tile_sides)
def test_placed_pixels_are_copied_and_the_rest_is_black(picture, tile):
    tile = (tile[0] % 50 + 8, tile[1] % 50 + 8)
    for fit in tiling.FITS:
        placement = tiling.fit_tile(picture, tile, fit)
        width, height = placement.resized
        images = np.random.default_rng(0).integers(1, 256, (2, height, width, 3)).astype(np.uint8)
        tiles = np.full((2, tile[1], tile[0], 3), 9, np.uint8)
        assert placement.place(images, tiles) is tiles
        assert np.array_equal(tiles, placement.place(images))
        (x, y), (left, top), (w, h) = placement.source, placement.target, placement.size
        shown = tiles[:, top : top + h, left : left + w]
        assert np.array_equal(shown, images[:, y : y + h, x : x + w])
        assert tiles.astype(int).sum() == shown.astype(int).sum()


def test_full_hd_frame_in_the_default_tile():
    placement = tiling.fit_tile((1920, 1080), (448, 256), "letterbox")
    assert placement.resized == (448, 252) and placement.target == (0, 2)
    placement = tiling.fit_tile((1920, 1080), (448, 256), "crop")
    assert placement.resized == (455, 256) and placement.source == (3, 0)


@given(setup=setups, tile=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_each_camera_is_in_its_own_cell(setup, tile):
    grid = cameras.grid(setup)
    tiles = {
        camera.name: np.full((1, tile[1], tile[0], 3), n + 1, np.uint8)
        for n, camera in enumerate(grid.cameras)
    }
    images = tiling.compose(tiles, grid)
    width, height = tiling.grid_size(grid, tile)
    assert images.shape == (1, height, width, 3)
    for number, camera in enumerate(grid.cells):
        row, col = divmod(number, grid.cols)
        cell = images[0, row * tile[1] : (row + 1) * tile[1], col * tile[0] : (col + 1) * tile[0]]
        assert (cell == (0 if camera is None else grid.cameras.index(camera) + 1)).all()


def test_missing_or_differing_tiles_are_refused():
    grid = cameras.grid("4-cam")
    tiles = {camera.name: np.zeros((2, 8, 8, 3), np.uint8) for camera in grid.cameras}
    with pytest.raises(AvomniError, match="no tiles of camera_rear_left_70fov"):
        tiling.compose({n: t for n, t in tiles.items() if n != cameras.REAR_LEFT.name}, grid)
    with pytest.raises(AvomniError, match="different shapes"):
        tiling.compose(tiles | {cameras.REAR_LEFT.name: np.zeros((2, 8, 9, 3), np.uint8)}, grid)


def test_unknown_fit_and_wrong_sizes_are_refused():
    with pytest.raises(AvomniError, match="unknown fit 'pad'"):
        tiling.fit_tile((10, 10), (8, 8), "pad")
    with pytest.raises(AvomniError, match="does not fit"):
        tiling.fit_tile((0, 10), (8, 8), "crop")
    with pytest.raises(AvomniError, match="images of 9×8 px, expected 8×8"):
        tiling.fit_tile((10, 10), (8, 8), "crop").place(np.zeros((1, 8, 9, 3), np.uint8))
