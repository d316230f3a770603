"""Perceptual hashes of frames: stable under encoding and size, unset without texture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from avomni_lib.dataset import cameras
from avomni_lib.etl.clip import fingerprints, tiling
from avomni_world.scene.render import picture
from avomni_world.scene.scenes import make_scene

GRID, TILE = cameras.grid("4-cam"), (48, 32)
LEAST = fingerprints.least_common(len(GRID.cameras))


@pytest.fixture(scope="module")
def views() -> np.ndarray:
    """(6, 4, 128, 192, 3) uint8: the 4 cameras in six drives, four times a tile's size."""
    scenes = [make_scene(seed, town, 1.0) for seed in range(3) for town in ("meadow", "harbour")]
    return np.stack([picture(scene, 0.5, 192, 128, GRID.cameras) for scene in scenes])


def grids(views: np.ndarray, tile=TILE) -> np.ndarray:
    """Grid images with tiles of any size out of views (N, 4, height, width, 3)."""
    small = np.stack([[resized(view, tile) for view in drive_views] for drive_views in views])
    return tiling.compose(
        {camera.name: small[:, idx] for idx, camera in enumerate(GRID.cameras)}, GRID
    )


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def by_jpeg(frames: np.ndarray, quality: int) -> np.ndarray:
    decoded = []
    for frame in frames:
        Image.fromarray(frame).save(file := io.BytesIO(), "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    return np.stack(decoded)


def prints_of(frames: np.ndarray, tile=TILE) -> np.ndarray:
    return fingerprints.of_frames(frames, GRID, tile)


def test_spectra_match_scipys_dct_of_the_grey_image(views):
    frames = grids(views)
    terms = fingerprints.spectra(frames, GRID, TILE)
    for idx, camera in enumerate(GRID.cameras):
        grey = tiling.tile_of(frames, GRID, TILE, camera.name) @ fingerprints.LUMA
        whole = dctn(grey, axes=(1, 2), norm="ortho") / np.sqrt(TILE[0] * TILE[1])
        expected = whole[:, :12, :12].reshape(len(frames), -1)[:, 1:]
        assert terms[:, idx] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("quality", [90, 60, 30])
def test_prints_agree_after_jpeg_encoding(views, quality):
    frames = grids(views)
    one, other = prints_of(frames), prints_of(by_jpeg(frames, quality))
    share, num = map(np.diagonal, fingerprints.different(one, other))
    assert share.max() <= 0.02 and num.min() > 1.5 * LEAST
    assert np.diagonal(fingerprints.agree(one, other, LEAST)[0]).all()


@pytest.mark.parametrize("tile", [(44, 30), (64, 40), (96, 64), (192, 128)])
def test_prints_agree_at_another_size(views, tile):
    one, other = prints_of(grids(views)), prints_of(grids(views, tile), tile)
    assert np.diagonal(fingerprints.different(one, other)[0]).max() <= 0.05
    assert np.diagonal(fingerprints.agree(one, other, LEAST)[0]).all()


def test_prints_of_different_drives_differ(views):
    hashes = prints_of(grids(views))
    share, _ = fingerprints.different(hashes, hashes)
    others = share[~np.eye(len(views), dtype=bool)]
    assert others.min() > 2 * fingerprints.MAX_DIFFERENT
    assert np.diagonal(share).max() == 0


def sky_over_road(frames: np.ndarray) -> np.ndarray:
    """Every tile bright in its upper half and dark in its lower half."""
    rows = np.where(np.arange(frames.shape[1]) % TILE[1] < TILE[1] // 2, 150, 80)
    return np.broadcast_to(rows[:, None, None], frames.shape)


BARE = {
    "black": np.zeros_like,
    "uniform": lambda frames: np.full_like(frames, 90),
    "fog": lambda frames: 200 + (frames - frames.mean()) * 0.02,
    "night": lambda frames: frames * 0.02,
    "sky over road": sky_over_road,
}


@pytest.mark.parametrize("kind", BARE)
def test_frame_without_texture_matches_nothing(views, kind):
    bare = prints_of(BARE[kind](grids(views).astype(float)).clip(0, 255).astype(np.uint8))
    assert not fingerprints.has_texture(bare, LEAST).any()
    assert not fingerprints.agree(bare, bare, LEAST)[0].any()
    assert fingerprints.has_texture(prints_of(grids(views)), LEAST).all()


def test_noise_in_a_dark_frame_is_no_texture():
    """Sensor noise of 4 grey levels over black is 0.1 in each of a tile's 1,536 terms."""
    dice = np.random.default_rng(0)
    dark = (8 + dice.normal(0, 4, (3, 64, 96, 3))).clip(0, 255).astype(np.uint8)
    assert not fingerprints.has_texture(prints_of(dark), LEAST).any()


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), num=st.integers(1, 200))
def test_difference_is_the_share_of_bits_set_in_both_masks(seed, num):
    dice = np.random.default_rng(seed)
    bits, mask = dice.random((2, 2, 3, num)) < 0.5
    one, other = (fingerprints.pack(np.where(bits[i], 1, -1) * mask[i]) for i in range(2))
    share, common = fingerprints.different(one, other)
    for row, column in np.ndindex(3, 3):
        both = mask[0, row] & mask[1, column]
        assert common[row, column] == both.sum()
        unlike = (bits[0, row] != bits[1, column]) & both
        assert share[row, column] == pytest.approx(unlike.sum() / max(both.sum(), 1))
    agreed, _ = fingerprints.agree(one, other, 2)
    assert (
        np.argwhere(agreed).tolist() == np.stack(fingerprints.agreeing(one, other, 2), 1).tolist()
    )
    least = int(mask[0].sum(axis=-1).max())
    assert fingerprints.has_texture(one, least).tolist() == (mask[0].sum(axis=-1) >= least).tolist()


def test_black_cells_of_a_grid_have_no_spectrum():
    grid = cameras.grid("7-cam")
    assert fingerprints.spectra(np.zeros((2, 96, 144, 3), np.uint8), grid, TILE).shape == (
        2,
        7,
        143,
    )


@pytest.mark.parametrize("tile", [TILE, (96, 64), (192, 128), (90, 50)])
def test_prints_from_block_means_match_the_full_spectra(views, tile):
    """`of_frames` computes on small grey images, the reference on full tiles."""
    frames = grids(views, tile)
    whole = fingerprints.pack(fingerprints.spectra(frames, GRID, tile).reshape(len(frames), -1))
    share, num = map(np.diagonal, fingerprints.different(prints_of(frames, tile), whole))
    assert share.max() <= 0.02 and num.min() > 1.5 * LEAST


def test_prints_do_not_depend_on_neighbouring_frames():
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), np.uint8)
    whole = prints_of(frames)
    assert whole.shape == (20, 2, fingerprints.num_words(4)) and whole.dtype == np.uint64
    assert np.array_equal(whole[3:5], prints_of(frames[3:5]))
