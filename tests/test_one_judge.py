"""01, 03 and `pack` agree on planted clips.

03 leaves out and `pack` refuses the clips that the full audit calls damaged; they use those that
it calls odd or sound. Clips are real folders, zips, mp4s and tables.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.catalog import OBSTACLES
from avomni_lib.dataset.download import download
from avomni_lib.dataset.findings import DAMAGED, ODD
from avomni_lib.dataset.own import layout
from avomni_lib.dataset.own.pack import OwnClip, check, pack
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build
from avomni_lib.params import Params
from tests import folder_run
from tests.published_set import (
    CALIBRATION,
    PUBLISHED,
    Drive,
    ListedClip,
    chunk_path,
    clip_id_of,
    encode_video,
    frame_bits,
    parquet_bytes,
    read_zip,
    write_metadata,
    write_zip,
)
from tests.streams import Spec, encode, remuxed
from tests.test_obstacles import labels

CAMERAS = [camera.name for camera in cameras.GRIDS["4-cam"].cameras]
FRONT = CAMERAS[0]
SIZE, COUNT = (64, 48), 61
STAMPS = np.arange(COUNT) * 1_000_000 // 30
POSES_S = np.arange(-2.0, 9.0, 0.01)
V, Q = ("vx", "vy", "vz"), ("qx", "qy", "qz", "qw")
USED = "used"  # not damaged, so odd or sound


# --- clips -----------------------------------------------------------------------------------


def pictures(count: int = COUNT) -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 30, (count, *SIZE[::-1], 3), np.uint8)
    return [frame_bits(1, 0, i, *SIZE) // 2 + noise[i] for i in range(count)]


def coded(codec: str = "libx264", gop: int = 15, **options: str) -> bytes:
    """An mp4 of 30 pictures a second, its index in front."""
    spec = Spec(codec, {"g": str(gop), **options}, base=Fraction(1, 30))
    return encode(spec, pictures(), index_first=True)


H264 = coded(preset="ultrafast", crf="20")


@dataclass
class Planted:
    """The contents of one clip's members; `motion` has the columns of egomotion."""

    motion: dict[str, np.ndarray] = field(
        default_factory=lambda: Drive(1).egomotion(np.rint(POSES_S * 1e6).astype(np.int64))
    )
    stamps: dict[str, np.ndarray] = field(default_factory=lambda: dict.fromkeys(CAMERAS, STAMPS))
    videos: dict[str, bytes] = field(default_factory=lambda: dict.fromkeys(CAMERAS, H264))

    def own(self, name: str, folder: Path) -> OwnClip:
        """The clip as an argument of `pack`."""
        paths = {}
        for camera, content in self.videos.items():
            paths[camera] = folder / f"{name.replace('/', ' ')}.{camera}.mp4"
            paths[camera].write_bytes(content)
        columns = self.motion
        return OwnClip(
            name,
            paths,
            columns["timestamp"] / 1e6,
            np.stack([columns[axis] for axis in "xyz"], axis=1),
            quaternion=np.stack([columns[axis] for axis in Q], axis=1),
            velocity_mps=np.stack([columns[axis] for axis in V], axis=1),
            frame_times_s={camera: times / 1e6 for camera, times in self.stamps.items()},
        )


def moved(change: Callable[[dict], dict]) -> Planted:
    """A clip with changed columns of egomotion."""
    clip = Planted()
    clip.motion = clip.motion | change(clip.motion)
    return clip


def rows_of(keep: Callable[[np.ndarray], np.ndarray]) -> Planted:
    """Only the rows of egomotion that `keep` selects from their times in s, by mask or indices."""
    return moved(lambda c: {name: values[keep(POSES_S)] for name, values in c.items()})


def put(name: str, at_s: float, value: float) -> Planted:
    row = np.searchsorted(POSES_S, at_s)
    return moved(lambda c: {name: np.where(np.arange(len(POSES_S)) == row, value, c[name])})


def added(by: dict[str, float], from_s: float = -9, to_s: float = 99) -> Planted:
    part = (from_s <= POSES_S) & (to_s > POSES_S)
    return moved(lambda c: {name: c[name] + value * part for name, value in by.items()})


def scaled(factor: float, *names: str, from_s: float = -9, to_s: float = 99) -> Planted:
    by = np.where((from_s <= POSES_S) & (to_s > POSES_S), factor, 1)
    return moved(lambda c: {name: c[name] * by for name in names})


def turned(degrees: float, from_s: float = -9) -> Planted:
    def change(columns: dict) -> dict:
        before = Rotation.from_quat(np.stack([columns[name] for name in Q], axis=1))
        angle = np.where(from_s <= POSES_S, degrees, 0)[:, None]
        after = before * Rotation.from_euler("z", angle, degrees=True)
        return dict(zip(Q, after.as_quat().T, strict=True))

    return moved(change)


def straight(speed: float, rate_hz: float, ratio: float = 1.0, noise_m: float = 0.0) -> Planted:
    """A drive along x at a constant speed; velocities are `ratio` times that speed."""
    t_s = np.arange(-2, 9, 1 / rate_hz)
    zeros = np.zeros(len(t_s))
    columns = {"timestamp": np.rint(t_s * 1e6).astype(np.int64), "qw": zeros + 1}
    columns |= dict.fromkeys(("qx", "qy", "qz", "vy", "vz", "ax", "ay", "az", "curvature"), zeros)
    rng = np.random.default_rng(5)
    for axis, clean in (("x", speed * t_s), ("y", zeros), ("z", zeros)):
        columns[axis] = clean + rng.normal(0, noise_m, len(t_s))
    columns["vx"] = zeros + speed * ratio
    return Planted(columns)


def crash() -> Planted:
    """Positions and speeds agree, but fall from 35 to 5 m/s in a second."""
    clip = straight(5, 100)
    t_s = clip.motion["timestamp"] / 1e6
    clip.motion["vx"] = 35 - 30 * np.clip(t_s - 0.5, 0, 1)
    clip.motion["x"] = np.concatenate([[0], np.cumsum(np.diff(t_s) * clip.motion["vx"][1:])])
    return clip


def with_derived_velocity(clip: Planted) -> Planted:
    t_s = clip.motion["timestamp"] / 1e6
    for axis in "xyz":
        clip.motion["v" + axis] = np.gradient(clip.motion[axis], t_s)
    return clip


def in_time(factor: float, *what: str) -> Planted:
    clip = Planted()
    if "poses" in what:
        clip.motion["timestamp"] = np.rint(clip.motion["timestamp"] * factor).astype(np.int64)
    if "frames" in what:
        clip.stamps = dict.fromkeys(CAMERAS, np.rint(STAMPS * factor).astype(np.int64))
    return clip


def late(by_us: int) -> Planted:
    """All times are shifted."""
    clip = Planted(stamps=dict.fromkeys(CAMERAS, STAMPS + by_us))
    clip.motion["timestamp"] = clip.motion["timestamp"] + by_us
    return clip


def clock(change: Callable[[np.ndarray], np.ndarray], video: bytes = H264) -> Planted:
    """A clip with changed timestamps of one camera."""
    clip = Planted()
    clip.stamps = clip.stamps | {FRONT: np.array(change(STAMPS))}
    clip.videos = clip.videos | {FRONT: video}
    return clip


def filmed(video: bytes, stamps: np.ndarray = STAMPS) -> Planted:
    return clock(lambda _: stamps, video)


def paced(rate_hz: float) -> Planted:
    """Two seconds of frames at another rate, in the video and in the timestamps."""
    stamps = (np.arange(int(2 * rate_hz) + 1) * 1e6 / rate_hz).astype(np.int64)
    times = tuple(int(t) // 1000 for t in stamps)
    return filmed(encode(Spec(times=times), pictures(len(stamps))), stamps)


# --- videos ----------------------------------------------------------------------------------


def changed(
    content: bytes, change: Callable[[int, bytes], bytes] = lambda _, data: data, shift_s: float = 0
) -> bytes:
    """The same video with the bytes of each packet changed, or with earlier times."""

    def made(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for number, old in enumerate(packets):
            new, shift = av.Packet(change(number, bytes(old))), round(shift_s / old.time_base)
            new.pts, new.dts, new.duration = old.pts - shift, old.dts - shift, old.duration
            new.time_base, new.is_keyframe = old.time_base, old.is_keyframe
            yield new

    return remuxed(content, change=made)


def units_of(packet: bytes) -> list[bytes]:
    units, place = [], 0
    while place < len(packet):
        length = int.from_bytes(packet[place : place + 4], "big")
        units.append(packet[place + 4 : place + 4 + length])
        place += 4 + length
    return units


def joined(units: list[bytes]) -> bytes:
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


def padded(multiple: int, content: bytes = H264, every: bool = False) -> bytes:
    """Zeros after the last NAL unit of each picture (or after every one), within its length."""

    def change(_: int, packet: bytes) -> bytes:
        units = units_of(packet)
        if every:
            return joined([unit + bytes(-(len(unit) + 4) % multiple) for unit in units])
        return joined([*units[:-1], units[-1] + bytes(-len(packet) % multiple)])

    return changed(content, change)


def holed(content: bytes, number: int, first: float, last: float) -> bytes:
    """Part of one packet overwritten with zeros."""

    def change(index: int, packet: bytes) -> bytes:
        start, stop = int(len(packet) * first), int(len(packet) * last)
        holed_packet = packet[:start] + bytes(stop - start) + packet[stop:]
        return holed_packet if index == number else packet

    return changed(content, change)


def patched(at: int, filling: bytes) -> bytes:
    """Bytes of packet 5 replaced."""
    return changed(
        H264,
        lambda n, packet: packet[:at] + filling + packet[at + len(filling) :] if n == 5 else packet,
    )


def holed_over_three(number: int, packet: bytes) -> bytes:
    num_kept = {17: 40, 18: 0, 19: 0}.get(number, len(packet))
    return packet[:num_kept] + bytes(len(packet) - num_kept)


def with_sei(content: bytes) -> bytes:
    """An SEI message with zeros before each picture, as cameras write their metadata."""
    return changed(content, lambda _, packet: joined([b"\x06\x05" + bytes(30)]) + packet)


HEVC = {"x265-params": "bframes=3:log-level=none:pools=none:frame-threads=1"}
B_FRAMES = coded("libx264", 30, **{"x264-params": "bframes=3:b-adapt=0"})
IN_HEVC = coded("libx265", 30, **HEVC)
HIDING = changed(H264, shift_s=0.1)
SHOWN = COUNT - 3

# Name -> (clip, state in the audit[, parts of its reason]).
PLANTED: dict[str, tuple] = {
    "plain": (Planted, "sound"),
    # Poses.
    "parked, 2 cm of noise": (lambda: straight(0, 100, noise_m=0.02), USED),
    "parked, 2 cm of noise, its derivative": (
        lambda: with_derived_velocity(straight(0, 100, noise_m=0.02)), USED),
    "driving, 2 cm of noise, its derivative": (
        lambda: with_derived_velocity(straight(9, 100, noise_m=0.02)), USED),
    "2.05 Hz, speeds 11 % high": (lambda: straight(25, 2.05, 1.11), USED),
    "100 Hz, speeds 11 % high": (lambda: straight(25, 100, 1.11), USED),
    "speeds 30 % high": (lambda: straight(25, 100, 1.3), DAMAGED, "positions cover "),
    "speeds in km/h": (lambda: scaled(3.6, *V), DAMAGED),
    "positions in km": (lambda: scaled(0.001, "x", "y", "z"), DAMAGED),
    "1 Hz": (lambda: straight(9, 1), DAMAGED),
    "a gap of 0.5 s": (lambda: rows_of(lambda t: (t < 0.5) | (t > 0.995)), USED),
    "a gap of 0.6 s": (lambda: rows_of(lambda t: (t < 0.5) | (t > 1.095)), DAMAGED, "a gap of 0.6"),
    "a gap in the horizon": (lambda: rows_of(lambda t: (t < 5) | (t > 6)), DAMAGED),
    "a gap after the horizon": (lambda: rows_of(lambda t: (t < 8.45) | (t > 8.99)), "sound"),
    "ends at 1 s": (lambda: rows_of(lambda t: t < 1), DAMAGED, "to 0.99 s, the cameras"),
    "ends at 5 s": (lambda: rows_of(lambda t: t < 5), ODD,
        " s after the last frame; processing.horizon_s is "),
    "begins at 0.2 s": (lambda: rows_of(lambda t: t > 0.2), DAMAGED, "ego motion covers 0.2"),
    "reversed": (lambda: rows_of(lambda t: np.arange(len(t))[::-1]), DAMAGED,
        "ego motion is not in order: "),
    "a repeated row": (lambda: rows_of(lambda t: np.sort([*range(len(t)), 300])), DAMAGED),
    "one row": (lambda: rows_of(lambda t: t == t[200]), DAMAGED,
        "ego motion has 1 rows; at least 2"),
    "x is nan": (lambda: put("x", 1, np.nan), DAMAGED, "x is nan at row 300, 1.00 s"),
    "ay is inf, which is unused": (
        lambda: put("ay", 1, np.inf), ODD, "ay is inf at row 300"),
    "x is nan after the horizon": (lambda: put("x", 8.9, np.nan), ODD, "x is nan at row 1090"),
    "vz is inf": (lambda: put("vz", 1, np.inf), DAMAGED),
    "y is 1e308": (lambda: put("y", 1, 1e308), DAMAGED),
    "a jump after the horizon": (lambda: put("x", 8.9, 9.9), "sound"),
    "a quaternion of zeros": (
        lambda: moved(lambda c: {q: np.where(abs(POSES_S) < 1e-6, 0, c[q]) for q in Q}),
        DAMAGED, "|q| = 0.0000"),
    "quaternions of both signs": (
        lambda: moved(lambda c: {q: c[q] * (-1) ** np.arange(len(c[q])) for q in Q}), USED),
    "drives sideways": (lambda: turned(90), DAMAGED, "° beside where it points"),
    "drives backwards": (lambda: turned(180), USED),
    "turns by 20° at once": (
        lambda: turned(20, 1), ODD, "° from one row to the next at 1.0"),
    "speeds 40 % high for a second": (
        lambda: scaled(1.4, *V, from_s=1, to_s=2), ODD, " m/s, positions move at "),
    "a crash": (crash, ODD, "velocity changes by 30.0 m/s²"),
    "heading off by 20°": (lambda: turned(20), USED),
    "jumps by 50 m": (lambda: added({"x": 50.0}, 1), DAMAGED),
    "jumps by 4 m": (lambda: added({"y": 4.0}, 1), DAMAGED, "position jumps by "),
    "jumps by 0.5 m": (lambda: added({"y": 0.5}, 1), ODD, " against the speed at 1.0"),
    "jumps and returns": (lambda: added({"x": 9.0}, 1, 1.05), DAMAGED),
    "a jump in the horizon": (lambda: added({"x": 9.0}, 6), DAMAGED),
    "far from the origin": (lambda: added({"x": 5e5, "y": 4e6, "z": 120.0}), USED),
    "a speed of 80 m/s": (lambda: straight(80, 100), ODD, "80.0 m/s at "),
    "poses in ns": (lambda: in_time(1e3, "poses"), DAMAGED),
    "frame times in ms": (lambda: in_time(1e-3, "frames"), DAMAGED),
    "all in ns": (lambda: in_time(1e3, "poses", "frames"), DAMAGED),
    "half speed": (lambda: in_time(2, "poses", "frames"), DAMAGED),
    # Clocks.
    "on Unix time": (lambda: late(1_700_000_000_000_000), USED),
    "half a second late": (lambda: late(500_000), USED,
        "the first frame is at 0.500 s, not within ±0.1 s"),
    "half a second early": (lambda: late(-500_000), ODD, "the first frame is at -0.500 s, not"),
    "jitter of 3 ms": (
        lambda: clock(lambda t: t + np.random.default_rng(0).integers(-3000, 3000, COUNT)), USED),
    "three frames dropped": (
        lambda: clock(lambda t: t + 66_666 * (np.arange(COUNT) > 30) + 33_333 * (t > 1.5e6)), ODD,
        "3 frames are missing in 2 gaps; the longest is 100."),
    "a frame interval too short": (
        lambda: clock(lambda t: np.where(np.arange(COUNT) == 30, t[29] + 9000, t)), ODD,
        "1 frames follow too soon, as 9.0 ms at row 30"),
    "no frame for 0.5 s": (lambda: clock(lambda t: t + 466_666 * (np.arange(COUNT) > 30)), ODD),
    "no frame for 0.6 s": (lambda: clock(lambda t: t + 566_666 * (np.arange(COUNT) > 30)), DAMAGED,
        "no frame for 0.60 s at 1.00 s"),
    "frames reversed": (lambda: clock(lambda t: t[::-1]), DAMAGED),
    "a repeated time": (lambda: clock(lambda t: t[[*range(30), 29, *range(31, COUNT)]]), DAMAGED,
        "do not rise at row 30"),
    "no times": (lambda: clock(lambda t: t[:0]), DAMAGED,
        "the table of timestamps has 0 rows; at least 2"),
    "one time": (lambda: clock(lambda t: t[:1]), DAMAGED),
    "one time too few": (lambda: clock(lambda t: t[:-1]), DAMAGED,
        "61 frames in the mp4, 60 timestamps"),
    "one time too many": (lambda: clock(lambda t: np.append(t, t[-1] + 33_333)), DAMAGED),
    "timestamps at 25 Hz for a 30 Hz video": (lambda: clock(lambda t: t * 6 // 5), DAMAGED,
        "those of its timestamps 40.0 ms"),
    "3 % slow clock": (lambda: clock(lambda t: t * 103 // 100), ODD, "34.3 ms from frame to frame"),
    "one camera 1.2 s late": (lambda: clock(lambda t: t + 1_200_000), ODD),
    "one camera 3 s late": (lambda: clock(lambda t: t + 3_000_000), DAMAGED),
    "cameras that share one moment": (lambda: clock(lambda t: t + STAMPS[-1]), USED),
    # Streams.
    "1 Hz pictures": (lambda: paced(1), DAMAGED),
    "2 Hz pictures": (lambda: paced(2), ODD),
    "10 Hz pictures": (lambda: paced(10), ODD),
    "B-frames": (lambda: filmed(B_FRAMES), "sound"),
    "HEVC": (lambda: filmed(IN_HEVC), "sound"),
    "B-frames in Matroska": (lambda: filmed(remuxed(B_FRAMES, container="matroska")), USED),
    "MPEG-4 in avi": (lambda: filmed(remuxed(coded("mpeg4", 12), container="avi")), USED),
    "H.264 in a transport stream": (lambda: filmed(remuxed(B_FRAMES, container="mpegts")), USED),
    "an edit list that hides frames": (lambda: filmed(HIDING, STAMPS[:SHOWN]), ODD),
    "times of hidden frames too": (lambda: filmed(HIDING), DAMAGED),
    "zeros to 16 bytes": (lambda: filmed(padded(16)), "sound"),
    "zeros to 16 bytes after every unit": (lambda: filmed(padded(16, every=True)), "sound"),
    "zeros to 8 bytes": (lambda: filmed(padded(8)), "sound"),
    "zeros to 512 bytes": (lambda: filmed(padded(512)), "sound"),
    "zeros to 16 bytes, HEVC": (lambda: filmed(padded(16, IN_HEVC)), "sound"),
    "zeros to 32 bytes, HEVC": (lambda: filmed(padded(32, IN_HEVC)), "sound"),
    "SEI messages with zeros": (lambda: filmed(with_sei(H264)), "sound"),
    "a hole in a picture": (
        lambda: filmed(holed(H264, 17, 0.4, 0.6)), DAMAGED,
        "frame 17 is damaged: bytes that no NAL unit holds, at byte "),
    "a hole over three pictures": (
        lambda: filmed(changed(H264, holed_over_three)), DAMAGED,
        "frame 17 is damaged: ", "3 of 61 frames are damaged"),
    "a NAL unit that is too long": (
        lambda: filmed(patched(0, b"\xff" * 4)), DAMAGED,
        "frame 5 is damaged: a NAL unit of 4,294,967,295 bytes"),
    "a NAL unit without a header": (
        lambda: filmed(patched(4, b"\x81")), DAMAGED, "no NAL unit header at byte 4"),
    "no picture": (
        lambda: filmed(patched(4, b"\x06")), DAMAGED, "frame 5 is damaged: no NAL unit of a pict"),
    "without the first picture": (
        lambda: filmed(remuxed(H264, change=lambda packets: packets[1:]), STAMPS[1:]), DAMAGED,
        "frame 14 is the first key frame, not frame 0"),
    "a hole to a picture's end": (lambda: filmed(holed(H264, 17, 0.4, 1)), DAMAGED),
    "a hole to a picture's end, HEVC": (lambda: filmed(holed(IN_HEVC, 17, 0.4, 1)), DAMAGED),
    "a picture of zeros": (lambda: filmed(holed(H264, 17, 0, 1)), DAMAGED),
    "a hole in the last picture": (lambda: filmed(holed(H264, COUNT - 1, 0.2, 0.8)), DAMAGED),
    "cut short": (
        lambda: filmed(H264[: len(H264) * 2 // 3]), DAMAGED,
        "the mp4 lists 61 frames and holds ", "is damaged: only "),
    "only a header": (lambda: filmed(H264[:200]), DAMAGED, "the mp4 has no video"),
    "an unknown codec": (lambda: filmed(H264.replace(b"avc1", b"zzz1")), DAMAGED),
    "empty": (lambda: filmed(b""), DAMAGED, "the file is empty"),
    "noise": (lambda: filmed(np.random.default_rng(0).bytes(5000)), DAMAGED, "no video container"),
    "an ffconcat list": (lambda: filmed(b"ffconcat version 1.0\nfile a.mp4\n"), DAMAGED),
    "another clip's frames": (lambda: filmed(encode_video(pictures(50))), DAMAGED),
}  # fmt: skip


def write_folder(folder: Path, clips: list[Planted], clips_per_chunk: int = 1000) -> Path:
    """These clips as a data set; clip n is `clip_id_of(n)`."""
    ids = [clip_id_of(number) for number in range(len(clips))]
    write_metadata(folder, [ListedClip(i, n // clips_per_chunk) for n, i in enumerate(ids)])
    boxes = parquet_bytes({"frame_index": [1], "x1": [1]})
    for chunk, start in enumerate(range(0, len(ids), clips_per_chunk)):
        part = slice(start, start + clips_per_chunk)
        put_calibration(folder, chunk, ids[part])
        members: dict[str, dict[str, bytes]] = {name: {} for name in ["egomotion", *CAMERAS]}
        for clip_id, clip in zip(ids[part], clips[part], strict=True):
            members["egomotion"][f"{clip_id}.egomotion.parquet"] = parquet_bytes(clip.motion)
            for camera in CAMERAS:
                times = clip.stamps[camera]
                stamps = {"timestamp": times, "frame_index": np.arange(len(times))}
                members[camera] |= {
                    f"{clip_id}.{camera}.mp4": clip.videos[camera],
                    f"{clip_id}.{camera}.timestamps.parquet": parquet_bytes(stamps),
                    f"{clip_id}.{camera}.blurred_boxes.parquet": boxes,
                }
        for feature, contents in members.items():
            write_zip(folder / chunk_path(feature, chunk), contents)
    return folder


def put_calibration(folder: Path, chunk: int, ids: list[str]) -> None:
    for feature in set(CALIBRATION) & set(PUBLISHED):
        path = folder / chunk_path(feature, chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes = dict.fromkeys(ids, dict.fromkeys(CAMERAS, SIZE))
        path.write_bytes(layout.stand_in(feature, sizes))


def params(outputs: Path, data: Path, **processing) -> Params:
    small = {"sequence_length": 2, "stride": 1, "fit": "letterbox"}
    values = folder_run.values(outputs, data, **small, **processing)
    del values["processing"]["sample_hz"], values["processing"]["horizon_s"]
    values["dataset"] |= {"repo_id": "own/drives", "audit": "full"}
    values["download"] = {"target_chunks": 100}
    return Params.from_values(values)


class Verdicts(NamedTuple):
    """clip_id -> its row."""

    audited: dict[str, dict]
    built: dict[str, dict]


def judged(outputs: Path, data: Path, **processing) -> Verdicts:
    """The rows of 01 and of 03 for each clip."""
    p = params(outputs, data, **processing)
    audited = {row["clip_id"]: row for row in audit.audit(p, None).clips}
    download.fetch(p, None)
    return Verdicts(audited, {row["clip_id"]: row for row in build.build(p).clips})


# The data set may have these; in a user's recording they show a mistaken convention.
REFUSED_BY_PACK_ALONE = {
    "drives backwards",
    "x is nan after the horizon",
    "one camera 1.2 s late",
    "cameras that share one moment",
}


@pytest.fixture(scope="module")
def planted() -> dict[str, Planted]:
    return {name: make() for name, (make, *_) in PLANTED.items()}


@pytest.fixture(scope="module")
def verdicts(planted, tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    folder = tmp_path_factory.mktemp("judge")
    return judged(folder, write_folder(folder / "data", list(planted.values())))


@pytest.mark.parametrize("name", PLANTED)
def test_audit_build_and_pack_agree_on_each_planted_clip(name, planted, verdicts, tmp_path):
    expected, clip_id = PLANTED[name][1], clip_id_of(list(PLANTED).index(name))
    audited, built = verdicts.audited[clip_id], verdicts.built[clip_id]
    state = audited["state"]
    reasons = (audited["reason"], built["reason"])
    assert state in ((ODD, "sound") if expected == USED else (expected,)), reasons
    assert all(message in audited["reason"] for message in PLANTED[name][2:]), reasons
    assert built["state"] == ("damaged" if state == DAMAGED else "ok"), reasons
    assert bool(built["num_frames"]) == (state != DAMAGED)
    if state == DAMAGED:
        assert built["reason"], "for a person to read"
    own_clip = planted[name].own(name, tmp_path)
    if state == DAMAGED or name in REFUSED_BY_PACK_ALONE:
        with pytest.raises(AvomniError) as refused:
            check([own_clip])
        assert refused.value.what and name in refused.value.where
    else:
        check([own_clip])


def test_clips_written_by_pack_are_used(planted, tmp_path):
    """A folder packed from every accepted clip has no damaged clip in 01 and 03."""
    clips = []
    for name, (_, expected, *_) in PLANTED.items():
        if expected != DAMAGED and name not in REFUSED_BY_PACK_ALONE:
            clips.append(planted[name].own(name, tmp_path))
    pack(tmp_path / "data", clips)
    verdicts = judged(tmp_path, tmp_path / "data")
    assert {row["state"] for row in verdicts.audited.values()} <= {ODD, "sound"}
    assert {row["state"] for row in verdicts.built.values()} == {"ok"}
    assert len(verdicts.built) == len(clips)


# --- tables ----------------------------------------------------------------------------------


def as_bytes(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def swapped(table: pa.Table, name: str, values) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(
        place, name, values if isinstance(values, pa.Array) else pa.array(values)
    )


def one_value(name: str, value) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[len(values) // 2] = value
        kind = pa.float64() if isinstance(value, float) else None
        return swapped(table, name, pa.array(values, kind))

    return change


def typed(name: str, kind: pa.DataType, value) -> Callable[[pa.Table], pa.Table]:
    return lambda table: swapped(table, name, pa.array([value] * len(table), kind))


def many_rows(table: pa.Table) -> pa.Table:
    return table.take(pa.array(np.zeros(2_000_000, np.int64)))


def odd_tables(time: str, number: str) -> dict[str, Callable[[pa.Table], pa.Table | bytes]]:
    """Faults of a table with a column of times and one of numbers, by name."""
    return {
        "no rows": lambda table: table.slice(0, 0),
        "one row": lambda table: table.slice(0, 1),
        "a repeated column": lambda table: table.append_column(time, table[time]),
        "a repeated number column": lambda table: table.append_column(number, table[number]),
        "no time": lambda table: table.drop_columns([time]),
        "no number": lambda table: table.drop_columns([number]),
        "times are text": typed(time, pa.string(), "12"),
        "times are dates": typed(time, pa.timestamp("us"), 1),
        "times are null": typed(time, pa.null(), None),
        "times are large": typed(time, pa.uint64(), 2**64 - 1),
        "times are floats": lambda table: swapped(
            table, time, table[time].cast(pa.float64()).combine_chunks()),
        "numbers are text": typed(number, pa.string(), "x"),
        "numbers are null": typed(number, pa.null(), None),
        "a time is missing": one_value(time, None),
        "a number is missing": one_value(number, None),
        "a time is nan": one_value(time, float("nan")),
        "a time is 1e308": one_value(time, 1e308),
        "a time is 3e17": one_value(time, 300_000_000_000_000_000),
        "the last time is 3e17": lambda table: swapped(
            table, time, pa.array([*table[time].to_pylist()[:-1], 300_000_000_000_000_000])),
        "all times are 3e17 and more": lambda table: swapped(
            table, time, pa.array([t + 3 * 10**17 for t in table[time].to_pylist()])),
        "times from -9e18 to 9e18": lambda table: swapped(
            table, time, pa.array(np.linspace(-9e18, 9e18, len(table)).astype(np.int64))),
        "times are negative": lambda table: swapped(
            table, time, pa.array([t - 10**12 for t in table[time].to_pylist()])),
        "times fall": lambda table: swapped(table, time, pa.array(table[time].to_pylist()[::-1])),
        "a number is nan": one_value(number, float("nan")),
        "a number is -inf": one_value(number, float("-inf")),
        "a number is 1e308": one_value(number, 1e308),
        "two million rows": many_rows,
        "not a table": lambda _: b"PAR1",
        "cut": lambda table: as_bytes(table)[:-30],
        "empty": lambda _: b"",
    }  # fmt: skip


KINDS = ("frame_timestamps", "egomotion", OBSTACLES)
NAMES = {
    "frame_timestamps": ("timestamp", "frame_index"),
    "egomotion": ("timestamp", "x"),
    OBSTACLES: ("timestamp_us", "center_x"),
}


def write_with_labels(folder: Path, clips: list[Planted]) -> None:
    """Write a data set with labels of other road users."""
    write_folder(folder, clips)
    ids = [clip_id_of(number) for number in range(len(clips))]
    write_metadata(folder, [ListedClip(clip_id) for clip_id in ids], "main")
    members = {f"{i}.{OBSTACLES}.parquet": as_bytes(pa.table(labels(1))) for i in ids}
    write_zip(folder / chunk_path(OBSTACLES, 0), members)


@pytest.fixture(scope="module", params=KINDS)
def faulty(request, tmp_path_factory) -> tuple[str, list[str], Verdicts]:
    """A clip for each faulty table of one kind, and two plain ones: (kind, names, verdicts)."""
    kind, folder = request.param, tmp_path_factory.mktemp("tables")
    spoilers = odd_tables(*NAMES[kind])
    names = [*spoilers, "plain", "plain again"]
    write_with_labels(folder / "data", [Planted() for _ in names])
    feature = FRONT if kind == "frame_timestamps" else kind
    path = folder / "data" / chunk_path(feature, 0)
    end = {"frame_timestamps": f"{FRONT}.timestamps", "egomotion": "egomotion"}.get(kind, kind)
    members = read_zip(path)
    for number, spoil in enumerate(spoilers.values()):
        name = f"{clip_id_of(number)}.{end}.parquet"
        changed = spoil(pq.read_table(io.BytesIO(members[name])))
        members[name] = changed if isinstance(changed, bytes) else as_bytes(changed)
    write_zip(path, members)
    return kind, names, judged(folder, folder / "data", obstacles=True)


# Faults that do not prevent use: times of another numeric type, and columns that are not read.
# Labels are optional; invalid ones are left out one by one.
FINE = {"plain", "plain again", "times are floats"}
USABLE = {
    "frame_timestamps": FINE
    | {"a repeated number column", "no number", "numbers are text", "numbers are null"}
    | {"a number is missing", "a number is nan", "a number is -inf", "a number is 1e308"},
    "egomotion": FINE,
}


def test_damaged_clip_table_is_reported_by_audit_and_build(faulty):
    kind, names, verdicts = faulty
    assert len(verdicts.audited) == len(verdicts.built) == len(names)
    used = set()
    for number, name in enumerate(names):
        audited, built = (rows[clip_id_of(number)] for rows in (verdicts.audited, verdicts.built))
        reasons = (name, audited["reason"], built["reason"])
        assert built["state"] == ("damaged" if audited["state"] == DAMAGED else "ok"), reasons
        assert not name.startswith("plain") or audited["state"] == "sound", reasons
        used |= {name} if built["state"] == "ok" else set()
        for reason in reasons:
            assert "Error" not in reason and len(reason) < 500, reasons
    assert used == USABLE.get(kind, set(names))


CALIBRATED = {
    "camera_intrinsics": ("camera_name", "cx"),
    "sensor_extrinsics": ("sensor_name", "qw"),
    "vehicle_dimensions": (None, "length"),
}


def row_value(value: float | None) -> Callable[[pa.Table, np.ndarray, str], pa.Table]:
    def change(table: pa.Table, is_clip: np.ndarray, name: str) -> pa.Table:
        values = pc.if_else(pa.array(is_clip), pa.scalar(value, pa.float64()), table[name])
        return swapped(table, name, values.combine_chunks())

    return change


ODD_ROWS = {
    "missing": row_value(None),
    "nan": row_value(float("nan")),
    "1e308": row_value(1e308),
    "no row": lambda table, is_clip, _: table.filter(pa.array(~is_clip)),
    "two rows": lambda table, is_clip, _: pa.concat_tables(
        [table, table.filter(pa.array(is_clip))]
    ),
}


@pytest.mark.parametrize("feature", CALIBRATED)
def test_damaged_calibration_row_is_reported_by_audit_and_build(feature, tmp_path):
    folder = write_folder(tmp_path / "data", [Planted() for _ in [*ODD_ROWS, "plain"]])
    path = folder / chunk_path(feature, 0)
    table = pq.read_table(path)
    for number, change in enumerate(ODD_ROWS.values()):
        is_clip = table["clip_id"].to_numpy() == clip_id_of(number)
        table = change(table, is_clip, CALIBRATED[feature][1])
    path.write_bytes(as_bytes(table))
    verdicts = judged(tmp_path, folder)
    states = {clip_id: row["state"] for clip_id, row in verdicts.audited.items()}
    built = {clip_id: row["state"] for clip_id, row in verdicts.built.items()}
    assert list(states.values()) == [DAMAGED] * len(ODD_ROWS) + ["sound"]
    assert list(built.values()) == ["damaged"] * len(ODD_ROWS) + ["ok"]


ODD_CALIBRATION: dict[str, Callable[[pa.Table, str, str | None], pa.Table | bytes]] = {
    "no rows": lambda table, name, _: table.slice(0, 0),
    "a repeated column": lambda table, name, _: table.append_column(name, table[name]),
    "no column": lambda table, name, _: table.drop_columns([name]),
    "no clips": lambda table, name, _: table.drop_columns(["clip_id"]),
    "numbers are text": lambda table, name, _: typed(name, pa.string(), "x")(table),
    "clips are numbers": lambda table, name, _: typed("clip_id", pa.int64(), 1)(table),
    "clips are null": lambda table, name, _: typed("clip_id", pa.null(), None)(table),
    "sensors are numbers": lambda table, name, key: typed(key or "clip_id", pa.int64(), 1)(table),
    "two million rows": lambda table, name, _: many_rows(table),
    "not a table": lambda table, name, _: b"PAR1",
}


@pytest.mark.parametrize("feature", CALIBRATED)
def test_damaged_calibration_table_affects_only_its_clips(feature, tmp_path):
    """A chunk for each faulty table, and a plain one."""
    folder = write_folder(tmp_path / "data", [Planted() for _ in [*ODD_CALIBRATION, "plain"]], 1)
    key, number = CALIBRATED[feature]
    for chunk, change in enumerate(ODD_CALIBRATION.values()):
        path = folder / chunk_path(feature, chunk)
        changed_table = change(pq.read_table(path), number, key)
        path.write_bytes(
            changed_table if isinstance(changed_table, bytes) else as_bytes(changed_table)
        )
    verdicts = judged(tmp_path, folder)
    for chunk, name in enumerate([*ODD_CALIBRATION, "plain"]):
        audited, built = (rows[clip_id_of(chunk)] for rows in (verdicts.audited, verdicts.built))
        reasons = (name, audited["reason"], built["reason"])
        assert audited["state"] == ("sound" if name == "plain" else DAMAGED), reasons
        assert built["state"] == ("ok" if name == "plain" else "damaged"), reasons
        for reason in reasons:
            assert "Error" not in reason, reasons
