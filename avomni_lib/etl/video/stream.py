"""A video file's packets in decode order and its frames in presentation order, before decoding.

A clip's video (about 20 MB) is held in memory while it is read: then no seek is needed, and a file
whose index, interleaving or start time is unusual needs no special care.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avomni_lib.dataset import findings, streams
from avomni_lib.dataset.containers import NotVideo
from avomni_lib.errors import AvomniError

if TYPE_CHECKING:
    import av

    from avomni_lib.dataset.clip import ByteRange

FETCH_AGAIN = (
    "compare the file with its source, as 02_download does unless dataset.source is folder; or "
    "leave the clip out"
)


class Damaged(AvomniError):
    """The bytes of a video are not what they should be; everything else is a mistake of a call."""


@dataclass(frozen=True)
class Stream:
    """The video stream of one file, held open; `dataset.streams` finds nothing wrong with it.

    Attributes:
        name: The file, for messages.
        content: All bytes of the file.
        codec: PyAV's decoder of the stream, one thread, told to fail rather than to conceal.
        packets: In decode order.
        packet_pts: Of each packet, in units of `time_base`.
        pts: (N,) int64, of the frames in presentation order; row i of the data set's timestamps is
            `pts[i]`. Packets that an edit list hides have none here.
        time_base: Seconds of one unit of `pts`.
        scan: What was seen of the packets.
    """

    name: str
    content: bytes
    codec: av.VideoCodecContext
    packets: list[av.Packet]
    packet_pts: list[int]
    pts: np.ndarray
    time_base: Fraction
    scan: streams.Scan

    @property
    def times_us(self) -> np.ndarray:
        """(N,) int64 µs of the frames, counted from the first one."""
        return self.scan.times_us

    def row_of(self, packet: int) -> int:
        """The frame, in presentation order, that packet number `packet` holds."""
        return int(np.searchsorted(self.pts, self.packet_pts[packet]))

    @property
    def keys(self) -> np.ndarray:
        """Indices of `packets` that are key frames."""
        return np.array(self.scan.keys, dtype=int)

    @functools.cached_property
    def closed_keys(self) -> np.ndarray:
        """Key frames of closed GOPs: nothing from there on refers to what came before.

        In H.264 and HEVC those are the IDR pictures; elsewhere, key frames without leading
        pictures.
        """
        units = self.scan.units
        return self._keys_of(units.closed if units else frozenset())

    @functools.cached_property
    def starts(self) -> list[int]:
        """Indices of `packets` at which a decoder can start; the first packet always counts.

        These are the key frames of closed GOPs, and in HEVC all key frames: there a decoder knows
        the pictures that it must pass over after a start in an open GOP (H.265 §8.1.3), while one
        of H.264 meets references that it never had.
        """
        units = self.scan.units
        keys = self._keys_of(units.starts if units else frozenset())
        return np.union1d([0], keys).astype(int).tolist()

    def _keys_of(self, kinds: frozenset[int]) -> np.ndarray:
        if self.scan.kinds:
            is_kind = [bool(kinds & self.scan.kinds.get(key, frozenset())) for key in self.keys]
            return self.keys[is_kind]
        leading = np.flatnonzero(self.leading)
        return np.delete(self.keys, np.searchsorted(self.keys, leading, side="right") - 1)

    @functools.cached_property
    def leading(self) -> np.ndarray:
        """(num packets,) bool: pictures shown before the key frame that they follow.

        Only an open GOP has them, and they may need the GOP before (H.265 §3.69 calls them leading
        pictures).
        """
        flags = np.zeros(len(self.packets), dtype=bool)
        key_pts = self.packet_pts[0]
        for i, (packet, pts) in enumerate(zip(self.packets, self.packet_pts, strict=True)):
            if packet.is_keyframe:
                key_pts = pts
            flags[i] = pts < key_pts
        return flags

    def start_for(self, packet: int) -> int:
        """Where a decoder must start for this packet's picture.

        For a leading picture the start before its own, for it may refer to what lies there.
        """
        place = bisect.bisect_right(self.starts, packet) - 1
        return self.starts[max(place - 1, 0) if self.leading[packet] else place]


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
        AvomniError: the file is missing or no video, or `dataset.streams` finds it damaged.
    """
    name = describe(source)
    try:
        content = _content(source)
        with streams.opened(content) as (container, peek):
            if not container.streams.video:
                raise damaged("the file holds no video stream", name)
            scan = streams.Scan(container, peek)
            packets = list(scan.packets())
            findings.refuse(scan.findings(), name, FETCH_AGAIN, Damaged)
            codec = scan.codec
            # One process a core; threads inside a decoder cost more than they bring.
            codec.thread_count = 1
            codec.options = {"err_detect": "crccheck+explode"}
            for packet, pts in zip(packets, scan.pts, strict=True):
                packet.pts = pts
            base = scan.stream.time_base
            yield Stream(name, content, codec, packets, scan.pts, scan.shown, base, scan)
    except FileNotFoundError:
        raise AvomniError("video file not found", where=name, fix=FETCH_AGAIN) from None
    except (NotVideo, OSError) as error:
        reason = error.what if isinstance(error, NotVideo) else error
        raise damaged(f"not a video that can be read: {reason}", name) from None


def _content(source: ByteRange | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        return Path(source).read_bytes()
    try:
        return source.read()  # compares the content with the zip's checksum
    except AvomniError as error:
        raise damaged(f"the video is {error.what}", describe(source)) from None


def damaged(what: str, name: str, frame_idx: int | None = None) -> Damaged:
    where = name if frame_idx is None else f"{name}, frame {frame_idx}"
    return Damaged(what, where=where, fix=FETCH_AGAIN)
