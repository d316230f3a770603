"""Jobs over worker processes, of which any may die without ending the run."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], Outcome], jobs: Iterable[Job], num_workers: int
) -> Iterator[tuple[Job, Outcome | None]]:
    """Yield (job, what `function` returned) as jobs finish, in any order.

    A worker that dies (killed, out of memory, a crash inside a library) takes the pool with it. The
    jobs that were then at work are tried once more, each alone in a process of its own; one that
    dies again is given back with None, and the rest go on. What `function` raises is raised here.

    Workers are spawned, so that they inherit nothing, and end when this process does.
    """
    waiting = deque(jobs)
    while waiting:
        running: dict[Future, Job] = {}
        with _pool(num_workers) as pool:
            try:
                while waiting or running:
                    # No more than the workers at hand: what runs when one dies is then known.
                    while waiting and len(running) < num_workers:
                        future = pool.submit(function, waiting[0])
                        running[future] = waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        yield running.pop(future), outcome
            except BrokenProcessPool:
                log.warning("a worker died; its job is tried once more")
        for job in running.values():
            yield job, _alone(function, job)


def _alone(function: Callable[[Job], Outcome], job: Job) -> Outcome | None:
    with _pool(1) as pool:
        try:
            return pool.submit(function, job).result()
        except BrokenProcessPool:
            return None


def _pool(num_workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Without this a worker whose parent is killed waits for its next job for ever."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
