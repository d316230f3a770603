"""Facts of intact streams, and checks of calibration and files, each with a planted fault.

Broken streams, clocks and ego motion are in test_one_judge.py.
"""

import hashlib
import os
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avomni_lib.dataset import calibration, cameras, checks
from avomni_lib.dataset.audit.file import FileJob, look
from avomni_lib.dataset.findings import DAMAGED, ODD, Finding, reasons, summary
from avomni_lib.dataset.stored_zip import ByteRange, directory
from tests.published_set import (
    bytes_read,
    chunk_path,
    clip_id_of,
    frame_bits,
    read_zip,
    write_published_set,
    write_zip,
)
from tests.streams import Spec, encode, places

CAMERA = cameras.FRONT_WIDE.name
NUM_FRAMES = 24
KEYS = "keyint=6:min-keyint=6:scenecut=0"
SPAN_US = (-14_200, 2_000_000)


# --- streams ---------------------------------------------------------------------------------


def encoded(codec: str = "libx264", times: tuple[int, ...] | None = None, **options: str) -> bytes:
    spec = Spec(codec, {"g": "6", **options}, times=times, base=Fraction(1, 30))
    return encode(spec, [frame_bits(1, 0, i, 128, 96) for i in range(NUM_FRAMES)])


def walk(tmp_path: Path, content: bytes) -> tuple[dict, list[Finding]]:
    path = tmp_path / "stream.mp4"
    path.write_bytes(content)
    checked = checks.video(ByteRange(path, 0, len(content)))
    return checked.facts, checked.findings


H264, HEVC = f"{KEYS}:", f"{KEYS}:log-level=none:"


@pytest.mark.parametrize(
    ("codec", "options", "expected"),
    [
        ("libx264", {"x264-params": H264 + "bframes=0"}, ("h264", False, False)),
        ("libx264", {"x264-params": H264 + "bframes=2"}, ("h264", False, True)),
        ("libx264", {"x264-params": H264 + "bframes=2:open-gop=1:b-adapt=0"}, ("h264", True, True)),
        ("libx265", {"x265-params": HEVC + "bframes=2:open-gop=0"}, ("hevc", False, True)),
        ("libx265", {"x265-params": HEVC + "bframes=2:open-gop=1"}, ("hevc", True, True)),
        ("libsvtav1", {"preset": "12"}, ("av1", None)),
    ],
)
def test_intact_stream_is_described_without_findings(tmp_path, codec, options, expected):
    content = encoded(codec, **options)
    facts, findings = walk(tmp_path, content)
    assert findings == []
    assert (facts["codec"], facts["is_open"], facts["is_reordered"])[: len(expected)] == expected
    assert facts["fps"] == 30 and facts["is_constant"]
    assert (facts["width"], facts["height"]) == (128, 96)
    assert facts["gops"] == {"6": 3}, "the last one is cut by the end"
    size = sum(length for _, length in places(content))
    assert facts["bit_rate"] == pytest.approx(size * 8 / (NUM_FRAMES / 30), rel=0.05)


def test_variable_frame_rate_is_reported(tmp_path):
    times = tuple(number + (number >= 10) * 3 for number in range(NUM_FRAMES))
    facts, findings = walk(tmp_path, encoded(times=times, bf="0"))
    assert facts["is_constant"] is False
    (report,) = findings
    assert report.severity == ODD and "33.3 to 133.3 ms from frame to frame" in report.reason


def test_camera_with_a_different_end_is_reported():
    last_us = {"a": 20_119_000, "b": 20_110_000, "c": 12_400_000}
    findings = checks.ends(last_us)
    assert checks.ends({}) == {}
    assert list(findings) == ["c"]
    assert findings["c"].reason == "the last frame is at 12.40 s; usual here is 20.11 s"


# --- calibration -----------------------------------------------------------------------------

FOCAL = 1920 / np.radians(120)
LENS = {"width": 1920, "height": 1080, "cx": 960.0, "cy": 543.0}
LENS |= {f"fw_poly_{n}": FOCAL * (n == 1) for n in range(5)}
LENS |= {f"bw_poly_{n}": (n == 1) / FOCAL for n in range(5)}
MOUNT = {"qx": 0.5, "qy": -0.5, "qz": 0.5, "qw": -0.5, "x": 1.7, "y": 0.1, "z": 1.4}
CAR = {"length": 4.87, "width": 2.12, "height": 1.47, "rear_axle_to_bbox_center": 1.42}
CAR |= {"wheelbase": 2.85, "track_width": 1.6}
INTRINSICS, EXTRINSICS, VEHICLE = calibration.TABLES


@pytest.mark.parametrize(
    ("feature", "values", "size"),
    [
        (INTRINSICS, LENS, (1920, 1080)),
        (INTRINSICS, LENS | {"cy": 755.0}, None),  # the data set's second rig
        (INTRINSICS, LENS | {"fw_poly_3": 40.0, "bw_poly_3": -40 / FOCAL**4}, None),
        (EXTRINSICS, MOUNT, None),
        (VEHICLE, CAR, None),
        (VEHICLE, CAR | {"wheelbase": 3.165}, None),
    ],
)
def test_valid_calibration_has_no_findings(feature, values, size):
    findings = list(calibration.row(feature, CAMERA, values, size))
    assert [f for f in findings if f.what != "fw and bw are not inverse"] == []


@pytest.mark.parametrize(
    ("feature", "change", "size", "severity", "message"),
    [
        (INTRINSICS, {"cx": np.nan}, None, DAMAGED, f"cx of {CAMERA} is nan"),
        (INTRINSICS, {"fw_poly_4": None}, None, DAMAGED, f"fw_poly_4 of {CAMERA} is None"),
        (INTRINSICS, {}, (1280, 720), DAMAGED, "is for 1920×1080 px, its video is 1280×720"),
        (INTRINSICS, {"bw_poly_2": -2e-6}, None, DAMAGED, f"bw_poly of {CAMERA} falls at 2"),
        (INTRINSICS, {"fw_poly_3": -2000.0}, None, DAMAGED, f"fw_poly of {CAMERA} falls at 3"),
        (INTRINSICS, {"cx": 2500.0}, None, ODD, "at (2500.0, 543.0) px, outside of it"),
        (INTRINSICS, {"fw_poly_1": FOCAL * 1.1}, None, ODD, "fw_poly and bw_poly of"),
        (EXTRINSICS, {"qw": 0.4}, None, DAMAGED, f"no rotation of {CAMERA}: |q| = 0.95"),
        (EXTRINSICS, {"x": 170.0}, None, ODD, "170.0 m from the rear axle"),
        (EXTRINSICS, {"z": np.inf}, None, DAMAGED, f"z of {CAMERA} is inf"),
        (VEHICLE, {"length": 487.0}, None, ODD, "length is 487 m"),
        (VEHICLE, {"wheelbase": 5.0}, None, ODD, "wheelbase 5 m, length 4.87 m"),
    ],
)
def test_wrong_calibration_is_reported(feature, change, size, severity, message):
    values = {INTRINSICS: LENS, EXTRINSICS: MOUNT, VEHICLE: CAR}[feature] | change
    findings = list(calibration.row(feature, CAMERA, values, size))
    assert [finding.severity for finding in findings] == [severity]
    assert message in findings[0].reason


def test_field_of_view_unlike_the_cameras_name_is_odd():
    (report,) = calibration.row(INTRINSICS, cameras.FRONT_TELE.name, LENS)
    assert (report.severity, report.reason) == (ODD, "camera_front_tele_30fov sees 120° across")


# --- one file --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return write_published_set(folder, num_chunks=1, clips_per_chunk=2, seconds=0.4)


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(published, tmp_path / "copy")


def job(folder: Path, **changes) -> FileJob:
    endings = {"video": "mp4", "frame_timestamps": "timestamps.parquet"}
    endings["blurred_boxes"] = "blurred_boxes.parquet"
    names = tuple((kind, f"{{clip_id}}.{CAMERA}.{end}") for kind, end in endings.items())
    path = chunk_path(CAMERA, 0)
    clips = (clip_id_of(0), clip_id_of(1))
    fields = {"size": (folder / path).stat().st_size, "is_full": True, "feature": CAMERA}
    fields |= {"chunk": 0, "members": names, "clip_ids": clips, "wanted": clips}
    return FileJob(str(folder), path, **(fields | changes))


def test_quick_check_reads_the_directory_and_full_check_every_byte(folder):
    path = folder / chunk_path(CAMERA, 0)
    members = read_zip(path)
    name = f"{clip_id_of(1)}.{CAMERA}.mp4"
    members[name] += bytes(30_000_000)  # behind the mp4's end
    write_zip(path, members)
    look(job(folder, is_full=False))
    os.utime(path)  # the cached directory is read again
    before = bytes_read()
    assert look(job(folder, is_full=False))["findings"] == []
    assert bytes_read() - before < 20_000
    size = path.stat().st_size
    before = bytes_read()
    report = look(job(folder))
    assert report["findings"] == [] and report["facts"].keys() == {clip_id_of(0), clip_id_of(1)}
    # Once for hash and checksum; the packets are read again from memory.
    assert size <= bytes_read() - before < size + 1_000_000


def test_full_check_verifies_the_files_hash(folder):
    path = folder / chunk_path(CAMERA, 0)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    report = look(job(folder, sha256=right))
    assert report["sha256"] == right and report["findings"] == []
    (wrong,) = look(job(folder, sha256="0" * 64))["findings"]
    assert (wrong["reason"], wrong["reach"]) == ("its sha256 is wrong", "file")
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest()
    assert look(job(folder, blob_id=blob))["findings"] == []
    (wrong,) = look(job(folder, blob_id="0" * 40))["findings"]
    assert wrong["reason"] == "its git blob id is wrong"


def rewrite(path: Path, place: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)


def test_overwritten_local_header_is_reported_for_its_member(folder):
    path = folder / chunk_path(CAMERA, 0)
    first = min(directory(path).entries.items(), key=lambda item: item[1].header_offset)
    rewrite(path, first[1].header_offset, b"XX")
    report = look(job(folder))["findings"]
    assert [(f["what"], f["clip_id"]) for f in report] == [("no local header", clip_id_of(0))]
    assert report[0]["reason"] == f"no local header of {first[0]}"


def test_wrong_offsets_in_the_zip_directory_are_reported(folder):
    path = folder / chunk_path(CAMERA, 0)
    content = path.read_bytes()
    entries = directory(path).entries
    names = sorted(entries, key=lambda name: entries[name].header_offset)
    # Central directory: the offset of the second member becomes that of the first, plus ten.
    place = content.rindex(names[1].encode()) - 46 + 42
    rewrite(path, place, struct.pack("<I", entries[names[0]].header_offset + 10))
    report = look(job(folder, is_full=False))["findings"]
    assert "members overlap" in {finding["what"] for finding in report}
    report = look(job(folder))["findings"]
    assert {"members overlap", "no local header"} <= {finding["what"] for finding in report}


def test_findings_of_one_kind_are_counted_together():
    findings = [Finding(ODD, "gap", f"gap {n}", clip_id=f"c{n % 2}", chunk=n) for n in range(3)]
    findings += [Finding(DAMAGED, "cut", "cut", clip_id="c9", feature="f", path="p")]
    rows = summary(findings)
    assert [(r["severity"], r["what"], r["count"], r["clips"]) for r in rows] == [
        (DAMAGED, "cut", 1, 1),
        (ODD, "gap", 3, 2),
    ]
    assert rows[1]["reason"] == "gap 0" and reasons(findings).startswith("cut; gap 0")
