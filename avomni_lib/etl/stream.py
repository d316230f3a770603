"""A video file's packets in decode order and its frames in presentation order, before decoding.

A clip's video (about 20 MB) is held in memory while it is read: then no seek is needed, and a file
whose index, interleaving or start time is unusual needs no special care.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from avomni_lib.errors import AvomniError

if TYPE_CHECKING:
    from avomni_lib.dataset.clip import ByteRange

READ_BUFFER_BYTES = 1 << 20
MOST_MISSING_BYTES = 1 << 27  # of a file cut short; an index that names more is itself broken
# Whether a NAL unit's first byte names an IDR picture (H.264 table 7-1, H.265 table 7-1); and one
# at which a decoder can start: of H.265 every IRAP picture.
IDR = {"h264": lambda byte: byte & 31 == 5, "hevc": lambda byte: byte >> 1 & 63 in (19, 20)}
STARTS = {"h264": IDR["h264"], "hevc": lambda byte: 16 <= byte >> 1 & 63 <= 23}
# No NAL unit holds three zero bytes in a row (H.264 §7.4.1, H.265 §7.4.2.1); frames of some other
# codecs are entropy-coded from their first bytes to their last and hardly ever hold eight.
HOLE, OTHER_HOLE = bytes(3), bytes(8)
DENSE_CODECS = ("libdav1d", "av1", "vp9", "mpeg4")
FETCH_AGAIN = (
    "compare the file with its source, as 02_download does unless dataset.source is folder; or "
    "leave the clip out"
)


class Damaged(AvomniError):
    """The bytes of a video are not what they should be; everything else is a mistake of a call."""


@dataclass(frozen=True)
class Stream:
    """The video stream of one file, held open.

    Attributes:
        name: The file, for messages.
        content: All bytes of the file.
        codec: PyAV's decoder of the stream, one thread, told to fail rather than to conceal.
        packets: In decode order, all that the file's index names.
        pts: (N,) int64, of the frames in presentation order; row i of the data set's timestamps is
            `pts[i]`.
        time_base: Seconds of one unit of `pts`.
    """

    name: str
    content: bytes
    codec: av.VideoCodecContext
    packets: list[av.Packet]
    pts: np.ndarray
    time_base: Fraction

    @property
    def times_us(self) -> np.ndarray:
        """(N,) int64 µs of the frames, counted from the first one."""
        microseconds = [
            round((int(p) - int(self.pts[0])) * self.time_base * 1_000_000) for p in self.pts
        ]
        return np.array(microseconds, dtype=np.int64)

    def row_of(self, packet: int) -> int:
        """The frame, in presentation order, that packet number `packet` holds."""
        return int(np.searchsorted(self.pts, self.packets[packet].pts))

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """Indices of `packets` that are key frames."""
        return np.flatnonzero([packet.is_keyframe for packet in self.packets])

    @functools.cached_property
    def closed_keys(self) -> np.ndarray:
        """Key frames of closed GOPs: nothing from there on refers to what came before.

        In H.264 and HEVC those are the IDR pictures; elsewhere, key frames without leading
        pictures.
        """
        return self._keys_of(IDR)

    @functools.cached_property
    def starts(self) -> list[int]:
        """Indices of `packets` at which a decoder can start; the first packet always counts.

        These are the key frames of closed GOPs, and in HEVC all key frames: there a decoder knows
        the pictures that it must pass over after a start in an open GOP (H.265 §8.1.3), while one
        of H.264 meets references that it never had.
        """
        return np.union1d([0], self._keys_of(STARTS)).astype(int).tolist()

    def _keys_of(self, kinds: dict) -> np.ndarray:
        is_kind = kinds.get(self.codec.name)
        if is_kind and self._prefix:
            return self.keys[[any(is_kind(u[0]) for u in self.units(key)) for key in self.keys]]
        leading = np.flatnonzero(self.leading)
        return np.delete(self.keys, np.searchsorted(self.keys, leading, side="right") - 1)

    @functools.cached_property
    def leading(self) -> np.ndarray:
        """(num packets,) bool: pictures shown before the key frame that they follow.

        Only an open GOP has them, and they may need the GOP before (H.265 §3.69 calls them leading
        pictures).
        """
        flags = np.zeros(len(self.packets), dtype=bool)
        key_pts = self.packets[0].pts
        for i, packet in enumerate(self.packets):
            if packet.is_keyframe:
                key_pts = packet.pts
            flags[i] = packet.pts < key_pts
        return flags

    def start_for(self, packet: int) -> int:
        """Where a decoder must start for this packet's picture.

        For a leading picture the start before its own, for it may refer to what lies there.
        """
        place = bisect.bisect_right(self.starts, packet) - 1
        return self.starts[max(place - 1, 0) if self.leading[packet] else place]

    @functools.cached_property
    def _prefix(self) -> int:
        """Bytes of a NAL unit's length in H.264 and HEVC as mp4 holds them, 0 in other streams.

        It stands in avcC or hvcC (ISO 14496-15 §5.3.3, §8.3.3).
        """
        extra = self.codec.extradata or b""
        place = {"h264": 4, "hevc": 21}.get(self.codec.name)
        if place is None or len(extra) <= place or extra[0] != 1:
            return 0
        return (extra[place] & 3) + 1

    def units(self, packet: int) -> Iterator[bytes]:
        """The NAL units of a packet of H.264 or HEVC in an mp4; nothing for other codecs.

        The last one may be shorter than its length says, and one of no length is passed over.
        """
        if not self._prefix or self._is_missing(self.packets[packet]):
            return
        data, start, prefix = bytes(self.packets[packet]), 0, self._prefix
        while start + prefix < len(data):
            stop = start + prefix + int.from_bytes(data[start : start + prefix], "big")
            if stop > start + prefix:
                yield data[start + prefix : stop]
            start = stop

    def fault(self, number: int) -> str | None:
        """What is wrong with a packet's bytes, as far as can be told without decoding them.

        FFmpeg's decoders do not mind all of it: that of HEVC reads over zeros.
        """
        packet = self.packets[number]
        if self._is_missing(packet):
            whole = sum(not self._is_missing(each) for each in self.packets)
            return f"the file is cut short: it holds {whole} of {len(self.packets)} frames"
        data, prefix, place = bytes(packet), self._prefix, packet.pos
        hole = "a part of a frame is zeros"
        if not prefix:
            # One that reaches into the packet from outside of it counts too.
            reach = len(OTHER_HOLE) - 1
            if place is not None:
                data = self.content[max(place - reach, 0) : place + len(data) + reach]
            return hole if self.codec.name in DENSE_CODECS and OTHER_HOLE in data else None
        start, bare = 0, data.rstrip(b"\0")
        while start < len(bare):
            stop = start + prefix + int.from_bytes(data[start : start + prefix], "big")
            if stop > len(data):
                return "a part of a frame claims to be longer than the frame"
            unit = data[start + prefix : stop]
            if not unit or HOLE in unit:
                return hole
            start = stop
        # Some files end their frames with a zero or two; but then the next frame's length follows.
        if len(bare) < len(data) and place is not None:
            after = place + len(data)
            if HOLE in data[len(bare) :] or self.content[after : after + 4] == bytes(4):
                return hole
        return None

    def _is_missing(self, packet: av.Packet) -> bool:
        return packet.pos is not None and packet.pos + packet.size > len(self.content)


def describe(source: ByteRange | Path | bytes) -> str:
    """What a message calls `source`."""
    if isinstance(source, bytes):
        return f"{len(source)} bytes in memory"
    if isinstance(source, str | Path):
        return str(source)
    return f"{source.path}, bytes {source.offset} to {source.offset + source.length}"


@contextlib.contextmanager
def opened(source: ByteRange | Path | bytes) -> Iterator[Stream]:
    """Open a video, read its packets and list its frames.

    A file that is cut short is opened where its index is whole (at its front): the index tells
    which frames there should be, so that those that are there keep their places.

    Raises:
        AvomniError: the file is missing, empty, without its index or no video, or two of its frames
            share a time.
    """
    name = describe(source)
    with contextlib.ExitStack() as stack:
        try:
            content = _content(source)
            if not content:
                raise damaged("the file is empty", name)
            container = stack.enter_context(_container(io.BytesIO(content)))
            entries = _entries(container)
            end = max((entry.pos + entry.size for entry in entries), default=0)
            most = max(end, sum(entry.size for entry in entries))
            if most > len(content) + MOST_MISSING_BYTES:
                raise damaged(f"its index names {most:,} bytes, it has {len(content):,}", name)
            if end > len(content):
                container = stack.enter_context(_container(_Padded(content, end)))
            stream = _read(name, content, container)
        except FileNotFoundError:
            raise AvomniError("video file not found", where=name, fix=FETCH_AGAIN) from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise damaged(f"not a video that can be read: {reason}", name) from None
        yield stream


def _content(source: ByteRange | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        return Path(source).read_bytes()
    try:
        return source.read()  # compares the content with the zip's checksum
    except AvomniError as error:
        raise damaged(f"the video is {error.what}", describe(source)) from None


def _container(file: io.BytesIO | _Padded) -> av.container.InputContainer:
    return av.open(file, buffer_size=READ_BUFFER_BYTES, metadata_errors="replace")


def _entries(container: av.container.InputContainer) -> list[av.IndexEntry]:
    return list(container.streams.video[0].index_entries) if container.streams.video else []


class _Padded:
    """A file cut short, as one of its whole length whose end is zeros: its index is read whole."""

    def __init__(self, content: bytes, length: int):
        self._content, self._length, self._place = content, length, 0

    def read(self, size: int) -> bytes:
        size = max(min(size, self._length - self._place), 0)
        piece = self._content[self._place : self._place + size]
        self._place += size
        return piece.ljust(size, b"\0")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place


def _read(name: str, content: bytes, container: av.container.InputContainer) -> Stream:
    if not container.streams.video:
        raise damaged("the file holds no video stream", name)
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec is None:
        raise damaged("the video's codec is not known to this build of FFmpeg", name)
    codec.thread_count = 1  # one process a core; threads inside a decoder cost more than they bring
    codec.options = {"err_detect": "crccheck+explode"}
    # The packet that ends a demuxer's stream is empty and has no time.
    packets = [packet for packet in container.demux(stream) if packet.dts is not None]
    expected = max(len(stream.index_entries), len(packets))
    if not packets:
        raise damaged("the file holds no frames", name)
    if len(packets) < expected or packets[-1].is_corrupt:
        whole = len(packets) - packets[-1].is_corrupt
        raise damaged(f"the file is cut short: it holds {whole} of {expected} frames", name)
    if any(packet.pts is None for packet in packets):
        raise damaged("the file gives its frames no presentation times", name)
    # Packets outside of the container's edit list are decoded but never shown.
    pts = np.sort(np.array([p.pts for p in packets if not p.is_discard], dtype=np.int64))
    if len(pts) == 0 or not (np.diff(pts) > 0).all():
        raise damaged("two frames of the file share one presentation time", name)
    return Stream(name, content, codec, packets, pts, stream.time_base)


def damaged(what: str, name: str, frame_idx: int | None = None) -> Damaged:
    where = name if frame_idx is None else f"{name}, frame {frame_idx}"
    return Damaged(what, where=where, fix=FETCH_AGAIN)
