"""Members of a zip read in place: a stored (not deflated) member is a byte range of the zip.

`zipfile` reads the directory. `ZipFile.open` is not used for members: before Python 3.13 its `seek`
reads everything in between, and FFmpeg seeks from one end of a video to the other.
Format: PKWARE APPNOTE.TXT 6.3.10, 4.3.7 (local file header) and 4.3.12 (central directory).
"""

from __future__ import annotations

import functools
import io
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from avomni_lib.errors import AvomniError

# Signature, fields that the central directory repeats, lengths of name and extra field.
LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_SIGNATURE = b"PK\x03\x04"
IS_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`length` bytes of a file from `offset` on, such as a member of a zip."""

    path: Path
    offset: int
    length: int
    crc32: int | None = None

    def open(self) -> io.BufferedReader:
        """Open these bytes as a seekable file, to be closed by the caller."""
        return io.BufferedReader(_Part(self), 1 << 16)

    def read(self) -> bytes:
        """Read all bytes; raises if the file is too short or the checksum is wrong."""
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
        self._part, self._position = part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + (0, self._position, self._part.length)[whence]
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: bytearray | memoryview) -> int:
        self._file.seek(self._part.offset + self._position)
        rest = max(self._part.length - self._position, 0)
        count = self._file.readinto(memoryview(buffer)[:rest]) or 0
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Directory:
    """The central directory of a zip.

    Attributes:
        entries: Name -> entry, in the directory's order.
        repeated: Names listed more than once; the last entry counts.
        ends: Name -> offset of the next member, or the file's size. Two names may share one member.
    """

    entries: Mapping[str, zipfile.ZipInfo]
    repeated: tuple[str, ...]
    ends: Mapping[str, int]

    def fault(self, name: str) -> tuple[str, str] | None:
        """(kind, reason) why a member cannot be read in place, by the directory alone, or None."""
        entry = self.entries.get(name)
        if entry is None:
            return "no member", f"no member {name}"
        if not is_stored(entry):
            return "not stored", f"member {name} is compressed, not stored"
        if name in self.repeated:
            return "a member twice", f"member {name} stands in the zip more than once"
        least = entry.header_offset + LOCAL_HEADER.size + len(name.encode()) + entry.file_size
        if least > self.ends[name]:
            return "members overlap", f"member {name} reaches into the next or behind the end"
        if not entry.file_size:
            return "an empty member", f"member {name} is empty"
        return None


def is_stored(entry: zipfile.ZipInfo) -> bool:
    """Whether the member is stored without compression and encryption."""
    return entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & IS_ENCRYPTED


def directory(path: Path) -> Directory:
    """The central directory of a zip, cached while the file is unchanged; reads no member."""
    try:
        state = os.stat(path)
        return _directory(Path(path), state.st_size, state.st_mtime_ns)
    except FileNotFoundError:
        raise AvomniError("file not found", where=str(path)) from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, struct.error) as error:
        raise _damaged(path, f"not a whole zip ({error})") from None


# A chunk of the real data set has up to 300 members: about 20 MB for all cached directories.
@functools.lru_cache(maxsize=100)
def _directory(path: Path, size: int, mtime_ns: int) -> Directory:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    entries = {info.filename: info for info in infos}
    counts = Counter(info.filename for info in infos)
    starts = sorted({entry.header_offset for entry in entries.values()})
    next_start = dict(zip(starts, [*starts[1:], size], strict=True))
    ends = {name: next_start[entry.header_offset] for name, entry in entries.items()}
    repeated = tuple(name for name, count in counts.items() if count > 1)
    return Directory(MappingProxyType(entries), repeated, MappingProxyType(ends))


def member(path: Path, name: str) -> ByteRange:
    """The byte range of a stored member; only its local header is read."""
    listed = directory(path)
    if fault := listed.fault(name):
        raise _damaged(path, fault[1])
    entry = listed.entries[name]
    with open(path, "rb", buffering=0) as file:
        header = os.pread(file.fileno(), LOCAL_HEADER.size, entry.header_offset)
        size = os.fstat(file.fileno()).st_size
    skipped = behind_header(header)
    if skipped is None:
        raise _damaged(path, f"no local header of {name}")
    offset = entry.header_offset + LOCAL_HEADER.size + skipped
    if offset + entry.file_size > size:
        raise _damaged(path, f"member {name} ends behind the file's end")
    return ByteRange(path, offset, entry.file_size, entry.CRC)


def behind_header(header: bytes) -> int | None:
    """Bytes of name and extra field between a local header and its content; None if no header.

    The lengths in the local header apply, as its extra field may differ from the directory's. Sizes
    and checksum are taken from the directory: a member written as a stream has none here.
    """
    if len(header) < LOCAL_HEADER.size or header[:4] != LOCAL_SIGNATURE:
        return None
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    return name_length + extra_length


def _damaged(path: Path, why: str) -> AvomniError:
    return AvomniError(f"damaged: {why}", where=str(path))
