"""Prints: perceptual hashes of grid frames, which survive re-encoding.

Each tile is converted to grey, and the lowest frequencies are taken: the first 12 × 12 terms of its
discrete cosine transform without the mean. One bit per term says whether it is positive, and a
second one, the mask, whether it is large enough for its sign to survive another encoding. Two
frames are compared by the share of differing bits among those set in both masks. A black, foggy or
uniform picture has hardly any such bits and is not comparable.

The print of N frames is (N, 2, words) uint64: bits and mask, 143 bits per camera in words of 64;
144 bytes per frame of four cameras. It is stored in the cache, so that the leak check reads no
frames.

Sources: the hash by signs of low DCT terms, Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions" (2010), which uses the terms' median as threshold; the comparison under two
masks, Daugman, "How Iris Recognition Works" (2004).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image
from scipy.fft import dct

from avomni_lib.dataset.cameras import Grid
from avomni_lib.etl.clip import tiling

# Measured on rendered clips with tiles of 48 × 32. After re-encoding as JPEG of quality 60 or 30 or
# as H.264 at crf 20, at most 0.5 % of the common bits differ; at crf 30, 6 %. Among 16 million
# pairs of frames from different drives through one town, at least 16 % differ.
SIDE = 12  # terms along each axis of a tile
MARGIN = 0.25  # minimum amplitude of a term for the mask: grey levels (of 255), rms over the tile
MAX_DIFFERENT = 0.10  # largest share of differing common bits at which frames agree
# Minimum share of common bits. A drive rendered by day has 3/4 of all bits, one darkened to a
# quarter of its light just enough. With fewer bits, mostly the sky over the road is compared, which
# all drives have: with half as many, four consecutive frames of different drives differed in only
# 6 %; with this many, at any darkness, in 16 %.
MIN_COMMON = 1 / 3
BITS = SIDE**2 - 1  # per camera
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
WORD = 64
SIFTING_WORDS = 4  # compared first; fewer than 1 in 300 pairs of frames of different drives pass


def num_words(num_cameras: int) -> int:
    """Words of 64 bits in each half of a print."""
    return -(-BITS * num_cameras // WORD)


def least_common(num_cameras: int) -> int:
    """Minimum number of common bits for a comparison."""
    return math.ceil(MIN_COMMON * BITS * num_cameras)


def of_frames(frames: np.ndarray, grid: Grid, tile: tiling.Size) -> np.ndarray:
    """The prints of grid images: (N, 2, words) uint64.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        tile: (width, height) px.
    """
    # Means over blocks of grey pixels suffice for low frequencies, at a fifth of the time.
    side = min(tile)
    scale = next(
        by
        for by in (8, 4, 2, 1)
        if by == 1 or (not any(s % by for s in tile) and side // by >= 2 * SIDE)
    )
    terms = []
    for frame in frames:
        if scale > 1:
            frame = np.asarray(Image.fromarray(frame).convert("L").reduce(scale))
        terms.append(spectra(frame[None], grid, (tile[0] // scale, tile[1] // scale))[0])
    return pack(np.stack(terms).reshape(len(frames), -1))


def pack(terms: np.ndarray) -> np.ndarray:
    """(N, B) float terms -> (N, 2, words) uint64, zero-padded."""
    mask = np.abs(terms) >= MARGIN
    bits = np.stack([mask & (terms > 0), mask], axis=1)
    padded = np.pad(bits, ((0, 0), (0, 0), (0, -bits.shape[2] % WORD)))
    return np.packbits(padded, axis=2).view("<u8")


def has_texture(prints: np.ndarray, least: int) -> np.ndarray:
    """(N,) bool: whether prints (N, 2, words) have enough texture to be compared."""
    return np.bitwise_count(prints[:, 1]).sum(axis=1, dtype=int) >= least


def different(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare all pairs of frames.

    Args:
        one, other: Prints (N, 2, words) and (M, 2, words).

    Returns:
        (N, M) share of differing bits among the common ones (0 if there are none), and (N, M)
        number of common bits.
    """
    num, unlike = np.zeros((2, len(one), len(other)), np.uint16)
    for (bits, mask), (other_bits, other_mask) in zip(
        one.transpose(2, 1, 0), other.transpose(2, 1, 0), strict=True
    ):
        common = mask[:, None] & other_mask
        num += np.bitwise_count(common)
        unlike += np.bitwise_count((bits[:, None] ^ other_bits) & common)
    return unlike / np.maximum(num, 1), num


def agree(one: np.ndarray, other: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, M) bool whether two frames show the same picture, and their share of differing bits.

    Pictures with too little texture never agree.
    """
    share, num = different(one, other)
    return (share <= MAX_DIFFERENT) & (num >= least), share


def agreeing(one: np.ndarray, other: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (into one, into other) of the pairs that `agree`; five times faster if few do.

    Pairs are rejected early if a few of their words already differ by more than is allowed in all.
    """
    num_bits = np.bitwise_count(one[:, 1]).sum(axis=0, dtype=int)
    allowed = np.ceil(MAX_DIFFERENT * np.bitwise_count(one[:, 1]).sum(axis=1, dtype=int))
    unlike = np.zeros((len(one), len(other)), np.uint16)
    common, differing = np.empty((2, len(one), len(other)), np.uint64)
    for word in np.argsort(-num_bits)[:SIFTING_WORDS]:
        bits, mask = np.ascontiguousarray(other[:, :, word].T)
        np.bitwise_and(one[:, None, 1, word], mask, out=common)
        np.bitwise_xor(one[:, None, 0, word], bits, out=differing)
        differing &= common
        unlike += np.bitwise_count(differing)
    passed = np.flatnonzero(unlike <= allowed.astype(np.uint16)[:, None])
    rows, columns = np.divmod(passed, len(other))
    first, second = one[rows], other[columns]
    mask = first[:, 1] & second[:, 1]
    num = np.bitwise_count(mask).sum(axis=1, dtype=int)
    left = np.bitwise_count((first[:, 0] ^ second[:, 0]) & mask).sum(axis=1, dtype=int)
    alike = (left / np.maximum(num, 1) <= MAX_DIFFERENT) & (num >= least)
    return rows[alike], columns[alike]


def spectra(frames: np.ndarray, grid: Grid, tile: tiling.Size) -> np.ndarray:
    """The lowest frequencies of each tile.

    Args:
        frames: (N, H, W, 3) uint8 RGB or (N, H, W) uint8 grey, grid images.
        tile: (width, height) px.

    Returns:
        (N, cameras, terms) float32, grey levels rms over the tile.
    """
    terms = []
    for camera in grid.cameras:
        width, height = tiling.tile_size(grid, tile, camera.name)
        down, across = _waves(height), _waves(width)
        pictures = tiling.tile_of(frames, grid, tile, camera.name).astype(np.float32)
        # Transform columns first: the colours of only 12 rows then remain to be weighted.
        columns = down @ pictures.reshape(len(frames), height, -1)
        grey = columns if frames.ndim == 3 else columns.reshape(-1, SIDE, width, 3) @ LUMA
        terms.append((grey @ across.T).reshape(len(frames), -1)[:, 1:])
    return np.stack(terms, axis=1)


@functools.lru_cache(maxsize=16)
def _waves(size: int) -> np.ndarray:
    """(terms, size) float32 basis; products with it are amplitudes, independent of the size."""
    waves = np.zeros((max(SIDE, size), size), np.float32)  # small tiles have fewer frequencies
    waves[:size] = dct(np.eye(size), axis=0, norm="ortho") / np.sqrt(size)
    return waves[:SIDE]
