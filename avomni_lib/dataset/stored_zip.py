"""Members of a zip read in place: a stored (not deflated) member is a byte range of the zip.

Format: PKWARE APPNOTE.TXT 6.3.10, 4.3.7 (local file header) and 4.3.12 (central directory).
"""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from avomni_lib.errors import AvomniError

LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_SIGNATURE = b"PK\x03\x04"
NUM_CACHED = 64


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`length` bytes of a file from `offset` on: a member of a zip, where it lies.

    Attributes:
        crc32: Of the content, where known.
    """

    path: Path
    offset: int
    length: int
    crc32: int | None = None

    def open(self) -> io.BufferedReader:
        """A seekable file of these bytes alone, to be closed by the caller."""
        return io.BufferedReader(_Part(self), 1 << 16)

    def read(self) -> bytes:
        """All of it.

        Raises:
            AvomniError: the file ends before, or the content does not have its checksum.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.length)
        if len(content) < self.length:
            raise AvomniError(
                f"cut short: {len(content):,} of {self.length:,} bytes", where=str(self.path)
            )
        if self.crc32 is not None and zlib.crc32(content) != self.crc32:
            raise AvomniError("damaged: its checksum is wrong", where=str(self.path))
        return content


class _Part(io.RawIOBase):
    """The raw reader below `ByteRange.open`."""

    def __init__(self, part: ByteRange):
        self._file = open(part.path, "rb", buffering=0)  # noqa: SIM115 (closed with this object)
        self._start, self._length, self._place = part.offset, part.length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"negative place {base + offset}")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:
        wanted = max(min(len(buffer), self._length - self._place), 0)
        self._file.seek(self._start + self._place)
        count = self._file.readinto(memoryview(buffer)[:wanted]) or 0
        self._place += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def members(path: Path) -> Mapping[str, zipfile.ZipInfo]:
    """The central directory of a zip: name -> entry. Kept while the file does not change.

    Raises:
        AvomniError: the file is missing, cut short or no zip.
    """
    try:
        state = path.stat()
    except FileNotFoundError:
        raise AvomniError(
            "file not found", where=str(path), fix="run 02_download: it fetches what is missing"
        ) from None
    return _members(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=NUM_CACHED)
def _members(path: Path, size: int, mtime_ns: int) -> Mapping[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return MappingProxyType({info.filename: info for info in archive.infolist()})
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise damaged(path, f"not a whole zip ({error})") from None


def member(path: Path, name: str) -> ByteRange:
    """Where a stored member lies.

    Raises:
        AvomniError: no such member, it is deflated, or its header is not where it should be.
    """
    info = members(path).get(name)
    if info is None:
        raise damaged(path, f"no member {name}")
    if info.compress_type != zipfile.ZIP_STORED:
        raise damaged(path, f"member {name} is compressed, not stored")
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or header[:4] != LOCAL_SIGNATURE:
        raise damaged(path, f"no local header of {name}")
    # The lengths in the local header count: its extra field may differ from the directory's.
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    offset = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if offset + info.file_size > path.stat().st_size:
        raise damaged(path, f"member {name} ends behind the file's end")
    return ByteRange(path, offset, info.file_size, info.CRC)


def damaged(path: Path, why: str) -> AvomniError:
    return AvomniError(
        f"damaged: {why}", where=str(path), fix="run 02_download: it fetches the file again"
    )
