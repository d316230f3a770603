"""The .npy files of the cache: written piece by piece, read in rows past any mapping.

A window of 22 MB took 1.9 ms that way where the file had just been written, as fast as memory
copies memory; 3.2 ms where the system had read it from the disk before, and so keeps it in smaller
pieces; 20 ms from the disk. Copied out of a mapping it took 2.8 to 6 ms, and 28 ms. Hints to the
kernel did not make it quicker: it sees how much is asked for.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.errors import AvomniError

BUILD_AGAIN = "run 03_etl again; it keeps what is whole"


def state(path: Path, num_bytes: int) -> os.stat_result:
    """A file's state if it has its bytes: to touch a mapping past the end kills the process.

    Raises:
        AvomniError: it is missing, or has not the size that its header says.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        what = "is missing"
    else:
        if found.st_size == num_bytes:
            return found
        what = f"has {found.st_size:,} of {num_bytes:,} bytes"
    raise AvomniError(f"an array of the cache {what}", where=str(path), fix=BUILD_AGAIN)


def read(path: Path, said: Mapping[str, Any], start: int, out: np.ndarray) -> None:
    """Read the rows from `start` on into `out`, which says how many.

    The file is opened for this reading alone, which costs microseconds: nothing stays open, however
    many shards there are, and threads and processes share nothing. Other threads run meanwhile.

    Args:
        path: A .npy file.
        said: Its entry in the shard's header: shape and bytes.
        start: The first row.
        out: C-contiguous, of the file's dtype. Where it does not start at a multiple of 64 bytes,
            as NumPy's own large arrays do not and PyTorch's do, the copy takes up to twice as long.

    Raises:
        AvomniError: the file is missing, cut short, or the system cannot read it.
    """
    state(path, said["bytes"])
    num_rows, row_bytes = said["shape"][0], out[0].nbytes
    # The rows end where the file does; before them lies the .npy header.
    offset = said["bytes"] - (num_rows - start) * row_bytes
    left = memoryview(out).cast("B")
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while left:  # one call gives 2 GiB at most
                count = os.preadv(file, [left], offset)
                if count == 0:
                    raise OSError("it ends too early")
                left, offset = left[count:], offset + count
        finally:
            os.close(file)
    except OSError as error:
        raise AvomniError(
            f"an array of the cache cannot be read: {error}", where=str(path), fix=BUILD_AGAIN
        ) from error


def write(
    path: Path, dtype: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]
) -> dict[str, Any]:
    """Write an array (N, ...) whose rows come in pieces, whole or not at all.

    Returns:
        dtype, shape, bytes and sha256 of the file.

    Raises:
        AvomniError: no room on the disk.
    """
    digest, head = hashlib.sha256(), io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, fields)
    # A view without rows cannot be cast to bytes.
    rows = (np.ascontiguousarray(p, dtype=dtype).data.cast("B") for p in pieces if len(p))
    with files.write_whole(path) as file:
        for block in itertools.chain([head.getvalue()], rows):
            digest.update(block)
            file.write(block)
        size = file.tell()
    return {"dtype": dtype, "shape": list(shape), "bytes": size, "sha256": digest.hexdigest()}
