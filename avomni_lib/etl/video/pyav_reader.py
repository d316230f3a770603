"""Packets to pixels by PyAV: exactly the frames asked for, at the least that they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from avomni_lib.etl.video.stream import Damaged, Stream, damaged

SKIPPING_CODECS = ("h264", "hevc")  # FFmpeg's decoders that heed skip_frame packet by packet
Size = tuple[int, int]
SizeRule = Callable[[int, int], Size]


@dataclass
class Pictures:
    """What a decoder made of the rows asked for.

    Attributes:
        images: (len(rows), H, W, 3) uint8 RGB, upright.
        source_size: (width, height) px of the source, upright.
    """

    images: np.ndarray
    source_size: Size


def resolve_size(size: Size | SizeRule | None, upright: Size) -> Size:
    """(width, height) to deliver, from what was asked for and the upright size of the source."""
    if size is None:
        return upright
    return size(*upright) if callable(size) else size


class Canvas:
    """The array that decoded frames are scaled, turned upright and written into.

    Attributes:
        images: (len(rows), H, W, 3) uint8 RGB; None before the first frame, which tells the size.
        source_size: (width, height) px of the source, upright; None before the first frame.
    """

    def __init__(self, stream: Stream, rows: np.ndarray, size: Size | SizeRule | None):
        self.images: np.ndarray | None = None
        self.source_size: Size | None = None
        self._stream, self._rows, self._size = stream, rows, size
        self._scaler = VideoReformatter()

    def draw(self, place: int, frame: av.VideoFrame) -> None:
        quarter_turns, rest = divmod(frame.rotation, 90)
        if rest:
            what = f"the display rotation of {frame.rotation}° is no multiple of 90°"
            raise damaged(what, self._stream.name, int(self._rows[place]))
        sideways = quarter_turns % 2 == 1
        if self.images is None:
            size = (frame.width, frame.height)
            self.source_size = size[::-1] if sideways else size
            width, height = resolve_size(self._size, self.source_size)
            self.images = np.zeros((len(self._rows), height, width, 3), dtype=np.uint8)
        height, width = self.images.shape[1:3]
        if sideways:
            width, height = height, width
        scaled = scale(self._scaler, frame, width, height)
        # FFmpeg's and numpy's turns are both counter-clockwise.
        self.images[place] = np.rot90(scaled, quarter_turns)


def scale(scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB, black 0 and white 255, by averaging areas."""
    scaled = scaler.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        interpolation=Interpolation.AREA,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    return scaled.to_ndarray()


def by_pyav(stream: Stream, rows: np.ndarray, size: Size | SizeRule | None) -> Pictures:
    """Decode the frames at `rows` (ascending, unique), and nothing that they do not need.

    Pictures that nothing refers to are skipped unless they are wanted.

    Raises:
        Damaged: a frame that is needed does not decode, or only in part.
    """
    return Reader(stream, rows, size).read()


def plan_runs(stream: Stream, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The least to decode for packets `wanted` (ascending): runs as (start, the wanted of it).

    A run is sent to the decoder from its start to the last one wanted of it.
    """
    runs: list[tuple[int, list[int]]] = []
    for packet in wanted:
        start = stream.start_for(packet)
        held = [packet]
        while runs and start <= runs[-1][1][-1]:
            earlier, before = runs.pop()
            start, held = min(start, earlier), before + held
        runs.append((start, held))
    return runs


class Reader:
    """One call of `by_pyav`."""

    def __init__(self, stream: Stream, rows: np.ndarray, size: Size | SizeRule | None):
        self.stream, self.canvas = stream, Canvas(stream, rows, size)
        self.skip = "NONREF" if stream.codec.name in SKIPPING_CODECS else "DEFAULT"
        place_of = {int(stream.pts[row]): place for place, row in enumerate(rows)}
        self.packet_of = {pts: i for i, pts in enumerate(stream.packet_pts)}
        # Packet -> place in `rows`, in decode order.
        self.wanted = {
            i: place_of[pts]
            for i, pts in enumerate(stream.packet_pts)
            if pts in place_of and i not in stream.scan.hidden
        }

    def read(self) -> Pictures:
        for start, held in plan_runs(self.stream, sorted(self.wanted)):
            try:
                self._decode(start, held, self.skip)
            except Damaged:
                # An unusual stream may need more than was planned, so all that comes before is
                # decoded too before a packet is called damaged.
                if start == 0 and self.skip == "DEFAULT":
                    raise
                self._decode(0, held, "DEFAULT")
        return Pictures(self.canvas.images, self.canvas.source_size)

    def _decode(self, start: int, held: list[int], skip: str) -> None:
        stream, codec = self.stream, self.stream.codec
        pending, last_pts = set(held), None
        codec.flush_buffers()
        for i in [*range(start, held[-1] + 1), None]:
            codec.skip_frame = "DEFAULT" if i is None or i in pending else skip
            try:
                frames = codec.decode(None if i is None else stream.packets[i])
            except av.error.FFmpegError as error:
                at = held[-1] if i is None else i
                raise self._fault(f"a frame does not decode: {error.strerror}", at) from None
            for frame in frames:
                shown = self.packet_of.get(frame.pts)
                if frame.is_corrupt:
                    at = held[-1] if shown is None else shown
                    raise self._fault("a frame decodes only in part", at)
                # Pictures come out in the order that their own numbers give; where the file's times
                # give another one, they are not those of these pictures.
                if shown is None or (last_pts is not None and frame.pts <= last_pts):
                    what = "the file's times do not follow the order of its pictures"
                    raise self._fault(what, i if shown is None else shown)
                last_pts = frame.pts
                if shown in pending:
                    self.canvas.draw(self.wanted[shown], frame)
                    pending.remove(shown)
        if pending:
            raise self._fault("a frame did not come out of the decoder", min(pending))

    def _fault(self, what: str, packet: int | None) -> Damaged:
        row = None if packet is None else self.stream.row_of(packet)
        return damaged(what, self.stream.name, row)
