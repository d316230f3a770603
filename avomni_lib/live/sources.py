"""Cameras as PyAV opens them, each read by a thread that keeps frames decoded and converts none."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import av

from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.live import rosbag

log = logging.getLogger(__name__)
Clock = Literal["file", "device", "arrival"]
# The least delay that FFmpeg offers.
LOW_DELAY = {"fflags": "nobuffer", "probesize": "32768", "analyzeduration": "0"}
RETRY_S = (0.5, 1.0, 2.0, 5.0)  # between tries to open a camera again
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0
TOGETHER_S = 2.0  # for which a recording waits until the others can begin
# What a params file may open: files, devices and streams, not FFmpeg's other protocols (which read
# lists of files or run subprocesses).
SCHEMES = ("rtsp", "rtsps", "http", "https", "tcp", "udp", "rtp")
DEVICE = re.compile(r"/dev/video[0-9]+")


@dataclass(frozen=True)
class Source:
    """Where one camera's frames come from.

    Attributes:
        camera: Its name in the grid.
        url: A file, /dev/videoN, a stream's address, `rosbag:` and a topic, or `lavfi:` and a test
            source.
        clock: `file`: the file's own times, paced as if live; `device`: the stream's own times,
            from the first frame's arrival on; `arrival`: when a frame arrives. A bag is always
            paced by the times of its messages.
        offset_ms: Added to each time.
    """

    camera: str
    url: str
    clock: Clock
    offset_ms: float = 0.0

    @property
    def is_bag(self) -> bool:
        return self.url.startswith(rosbag.SCHEME)

    @property
    def is_recorded(self) -> bool:
        """Whether it is played at the pace of its own times, and ends."""
        return self.is_bag or self.clock == "file"

    @property
    def shown(self) -> str:
        """The url without user and password."""
        return without_passwords(self.url)


Push = Callable[[str, int, Any], None]


class Begun:
    """The moment at which the recordings of a session begin: when each of them has a frame to show.

    Args:
        number: How many are waited for, `TOGETHER_S` at most: one that is missing holds up nobody.
    """

    def __init__(self, number: int = 1):
        self._number = number
        self._ns: int | None = None
        self._firsts: list[int] = []
        self._changed = threading.Condition()

    def at(self, now_ns: Callable[[], int], first_ns: int) -> tuple[int, int]:
        """Wait for the others.

        Args:
            first_ns: The recording's time at which it begins, on the clock of its own.

        Returns:
            (when the session's recordings begin, the earliest of their own times), ns.
        """
        with self._changed:
            self._firsts.append(first_ns)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._ns is not None or len(self._firsts) >= self._number, TOGETHER_S
            )
            return self._begin(now_ns()), min(self._firsts)

    def or_at(self, time_ns: int) -> int:
        """When they began; `time_ns` where nothing had begun yet."""
        with self._changed:
            return self._begin(time_ns)

    def _begin(self, now_ns: int) -> int:
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
            except (av.error.FFmpegError, AvomniError, OSError) as error:
                read, self.trouble = 0, without_passwords(" ".join(str(error).split()))
            if self._halt.is_set() or (self.source.is_recorded and not self.trouble):
                break
            tries = 0 if read else tries + 1
            self.trouble = self.trouble or "the stream has ended"
            then = "it shows no more" if self.source.is_recorded else "it is opened again"
            log.warning("camera %s: %s; %s", self.source.camera, self.trouble, then)
            if self.source.is_recorded:
                break
            self._halt.wait(RETRY_S[min(tries, len(RETRY_S) - 1)])
        self._end(self.source.camera)

    def _read(self) -> int:
        """Read until the end; returns how many frames came."""
        count, first, clock = 0, None, self.source.clock
        begun = (0, 0)
        for own, frame in frames_of(self.source):
            if self._halt.is_set():
                break
            arrived = self._now_ns()
            size = frame.width, frame.height
            if self.size not in (None, size):
                log.warning("camera %s: now %s px", self.source.camera, "×".join(map(str, size)))
            self.size, self.trouble = size, ""
            taken = arrived
            if self.source.is_recorded:
                if count == 0:
                    # A file begins at its own 0, even where its first frame comes later.
                    begun = self._begun.at(self._now_ns, own if self.source.is_bag else 0)
                taken = begun[0] + own - begun[1]
                self._halt.wait(max(taken - self._now_ns(), 0) / 1e9)
                if clock == "arrival":
                    taken = self._now_ns()
            elif clock == "device" and own is not None:
                first = (own, arrived) if first is None else first
                taken = first[1] + own - first[0]
            self._push(self.source.camera, taken + round(self.source.offset_ms * 1e6), frame)
            count += 1
        return count


def frames_of(source: Source) -> Iterator[tuple[int | None, Any]]:
    """(its own time in ns, decoded frame) of each frame of a source whose address was checked.

    Raises:
        av.error.FFmpegError: nobody answers, or it is no video.
        AvomniError: there is no video in it, or no such topic in a bag.
    """
    if source.is_bag:
        yield from rosbag.frames(source.url)
        return
    with open_source(source) as container:
        if not container.streams.video:
            raise AvomniError("there is no video in it")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            own = frame.pts
            if own is not None:
                own = round(own * frame.time_base * 1_000_000_000)
            elif source.is_recorded:
                continue  # nothing tells when it is to be shown
            yield own, frame


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
        AvomniError: its scheme is not of `SCHEMES`, or it names a bag without a topic.
    """
    scheme, colon, _ = source.url.partition(":")
    if source.is_bag:
        rosbag.parts(source.url)
        return
    if source.url.startswith("lavfi:") or not colon or "/" in scheme:
        return
    if scheme not in SCHEMES or not source.url.startswith(f"{scheme}://"):
        raise AvomniError(
            f"a source is opened from a file, /dev/videoN, rosbag:, lavfi: or "
            f"{', '.join(SCHEMES)}, not "
            f"{scheme}:",
            where=f"live.sources.{source.camera}",
            fix="name one of these",
        )
