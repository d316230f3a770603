"""The loop that feeds workers jobs, and what becomes of a job whose worker dies or hangs.

It is the same for every crew: pool.py has the processes of this machine, etl/engines.py a cluster.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from avomni_lib.errors import AvomniError

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")
POLL_S = 0.1
START_S = 600.0  # a worker may take so long to begin, as where libraries lie on a slow disk
DIED = "the process that read it died, and again when it was alone"


class Wait(enum.Enum):
    """The type of `WAIT`, which an iterator of jobs yields while it has none but will have."""

    WAIT = enum.auto()


WAIT: Final = Wait.WAIT


@dataclass(frozen=True)
class Died:
    """What a crew gives back for a job whose worker died.

    Attributes:
        how: Such as "killed by SIGKILL".
        began: Whether the worker had got as far as to take a job.
    """

    how: str
    began: bool = True


class Crew(Protocol[Job, Outcome]):
    """Workers, each of which does one job at a time."""

    def size(self) -> int:
        """How many there are, or can be started, now."""

    def start(self, job: Job, alone: bool) -> Any:
        """Hand out a job, `alone` to a fresh worker; returns its ticket."""

    def has_begun(self, ticket: Any) -> bool:
        """Whether the job's worker has started and is at work on it."""

    def finished(self, timeout_s: float | None) -> list[tuple[Any, Outcome | Died]]:
        """Wait until something comes back, by ticket; raises what a job raised."""

    def stop(self, ticket: Any) -> None:
        """Kill the worker of a job that is given up."""

    def close(self) -> None:
        """End all workers, also those that are at work."""


def run_on(
    crew: Crew[Job, Outcome],
    jobs: Iterable[Job | Wait],
    limit_s: Callable[[Job], float] = lambda job: math.inf,
    lost: Callable[[Job, str], Outcome] | None = None,
) -> Iterator[tuple[Job, Outcome | None]]:
    """Yield (job, its outcome) as jobs finish, in any order.

    A job whose worker dies (killed, out of memory, a crash inside a library) is tried once more,
    alone, as soon as the others at work are done. One that dies again, or that takes longer than
    its limit from when its worker has begun, is lost, and the rest go on. What a job raises is
    raised here, but for a MemoryError: that is a death too.

    Args:
        crew: Ended when this iterator is, however that comes about. (A caller that may stop early
            puts it into `contextlib.closing`.)
        jobs: Asked for the next one when a worker is free, not before. While the answer is `WAIT`
            it is asked again every tenth of a second, and when a job has finished.
        limit_s: Job -> the most seconds that it may take.
        lost: (job, reason) -> the outcome of a job that is lost; without it that is None.

    Raises:
        AvomniError: worker processes die before any has begun.
    """
    source: Iterator[Job | Wait | None] = iter(jobs)
    more, ever_began = True, False
    running: dict[Any, _Running[Job]] = {}
    suspects: deque[Job] = deque()
    done: deque[tuple[Job, Outcome | None]] = deque()

    def hand_out(job: Job, alone: bool = False) -> None:
        stop_s = time.monotonic() + START_S + limit_s(job)
        running[crew.start(job, alone)] = _Running(job, alone, stop_s)

    def lose(job: Job, reason: str) -> None:
        log.warning("given up: %s", reason)
        done.append((job, lost(job, reason) if lost else None))

    with contextlib.closing(crew):
        while True:
            waits = False
            held = suspects or any(at.alone for at in running.values())
            while more and not waits and not held and len(running) < crew.size():
                job = next(source, None)
                more, waits = job is not None, job is WAIT
                if more and not waits:
                    hand_out(job)
            if suspects and not running:
                hand_out(suspects.popleft(), alone=True)
            if done:
                # The workers are busy again before the caller takes its time over this one.
                yield done.popleft()
                continue
            if not running:
                if not more:
                    return
                time.sleep(POLL_S)
                continue
            for ticket, at in running.items():
                if not at.began and crew.has_begun(ticket):
                    at.began, at.stop_s = True, time.monotonic() + limit_s(at.job)
            left_s = min(at.stop_s for at in running.values()) - time.monotonic()
            timeout_s = min(max(left_s, 0.0), POLL_S if waits else math.inf)
            for ticket, outcome in crew.finished(None if timeout_s == math.inf else timeout_s):
                at = running.pop(ticket)
                ever_began = ever_began or not isinstance(outcome, Died) or outcome.began
                if not isinstance(outcome, Died):
                    done.append((at.job, outcome))
                elif not at.alone:
                    log.warning("a worker died (%s); its job is tried once more", outcome.how)
                    suspects.append(at.job)
                elif ever_began:
                    lose(at.job, f"{DIED} ({outcome.how})")
                else:
                    raise _cannot_start(outcome.how)
            late = [ticket for ticket, at in running.items() if at.stop_s <= time.monotonic()]
            for ticket in late:
                crew.stop(ticket)
                job = running.pop(ticket).job
                lose(job, f"it took longer than {limit_s(job):g} s and was stopped")


@dataclass
class _Running(Generic[Job]):
    """A job at work, and when it is stopped."""

    job: Job
    alone: bool
    stop_s: float
    began: bool = False


def _cannot_start(how: str) -> AvomniError:
    return AvomniError(
        f"a worker process ended before it had begun, twice ({how})",
        fix="its own words stand above; a script that starts a run needs the line "
        'if __name__ == "__main__":',
    )
