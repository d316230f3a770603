"""Live cameras opened with PyAV, each read by its own thread; frames are decoded, not converted."""

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
# FFmpeg's options for the lowest latency.
LOW_DELAY = {"fflags": "nobuffer", "probesize": "32768", "analyzeduration": "0"}
RETRY_S = (0.5, 1.0, 2.0, 5.0)  # pauses between attempts to open a camera again
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0
LASTING_S = 10.0  # warnings and retries reset after a connection has lasted this long
TOGETHER_S = 2.0  # time for which a recording waits for the others before it starts
LONGEST_PAUSE_S = 60.0  # a longer pause between frames of a recording means damaged timestamps
DRIFT = 1e-3  # largest rate at which a camera clock that is slower than ours is followed
# Schemes that a params file may open: FFmpeg's other protocols read lists of files or run
# subprocesses.
SCHEMES = ("rtsp", "rtsps", "http", "https", "tcp", "udp", "rtp")
DEVICE = re.compile(r"/dev/video[0-9]+")


@dataclass(frozen=True)
class Source:
    """The source of one camera's frames.

    Attributes:
        camera: Name in the grid.
        url: A file, /dev/videoN, a stream's address, `rosbag:` and a topic, or `lavfi:` and a test
            source.
        clock: Source of the capture times. `file`: the file's timestamps, played in real time;
            `device`: the stream's timestamps, mapped by `DeviceClock`; `arrival`: when a frame
            arrives. Files, bags and test sources are always paced by their timestamps, streams
            never.
        offset_ms: Added to each capture time.
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
        """Whether it is a recording: paced by its timestamps, with an end."""
        scheme, slashes, _ = self.url.partition("://")
        if self.is_bag or not slashes or self.url.startswith("lavfi:"):
            return not DEVICE.fullmatch(self.url)
        return self.clock == "file" and scheme in ("http", "https") and is_file(self.url)

    @property
    def shown(self) -> str:
        """The url without user and password."""
        return without_passwords(self.url)


def is_file(url: str) -> bool:
    """Whether an HTTP address is a video file; otherwise it is MJPEG."""
    return urlsplit(url).path.endswith((".mp4", ".ts", ".m3u8"))


Push = Callable[[str, int, Any], None]


class Begun:
    """Common start of a session's recordings: once each of them has a frame.

    Args:
        number: Number of recordings to wait for, for at most `TOGETHER_S`.
    """

    def __init__(self, number: int = 1):
        self._number = number
        self._ns: int | None = None
        self._firsts: list[int] = []
        self._changed = threading.Condition()

    def at(self, now_ns: Callable[[], int], first_ns: int) -> tuple[int, int]:
        """Wait for the other recordings.

        Returns:
            (start of the session's recordings, earliest of their first timestamps), ns.
        """
        with self._changed:
            self._firsts.append(first_ns)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._ns is not None or len(self._firsts) >= self._number, TOGETHER_S
            )
            return self._begin(now_ns()), min(self._firsts)

    def or_at(self, time_ns: int) -> int:
        """Start of the recordings; sets it to `time_ns` if none has begun."""
        with self._changed:
            return self._begin(time_ns)

    def _begin(self, now_ns: int) -> int:
        self._ns = now_ns if self._ns is None else self._ns
        return self._ns


class DeviceClock:
    """Maps a stream's timestamps to the session's clock.

    A frame cannot arrive before it was taken, so the frame with the smallest delay gives the offset
    between the clocks; frames that a server buffered or the network delayed do not change it. A
    clock that is slower than ours is followed by `DRIFT`; after a jump of the timestamps the offset
    is taken from the frame's arrival. The results never decrease.
    """

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None  # timestamp and arrival of the last frame, ns
        self._offset_ns = 0

    def taken(self, stamp_ns: int, arrived_ns: int) -> tuple[int, bool]:
        """(capture time of a frame in ns, whether its timestamp is before the last one's)."""
        offset_ns, last = arrived_ns - stamp_ns, self._last
        has_jumped = last is not None and stamp_ns < last[0]
        if last is not None and not has_jumped:
            offset_ns = min(offset_ns, self._offset_ns + round((arrived_ns - last[1]) * DRIFT))
        self._last, self._offset_ns = (stamp_ns, arrived_ns), offset_ns
        return stamp_ns + offset_ns, has_jumped


class Reader(threading.Thread):
    """Reads one source until it is stopped; a stream that breaks is opened again.

    Each problem is logged once, until the camera has delivered frames for `LASTING_S`.

    Args:
        push: Called with (camera, capture time in ns, decoded frame).
        end: Called with the camera when no more frames will come.
        now_ns: The clock, the same as that of the ticks.
        begun: Common start of the session's recordings, shared by its readers.
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
        self.trouble = ""  # why it delivers nothing now
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
            except Exception as error:  # a fault of one camera does not stop the others
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
            AvomniError: as `frames_of`; a recording pauses for too long.
        """
        source, clock = self.source, DeviceClock()
        offset_ns = round(source.offset_ms * 1e6)
        begun, last = (0, 0), None
        for stamp, frame in frames_of(source, self._warn):
            if self._halt.is_set():
                break
            taken = self._now_ns()
            self._check_frame(frame)
            if source.is_recorded:
                if self._num_read == 0:
                    # A file starts at timestamp 0, even if its first frame is later; an excerpt of
                    # a bag or a broadcast starts with its first frame.
                    is_excerpt = source.is_bag or abs(stamp) > LONGEST_PAUSE_S * 1e9
                    begun = self._begun.at(self._now_ns, stamp if is_excerpt else 0)
                if last is not None and stamp < last:
                    self._warn("its times jump back; such frames are not shown")
                    continue
                last, taken = stamp, begun[0] + stamp - begun[1] + offset_ns
                self._wait_until(taken)
                if source.clock == "arrival":
                    taken = self._now_ns()
            else:
                if source.clock == "device" and stamp is not None:
                    taken, has_jumped = clock.taken(stamp, taken)
                    if has_jumped:
                        self._warn("its times jump back; they are counted anew")
                taken += offset_ns
            self._push(source.camera, taken, frame)
            self._num_read += 1

    def _check_frame(self, frame: Any) -> None:
        """Warn if the frames' size has changed or the camera has recovered."""
        size = frame.width, frame.height
        if self.size is not None and size != self.size:
            (width, height), (old_width, old_height) = size, self.size
            self._warn(
                f"its frames are {width}×{height} px now, {old_width}×{old_height} px before; they "
                "fill the same tile"
            )
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
    """(timestamp in ns, decoded frame) of each frame of a source whose address was checked.

    Damaged frames are skipped, and so are frames of a recording without a timestamp.

    Args:
        warn: Called with problems that do not end the stream.

    Raises:
        av.error.FFmpegError: it is not a video, or the server refuses.
        AvomniError: nothing comes, there is no video stream, no frame can be decoded, or the bag
            has no such topic.
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
        decoded_s = time.monotonic()
        for packet in _packets(container, stream):
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                if not source.is_recorded and time.monotonic() - decoded_s > OPEN_TIMEOUT_S:
                    raise AvomniError(
                        f"nothing that came for {OPEN_TIMEOUT_S:g} s could be decoded"
                    ) from None
                warn("a damaged frame is left out")
                continue
            for frame in decoded:
                decoded_s = time.monotonic()
                stamp = frame.pts
                if stamp is not None:
                    stamp = round(stamp * frame.time_base * 1_000_000_000)
                elif source.is_recorded:
                    fault = "none of its frames has a timestamp"
                    continue
                num_shown += 1
                yield stamp, frame
        if source.is_recorded and not num_shown:
            raise AvomniError(fault)


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    try:
        yield from container.demux(stream)
    except av.error.ExitError:
        raise AvomniError(f"nothing came for {READ_TIMEOUT_S:g} s") from None


def open_source(source: Source) -> Any:
    """Open the container of a source whose address was checked (`check`).

    Raises:
        av.error.FFmpegError: it is not a video, or the server refuses.
        AvomniError: the server does not answer in time.
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
    """Refuse addresses that would make FFmpeg do anything but read a camera.

    Raises:
        AvomniError: the scheme is not in `SCHEMES`, or a bag is named without a topic.
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
            f"{', '.join(SCHEMES)}, not {scheme}:",
            where=f"live.sources.{source.camera}",
            fix="name one of these",
        )
