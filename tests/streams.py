"""Small videos of many kinds, made with PyAV, whose i-th picture bears the number i.

content = stream_bytes("hevc open")           # an mp4
images = video.read_frames(content, times)    # any rows, in any order
numbers(images.images, "hevc open")           # the numbers that they bear
"""

from __future__ import annotations

import functools
import io
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avomni_lib.etl.video import stream
from tests.published_set import frame_bits, read_frame

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings to stderr else

WIDTH, HEIGHT, NUM_FRAMES = 96, 64, 90
MILLISECOND = Fraction(1, 1000)
H264 = {"preset": "ultrafast", "crf": "22"}
B_FRAMES = "bframes=3:b-adapt=0:b-pyramid=normal:scenecut=0"
HEVC = "bframes=3:b-adapt=0:log-level=none:pools=none:frame-threads=1"
# The rest of tkhd's matrix is the same (ISO 14496-12 §8.3.2): a, b, c and d of each turn.
MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@dataclass(frozen=True)
class Spec:
    """How a stream is made.

    Attributes:
        codec, options: As FFmpeg names them.
        pixels: Pixel format.
        size: (width, height) px as encoded.
        times: When each picture is shown, in units of `base` (s); None is 30 a second from 0 on.
        turn: Degrees clockwise that a player turns the picture by.
    """

    codec: str = "libx264"
    options: dict = field(default_factory=dict)
    pixels: str = "yuv420p"
    size: tuple[int, int] = (WIDTH, HEIGHT)
    times: tuple[int, ...] | None = None
    base: Fraction = MILLISECOND
    turn: int = 0


def _h264(gop: int, x264: str = "", **more) -> Spec:
    b_frames = {"x264-params": x264} if x264 else {"bf": "0"}
    return Spec(options=H264 | {"g": str(gop)} | b_frames, **more)


def _hevc(gop: int, is_open: bool, **more) -> Spec:
    return Spec("libx265", {"x265-params": f"keyint={gop}:open-gop={int(is_open)}:{HEVC}"}, **more)


_GAPS = np.random.default_rng(3).integers(5, 90, NUM_FRAMES)
SPECS = {
    "h264 gop 15": _h264(15),
    "h264 gop 15 b": _h264(15, B_FRAMES),
    "h264 gop 30": _h264(30),
    "h264 gop 30 b": _h264(30, B_FRAMES),
    "h264 gop 60": _h264(60),
    "h264 gop 60 b": _h264(60, B_FRAMES),
    "h264 open": _h264(30, f"open-gop=1:{B_FRAMES}"),
    "h264 bluray": _h264(15, f"open-gop=1:bluray-compat=1:{B_FRAMES}"),
    "h264 refresh": _h264(30, "intra-refresh=1"),
    "h264 10 bit": _h264(30, B_FRAMES, pixels="yuv420p10le"),
    "h264 odd sides": _h264(30, B_FRAMES, pixels="yuv444p", size=(97, 65)),
    "h264 late start": _h264(30, B_FRAMES, times=tuple(8_330 + 40 * np.arange(NUM_FRAMES))),
    "h264 varying rate": _h264(30, B_FRAMES, times=tuple(np.cumsum(_GAPS))),
    "h264 turned 90": _h264(30, B_FRAMES, turn=90),
    "h264 turned 180": _h264(30, B_FRAMES, turn=180),
    "h264 turned 270": _h264(30, B_FRAMES, turn=270),
    "hevc closed": _hevc(30, False),
    "hevc open": _hevc(30, True),
    "hevc 10 bit": _hevc(30, True, pixels="yuv420p10le"),
    "hevc varying rate": _hevc(30, True, times=tuple(np.cumsum(_GAPS))),
    "av1": Spec("libsvtav1", {"preset": "12", "crf": "20", "g": "30"}, pixels="yuv420p10le"),
    "mpeg4 b": Spec("mpeg4", {"g": "12", "bf": "2", "q": "2"}),
}
OPEN = {"h264 open", "h264 bluray", "h264 refresh", "mpeg4 b"} | {
    "hevc open",
    "hevc 10 bit",
    "hevc varying rate",
}
LEADING = OPEN - {"h264 refresh"}


@functools.cache
def stream_bytes(name: str, index_first: bool = False) -> bytes:
    return encode(SPECS[name], index_first=index_first)


def encode(
    spec: Spec, pictures: list[np.ndarray] | None = None, index_first: bool = False
) -> bytes:
    """An mp4 of (H, W, 3) uint8 pictures; without any, of 90 that bear their numbers.

    Its index (`moov`) lies behind the packets, or before them.
    """
    if pictures is None:
        pictures = [frame_bits(5, 3, i, *spec.size) for i in range(NUM_FRAMES)]
    times = spec.times or [int(Fraction(n, 30) / spec.base) for n in range(len(pictures))]
    moves = {"movflags": "faststart"} if index_first else {}
    with (
        tempfile.NamedTemporaryFile(suffix=".mp4") as file,
        av.open(file.name, "w", format="mp4", options=moves) as container,
    ):
        track = container.add_stream(spec.codec, rate=30, options=spec.options or H264)
        track.height, track.width = pictures[0].shape[:2]
        track.pix_fmt = spec.pixels
        track.codec_context.time_base = track.time_base = spec.base
        track.codec_context.thread_count = 1
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(time), spec.base
            container.mux(track.encode(frame))
        container.mux(track.encode())
        container.close()
        content = Path(file.name).read_bytes()
    # Run by root, SVT-AV1 makes the thread that calls it a real-time one: all that the tests start
    # after that would keep every other process of the machine from its turn.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return turned(content, spec.turn)


def remuxed(
    content: bytes,
    container: str = "mp4",
    change: Callable[[list[av.Packet]], Iterable[av.Packet]] = list,
) -> bytes:
    """The packets of a video in another container, or only some of them, or at other times."""
    file = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(file, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in change([packet for packet in source.demux(video=0) if packet.size]):
            packet.stream = stream
            target.mux(packet)
    return file.getvalue()


def turned(content: bytes, degrees: int) -> bytes:
    """The same mp4, which a player turns clockwise."""
    content = bytearray(content)
    place = content.index(b"tkhd") + 4 + 40
    for step, value in zip((0, 4, 12, 16), MATRICES.get(degrees, ()), strict=False):
        content[place + step : place + step + 4] = (value << 16).to_bytes(4, "big", signed=True)
    return bytes(content)


def numbers(images: np.ndarray, name: str = "") -> list[int]:
    """The numbers that pictures of a stream bear; -1 where one is not a picture of it."""
    upright = np.rot90(images, SPECS[name].turn // 90 if name else 0, axes=(1, 2))
    read = [read_frame(image) for image in upright]
    return [frame_idx if rest == [5, 3] else -1 for *rest, frame_idx in read]


def places(content: bytes) -> list[tuple[int, int]]:
    """(first byte, length) of each packet, in decode order."""
    with av.open(io.BytesIO(content)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.dts is not None]


def times_of(content: bytes) -> np.ndarray:
    """(N,) int64 µs of a video's own frames."""
    with stream.opened(content) as opened:
        return opened.times_us
