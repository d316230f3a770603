"""Prints: perceptual hashes of grid frames, the same for the same picture however it was stored.

Each tile is made grey and its slowest waves are taken: the first 12 × 12 terms of its discrete
cosine transform without the mean. A bit says whether a term is positive, and a second bit, the
mask, whether the term is large enough for its sign to outlive another encoding. Two frames are
compared by the share of different bits among those that both masks let through. A black, foggy or
uniform picture has hardly any such bits: it proves nothing.

The print of N frames is (N, 2, words) uint64: bits and mask, 143 bits a camera in words of 64; 144
bytes a frame of four cameras. It is stored in the cache, so that the leak check reads no frame.

Sources: the hash by signs of low DCT terms, Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions" (2010), there with the terms' median for a threshold; the comparison under two
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

# Measured on rendered clips at 48 × 32 a tile. Re-encoded by JPEG at quality 60 or 30 or by H.264
# at crf 20, no frame differs in more than 0.5 % of the common bits, by H.264 at crf 30 in 6 %. Of
# 16 million pairs of frames from different drives through one town none differs in less than 16 %.
SIDE = 12  # terms along each axis of a tile
MARGIN = 0.25  # grey levels (of 255), rms over the tile, that a term must have for a sign
MAX_DIFFERENT = 0.10  # share of the common bits in which frames that agree may differ
# Share of all bits that must be common to prove anything. A drive rendered by day has 3/4 of them,
# one darkened to a quarter of its light just enough. With fewer, what is left is the sky
# over the road, which all drives have: with half as many, four frames in a row of different drives
# came as near as 6 %; with these, at any darkness, 16 %.
MIN_COMMON = 1 / 3
BITS = SIDE**2 - 1  # of a camera
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
WORD = 64
SIFTING_WORDS = 4  # of different drives, fewer than 1 in 300 pairs of frames pass them


def num_words(num_cameras: int) -> int:
    """Words of 64 bits in each half of a print."""
    return -(-BITS * num_cameras // WORD)


def least_common(num_cameras: int) -> int:
    """Common bits that prove something."""
    return math.ceil(MIN_COMMON * BITS * num_cameras)


def of_frames(frames: np.ndarray, grid: Grid, tile: tiling.Size) -> np.ndarray:
    """The prints of grid images: (N, 2, words) uint64.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        tile: (width, height) px.
    """
    # Grey blocks' means are enough for slow waves, at a fifth of the time.
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
    """(N, B) float terms -> (N, 2, words) uint64, filled up with zeros."""
    mask = np.abs(terms) >= MARGIN
    bits = np.stack([mask & (terms > 0), mask], axis=1)
    padded = np.pad(bits, ((0, 0), (0, 0), (0, -bits.shape[2] % WORD)))
    return np.packbits(padded, axis=2).view("<u8")


def tells(prints: np.ndarray, least: int) -> np.ndarray:
    """(N,) bool: enough texture to prove anything, of prints (N, 2, words)."""
    return np.bitwise_count(prints[:, 1]).sum(axis=1, dtype=int) >= least


def different(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each frame of one is from each of the other.

    Args:
        one, other: Prints (N, 2, words) and (M, 2, words).

    Returns:
        (N, M) the share of different bits among the common ones (0 where there is none), and
        (N, M) how many common ones there are.
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
    """(N, M) whether frames are the same picture, and their share of different bits.

    Pictures with too little texture do not agree.
    """
    share, num = different(one, other)
    return (share <= MAX_DIFFERENT) & (num >= least), share


def agreeing(one: np.ndarray, other: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one and of other that `agree`, at a fifth of its time where few do.

    Frames that differ in some words by more than they may in all are left out at once.
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
    """The slowest waves of each tile.

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
        # Down the columns first: what is left to weigh by colour is 12 rows high.
        columns = down @ pictures.reshape(len(frames), height, -1)
        grey = columns if frames.ndim == 3 else columns.reshape(-1, SIDE, width, 3) @ LUMA
        terms.append((grey @ across.T).reshape(len(frames), -1)[:, 1:])
    return np.stack(terms, axis=1)


@functools.lru_cache(maxsize=16)
def _waves(size: int) -> np.ndarray:
    """(terms, size) float32: products with them are amplitudes, whatever the size in pixels."""
    waves = np.zeros((max(SIDE, size), size), np.float32)  # a tile of fewer pixels has fewer waves
    waves[:size] = dct(np.eye(size), axis=0, norm="ortho") / np.sqrt(size)
    return waves[:SIDE]
