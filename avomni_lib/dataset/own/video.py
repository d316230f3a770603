"""A video that somebody gives: when its frames are shown, and why it cannot be used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from avomni_lib.dataset import streams
from avomni_lib.dataset.audit.findings import DAMAGED
from avomni_lib.errors import AvomniError

# An H.264 or H.265 stream without a container begins with a start code (ITU-T H.264, Annex B).
START_CODES = (b"\0\0\0\1", b"\0\0\1")
REMUX = "ffmpeg -framerate RATE -i IN -c copy OUT.mp4 gives every frame one, at the camera's RATE"
# Kind of a finding -> what to do.
FIXES = {
    "no presentation times": REMUX,
    "unknown codec": "encode it anew where it plays: ffmpeg -i IN -crf 16 OUT.mp4",
    "no video": "name the file that holds the camera's pictures",
    "the mp4 does not open": "ffmpeg -i IN -c copy OUT.mp4 puts most other videos into an mp4",
    "does not start with a key frame": "cut it again without -c copy: ffmpeg -ss START -t SECONDS "
    "-i IN.mp4 -crf 16 OUT.mp4",
}


def path_of(value: Any, argument: str, where: str) -> Path:
    """A given path, if it is that of a file that holds something.

    Whatever the name is, it is a file's: `a:b.mp4` and `http://a.mp4` are opened on the disk.

    Raises:
        AvomniError: it is no path, or there is no such file.
    """
    place = f"{argument}, {where}"
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise AvomniError(f"{argument} is {value!r:.80}, expected a path", where=place)
    path = Path(value)
    try:
        if not path.exists():
            raise AvomniError(f"there is no video {path}", where=place, fix="look at the path")
        if path.is_dir():
            raise AvomniError(
                f"{path} is a folder, expected a video", where=place, fix="name the file in it"
            )
        # A pipe would be waited for.
        if not path.is_file():
            raise AvomniError(f"no video that opens: {path} is not a regular file", where=place)
        if not path.stat().st_size:
            raise AvomniError(f"no video that opens: {path} is empty", where=place)
    except (OSError, ValueError) as error:
        raise AvomniError(f"no video that opens: {path}: {error}", where=place) from None
    return path


def walk(path: Path, argument: str, where: str) -> streams.Walked:
    """What a video holds, read packet by packet.

    Raises:
        AvomniError: it does not open, or is damaged (`streams`).
    """
    walked = streams.walk(path)
    damaged = [finding for finding in walked.findings if finding.severity == DAMAGED]
    if not damaged:
        return walked
    fix = FIXES.get(damaged[0].what)
    if not walked.facts and _start(path).startswith(START_CODES):
        fix = f"a raw H.264 or H.265 stream has no times: {REMUX}"
    raise AvomniError(
        "; ".join(finding.reason for finding in damaged),
        where=f"{path}, {argument}, {where}",
        fix=fix,
    )


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4)
    except OSError:
        return b""
