"""Grid frames stored as JPEG: encoded once, all frames of a shard in one array, decoded on read.

jpeg.npy holds the encoded pictures one after another, `offsets` where each begins and where the
last one ends, and `crc32` a checksum of each: a flipped bit often decodes to a wrong picture
without an error.
"""

from __future__ import annotations

import concurrent.futures
import functools
import io
import os
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from avomni_lib import workers
from avomni_lib.errors import AvomniError

# These alone determine Pillow's output: baseline, standard Huffman tables, libjpeg's exact DCT.
QUALITY, SUBSAMPLING = 90, "4:2:0"
MAX_THREADS = 8


def encode(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Encode frames (N, H, W, 3) uint8 RGB into three arrays.

    Returns:
        jpeg (B,) uint8, offsets (N + 1,) int64 into it, crc32 (N,) uint32.
    """
    pictures = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
        pictures.append(file.getvalue())
    return {
        "jpeg": np.frombuffer(b"".join(pictures), np.uint8),
        "offsets": np.cumsum([0, *map(len, pictures)], dtype=np.int64),
        "crc32": np.array([zlib.crc32(picture) for picture in pictures], np.uint32),
    }


def frame_shape(picture: np.ndarray) -> tuple[int, int, int]:
    """(H, W, 3) of one encoded picture, without decoding it."""
    with Image.open(io.BytesIO(picture.data), formats=["JPEG"]) as image:
        return image.height, image.width, 3


class JpegFrames:
    """Encoded frames that can be indexed like an array (N, H, W, 3) uint8.

    An integer gives one frame, a slice or an array of integers several; the result is read-only,
    like that of a memory map. Several frames are decoded in parallel by threads; nothing is cached.

    Args:
        jpeg, offsets, crc32: As returned by `encode`.
        shape: (N, H, W, 3).
        describe: Index of a frame -> its name in error messages.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        jpeg: np.ndarray,
        offsets: np.ndarray,
        crc32: np.ndarray,
        shape: tuple[int, int, int, int],
        describe: Callable[[int], str] = "frame {}".format,
    ):
        self.shape, self._describe = tuple(shape), describe
        self._jpeg, self._offsets, self._crc32 = jpeg, offsets, crc32

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        """Decode the frames `key`: (H, W, 3) or (T, H, W, 3).

        Raises:
            AvomniError: a frame is damaged.
        """
        rows = np.arange(len(self))[key]
        frames = np.empty((*np.shape(rows), *self.shape[1:]), np.uint8)
        self.read(np.atleast_1d(rows), frames.reshape(-1, *self.shape[1:]))
        frames.flags.writeable = False
        return frames

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def read(self, rows: Sequence[int], out: np.ndarray) -> None:
        """Decode frames into `out`, (len(rows), H, W, 3) uint8.

        Raises:
            AvomniError: a frame is damaged.
        """
        if len(rows) == 1:
            self._decode(int(rows[0]), out[0])
        else:
            for _ in _threads(os.getpid()).map(self._decode, map(int, rows), out):
                pass

    def _decode(self, row: int, out: np.ndarray) -> None:
        start, stop = (int(offset) for offset in self._offsets[row : row + 2])
        picture = self._jpeg[start:stop].tobytes()
        if zlib.crc32(picture) != self._crc32[row]:
            raise self._damaged(row, "a frame of the cache is not what was written")
        try:
            with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
                decoded = np.asarray(image)
        except OSError as error:
            raise self._damaged(row, f"a frame of the cache cannot be decoded: {error}") from None
        if decoded.shape != out.shape:
            raise self._damaged(
                row, f"a frame of the cache is {decoded.shape}, it should be {out.shape}"
            )
        out[:] = decoded

    def _damaged(self, row: int, what: str) -> AvomniError:
        return AvomniError(
            what,
            where=self._describe(row),
            fix="python -m avomni_lib verify CACHE names all that is damaged; remove the shard and "
            "run 03_etl again",
        )


@functools.lru_cache(maxsize=1)
def _threads(process: int) -> concurrent.futures.ThreadPoolExecutor:
    """The decoding threads of a process; keyed by pid, as a forked process inherits none."""
    count = min(workers.num_cores(), MAX_THREADS)
    return concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="avomni-jpeg")
