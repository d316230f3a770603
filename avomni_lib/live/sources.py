"""Cameras as PyAV opens them, each read by a thread that keeps frames decoded and converts none."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import av

from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.live import rosbag

log = logging.getLogger(__name__)
Clock = Literal["file", "device", "arrival"]
# The least delay that FFmpeg offers.
LOW_DELAY = {"fflags": "nobuffer", "probesize": "32768", "analyzeduration": "0"}
RETRY_S = (0.5, 1.0, 2.0, 5.0)  # between tries to open a camera again
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0
LASTING_S = 10.0  # a connection that held for so long is news when it breaks
TOGETHER_S = 2.0  # for which a recording waits until the others can begin
LONGEST_PAUSE_S = 60.0  # between two frames of a recording; beyond it its times are damaged
DRIFT = 1e-3  # the most by which a camera's clock is followed when it runs slower than ours
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
        clock: `file`: the file's own times, paced as if live; `device`: the stream's own times, as
            `DeviceClock` reads them; `arrival`: when a frame arrives. Files, bags and test sources
            are always paced by their own times, and streams never.
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
        scheme, slashes, _ = self.url.partition("://")
        if self.is_bag or not slashes or self.url.startswith("lavfi:"):
            return not DEVICE.fullmatch(self.url)
        return self.clock == "file" and scheme in ("http", "https") and is_file(self.url)

    @property
    def shown(self) -> str:
        """The url without user and password."""
        return without_passwords(self.url)


def is_file(url: str) -> bool:
    """Whether what comes over HTTP is a video's file; else it is MJPEG."""
    return urlsplit(url).path.endswith((".mp4", ".ts", ".m3u8"))


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


class DeviceClock:
    """A stream's own times on the session's clock.

    No frame arrives before it was taken, so the one that arrived soonest after its own time says
    how the two clocks are related: frames that a server kept for its readers, or that were held up
    on their way, move nothing. A clock that is slower than ours is followed by `DRIFT`; times that
    jump back or ahead count anew from the frame's arrival. The results never decrease.
    """

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None  # the last frame's own time and arrival, ns
        self._apart_ns = 0

    def taken(self, own_ns: int, arrived_ns: int) -> tuple[int, bool]:
        """(when a frame was taken, ns; whether its own time is before that of the last one)."""
        apart_ns, last = arrived_ns - own_ns, self._last
        has_jumped = last is not None and own_ns < last[0]
        if last is not None and not has_jumped:
            apart_ns = min(apart_ns, self._apart_ns + round((arrived_ns - last[1]) * DRIFT))
        self._last, self._apart_ns = (own_ns, arrived_ns), apart_ns
        return own_ns + apart_ns, has_jumped


class Reader(threading.Thread):
    """Reads one source until it is told to stop; a stream that breaks is opened again.

    What goes wrong is logged once, until the camera has shown frames for `LASTING_S`.

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
        self._warned: set[str] = set()
        self._num_read = 0  # frames since the source was opened
        self.trouble = ""  # why it shows nothing now, in words
        self.size: tuple[int, int] | None = None

    def stop(self) -> None:
        self._halt.set()

    def run(self) -> None:
        tries, recorded = 0, self.source.is_recorded
        if self.source.clock == "file" and not recorded:
            self._warn("live.clock is `file`, and it is a stream: its frames count as they arrive")
        while not self._halt.is_set():
            opened_ns, self._num_read = self._now_ns(), 0
            try:
                self._read()
                trouble = "" if recorded else "the stream has ended"
            except Exception as error:  # whatever a camera does, the others go on
                is_foreseen = isinstance(error, av.error.FFmpegError | AvomniError | OSError)
                kind = "" if is_foreseen else f"{type(error).__name__}: "
                trouble = kind + " ".join(str(error).split())
            if self._halt.is_set() or not trouble:
                break
            if self._num_read and self._now_ns() - opened_ns > LASTING_S * 1e9:
                tries = 0
                self._warned.clear()
            self.trouble = trouble
            self._warn(f"{trouble}; {'it shows no more' if recorded else 'it is opened again'}")
            if recorded:
                break
            self._halt.wait(RETRY_S[min(tries, len(RETRY_S) - 1)])
            tries += 1
        self._end(self.source.camera)

    def _read(self) -> None:
        """Read until the end.

        Raises:
            av.error.FFmpegError: as `frames_of`.
            AvomniError: as `frames_of`; or a recording pauses for too long.
        """
        source, clock = self.source, DeviceClock()
        offset_ns = round(source.offset_ms * 1e6)
        begun, last = (0, 0), None
        for own, frame in frames_of(source, self._warn):
            if self._halt.is_set():
                break
            taken = self._now_ns()
            self._has_come(frame)
            if source.is_recorded:
                if self._num_read == 0:
                    # A file begins at its own 0, even where its first frame comes later; what is
                    # cut out of a bag or a broadcast begins with its first frame.
                    is_cut = source.is_bag or abs(own) > LONGEST_PAUSE_S * 1e9
                    begun = self._begun.at(self._now_ns, own if is_cut else 0)
                if last is not None and own < last:
                    self._warn("its times jump back; such frames are not shown")
                    continue
                last, taken = own, begun[0] + own - begun[1] + offset_ns
                self._wait_until(taken)
                if source.clock == "arrival":
                    taken = self._now_ns()
            else:
                if source.clock == "device" and own is not None:
                    taken, has_jumped = clock.taken(own, taken)
                    if has_jumped:
                        self._warn("its times jump back; they are counted anew")
                taken += offset_ns
            self._push(source.camera, taken, frame)
            self._num_read += 1

    def _has_come(self, frame: Any) -> None:
        """Note a frame's size, and that the camera is well."""
        size = frame.width, frame.height
        if self.size not in (None, size):
            now, before = ("×".join(map(str, each)) for each in (size, self.size or size))
            self._warn(f"its frames are {now} px now, {before} px before; they fill the same tile")
        if self.trouble:
            self._warn("it shows frames again")
        self.size, self.trouble = size, ""

    def _wait_until(self, time_ns: int) -> None:
        wait_s = (time_ns - self._now_ns()) / 1e9
        if wait_s > LONGEST_PAUSE_S:
            raise AvomniError(f"its next frame is to be shown {wait_s:,.0f} s from now")
        self._halt.wait(max(wait_s, 0))

    def _warn(self, text: str) -> None:
        text = without_passwords(text)
        if text not in self._warned:
            self._warned.add(text)
            log.warning("camera %s: %s", self.source.camera, text)


def frames_of(
    source: Source, warn: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[int | None, Any]]:
    """(its own time in ns, decoded frame) of each frame of a source whose address was checked.

    Damaged frames are left out, and so are frames of a recording that have no time.

    Args:
        warn: Called with what is wrong and does not end it.

    Raises:
        av.error.FFmpegError: it is no video, or the server refuses.
        AvomniError: nothing comes, there is no video in it, none that can be shown, or no such
            topic in a bag.
    """
    if source.is_bag:
        yield from rosbag.frames(source.url, warn)
        return
    with open_source(source) as container:
        if not container.streams.video:
            raise AvomniError("there is no video in it")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        num_shown, fault = 0, "no frame in it can be decoded"
        well_s = time.monotonic()
        for packet in _packets(container, stream):
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                if not source.is_recorded and time.monotonic() - well_s > OPEN_TIMEOUT_S:
                    raise AvomniError(
                        f"nothing that came for {OPEN_TIMEOUT_S:g} s could be decoded"
                    ) from None
                warn("a damaged frame is left out")
                continue
            for frame in decoded:
                well_s = time.monotonic()
                own = frame.pts
                if own is not None:
                    own = round(own * frame.time_base * 1_000_000_000)
                elif source.is_recorded:
                    fault = "none of its frames says when it is to be shown"
                    continue
                num_shown += 1
                yield own, frame
        if source.is_recorded and not num_shown:
            raise AvomniError(fault)


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    try:
        yield from container.demux(stream)
    except av.error.ExitError:
        raise AvomniError(f"nothing came for {READ_TIMEOUT_S:g} s") from None


def open_source(source: Source) -> Any:
    """A container of one video, whose address was checked (`check`).

    Raises:
        av.error.FFmpegError: it is no video, or the server refuses.
        AvomniError: nobody answers.
    """
    url, options, form = source.url, dict(LOW_DELAY), None
    if url.startswith("lavfi:"):
        url, form, options = url.removeprefix("lavfi:"), "lavfi", {}
    elif DEVICE.fullmatch(url):
        form = "v4l2"
    elif url.startswith(("http://", "https://")):
        form = None if is_file(url) else "mpjpeg"
    elif url.startswith(("rtsp://", "rtsps://")):
        options["rtsp_transport"] = "tcp"
    elif "://" not in url:
        options = {}
    try:
        return av.open(url, format=form, options=options, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))
    except av.error.ExitError:
        raise AvomniError(f"nothing came for {OPEN_TIMEOUT_S:g} s") from None


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
