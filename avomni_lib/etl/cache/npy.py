"""A .npy file that is larger than memory: written piece by piece and hashed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from avomni_lib import files


def write(
    path: Path, dtype: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]
) -> dict[str, Any]:
    """Write an array (N, ...) whose rows come in pieces, whole or not at all.

    Returns:
        dtype, shape, bytes and sha256 of the file.

    Raises:
        AvomniError: no room on the disk.
    """
    digest = hashlib.sha256()
    head = {"descr": dtype, "fortran_order": False, "shape": shape}
    with files.write_whole(path) as file:
        np.lib.format.write_array_header_1_0(_Hashing(file, digest), head)
        for piece in filter(len, pieces):  # a view without rows cannot be cast to bytes
            _Hashing(file, digest).write(np.ascontiguousarray(piece, dtype=dtype).data.cast("B"))
        size = file.tell()
    return {"dtype": dtype, "shape": list(shape), "bytes": size, "sha256": digest.hexdigest()}


class _Hashing:
    """Writes through to a file and hashes what it writes."""

    def __init__(self, file: IO[bytes], digest: Any):
        self.file, self.digest = file, digest

    def write(self, data) -> None:
        self.digest.update(data)
        self.file.write(data)
