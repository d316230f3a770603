"""A camera's mp4 without decoding a picture: its tables, its packets and their NAL units.

Formats: ISO/IEC 14496-15 (length-prefixed NAL units in mp4), ITU-T H.264 7.3.1 and H.265 7.3.1
(NAL unit headers; emulation prevention forbids 00 00 00, 00 00 01 and 00 00 02 inside a unit).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avomni_lib.dataset.findings import DAMAGED, ODD, Finding
from avomni_lib.dataset.stored_zip import ByteRange

FORBIDDEN = re.compile(rb"\0\0[\0-\2]")
# Some encoders fill up a unit's end with zeros; a hole in a file is longer.
MAX_PADDING = 16
READ_BYTES = 1 << 17
# Frame times are rounded to the stream's time base, and to whole µs on the way.
STEP_TOLERANCE_S = 1e-4


@dataclass(frozen=True)
class Units:
    """How a codec's NAL units are to be read.

    Attributes:
        length_place: Byte of the decoder configuration whose low bits tell the lengths' size.
        slices: Types that hold pictures.
        closed: Types of key pictures that no later picture reaches over.
        shift, mask: Where the type stands in a unit's first byte.
    """

    length_place: int
    slices: frozenset[int]
    closed: frozenset[int]
    shift: int
    mask: int


# H.264 table 7-1: 1-5 are slices, 5 is IDR. H.265 table 7-1: 0-31 are slices, 19 and 20 are IDR;
# after CRA (21) and BLA (16-18) pictures may follow that need the group before.
CODECS = {
    "h264": Units(4, frozenset(range(1, 6)), frozenset({5}), 0, 0x1F),
    "hevc": Units(21, frozenset(range(32)), frozenset({19, 20}), 1, 0x3F),
}


@dataclass
class _Walk:
    """What has been seen of a stream so far, packet by packet in the file's order."""

    pts: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    num_bytes: int = 0
    num_open: int = 0
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    num_faulty: int = 0


def walk(part: ByteRange) -> tuple[dict[str, Any], list[Finding]]:
    """Facts about a stream, and what is wrong with it.

    Returns:
        Facts as plain values: codec, profile, pixel_format, width, height (px), num_frames, fps,
        is_constant (rate), bit_rate (bit/s), gops (length in frames -> how many), is_open (None
        where the codec's units are not read), is_reordered (B-frames); none where the file does
        not open. And findings without a place.
    """
    import av

    try:
        with part.open() as file, av.open(file, buffer_size=READ_BYTES) as container:
            if not container.streams.video:
                return {}, [Finding(DAMAGED, "no video", "the mp4 has no video")]
            stream = container.streams.video[0]
            context = stream.codec_context
            facts = {
                "codec": context.codec.canonical_name,
                "profile": context.profile,
                "pixel_format": context.pix_fmt,
                "width": context.width,
                "height": context.height,
            }
            seen, cut = _Walk(), None
            units, size = _units(context.codec.canonical_name, context.extradata)
            try:
                for packet in container.demux(stream):
                    if packet.size:
                        _see(seen, packet, units, size)
            except av.FFmpegError as error:
                cut = f"the mp4 breaks off after {len(seen.pts)} frames: {error.strerror}"
            return _facts(facts, seen, stream, units), _faults(seen, stream.frames, cut)
    except (av.FFmpegError, OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        return {}, [Finding(DAMAGED, "the mp4 does not open", f"the mp4 does not open: {told}")]


def _units(codec: str, extradata: bytes | None) -> tuple[Units | None, int]:
    """How to read the units, and the size of their length fields; none for other codecs."""
    units = CODECS.get(codec)
    # Without a decoder configuration record (version 1) the units are not length-prefixed.
    if units is None or not extradata or extradata[0] != 1 or len(extradata) <= units.length_place:
        return None, 0
    return units, (extradata[units.length_place] & 3) + 1


def _see(seen: _Walk, packet: Any, units: Units | None, size: int) -> None:
    index = len(seen.pts)
    seen.pts.append(packet.pts if packet.pts is not None else -1)
    seen.num_bytes += packet.size
    kinds: list[int] = []
    fault = None
    if packet.is_corrupt:
        fault = ("cut short", f"only {packet.size:,} bytes of it are there")
    elif units is not None:
        kinds, fault = _unit_types(bytes(packet), units, size)
    elif not any(memoryview(packet)):
        fault = ("zeroed", "it holds nothing but zeros")
    if fault:
        seen.num_faulty += 1
        seen.faults.setdefault(fault[0], (index, fault[1]))
    if packet.is_keyframe:
        seen.keys.append(index)
        seen.num_open += bool(kinds) and not units.closed.intersection(kinds)


def _unit_types(packet: bytes, units: Units, size: int) -> tuple[list[int], tuple[str, str] | None]:
    """The types of a packet's NAL units, and what is wrong with the first wrong one."""
    kinds: list[int] = []
    place, end = 0, len(packet)
    while place < end:
        length = int.from_bytes(packet[place : place + size], "big")
        start, place = place + size, place + size + length
        if not length or place > end:
            told = f"a NAL unit of {length:,} bytes at byte {start:,} of {end:,}"
            if not any(packet[start : start + 64]):
                return kinds, ("zeroed", f"zeros in place of {told}")
            return kinds, ("a broken NAL unit", told)
        head = packet[start]
        if head & 0x80:
            return kinds, ("a broken NAL unit", f"no NAL unit header at byte {start:,}")
        kinds.append(head >> units.shift & units.mask)
        hole = _hole(packet, start, place)
        if hole is not None:
            return kinds, ("zeroed", f"bytes that no NAL unit holds, at byte {hole:,}")
    if not units.slices.intersection(kinds):
        return kinds, ("no picture", "no NAL unit of a picture in it")
    return kinds, None


def _hole(packet: bytes, start: int, stop: int) -> int | None:
    """Where a unit holds three bytes that emulation prevention forbids, or a tail of zeros."""
    found = FORBIDDEN.search(packet, start, stop)
    if found is None:
        return None
    tail = packet[found.start() : stop]
    return found.start() if len(tail) > MAX_PADDING or any(tail) else None


def _facts(facts: dict[str, Any], seen: _Walk, stream: Any, units: Units | None) -> dict[str, Any]:
    facts |= {"num_frames": len(seen.pts), "num_key_frames": len(seen.keys)}
    pts = np.array(seen.pts, np.int64)
    shown = np.sort(pts)
    # Counted as they are shown: in an open group pictures before a key frame follow it in the file.
    places = np.searchsorted(shown, np.sort(pts[seen.keys]))
    # The last group may have been cut by the clip's end: it counts only where there is no other.
    gops = Counter(np.diff(places).tolist() or [len(pts)])
    shown = shown * float(stream.time_base or 1)
    steps = np.diff(shown)
    facts |= {
        "gops": {str(length): count for length, count in sorted(gops.items())},
        "is_open": None if units is None else seen.num_open > 0,
        "is_reordered": bool((np.diff(pts) < 0).any()),
        "first_s": float(shown[0]) if len(shown) else None,
        "fps": None,
        "is_constant": None,
        "bit_rate": None,
    }
    if len(steps) and np.median(steps) > 0:
        step = float(np.median(steps))
        slack = max(STEP_TOLERANCE_S, 1.5 * float(stream.time_base))
        facts |= {
            "fps": round(1 / step, 3),
            "is_constant": bool(np.abs(steps - step).max() <= slack),
            "step_s": [round(float(steps.min()), 4), round(float(steps.max()), 4)],
            "bit_rate": round(seen.num_bytes * 8 / (len(shown) * step)),
        }
    return facts


def _faults(seen: _Walk, num_listed: int, cut: str | None) -> list[Finding]:
    found = []
    count = len(seen.pts)
    if cut:
        found.append(Finding(DAMAGED, "the mp4 breaks off", cut))
    elif num_listed and num_listed != count:
        told = f"the mp4 lists {num_listed} frames and holds {count}"
        found.append(Finding(DAMAGED, "the mp4 is cut short", told))
    if not count and not found:
        found.append(Finding(DAMAGED, "no frame", "the mp4 holds no frame"))
    more = f"; {seen.num_faulty} of {count} frames are damaged" if seen.num_faulty > 1 else ""
    for kind, (index, told) in seen.faults.items():
        found.append(Finding(DAMAGED, f"frame: {kind}", f"frame {index} is damaged: {told}{more}"))
    if count and seen.keys[:1] != [0]:
        first = seen.keys[0] if seen.keys else None
        told = f"frame {first} is the first key frame" if first else "there is no key frame"
        found.append(Finding(DAMAGED, "does not start with a key frame", f"{told}, not frame 0"))
    if count and len(set(seen.pts)) < count:
        told = f"{count - len(set(seen.pts))} frames share the time of another one"
        found.append(Finding(DAMAGED, "frames at one time", told))
    return found


def rate(facts: dict[str, Any]) -> list[Finding]:
    """A variable frame rate: our frames are picked by their clocks, other readers count on one."""
    if facts.get("is_constant") is not False:
        return []
    low, high = facts["step_s"]
    told = f"variable frame rate: {low * 1e3:.1f} to {high * 1e3:.1f} ms from frame to frame"
    return [Finding(ODD, "variable frame rate", told)]
