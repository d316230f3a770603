"""Members of a zip read in place: a stored (not deflated) member is a byte range of the zip.

Format: PKWARE APPNOTE.TXT 6.3.10, 4.3.7 (local file header) and 4.3.12 (central directory).
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from avomni_lib.errors import AvomniError

# Signature, then behind what the central directory repeats the lengths of name and extra field.
LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_SIGNATURE = b"PK\x03\x04"
# The directories read last are kept, as many as have so many members: about 50 MB.
MAX_KEPT = 1 << 17
IS_ENCRYPTED = 0x1


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


class Entry(NamedTuple):
    """A member as the central directory tells of it."""

    header_offset: int
    length: int
    crc32: int
    method: int
    flags: int

    @property
    def is_stored(self) -> bool:
        """Whether its bytes lie in the zip as they are."""
        return self.method == zipfile.ZIP_STORED and not self.flags & IS_ENCRYPTED


@dataclass(frozen=True, slots=True)
class Directory:
    """The central directory of a zip.

    Attributes:
        entries: Name -> entry, in the directory's order.
        repeated: Names that stand in it more than once; the last one counts.
    """

    entries: Mapping[str, Entry]
    repeated: tuple[str, ...]


class _Kept:
    """The directories that were read last, while their files do not change."""

    def __init__(self, max_members: int):
        self.max_members, self._num_members = max_members, 0
        self._kept: OrderedDict[Path, tuple[tuple[int, int], Directory]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> Directory:
        state = path.stat()
        key = (state.st_size, state.st_mtime_ns)
        with self._lock:
            if path in self._kept and self._kept[path][0] == key:
                self._kept.move_to_end(path)
                return self._kept[path][1]
        read = _read_directory(path)
        with self._lock:
            self._drop(path)
            self._kept[path] = (key, read)
            self._num_members += len(read.entries)
            while self._num_members > self.max_members and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))
        return read

    def _drop(self, path: Path) -> None:
        if path in self._kept:
            self._num_members -= len(self._kept.pop(path)[1].entries)


_kept = _Kept(MAX_KEPT)


def directory(path: Path) -> Directory:
    """The central directory of a zip; no member is touched.

    Raises:
        AvomniError: the file is missing, cut short or no zip.
    """
    try:
        return _kept.get(Path(path))
    except FileNotFoundError:
        raise AvomniError("file not found", where=str(path)) from None


def members(path: Path) -> Mapping[str, Entry]:
    """Name -> entry of a zip.

    Raises:
        AvomniError: as `directory`.
    """
    return directory(path).entries


def _read_directory(path: Path) -> Directory:
    entries: dict[str, Entry] = {}
    repeated = []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename in entries:
                    repeated.append(info.filename)
                entries[info.filename] = Entry(
                    info.header_offset,
                    info.file_size,
                    info.CRC,
                    info.compress_type,
                    info.flag_bits,
                )
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, struct.error) as error:
        raise damaged(path, f"not a whole zip ({error})") from None
    return Directory(MappingProxyType(entries), tuple(repeated))


def member(path: Path, name: str) -> ByteRange:
    """Where a stored member lies: its local header is read, and nothing beside it.

    Raises:
        AvomniError: no such member, it is deflated, or its header is not where it should be.
    """
    held = directory(path)
    entry = held.entries.get(name)
    if entry is None:
        raise damaged(path, f"no member {name}")
    if name in held.repeated:
        raise damaged(path, f"member {name} stands in the zip more than once")
    if not entry.is_stored:
        raise damaged(path, f"member {name} is compressed, not stored")
    with open(path, "rb", buffering=0) as file:
        header = os.pread(file.fileno(), LOCAL_HEADER.size, entry.header_offset)
        size = os.fstat(file.fileno()).st_size
    skipped = behind_header(header)
    if skipped is None:
        raise damaged(path, f"no local header of {name}")
    offset = entry.header_offset + LOCAL_HEADER.size + skipped
    if offset + entry.length > size:
        raise damaged(path, f"member {name} ends behind the file's end")
    return ByteRange(path, offset, entry.length, entry.crc32)


def behind_header(header: bytes) -> int | None:
    """Bytes of name and extra field between a local header and its content; None is no header.

    The lengths in the local header count: its extra field may differ from the directory's. Sizes
    and checksum are the directory's: a member that was written as a stream has none here.
    """
    if len(header) < LOCAL_HEADER.size or header[:4] != LOCAL_SIGNATURE:
        return None
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    return name_length + extra_length


def damaged(path: Path, why: str) -> AvomniError:
    return AvomniError(f"damaged: {why}", where=str(path))
