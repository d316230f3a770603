"""Decoding with decord: the same interface as the PyAV reader, and as exact."""

from __future__ import annotations

import gc
import io
import re

import av
import numpy as np

from avomni_lib.errors import AvomniError
from avomni_lib.etl.video.pyav_reader import (
    Size,
    SizeRule,
    by_pyav,
    picture,
    resolve_size,
)
from avomni_lib.etl.video.stream import Stream, damaged

PTS_TOLERANCE_S = 1e-3
DECORD_LEAST_WIDTH = 64  # for narrower images decord 0.6 can mistake padding for a fourth channel
PROBE_TOLERANCE = 0.5  # grey levels by which decoder noise may make a neighbour look closer


def by_decord(
    stream: Stream, rows: np.ndarray, size: Size | SizeRule | None
) -> tuple[np.ndarray, Size]:
    """As `by_pyav` with decord, if a probe shows that it is exact on this file.

    decord 0.6 seeks by its own index and, in an open GOP, returns a neighbouring picture without an
    error. So files with open GOPs are refused, its pictures at the boundary of two GOPs are
    compared with PyAV's, and its number and times of frames with the file's. It reports broken NAL
    units, but conceals smaller damage that `by_pyav` reports.

    Raises:
        AvomniError: decord is not installed, is not exact on this file, or cannot decode it.
    """
    try:
        import decord
    except ImportError:
        raise AvomniError(
            "decord is not installed (it exists for Linux on x86-64 alone)",
            where="processing.decoder: decord",
            fix="set processing.decoder to auto or pyav",
        ) from None
    if len(stream.closed_keys) < len(stream.keys) or stream.leading.any():
        raise _inexact("has open GOPs, in which decord returns a neighbour of the frame", stream)
    try:
        reader = decord.VideoReader(io.BytesIO(stream.content), num_threads=1)
        if len(reader) != len(stream.pts):
            what = f"has {len(stream.pts)} frames, of which decord lists {len(reader)}"
            raise _inexact(what, stream)
        _probe(reader, stream)
        upright = reader[0].shape[1::-1]
        width, height = resolve_size(size, upright)
        if (width, height) != upright and width >= DECORD_LEAST_WIDTH:
            reader = decord.VideoReader(
                io.BytesIO(stream.content), num_threads=1, width=width, height=height
            )
        times_s = reader.get_frame_timestamp(rows.tolist())[:, 0]
        apart_s = np.abs(times_s - stream.times_us[rows] / 1e6)
        if apart_s.max() > PTS_TOLERANCE_S:
            row = int(rows[apart_s.argmax()])
            what = f"shows frame {row} {apart_s.max():.3f} s away from where decord puts it"
            raise _inexact(what, stream)
        images = reader.get_batch(rows.tolist()).asnumpy()
        if images.shape[1:3] != (height, width):
            frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in images]
            images = np.stack([picture(frame, width, height) for frame in frames])
        return images, upright
    except (RuntimeError, decord.DECORDError) as error:
        # Its messages start with a time and a path of the machine that built it, often twice.
        reason = re.sub(r"\[\d\d:\d\d:\d\d\] \S+ ", "", str(error).strip()).partition("\n")[0]
        raise damaged(f"decord cannot decode the file: {reason[:200]}", stream.name) from None
    finally:
        # decord keeps a file's bytes until garbage collection; 7 cameras per clip would fill the
        # memory.
        reader = None
        gc.collect()


def _probe(reader, stream: Stream) -> None:
    """Refuse decord if its pictures around the second key frame differ from PyAV's."""
    seam = stream.row_of(stream.keys[min(1, len(stream.keys) - 1)])
    rows = np.arange(max(seam - 2, 0), min(seam + 3, len(stream.pts)))
    expected = by_pyav(stream, rows, None)[0].astype(np.int16)
    for place in range(len(rows) > 1, max(len(rows) - 1, 1)):
        decoded = reader[int(rows[place])].asnumpy()
        apart = [np.abs(decoded - image).mean() for image in expected]
        if apart[place] > min(apart) + PROBE_TOLERANCE:
            neighbour = int(rows[int(np.argmin(apart))])
            what = f"shows frame {neighbour} where decord is asked for {rows[place]}"
            raise _inexact(what, stream)


def _inexact(what: str, stream: Stream) -> AvomniError:
    return AvomniError(
        f"the video {what}", where=stream.name, fix="set processing.decoder to auto or pyav"
    )
