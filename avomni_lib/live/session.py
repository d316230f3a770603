"""A live session: cameras, ticks, windows and answers, and their record.

`live.jsonl` has one line per event: `start`, `tick` (its time, and the age of each camera's frame),
`answer` (with the time of each part), `failed` (a window whose answer failed, and why) and `end`.
`grids.npy` beside it holds the grids of all ticks that are not gaps, in order, so that a session
can be replayed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import tiling
from avomni_lib.live.sources import Begun, Reader, Source, check
from avomni_lib.live.ticks import Mailbox, Ready, Sliding, Tick, Ticks
from avomni_lib.params import Params

log = logging.getLogger(__name__)
RECORD_FILE, GRIDS_FILE = "live.jsonl", "grids.npy"
POLL_S = 0.01
PARTS = ("camera", "grid", "wait", "model")
OPENED_ONCE = ("/dev/", "udp://", "rtp://")
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class TimedAnswer:
    """One answer and the times of its parts, ns on the session's clock.

    Attributes:
        num_encoded: Number of frames that the vision tower encoded for it; None if unknown.
    """

    tick: int
    text: str
    captured_ns: int
    closed_ns: int
    made_ns: int
    asked_ns: int
    answered_ns: int
    num_encoded: int | None = None

    @property
    def latency_s(self) -> dict[str, float]:
        """Seconds of each part, and `total` from capture to answer.

        camera: until every camera had delivered the tick's frame; grid: until the window was
        composed; wait: until the model was free; model: until it had answered.
        """
        times = self.captured_ns, self.closed_ns, self.made_ns, self.asked_ns, self.answered_ns
        parts = dict(zip(PARTS, np.diff(times) / 1e9, strict=True))
        return parts | {"total": (self.answered_ns - self.captured_ns) / 1e9}


@dataclass
class LiveState:
    """State of a running session, for display.

    Attributes:
        failure: Reason of the last failure; None after the next answer.
    """

    grid: np.ndarray | None = None
    tick: int = -1
    answer: TimedAnswer | None = None
    num_answers: int = 0
    num_gaps: int = 0
    num_overtaken: int = 0
    num_failed: int = 0
    failure: str | None = None


class Record:
    """Writes the events of a session as they happen; a no-op without a folder."""

    def __init__(self, folder: Path | None, grid_shape: tuple[int, ...]):
        self.folder, self._shape = folder, grid_shape
        self._lines: IO[str] | None = None
        self._grids: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._num_grids = 0

    def __enter__(self) -> Record:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / RECORD_FILE).exists():
                raise AvomniError(
                    "a session is recorded here already",
                    where=str(self.folder),
                    fix="name another folder as live.record, or remove this one",
                )
            self._lines = open(self.folder / RECORD_FILE, "w", buffering=1)
            self._grids = open(self.folder / f".{GRIDS_FILE}.raw", "wb")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.folder is None or self._lines is None or self._grids is None:
            return
        self._lines.close()
        self._grids.close()
        raw = self.folder / f".{GRIDS_FILE}.raw"
        shape = (self._num_grids, *self._shape)
        if self._num_grids:
            grids = np.memmap(raw, np.uint8, "r", shape=shape)
            np.save(self.folder / GRIDS_FILE, grids)
        raw.unlink()

    def write(self, kind: str, **values: Any) -> None:
        if self._lines is not None:
            with self._lock:
                self._lines.write(json.dumps({"kind": kind, **values}) + "\n")

    def keep(self, grid: np.ndarray) -> None:
        if self._grids is not None:
            self._grids.write(np.ascontiguousarray(grid).data)
            self._num_grids += 1


class LiveSession:
    """Answers windows of live cameras.

    Args:
        ask: Maps the frames (T, H, W, 3) uint8 of a window to the answer's text. If it has an
            attribute `num_encoded`, that is the number of frames encoded for the last answer.
        record: Folder of the record; None writes no record.
        watch: Called with the state after each tick and each answer.
        history: Maps the end of a window, in seconds since the session began, to the text of the
            car's past motion, which `ask` then takes as its second argument.
    """

    def __init__(
        self,
        p: Params,
        ask: Callable[..., str],
        record: Path | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        watch: Callable[[LiveState], None] | None = None,
        history: Callable[[float], str] | None = None,
    ):
        self.p, self._ask, self._now_ns, self._watch = p, ask, now_ns, watch
        self._history = history
        self.sliding = Sliding(p, p.live.hop, now_ns)
        self.sources = sources_of(p)
        names = [source.camera for source in self.sources]
        live = p.live
        self.begun = Begun(len(self.sources))
        self.ticks = Ticks(names, p.processing.sample_hz, live.deadline_ms / 1e3, live.max_age_s)
        self.mailbox, self.state = Mailbox(), LiveState()
        self._lock = threading.Lock()
        width, height = tiling.grid_size(self.sliding.grid, self.sliding.tile)
        self.record = Record(record, (height, width, 3))
        self.answers: list[TimedAnswer] = []
        self._failure: BaseException | None = None
        self._unanswered: AvomniError | None = None

    # Called by threads and tests.

    def push(self, camera: str, time_ns: int, frame: Any) -> None:
        """Add a frame of a camera."""
        with self._lock:
            self.ticks.push(camera, time_ns, frame)

    def end(self, camera: str) -> None:
        """Mark a camera as ended."""
        with self._lock:
            self.ticks.end(camera)

    def advance(self) -> list[Ready]:
        """Settle the ticks that are due; returns the windows that they complete."""
        with self._lock:
            settled = list(self.ticks.closed(self._now_ns()))
        made = []
        for tick in settled:
            ready = self.sliding.add(tick)
            self._report(tick)
            if ready is not None:
                self.mailbox.put(ready)
                made.append(ready)
        return made

    def answer(self, ready: Ready) -> TimedAnswer:
        """Answer a window."""
        asked_ns = self._now_ns()
        past_motion = (
            () if self._history is None else (self._history(self._time_s(ready.captured_ns)),)
        )
        text = self._ask(ready.frames, *past_motion)
        made = TimedAnswer(
            ready.tick,
            text,
            ready.captured_ns,
            ready.closed_ns,
            ready.made_ns,
            asked_ns,
            self._now_ns(),
            getattr(self._ask, "num_encoded", None),
        )
        self.answers.append(made)
        self.state.answer, self.state.num_answers = made, len(self.answers)
        self.state.failure = None
        self.state.num_overtaken = self.mailbox.num_overtaken
        latency = {name: round(value, 4) for name, value in made.latency_s.items()}
        self.record.write(
            "answer", tick=made.tick, text=text, latency_s=latency, num_encoded=made.num_encoded
        )
        if self._watch:
            self._watch(self.state)
        return made

    def attempt(self, ready: Ready) -> TimedAnswer | None:
        """`answer`; an error is logged and recorded, and the session continues."""
        try:
            return self.answer(ready)
        except AvomniError as error:
            if self.state.failure != error.what:
                log.warning("no answer to the window of tick %d: %s", ready.tick, error)
            self.state.failure, self._unanswered = error.what, error
        self.state.num_failed += 1
        self.record.write("failed", tick=ready.tick, reason=self.state.failure)
        if self._watch:
            self._watch(self.state)
        return None

    def _report(self, tick: Tick) -> None:
        self.state.tick, self.state.num_gaps = tick.number, self.sliding.num_gaps
        ages = {
            name: round((tick.time_ns - taken) / 1e6, 1) for name, (taken, _) in tick.frames.items()
        }
        if not tick.missing:
            self.state.grid = self.sliding.newest
            self.record.keep(self.sliding.newest)
        self.record.write(
            "tick",
            number=tick.number,
            time_s=round(self._time_s(tick.time_ns), 4),
            age_ms=ages,
            missing=list(tick.missing),
            waited_ms=round((tick.closed_ns - tick.time_ns) / 1e6, 1),
        )
        if self._watch:
            self._watch(self.state)

    def _time_s(self, time_ns: int) -> float:
        """Seconds since the recordings began; without recordings, since the first tick."""
        return (time_ns - self.begun.or_at(time_ns)) / 1e9

    # The whole session, in real time.

    def run(self, seconds: float | None = None, stop: threading.Event | None = None) -> None:
        """Read the cameras and answer until `seconds` have passed, all have ended or `stop` is set.

        Raises:
            AvomniError: no window was answered; the error is that of the last one.
        """
        stop = stop or threading.Event()
        readers = [
            Reader(source, self.push, self.end, self._now_ns, self.begun) for source in self.sources
        ]
        worker = threading.Thread(target=self._answer_all, name="answers", daemon=True)
        with self.record, _running(readers, worker, self.mailbox):
            addresses = {source.camera: source.shown for source in self.sources}
            self.record.write("start", sources=addresses)
            until = None if seconds is None else time.monotonic() + seconds
            while not stop.is_set() and (until is None or time.monotonic() < until):
                self.advance()
                if all(feed.has_ended for feed in self.ticks.feeds.values()):
                    self.advance()
                    break
                time.sleep(POLL_S)
            self.mailbox.close()
            worker.join()
            self.record.write("end", **self.counts())
        if self._failure is not None:
            raise self._failure
        if self._unanswered is not None and not self.answers:
            raise self._unanswered

    def _answer_all(self) -> None:
        try:
            while (ready := self.mailbox.take()) is not None:
                self.attempt(ready)
        except BaseException as error:  # raised again by `run`
            self._failure = error

    def counts(self) -> dict[str, Any]:
        """Counts of ticks, gaps, answers and frames."""
        feeds = self.ticks.feeds
        return {
            "num_ticks": self.state.tick + 1,
            "num_gaps": self.sliding.num_gaps,
            "num_answers": len(self.answers),
            "num_overtaken": self.mailbox.num_overtaken,
            "num_failed": self.state.num_failed,
            "num_frames": {name: feed.num_frames for name, feed in feeds.items()},
            "num_late": {name: feed.num_late for name, feed in feeds.items()},
        }


def sources_of(p: Params) -> list[Source]:
    """The sources of the grid's cameras, in its order.

    Raises:
        AvomniError: a camera has no address, its scheme is not supported, or two cameras have the
            address of one device or port.
    """
    live, urls = p.live, p.live.sources or {}
    names = [camera.name for camera in cameras.grid(p.vision.cameras).cameras]
    if missing := [name for name in names if name not in urls]:
        raise AvomniError(
            f"no source of {', '.join(missing)}",
            where="live.sources",
            fix="name an address for each camera of vision.cameras",
        )
    opened: dict[str, str] = {}
    for name in names:
        if urls[name] in opened and urls[name].startswith(OPENED_ONCE):
            raise AvomniError(
                f"{opened[urls[name]]} and {name} are both at {urls[name]}, which can be opened "
                "once",
                where="live.sources",
                fix="give each camera an address of its own",
            )
        opened[urls[name]] = name
    sources = [
        Source(name, urls[name], live.clock, live.offset_ms.get(name, 0.0)) for name in names
    ]
    for source in sources:
        check(source)
    return sources


def latency(seconds: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of the latency in seconds: one row per part, one column per quantile.

    Args:
        seconds: One row per answer, with columns `PARTS` and `total`.
    """
    table = seconds[[*PARTS, "total"]].quantile(list(QUANTILES)).T
    return table.set_axis([f"p{q * 100:g}" for q in QUANTILES], axis=1)


@contextlib.contextmanager
def _running(readers: list[Reader], worker: threading.Thread, mailbox: Mailbox) -> Iterator[None]:
    for thread in (*readers, worker):
        thread.start()
    try:
        yield
    finally:
        mailbox.close()
        for reader in readers:
            reader.stop()
        for reader in readers:
            reader.join(timeout=10)
