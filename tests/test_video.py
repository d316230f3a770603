"""Frames by time: real mp4s of many kinds, each picture bearing its own number."""

from __future__ import annotations

import functools
import io
import tempfile
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.dataset.stored_zip import member
from avomni_lib.errors import AvomniError
from avomni_lib.etl import by_pyav, stream, video
from tests.published_set import frame_bits, read_frame

WIDTH, HEIGHT, NUM_FRAMES = 96, 64, 90
SECOND = 1_000_000
MILLISECOND = Fraction(1, 1000)
H264 = {"preset": "ultrafast", "crf": "22"}
B_FRAMES = "bframes=3:b-adapt=0:b-pyramid=normal:scenecut=0"
HEVC = "bframes=3:b-adapt=0:log-level=none:pools=none:frame-threads=1"
# name -> (codec, options)
STREAMS = {
    "h264 gop 15": ("libx264", H264 | {"g": "15", "bf": "0"}),
    "h264 gop 30 b": ("libx264", H264 | {"g": "30", "x264-params": B_FRAMES}),
    "h264 gop 60 b": ("libx264", H264 | {"g": "60", "x264-params": B_FRAMES}),
    "h264 no b": ("libx264", H264 | {"g": "30", "bf": "0"}),
    "h264 open": ("libx264", H264 | {"g": "30", "x264-params": f"open-gop=1:{B_FRAMES}"}),
    "h264 bluray": (
        "libx264",
        H264 | {"g": "15", "x264-params": f"open-gop=1:bluray-compat=1:{B_FRAMES}"},
    ),
    "h264 refresh": ("libx264", H264 | {"g": "30", "x264-params": "intra-refresh=1"}),
    "hevc closed": ("libx265", {"x265-params": f"keyint=30:open-gop=0:{HEVC}"}),
    "hevc open": ("libx265", {"x265-params": f"keyint=30:open-gop=1:{HEVC}"}),
    "mpeg4 b": ("mpeg4", {"g": "12", "bf": "2", "q": "2"}),
}
OPEN = {"h264 open", "h264 bluray", "h264 refresh", "hevc open", "mpeg4 b"}
LEADING = {"h264 open", "h264 bluray", "hevc open", "mpeg4 b"}


def encode(
    codec: str = "libx264",
    options: dict | None = None,
    times: np.ndarray | None = None,
    pictures: np.ndarray | None = None,
    pixels: str = "yuv420p",
) -> bytes:
    """An mp4 whose i-th picture is shown at `times[i]` ms and bears the number i."""
    if pictures is None:
        pictures = [frame_bits(5, 3, i, WIDTH, HEIGHT) for i in range(NUM_FRAMES)]
    if times is None:
        times = np.arange(len(pictures)) * 1000 // 30
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        track = container.add_stream(codec, rate=30, options=options or H264)
        track.height, track.width = pictures[0].shape[:2]
        track.pix_fmt = pixels
        track.codec_context.time_base = MILLISECOND
        track.codec_context.thread_count = 1
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(time), MILLISECOND
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return file.getvalue()


@functools.cache
def clip(name: str) -> bytes:
    return encode(*STREAMS[name])


def numbers(images: np.ndarray) -> list[int]:
    for image in images:
        assert read_frame(image)[:2] == (5, 3)
    return [read_frame(image)[2] for image in images]


def times_of(content: bytes) -> np.ndarray:
    with stream.opened(content) as opened:
        return opened.times_us


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("name", STREAMS)
def test_any_frames_in_any_order_are_the_right_ones(name, decoder):
    content, rng = clip(name), np.random.default_rng(7)
    stamps = -14_200 + 33_333 * np.arange(NUM_FRAMES) + rng.integers(-400, 400, NUM_FRAMES)
    for size in (1, 2, 7, 40):
        rows = rng.integers(0, NUM_FRAMES, size)
        wanted = stamps[rows] + (rows < NUM_FRAMES - 1) * rng.integers(0, 30_000, size)
        if decoder == "decord" and name in OPEN:
            with pytest.raises(AvomniError, match="open GOPs.*neighbour"):
                video.read_frames(content, wanted, timestamps_us=stamps, decoder=decoder)
            continue
        frames = video.read_frames(content, wanted, timestamps_us=stamps, decoder=decoder)
        assert frames.decoder == decoder
        assert frames.frame_idx.tolist() == rows.tolist()
        assert numbers(frames.images) == rows.tolist()
        assert frames.timestamps_us.tolist() == stamps[rows].tolist()


@pytest.mark.parametrize("name", STREAMS)
def test_open_gops_are_told(name):
    with stream.opened(clip(name)) as opened:
        assert len(opened.keys) > 1
        assert (len(opened.closed_keys) < len(opened.keys)) == (name in OPEN)
        assert opened.leading.any() == (name in LEADING)


@pytest.mark.parametrize("name", sorted(LEADING))
def test_leading_pictures_themselves_are_read(name):
    with stream.opened(clip(name)) as opened:
        leading = np.flatnonzero(opened.leading)
        rows = np.searchsorted(opened.pts, [opened.packets[i].pts for i in leading])
    for row in rows:
        frames = video.read_frames(clip(name), times_of(clip(name))[[row]])
        assert numbers(frames.images) == [row]


def test_a_gop_is_decoded_no_further_than_its_last_wanted_frame():
    with stream.opened(clip("h264 no b")) as opened:
        assert by_pyav.plan_runs(opened, [0]) == [(0, [0])]
        runs = by_pyav.plan_runs(opened, [3, 31, 35, 60])
        assert runs == [(0, [3]), (30, [31, 35]), (60, [60])]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_rate_that_varies(decoder):
    times = np.cumsum(np.random.default_rng(3).integers(5, 90, NUM_FRAMES))
    content = encode(options=H264 | {"x264-params": B_FRAMES}, times=times)
    starts = (times - times[0]) * 1000
    assert times_of(content).tolist() == starts.tolist()
    wanted = np.random.default_rng(4).integers(0, starts[-1], 50)
    expected = [int(np.flatnonzero(starts <= time)[-1]) for time in wanted]
    frames = video.read_frames(content, wanted, decoder=decoder)
    assert frames.frame_idx.tolist() == expected
    assert numbers(frames.images) == expected


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_start_that_is_not_zero(decoder):
    content = encode(times=8_330 + np.arange(NUM_FRAMES) * 40)
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.video[0].start_time * container.streams.video[0].time_base > 8
    frames = video.read_frames(content, np.array([0, SECOND, 41_000]), decoder=decoder)
    assert numbers(frames.images) == [0, 25, 1]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["90", "180", "270"],
)
def test_a_turned_video_is_shown_upright(matrix, turns, decoder):
    """The matrix of `tkhd` (ISO 14496-12 §8.3.2) turns x right, y down by quarters clockwise."""
    content = bytearray(clip("h264 gop 30 b"))
    place = content.index(b"tkhd") + 4 + 40
    for step, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[place + step : place + step + 4] = (value << 16).to_bytes(4, "big", signed=True)
    wanted = times_of(bytes(content))[[40, 2]]
    plain = video.read_frames(clip("h264 gop 30 b"), wanted).images
    turned = video.read_frames(bytes(content), wanted, decoder=decoder)
    assert np.array_equal(turned.images, np.rot90(plain, turns, axes=(1, 2)))
    upright = (WIDTH, HEIGHT) if turns == 2 else (HEIGHT, WIDTH)
    assert turned.source_size == upright
    small = video.read_frames(
        bytes(content), wanted, size=lambda w, h: (w // 2, h // 2), decoder=decoder
    )
    assert small.images.shape == (2, upright[1] // 2, upright[0] // 2, 3)
    assert numbers(np.rot90(small.images, -turns, axes=(1, 2))) == [40, 2]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("size", [(48, 32), (33, 17), (64, 64), (97, 65), (200, 10)])
def test_any_size_can_be_asked_for(size, decoder):
    content = clip("h264 gop 30 b")
    frames = video.read_frames(content, np.array([2_000_000, 0]), size=size, decoder=decoder)
    assert frames.images.shape == (2, size[1], size[0], 3)
    assert frames.images.dtype == np.uint8
    assert frames.source_size == (WIDTH, HEIGHT)
    if size[0] >= 33 and size[1] >= 17:
        assert numbers(frames.images) == [60, 0]


def test_odd_sides():
    pictures = [frame_bits(5, 3, i, 97, 65) for i in range(9)]
    content = encode(pictures=pictures, pixels="yuv444p")
    frames = video.read_frames(content, np.array([200_000, 0]))
    assert frames.images.shape == (2, 65, 97, 3)
    assert numbers(frames.images) == [6, 0]


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
    image = video.read_frames(file.getvalue(), np.array([0])).images[0].astype(int)
    assert image[:, : WIDTH // 2 - 4].max() <= 2
    assert image[:, WIDTH // 2 + 4 :].min() >= 253


def test_a_member_of_a_zip_is_read_in_place_and_its_checksum_compared(tmp_path):
    path = tmp_path / "camera.chunk_0000.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.parquet", b"0" * 1000)
        archive.writestr("clip.mp4", clip("hevc closed"))
    part = member(path, "clip.mp4")
    wanted = np.array([2_500_000, 100_000])
    frames = video.read_frames(part, wanted)
    assert np.array_equal(frames.images, video.read_frames(clip("hevc closed"), wanted).images)
    content = bytearray(path.read_bytes())
    content[part.offset + part.length // 2] ^= 1
    path.write_bytes(content)
    for decoder in video.DECODERS:
        with pytest.raises(AvomniError, match="checksum is wrong") as caught:
            video.read_frames(part, wanted, decoder=decoder)
        assert str(path) in caught.value.where


def cut(content: bytes, share: float) -> bytes:
    """The file cut short, its index at the front as on a real disk."""
    return faststart(content)[: round(len(content) * share)]


def faststart(content: bytes) -> bytes:
    """The same packets with the index (`moov`) before them."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        options = {"movflags": "faststart"}
        with (
            av.open(io.BytesIO(content)) as source,
            av.open(file.name, "w", options=options) as target,
        ):
            track = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = track
                    target.mux(packet)
        return Path(file.name).read_bytes()


def zeroed(content: bytes, first: float = 0.45, last: float = 0.55) -> bytes:
    """A part of the pictures never written."""
    content = bytearray(content)
    start, length = media_of(content)
    a, b = start + int(length * first), start + int(length * last)
    content[a:b] = bytes(b - a)
    return bytes(content)


def broken_nal(content: bytes) -> bytes:
    """A NAL unit that claims to be longer than its packet."""
    with av.open(io.BytesIO(content)) as container:
        packets = [p for p in container.demux(video=0) if p.dts is not None]
        places = [packet.pos for packet in packets]
    content = bytearray(content)
    content[places[40] : places[40] + 4] = b"\x7f\xff\xff\xff"
    return bytes(content)


def media_of(content: bytes) -> tuple[int, int]:
    place = content.index(b"mdat") + 4
    return place, int.from_bytes(content[place - 8 : place - 4], "big") - 8


DAMAGE = {
    "cut at 95 %": lambda c: cut(c, 0.95),
    "cut at half": lambda c: cut(c, 0.5),
    "index cut away": lambda c: c[: len(c) // 2],
    "zeroed middle": zeroed,
    "broken NAL unit": broken_nal,
    "empty": lambda c: b"",
    "header only": lambda c: faststart(c)[: faststart(c).index(b"mdat") + 4],
    "noise": lambda c: np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["h264 gop 30 b", "h264 no b", "hevc closed"])
def test_a_damaged_file_is_an_error_and_never_a_picture(name, damage, decoder, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(DAMAGE[damage](clip(name)))
    if (name, damage, decoder) == ("hevc closed", "zeroed middle", "decord"):
        return  # decord conceals it; the checksum of the zip's member does not
    with pytest.raises(AvomniError) as caught:
        stamps = np.arange(NUM_FRAMES) * 33_333
        video.read_frames(path, stamps[::3], timestamps_us=stamps, decoder=decoder)
    assert str(path) in caught.value.where
    assert "02_download" in caught.value.fix


def test_damage_is_told_with_the_frame():
    with pytest.raises(AvomniError) as caught:
        video.read_frames(broken_nal(clip("h264 no b")), np.arange(80) * 33_334)
    assert "frame 40" in caught.value.where
    with pytest.raises(AvomniError, match="cut short: it holds .. of 90 frames"):
        video.read_frames(cut(clip("h264 no b"), 0.6), np.array([0, 2_900_000]))


def test_damage_that_no_wanted_frame_needs_does_no_harm():
    content = zeroed(clip("h264 no b"), 0.8, 0.9)
    assert numbers(video.read_frames(content, np.array([100_000, 0])).images) == [3, 0]
    with pytest.raises(AvomniError):
        video.read_frames(content, times_of(content)[-1:])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AvomniError, match="not found"):
        video.read_frames(tmp_path / "none.mp4", np.array([0]))


def test_frames_and_timestamps_must_be_as_many():
    stamps = np.arange(NUM_FRAMES + 1) * 33_333
    with pytest.raises(AvomniError, match="90 frames in the video, 91 in its timestamps"):
        video.read_frames(clip("h264 no b"), np.array([0]), timestamps_us=stamps)


@pytest.mark.parametrize("wanted", [-1, NUM_FRAMES * 40_000])
def test_a_time_outside_of_the_video_is_refused(wanted):
    with pytest.raises(AvomniError, match=f"no frame at {wanted} µs: the video lasts from 0 µs"):
        video.read_frames(clip("h264 no b"), np.array([0, wanted]))


def test_no_time_is_refused():
    with pytest.raises(AvomniError, match="no time"):
        video.read_frames(clip("h264 no b"), np.array([], np.int64))


def test_the_decoder_is_a_choice_with_a_reason():
    assert video.choose_decoder()[0] == "pyav"
    assert "open GOP" in video.choose_decoder()[1]
    assert video.choose_decoder("decord")[0] == "decord"
    with pytest.raises(AvomniError, match="unknown decoder 'opencv'"):
        video.choose_decoder("opencv")


@given(
    steps=st.lists(st.integers(1, 100_000), min_size=1, max_size=60),
    start=st.integers(-200_000, 200_000),
    data=st.data(),
)
def test_a_frame_is_the_last_one_at_or_before_its_time(steps, start, data):
    stamps = start + np.cumsum(steps)
    wanted = data.draw(st.lists(st.integers(int(stamps[0]), int(stamps[-1])), max_size=20))
    for time, row in zip(wanted, video.frame_indices(stamps, np.array(wanted)), strict=True):
        assert stamps[row] <= time
        assert row == len(stamps) - 1 or stamps[row + 1] > time


@pytest.mark.parametrize("stamps", [[0, 10, 10, 20], [0, 20, 10], [[0, 1]], []])
def test_timestamps_must_increase(stamps):
    with pytest.raises(AvomniError, match="timestamps"):
        video.frame_indices(np.array(stamps), np.array([5]))
