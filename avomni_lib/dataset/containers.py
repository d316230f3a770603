"""The one door through which FFmpeg opens a video: as a container that holds its own content.

FFmpeg chooses a demuxer by what a file holds. A playlist (ffconcat, HLS, DASH), a session
description (SDP) or a pattern of image names would then name other files and addresses to open,
whatever the file itself is called. So the container is recognised by its first bytes, among those
that name nothing outside of themselves, and its demuxer is given to FFmpeg by name, with every
protocol closed and external tracks of QuickTime files (`dref`) left out.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from avomni_lib.errors import AvomniError

if TYPE_CHECKING:
    from av.container import InputContainer

# Demuxer -> what a file of it begins with. ISO 14496-12 §4.2 and QuickTime: a length, then the type
# of a box that may come first; RFC 8794: EBML's own id; RIFF's chunk; ISO 13818-1: packets of 188
# bytes, each with its sync byte, which a Blu-ray's stream puts behind 4 bytes of time.
CONTAINERS = {
    "mp4": re.compile(rb".{4}(?:ftyp|styp|moov|mdat|free|skip|wide|pnot|uuid)", re.DOTALL),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3"),
    "avi": re.compile(rb"RIFF.{4}AVI ", re.DOTALL),
    "mpegts": re.compile(rb"(?:\x47.{187}\x47|.{4}\x47.{191}\x47)", re.DOTALL),
}
NAMES = "mp4 or mov, mkv or webm, avi, ts"
HEAD_BYTES = 256
READ_BYTES = 1 << 17
CLOSED = {"protocol_whitelist": "none", "enable_drefs": "0", "use_absolute_path": "0"}


class NotVideo(AvomniError):
    """A file that is no known container, or that does not open as the one that it is."""


@contextlib.contextmanager
def open_video(
    source: str | Path | bytes | BinaryIO, name: str | None = None, buffer_size: int = READ_BYTES
) -> Iterator[InputContainer]:
    """Open a video for reading; nothing but its own bytes is read.

    Args:
        source: A path, which is always that of a file (`a:b.mp4` and `%d.mp4` too); a file's bytes;
            or a seekable binary file, which stays open.
        name: What an error names; left out, the path.
        buffer_size: Bytes that FFmpeg asks for at once.

    Raises:
        NotVideo: it is empty, none of `NAMES`, or FFmpeg finds no such container in it.
        OSError: the file cannot be read, as where there is none.
    """
    import av

    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes):
            file: BinaryIO = io.BytesIO(source)
        elif isinstance(source, str | Path):
            file, name = stack.enter_context(_opened(source)), name or str(source)
        else:
            file = source
        head = file.read(HEAD_BYTES)
        file.seek(0)
        kind = container_of(head, name)
        try:
            container = av.open(
                file,
                format=kind,
                options=CLOSED,
                metadata_errors="replace",
                buffer_size=buffer_size,
            )
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise NotVideo(f"the {kind} does not open: {reason}", where=name) from None
        yield stack.enter_context(container)


def _opened(path: str | Path) -> BinaryIO:
    # A pipe would be waited for, and a folder has no words of its own.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotVideo("not a regular file", where=str(path))
    return open(path, "rb")


def container_of(head: bytes, name: str | None = None) -> str:
    """The demuxer of a file that begins with these bytes, a key of `CONTAINERS`."""
    if not head:
        raise NotVideo("the file is empty", where=name)
    for kind, start in CONTAINERS.items():
        if start.match(head):
            return kind
    raise NotVideo(
        f"no video container ({NAMES}): it begins with {head[:16]!r}",
        where=name,
        fix="ffmpeg -i IN -c copy OUT.mp4 puts most other videos into an mp4",
    )
