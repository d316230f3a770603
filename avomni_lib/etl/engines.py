"""`processing.engine`: where the clips are read. The same jobs, the same bytes, other machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from avomni_lib import crew, pool
from avomni_lib.crew import Wait
from avomni_lib.etl.parts import Outcome
from avomni_lib.params import Params

Job = TypeVar("Job")
# A clip takes a minute at the very most; a decoder or a disk that hangs never ends.
LIMIT_S = 600.0


def num_workers(p: Params) -> tuple[int, str]:
    """(clips read at a time, reason)."""
    if p.processing.num_workers:
        return p.processing.num_workers, "asked for by processing.num_workers"
    return pool.num_cores(), "one a core, each decoding on one thread"


def run(
    p: Params,
    function: Callable[[Job], Outcome],
    jobs: Iterable[Job | Wait],
    num_workers: int,
    limit_s: float = LIMIT_S,
) -> Iterator[tuple[Job, Outcome]]:
    """`pool.run_jobs` on the engine of the parameters.

    A job that is lost (its worker died twice, or took longer than `limit_s`) has an outcome too,
    with the reason in it.
    """
    return crew.run_on(pool.Processes(function, num_workers), jobs, limit_s, _lost)


def _lost(reason: str) -> Outcome:
    return Outcome(reason, 0.0)
