"""A camera's video without decoding: its container, packets and NAL units.

All packets are read through `Scan`, which checks the stream.
Formats: ISO/IEC 14496-15 (length-prefixed NAL units in mp4), ITU-T H.264 7.3.1 and H.265 7.3.1
(NAL unit headers; emulation prevention forbids 00 00 00, 00 00 01 and 00 00 02 inside a unit).

FFmpeg selects a demuxer by a file's content. A playlist (ffconcat, HLS, DASH), a session
description (SDP) or a pattern of image names could thereby make it open other files and addresses.
So `opened` recognises self-contained container formats by their first bytes and passes the
demuxer's name to FFmpeg, with all protocols disabled and external tracks of QuickTime files
(`dref`) ignored.
"""

from __future__ import annotations

import contextlib
import io
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from avomni_lib.dataset import limits
from avomni_lib.dataset.findings import DAMAGED, ODD, Finding
from avomni_lib.dataset.stored_zip import ByteRange
from avomni_lib.errors import AvomniError

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Frames of a video file from `start_s` (inclusive) to `stop_s` (exclusive), by its own times.

    As frame times are rounded, both bounds are shifted by half a frame at `fps`.
    """

    path: Path
    start_s: float
    stop_s: float
    fps: float

    @property
    def bounds_s(self) -> tuple[float, float]:
        """The half-open interval of frame times."""
        return self.start_s - 0.5 / self.fps, self.stop_s - 0.5 / self.fps

    def __str__(self) -> str:
        return f"{self.path}, {self.start_s:g} to {self.stop_s:g} s"


Source = ByteRange | Path | bytes | TimeRange
Fault = tuple[str, str] | None  # kind and reason
FORBIDDEN = re.compile(rb"\x00\x00[\x00-\x02]")
# In annex B streams (H.264, H.265), two zeros may only be followed by more zeros and a start code.
HOLE_OF_ANNEX_B = re.compile(rb"\x00\x00(?:\x00+[^\x00\x01]|\x02)")
START_CODE = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
DENSE_CODECS = ("libdav1d", "av1", "vp9", "mpeg4")


class Units(NamedTuple):
    """How to parse a codec's NAL units.

    Attributes:
        length_place: Byte of the decoder configuration whose low bits hold the size of lengths.
        slices: Unit types of pictures.
        sets: Unit types of parameter sets.
        starts: Types of pictures at which a decoder can start.
        closed: Those of `starts` that start a closed GOP.
        shift, mask: Position of the type in a unit's first byte.
    """

    length_place: int
    slices: frozenset[int]
    sets: frozenset[int]
    starts: frozenset[int]
    closed: frozenset[int]
    shift: int
    mask: int


# H.264 table 7-1: 1-5 are slices, 5 is IDR, 7 and 8 parameter sets. H.265 table 7-1: 0-31 are
# slices, 16-23 IRAP pictures, 32-34 parameter sets; CRA (21) and BLA (16-18) pictures may be
# followed by pictures that refer to the previous GOP.
_H264 = (range(1, 6), (7, 8), (5,), (5,))
_HEVC = (range(32), range(32, 35), range(16, 24), (19, 20))
CODECS = {
    "h264": Units(4, *map(frozenset, _H264), shift=0, mask=0x1F),
    "hevc": Units(21, *map(frozenset, _HEVC), shift=1, mask=0x3F),
}


@dataclass(frozen=True)
class Walked:
    """The result of reading all packets of a stream.

    Attributes:
        facts: Plain values; empty if the file does not open. codec, profile, width, height (px),
            num_hidden (frames, by an edit list), fps, is_constant (rate), bit_rate (bit/s), gops
            (length in frames -> number), is_open (open GOPs; None if the codec's units are not
            parsed), is_reordered (B-frames), tick_us (unit of the stream's times).
        findings: Findings without a place.
        times_us: (N,) int64 µs of the frames that are shown, counted from the first one.
    """

    facts: dict[str, Any]
    findings: list[Finding]
    times_us: np.ndarray


@dataclass
class Scan:
    """The packets of a container's first video stream, checked while they are read.

    Attributes:
        container: The open container.
        span: Show only the frames in this range; earlier ones that they need are read and hidden.
        peek: (offset, length) -> bytes of the file.
        pts: Time of each packet in the file's order, in units of the stream's time base.
        hidden: Indices of packets that are decoded but not shown, by an edit list or `span`.
        keys: Indices of packets that are key frames.
        kinds: Index of a key frame -> types of its NAL units, if these are parsed.
    """

    container: InputContainer
    peek: Callable[[int, int], bytes]
    span: TimeRange | None = None
    pts: list[int] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    keys: list[int] = field(default_factory=list)
    kinds: dict[int, frozenset[int]] = field(default_factory=dict)
    _faults: list[tuple[int, str, str]] = field(default_factory=list)  # packet, kind, reason
    _num_bytes: int = 0
    _num_timeless: int = 0
    _cut: str | None = None
    # Zeros at the end of each picture; and (index, zeros, reason) of packets that may have a hole.
    _tails: list[int] = field(default_factory=list)
    _doubtful: list[tuple[int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stream = self.container.streams.video[0]
        self.codec = self.stream.codec_context
        # The header's count may differ from the number of frames, in an avi or with an edit list in
        # an mp4. So it is only used if there is no index.
        self._num_listed = len(self.stream.index_entries) or self.stream.frames
        self._base_s = float(self.stream.time_base or 1)
        self.units: Units | None = None
        self._prefix = 0
        if self.codec is not None:
            extra = self.codec.extradata or b""
            self.units = CODECS.get(self.codec.codec.canonical_name)
            # With a decoder configuration record (version 1), units are length-prefixed.
            if self.units and extra[:1] == b"\1" and len(extra) > self.units.length_place:
                self._prefix = (extra[self.units.length_place] & 3) + 1

    def packets(self) -> Iterator[Packet]:
        """Non-empty packets in the file's order, up to where the file breaks off."""
        import av

        if self.codec is None:
            return
        try:
            if self.span:
                start = int(max(self.span.bounds_s[0], 0) / self._base_s)
                self.container.seek(start, stream=self.stream, backward=True)
            for packet in self.container.demux(self.stream):
                if self.span and (packet.dts or 0) * self._base_s >= self.span.bounds_s[1]:
                    return  # a frame is never shown before its decoding time
                # The packet that ends a stream is empty; dts cannot tell, as Matroska has none.
                if packet.size:
                    self._see(packet)
                    yield packet
        except (av.FFmpegError, ValueError) as error:
            self._cut = str(getattr(error, "strerror", None) or error)

    @property
    def shown(self) -> np.ndarray:
        """(N,) int64: pts of the frames that are shown, in presentation order."""
        return np.sort([p for i, p in enumerate(self.pts) if i not in self.hidden]).astype(np.int64)

    @property
    def times_us(self) -> np.ndarray:
        """(N,) int64 µs of the frames that are shown, counted from the first one."""
        shown, base = self.shown, self.stream.time_base
        return np.array([round((int(p) - int(shown[0])) * base * 1_000_000) for p in shown], int)

    def walk(self) -> Walked:
        """Read all packets; returns facts and findings."""
        for _ in self.packets():
            pass
        return Walked(self.facts(), self.findings(), self.times_us)

    def _see(self, packet: Packet) -> None:
        index, pts, data = len(self.pts), packet.pts, bytes(packet)
        if pts is None and not self.codec.has_b_frames:
            pts = packet.dts  # frames are shown in the stored order
        self._num_timeless += pts is None
        self.pts.append(0 if pts is None else pts)
        self._num_bytes += packet.size
        is_outside = False
        if self.span:
            start_s, stop_s = self.span.bounds_s
            is_outside = not start_s <= self.pts[-1] * self._base_s < stop_s
        if packet.is_discard or is_outside:
            self.hidden.add(index)
        kinds: set[int] = set()
        if packet.is_corrupt:
            fault: Fault = ("cut short", f"only {packet.size:,} bytes of it are there")
        elif self.units is None:
            fault = self._hole_of_others(data, packet.pos)
        elif self._prefix:
            fault = self._units_of(index, data, packet.pos, kinds)
        else:
            fault = self._annex_b(data, kinds)
        if fault:
            self._faults.append((index, *fault))
        if packet.is_keyframe:
            self.keys.append(index)
            if kinds:
                self.kinds[index] = frozenset(kinds)

    def _units_of(self, index: int, packet: bytes, pos: int | None, kinds: set[int]) -> Fault:
        """The first fault in a packet's NAL units; adds their types to `kinds`."""
        units, size, place, end = self.units, self._prefix, 0, len(packet)
        assert units is not None
        tails = []
        # Remaining bytes that are too few for a length are padding, which FFmpeg skips too.
        while place + size <= end:
            length = int.from_bytes(packet[place : place + size], "big")
            start, place = place + size, place + size + length
            if not length or place > end:
                reason = f"a NAL unit of {length:,} bytes at byte {start:,} of {end:,}"
                if not any(packet[start : start + 64]):
                    return "zeroed", f"zeros in place of {reason}"
                return "a broken NAL unit", reason
            head = packet[start]
            if head & 0x80:
                return "a broken NAL unit", f"no NAL unit header at byte {start:,}"
            kind = head >> units.shift & units.mask
            kinds.add(kind)
            # Other units, such as SEI messages, do not affect pictures and may contain anything.
            if kind not in units.slices and kind not in units.sets:
                continue
            zeros = length - len(packet[start:place].rstrip(b"\0"))
            hole = FORBIDDEN.search(packet, start, place - zeros)
            if hole or zeros == length:
                at = hole.start() if hole else start
                return "zeroed", f"bytes that no NAL unit holds, at byte {at:,}"
            tails.append((zeros, place - zeros))
        if not units.slices.intersection(kinds):
            return "no picture", "no NAL unit of a picture in it"
        self._tails.append(tails[-1][0])
        zeros, at = max(tails)
        if zeros:
            reason = f"zeros at its end that are no filling, at byte {at:,}"
            # A hole continues where the next frame's length should be.
            if pos is not None and self.peek(pos + end, size) == bytes(size):
                return "zeroed", reason
            if zeros > limits.FEW_ZEROS and (zeros >= limits.ALIGNMENT or end % limits.ALIGNMENT):
                self._doubtful.append((index, zeros, reason))
        return None

    def _annex_b(self, packet: bytes, kinds: set[int]) -> Fault:
        units = self.units
        assert units is not None
        kinds.update(head[0] >> units.shift & units.mask for head in START_CODE.findall(packet))
        hole = HOLE_OF_ANNEX_B.search(packet)
        if hole or not any(packet):
            at = hole.start() if hole else 0
            return "zeroed", f"bytes that no NAL unit holds, at byte {at:,}"
        if not units.slices.intersection(kinds):
            return "no picture", "no NAL unit of a picture in it"
        return None

    def _hole_of_others(self, packet: bytes, pos: int | None) -> Fault:
        if not any(packet):
            return "zeroed", "it holds nothing but zeros"
        if self.codec.name not in DENSE_CODECS:
            return None
        # Include bytes around the packet, as a hole may extend beyond it.
        reach, before, after = limits.HOLE_BYTES - 1, b"", b""
        if pos is not None and packet[0] == 0:
            first = max(pos - reach, 0)
            before = self.peek(first, pos - first)
        if pos is not None and packet[-1] == 0:
            after = self.peek(pos + len(packet), reach)
        is_holed = bytes(limits.HOLE_BYTES) in before + packet + after
        return ("zeroed", "a part of it is zeros") if is_holed else None

    def findings(self) -> list[Finding]:
        """Findings about the stream, after all packets were read."""
        if self.codec is None:
            reason = "the video's codec is not known to this build of FFmpeg"
            return [Finding(DAMAGED, "unknown codec", reason)]
        findings, count = [], len(self.pts)
        if self._cut:
            reason = f"the mp4 breaks off after {count} frames: {self._cut}"
            findings.append(Finding(DAMAGED, "the mp4 breaks off", reason))
        elif self._num_listed > count and not self.span:
            reason = f"the mp4 lists {self._num_listed} frames and holds {count}"
            findings.append(Finding(DAMAGED, "the mp4 is cut short", reason))
        if not count or (self.span and len(self.hidden) == count):
            where = f" from {self.span.start_s:g} to {self.span.stop_s:g} s" if self.span else ""
            return findings or [Finding(DAMAGED, "no frame", f"the mp4 holds no frame{where}")]
        # Zeros at the ends of pictures are padding if many pictures of the file end so.
        filled = [zeros for zeros in self._tails if zeros]
        is_usual = filled and len(filled) >= limits.USUAL_SHARE * len(self._tails)
        most = limits.USUAL_TIMES * np.median(filled) if is_usual else 0
        doubts = [(i, "zeroed", reason) for i, zeros, reason in self._doubtful if zeros > most]
        faults = sorted([*self._faults, *doubts])
        more = f"; {len(faults)} of {count} frames are damaged" if len(faults) > 1 else ""
        for kind in dict.fromkeys(kind for _, kind, _ in faults):
            index, _, reason = next(fault for fault in faults if fault[1] == kind)
            reason = f"frame {index} is damaged: {reason}{more}"
            findings.append(Finding(DAMAGED, f"frame: {kind}", reason))
        if self.keys[:1] != [0]:
            reason = f"frame {self.keys[0]} is the first key frame" if self.keys else "no key frame"
            what = "does not start with a key frame"
            findings.append(Finding(DAMAGED, what, f"{reason}, not frame 0"))
        return findings + self._findings_of_times(count)

    def _findings_of_times(self, count: int) -> list[Finding]:
        shown, findings = self.shown, []
        is_in_order = (np.diff(self.pts) > 0).all()
        is_avi = self.container.format.name == "avi"
        if self._num_timeless or (is_avi and self.codec.has_b_frames and is_in_order):
            reason = "the file gives its frames no presentation times"
            return [Finding(DAMAGED, "no presentation times", reason)]
        if len(shown) < count and not self.span:
            reason = f"an edit list hides {count - len(shown)} of the {count} frames in the file"
            severity = ODD if len(shown) else DAMAGED
            findings.append(Finding(severity, "frames that are not shown", reason))
        if shared := len(shown) - len(np.unique(shown)):
            reason = f"{shared} frames share the time of another one"
            findings.append(Finding(DAMAGED, "frames at one time", reason))
        steps = np.diff(shown) * self._base_s
        if not self._is_constant(steps):
            # We select frames by timestamp; other readers may assume a constant rate.
            low, high = steps.min() * 1e3, steps.max() * 1e3
            reason = f"variable frame rate: {low:.1f} to {high:.1f} ms from frame to frame"
            findings.append(Finding(ODD, "variable frame rate", reason))
        return findings

    def _is_constant(self, steps: np.ndarray) -> bool:
        """Whether steps (s) from frame to frame are equal, or too few to tell."""
        usual = np.median(steps) if len(steps) else 0
        slack = max(limits.STEP_TOLERANCE_S, 1.5 * self._base_s)
        return bool(usual <= 0 or np.abs(steps - usual).max() <= slack)

    def facts(self) -> dict[str, Any]:
        """As `Walked.facts`, after all packets were read."""
        if self.codec is None:
            return {}
        pts, shown = np.array(self.pts, np.int64), self.shown
        # In presentation order: in an open GOP, pictures shown before a key frame follow it.
        places = np.searchsorted(np.sort(pts), np.sort(pts[self.keys]))
        # The last GOP may be cut off by the end: it counts only if it is the only one.
        gops = Counter(np.diff(places).tolist() or [len(pts)])
        steps = np.diff(shown) * self._base_s
        step = float(np.median(steps)) if len(steps) else 0.0
        is_open = [self.units and not self.units.closed & kinds for kinds in self.kinds.values()]
        return {
            "codec": self.codec.codec.canonical_name,
            "profile": self.codec.profile,
            "width": self.codec.width,
            "height": self.codec.height,
            "num_hidden": 0 if self.span else len(pts) - len(shown),
            "gops": {str(length): count for length, count in sorted(gops.items())},
            "is_open": None if self.units is None else any(is_open),
            "is_reordered": bool((np.diff(pts) < 0).any()),
            "tick_us": self._base_s * 1e6,
            "fps": round(1 / step, 3) if step > 0 else None,
            "is_constant": self._is_constant(steps) if step > 0 else None,
            "bit_rate": round(self._num_bytes * 8 / (len(pts) * step)) if step > 0 else None,
        }


# Demuxer -> first bytes of its files. ISO 14496-12 §4.2 and QuickTime: a length, then the type of a
# box that may come first; RFC 8794: the id of EBML; RIFF's chunk; ISO 13818-1: packets of 188 bytes
# that start with a sync byte, on Blu-ray after 4 bytes of time.
CONTAINERS = {
    "mp4": re.compile(rb".{4}(?:ftyp|styp|moov|mdat|free|skip|wide|pnot|uuid)", re.DOTALL),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3"),
    "avi": re.compile(rb"RIFF.{4}AVI ", re.DOTALL),
    "mpegts": re.compile(rb"(?:\x47.{187}\x47|.{4}\x47.{191}\x47)", re.DOTALL),
}
NAMES = "mp4 or mov, mkv or webm, avi, ts"
HEAD_BYTES = 256
READ_BYTES = 1 << 17
CLOSED = {"protocol_whitelist": "none", "enable_drefs": "0", "use_absolute_path": "0"}


class NotVideo(AvomniError):
    """A file that is no known container, or cannot be opened as one."""


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[InputContainer, Callable[[int, int], bytes]]]:
    """Open a video for reading; no other files or addresses are read.

    Args:
        source: The path of a file (never a URL or pattern, even `a:b.mp4` or `%d.mp4`), a part of
            one, or a file's bytes.

    Returns:
        Its container, and a function (offset, length) -> bytes of the file.

    Raises:
        NotVideo: it is empty, none of `NAMES`, or FFmpeg cannot open it as such.
        OSError: the file cannot be read, for example because it does not exist.
    """
    import av

    place = source.path if isinstance(source, TimeRange) else source
    name = None if isinstance(place, bytes) else str(getattr(place, "path", place))

    def open_part() -> Any:
        if isinstance(place, bytes):
            return io.BytesIO(place)
        return place.open() if isinstance(place, ByteRange) else open(place, "rb")

    # Opening a pipe would block, and opening a folder gives no clear error.
    if isinstance(place, Path) and not stat.S_ISREG(place.stat().st_mode):
        raise NotVideo("not a regular file", where=name)
    with contextlib.ExitStack() as stack:
        # Two handles, as the demuxer uses the position of the first one.
        file, aside = (stack.enter_context(open_part()) for _ in range(2))
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if not head:
            raise NotVideo("the file is empty", where=name)
        kind = next((kind for kind, start in CONTAINERS.items() if start.match(head)), None)
        if kind is None:
            raise NotVideo(
                f"no video container ({NAMES}): it begins with {head[:16]!r}",
                where=name,
                fix="ffmpeg -i IN -c copy OUT.mp4 puts most other videos into an mp4",
            )
        try:
            container = av.open(
                file,
                format=kind,
                options=CLOSED,
                metadata_errors="replace",
                buffer_size=READ_BYTES,
            )
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise NotVideo(f"the {kind} does not open: {reason}", where=name) from None

        def peek(offset: int, length: int) -> bytes:
            aside.seek(offset)
            read: bytes = aside.read(length)
            return read

        yield stack.enter_context(container), peek
