"""Cameras as PyAV opens them, each read by a thread that keeps frames decoded and converts none."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import av

from avomni_lib.errors import AvomniError, without_passwords

log = logging.getLogger(__name__)
Clock = Literal["file", "device", "arrival"]
# The least delay that FFmpeg offers.
LOW_DELAY = {"fflags": "nobuffer", "probesize": "32768", "analyzeduration": "0"}
RETRY_S = (0.5, 1.0, 2.0, 5.0)  # between tries to open a camera again
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0
# What a params file may open: files, devices and streams, not FFmpeg's other protocols (which read
# lists of files or run subprocesses).
SCHEMES = ("rtsp", "rtsps", "http", "https", "tcp", "udp", "rtp")
DEVICE = re.compile(r"/dev/video[0-9]+")


@dataclass(frozen=True)
class Source:
    """Where one camera's frames come from.

    Attributes:
        camera: Its name in the grid.
        url: A file, /dev/videoN, a stream's address, or `lavfi:` and a test source.
        clock: `file`: the file's own times, paced as if live; `device`: the stream's own times,
            from the first frame's arrival on; `arrival`: when a frame arrives.
        offset_ms: Added to each time.
    """

    camera: str
    url: str
    clock: Clock
    offset_ms: float = 0.0

    @property
    def shown(self) -> str:
        """The url without user and password."""
        return without_passwords(self.url)


Push = Callable[[str, int, Any], None]


class Begun:
    """The moment at which the files of a session begin: when the first of them is open."""

    def __init__(self) -> None:
        self._ns: int | None = None
        self._lock = threading.Lock()

    def at(self, now_ns: int) -> int:
        with self._lock:
            self._ns = now_ns if self._ns is None else self._ns
            return self._ns


class Reader(threading.Thread):
    """Reads one source until it is told to stop; a stream that breaks is opened again.

    Args:
        push: Called with (camera, capture time in ns, decoded frame).
        end: Called with the camera when no more will come.
        now_ns: The clock; ticks are of the same.
        begun: When the files of a session begin, shared by its readers.
    """

    def __init__(
        self,
        source: Source,
        push: Push,
        end: Callable[[str], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
        begun: Begun | None = None,
    ):
        super().__init__(name=f"camera {source.camera}", daemon=True)
        self.source, self._push, self._end, self._now_ns = source, push, end, now_ns
        self._begun = begun or Begun()
        self._halt = threading.Event()
        self.trouble = ""  # why it shows nothing now, in words
        self.size: tuple[int, int] | None = None

    def stop(self) -> None:
        self._halt.set()

    def run(self) -> None:
        tries = 0
        while not self._halt.is_set():
            try:
                read = self._read()
            except (av.error.FFmpegError, OSError) as error:
                read, self.trouble = 0, without_passwords(str(error))
            if self._halt.is_set() or (self.source.clock == "file" and not self.trouble):
                break
            tries = 0 if read else tries + 1
            self.trouble = self.trouble or "the stream has ended"
            log.warning("camera %s: %s; it is opened again", self.source.camera, self.trouble)
            if self.source.clock == "file":
                break
            self._halt.wait(RETRY_S[min(tries, len(RETRY_S) - 1)])
        self._end(self.source.camera)

    def _read(self) -> int:
        """Read until the end; returns how many frames came."""
        count, first = 0, None
        with open_source(self.source) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                if self._halt.is_set():
                    break
                arrived = self._now_ns()
                size = frame.width, frame.height
                if self.size not in (None, size):
                    log.warning(
                        "camera %s: now %s px", self.source.camera, "×".join(map(str, size))
                    )
                self.size, self.trouble = size, ""
                taken = arrived
                if self.source.clock != "arrival" and frame.pts is not None:
                    own = round(frame.pts * frame.time_base * 1_000_000_000)
                    if self.source.clock == "file":
                        taken = self._begun.at(arrived) + own
                        self._halt.wait(max(taken - self._now_ns(), 0) / 1e9)
                    else:
                        first = (own, arrived) if first is None else first
                        taken = first[1] + own - first[0]
                self._push(self.source.camera, taken + round(self.source.offset_ms * 1e6), frame)
                count += 1
        return count


def open_source(source: Source) -> Any:
    """A container of one video, whose address was checked (`check`).

    Raises:
        av.error.FFmpegError: nobody answers, or it is no video.
    """
    url, options, form = source.url, dict(LOW_DELAY), None
    if url.startswith("lavfi:"):
        url, form, options = url.removeprefix("lavfi:"), "lavfi", {}
    elif DEVICE.fullmatch(url):
        form = "v4l2"
    elif url.startswith(("http://", "https://")) and not url.endswith((".mp4", ".ts", ".m3u8")):
        form = "mpjpeg"
    elif url.startswith(("rtsp://", "rtsps://")):
        options["rtsp_transport"] = "tcp"
    elif "://" not in url:
        options = {}
    return av.open(url, format=form, options=options, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))


def check(source: Source) -> None:
    """Refuse an address that would make FFmpeg do something else than read a camera.

    Raises:
        AvomniError: its scheme is not of `SCHEMES`.
    """
    scheme, colon, _ = source.url.partition(":")
    if source.url.startswith("lavfi:") or not colon or "/" in scheme:
        return
    if scheme not in SCHEMES or not source.url.startswith(f"{scheme}://"):
        raise AvomniError(
            f"a source is opened from a file, /dev/videoN, lavfi: or {', '.join(SCHEMES)}, not "
            f"{scheme}:",
            where=f"live.sources.{source.camera}",
            fix="name one of these",
        )
