"""A video file's packets in decode order and its frames in presentation order, before decoding.

A clip's video (about 20 MB) is held in memory while it is read: then no seek is needed, and a file
whose index, interleaving or start time is unusual needs no special care.
"""

from __future__ import annotations

import contextlib
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
# Whether a NAL unit's first byte names an IDR picture (H.264 table 7-1, H.265 table 7-1).
IDR = {"h264": lambda byte: byte & 31 == 5, "hevc": lambda byte: byte >> 1 & 63 in (19, 20)}
FETCH_AGAIN = "run 02_download again: it compares the file with its sha256; or leave the clip out"


@dataclass(frozen=True)
class Stream:
    """The video stream of one file, held open.

    Attributes:
        name: The file, for messages.
        content: All bytes of the file.
        codec: PyAV's decoder of the stream, one thread, told to fail rather than to conceal.
        packets: In decode order.
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

    @property
    def keys(self) -> np.ndarray:
        """Indices of `packets` that are key frames."""
        return np.flatnonzero([packet.is_keyframe for packet in self.packets])

    @property
    def closed_keys(self) -> np.ndarray:
        """Key frames of closed GOPs: nothing from there on refers to what came before.

        In H.264 and HEVC those are the IDR pictures; elsewhere, key frames without leading
        pictures.
        """
        is_idr = IDR.get(self.codec.name)
        if is_idr and any(self.units(self.packets[0])):
            closed = [
                any(is_idr(unit[0]) for unit in self.units(self.packets[key])) for key in self.keys
            ]
            return self.keys[closed]
        leading = np.flatnonzero(self.leading())
        return np.delete(self.keys, np.searchsorted(self.keys, leading, side="right") - 1)

    @property
    def starts(self) -> list[int]:
        """Indices of `packets` at which a decoder can start; the first packet always counts.

        These are the key frames of closed GOPs, and in HEVC all key frames: there a decoder knows
        the pictures that it must pass over after a start in an open GOP (H.265 §8.1.3), while one
        of H.264 meets references that it never had.
        """
        keys = self.keys if self.codec.name == "hevc" else self.closed_keys
        return np.union1d([0], keys).astype(int).tolist()

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

    def units(self, packet: av.Packet) -> Iterator[bytes]:
        """The NAL units of a packet of H.264 or HEVC in an mp4; nothing for other codecs.

        Each unit follows its length, whose size stands in avcC or hvcC (ISO 14496-15 §5.3.3,
        §8.3.3).
        """
        extra = self.codec.extradata or b""
        place = {"h264": 4, "hevc": 21}.get(self.codec.name)
        if place is None or len(extra) <= place or extra[0] != 1:
            return
        prefix = (extra[place] & 3) + 1
        data, start = bytes(packet), 0
        while start + prefix < len(data):
            stop = start + prefix + int.from_bytes(data[start : start + prefix], "big")
            if stop > start + prefix:
                yield data[start + prefix : stop]
            start = stop

    def has_hole(self, packet: av.Packet) -> bool:
        """Whether the packet holds a run of zeros that its format forbids.

        No NAL unit of H.264 or HEVC contains three zero bytes in a row (H.264 §7.4.1, H.265
        §7.4.2.1); a file of which a part was never written does. FFmpeg's HEVC decoder reads on.
        """
        return any(b"\0\0\0" in unit.rstrip(b"\0") for unit in self.units(packet))


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

    Raises:
        AvomniError: the file is missing, empty, cut short or no video, or two of its frames share a
            time.
    """
    name = describe(source)
    with contextlib.ExitStack() as stack:
        try:
            content = _content(source)
            if not content:
                raise damaged("the file is empty", name)
            container = stack.enter_context(
                av.open(
                    io.BytesIO(content), buffer_size=READ_BUFFER_BYTES, metadata_errors="replace"
                )
            )
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


def damaged(what: str, name: str, frame_idx: int | None = None) -> AvomniError:
    where = name if frame_idx is None else f"{name}, frame {frame_idx}"
    return AvomniError(what, where=where, fix=FETCH_AGAIN)
