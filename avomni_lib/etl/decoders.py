"""Packets to pixels by PyAV or decord: exactly the frames that were asked for, or an error."""

from __future__ import annotations

import bisect
import gc
import io
import re
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from avomni_lib.errors import AvomniError
from avomni_lib.etl.stream import Stream, damaged

Size = tuple[int, int]
SizeRule = Callable[[int, int], Size]
SKIPPING_CODECS = ("h264", "hevc")  # FFmpeg's decoders that heed skip_frame packet by packet
DECORD_TOLERANCE_S = 1e-3
DECORD_LEAST_WIDTH = 64  # below it decord 0.6 can mistake a row's padding for a fourth channel


def plan_runs(stream: Stream, wanted: set[int]) -> list[tuple[int, int]]:
    """The least that has to be decoded, as (first, last) packets: from a start to the last wanted.

    Where a leading picture is wanted, from the start before, for it may refer to what lies there.
    """
    starts, leading = stream.starts, stream.leading()
    runs: list[tuple[int, int]] = []
    for i in (i for i, packet in enumerate(stream.packets) if packet.pts in wanted):
        place = bisect.bisect_right(starts, i) - 1
        first = starts[max(place - 1, 0) if leading[i] else place]
        if runs and first <= runs[-1][1]:
            first = runs.pop()[0]
        runs.append((first, i))
    return runs


def by_pyav(
    stream: Stream, rows: np.ndarray, size: Size | SizeRule | None
) -> tuple[np.ndarray, Size]:
    """Decode the frames at `rows` (ascending, unique).

    Pictures that nothing refers to are skipped unless they are wanted. A packet that does not
    decode cleanly fails the call, for what follows it in its GOP would be wrong without a sign of
    it.

    Returns:
        (len(rows), H, W, 3) uint8 RGB, and the source's own upright (width, height).

    Raises:
        AvomniError: a packet is damaged, or a wanted frame did not come out of the decoder.
    """
    place_of = {int(stream.pts[row]): place for place, row in enumerate(rows)}
    runs = plan_runs(stream, set(place_of))
    skip = "NONREF" if stream.codec.name in SKIPPING_CODECS else "DEFAULT"
    try:
        return _decode(stream, runs, place_of, _Canvas(stream, rows, size), skip)
    except AvomniError:
        # An unusual stream may need more than was planned, so all of it is tried before it is
        # called damaged.
        whole = [(0, len(stream.packets) - 1)]
        return _decode(stream, whole, place_of, _Canvas(stream, rows, size), "DEFAULT")


def _decode(
    stream: Stream,
    runs: list[tuple[int, int]],
    place_of: dict[int, int],
    canvas: _Canvas,
    skip: str,
) -> tuple[np.ndarray, Size]:
    for first, last in runs:
        _decode_run(stream, stream.packets[first : last + 1], place_of, canvas, skip)
    for place in np.flatnonzero(~canvas.drawn)[:1]:
        row = int(canvas.rows[place])
        raise damaged("a frame did not come out of the decoder", stream.name, row)
    return canvas.images, canvas.upright


def _decode_run(
    stream: Stream, packets: list[av.Packet], place_of: dict[int, int], canvas: _Canvas, skip: str
) -> None:
    codec = stream.codec
    codec.flush_buffers()
    for packet in [*packets, None]:
        codec.skip_frame = "DEFAULT" if packet is None or packet.pts in place_of else skip
        row = int(np.searchsorted(stream.pts, (packet or packets[-1]).pts))
        if packet is not None and stream.has_hole(packet):
            raise damaged("a part of a frame is zeros", stream.name, row)
        try:
            frames = codec.decode(packet)
        except av.error.FFmpegError as error:
            raise damaged(f"a frame does not decode: {error.strerror}", stream.name, row) from None
        for frame in frames:
            if frame.is_corrupt:
                row = int(np.searchsorted(stream.pts, frame.pts or 0))
                raise damaged("a frame decodes only in part", stream.name, row)
            if frame.pts in place_of:
                canvas.draw(place_of[frame.pts], frame)


class _Canvas:
    """The array that decoded frames are scaled, turned upright and written into."""

    def __init__(self, stream: Stream, rows: np.ndarray, size: Size | SizeRule | None):
        self.stream, self.rows, self.size = stream, rows, size
        self.scaler = VideoReformatter()
        self.images: np.ndarray | None = None
        self.upright: Size | None = None
        self.drawn = np.zeros(len(rows), dtype=bool)

    def draw(self, place: int, frame: av.VideoFrame) -> None:
        quarter_turns, rest = divmod(frame.rotation, 90)
        if rest:
            what = f"the display rotation of {frame.rotation}° is no multiple of 90°"
            raise damaged(what, self.stream.name, int(self.rows[place]))
        sideways = quarter_turns % 2 == 1
        if self.images is None:
            self.upright = (frame.height, frame.width) if sideways else (frame.width, frame.height)
            width, height = resolve_size(self.size, self.upright)
            self.images = np.empty((len(self.rows), height, width, 3), dtype=np.uint8)
        height, width = self.images.shape[1:3]
        if sideways:
            width, height = height, width
        scaled = self.scaler.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.AREA,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        # FFmpeg's and numpy's turns are both counter-clockwise.
        self.images[place] = np.rot90(scaled.to_ndarray(), quarter_turns)
        self.drawn[place] = True


def resolve_size(size: Size | SizeRule | None, upright: Size) -> Size:
    """(width, height) to deliver, from what was asked for and the upright size of the source."""
    if size is None:
        return upright
    return size(*upright) if callable(size) else size


def by_decord(
    stream: Stream, rows: np.ndarray, size: Size | SizeRule | None
) -> tuple[np.ndarray, Size]:
    """As `by_pyav`, by decord.

    decord 0.6 finds frames by its own index and returns a neighbour's picture in an open GOP,
    without an error; so it is refused there, and its times are compared with the file's. It notices
    broken NAL units, but conceals smaller damage that `by_pyav` reports.

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
    if len(stream.closed_keys) < len(stream.keys) or stream.leading().any():
        raise _inexact("has open GOPs, in which decord returns a neighbour of the frame", stream)
    try:
        reader = decord.VideoReader(io.BytesIO(stream.content), num_threads=1)
        upright = reader[0].shape[1::-1]
        width, height = resolve_size(size, upright)
        if (width, height) != upright and width >= DECORD_LEAST_WIDTH:
            reader = decord.VideoReader(
                io.BytesIO(stream.content), num_threads=1, width=width, height=height
            )
        if len(reader) != len(stream.pts):
            what = f"has {len(stream.pts)} frames, of which decord lists {len(reader)}"
            raise _inexact(what, stream)
        times_s = reader.get_frame_timestamp(rows.tolist())[:, 0]
        apart = np.abs(times_s - stream.times_us[rows] / 1e6)
        if apart.max() > DECORD_TOLERANCE_S:
            row = int(rows[apart.argmax()])
            what = f"shows frame {row} {apart.max():.3f} s away from where decord puts it"
            raise _inexact(what, stream)
        images = reader.get_batch(rows.tolist()).asnumpy()
        return _scaled(images, width, height), upright
    except (RuntimeError, decord.DECORDError) as error:
        # Its messages begin with a time and a path of the machine that built it, often twice.
        reason = re.sub(r"\[\d\d:\d\d:\d\d\] \S+ ", "", str(error).strip()).partition("\n")[0]
        raise damaged(f"decord cannot decode the file: {reason[:200]}", stream.name) from None
    finally:
        # decord keeps each file's bytes until they are collected: 7 cameras a clip would fill the
        # memory.
        reader = None
        gc.collect()


def _scaled(images: np.ndarray, width: int, height: int) -> np.ndarray:
    if images.shape[1:3] == (height, width):
        return images
    scaler, scaled = VideoReformatter(), []
    for image in images:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = scaler.reformat(frame, width, height, interpolation=Interpolation.AREA, threads=1)
        scaled.append(frame.to_ndarray())
    return np.stack(scaled)


def _inexact(what: str, stream: Stream) -> AvomniError:
    return AvomniError(
        f"the video {what}", where=stream.name, fix="set processing.decoder to auto or pyav"
    )
