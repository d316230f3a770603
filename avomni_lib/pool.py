"""Jobs over processes of this machine, of which any may die or hang without ending the run."""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from avomni_lib.crew import WAIT, Died, Job, Outcome, Wait, run_on
from avomni_lib.errors import AvomniError

__all__ = ["WAIT", "Processes", "Wait", "num_cores", "run_jobs"]
CGROUP = Path("/sys/fs/cgroup")
LEAVE_S = 5.0
OOM_SCORE = 500
OUT_OF_MEMORY = "out of memory"


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
    return run_on(Processes(function, num_workers), jobs, lambda job: limit_s, lost)


class Processes:
    """The crew of this machine: spawned processes, started when there is work for them.

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
            worker.send(job)  # where it is dead already, `finished` tells
        self._busy[worker.connection] = worker
        return worker.connection

    def has_begun(self, ticket: Connection) -> bool:
        return self._busy[ticket].began

    def finished(self, timeout_s: float | None) -> list[tuple[Connection, Outcome | Died]]:
        back = []
        for ticket in multiprocessing.connection.wait(self._busy, timeout_s):
            worker = self._busy[ticket]
            try:
                kind, value = ticket.recv()
            except (EOFError, OSError):
                kind, value = "died", None
            if kind in ("died", OUT_OF_MEMORY):
                del self._busy[ticket]
                how = worker.end()
                how = how if kind == "died" else OUT_OF_MEMORY
                back.append((ticket, Died(how, worker.began)))
                continue
            if kind == "began":
                worker.began = True
                continue
            self._idle.append(self._busy.pop(ticket))
            if kind == "raised":
                raise value
            back.append((ticket, value))
        return back

    def stop(self, ticket: Connection) -> None:
        self._busy.pop(ticket).end()

    def close(self) -> None:
        for worker in self._busy.values():
            worker.process.kill()
        for worker in [*self._idle, *self._busy.values()]:
            worker.connection.close()  # which an idle one takes as its end
        for worker in [*self._idle, *self._busy.values()]:
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
    _end_with_parent()
    _be_killed_first()
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


def _end_with_parent() -> None:
    """Without this a worker whose parent is killed goes on with its job."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _be_killed_first() -> None:
    """Where the memory runs out, the kernel is to end a worker rather than the run."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(OOM_SCORE))
