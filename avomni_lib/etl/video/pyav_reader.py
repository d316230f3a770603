"""Decoding with PyAV: exactly the requested frames, decoding as few others as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from avomni_lib.etl.video.stream import Damaged, Stream, damaged

SKIPPING_CODECS = ("h264", "hevc")  # FFmpeg decoders that apply skip_frame packet by packet
Size = tuple[int, int]
SizeRule = Callable[[int, int], Size]


def by_pyav(
    stream: Stream, rows: np.ndarray, size: Size | SizeRule | None
) -> tuple[np.ndarray, Size]:
    """Decode the frames at `rows` (ascending, unique), scaled to `size` by FFmpeg's scaler.

    Returns:
        (len(rows), H, W, 3) uint8 RGB, upright; (width, height) px of the source, upright.

    Raises:
        Damaged: a needed frame does not decode, or only partly.
    """
    images, upright, scaler = np.empty(0, np.uint8), (0, 0), VideoReformatter()
    for place, frame in decode(stream, rows):
        if not len(images):
            upright = upright_size(frame)
            width, height = resolve_size(size, upright)
            images = np.zeros((len(rows), height, width, 3), dtype=np.uint8)
        images[place] = picture(frame, images.shape[2], images.shape[1], scaler)
    return images, upright


def decode(stream: Stream, rows: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (index in `rows`, frame) for the frames at `rows` (ascending, unique).

    Non-reference pictures are skipped unless they are requested. A frame may be yielded twice.

    Raises:
        Damaged: a needed frame does not decode, or only partly.
    """
    place_of = {int(stream.pts[row]): place for place, row in enumerate(rows)}
    wanted = {
        packet: place_of[pts]
        for packet, pts in enumerate(stream.scan.pts)
        if pts in place_of and packet not in stream.scan.hidden
    }
    skip = "NONREF" if stream.codec.name in SKIPPING_CODECS else "DEFAULT"
    for start, held in stream.plan_runs(sorted(wanted)):
        try:
            for packet, frame in _decode_run(stream, start, held, skip):
                yield wanted[packet], frame
        except Damaged:
            # An unusual stream may need more packets than planned: before a packet is reported as
            # damaged, decode from the start of the file.
            if start == 0 and skip == "DEFAULT":
                raise
            for packet, frame in _decode_run(stream, 0, held, "DEFAULT"):
                yield wanted[packet], frame


def _decode_run(
    stream: Stream, start: int, held: list[int], skip: str
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode packets from `start` to the last of `held`; yields (packet, frame) for `held`."""

    def fault(what: str, packet: int) -> Damaged:
        return damaged(what, stream.name, stream.row_of(packet))

    packet_of = {pts: packet for packet, pts in enumerate(stream.scan.pts)}
    pending, last_pts, codec = set(held), None, stream.codec
    codec.flush_buffers()
    for i in [*range(start, held[-1] + 1), None]:
        codec.skip_frame = "DEFAULT" if i is None or i in pending else skip
        at = held[-1] if i is None else i
        try:
            frames = codec.decode(None if i is None else stream.packets[i])
        except av.error.FFmpegError as error:
            raise fault(f"a frame does not decode: {error.strerror}", at) from None
        for frame in frames:
            shown = packet_of.get(frame.pts)
            if frame.is_corrupt:
                raise fault("a frame decodes only in part", held[-1] if shown is None else shown)
            # Decoders output pictures in the order of the picture numbers in the stream. If the
            # file's times order them otherwise, the times do not belong to these pictures.
            if shown is None or (last_pts is not None and frame.pts <= last_pts):
                what = "the file's times do not follow the order of its pictures"
                raise fault(what, at if shown is None else shown)
            last_pts = frame.pts
            if frame.rotation % 90:
                what = f"the display rotation of {frame.rotation}° is no multiple of 90°"
                raise fault(what, shown)
            if shown in pending:
                pending.remove(shown)
                yield shown, frame
    if pending:
        raise fault("a frame did not come out of the decoder", min(pending))


def resolve_size(size: Size | SizeRule | None, upright: Size) -> Size:
    """(width, height) of the images, from the requested size and the source's upright size."""
    if size is None:
        return upright
    return size(*upright) if callable(size) else size


def upright_size(frame: av.VideoFrame) -> Size:
    """(width, height) px of the frame after rotation for display."""
    sideways = frame.rotation % 180
    return (frame.height, frame.width) if sideways else (frame.width, frame.height)


def picture(
    frame: av.VideoFrame, width: int, height: int, scaler: VideoReformatter | None = None
) -> np.ndarray:
    """Convert to (height, width, 3) uint8 RGB, upright, full range, scaled by averaging areas."""
    sideways = frame.rotation % 180
    scaled = (scaler or VideoReformatter()).reformat(
        frame,
        width=height if sideways else width,
        height=width if sideways else height,
        format="rgb24",
        interpolation=Interpolation.AREA,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    # FFmpeg's and NumPy's rotations are both counter-clockwise.
    return np.rot90(scaled.to_ndarray(), frame.rotation // 90)
