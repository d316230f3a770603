"""Camera sources read from real files and local sockets."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avomni_lib.errors import AvomniError
from avomni_lib.evaluation.models import RemoteAnswerer
from avomni_lib.live import sources
from avomni_lib.live.page import Page
from avomni_lib.live.session import LiveSession, LiveState
from avomni_lib.live.sources import Begun, Reader, Source, check
from tests.answering_server import Answer, answering
from tests.test_live import NAMES, p_of

CAMERA = "camera_front_wide_120fov"


def write_video(path, seconds=1.0, value=lambda number: 8 * number, size=(64, 48), form=None):
    """A video at 30 frames a second, each frame of one grey value."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("mpeg4" if form is None else "mpeg2video", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(int(seconds * 30)):
            grey = np.full((size[1], size[0], 3), value(number) % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class Collected:
    """Collects the frames that a reader pushes."""

    def __init__(self):
        self.frames, self.ended = [], threading.Event()

    def push(self, camera, time_ns, frame):
        self.frames.append((time_ns, frame.to_ndarray(format="rgb24").mean()))

    def end(self, camera):
        self.ended.set()


def read(source: Source, seconds: float | None = None, until: int | None = None) -> Collected:
    """Read a source for `seconds`, until `until` frames have come, or to its end."""
    collected = Collected()
    reader = Reader(source, collected.push, collected.end)
    reader.start()
    deadline = time.monotonic() + (seconds or 20)
    while time.monotonic() < deadline and not collected.ended.is_set():
        if until is not None and len(collected.frames) >= until:
            break
        time.sleep(0.01)
    reader.stop()
    reader.join(10)
    assert not reader.is_alive()
    return collected


def test_file_is_paced_by_its_timestamps(tmp_path):
    write_video(tmp_path / "a.mp4")
    started = time.monotonic()
    collected = read(Source(CAMERA, str(tmp_path / "a.mp4"), "file"))
    assert time.monotonic() - started > 0.9, "a second of video takes a second"
    steps = np.diff([taken for taken, _ in collected.frames]) / 1e6
    assert len(collected.frames) == 30 and np.allclose(steps, 1000 / 30, atol=0.2)
    greys = [grey for _, grey in collected.frames]
    assert np.abs(np.array(greys) - 8 * np.arange(30)).max() < 8, "frames must be in order"


def test_files_of_a_session_share_a_start_time(tmp_path):
    write_video(tmp_path / "a.mp4")
    begun, firsts = Begun(), []
    for offset in (0.0, 5.0):
        collected = Collected()
        source = Source(CAMERA, str(tmp_path / "a.mp4"), "file", offset)
        reader = Reader(source, collected.push, collected.end, begun=begun)
        reader.start()
        reader.join(20)
        firsts.append(collected.frames[0][0])
    assert firsts[1] - firsts[0] == 5_000_000


def test_mjpeg_over_http_is_read():
    """The MJPEG feed of a session's page is the source."""
    with Page() as page:
        state = LiveState()

        def show():
            for number in range(400):
                state.grid = np.full((48, 64, 3), number % 200, np.uint8)
                page.show(state)
                time.sleep(0.02)

        threading.Thread(target=show, daemon=True).start()
        collected = read(Source(CAMERA, f"{page.url}feed", "arrival"), until=40)
    assert len(collected.frames) >= 40
    assert np.diff([taken for taken, _ in collected.frames]).min() > 0
    assert len({round(grey) for _, grey in collected.frames}) > 10


@contextlib.contextmanager
def serving(*turns):
    """A server whose n-th connection is served by the n-th function; the last serves the rest."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        number = 0
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    turns[min(number, len(turns) - 1)](connection)
                number += 1

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    server.close()


def paced(content: bytes, seconds: float):
    """Sends the content evenly over `seconds`."""

    def send(connection):
        for place in range(0, len(content), 2048):
            connection.sendall(content[place : place + 2048])
            time.sleep(seconds * 2048 / len(content))

    return send


def then_silent(content: bytes):
    """Sends the content at once and then nothing."""

    def send(connection):
        connection.sendall(content)
        while connection.recv(4096):
            pass  # until the caller gives up

    return send


def test_mpeg_ts_over_tcp_is_read(tmp_path):
    write_video(tmp_path / "a.ts", seconds=3, form="mpegts")
    content = (tmp_path / "a.ts").read_bytes()
    with serving(paced(content, 3)) as address:
        collected = read(Source(CAMERA, f"tcp://{address}", "device"), until=30)
    assert len(collected.frames) >= 30
    steps = np.diff([taken for taken, _ in collected.frames]) / 1e6
    assert (np.abs(steps - 1000 / 30) < 0.5).mean() > 0.5, "timestamps of the stream"


def test_interrupted_stream_is_reopened(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sources, "RETRY_S", (0.05,))
    write_video(tmp_path / "a.ts", seconds=1, form="mpegts")
    with serving(paced((tmp_path / "a.ts").read_bytes(), 0.2)) as address:
        collected = read(Source(CAMERA, f"tcp://{address}", "device"), until=80)
    assert len(collected.frames) >= 80
    assert np.diff([taken for taken, _ in collected.frames]).min() > 0
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "the stream has ended; it is opened again",
        "it shows frames again",
    ], "one warning however often it is reopened"


def test_frozen_stream_is_reopened(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sources, "RETRY_S", (0.05,))
    monkeypatch.setattr(sources, "READ_TIMEOUT_S", 0.5)
    write_video(tmp_path / "a.ts", seconds=2, form="mpegts")
    content = (tmp_path / "a.ts").read_bytes()
    with serving(then_silent(content[: len(content) // 2]), paced(content, 1)) as address:
        collected = read(Source(CAMERA, f"tcp://{address}", "arrival"), until=40)
    assert len(collected.frames) >= 40
    assert "nothing came for 0.5 s; it is opened again" in caplog.text
    assert "Immediate exit" not in caplog.text


def test_unreachable_camera_gives_one_warning_without_its_password(caplog, monkeypatch):
    monkeypatch.setattr(sources, "RETRY_S", (0.02,))
    collected = read(Source(CAMERA, "rtsp://me:secret@127.0.0.1:9/cam", "arrival"), seconds=0.6)
    assert collected.frames == [] and len(caplog.messages) == 1
    assert "opened again" in caplog.text and "secret" not in caplog.text


def jpegs(*pictures) -> bytes:
    parts = []
    for picture in pictures:
        content = picture
        if not isinstance(picture, bytes):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, format="JPEG")
            content = buffer.getvalue()
        head = f"--f\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
        parts.append(head.encode() + content + b"\r\n")
    kind = b"Content-Type: multipart/x-mixed-replace; boundary=f\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\n" + kind + b"".join(parts)


def test_mjpeg_continues_after_a_damaged_frame_and_a_new_size(caplog):
    small, large = np.full((48, 64, 3), 90, np.uint8), np.full((72, 96, 3), 90, np.uint8)
    content = jpegs(*[small] * 5, b"no picture", *[large] * 20)
    with serving(then_silent(content)) as address:
        collected = read(
            Source(CAMERA, f"http://{address}/?user=a&password=hidden", "arrival"), until=11
        )
    assert len(collected.frames) >= 11 and all(abs(grey - 90) < 3 for _, grey in collected.frames)
    assert "its frames are 96×72 px now, 64×48 px before" in caplog.text
    assert "hidden" not in caplog.text and "opened again" not in caplog.text


def test_damaged_packets_lose_only_their_frames(tmp_path, caplog):
    write_video(tmp_path / "a.ts", seconds=2, form="mpegts")
    content = bytearray((tmp_path / "a.ts").read_bytes())
    for place in np.random.default_rng(0).integers(2000, len(content), 40):
        content[place] ^= 0xFF
    (tmp_path / "a.ts").write_bytes(content)
    warned = []
    shown = list(sources.frames_of(Source(CAMERA, str(tmp_path / "a.ts"), "file"), warned.append))
    assert len(shown) > 30 and set(warned) <= {"a damaged frame is left out"}


def test_file_without_timestamps_gives_one_warning(tmp_path, caplog):
    with av.open(str(tmp_path / "a.h264"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            grey = np.full((48, 64, 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    collected = read(Source(CAMERA, str(tmp_path / "a.h264"), "file"))
    assert collected.frames == [] and collected.ended.is_set()
    (text,) = caplog.messages
    assert "none of its frames has a timestamp; it shows no more" in text


class Shown:
    """A frame of a simulated source."""

    width, height = 64, 48


def scripted(monkeypatch, clock: str, events) -> tuple[list[float], Reader]:
    """Read simulated frames, (timestamp, arrival) in s, on a virtual clock; returns times taken."""
    now, taken = [0], []
    source = Source(CAMERA, "a.mp4" if clock == "file" else "tcp://127.0.0.1:9", clock)

    def frames_of(source, warn):
        for stamp_s, arrived_s in events:
            now[0] = round(arrived_s * 1e9)
            yield None if stamp_s is None else round(stamp_s * 1e9), Shown()
        reader.stop()

    def push(camera, time_ns, frame):
        taken.append(time_ns / 1e9)

    monkeypatch.setattr(sources, "frames_of", frames_of)
    reader = Reader(source, push, lambda camera: None, lambda: now[0])
    reader._halt.wait = lambda seconds: now.__setitem__(0, now[0] + round(seconds * 1e9))
    reader.run()
    return taken, reader


STEADY = np.arange(0, 4, 1 / 30)


def test_buffered_and_late_frames_do_not_shift_the_clock(monkeypatch):
    """A server first sends a buffered second, and the connection later stalls for half a second."""
    arrived = np.maximum(STEADY, 1.0)
    arrived[60:75] = STEADY[75]
    taken, _ = scripted(monkeypatch, "device", zip(100 + STEADY, arrived, strict=True))
    assert np.allclose(taken[31:], STEADY[31:], atol=0.005)


@pytest.mark.parametrize("drift", [2e-4, -2e-4])
def test_drifting_camera_clock_is_corrected(monkeypatch, drift):
    moments = np.arange(0, 20_000, 2.0)
    late = np.random.default_rng(0).exponential(0.01, len(moments))
    events = zip(moments * (1 + drift), np.maximum.accumulate(moments + late), strict=True)
    taken, _ = scripted(monkeypatch, "device", events)
    assert np.abs(taken - moments).max() < 0.1, "uncorrected, the clocks are 4 s apart"


@pytest.mark.parametrize("jump_s", [-50.0, 50.0, -1e5, 1e5])
def test_jumping_timestamps_restart_the_clock(monkeypatch, caplog, jump_s):
    stamps = STEADY + np.where(STEADY >= 2, jump_s, 0)
    taken, _ = scripted(monkeypatch, "device", zip(1000 + stamps, STEADY + 0.02, strict=True))
    assert np.allclose(taken, STEADY + 0.02, atol=0.005)
    assert len(caplog.messages) == (jump_s < 0)


def test_missing_timestamps_are_replaced_by_arrival_times(monkeypatch):
    events = [(None if i % 3 else 50 + at, at) for i, at in enumerate(STEADY)]
    taken, _ = scripted(monkeypatch, "device", events)
    assert np.allclose(taken, STEADY, atol=0.005)


def test_recording_continues_after_its_timestamps_jump_back(monkeypatch, caplog):
    stamps = np.concatenate([STEADY[:60], STEADY[30:90]])
    taken, _ = scripted(monkeypatch, "file", zip(stamps, np.zeros_like(stamps), strict=True))
    assert np.allclose(sorted(set(taken)), STEADY[:90], atol=1e-6)
    assert len(caplog.messages) == 1


def test_recording_with_a_large_first_timestamp_starts_at_once(monkeypatch):
    taken, _ = scripted(monkeypatch, "file", [(40_000 + stamp, 7.0) for stamp in STEADY])
    assert np.allclose(taken, 7 + STEADY, atol=1e-6)


def test_recording_ends_when_its_timestamps_jump_far_ahead(monkeypatch, caplog):
    stamps = np.concatenate([STEADY, [95_443.7]])
    taken, _ = scripted(monkeypatch, "file", zip(stamps, np.zeros_like(stamps), strict=True))
    assert len(taken) == len(STEADY)
    (text,) = caplog.messages
    assert re.search(r"its next frame is to be shown 95,4\d\d s from now; it shows no more", text)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(-5000, 5000), st.integers(1, 3000)), max_size=40))
def test_device_clock_is_monotonic_and_not_after_the_arrival(steps):
    clock, stamp, arrived, last = sources.DeviceClock(), 0, 0, -(10**18)
    for stamp_ms, arrived_ms in steps:
        stamp, arrived = stamp + stamp_ms * 1_000_000, arrived + arrived_ms * 1_000_000
        taken, _ = clock.taken(stamp, arrived)
        assert last <= taken <= arrived
        last = taken


PUSH_RTSP = """
import sys, time, av, numpy as np
time.sleep(1)
with av.open(sys.argv[1], "w", format="rtsp", options={"rtsp_transport": "tcp"}) as container:
    stream = container.add_stream("mpeg4", rate=30)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for number in range(90):
        grey = np.full((48, 64, 3), number, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        time.sleep(0.02)
"""


def test_rtsp_over_a_socket_is_decoded():
    """Without an RTSP server, FFmpeg's reader listens and another process pushes to it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"rtsp://127.0.0.1:{port}/cam"
    pusher = subprocess.Popen([sys.executable, "-c", PUSH_RTSP, address])
    options = {"rtsp_flags": "listen", "listen_timeout": "10"}
    try:
        with av.open(address, options=options, timeout=15) as container:
            frames = [frame for frame, _ in zip(container.decode(video=0), range(10), strict=False)]
    finally:
        pusher.kill()
    assert len(frames) == 10
    greys = [frame.to_ndarray(format="rgb24").mean() for frame in frames]
    assert (np.diff(greys) > 0).mean() > 0.5


@pytest.mark.parametrize(
    ("url", "clock", "is_recorded"),
    [
        ("a.mp4", "arrival", True),
        ("lavfi:testsrc", "device", True),
        ("/dev/video0", "file", False),
        ("rtsp://10.0.0.5/a", "file", False),
        ("http://10.0.0.5/feed", "file", False),
        ("http://10.0.0.5/a.mp4?token=1", "file", True),
        ("http://10.0.0.5/live.ts", "arrival", False),
    ],
)
def test_recorded_files_and_streams_are_distinguished(url, clock, is_recorded):
    assert Source(CAMERA, url, clock).is_recorded == is_recorded


@pytest.mark.parametrize(
    "url",
    [
        "concat:a.mp4|b.mp4",
        "subfile,,start,0,end,9,,:a.mp4",
        "file:///etc/passwd",
        "data:,x",
        "gopher://a",
    ],
)
def test_other_ffmpeg_protocols_are_refused(url):
    with pytest.raises(AvomniError, match="a source is opened from"):
        check(Source(CAMERA, url, "file"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://me:hidden@10.0.0.5/a", "rtsp://10.0.0.5/a"),
        ("rtsp://me:hid/den?@10.0.0.5/a", "rtsp://10.0.0.5/a"),
        (
            "http://10.0.0.5:80/a?user=me&pwd=hidden&fps=9",
            "http://10.0.0.5:80/a?user=me&pwd=***&fps=9",
        ),
        ("http://10.0.0.5/a?access_token=hidden", "http://10.0.0.5/a?access_token=***"),
        ("http://10.0.0.5:8080/a@b", "http://10.0.0.5:8080/a@b"),
    ],
)
def test_secrets_are_removed_from_displayed_addresses(url, shown):
    assert Source(CAMERA, url, "arrival").shown == shown


def test_file_without_video_gives_one_warning(tmp_path, caplog):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    collected = read(Source(CAMERA, str(tmp_path / "a.wav"), "file"))
    assert collected.frames == [] and collected.ended.is_set()
    assert "there is no video in it; it shows no more" in caplog.text
    assert len(caplog.records) == 1


def test_session_of_files_predicts_and_ends_with_them(tmp_path):
    for name in NAMES:
        write_video(tmp_path / f"{name}.mp4", seconds=2)
    p = p_of(sources={name: str(tmp_path / f"{name}.mp4") for name in NAMES})
    session = LiveSession(p, lambda frames: f"{frames.mean():.2f}", record=tmp_path / "record")
    session.run(seconds=20)
    counts = session.counts()
    assert 15 <= counts["num_ticks"] <= 21 and counts["num_gaps"] == 0
    assert counts["num_answers"] >= 5 and set(counts["num_frames"].values()) == {60}
    lines = [json.loads(line) for line in (tmp_path / "record" / "live.jsonl").open()]
    assert [lines[0]["kind"], lines[-1]["kind"]] == ["start", "end"]


def test_page_serves_the_image_and_the_state():
    with Page() as page:
        state = LiveState(grid=np.zeros((4, 4, 3), np.uint8), tick=7, num_gaps=2)
        page.show(state)
        page_state = json.load(urllib.request.urlopen(f"{page.url}state"))
        assert page_state["numbers"]["tick"] == 7 and page_state["answer"] is None
        assert b"<img" in urllib.request.urlopen(page.url).read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{page.url}../etc/passwd")
        assert "127.0.0.1" in page.url


def test_remote_answerer_sends_lossless_frames_and_returns_the_answer():
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    with answering(lambda _: Answer({"choices": [{"message": {"content": "five"}}]})) as server:
        remote = RemoteAnswerer(p_of(), f"{server.endpoint}/v1", "How fast?")
        assert remote.ask(frames, " So far.") == "five"
    body = json.loads(server.asked[0].body)
    assert server.asked[0] == "/v1/chat/completions" and body["temperature"] == 0
    video, words = body["messages"][0]["content"]
    assert words["text"] == "How fast? So far."
    pictures = video["video_url"]["url"].removeprefix("data:video/jpeg;base64,").split(",")
    assert len(pictures) == 4
    for sent, frame in zip(pictures, frames, strict=True):
        assert (np.array(Image.open(io.BytesIO(base64.b64decode(sent)))) == frame).all()
    assert body["media_io_kwargs"]["video"]["num_frames"] == -1


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (lambda _: Answer(status=503), "answers 503"),
        (lambda _: Answer({"error": 1}), "does not answer as OpenAI's"),
        (lambda _: time.sleep(1) or Answer(), "does not answer"),
    ],
    ids=["unavailable", "malformed answer", "timeout"],
)
def test_remote_answerer_reports_a_failing_server(given, what):
    with answering(given) as server:
        remote = RemoteAnswerer(p_of(), server.endpoint, "?", timeout_s=0.3)
        with pytest.raises(AvomniError, match=what):
            remote.ask(np.zeros((1, 4, 4, 3), np.uint8))
