"""From a camera's frame to the answer, and what it costs to read cameras.

    python -m tests.benchmarks.live_latency [--seconds 20] [--json FILE]

Four cameras of the demo's size, 30 frames a second in H.264, are played as if live: by the tiny
base without an adapter (seconds from frame to answer, by part), and without a model (CPU seconds of
the process for a second of their frames: reading alone, and with the grids of all ticks). Then
another process sends 30 numbered frames a second over RTSP, MPEG-TS and MJPEG through sockets of
this machine: from the moment at which it has made a picture until the picture is decoded here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
from PIL import Image

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.live.answerer import Answerer
from avomni_lib.live.session import PARTS, LiveSession, sources_of
from avomni_lib.live.sources import LOW_DELAY, Begun, Reader, Source, open_source
from avomni_lib.params import Params
from tests.benchmarks import demo_cpu, drive
from tests.published_set import frame_bits, read_frame

FPS, ROUNDS = 30, 3
WARM_UP_S = 1.0  # of each measurement, left out
H264 = {"preset": "ultrafast", "tune": "zerolatency", "g": "15"}
KINDS = ("rtsp", "mpegts", "mjpeg")


def write_clip(path: Path, seconds: float, size: tuple[int, int], seed: int) -> None:
    """A video whose picture moves."""
    width, height = size
    rng = np.random.default_rng(seed)
    texture = drive._texture(rng, 32 * (height // 32 + 1), 32 * (width // 32 + 2))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "30", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * FPS)):
            moved = np.roll(texture, -2 * number, axis=1)[:height, :width]
            picture = np.ascontiguousarray(np.repeat(moved[..., None], 3, axis=2))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def played(p: Params, folder: Path, seconds: float) -> Params:
    """The run with four such videos as its cameras."""
    size, urls = (p.dataset.world.width, p.dataset.world.height), {}
    for number, camera in enumerate(cameras.grid(p.vision.cameras).cameras):
        urls[camera.name] = str(folder / f"{camera.name}.mp4")
        write_clip(Path(urls[camera.name]), seconds, size, number)
    live = p.live.model_copy(update={"sources": urls, "clock": "file"})
    return p.model_copy(update={"live": live})


def quantiles(values: list[float] | np.ndarray, digits: int = 4) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), digits) for q in (50, 95)}


def answering(p: Params, seconds: float) -> dict:
    """Seconds from frame to answer, of a session with the tiny base."""
    answerer = Answerer(p, base_only=True)
    answerer.answer(np.zeros(answerer.conversation.frame_shape, np.uint8))
    session = LiveSession(p, answerer)
    used = time.process_time()
    session.run(seconds)
    used = time.process_time() - used
    answers = session.answers[1:]  # the first one has all frames to encode
    if len(answers) < 2:
        raise SystemExit(f"{len(answers) + 1} answers came in {seconds:g} s: raise --seconds")
    parts = [each.latency_s for each in answers]
    span_s = (answers[-1].answered_ns - answers[0].answered_ns) / 1e9
    counts = session.counts()
    return {
        "seconds": {name: quantiles([each[name] for each in parts]) for name in (*PARTS, "total")},
        "answers_per_s": round((len(answers) - 1) / span_s, 2),
        "frames_encoded": median(each.num_encoded or 0 for each in answers),
        "frames_in_window": p.processing.sequence_length,
        "cpu_s_per_answer": round(used / len(session.answers), 3),
        **{name: counts[name] for name in ("num_answers", "num_overtaken", "num_gaps")},
    }


class Counted:
    """Cameras that are read in threads of this process, without a model.

    Args:
        grids: Whether a session makes the grids of all ticks; else frames are decoded and kept.
    """

    def __init__(self, p: Params, grids: bool):
        self.num_frames, self._stop, self._readers = 0, threading.Event(), []
        self._session = LiveSession(p, lambda frames: "") if grids else None
        self._kept: deque = deque(maxlen=4 * FPS)
        run = self._read if self._session is None else lambda: self._session.run(stop=self._stop)
        self._thread, self._p = threading.Thread(target=run), p

    def _push(self, *frame: object) -> None:
        self._kept.append(frame)
        self.num_frames += 1

    def _read(self) -> None:
        sources = sources_of(self._p)
        begun = Begun(len(sources))
        readers = [Reader(each, self._push, lambda name: None, begun=begun) for each in sources]
        for reader in readers:
            reader.start()
        self._stop.wait()
        for reader in readers:
            reader.stop()
            reader.join()

    def count(self) -> int:
        if self._session is None:
            return self.num_frames
        return sum(feed.num_frames for feed in self._session.ticks.feeds.values())

    def __enter__(self) -> Counted:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def cpu_share(p: Params, grids: bool, seconds: float) -> float:
    """CPU seconds of this process for a second of all cameras' frames."""
    per_second = FPS * len(p.live.sources or {})
    with Counted(p, grids) as cameras_read:
        time.sleep(WARM_UP_S)
        before, used = cameras_read.count(), time.process_time()
        time.sleep(seconds)
        used, num = time.process_time() - used, cameras_read.count() - before
    return used / (num / per_second)


def reading(p: Params, seconds: float) -> dict:
    """Shares of one core, without a model: medians of rounds."""
    rounds = {
        name: [round(cpu_share(p, grids, seconds), 4) for _ in range(ROUNDS)]
        for name, grids in (("read", False), ("read_and_grids", True))
    }
    return {name: median(shares) for name, shares in rounds.items()} | {"rounds": rounds}


# Streams from another process.


def numbered(seconds: float, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, int]]:
    """Pictures at their pace, each with its number; when each was made is printed."""
    started = time.monotonic()
    for number in range(round(seconds * FPS)):
        time.sleep(max(started + number / FPS - time.monotonic(), 0))
        picture = frame_bits(1, 0, number, *size)
        print(number, time.monotonic_ns(), flush=True)
        yield picture, number


def send(kind: str, port: int, seconds: float, size: tuple[int, int]) -> None:
    """The other process: sends a stream to whoever listens (RTSP), or to its first caller."""
    if kind == "mjpeg":
        send_mjpeg(port, seconds, size)
        return
    url, options = f"tcp://127.0.0.1:{port}?listen=1", {"flush_packets": "1"}
    if kind == "rtsp":
        url, options = f"rtsp://127.0.0.1:{port}/cam", {"rtsp_transport": "tcp"}
    with persistently(lambda: av.open(url, "w", format=kind, options=options)) as container:
        stream = container.add_stream("libx264", rate=FPS, options=H264)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        persistently(container.start_encoding)
        for picture, number in numbered(seconds, size):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))


def send_mjpeg(port: int, seconds: float, size: tuple[int, int]) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        line, _ = server.accept()
        with line:
            line.recv(4096)
            kind = b"Content-Type: multipart/x-mixed-replace; boundary=f\r\n\r\n"
            line.sendall(b"HTTP/1.1 200 OK\r\n" + kind)
            for picture, _ in numbered(seconds, size):
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, format="JPEG", quality=85)
                head = f"--f\r\nContent-Type: image/jpeg\r\nContent-Length: {buffer.tell()}"
                line.sendall(head.encode() + b"\r\n\r\n" + buffer.getvalue() + b"\r\n")


def persistently(connect: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `connect` returns, as soon as the other side listens."""
    until = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except (av.error.ConnectionRefusedError, ConnectionRefusedError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def opened(kind: str, port: int) -> Any:
    """A stream as a live session opens it; of RTSP, this side listens."""
    if kind == "rtsp":
        options = LOW_DELAY | {"rtsp_flags": "listen", "listen_timeout": "30"}
        return av.open(f"rtsp://127.0.0.1:{port}/cam", options=options, timeout=30)
    url = f"tcp://127.0.0.1:{port}" if kind == "mpegts" else f"http://127.0.0.1:{port}/feed"
    return persistently(lambda: open_source(Source("camera", url, "arrival")))


def stream_latency(kind: str, seconds: float, size: tuple[int, int]) -> dict:
    """Seconds from a picture in another process to its decoded frame in this one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "tests.benchmarks.live_latency", "--send", kind]
    words += ["--port", str(port), "--seconds", str(seconds), "--size", *map(str, size)]
    sender = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    arrived: dict[int, int] = {}
    with opened(kind, port) as container, contextlib.suppress(av.error.FFmpegError):
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            now = time.monotonic_ns()
            _, _, number = read_frame(frame.to_ndarray(format="rgb24"))
            arrived.setdefault(number, now)
    printed, _ = sender.communicate(timeout=30)
    made = {int(number): int(ns) for number, ns in map(str.split, printed.splitlines())}
    first = round(WARM_UP_S * FPS)
    late = [
        (arrived[each] - made[each]) / 1e9 for each in made if each >= first and each in arrived
    ]
    if not late:
        raise SystemExit(f"no frame came by {kind}")
    return quantiles(late) | {"frames": len(late), "sent": len(made) - first}


def measure(p: Params, seconds: float) -> dict:
    load = os.getloadavg()[0]
    size = p.dataset.world.width, p.dataset.world.height
    with tempfile.TemporaryDirectory(prefix="avomni-") as name:
        run = played(p, Path(name), seconds + 2 * WARM_UP_S)
        record = {"cpu_share": reading(run, seconds / 4)}
        print(record, flush=True)
        record["answers"] = answering(run, seconds)
        print(record["answers"], flush=True)
    record["streams_s"] = {kind: stream_latency(kind, seconds / 2, size) for kind in KINDS}
    print(record["streams_s"], flush=True)
    return record | {
        "cameras": f"{len(cameras.grid(p.vision.cameras).cameras)} of {size[0]}×{size[1]} px at "
        f"{FPS} Hz, ticks at {p.processing.sample_hz:g} Hz, a window every {p.live.hop}",
        "machine": demo_cpu.machine(),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def report(record: dict) -> str:
    answers, share = record["answers"], record["cpu_share"]
    rows = [("", "p50", "p95")]
    for name, seconds in answers["seconds"].items():
        label = "frame to answer" if name == "total" else f"  {name}"
        rows.append((f"{label}, s", f"{seconds['p50']:.3f}", f"{seconds['p95']:.3f}"))
    for kind, found in record["streams_s"].items():
        label = f"{kind}, frame to frame, ms"
        rows.append((label, f"{1e3 * found['p50']:.1f}", f"{1e3 * found['p95']:.1f}"))
    return "\n".join(
        [
            record["cameras"],
            drive.table(rows),
            f"{answers['answers_per_s']} answers a second ({answers['cpu_s_per_answer']} CPU s "
            f"each), {answers['frames_encoded']:g} of {answers['frames_in_window']} frames encoded "
            f"for one; {answers['num_answers']} answers, {answers['num_overtaken']} windows "
            f"overtaken, {answers['num_gaps']} gaps",
            f"CPU of reading the cameras: {100 * share['read']:.1f} % of a core, with the grids of "
            f"all ticks {100 * share['read_and_grids']:.1f} %",
            f"{record['machine']}, load {record['load'][0]} to {record['load'][1]}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--params", default="params/demo.yaml", help="a run of the tiny base")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the session")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--send", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        send(options.send, options.port, options.seconds, tuple(options.size))
        return
    record = measure(Params.from_files([options.params]), options.seconds)
    if options.json:
        files.write_json(Path(options.json), record)
    print(report(record))


if __name__ == "__main__":
    main()
