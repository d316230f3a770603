"""Packets to pixels by decord, behind the same function as PyAV and as exact."""

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
DECORD_LEAST_WIDTH = 64  # below it decord 0.6 can mistake a row's padding for a fourth channel
PROBE_TOLERANCE = 0.5  # levels by which two decoders' noise may make a neighbour look nearer


def by_decord(
    stream: Stream, rows: np.ndarray, size: Size | SizeRule | None
) -> tuple[np.ndarray, Size]:
    """As `by_pyav`, by decord, where a probe of the file shows that it is exact; all or nothing.

    decord 0.6 finds frames by its own index and returns a neighbour's picture in an open GOP,
    without an error. So a file with open GOPs is refused, its pictures at the seam of two GOPs are
    compared with PyAV's, and its count and its times with the file's. It notices broken NAL units,
    but conceals smaller damage that `by_pyav` reports.

    Raises:
        AvomniError: decord is not installed, would not be exact on this file, or cannot decode it.
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
        # Its messages begin with a time and a path of the machine that built it, often twice.
        reason = re.sub(r"\[\d\d:\d\d:\d\d\] \S+ ", "", str(error).strip()).partition("\n")[0]
        raise damaged(f"decord cannot decode the file: {reason[:200]}", stream.name) from None
    finally:
        # decord keeps each file's bytes until they are collected: 7 cameras a clip would fill the
        # memory.
        reader = None
        gc.collect()


def _probe(reader, stream: Stream) -> None:
    """Refuse decord where, around the second key frame, its pictures are not PyAV's."""
    seam = stream.row_of(stream.keys[min(1, len(stream.keys) - 1)])
    rows = np.arange(max(seam - 2, 0), min(seam + 3, len(stream.pts)))
    right = by_pyav(stream, rows, None)[0].astype(np.int16)
    for place in range(len(rows) > 1, max(len(rows) - 1, 1)):
        found = reader[int(rows[place])].asnumpy()
        apart = [np.abs(found - image).mean() for image in right]
        if apart[place] > min(apart) + PROBE_TOLERANCE:
            neighbour = int(rows[int(np.argmin(apart))])
            what = f"shows frame {neighbour} where decord is asked for {rows[place]}"
            raise _inexact(what, stream)


def _inexact(what: str, stream: Stream) -> AvomniError:
    return AvomniError(
        f"the video {what}", where=stream.name, fix="set processing.decoder to auto or pyav"
    )
