"""Clips are read in place from their zips, and every error names file and clip."""

import io
import os
import shutil
import struct
import zipfile
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import EGOMOTION_COLUMNS, ByteRange, Clip
from avomni_lib.dataset.stored_zip import directory, member
from avomni_lib.errors import AvomniError
from tests.linked_set import write_linked_zip
from tests.published_set import (
    Drive,
    bytes_read,
    camera_times,
    chunk_path,
    clip_id_of,
    egomotion_times,
    parquet_bytes,
    read_frame,
    read_zip,
    write_published_set,
    write_zip,
)

CAMERA = cameras.FRONT_TELE.name
CAMERA_IDX = cameras.CAMERAS.index(cameras.FRONT_TELE)
NUMBER = 1


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return write_published_set(folder, num_chunks=1, clips_per_chunk=2, seconds=0.4)


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(published, tmp_path / "copy")


def clip_in(folder: Path) -> Clip:
    return Clip(folder, Catalog.open(folder), clip_id_of(NUMBER))


def test_video_is_read_in_place_from_the_zip(published: Path):
    clip = clip_in(published)
    part = clip.video(CAMERA)
    with part.open() as file, av.open(file) as container:
        frames = [read_frame(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    count = len(camera_times(NUMBER, CAMERA_IDX, 0.4))
    assert frames == [(NUMBER, CAMERA_IDX, i) for i in range(count)]
    members = read_zip(published / chunk_path(CAMERA, 0))
    assert part.read() == members[f"{clip.clip_id}.{CAMERA}.mp4"]
    assert part.path == published / chunk_path(CAMERA, 0), "nothing is unpacked"


def test_timestamps_and_egomotion_match_the_published_values(published: Path):
    clip = clip_in(published)
    times = clip.timestamps(CAMERA)
    assert times.dtype == np.int64
    np.testing.assert_array_equal(times, camera_times(NUMBER, CAMERA_IDX, 0.4))
    columns = clip.egomotion()
    truth = Drive(NUMBER).egomotion(egomotion_times(NUMBER, 0.4))
    assert tuple(columns) == EGOMOTION_COLUMNS
    for name, values in columns.items():
        assert values.dtype == (np.int64 if name == "timestamp" else np.float64)
        np.testing.assert_array_equal(values, truth[name])


def test_calibration_is_selected_by_clip_and_camera(published: Path):
    clip = clip_in(published)
    lens = clip.intrinsics(CAMERA)
    assert lens.keys() >= {"width", "height", "cx", "cy", "fw_poly_4", "bw_poly_0"}
    assert lens["fw_poly_1"] == pytest.approx(64 / np.radians(30))
    assert clip.extrinsics(CAMERA)["y"] == pytest.approx(0.1 * CAMERA_IDX)
    assert clip.vehicle()["wheelbase"] == 2.85


def test_key_columns_may_be_a_pandas_index(folder: Path, published: Path):
    """The data set's tables come from pandas: the index may be named or unnamed."""
    for names in (["clip_id", "camera_name"], [None, None]):
        path = folder / chunk_path("camera_intrinsics", 0)
        frame = pd.read_parquet(published / chunk_path("camera_intrinsics", 0))
        frame = frame.set_index(["clip_id", "camera_name"])
        frame.index.names = names
        frame.to_parquet(path)
        assert clip_in(folder).intrinsics(CAMERA) == clip_in(published).intrinsics(CAMERA)
    path = folder / chunk_path("vehicle_dimensions", 0)
    pd.read_parquet(path).set_index("clip_id").rename_axis(None).to_parquet(path)
    assert clip_in(folder).vehicle() == clip_in(published).vehicle()
    path, name = folder / chunk_path(CAMERA, 0), f"{clip_id_of(NUMBER)}.{CAMERA}.timestamps.parquet"
    members = read_zip(path)
    table = pd.read_parquet(io.BytesIO(members[name])).set_index("frame_index")
    write_zip(path, members | {name: table.to_parquet()})
    expected = clip_in(published).timestamps(CAMERA)
    np.testing.assert_array_equal(clip_in(folder).timestamps(CAMERA), expected)


def test_extra_fields_of_the_local_header_are_skipped(folder: Path):
    path = folder / chunk_path(CAMERA, 0)
    expected = clip_in(folder).video(CAMERA).read()
    members = read_zip(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH6s", 0xCAFE, 6, b"extras")
            archive.writestr(info, content)
    assert clip_in(folder).video(CAMERA).read() == expected


def test_member_with_a_data_descriptor_is_read(folder: Path):
    """A data descriptor behind the content: the local header holds zeros (APPNOTE 4.3.9)."""
    path = folder / chunk_path(CAMERA, 0)
    expected = clip_in(folder).video(CAMERA).read()
    members = read_zip(path)

    class Stream(io.FileIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError("a pipe has no places")

    with Stream(path, "w") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    entry = directory(path).entries[f"{clip_id_of(NUMBER)}.{CAMERA}.mp4"]
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    assert entry.flag_bits & 8 and header[14:26] == bytes(12), "no checksum, no sizes"
    assert clip_in(folder).video(CAMERA).read() == expected


def test_member_beyond_4_gib_is_found_by_its_zip64_offset(tmp_path: Path):
    path, hole = tmp_path / "large.zip", 5 << 30
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("first"), b"near")
        file.seek(hole)  # sparse: it takes no room on the disk
        archive.start_dir = hole
        archive.writestr(zipfile.ZipInfo("second"), b"far away")
    assert path.stat().st_size > hole and path.stat().st_blocks * 512 < 1 << 20
    assert [entry.header_offset for entry in directory(path).entries.values()] == [0, hole]
    assert member(path, "first").read() == b"near"
    far = member(path, "second")
    assert far.offset > hole and far.read() == b"far away"
    with far.open() as part:
        part.seek(4)
        assert part.read() == b"away"


def test_zip_with_more_than_65535_members_is_read(tmp_path: Path):
    path, count = tmp_path / "many.zip", 0xFFFF + 10
    write_linked_zip(path, [str(number) for number in range(count)], {"txt": b"one for all"})
    assert len(directory(path).entries) == count
    assert member(path, f"{count - 1}.txt").read() == b"one for all"


def test_only_the_clips_bytes_are_read_from_a_large_zip(folder: Path):
    path = folder / chunk_path(CAMERA, 0)
    members = read_zip(path)
    for number in range(40):  # neighbours of half a megabyte each
        members[f"neighbour-{number}.mp4"] = bytes(1 << 19)
    write_zip(path, dict(sorted(members.items())))
    clip = clip_in(folder)
    part = clip.video(CAMERA)
    times = clip.timestamps(CAMERA)
    before = bytes_read()
    clip.video(CAMERA)
    overhead = bytes_read() - before
    assert overhead < 1000, "the local header; the directory is kept"
    before = bytes_read()
    with clip.video(CAMERA).open() as file, av.open(file) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(times)
    # FFmpeg may read the tables twice, but nothing of a neighbour.
    assert bytes_read() - before < 2 * part.length + 2 * overhead
    before = bytes_read()
    clip.timestamps(CAMERA)
    assert bytes_read() - before < 10_000


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size * 2 // 3), "damaged: not a whole zip"),
        (lambda path: write_zip(path, {"other": b"x"}), "damaged: no member"),
        (lambda path: write_zip(path, read_zip(path), zipfile.ZIP_DEFLATED), "compressed, not sto"),
        (lambda path: path.write_bytes(b""), "damaged: not a whole zip"),
        (lambda path: path.unlink(), "file not found"),
    ],
)
def test_damaged_zip_error_names_file_and_clip(folder: Path, spoil, message: str):
    path = folder / chunk_path(CAMERA, 0)
    clip = clip_in(folder)
    clip.video(CAMERA)
    spoil(path)
    for read in (clip.video, clip.timestamps):
        with pytest.raises(AvomniError, match=message) as caught:
            read(CAMERA)
        assert clip.clip_id in caught.value.where and str(path) in caught.value.where
        assert "02_download" in caught.value.fix


def test_damaged_table_error_names_file_and_clip(folder: Path):
    path = folder / chunk_path("egomotion", 0)
    members = read_zip(path)
    name = f"{clip_id_of(NUMBER)}.egomotion.parquet"
    for content, message in (
        (members[name][:-40], "not a readable parquet file"),
        (b"", "is empty"),
        (parquet_bytes({"timestamp": [1, 2]}), "no column qx"),
        (parquet_bytes({"timestamp": ["a", "b"]}), "holds string, not numbers"),
    ):
        write_zip(path, members | {name: content})
        with pytest.raises(AvomniError, match=message) as caught:
            clip_in(folder).egomotion()
        assert clip_id_of(NUMBER) in caught.value.where and str(path) in caught.value.where


def test_flipped_bit_in_a_member_fails_its_checksum(folder: Path):
    path = folder / chunk_path("egomotion", 0)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo(f"{clip_id_of(NUMBER)}.egomotion.parquet").header_offset + 5000
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(AvomniError, match="checksum is wrong"):
        clip_in(folder).egomotion()


def test_calibration_error_names_file_and_clip(folder: Path):
    path = folder / chunk_path("camera_intrinsics", 0)
    frame = pd.read_parquet(path)
    frame[frame.camera_name != CAMERA].to_parquet(path)
    with pytest.raises(AvomniError, match=f"has no row of {CAMERA}") as caught:
        clip_in(folder).intrinsics(CAMERA)
    assert clip_id_of(NUMBER) in caught.value.where and str(path) in caught.value.where
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(AvomniError, match="not a readable parquet") as caught:
        clip_in(folder).intrinsics(CAMERA)
    assert clip_id_of(NUMBER) in caught.value.where
    path.unlink()
    with pytest.raises(AvomniError, match="file not found"):
        clip_in(folder).intrinsics(CAMERA)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bytes") / "numbered.bin"
    path.write_bytes(bytes(range(256)) * 4)
    return path


@given(
    offset=st.integers(0, 1024),
    length=st.integers(0, 1024),
    moves=st.lists(
        st.tuples(st.integers(-40, 1200), st.sampled_from([0, 1, 2]), st.integers(0, 300))
    ),
)
def test_byte_range_reads_and_seeks_like_a_file(
    numbered: Path, offset: int, length: int, moves: list[tuple[int, int, int]]
):
    content = numbered.read_bytes()
    length = min(length, len(content) - offset)
    cut_out = io.BytesIO(content[offset : offset + length])
    with ByteRange(numbered, offset, length).open() as part:
        assert ByteRange(numbered, offset, length).read() == cut_out.getvalue()
        for place, whence, count in moves:
            base = {0: 0, 1: cut_out.tell(), 2: length}[whence]
            if base + place < 0:
                continue
            assert part.seek(place, whence) == cut_out.seek(base + place)
            assert part.read(count) == cut_out.read(count)
            assert part.tell() == cut_out.tell()


def test_byte_range_past_the_end_is_an_error(numbered: Path):
    with pytest.raises(AvomniError, match="cut short: 24 of 100 bytes"):
        ByteRange(numbered, 1000, 100).read()
