"""A video file's packets in decode order and its frames in presentation order, before decoding.

A clip's video (about 20 MB) is held in memory while it is read: no seeking is needed, and files
with an unusual index, interleaving or start time need no special handling.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avomni_lib.dataset import findings, streams
from avomni_lib.dataset.streams import NotVideo
from avomni_lib.errors import AvomniError

if TYPE_CHECKING:
    import av


FETCH_AGAIN = (
    "compare the file with its source, as 02_download does unless dataset.source is folder; or "
    "leave the clip out"
)


class Damaged(AvomniError):
    """The content of a video is damaged; other errors are mistakes in a call."""


def damaged(what: str, name: str, frame_idx: int | None = None) -> Damaged:
    where = name if frame_idx is None else f"{name}, frame {frame_idx}"
    return Damaged(what, where=where, fix=FETCH_AGAIN)


@dataclass(frozen=True)
class Stream:
    """The open video stream of a file that passed the checks of `dataset.streams`.

    Attributes:
        name: The file, for messages.
        content: All bytes of the file, or its time range in a file of many clips.
        codec: PyAV's decoder of the stream, single-threaded, set to fail on errors.
        packets: In decode order; `scan.pts` has their times.
        pts: (N,) int64 times of the frames in presentation order; row i of the data set's
            timestamps is `pts[i]`. Packets hidden by an edit list are left out.
    """

    name: str
    content: bytes | streams.TimeRange
    codec: av.VideoCodecContext
    packets: list[av.Packet]
    scan: streams.Scan
    pts: np.ndarray

    @property
    def time_base(self):
        """Seconds (a Fraction) of one unit of `pts`."""
        return self.scan.stream.time_base

    @property
    def times_us(self) -> np.ndarray:
        """(N,) int64 µs of the frames, counted from the first one."""
        return self.scan.times_us

    def row_of(self, packet: int) -> int:
        """Index in presentation order of the frame in packet number `packet`."""
        return int(np.searchsorted(self.pts, self.scan.pts[packet]))

    @property
    def keys(self) -> np.ndarray:
        """Indices of `packets` that are key frames."""
        return np.array(self.scan.keys, dtype=int)

    @property
    def key_rows(self) -> np.ndarray:
        """(K,) int: indices, in presentation order, of the frames that decode without others."""
        shown = [packet for packet in self.starts if packet not in self.scan.hidden]
        return np.array([self.row_of(packet) for packet in shown], dtype=int)

    @functools.cached_property
    def leading(self) -> np.ndarray:
        """(num packets,) bool: pictures shown before the key frame that they follow in the file.

        Only open GOPs have them, and they may refer to the previous GOP (H.265 §3.69).
        """
        pts = np.array(self.scan.pts)
        last_key = np.searchsorted(self.keys, np.arange(len(pts)), side="right") - 1
        return pts < pts[self.keys[last_key]]

    @functools.cached_property
    def closed_keys(self) -> np.ndarray:
        """Key frames of closed GOPs: no later picture refers to an earlier one.

        In H.264 and HEVC these are the IDR pictures; elsewhere, key frames without leading
        pictures.
        """
        units = self.scan.units
        return self._keys_of(units.closed if units else frozenset())

    @functools.cached_property
    def starts(self) -> list[int]:
        """Indices of `packets` at which a decoder can start; always includes the first packet.

        These are the key frames of closed GOPs, and in HEVC all key frames: a HEVC decoder knows
        which pictures to skip after starting in an open GOP (H.265 §8.1.3), while an H.264 decoder
        would miss references.
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

    def plan_runs(self, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
        """The shortest runs to decode for packets `wanted` (ascending): (start, wanted packets).

        A run is decoded from its start to its last wanted packet. For a leading picture, it starts
        one start earlier, as the picture may refer to the previous GOP.
        """
        runs: list[tuple[int, list[int]]] = []
        for packet in wanted:
            place = bisect.bisect_right(self.starts, packet) - 1
            start = self.starts[max(place - 1, 0) if self.leading[packet] else place]
            held = [packet]
            while runs and start <= runs[-1][1][-1]:
                earlier, before = runs.pop()
                start, held = min(start, earlier), before + held
            runs.append((start, held))
        return runs


@contextlib.contextmanager
def opened(source: streams.Source) -> Iterator[Stream]:
    """Open a video, read its packets and list its frames.

    Raises:
        AvomniError: the file is missing, no video, or damaged by the checks of `dataset.streams`.
    """
    name, span = str(source), None
    try:
        if isinstance(source, bytes):
            name, content = f"{len(source)} bytes in memory", source
        elif isinstance(source, str | Path):
            content = Path(source).read_bytes()
        elif isinstance(source, streams.TimeRange):
            content, span = source, source  # do not read a whole file of many clips
        else:
            name = f"{source.path}, bytes {source.offset} to {source.offset + source.length}"
            try:
                content = source.read()  # also checks the zip's checksum
            except AvomniError as error:
                raise damaged(f"the video is {error.what}", name) from None
        with streams.opened(content) as (container, peek):
            if not container.streams.video:
                raise damaged("the file holds no video stream", name)
            scan = streams.Scan(container, peek, span)
            packets = list(scan.packets())
            findings.refuse(scan.findings(), name, FETCH_AGAIN, Damaged)
            # There is one process per core: decoder threads would cost more than they gain.
            scan.codec.thread_count = 1
            scan.codec.options = {"err_detect": "crccheck+explode"}
            for packet, pts in zip(packets, scan.pts, strict=True):
                packet.pts = pts
            yield Stream(name, content, scan.codec, packets, scan, scan.shown)
    except FileNotFoundError:
        raise AvomniError("video file not found", where=name, fix=FETCH_AGAIN) from None
    except (NotVideo, OSError) as error:
        reason = error.what if isinstance(error, NotVideo) else error
        raise damaged(f"not a video that can be read: {reason}", name) from None
