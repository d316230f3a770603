"""`processing.engine`: runs the jobs in processes of this machine or on a Ray cluster."""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any, TypeVar

from avomni_lib import files, workers
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run.parts import Assembly, JobOutcome
from avomni_lib.params import Params
from avomni_lib.workers import Died, Executor, Wait, run_on

log = logging.getLogger(__name__)

Job = TypeVar("Job")
# The minimum that Ray accepts: outcomes are small, and arrays go to the shared folder.
OBJECT_STORE_BYTES = 80 << 20
NODE_DIED, NODE_LOSSES = "its node died", 3
REACH_S, CLUSTER_AGE_S = 5.0, 5.0


def num_workers(p: Params) -> tuple[int, str]:
    """(clips read concurrently, reason)."""
    if p.processing.num_workers:
        return p.processing.num_workers, "asked for by processing.num_workers"
    if p.processing.engine == "ray":
        _need_ray()
        reason = "one a core of this machine; a Ray cluster gives one a CPU it has"
        return workers.num_cores(), reason
    return workers.num_cores(), "one a core, each decoding on one thread"


def run(
    p: Params,
    function: Callable[[Job], JobOutcome],
    jobs: Iterable[Job | Wait],
) -> Iterator[tuple[Job, JobOutcome]]:
    """Run jobs on the engine of the parameters; yields (job, outcome) in order of completion.

    Jobs run at once: processing.num_workers, or else one per core of this machine or per CPU of the
    cluster.

    A lost job (its worker died twice, or it exceeded `processing.clip_timeout_s`) has an outcome
    too, which states the reason.

    Raises:
        AvomniError: Ray is not installed or its cluster does not respond; the assembly of a shard
            was lost; or a job raised it.
    """
    wanted, limit_s = p.processing.num_workers, p.processing.clip_timeout_s
    if p.processing.engine == "ray":
        executor: Executor[Job, JobOutcome] = RayExecutor(function, wanted, limit_s)
        yield from run_on(executor, jobs, lost=_lost)  # enforces the limit itself
    else:
        executor = workers.ProcessExecutor(function, wanted or workers.num_cores())
        yield from run_on(executor, jobs, functools.partial(_limit_of, limit_s), _lost)


def _limit_of(limit_s: float, job: Any) -> float:
    # The time for a shard depends on the disk, not on a single clip.
    return math.inf if isinstance(job, Assembly) else limit_s


def _lost(job: Any, reason: str) -> JobOutcome:
    if isinstance(job, Assembly):
        raise AvomniError(
            f"a shard could not be assembled: {reason}",
            where=str(job.work.shard_folder),
            fix="run the same command again: it goes on from here; lower processing.num_workers "
            "where memory is short",
        )
    return JobOutcome(reason, 0.0, is_lost=True)


class RayExecutor:
    """Tasks on a Ray cluster: that of RAY_ADDRESS or `ray start`, else one on this machine.

    Raw files and cache are in folders shared by all nodes. Workers import the caller's copy of
    avomni_lib if it exists on their node, else the one installed there. Tasks of a node that dies
    are submitted again.

    Args:
        num_workers: Maximum number of concurrent tasks; None is the cluster's number of CPUs.
        limit_s: Time limit of a task in seconds, counted from its start (tasks may be queued).
    """

    def __init__(
        self,
        function: Callable[[Job], JobOutcome],
        num_workers: int | None,
        limit_s: float = math.inf,
    ):
        self._ray, self._num_workers = _import_ray(), num_workers
        self._opened = ExitStack()
        if not self._ray.is_initialized():
            _connect(self._ray)
            self._opened.callback(self._ray.shutdown)
        task = self._ray.remote(_within)
        # `run_on` handles retries, in the same way for every executor.
        self._task = task.options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
        self._function, self._limit_s = function, limit_s
        self._tickets: dict[Any, _Ticket] = {}
        self._size, self._size_at = 0, -math.inf

    def size(self) -> int:
        if time.monotonic() - self._size_at > CLUSTER_AGE_S:
            num_cpus = int(self._ray.cluster_resources().get("CPU", 1))
            self._size = min(self._num_workers or num_cpus, max(num_cpus, 1))
            self._size_at = time.monotonic()
        return self._size

    def start(self, job: Job, alone: bool) -> _Ticket:
        ticket = _Ticket(job)
        self._submit(ticket)
        return ticket

    def _submit(self, ticket: _Ticket) -> None:
        ref = self._task.remote(self._function, ticket.job, _limit_of(self._limit_s, ticket.job))
        self._tickets[ref] = ticket

    def has_begun(self, ticket: _Ticket) -> bool:
        return False  # the task enforces its limit itself

    def finished(self, timeout_s: float | None) -> list[tuple[_Ticket, JobOutcome | Died]]:
        ready, _ = self._ray.wait([*self._tickets], num_returns=1, timeout=timeout_s)
        if ready:
            num = len(self._tickets)
            ready, _ = self._ray.wait([*self._tickets], num_returns=num, timeout=0)
        results = []
        for ref in ready:
            ticket = self._tickets.pop(ref)
            outcome = self._get(ref)
            if isinstance(outcome, Died) and outcome.how == NODE_DIED:
                ticket.losses += 1
                if ticket.losses < NODE_LOSSES:
                    log.warning("a node of the Ray cluster died; its job is handed out again")
                    self._submit(ticket)
                    continue
            results.append((ticket, outcome))
        return results

    def _get(self, ref: Any) -> JobOutcome | Died:
        faults = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except faults.RayTaskError as error:
            if isinstance(error.cause, MemoryError):
                return Died(workers.OUT_OF_MEMORY)
            if not isinstance(error.cause, AvomniError):
                error.cause.add_note(f"in a Ray worker:\n{error}")
            raise error.cause from None
        except faults.NodeDiedError:
            return Died(NODE_DIED)
        except faults.OutOfMemoryError:
            return Died("killed by Ray: its node ran out of memory")
        except (faults.WorkerCrashedError, faults.ObjectLostError):
            return Died(f"killed, or short of memory, or longer than {self._limit_s:g} s")

    def stop(self, ticket: _Ticket) -> None:
        for ref in [ref for ref, held in self._tickets.items() if held is ticket]:
            del self._tickets[ref]
            self._ray.cancel(ref, force=True)

    def close(self) -> None:
        with self._opened:
            for ticket in list(self._tickets.values()):
                self.stop(ticket)


class _Ticket:
    """A submitted job, and how many nodes died while running it."""

    def __init__(self, job: Any):
        self.job, self.losses = job, 0


def _within(function: Callable[[Job], JobOutcome], job: Job, limit_s: float) -> JobOutcome:
    """The Ray task; at the limit the kernel kills its process, even if it hangs in a library."""
    if math.isfinite(limit_s):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return function(job)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _need_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise AvomniError(
            "Ray is not installed",
            where="processing.engine: ray",
            fix="pip install -e '.[scale]', on every machine of the cluster; or set "
            "processing.engine: local",
        )


def _import_ray() -> ModuleType:
    _need_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    import ray

    return ray


def _connect(ray: ModuleType) -> None:
    """Join an existing cluster, or start one on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    path = files.environment()["PYTHONPATH"]
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    if address != "local":
        if address:
            _need_answer(address)
        try:
            ray.init(address="auto", **options)
            return
        except ConnectionError as error:
            if address:
                raise _no_answer(address, error) from None
        except SystemExit as error:  # raised by Ray after two minutes
            raise _no_answer("`ray start` on this machine", error) from None
    try:
        ray.init(
            address="local",
            num_cpus=workers.num_cores(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **options,
        )
    except Exception as error:  # Ray's processes must start within 30 s, even on a busy machine
        raise AvomniError(
            f"Ray does not start on this machine: {error}",
            where="processing.engine: ray",
            fix="run the same command again when the machine is less busy, or set "
            "processing.engine: local",
        ) from None


def _need_answer(address: str) -> None:
    """Check that the address responds; Ray would wait two minutes and then exit the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, ValueError) as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: BaseException) -> AvomniError:
    return AvomniError(
        f"no Ray cluster answers at {address} ({error})",
        where="RAY_ADDRESS",
        fix="set RAY_ADDRESS=host:port of the head node (`ray start --head` prints it), or to "
        "`local`; `ray stop` clears what a dead cluster left",
    )
