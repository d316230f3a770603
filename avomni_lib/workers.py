"""Jobs in worker processes, any of which may die or hang without ending the run.

`run_jobs` uses processes of this machine. `run_on` feeds any executor and handles jobs whose worker
dies or hangs; etl/run/engines.py has the executor for a Ray cluster.

multiprocessing and concurrent.futures lose all jobs when one worker dies. pebble does not, but it
starts every worker at once, prints tracebacks when it is stopped while they start, and cannot give
a job a fresh worker; hence the executor here.
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
START_S = 600.0  # a worker may take this long to start, for example from a slow disk
LEAVE_S = 5.0
OOM_SCORE = 500
OUT_OF_MEMORY = "out of memory"
DIED = "the process that read it died, and again when it was alone"


def num_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use, limited by its CPU affinity and a container's quota.

    The quota is read from cgroup v2 (`cpu.max`: "quota period" or "max period") or v1 (-1: none).
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
    """The type of `WAIT`, which an iterator of jobs yields while the next job is not ready."""

    WAIT = enum.auto()


WAIT: Final = Wait.WAIT


@dataclass(frozen=True)
class Died:
    """An executor's result for a job whose worker died."""

    how: str  # such as "killed by SIGKILL"
    began: bool = True  # whether the worker had started up before


class Executor(Protocol[Job, Outcome]):
    """A pool of workers that do one job at a time each."""

    def size(self) -> int:
        """Number of workers that exist or can be started now."""

    def start(self, job: Job, alone: bool) -> Any:
        """Submit a job, to a fresh worker if `alone`; returns its ticket."""

    def has_begun(self, ticket: Any) -> bool:
        """Whether the job's worker has started and works on it."""

    def finished(self, timeout_s: float | None) -> list[tuple[Any, Outcome | Died]]:
        """Wait for results and return (ticket, result) pairs; raises what a job raised."""

    def stop(self, ticket: Any) -> None:
        """Kill the worker of an abandoned job."""

    def close(self) -> None:
        """End all workers, including busy ones."""


def run_on(
    executor: Executor[Job, Outcome],
    jobs: Iterable[Job | Wait],
    limit_s: Callable[[Job], float] = lambda job: math.inf,
    lost: Callable[[Job, str], Outcome] | None = None,
) -> Iterator[tuple[Job, Outcome | None]]:
    """Yield (job, its outcome) as jobs finish, in any order.

    A job whose worker dies (killed, out of memory, a crash inside a library) is retried once, on
    its own, as soon as the running ones are done. If its worker dies again, or it exceeds its time
    limit (counted from when its worker has started), the job is lost and the rest go on. Exceptions
    of a job are raised here, except MemoryError, which counts as a death.

    Args:
        executor: Closed when this iterator ends, for whatever reason. (Callers that may stop early
            wrap the iterator in `contextlib.closing`.)
        jobs: Advanced only when a worker is free. While it yields `WAIT`, it is polled every 0.1 s
            and whenever a job has finished.
        limit_s: Job -> its time limit in seconds.
        lost: (job, reason) -> the outcome of a lost job; None if not given.

    Raises:
        AvomniError: worker processes die before any has started.
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
            paused = suspects or any(entry.alone for entry in running.values())
            while more and not waits and not paused and len(running) < executor.size():
                job = next(source, None)
                more, waits = job is not None, job is WAIT
                if more and not waits:
                    hand_out(job)
            if suspects and not running:
                hand_out(suspects.popleft(), alone=True)
            if done:
                # Workers are busy again before the caller spends time on this outcome.
                yield done.popleft()
                continue
            if not running:
                if not more:
                    return
                time.sleep(POLL_S)
                continue
            for ticket, entry in running.items():
                if not entry.began and executor.has_begun(ticket):
                    entry.began, entry.stop_s = True, time.monotonic() + limit_s(entry.job)
            left_s = min(entry.stop_s for entry in running.values()) - time.monotonic()
            timeout_s = min(max(left_s, 0.0), POLL_S if waits else math.inf)
            for ticket, outcome in executor.finished(None if timeout_s == math.inf else timeout_s):
                entry = running.pop(ticket)
                ever_began = ever_began or not isinstance(outcome, Died) or outcome.began
                if not isinstance(outcome, Died):
                    done.append((entry.job, outcome))
                elif not entry.alone:
                    log.warning("a worker died (%s); its job is tried once more", outcome.how)
                    suspects.append(entry.job)
                elif ever_began:
                    lose(entry.job, f"{DIED} ({outcome.how})")
                else:
                    raise AvomniError(
                        f"a worker process ended before it had begun, twice ({outcome.how})",
                        fix="see its output above; a script that starts a run needs the line "
                        'if __name__ == "__main__":',
                    )
            late = [ticket for ticket, entry in running.items() if entry.stop_s <= time.monotonic()]
            for ticket in late:
                executor.stop(ticket)
                job = running.pop(ticket).job
                lose(job, f"it took longer than {limit_s(job):g} s and was stopped")


@dataclass
class _Running(Generic[Job]):
    """A running job and its deadline."""

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
    """`run_on` with at most `num_workers` processes of this machine, and one time limit for all.

    The function is importable by name; its argument, result and exceptions are pickled.
    """
    return run_on(ProcessExecutor(function, num_workers), jobs, lambda job: limit_s, lost)


class ProcessExecutor:
    """Spawned processes of this machine, started when there is work for them.

    They inherit nothing, ignore Ctrl-C, and end when this process ends, even if it is killed.
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
            worker.send(job)  # if it is dead already, `finished` reports it
        self._busy[worker.connection] = worker
        return worker.connection

    def has_begun(self, ticket: Connection) -> bool:
        return self._busy[ticket].began

    def finished(self, timeout_s: float | None) -> list[tuple[Connection, Outcome | Died]]:
        results: list[tuple[Connection, Outcome | Died]] = []
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
                results.append((ticket, Died(how if kind == "died" else kind, worker.began)))
                continue
            self._idle.append(worker)
            if kind == "raised":
                raise value
            results.append((ticket, value))
        return results

    def stop(self, ticket: Connection) -> None:
        self._busy.pop(ticket).end()

    def close(self) -> None:
        for worker in self._busy.values():
            worker.process.kill()
        workers = [*self._idle, *self._busy.values()]
        for worker in workers:
            worker.connection.close()  # ends an idle worker
        for worker in workers:
            worker.process.join(LEAVE_S)
            worker.end()
        self._idle, self._busy = [], {}


class _Worker:
    """A worker process and the parent's end of its pipe."""

    def __init__(self, function: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        self.began = False
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        # The child inherits the blocked SIGINT: Ctrl-C reaches the whole process group, and
        # children that are still importing would print tracebacks. (`start` may first start the
        # resource tracker, which would unblock it.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.send(function)

    def send(self, job: Any) -> bool:
        """Send a job; returns False if the process is gone."""
        try:
            self.connection.send(job)
        except OSError:
            return False
        return True

    def end(self) -> str:
        """Kill the process unless it has ended; returns how it ended."""
        self.process.kill()
        self.process.join(LEAVE_S)  # a process that waits for a dead network disk cannot be killed
        self.connection.close()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        return f"killed by {signal.Signals(-code).name}"


def _serve(connection: Connection) -> None:
    """The main loop of a worker process."""

    def end_with_parent() -> None:
        # Without this, a worker whose parent is killed would finish its job.
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    # When memory runs out, the kernel should kill a worker rather than the main process.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    # One thread per process, also in OpenBLAS and Arrow. They read this on import, which happens
    # when the function is unpickled.
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.suppress(EOFError, OSError):  # the parent is gone or has closed the pipe
        function = connection.recv()
        gc.freeze()  # objects made by imports stay: keep the garbage collector from visiting them
        connection.send(("began", None))
        while True:
            job = connection.recv()
            try:
                answer = ("done", function(job))
            except MemoryError:
                connection.send((OUT_OF_MEMORY, None))
                return  # its memory is freed with the process
            except Exception as error:
                if not isinstance(error, AvomniError):
                    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = ("raised", error)
            del job
            connection.send(answer)
