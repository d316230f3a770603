"""Worker processes that die, and a parent that does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.pool import run_jobs
from avomni_lib.files import PROJECT_ROOT


def square(job: tuple[Path, int]) -> int:
    """Kills its own process for 3 always, for 5 the first time."""
    folder, number = job
    seen = folder / f"seen-{number}"
    first = not seen.exists()
    seen.touch()
    if number == 3 or (number == 5 and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def refuse(number: int) -> int:
    raise AvomniError(f"no {number}", where="here", fix="that")


def sleep(number: int) -> None:
    Path(os.environ["STARTED"], str(os.getpid())).touch()
    time.sleep(60)


def test_a_job_that_kills_its_worker_twice_is_given_back_and_the_rest_are_done(tmp_path):
    jobs = [(tmp_path, number) for number in range(8)]
    done = {job[1]: outcome for job, outcome in run_jobs(square, jobs, 2)}
    assert done == {n: None if n == 3 else n * n for n in range(8)}


def test_what_a_job_raises_is_raised():
    with pytest.raises(AvomniError, match="no 1") as caught:
        list(run_jobs(refuse, [1, 2, 3], 1))
    assert (caught.value.where, caught.value.fix) == ("here", "that")


def test_nothing_to_do():
    assert list(run_jobs(square, [], 2)) == []


def test_workers_end_with_their_parent(tmp_path):
    code = (
        "from avomni_lib.pool import run_jobs; from tests.test_pool import sleep;"
        "list(run_jobs(sleep, [1, 2], 2))"
    )
    environment = os.environ | {"STARTED": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_ROOT, env=environment)
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    for process in alive:
        process.kill()
    assert not alive


def wait_for(condition, seconds: float = 60) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, "nothing happened"
        time.sleep(0.02)
