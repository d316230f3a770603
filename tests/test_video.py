"""Frames read by timestamp from mp4 files of many kinds, each frame showing its number."""

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
def test_frames_in_any_order_are_read_correctly(name, decoder):
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
def test_open_gops_are_detected(name):
    with stream.opened(stream_bytes(name)) as opened:
        assert len(opened.keys) > 1
        assert (len(opened.closed_keys) < len(opened.keys)) == (name in OPEN)
        assert opened.leading.any() == (name in LEADING)


@pytest.mark.parametrize("name", sorted(LEADING))
def test_leading_frames_are_read(name):
    with stream.opened(stream_bytes(name)) as opened:
        leading = np.flatnonzero(opened.leading)
        rows = [opened.row_of(i) for i in leading]
    for row in rows:
        frames = reader.read_frames(stream_bytes(name), times_of(stream_bytes(name))[[row]])
        assert numbers(frames.images) == [row]


@pytest.mark.parametrize("decoder", DECODERS)
def test_variable_frame_rate_is_read(decoder):
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
def test_video_with_a_late_start_is_read(decoder):
    content = stream_bytes("h264 late start")
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.video[0].start_time * container.streams.video[0].time_base > 8
    frames = reader.read_frames(content, np.array([0, SECOND, 41_000]), decoder=decoder)
    assert numbers(frames.images) == [0, 25, 1]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_video_is_shown_upright(degrees, decoder):
    """The `tkhd` matrix (ISO 14496-12 §8.3.2, x right, y down) rotates in clockwise quarters."""
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
def test_frames_are_resized_to_any_size(size, decoder):
    content = stream_bytes("h264 gop 30 b")
    frames = reader.read_frames(content, np.array([2_000_000, 0]), size=size, decoder=decoder)
    assert frames.images.shape == (2, size[1], size[0], 3)
    assert frames.images.dtype == np.uint8
    assert frames.source_size == (WIDTH, HEIGHT)
    if size[0] >= 33 and size[1] >= 17:
        assert numbers(frames.images) == [60, 0]


@pytest.mark.parametrize("colour_range", ["1", "2"], ids=["limited", "full"])
def test_limited_and_full_colour_range_are_converted(colour_range):
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


def test_zip_member_is_read_in_place_and_its_checksum_verified(tmp_path):
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
    """The first `share` of the file."""
    return content[: round(len(content) * share)]


def zeroed(content: bytes, first: float = 0.45, last: float = 0.55) -> bytes:
    """The file with a part of its media data zeroed."""
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
def test_damaged_file_raises_an_error(name, damage, decoder, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(DAMAGE[damage](stream_bytes(name, index_first=damage != "index cut away")))
    if (name, damage, decoder) == ("hevc closed", "zeroed middle", "decord"):
        return  # decord conceals it; the checksum of the zip's member does not
    with pytest.raises(AvomniError) as caught:
        stamps = np.arange(NUM_FRAMES) * 33_333
        reader.read_frames(path, stamps[::3], timestamps_us=stamps, decoder=decoder)
    assert str(path) in caught.value.where
    assert "02_download" in caught.value.fix


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(AvomniError, match="not found"):
        reader.read_frames(tmp_path / "none.mp4", np.array([0]))


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        (np.arange(NUM_FRAMES + 1) * 33_333, "90 frames in the mp4, 91 timestamps"),
        (np.arange(NUM_FRAMES) * 40_000, r"33.0 ms apart, those of its timestamps 40.0 ms"),
    ],
)
def test_timestamps_with_another_count_or_rate_are_refused(stamps, message):
    with pytest.raises(AvomniError, match=message):
        reader.read_frames(stream_bytes("h264 gop 30"), np.array([0]), timestamps_us=stamps)


def test_timestamps_shifted_by_one_frame_are_refused():
    """The numbers of rows and frames are equal, but one of each is missing."""
    content = stream_bytes("h264 varying rate")
    stamps, rng = times_of(content), np.random.default_rng(2)
    shifted = np.concatenate([stamps[:30], stamps[31:], [stamps[-1] + 40_000]])
    with pytest.raises(AvomniError, match=r"frame \d+ follows .* frames or rows are missing"):
        reader.read_frames(content, stamps[:3], timestamps_us=shifted)
    jittered = stamps - 14_000 + rng.integers(-2_000, 2_000, NUM_FRAMES)
    frames = reader.read_frames(content, jittered[[4, 60]], timestamps_us=jittered)
    assert numbers(frames.images) == [4, 60]


def test_gaps_in_the_timestamps_of_a_constant_rate_video_are_accepted():
    stamps = np.arange(NUM_FRAMES) * 33_333
    stamps[40:] += 100_000
    frames = reader.read_frames(
        stream_bytes("h264 gop 30"), stamps[[39, 40, 80]], timestamps_us=stamps
    )
    assert numbers(frames.images) == [39, 40, 80]


def test_frames_outside_the_edit_list_are_skipped():
    """As in a player, row 0 is the first frame within the edit list."""
    content = bytearray(stream_bytes("h264 gop 30 b"))
    place = content.index(b"elst") + 16
    start = int.from_bytes(content[place : place + 4], "big")
    with stream.opened(bytes(content)) as opened:
        later = start + round(0.5 / opened.time_base)
    content[place : place + 4] = later.to_bytes(4, "big")
    times = times_of(bytes(content))
    assert len(times) == NUM_FRAMES - 15
    frames = reader.read_frames(bytes(content), times[[0, 20, 3]])
    assert numbers(frames.images) == [15, 35, 18]


@pytest.mark.parametrize("wanted", [-1, NUM_FRAMES * 40_000])
def test_time_outside_the_video_is_refused(wanted):
    with pytest.raises(AvomniError, match=f"no frame at {wanted} µs: the video lasts from 0 µs"):
        reader.read_frames(stream_bytes("h264 gop 30"), np.array([0, wanted]))
    with pytest.raises(AvomniError, match="no time"):
        reader.read_frames(stream_bytes("h264 gop 30"), np.array([], np.int64))


def test_choose_decoder_gives_a_reason():
    assert reader.choose_decoder()[0] == "pyav"
    assert "open GOP" in reader.choose_decoder()[1]
    assert reader.choose_decoder("decord")[0] == "decord"


@given(
    steps=st.lists(st.integers(1, 100_000), min_size=1, max_size=60),
    start=st.integers(-200_000, 200_000),
    data=st.data(),
)
def test_frame_indices_are_the_last_at_or_before_each_time(steps, start, data):
    stamps = start + np.cumsum(steps)
    wanted = data.draw(st.lists(st.integers(int(stamps[0]), int(stamps[-1])), max_size=20))
    for time, row in zip(wanted, reader.frame_indices(stamps, np.array(wanted)), strict=True):
        assert stamps[row] <= time
        assert row == len(stamps) - 1 or stamps[row + 1] > time
