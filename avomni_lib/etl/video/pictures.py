"""Where decoded frames go: scaled in FFmpeg's scaler, turned upright, each into its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from avomni_lib.etl.video.stream import Stream, damaged

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
