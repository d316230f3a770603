"""Cameras through real files and real sockets on this machine."""

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
    """A video of 30 frames a second, each of one grey."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("mpeg4" if form is None else "mpeg2video", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(int(seconds * 30)):
            grey = np.full((size[1], size[0], 3), value(number) % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class Heard:
    """What a reader has pushed."""

    def __init__(self):
        self.frames, self.ended = [], threading.Event()

    def push(self, camera, time_ns, frame):
        self.frames.append((time_ns, frame.to_ndarray(format="rgb24").mean()))

    def end(self, camera):
        self.ended.set()


def read(source: Source, seconds: float | None = None, until: int | None = None) -> Heard:
    """Read a source for so long, until so many frames came, or to its end."""
    heard = Heard()
    reader = Reader(source, heard.push, heard.end)
    reader.start()
    deadline = time.monotonic() + (seconds or 20)
    while time.monotonic() < deadline and not heard.ended.is_set():
        if until is not None and len(heard.frames) >= until:
            break
        time.sleep(0.01)
    reader.stop()
    reader.join(10)
    assert not reader.is_alive()
    return heard


def test_a_file_is_paced_by_its_own_times(tmp_path):
    write_video(tmp_path / "a.mp4")
    started = time.monotonic()
    heard = read(Source(CAMERA, str(tmp_path / "a.mp4"), "file"))
    assert time.monotonic() - started > 0.9, "a second of video takes a second"
    steps = np.diff([taken for taken, _ in heard.frames]) / 1e6
    assert len(heard.frames) == 30 and np.allclose(steps, 1000 / 30, atol=0.2)
    greys = [grey for _, grey in heard.frames]
    assert np.abs(np.array(greys) - 8 * np.arange(30)).max() < 8, (
        "each frame is nearest its own grey"
    )


def test_files_of_a_session_begin_together(tmp_path):
    write_video(tmp_path / "a.mp4")
    begun, firsts = Begun(), []
    for offset in (0.0, 5.0):
        heard = Heard()
        source = Source(CAMERA, str(tmp_path / "a.mp4"), "file", offset)
        reader = Reader(source, heard.push, heard.end, begun=begun)
        reader.start()
        reader.join(20)
        firsts.append(heard.frames[0][0])
    assert firsts[1] - firsts[0] == 5_000_000


def test_mjpeg_comes_over_http_and_a_dropped_line_is_taken_up_again():
    """The page of a session is itself a camera for another one."""
    with Page() as page:
        state = LiveState()

        def show():
            for number in range(400):
                state.grid = np.full((48, 64, 3), number % 200, np.uint8)
                page.show(state)
                time.sleep(0.02)

        threading.Thread(target=show, daemon=True).start()
        heard = read(Source(CAMERA, f"{page.url}feed", "arrival"), until=40)
    assert len(heard.frames) >= 40
    assert np.diff([taken for taken, _ in heard.frames]).min() > 0
    assert len({round(grey) for _, grey in heard.frames}) > 10


@contextlib.contextmanager
def serving(*turns):
    """A server whose n-th caller is served by the n-th function; the last one serves all others."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        number = 0
        with contextlib.suppress(OSError):
            while True:
                line, _ = server.accept()
                with line:
                    turns[min(number, len(turns) - 1)](line)
                number += 1

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    server.close()


def paced(content: bytes, seconds: float):
    """Sends content evenly."""

    def send(line):
        for place in range(0, len(content), 2048):
            line.sendall(content[place : place + 2048])
            time.sleep(seconds * 2048 / len(content))

    return send


def then_silent(content: bytes):
    """Sends content at once, and then nothing."""

    def send(line):
        line.sendall(content)
        while line.recv(4096):
            pass  # until the caller gives up

    return send


def test_mpeg_ts_comes_over_tcp(tmp_path):
    write_video(tmp_path / "a.ts", seconds=3, form="mpegts")
    content = (tmp_path / "a.ts").read_bytes()
    with serving(paced(content, 3)) as address:
        heard = read(Source(CAMERA, f"tcp://{address}", "device"), until=30)
    assert len(heard.frames) >= 30
    steps = np.diff([taken for taken, _ in heard.frames]) / 1e6
    assert (np.abs(steps - 1000 / 30) < 0.5).mean() > 0.5, "the stream's own times"


def test_a_stream_that_breaks_off_is_taken_up_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sources, "RETRY_S", (0.05,))
    write_video(tmp_path / "a.ts", seconds=1, form="mpegts")
    with serving(paced((tmp_path / "a.ts").read_bytes(), 0.2)) as address:
        heard = read(Source(CAMERA, f"tcp://{address}", "device"), until=80)
    assert len(heard.frames) >= 80
    assert np.diff([taken for taken, _ in heard.frames]).min() > 0
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "the stream has ended; it is opened again",
        "it shows frames again",
    ], "however often"


def test_a_stream_that_freezes_is_opened_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sources, "RETRY_S", (0.05,))
    monkeypatch.setattr(sources, "READ_TIMEOUT_S", 0.5)
    write_video(tmp_path / "a.ts", seconds=2, form="mpegts")
    content = (tmp_path / "a.ts").read_bytes()
    with serving(then_silent(content[: len(content) // 2]), paced(content, 1)) as address:
        heard = read(Source(CAMERA, f"tcp://{address}", "arrival"), until=40)
    assert len(heard.frames) >= 40
    assert "nothing came for 0.5 s; it is opened again" in caplog.text
    assert "Immediate exit" not in caplog.text


def test_a_camera_that_never_comes_is_one_line_without_its_password(caplog, monkeypatch):
    monkeypatch.setattr(sources, "RETRY_S", (0.02,))
    heard = read(Source(CAMERA, "rtsp://me:secret@127.0.0.1:9/cam", "arrival"), seconds=0.6)
    assert heard.frames == [] and len(caplog.messages) == 1
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


def test_mjpeg_of_another_size_and_a_damaged_picture_go_on(caplog):
    small, large = np.full((48, 64, 3), 90, np.uint8), np.full((72, 96, 3), 90, np.uint8)
    content = jpegs(*[small] * 5, b"no picture", *[large] * 20)
    with serving(then_silent(content)) as address:
        heard = read(
            Source(CAMERA, f"http://{address}/?user=a&password=hidden", "arrival"), until=11
        )
    assert len(heard.frames) >= 11 and all(abs(grey - 90) < 3 for _, grey in heard.frames)
    assert "its frames are 96×72 px now, 64×48 px before" in caplog.text
    assert "hidden" not in caplog.text and "opened again" not in caplog.text


def test_a_damaged_packet_of_a_file_costs_its_frame_alone(tmp_path, caplog):
    write_video(tmp_path / "a.ts", seconds=2, form="mpegts")
    content = bytearray((tmp_path / "a.ts").read_bytes())
    for place in np.random.default_rng(0).integers(2000, len(content), 40):
        content[place] ^= 0xFF
    (tmp_path / "a.ts").write_bytes(content)
    warned = []
    shown = list(sources.frames_of(Source(CAMERA, str(tmp_path / "a.ts"), "file"), warned.append))
    assert len(shown) > 30 and set(warned) <= {"a damaged frame is left out"}


def test_a_file_without_times_is_one_line(tmp_path, caplog):
    with av.open(str(tmp_path / "a.h264"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            grey = np.full((48, 64, 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    heard = read(Source(CAMERA, str(tmp_path / "a.h264"), "file"))
    assert heard.frames == [] and heard.ended.is_set()
    (text,) = caplog.messages
    assert "none of its frames has a timestamp; it shows no more" in text


class Shown:
    """A frame of a source that is made up."""

    width, height = 64, 48


def scripted(monkeypatch, clock: str, events) -> tuple[list[float], Reader]:
    """Read (own time, arrival) (s) of made-up frames on a virtual clock; what was taken when."""
    now, taken = [0], []
    source = Source(CAMERA, "a.mp4" if clock == "file" else "tcp://127.0.0.1:9", clock)

    def frames_of(source, warn):
        for own_s, arrived_s in events:
            now[0] = round(arrived_s * 1e9)
            yield None if own_s is None else round(own_s * 1e9), Shown()
        reader.stop()

    def push(camera, time_ns, frame):
        taken.append(time_ns / 1e9)

    monkeypatch.setattr(sources, "frames_of", frames_of)
    reader = Reader(source, push, lambda camera: None, lambda: now[0])
    reader._halt.wait = lambda seconds: now.__setitem__(0, now[0] + round(seconds * 1e9))
    reader.run()
    return taken, reader


STEADY = np.arange(0, 4, 1 / 30)


def test_frames_kept_for_a_reader_and_late_ones_move_no_clock(monkeypatch):
    """A server that sends its last second at once, and a line that stands for half a second."""
    arrived = np.maximum(STEADY, 1.0)
    arrived[60:75] = STEADY[75]
    taken, _ = scripted(monkeypatch, "device", zip(100 + STEADY, arrived, strict=True))
    assert np.allclose(taken[31:], STEADY[31:], atol=0.005)


@pytest.mark.parametrize("drift", [2e-4, -2e-4])
def test_a_camera_whose_clock_runs_at_another_rate_is_followed(monkeypatch, drift):
    moments = np.arange(0, 20_000, 2.0)
    late = np.random.default_rng(0).exponential(0.01, len(moments))
    events = zip(moments * (1 + drift), np.maximum.accumulate(moments + late), strict=True)
    taken, _ = scripted(monkeypatch, "device", events)
    assert np.abs(taken - moments).max() < 0.1, "4 s apart by its own count"


@pytest.mark.parametrize("jump_s", [-50.0, 50.0, -1e5, 1e5])
def test_times_that_jump_are_counted_anew(monkeypatch, caplog, jump_s):
    own = STEADY + np.where(STEADY >= 2, jump_s, 0)
    taken, _ = scripted(monkeypatch, "device", zip(1000 + own, STEADY + 0.02, strict=True))
    assert np.allclose(taken, STEADY + 0.02, atol=0.005)
    assert len(caplog.messages) == (jump_s < 0)


def test_a_stream_without_times_is_taken_at_its_arrival(monkeypatch):
    events = [(None if i % 3 else 50 + at, at) for i, at in enumerate(STEADY)]
    taken, _ = scripted(monkeypatch, "device", events)
    assert np.allclose(taken, STEADY, atol=0.005)


def test_a_recording_whose_times_jump_back_goes_on_where_it_was(monkeypatch, caplog):
    own = np.concatenate([STEADY[:60], STEADY[30:90]])
    taken, _ = scripted(monkeypatch, "file", zip(own, np.zeros_like(own), strict=True))
    assert np.allclose(sorted(set(taken)), STEADY[:90], atol=1e-6)
    assert len(caplog.messages) == 1


def test_a_recording_cut_out_of_a_broadcast_begins_with_its_first_frame(monkeypatch):
    taken, _ = scripted(monkeypatch, "file", [(40_000 + own, 7.0) for own in STEADY])
    assert np.allclose(taken, 7 + STEADY, atol=1e-6)


def test_a_recording_that_jumps_far_ahead_ends_with_one_line(monkeypatch, caplog):
    own = np.concatenate([STEADY, [95_443.7]])
    taken, _ = scripted(monkeypatch, "file", zip(own, np.zeros_like(own), strict=True))
    assert len(taken) == len(STEADY)
    (text,) = caplog.messages
    assert re.search(r"its next frame is to be shown 95,4\d\d s from now; it shows no more", text)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(-5000, 5000), st.integers(1, 3000)), max_size=40))
def test_a_frame_is_taken_before_it_arrives_and_none_before_the_last(steps):
    clock, own, arrived, last = sources.DeviceClock(), 0, 0, -(10**18)
    for own_ms, arrived_ms in steps:
        own, arrived = own + own_ms * 1_000_000, arrived + arrived_ms * 1_000_000
        taken, _ = clock.taken(own, arrived)
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


def test_rtsp_comes_through_a_real_socket():
    """No server is at hand: FFmpeg's reader listens, another process pushes to it."""
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
def test_files_are_paced_and_streams_are_taken_as_they_come(url, clock, is_recorded):
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
def test_other_protocols_of_ffmpeg_are_not_opened(url):
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
def test_what_is_secret_in_an_address_is_left_out(url, shown):
    assert Source(CAMERA, url, "arrival").shown == shown


def test_a_file_without_video_ends_with_one_line(tmp_path, caplog):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    heard = read(Source(CAMERA, str(tmp_path / "a.wav"), "file"))
    assert heard.frames == [] and heard.ended.is_set()
    assert "there is no video in it; it shows no more" in caplog.text
    assert len(caplog.records) == 1


def test_a_session_of_real_files_answers_and_ends_with_them(tmp_path):
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


def test_the_page_shows_the_picture_and_the_numbers():
    with Page() as page:
        state = LiveState(grid=np.zeros((4, 4, 3), np.uint8), tick=7, num_gaps=2)
        page.show(state)
        told = json.load(urllib.request.urlopen(f"{page.url}state"))
        assert told["numbers"]["tick"] == 7 and told["answer"] is None
        assert b"<img" in urllib.request.urlopen(page.url).read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{page.url}../etc/passwd")
        assert "127.0.0.1" in page.url


def test_a_server_is_sent_whole_frames_and_its_answer_comes_back():
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
    ids=["down", "odd", "slow"],
)
def test_a_server_that_fails_is_one_sentence(given, what):
    with answering(given) as server:
        remote = RemoteAnswerer(p_of(), server.endpoint, "?", timeout_s=0.3)
        with pytest.raises(AvomniError, match=what):
            remote.ask(np.zeros((1, 4, 4, 3), np.uint8))
