"""Quick checks of one file and of one clip: headers, counts, clocks; no picture is decoded.

Each returns why something is not sound, with the values that show it, or None.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avomni_lib.dataset.catalog import Catalog, Feature
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.stored_zip import ByteRange, members
from avomni_lib.dataset.tables import key_column, read_table
from avomni_lib.errors import AvomniError

MAX_EGOMOTION_GAP_S = 0.5
# float64 quaternions of unit length that were stored as float32 stay within this.
UNIT_TOLERANCE = 1e-3


def chunk_file(path: Path, feature: Feature, catalog: Catalog, chunk: int) -> str | None:
    """Whether a chunk's file opens and holds one set for each of its clips, named as agreed."""
    clip_ids = [c for c in catalog.clip_ids(chunk) if catalog.present(c, feature.name)]
    try:
        if feature.members:
            return _zip(path, feature, clip_ids)
        held = set(key_column(read_table(path, str(path)), "clip_id", str(path)))
        return _lacking(set(clip_ids) - held, "no row of clip")
    except AvomniError as error:
        return error.what


def _zip(path: Path, feature: Feature, clip_ids: Sequence[str]) -> str | None:
    entries = members(path)
    expected = {
        template.format(clip_id=clip_id)
        for clip_id in clip_ids
        for template in feature.members.values()
    }
    packed = [n for n, e in entries.items() if e.compress_type != zipfile.ZIP_STORED]
    if packed:
        return f"member {packed[0]} is compressed, not stored"
    return _lacking(expected - entries.keys(), "no member") or _lacking(
        entries.keys() - expected, "a member of no clip:"
    )


def _lacking(names: set[str], what: str) -> str | None:
    if not names:
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what} {min(names)}{more}"


def camera(clip: Clip, name: str) -> tuple[np.ndarray, str]:
    """(N,) int64 timestamps and the codec of a camera whose video and clock agree.

    Raises:
        AvomniError: they do not, or one cannot be read.
    """
    times = clip.timestamps(name)
    codec, num_frames = video_header(clip.video(name))
    if num_frames != len(times):
        raise AvomniError(f"{num_frames} frames in the mp4, {len(times)} timestamps")
    if not len(times):
        raise AvomniError("no frame")
    falls = np.flatnonzero(np.diff(times) <= 0)
    if len(falls):
        row = falls[0]
        raise AvomniError(
            f"timestamps do not rise at row {row + 1}: {times[row]} then {times[row + 1]} µs"
        )
    return times, codec


def video_header(part: ByteRange) -> tuple[str, int]:
    """Codec and number of frames, from the mp4's tables or, without them, by counting packets.

    Raises:
        AvomniError: no video that PyAV can open.
    """
    import av

    try:
        with part.open() as file, av.open(file) as container:
            if not container.streams.video:
                raise AvomniError("the mp4 has no video")
            stream = container.streams.video[0]
            num_frames = stream.frames or sum(p.size > 0 for p in container.demux(stream))
            return stream.codec_context.name, num_frames
    except av.FFmpegError as error:
        raise AvomniError(f"the mp4 does not open: {error}") from None


def egomotion(clip: Clip, first_us: int, last_us: int) -> None:
    """Ego motion that may be interpolated from `first_us` to `last_us`, the span of the cameras.

    Raises:
        AvomniError: not finite, not in order, no rotation, a gap, or it does not reach so far.
    """
    columns = clip.egomotion()
    times = columns["timestamp"]
    if len(times) < 2:
        raise AvomniError(f"ego motion has {len(times)} rows")
    for name, values in columns.items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise AvomniError(f"{name} is {values[wrong[0]]} at row {wrong[0]}")
    steps = np.diff(times)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0))
        raise AvomniError(
            f"ego motion is not in order: {times[row]} then {times[row + 1]} µs at row {row + 1}"
        )
    norm = np.sqrt(sum(columns[name] ** 2 for name in ("qx", "qy", "qz", "qw")))
    row = int(np.argmax(np.abs(norm - 1)))
    if abs(norm[row] - 1) > UNIT_TOLERANCE:
        raise AvomniError(f"no rotation at row {row}: |q| = {norm[row]:.4f}")
    if times[0] > first_us or times[-1] < last_us:
        raise AvomniError(
            f"ego motion covers {_span(times[0], times[-1])}, "
            f"the cameras {_span(first_us, last_us)}"
        )
    # Only where it is needed: the recording runs on long after the video.
    is_needed = (times[1:] > first_us) & (times[:-1] < last_us)
    gaps = np.where(is_needed, steps, 0)
    row = int(np.argmax(gaps))
    if gaps[row] > MAX_EGOMOTION_GAP_S * 1e6:
        raise AvomniError(
            f"a gap of {gaps[row] / 1e6:.2f} s in ego motion at {times[row] / 1e6:.2f} s"
        )


def calibration(clip: Clip, feature: str, cameras: Sequence[str]) -> None:
    """A row of finite numbers for each camera, or for the clip.

    Raises:
        AvomniError: a row is missing or makes no sense.
    """
    read = {"camera_intrinsics": clip.intrinsics, "sensor_extrinsics": clip.extrinsics}.get(feature)
    rows = {name: read(name) for name in cameras} if read else {"vehicle": clip.vehicle()}
    for name, row in rows.items():
        wrong = [key for key, value in row.items() if value is None or not np.isfinite(value)]
        if wrong:
            raise AvomniError(f"{wrong[0]} of {name} is {row[wrong[0]]}")
        if feature == "sensor_extrinsics":
            norm = np.linalg.norm([row[key] for key in ("qx", "qy", "qz", "qw")])
            if abs(norm - 1) > UNIT_TOLERANCE:
                raise AvomniError(f"no rotation of {name}: |q| = {norm:.4f}")


def _span(first_us: int, last_us: int) -> str:
    return f"{first_us / 1e6:.2f} to {last_us / 1e6:.2f} s"
