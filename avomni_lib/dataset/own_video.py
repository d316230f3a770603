"""A video that somebody gives: when its frames are shown, and why it cannot be used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.dataset import containers
from avomni_lib.errors import AvomniError

# An H.264 or H.265 stream without a container begins with a start code (ITU-T H.264, Annex B).
START_CODES = (b"\0\0\0\1", b"\0\0\1")
REMUX = "ffmpeg -framerate RATE -i IN -c copy OUT.mp4 gives every frame one, at the camera's RATE"


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


def frames(path: Path, argument: str, where: str) -> tuple[np.ndarray, tuple[int, int]]:
    """(N,) s of a video's frames as they are shown, from 0; and its width and height, px.

    Raises:
        AvomniError: it does not open, is no video, or has frames without a time.
    """
    import av

    place = f"{path}, {argument}, {where}"
    try:
        with containers.open_video(path) as container:
            return _frames(container, place)
    except containers.NotVideo as error:
        fix = error.fix
        if _start(path).startswith(START_CODES):
            fix = f"a raw H.264 or H.265 stream has no times: {REMUX}"
        raise AvomniError(f"no video that opens: {error.what}", where=place, fix=fix) from None
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AvomniError(f"no video that opens: {reason}", where=place) from None


def _frames(container: Any, place: str) -> tuple[np.ndarray, tuple[int, int]]:
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise AvomniError(
            f"no video that opens: the file holds {' and '.join(kinds)}, and no video stream",
            where=place,
            fix="name the file that holds the camera's pictures",
        )
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise AvomniError(
            "no video that opens: this build of FFmpeg does not know the codec",
            where=place,
            fix="encode it anew with a program that reads it: ffmpeg -i IN -crf 16 OUT.mp4",
        )
    # The packet that ends a stream is empty.
    packets = [packet for packet in container.demux(stream) if packet.size]
    if not packets:
        raise AvomniError("no video that opens: it holds no frame", where=place)
    if hidden := sum(packet.is_discard for packet in packets):
        raise AvomniError(
            f"an edit list hides {hidden} of its {len(packets)} frames: it was cut between key "
            "frames without being encoded anew",
            where=place,
            fix="cut it again: ffmpeg -ss START -t SECONDS -i IN.mp4 -crf 16 OUT.mp4",
        )
    without = [number for number, packet in enumerate(packets) if packet.pts is None]
    if without:
        raise AvomniError(
            f"{len(without)} of its {len(packets)} frames have no time, first frame {without[0]}",
            where=place,
            fix=REMUX,
        )
    ticks = np.array(sorted(packet.pts for packet in packets), np.int64)
    times_s = (ticks - ticks[0]) * float(stream.time_base)
    return times_s, (context.width, context.height)


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4)
    except OSError:
        return b""
