"""The PyAV reader decodes only needed packets; damage gives correct frames or an error."""

from __future__ import annotations

import dataclasses
import functools
import resource
import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.etl.video import pyav_reader, reader, stream
from tests.streams import (
    NUM_FRAMES,
    SPECS,
    Spec,
    encode,
    numbers,
    places,
    stream_bytes,
    times_of,
)

CLOSED = ["h264 gop 15 b", "h264 gop 30", "h264 gop 30 b", "hevc closed"]


class CountingCodec:
    """PyAV's decoder that records the packets sent and counts the frames decoded."""

    def __init__(self, codec: av.VideoCodecContext):
        self.__dict__.update(codec=codec, sent=[], num_decoded=0)

    def __getattr__(self, name: str):
        return getattr(self.codec, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.codec, name, value)

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        if packet is not None:
            self.sent.append(packet.pts)
        frames = self.codec.decode(packet)
        self.__dict__["num_decoded"] += len(frames)
        return frames


def packets_sent(name: str, rows: list[int]) -> tuple[list[int], list[int]]:
    """(pts of the packets sent to the decoder, pts of all packets)."""
    with stream.opened(stream_bytes(name)) as opened:
        codec = CountingCodec(opened.codec)
        counted = dataclasses.replace(opened, codec=codec)
        images, _ = pyav_reader.by_pyav(counted, np.array(rows), None)
        assert numbers(images, name) == rows
        return codec.sent, [packet.pts for packet in opened.packets]


@functools.cache
def whole(name: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file with its index at the front, the times of its frames, and all frames."""
    content = stream_bytes(name, index_first=True)
    times = times_of(content)
    return content, times, reader.read_frames(content, times).images


@pytest.mark.parametrize("name", ["h264 gop 15", "h264 gop 15 b", "hevc closed", "av1"])
def test_only_key_frames_are_decoded_if_they_suffice(name):
    gop = 15 if "15" in name else 30
    sent, packets = packets_sent(name, list(range(0, NUM_FRAMES, gop)))
    with stream.opened(stream_bytes(name)) as opened:
        assert sent == [packets[key] for key in opened.keys]
    assert len(sent) == NUM_FRAMES // gop


def test_gop_is_decoded_up_to_its_last_wanted_frame():
    with stream.opened(stream_bytes("h264 gop 30")) as opened:
        assert opened.plan_runs([0]) == [(0, [0])]
        runs = opened.plan_runs([3, 31, 35, 60])
        assert runs == [(0, [3]), (30, [31, 35]), (60, [60])]
    sent, packets = packets_sent("h264 gop 30", [3, 31, 35, 60])
    assert sent == packets[:4] + packets[30:36] + packets[60:61]


def test_unreferenced_frames_are_not_decoded():
    """Every other frame of these GOPs is not a reference frame."""
    with stream.opened(stream_bytes("h264 gop 30 b")) as opened:
        codec = CountingCodec(opened.codec)
        counted = dataclasses.replace(opened, codec=codec)
        pyav_reader.by_pyav(counted, np.array([opened.row_of(29)]), None)
    assert len(codec.sent) == 30 and 14 <= codec.num_decoded <= 17


@pytest.mark.parametrize("name", ["h264 open", "h264 bluray", "hevc open", "hevc 10 bit"])
def test_leading_frame_is_decoded_from_the_previous_gop(name):
    with stream.opened(stream_bytes(name)) as opened:
        leading = np.flatnonzero(opened.leading)
        for i in leading:
            start = opened.plan_runs([i])[0][0]
            key = max(key for key in opened.keys if key < i)
            assert start < key and start in opened.starts
        last = int(leading[-1])
        sent, packets = packets_sent(name, [opened.row_of(last)])
        assert sent == packets[opened.plan_runs([last])[0][0] : last + 1]


def refused(content: bytes, name: str) -> str:
    _, times, _ = whole(name)
    with pytest.raises(stream.Damaged) as caught:
        reader.read_frames(content, times, timestamps_us=times)
    return caught.value.what


@pytest.mark.parametrize("name", [*CLOSED, "hevc open", "av1", "mpeg4 b"])
def test_zeroed_frame_is_refused(name):
    content = bytearray(whole(name)[0])
    place, size = places(whole(name)[0])[37]
    content[place : place + size] = bytes(size)
    assert "frame 37 is damaged" in refused(bytes(content), name)


def test_noise_in_a_frame_is_reported():
    content = bytearray(whole("h264 gop 30")[0])
    place, size = places(bytes(content))[40]
    content[place + 5 : place + size] = np.random.default_rng(2).bytes(size - 5)
    error = refused(bytes(content), "h264 gop 30")
    assert "decode" in error or "damaged" in error
    # Frames of other GOPs can still be read.
    times = whole("h264 gop 30")[1]
    intact = reader.read_frames(bytes(content), times[[3, 70]], timestamps_us=times)
    assert numbers(intact.images) == [3, 70]


@pytest.mark.parametrize(
    ("box", "place", "value"), [(b"stco", 12, 0x7FFFFF00), (b"stsz", 8, 50_000_000)]
)
def test_oversized_index_entries_are_refused(box, place, value):
    """A huge chunk offset (`stco`) and frame size (`stsz`) must not allocate memory."""
    content, _, _ = whole("h264 gop 30")
    start = content.index(box) + place
    broken = content[:start] + value.to_bytes(4, "big") + content[start + 4 :]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "90 frames" in refused(broken, "h264 gop 30")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"


@pytest.mark.parametrize("name", ["h264 gop 30 b", "hevc closed"])
def test_timestamps_not_in_display_order_are_refused(name):
    """Without the `ctts` box, packets have timestamps in decode order."""
    content = whole(name)[0].replace(b"ctts", b"free")
    with pytest.raises(AvomniError, match="do not follow the order of its pictures"):
        reader.read_frames(content, times_of(content))


FUZZED = st.sampled_from(
    [*CLOSED, "h264 open", "hevc open", "h264 10 bit", "h264 varying rate", "av1", "mpeg4 b"]
)


@pytest.mark.parametrize(
    "codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4", "mjpeg"]
)
@pytest.mark.parametrize("scene", ["black", "noise"])
def test_very_small_and_large_frames_are_not_taken_for_damage(codec, scene):
    rng = np.random.default_rng(1)
    pictures = [np.zeros((72, 128, 3), np.uint8)] * 20
    if scene == "noise":
        pictures = [rng.integers(0, 256, (72, 128, 3), np.uint8) for _ in pictures]
    options = {"libx265": {"x265-params": "log-level=none"}, "mpeg4": {"q": "2"}}
    pixels = {"libsvtav1": "yuv420p10le", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    content = encode(Spec(codec, options.get(codec, {"g": "10"}), pixels), pictures)
    assert len(reader.read_frames(content, times_of(content)).images) == 20


@settings(max_examples=100)
@given(name=FUZZED, start=st.floats(0, 1), size=st.integers(8, 5000), is_cut=st.booleans())
def test_truncated_or_zeroed_file_gives_correct_frames_or_an_error(name, start, size, is_cut):
    content, times, images = whole(name)
    media = 0 if is_cut else content.index(b"mdat") + 4
    start = media + round((len(content) - media) * start)
    rest = b"" if is_cut else bytes(len(content[start : start + size])) + content[start + size :]
    try:
        frames = reader.read_frames(content[:start] + rest, times, timestamps_us=times)
    except AvomniError as error:
        assert error.what and error.fix
    else:
        assert np.array_equal(frames.images, images)


@settings(max_examples=80)
@given(
    name=st.sampled_from(sorted(SPECS)),
    flips=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), min_size=1, max_size=12),
)
def test_flipped_bytes_give_frames_or_an_error(name, flips):
    """A video has no checksum of its frames; the zip member's checksum covers such damage."""
    content = bytearray(stream_bytes(name))
    for place, change in flips:
        content[int(place * len(content))] ^= change
    times = whole(name)[1]
    try:
        frames = reader.read_frames(bytes(content), times[::7], timestamps_us=times, size=(32, 24))
    except AvomniError as error:
        assert error.what and error.fix
    else:
        assert frames.images.shape == (len(times[::7]), 24, 32, 3)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "yuv444p"])
@pytest.mark.parametrize("size", [(60, 33), (112, 63), (200, 112)])
def test_resized_frames_match_ffmpegs_area_scaling(pixels, size, tmp_path):
    rng = np.random.default_rng(4)
    light = np.kron(rng.integers(40, 215, (64, 100)), np.ones((4, 4)))[..., None]
    tint = np.kron(rng.integers(-30, 30, (4, 6, 3)), np.ones((64, 70, 1)))[: len(light), :400]
    scene = light + tint
    pictures = [
        np.clip(
            scene[i : i + 180, 2 * i : 2 * i + 320] + rng.integers(-20, 20, (180, 320, 3)), 0, 255
        )
        for i in range(12)
    ]
    options = {"preset": "ultrafast", "crf": "12"}
    spec = Spec(options=options, pixels=pixels)
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(spec, [picture.astype(np.uint8) for picture in pictures]))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
    command += ["-vf", f"scale={size[0]}:{size[1]}:flags=area,format=rgb24"]
    command += ["-f", "rawvideo", "-fps_mode", "passthrough", "pipe:1"]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    expected = np.frombuffer(content, np.uint8).reshape(12, size[1], size[0], 3)
    frames = reader.read_frames(path, times_of(path.read_bytes()), size=size)
    assert np.abs(frames.images.astype(int) - expected).mean() <= 2
