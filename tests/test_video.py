"""Frames by time: real mp4s of many kinds, each picture bearing its own number."""

from __future__ import annotations

import io
import zipfile

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.dataset.stored_zip import member
from avomni_lib.errors import AvomniError
from avomni_lib.etl.video import reader, stream
from tests.streams import (
    HEIGHT,
    LEADING,
    NUM_FRAMES,
    OPEN,
    SPECS,
    WIDTH,
    numbers,
    places,
    stream_bytes,
    times_of,
    turned,
)

DECODERS = ["pyav", "decord"]
SECOND = 1_000_000


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", SPECS)
def test_any_frames_in_any_order_are_the_right_ones(name, decoder):
    content, rng = stream_bytes(name), np.random.default_rng(7)
    stamps = times_of(content) - 14_200 + rng.integers(-400, 400, NUM_FRAMES)
    for size in (1, 2, 7, 40, 150):
        rows = rng.integers(0, NUM_FRAMES, size)
        late = rng.uniform(0, 0.9, size) * np.diff(stamps, append=stamps[-1])[rows]
        wanted = stamps[rows] + late.astype(np.int64)
        if decoder == "decord" and (name in OPEN or name == "av1"):
            reason = "decord cannot decode" if name == "av1" else "open GOPs.*neighbour"
            with pytest.raises(AvomniError, match=reason) as caught:
                reader.read_frames(content, wanted, timestamps_us=stamps, decoder=decoder)
            assert name == "av1" or caught.value.fix == "set processing.decoder to auto or pyav"
            continue
        frames = reader.read_frames(content, wanted, timestamps_us=stamps, decoder=decoder)
        assert frames.frame_idx.tolist() == rows.tolist()
        assert numbers(frames.images, name) == rows.tolist()
        assert frames.timestamps_us.tolist() == stamps[rows].tolist()


@pytest.mark.parametrize("name", SPECS)
def test_open_gops_are_told(name):
    with stream.opened(stream_bytes(name)) as opened:
        assert len(opened.keys) > 1
        assert (len(opened.closed_keys) < len(opened.keys)) == (name in OPEN)
        assert opened.leading.any() == (name in LEADING)


@pytest.mark.parametrize("name", sorted(LEADING))
def test_leading_pictures_themselves_are_read(name):
    with stream.opened(stream_bytes(name)) as opened:
        leading = np.flatnonzero(opened.leading)
        rows = [opened.row_of(i) for i in leading]
    for row in rows:
        frames = reader.read_frames(stream_bytes(name), times_of(stream_bytes(name))[[row]])
        assert numbers(frames.images) == [row]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_rate_that_varies(decoder):
    content = stream_bytes("h264 varying rate")
    times = np.array(SPECS["h264 varying rate"].times)
    starts = (times - times[0]) * 1000
    assert times_of(content).tolist() == starts.tolist()
    wanted = np.random.default_rng(4).integers(0, starts[-1], 50)
    expected = [int(np.flatnonzero(starts <= time)[-1]) for time in wanted]
    frames = reader.read_frames(content, wanted, decoder=decoder)
    assert frames.frame_idx.tolist() == expected
    assert numbers(frames.images) == expected


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_start_that_is_not_zero(decoder):
    content = stream_bytes("h264 late start")
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.video[0].start_time * container.streams.video[0].time_base > 8
    frames = reader.read_frames(content, np.array([0, SECOND, 41_000]), decoder=decoder)
    assert numbers(frames.images) == [0, 25, 1]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_shown_upright(degrees, decoder):
    """The matrix of `tkhd` (ISO 14496-12 §8.3.2) turns x right, y down by quarters clockwise."""
    content, turns = turned(stream_bytes("h264 gop 30 b"), degrees), -degrees // 90
    wanted = times_of(content)[[40, 2]]
    plain = reader.read_frames(stream_bytes("h264 gop 30 b"), wanted).images
    shown = reader.read_frames(content, wanted, decoder=decoder)
    assert np.array_equal(shown.images, np.rot90(plain, turns, axes=(1, 2)))
    upright = (WIDTH, HEIGHT) if degrees == 180 else (HEIGHT, WIDTH)
    assert shown.source_size == upright
    small = reader.read_frames(content, wanted, size=lambda w, h: (w // 2, h // 2), decoder=decoder)
    assert small.images.shape == (2, upright[1] // 2, upright[0] // 2, 3)
    assert numbers(np.rot90(small.images, -turns, axes=(1, 2))) == [40, 2]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(48, 32), (33, 17), (64, 64), (97, 65), (200, 10)])
def test_any_size_can_be_asked_for(size, decoder):
    content = stream_bytes("h264 gop 30 b")
    frames = reader.read_frames(content, np.array([2_000_000, 0]), size=size, decoder=decoder)
    assert frames.images.shape == (2, size[1], size[0], 3)
    assert frames.images.dtype == np.uint8
    assert frames.source_size == (WIDTH, HEIGHT)
    if size[0] >= 33 and size[1] >= 17:
        assert numbers(frames.images) == [60, 0]


@pytest.mark.parametrize("colour_range", ["1", "2"], ids=["limited", "full"])
def test_black_stays_black_and_white_white(colour_range):
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, WIDTH // 2 :] = 255
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_color_range=int(colour_range))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=30, options={"crf": "1"})
        track.width, track.height, track.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        track.codec_context.color_range = int(colour_range)
        container.mux(track.encode(frame))
        container.mux(track.encode())
    image = reader.read_frames(file.getvalue(), np.array([0])).images[0].astype(int)
    assert image[:, : WIDTH // 2 - 4].max() <= 2
    assert image[:, WIDTH // 2 + 4 :].min() >= 253


def test_a_member_of_a_zip_is_read_in_place_and_its_checksum_compared(tmp_path):
    path = tmp_path / "camera.chunk_0000.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.parquet", b"0" * 1000)
        archive.writestr("clip.mp4", stream_bytes("hevc closed"))
    part = member(path, "clip.mp4")
    wanted = np.array([2_500_000, 100_000])
    frames = reader.read_frames(part, wanted)
    assert np.array_equal(
        frames.images, reader.read_frames(stream_bytes("hevc closed"), wanted).images
    )
    content = bytearray(path.read_bytes())
    content[part.offset + part.length // 2] ^= 1
    path.write_bytes(content)
    for decoder in reader.DECODERS:
        with pytest.raises(AvomniError, match="checksum is wrong") as caught:
            reader.read_frames(part, wanted, decoder=decoder)
        assert str(path) in caught.value.where


def cut(content: bytes, share: float) -> bytes:
    """The file cut short, its index at the front as on a real disk."""
    return content[: round(len(content) * share)]


def zeroed(content: bytes, first: float = 0.45, last: float = 0.55) -> bytes:
    """A part of the pictures never written."""
    content = bytearray(content)
    start, length = media_of(content)
    a, b = start + int(length * first), start + int(length * last)
    content[a:b] = bytes(b - a)
    return bytes(content)


def broken_nal(content: bytes, packet: int = 40) -> bytes:
    """A NAL unit that claims to be longer than its packet."""
    content, place = bytearray(content), places(content)[packet][0]
    content[place : place + 4] = b"\x7f\xff\xff\xff"
    return bytes(content)


def media_of(content: bytes) -> tuple[int, int]:
    place = content.index(b"mdat") + 4
    return place, int.from_bytes(content[place - 8 : place - 4], "big") - 8


DAMAGE = {
    "cut": lambda c: cut(c, 0.6),
    "index cut away": lambda c: c[: len(c) // 2],
    "zeroed middle": zeroed,
    "broken NAL unit": broken_nal,
    "empty": lambda c: b"",
    "header only": lambda c: c[: c.index(b"mdat") + 4],
    "noise": lambda c: np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["h264 gop 30 b", "h264 gop 30", "hevc closed"])
def test_a_damaged_file_is_an_error_and_never_a_picture(name, damage, decoder, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(DAMAGE[damage](stream_bytes(name, index_first=damage != "index cut away")))
    if (name, damage, decoder) == ("hevc closed", "zeroed middle", "decord"):
        return  # decord conceals it; the checksum of the zip's member does not
    with pytest.raises(AvomniError) as caught:
        stamps = np.arange(NUM_FRAMES) * 33_333
        reader.read_frames(path, stamps[::3], timestamps_us=stamps, decoder=decoder)
    assert str(path) in caught.value.where
    assert "02_download" in caught.value.fix


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AvomniError, match="not found"):
        reader.read_frames(tmp_path / "none.mp4", np.array([0]))


@pytest.mark.parametrize(
    ("stamps", "told"),
    [
        (np.arange(NUM_FRAMES + 1) * 33_333, "90 frames in the mp4, 91 timestamps"),
        (np.arange(NUM_FRAMES) * 40_000, r"33.0 ms apart, those of its timestamps 40.0 ms"),
    ],
)
def test_timestamps_of_another_count_or_rate_are_refused(stamps, told):
    with pytest.raises(AvomniError, match=told):
        reader.read_frames(stream_bytes("h264 gop 30"), np.array([0]), timestamps_us=stamps)


def test_where_the_file_keeps_time_a_row_that_is_off_by_a_frame_is_refused():
    """As many rows as frames: the camera dropped one, the table another."""
    content = stream_bytes("h264 varying rate")
    stamps, rng = times_of(content), np.random.default_rng(2)
    shifted = np.concatenate([stamps[:30], stamps[31:], [stamps[-1] + 40_000]])
    with pytest.raises(AvomniError, match=r"frame \d+ follows .* frames or rows are missing"):
        reader.read_frames(content, stamps[:3], timestamps_us=shifted)
    jittered = stamps - 14_000 + rng.integers(-2_000, 2_000, NUM_FRAMES)
    found = reader.read_frames(content, jittered[[4, 60]], timestamps_us=jittered)
    assert numbers(found.images) == [4, 60]


def test_at_a_constant_rate_the_file_counts_and_only_the_timestamps_have_gaps():
    stamps = np.arange(NUM_FRAMES) * 33_333
    stamps[40:] += 100_000
    found = reader.read_frames(
        stream_bytes("h264 gop 30"), stamps[[39, 40, 80]], timestamps_us=stamps
    )
    assert numbers(found.images) == [39, 40, 80]


def test_frames_outside_of_the_edit_list_are_no_rows():
    """A player skips them; the first row is the first frame that it shows."""
    content = bytearray(stream_bytes("h264 gop 30 b"))
    place = content.index(b"elst") + 16
    start = int.from_bytes(content[place : place + 4], "big")
    with stream.opened(bytes(content)) as opened:
        later = start + round(0.5 / opened.time_base)
    content[place : place + 4] = later.to_bytes(4, "big")
    times = times_of(bytes(content))
    assert len(times) == NUM_FRAMES - 15
    found = reader.read_frames(bytes(content), times[[0, 20, 3]])
    assert numbers(found.images) == [15, 35, 18]


@pytest.mark.parametrize("wanted", [-1, NUM_FRAMES * 40_000])
def test_a_time_outside_of_the_video_is_refused(wanted):
    with pytest.raises(AvomniError, match=f"no frame at {wanted} µs: the video lasts from 0 µs"):
        reader.read_frames(stream_bytes("h264 gop 30"), np.array([0, wanted]))
    with pytest.raises(AvomniError, match="no time"):
        reader.read_frames(stream_bytes("h264 gop 30"), np.array([], np.int64))


def test_the_decoder_is_a_choice_with_a_reason():
    assert reader.choose_decoder()[0] == "pyav"
    assert "open GOP" in reader.choose_decoder()[1]
    assert reader.choose_decoder("decord")[0] == "decord"


@given(
    steps=st.lists(st.integers(1, 100_000), min_size=1, max_size=60),
    start=st.integers(-200_000, 200_000),
    data=st.data(),
)
def test_a_frame_is_the_last_one_at_or_before_its_time(steps, start, data):
    stamps = start + np.cumsum(steps)
    wanted = data.draw(st.lists(st.integers(int(stamps[0]), int(stamps[-1])), max_size=20))
    for time, row in zip(wanted, reader.frame_indices(stamps, np.array(wanted)), strict=True):
        assert stamps[row] <= time
        assert row == len(stamps) - 1 or stamps[row + 1] > time
