"""Jobs over worker processes, of which any may die or hang without ending the run.

`run_jobs` is for processes of this machine. `run_on` is the loop that feeds any executor and says
what becomes of a job whose worker dies or hangs; etl/run/engines.py has the executor of a cluster.

multiprocessing and concurrent.futures lose all jobs when one worker dies. pebble does not, but
starts every worker at once, spills tracebacks when it is stopped while they start, and cannot give
a job a fresh worker; so the processes here are started by hand.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from avomni_lib.errors import AvomniError

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")
CGROUP = Path("/sys/fs/cgroup")
POLL_S = 0.1
START_S = 600.0  # a worker may take so long to begin, as where libraries lie on a slow disk
LEAVE_S = 5.0
OOM_SCORE = 500
OUT_OF_MEMORY = "out of memory"
DIED = "the process that read it died, and again when it was alone"


def num_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: those it is bound to, or a container's share of their time.

    The share is that of cgroup v2 (`cpu.max`: "quota period" or "max period") or v1 (-1 is none).
    """
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            int((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        cores = min(cores, math.ceil(quota / period)) if quota > 0 else cores
    return max(cores, 1)


class Wait(enum.Enum):
    """The type of `WAIT`, which an iterator of jobs yields while it has none but will have."""

    WAIT = enum.auto()


WAIT: Final = Wait.WAIT


@dataclass(frozen=True)
class Died:
    """What an executor gives back for a job whose worker died."""

    how: str  # such as "killed by SIGKILL"
    began: bool = True  # whether the worker had got as far as to take a job


class Executor(Protocol[Job, Outcome]):
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
    executor: Executor[Job, Outcome],
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
        executor: Ended when this iterator is, however that comes about. (A caller that may stop
            early puts it into `contextlib.closing`.)
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
        running[executor.start(job, alone)] = _Running(job, alone, stop_s)

    def lose(job: Job, reason: str) -> None:
        log.warning("given up: %s", reason)
        done.append((job, lost(job, reason) if lost else None))

    with contextlib.closing(executor):
        while True:
            waits = False
            held = suspects or any(at.alone for at in running.values())
            while more and not waits and not held and len(running) < executor.size():
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
                if not at.began and executor.has_begun(ticket):
                    at.began, at.stop_s = True, time.monotonic() + limit_s(at.job)
            left_s = min(at.stop_s for at in running.values()) - time.monotonic()
            timeout_s = min(max(left_s, 0.0), POLL_S if waits else math.inf)
            for ticket, outcome in executor.finished(None if timeout_s == math.inf else timeout_s):
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
                    raise AvomniError(
                        f"a worker process ended before it had begun, twice ({outcome.how})",
                        fix="its own words stand above; a script that starts a run needs the line "
                        'if __name__ == "__main__":',
                    )
            late = [ticket for ticket, at in running.items() if at.stop_s <= time.monotonic()]
            for ticket in late:
                executor.stop(ticket)
                job = running.pop(ticket).job
                lose(job, f"it took longer than {limit_s(job):g} s and was stopped")


@dataclass
class _Running(Generic[Job]):
    """A job at work, and when it is stopped."""

    job: Job
    alone: bool
    stop_s: float
    began: bool = False


def run_jobs(
    function: Callable[[Job], Outcome],
    jobs: Iterable[Job | Wait],
    num_workers: int,
    limit_s: float = math.inf,
    lost: Callable[[Job, str], Outcome] | None = None,
) -> Iterator[tuple[Job, Outcome | None]]:
    """`run_on` over at most so many processes of this machine.

    Args:
        function: Importable by its name; what it takes, returns and raises is pickled.
        limit_s: The most seconds for one job.
    """
    return run_on(ProcessExecutor(function, num_workers), jobs, lambda job: limit_s, lost)


class ProcessExecutor:
    """Spawned processes of this machine, started when there is work for them.

    They inherit nothing, hear no Ctrl-C, and end when this process does, however that ends.
    """

    def __init__(self, function: Callable[[Job], Outcome], num_workers: int):
        self._function, self._num_workers = function, num_workers
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}

    def size(self) -> int:
        return self._num_workers

    def start(self, job: Job, alone: bool) -> Connection:
        worker = None if alone or not self._idle else self._idle.pop()
        if worker is None or not worker.send(job):
            worker = _Worker(self._function)
            worker.send(job)  # where it is dead already, `finished` reports it
        self._busy[worker.connection] = worker
        return worker.connection

    def has_begun(self, ticket: Connection) -> bool:
        return self._busy[ticket].began

    def finished(self, timeout_s: float | None) -> list[tuple[Connection, Outcome | Died]]:
        back: list[tuple[Connection, Outcome | Died]] = []
        for ticket in multiprocessing.connection.wait(self._busy, timeout_s):
            worker = self._busy[ticket]
            try:
                kind, value = ticket.recv()
            except (EOFError, OSError):
                kind, value = "died", None
            if kind == "began":
                worker.began = True
                continue
            del self._busy[ticket]
            if kind in ("died", OUT_OF_MEMORY):
                how = worker.end()
                back.append((ticket, Died(how if kind == "died" else kind, worker.began)))
                continue
            self._idle.append(worker)
            if kind == "raised":
                raise value
            back.append((ticket, value))
        return back

    def stop(self, ticket: Connection) -> None:
        self._busy.pop(ticket).end()

    def close(self) -> None:
        for worker in self._busy.values():
            worker.process.kill()
        every = [*self._idle, *self._busy.values()]
        for worker in every:
            worker.connection.close()  # which an idle one takes as its end
        for worker in every:
            worker.process.join(LEAVE_S)
            worker.end()
        self._idle, self._busy = [], {}


class _Worker:
    """One process and our end of its pipe."""

    def __init__(self, function: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        self.began = False
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        # Blocked here, SIGINT is blocked in the child from its first instruction on: Ctrl-C reaches
        # the whole process group, and children that are still importing would spill tracebacks.
        # (Starting the tracker, which `start` does where it does not run yet, would unblock it.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.send(function)

    def send(self, job: Any) -> bool:
        """Whether it was there to take it."""
        try:
            self.connection.send(job)
        except OSError:
            return False
        return True

    def end(self) -> str:
        """Kill the process unless it has ended; returns how it did."""
        self.process.kill()
        self.process.join(LEAVE_S)  # one that waits for a dead network disk takes no signal
        self.connection.close()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        return f"killed by {signal.Signals(-code).name}"


def _serve(connection: Connection) -> None:
    """What a worker process does."""

    def end_with_parent() -> None:
        # Without this a worker whose parent is killed goes on with its job.
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    # Where the memory runs out, the kernel is to end a worker rather than the run.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    # One thread a process, also in OpenBLAS and Arrow; they read this when they are first imported,
    # which is when the function arrives.
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.suppress(EOFError, OSError):  # our parent is gone, or needs us no more
        function = connection.recv()
        gc.freeze()  # what the imports made is there for good: no collection need walk it again
        connection.send(("began", None))
        while True:
            job = connection.recv()
            try:
                answer = ("done", function(job))
            except MemoryError:
                connection.send((OUT_OF_MEMORY, None))
                return  # what it holds goes with the process
            except Exception as error:
                if not isinstance(error, AvomniError):
                    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = ("raised", error)
            del job
            connection.send(answer)
