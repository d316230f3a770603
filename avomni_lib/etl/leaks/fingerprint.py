"""Perceptual hashes of the cache's frames: the same for the same picture, however it was stored.

Each tile is made grey and its slowest waves are taken: the first 12 × 12 terms of its discrete
cosine transform without the mean. A bit says whether a term is positive, and a second bit, the
mask, whether the term is large enough for its sign to outlive another encoding. Two frames are
compared by the share of different bits among those that both masks let through. A black, foggy or
uniform picture has hardly any such bits: it proves nothing, and says so.

Sources: the hash by signs of low DCT terms, Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions" (2010), there with the terms' median for a threshold; the comparison under two
masks, Daugman, "How Iris Recognition Works" (2004).
"""

from __future__ import annotations

import concurrent.futures
import functools
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dct

from avomni_lib import workers
from avomni_lib.dataset.cameras import Grid
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache, CachedClip, Shard
from avomni_lib.etl.clip import tiling
from avomni_lib.plan import Bar

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
FRAMES_AT_A_TIME = 8
WORD = 64


@dataclass(frozen=True)
class Prints:
    """Hashes of N frames, 143 bits a camera in words of 64.

    Attributes:
        bits: (N, words) uint64, set where a term is positive.
        mask: (N, words) uint64, set where a term's sign means something.
        least: Common bits that prove something.
    """

    bits: np.ndarray
    mask: np.ndarray
    least: int

    @classmethod
    def of_terms(cls, terms: np.ndarray) -> Prints:
        """The hashes of terms (N, cameras, K), as `spectra` returns them."""
        flat, least = terms.reshape(len(terms), -1), math.ceil(MIN_COMMON * BITS * terms.shape[1])
        return cls(_packed(flat > 0), _packed(np.abs(flat) >= MARGIN), least)

    @classmethod
    def joined(cls, parts: Sequence[Prints]) -> Prints:
        """The frames of several, one after another."""
        bits, mask = (
            np.concatenate([getattr(part, n) for part in parts]) for n in ("bits", "mask")
        )
        return cls(bits, mask, parts[0].least)

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, rows: Any) -> Prints:
        return Prints(self.bits[rows], self.mask[rows], self.least)

    @property
    def num_bits(self) -> np.ndarray:
        """(N,) int64 how many bits of each mean something."""
        return np.bitwise_count(self.mask).sum(axis=-1, dtype=np.int64)

    @property
    def tells(self) -> np.ndarray:
        """(N,) bool: enough texture to prove anything."""
        return self.num_bits >= self.least


def different(one: Prints, other: Prints) -> tuple[np.ndarray, np.ndarray]:
    """How far frames are apart; the arrays of both are broadcast against each other.

    Returns:
        The share of different bits among the common ones (0 where there is none), and how many
        common ones there are.
    """
    common = one.mask & other.mask
    num = np.bitwise_count(common).sum(axis=-1, dtype=np.int64)
    unlike = np.bitwise_count((one.bits ^ other.bits) & common).sum(axis=-1, dtype=np.int64)
    return unlike / np.maximum(num, 1), num


def agree(one: Prints, other: Prints) -> tuple[np.ndarray, np.ndarray]:
    """Whether frames are the same picture, and their share of different bits.

    Pictures with too little texture do not agree.
    """
    share, num = different(one, other)
    return (share <= MAX_DIFFERENT) & (num >= one.least), share


def spectra(frames: np.ndarray, grid: Grid, tile: tiling.Size) -> np.ndarray:
    """The slowest waves of each tile.

    Args:
        frames: (N, H, W, 3) uint8 RGB or (N, H, W) uint8 grey, grid images.
        tile: (width, height) px.

    Returns:
        (N, cameras, terms) float32, grey levels rms over the tile.
    """
    width, height = tile
    down, across = _waves(height), _waves(width)
    found = []
    for camera in grid.cameras:
        pictures = tiling.tile_of(frames, grid, tile, camera.name).astype(np.float32)
        # Down the columns first: what is left to weigh by colour is 12 rows high.
        columns = down @ pictures.reshape(len(frames), height, -1)
        grey = columns if frames.ndim == 3 else columns.reshape(-1, len(down), width, 3) @ LUMA
        found.append((grey @ across.T).reshape(len(frames), -1)[:, 1:])
    return np.stack(found, axis=1)


def of_frames(frames: np.ndarray, grid: Grid, tile: tiling.Size) -> Prints:
    """The hashes of grid images; arguments as `spectra` takes them."""
    return Prints.of_terms(spectra(frames, grid, tile))


def of_clip(cache: Cache, clip: CachedClip) -> Prints:
    """The hashes of a clip's frames, in their order.

    Raises:
        AvomniError: a frame cannot be decoded, or a file of the cache is cut short.
    """
    parts = [
        of_frames(frames, cache.grid, tile)
        for frames, tile in _pictures(cache.shards[clip.shard], clip, cache.tile)
    ]
    return Prints.joined(parts)


def of_cache(cache: Cache, progress: type[Bar] = Bar) -> list[Prints]:
    """The hashes of every clip, in the order of `cache.clips`; several threads work.

    Args:
        progress: One unit a clip.

    Raises:
        AvomniError: as `of_clip`.
    """
    found = []
    with (
        progress(total=len(cache.clips), unit="clip", label="fingerprints") as bar,
        concurrent.futures.ThreadPoolExecutor(workers.num_cores()) as threads,
    ):
        for prints in threads.map(functools.partial(of_clip, cache), cache.clips):
            found.append(prints)
            bar.update(1)
    return found


@functools.lru_cache(maxsize=16)
def _waves(size: int) -> np.ndarray:
    """(terms, size) float32: products with them are amplitudes, whatever the size in pixels."""
    return (dct(np.eye(size), axis=0, norm="ortho")[:SIDE] / np.sqrt(size)).astype(np.float32)


def _packed(bits: np.ndarray) -> np.ndarray:
    """(N, B) bool -> (N, words) uint64, filled up with zeros."""
    spare = -bits.shape[1] % WORD
    return np.packbits(np.pad(bits, ((0, 0), (0, spare))), axis=1).view(np.uint64)


def _pictures(
    shard: Shard, clip: CachedClip, tile: tiling.Size
) -> Iterator[tuple[np.ndarray, tiling.Size]]:
    """A clip's grid images, some at a time, and the size of their tiles."""
    if shard.storage == "raw":
        for start in range(clip.start, clip.stop, FRAMES_AT_A_TIME):
            yield shard.frames[start : min(start + FRAMES_AT_A_TIME, clip.stop)], tile
        return
    # A JPEG is decoded grey and at 1/8 of its size in a fraction of the time: for slow waves the
    # blocks' means are enough.
    scale = next(by for by in (8, 4, 2, 1) if _can_shrink(tile, by))
    stored = shard.arrays_of(clip)
    offsets, pictures = stored["offsets"].tolist(), []
    for number in range(len(clip)):
        picture = stored["jpeg"][offsets[number] : offsets[number + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
                image.draft("L", (image.width // scale, image.height // scale))
                pictures.append(np.asarray(image.convert("L")))
        except OSError as error:
            raise AvomniError(
                f"a frame of the cache cannot be decoded: {error}",
                where=shard.describe(clip.start + number),
                fix="python -m avomni_lib verify CACHE names all that is damaged; remove the shard "
                "and run 03_etl again",
            ) from None
    yield np.stack(pictures), (tile[0] // scale, tile[1] // scale)


def _can_shrink(tile: tiling.Size, by: int) -> bool:
    return by == 1 or all(side % by == 0 and side // by >= 2 * SIDE for side in tile)
