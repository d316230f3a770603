"""Local processes and a Ray cluster of two nodes give the same results."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build, engines, parts
from avomni_lib.etl.run.parts import JobOutcome
from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params
from avomni_lib.workers import WAIT
from tests.folder_run import chosen, content

STORE_BYTES = 80 << 20
# Health checks that detect a killed node within seconds.
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
QUICK |= {"health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}


def node_of(seconds: float) -> JobOutcome:
    """Sleeps; the outcome's `reason` is the id of the node."""
    time.sleep(seconds)
    import ray

    return JobOutcome(ray.get_runtime_context().get_node_id(), 0.0)


def stuck(job: tuple[str, str, int]) -> JobOutcome:
    """Touches a file and blocks for a minute on the given node; elsewhere waits for the file."""
    import ray

    folder, node_id, number = job
    if ray.get_runtime_context().get_node_id() == node_id:
        (Path(folder) / f"{number}").touch()
        time.sleep(60)
    stop = time.monotonic() + 40
    while not list(Path(folder).iterdir()) and time.monotonic() < stop:
        time.sleep(0.05)
    return JobOutcome(ray.get_runtime_context().get_node_id(), 0.0)


def fragile(job: tuple[str, str]) -> JobOutcome:
    """A job with a fault: "dies" once, "kills" always, "hangs", "fills", "refuses", "breaks"."""
    folder, kind = Path(job[0]), job[1]
    first = not (folder / kind).exists()
    (folder / kind).touch()
    if kind == "kills" or (kind == "dies" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hangs":
        time.sleep(600)
    if kind == "fills":
        np.zeros(1 << 62, np.uint8)
    if kind == "refuses":
        raise AvomniError("no room left on the disk", where="here", fix="free some space")
    if kind == "breaks":
        raise ZeroDivisionError("by nought")
    return JobOutcome(None, 1.5)


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """Two nodes of one CPU on this machine; RAY_ADDRESS is set to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")  # where the machine is busy
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        running = Cluster(initialize_head=True, head_node_args={**node, "_system_config": QUICK})
        running.add_node(**node)
        patch.setenv("RAY_ADDRESS", running.address)
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def joined(cluster) -> Iterator:
    """This process has joined the cluster, as a notebook may; its workers are reused."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()


def params(engine: str, num_workers: int | None = None, **processing: float) -> Params:
    how = {"engine": engine, "num_workers": num_workers, **processing}
    return Params.from_values({"processing": how})


def outcomes_of(p: Params, folder: Path, *kinds: str) -> dict[str, JobOutcome]:
    jobs = [(str(folder), kind) for kind in kinds]
    return {job[1]: outcome for job, outcome in engines.run(p, fragile, jobs)}


@pytest.mark.parametrize("address", ["127.0.0.1:{closed}", "nowhere", "127.0.0.1:port"])
def test_unreachable_cluster_is_reported_in_one_message(monkeypatch, address):
    """Must run first: this process has not joined a cluster yet."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.format(closed=unused.getsockname()[1])
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(AvomniError, match=f"no Ray cluster answers at {address} ") as caught:
        next(engines.run(params("ray"), fragile, [("", "a")]))
    assert "`ray start --head`" in caught.value.fix


def test_both_nodes_work_and_jobs_may_be_added_later(cluster):
    results = []

    def source() -> Iterator:
        yield 1.0
        yield 1.0
        while len(results) < 2:
            yield WAIT
        yield 0.0

    for job, outcome in engines.run(params("ray"), node_of, source()):
        results.append((job, outcome.reason))
    assert [job for job, _ in results] == [1.0, 1.0, 0.0]
    assert len({node for _, node in results[:2]}) == 2


def test_dead_and_hanging_ray_workers_are_reported_as_lost(joined, tmp_path):
    p = params("ray", clip_timeout_s=4)
    outcomes = outcomes_of(p, tmp_path, "hangs", "dies", "a", "kills", "fills")
    for kind in ("kills", "hangs", "fills"):
        outcome = outcomes.pop(kind)
        assert outcome.is_lost
        assert re.search("process that read it died, and again .* alone", outcome.reason)
        how = "out of memory" if kind == "fills" else "longer than 4 s"
        assert how in outcome.reason
    assert outcomes == dict.fromkeys(["a", "dies"], JobOutcome(None, 1.5))


def test_exception_in_a_ray_job_is_raised_by_the_driver(joined, tmp_path):
    with pytest.raises(AvomniError, match="no room left") as caught:
        outcomes_of(params("ray", 1), tmp_path, "refuses", "a")
    assert (caught.value.where, caught.value.fix) == ("here", "free some space")
    with pytest.raises(ZeroDivisionError, match="by nought") as caught:
        outcomes_of(params("ray", 1), tmp_path, "breaks", "a")
    assert "in fragile" in caught.value.__notes__[0]


def test_lost_assembly_raises_an_error(tmp_path):
    work = parts.ChunkWork(tmp_path, 7, [], "key", [])
    job = parts.Assembly(work, {}, frozenset())
    with pytest.raises(AvomniError, match="a shard could not be assembled") as caught:
        list(engines.run(params("local", 1), die, [job]))
    assert caught.value.where.endswith("shard_0007")


def die(job: object) -> JobOutcome:
    os._exit(3)


def test_ray_cluster_builds_the_same_bytes(joined, small_set, small_cache, tmp_path):
    p = chosen(tmp_path, small_set, engine="ray", num_workers=None)
    assert build.build(p).figures["num_clips_read"] == 8
    assert content(p.cache_dir) == small_cache


def test_killed_ray_worker_loses_no_clip(joined, small_set, small_cache, tmp_path):
    p = chosen(tmp_path, small_set, engine="ray", num_workers=None)
    victims = []

    def at_work() -> bool:
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [""])[0].startswith("ray::_within"):
                process.kill()
                victims.append(process.pid)
                return True
        return False

    with once(at_work):
        built = build.build(p)
    assert victims and not built.damaged
    assert content(p.cache_dir) == small_cache


def test_killed_node_loses_no_job(joined, tmp_path):
    """Must be the last test with the cluster: the node stays dead."""
    node = next(node for node in joined.worker_nodes)
    jobs = [(str(tmp_path), node.node_id, number) for number in range(4)]

    def remove() -> bool:
        if not list(tmp_path.iterdir()):
            return False
        joined.remove_node(node, allow_graceful=False)
        return True

    with once(remove):
        node_by_job = {
            job: outcome.reason for job, outcome in engines.run(params("ray"), stuck, jobs)
        }
    assert list(tmp_path.iterdir()), "the node had a job"
    assert sorted(node_by_job) == jobs and node.node_id not in node_by_job.values()


def once(act: Callable[[], bool]) -> threading.Thread:
    """Call `act` in a thread during the `with` block until it returns True."""

    class Beside(threading.Thread):
        def __enter__(self) -> Beside:
            self.start()
            return self

        def __exit__(self, *_: object) -> None:
            self.join(60)
            assert not self.is_alive(), "nothing to act on came"

        def run(self) -> None:
            stop = time.monotonic() + 50
            while not act() and time.monotonic() < stop:
                time.sleep(0.002)

    return Beside()


def test_ray_without_a_cluster_runs_locally_and_leaves_no_process(tmp_path):
    code = (
        "from avomni_lib.etl.run import engines\n"
        "from tests.test_engines import outcomes_of, params\n"
        "from pathlib import Path\nimport os, sys\n"
        "print(outcomes_of(params('ray'), Path(sys.argv[1]), 'a', 'b'))\n"
        "import psutil, ray\nfrom ray._common.usage import usage_lib\n"
        "print(ray.is_initialized(), usage_lib.usage_stats_enabled(), engines.workers.num_cores()"
        ")\n"
        "print(psutil.Process().children())\n"
    )
    environment = os.environ | {"RAY_ADDRESS": "local"}
    environment.pop("RAY_USAGE_STATS_ENABLED", None)
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=PROJECT_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    lines = ran.stdout.splitlines()
    assert lines[0].count("JobOutcome(reason=None") == 2
    assert lines[1].startswith("False False ") and lines[2] == "[]"
    assert len(lines) == 3 and "INFO" not in ran.stderr, "Ray must print nothing"


def test_missing_ray_is_reported_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AvomniError, match="Ray is not installed") as caught:
        engines.num_workers(params("ray"))
    assert "[scale]" in caught.value.fix


def test_number_of_workers_has_a_reason():
    assert engines.num_workers(params("local", 3)) == (3, "asked for by processing.num_workers")
    number, reason = engines.num_workers(params("local"))
    assert 1 <= number <= len(os.sched_getaffinity(0)) and "one a core" in reason
    assert "a Ray cluster gives one a CPU it has" in engines.num_workers(params("ray"))[1]
