"""Worker processes: those that die or hang, jobs that arrive late, a parent that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.files import PROJECT_ROOT
from avomni_lib.workers import WAIT, num_cores, run_jobs


def square(job: tuple[Path, int]) -> int:
    """The square of a number; kills its process for 3 always and for 5 the first time."""
    folder, number = job
    seen = folder / f"seen-{number}"
    first = not seen.exists()
    seen.touch()
    if number == 3 or (number == 5 and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def refuse(number: int) -> int:
    if number == 7:
        raise ValueError(f"{number} is not foreseen")
    raise AvomniError(f"no {number}", where="here", fix="that")


def sleep(seconds: float) -> tuple[int, float]:
    """(process id, end time in s), after sleeping for so many seconds."""
    if "STARTED" in os.environ:
        Path(os.environ["STARTED"], str(os.getpid())).touch()
    time.sleep(seconds)
    return os.getpid(), time.monotonic()


def span(job: tuple[Path, float]) -> tuple[float, float]:
    """(start, end) of a job in seconds; the job "dies" kills its process on its first try."""
    path, seconds = job
    with open(path, "a") as file:
        file.write("+")
    start = time.monotonic()
    time.sleep(seconds)
    if path.name == "dies" and path.read_text() == "+":
        os.kill(os.getpid(), signal.SIGKILL)
    return start, time.monotonic()


def state(_: int) -> tuple[int, str, int]:
    """Number of threads after some arithmetic, OMP_NUM_THREADS, and proc(5)'s OOM score."""
    import numpy as np

    np.ones((300, 300)) @ np.ones((300, 300))
    score = int(Path("/proc/self/oom_score_adj").read_text())
    return psutil.Process().num_threads(), os.environ["OMP_NUM_THREADS"], score


def lost(job, reason: str) -> str:
    return reason


def test_job_that_kills_its_worker_twice_is_reported_as_lost(tmp_path):
    jobs = [(tmp_path, number) for number in range(8)]
    done = {job[1]: outcome for job, outcome in run_jobs(square, jobs, 2, lost=lost)}
    why = "the process that read it died, and again when it was alone (killed by SIGKILL)"
    assert done == {n: why if n == 3 else n * n for n in range(8)}
    assert list(run_jobs(square, [], 2)) == []


def test_lost_job_is_retried_alone(tmp_path):
    # c is still running when the new process for the second try has started.
    seconds = {"a": 0.8, "dies": 0.1, "b": 0.8, "c": 2.0, "d": 0.1}
    jobs = [(tmp_path / name, s) for name, s in seconds.items()]
    spans = {job[0].name: outcome for job, outcome in run_jobs(span, jobs, 3)}
    tries = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert tries == {"a": "+", "dies": "++", "b": "+", "c": "+", "d": "+"}
    start, end = spans.pop("dies")
    for name, other in spans.items():
        assert other[1] <= start or other[0] >= end, f"{name} ran beside it"


def test_hanging_worker_is_stopped_and_other_jobs_finish():
    done = dict(run_jobs(sleep, [600.0, 0.0, 0.01, 0.02], 2, limit_s=8.0, lost=lost))
    assert done.pop(600.0) == "it took longer than 8 s and was stopped"
    assert len(done) == 3 and all(isinstance(outcome, tuple) for outcome in done.values())
    assert not [child for child in psutil.Process().children() if is_worker(child)]


def test_exception_of_a_job_is_raised():
    with pytest.raises(AvomniError, match="no 1") as caught:
        list(run_jobs(refuse, [1, 2, 3], 1))
    assert (caught.value.where, caught.value.fix) == ("here", "that")
    with pytest.raises(ValueError, match="7 is not foreseen") as unforeseen:
        list(run_jobs(refuse, [7], 1))
    assert "in refuse" in unforeseen.value.__notes__[0]


def test_jobs_are_requested_only_when_a_worker_is_free(tmp_path):
    """The source yields WAIT while jobs run, and one more job once it has their outcomes."""
    results: list[int] = []
    requested: list[int] = []

    def source() -> Iterator:
        for number in (0, 1):
            requested.append(number)
            yield tmp_path, number
        while len(results) < 2:
            yield WAIT
        assert sorted(results) == [0, 1]
        stop = time.monotonic() + 0.5
        while time.monotonic() < stop:  # nothing runs, and there is nothing to do yet
            yield WAIT
        yield tmp_path, 2

    outcomes = run_jobs(square, source(), 2)
    results.append(next(outcomes)[1])
    assert requested == [0, 1]
    results.extend(outcome for _, outcome in outcomes)
    assert sorted(results) == [0, 1, 4]


def test_worker_starts_its_next_job_before_the_caller_continues():
    outcomes = run_jobs(sleep, [0.0, 0.01, 0.02, 0.03], 1)
    _, first = next(outcomes)
    time.sleep(1.0)
    continued = time.monotonic()
    _, second = next(outcomes)
    assert second[1] < continued - 0.5
    assert len(list(outcomes)) == 2


def test_workers_are_reused_and_never_outnumber_the_jobs():
    assert len({pid for _, (pid, _) in run_jobs(sleep, [0.0] * 6, 1)}) == 1
    pids = set()
    for _, (pid, _) in run_jobs(sleep, [0.0, 0.0], 50):
        pids |= {pid}
        assert len([child for child in psutil.Process().children() if is_worker(child)]) <= 2
    assert len(pids) <= 2


def test_worker_uses_one_core_and_is_the_first_oom_victim():
    [(_, (num_threads, openmp, score))] = run_jobs(state, [0], 1)
    assert num_threads == 2, "its own, and the one that watches for the parent's end"
    assert openmp == "1"
    assert score > int(Path("/proc/self/oom_score_adj").read_text())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "90000000 100000\n"}, None),
    ],
)
def test_num_cores_respects_the_cpu_limit_of_a_container(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert num_cores(tmp_path) == (expected or len(os.sched_getaffinity(0)))


def test_killed_idle_worker_is_replaced():
    def source() -> Iterator[float]:
        yield 0.0
        for child in filter(is_worker, psutil.Process().children()):
            child.kill()
            child.wait()
        yield 0.01

    assert [job for job, _ in run_jobs(sleep, source(), 1)] == [0.0, 0.01]


def test_workers_that_cannot_start_are_an_error(tmp_path):
    script = tmp_path / "script.py"  # without `if __name__ == "__main__"`, spawning starts it again
    script.write_text(
        "from avomni_lib.workers import run_jobs\n"
        "from avomni_lib.errors import AvomniError\n"
        "from tests.test_workers import square\n"
        "import multiprocessing as m, sys\n"
        "try:\n    list(run_jobs(square, [1], 1))\n"
        "except AvomniError as error:\n    sys.exit(str(error))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "ended before it had begun" in done.stderr and '__name__ == "__main__"' in done.stderr


def parent_of_two(tmp_path: Path, seconds: float) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A parent process in a group of its own, and its two busy workers."""
    code = (
        "import sys\nfrom avomni_lib.workers import run_jobs\n"
        "from tests.test_workers import sleep\n"
        f"try:\n    list(run_jobs(sleep, [{seconds}, {seconds + 1}], 2))\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT_ROOT,
        env=os.environ | {"STARTED": str(tmp_path)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    return parent, [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]


def test_workers_end_with_their_parent(tmp_path):
    parent, workers = parent_of_two(tmp_path, 60)
    parent.kill()
    parent.wait()
    assert parent.stderr.read() == b""
    assert_ended(workers)


def test_interrupt_ends_all_workers_silently(tmp_path):
    """As from a terminal, every process of the group gets the signal."""
    parent, workers = parent_of_two(tmp_path, 60)
    assert all(blocks_interrupts(worker) for worker in workers)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(timeout=30) == 130
    assert parent.stderr.read() == b""
    assert_ended(workers)


def is_worker(process: psutil.Process) -> bool:
    return "spawn_main" in " ".join(process.cmdline())


def blocks_interrupts(process: psutil.Process) -> bool:
    """proc(5): SigBlk is the mask of blocked signals in hex, signal 1 its least bit."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    blocked = int(next(line.split()[1] for line in status.splitlines() if "SigBlk" in line), 16)
    return bool(blocked >> signal.SIGINT - 1 & 1)


def assert_ended(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    for process in alive:
        process.kill()
    assert not alive


def wait_for(condition, seconds: float = 60) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, "nothing happened"
        time.sleep(0.02)
