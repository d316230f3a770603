"""The ETL stage under kill -9, Ctrl-C and a full disk, at random moments in real processes.

`KILL_SEED=123 pytest tests/test_build_kills.py` repeats the moments of the run with that seed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.run import build, parts
from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params
from tests import folder_run, small_disk
from tests.folder_run import content
from tests.published_set import write_published_set

NUM_CHUNKS, CLIPS_PER_CHUNK = 3, 5
NUM_CLIPS = NUM_CHUNKS * CLIPS_PER_CHUNK
# The event after which each kill comes: the run's start, its first part or shard, a shard's start.
SINCE = ("it began",) * 2 + ("workers work",) * 5 + ("a shard is begun",) * 3
VICTIMS = ("driver", "driver", "driver", "worker", "worker", "interrupt")
SHARD_S = 0.05
CODE = """
import json, sys
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build
from avomni_lib.params import Params
p = Params.from_values(json.loads(sys.argv[1]))
print("begun", flush=True)
try:
    build.build(p)
except AvomniError as error:
    sys.exit(f"error: {error}")
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    return write_published_set(folder, NUM_CHUNKS, CLIPS_PER_CHUNK, 1.5)


# Larger tiles make a clip take long enough to be interrupted.
chosen = functools.partial(folder_run.chosen, tile_width=256, tile_height=144, num_workers=2)


class Run:
    """`build` started in a separate process that leads a process group."""

    def __init__(self, p: Params, *before: str, cache_dir: Path | None = None):
        self.cache_dir = cache_dir or p.cache_dir
        self._parts_before = self._parts()
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", CODE, json.dumps(p.values())],
            cwd=PROJECT_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout.readline() == b"begun\n"

    def _parts(self) -> set[Path]:
        return set(self.cache_dir.glob(f"{parts.PARTS_FOLDER}/*/*"))

    def writes_a_shard(self) -> bool:
        return any(self.cache_dir.glob(".shard_*.new"))

    def works(self) -> bool:
        """Whether this run's workers have written a part or a shard."""
        return bool(self._parts() - self._parts_before) or self.writes_a_shard()

    def is_running(self) -> bool:
        return self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """The worker processes, also those that are still starting."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [c for c in children if "spawn_main" in " ".join(c.cmdline())]
        return []

    def wait_until(self, ripe: Callable[[], bool]) -> None:
        while self.is_running() and not ripe():
            time.sleep(0.001)

    def end(self, expected: int) -> str:
        """Wait for the process to end and return its stderr."""
        _, stderr = self.process.communicate(timeout=60)
        assert self.process.returncode == expected, stderr.decode()
        stop = time.monotonic() + 20
        while psutil.pid_exists(self.process.pid) or group_of(self.process.pid):
            assert time.monotonic() < stop, "workers outlive their parent"
            time.sleep(0.01)
        return stderr.decode()


def group_of(leader: int) -> list[int]:
    pids = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                pids.append(process.pid)
    return pids


@pytest.fixture(scope="module")
def undisturbed(published, tmp_path_factory) -> tuple[dict[str, bytes], dict[str, float]]:
    """The expected cache, and the range in seconds of the kill's delay after each event."""
    p = chosen(tmp_path_factory.mktemp("undisturbed"), published)
    run, began = Run(p), time.monotonic()
    run.wait_until(run.works)
    working = time.monotonic()
    assert run.end(0) == ""
    ended = time.monotonic()
    spans = {"it began": working - began, "workers work": ended - working}
    return content(p.cache_dir), spans | {"a shard is begun": SHARD_S}


def assert_files_are_complete(cache_dir: Path, expected: dict[str, bytes]) -> None:
    for path in cache_dir.glob(f"{parts.PARTS_FOLDER}/*/*.npz"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, path
    for folder in cache_dir.glob("shard_*"):
        shard.open_shard(folder)
        for path in folder.iterdir():
            assert path.read_bytes() == expected[str(path.relative_to(cache_dir))], path
    if (cache_dir / memmap.CLIPS_FILE).exists():
        memmap.Cache.open(cache_dir)


def test_build_killed_ten_times_resumes_to_the_same_bytes(published, undisturbed, tmp_path):
    expected, spans = undisturbed
    seed = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(10**6))
    print(f"KILL_SEED={seed}; seconds: {spans}")
    draw = random.Random(seed)
    p = chosen(tmp_path, published)
    to_come, kills = draw.sample(SINCE, len(SINCE)), Counter()
    while to_come:
        victim, since = draw.choice(VICTIMS), to_come[-1]
        delay_s = draw.random() * spans[since]
        run = Run(p)
        if since == "workers work":
            run.wait_until(run.works)
        elif since == "a shard is begun":
            run.wait_until(run.writes_a_shard)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(delay_s)
        if run.is_running():
            victim = kill(run, victim, draw)
            print(f"{victim} {delay_s:.3f} s after {since}")
            to_come.pop()
            kills[victim] += 1
        codes = {"driver": -signal.SIGKILL, "interrupt": 130}
        code = run.process.wait(60)
        # Ctrl-C may arrive when the stage is done and Python itself is exiting.
        is_late = victim == "interrupt" and code == -signal.SIGINT
        is_late = is_late and (p.cache_dir / memmap.CLIPS_FILE).exists()
        is_done = code == 0 or is_late  # a killed worker does not end the run
        stderr = run.end(code if is_done else codes[victim])
        # A worker whose parent is killed while it starts ends with an EOFError of Python itself.
        orphans = stderr.count("EOFError: Ran out of input") if victim == "driver" else 0
        is_quiet = stderr.count("Traceback") == orphans and "KeyboardInterrupt" not in stderr
        assert is_quiet or is_late, stderr
        assert_files_are_complete(p.cache_dir, expected)
        if is_done:
            assert content(p.cache_dir) == expected
            shutil.rmtree(p.cache_dir)
    assert Run(p).end(0) == ""
    assert content(p.cache_dir) == expected
    assert sum(kills.values()) == len(SINCE)


def kill(run: Run, victim: str, draw: random.Random) -> str:
    """Kill or interrupt; returns the process hit: the driver if there is no worker."""
    workers = run.workers()
    if victim == "interrupt":
        os.killpg(run.process.pid, signal.SIGINT)  # as the terminal does
    elif victim == "worker" and workers:
        draw.choice(workers).kill()
    else:
        victim = "driver"
        run.process.kill()
    return victim


@pytest.mark.parametrize("moment", ["works", "writes_a_shard"])
def test_disk_full_during_a_build_is_reported_in_one_message(
    published, undisturbed, tmp_path, moment
):
    """Another program fills the disk after the run has checked for space."""
    p = chosen(tmp_path, published)
    with small_disk.mounted(p.cache_dir, "size=400m") as (enter, seen):
        run = Run(p, *enter, cache_dir=seen)
        run.wait_until(getattr(run, moment))
        fill(seen / ".filler")
        assert_no_room(run)
        assert not list(seen.rglob("*.partial")) and not list(seen.glob(".shard_*"))
        assert_files_are_complete(seen, undisturbed[0])
        (seen / ".filler").unlink()
        assert Run(p, *enter, cache_dir=seen).end(0) == ""
        assert content(seen) == undisturbed[0]


def fill(path: Path) -> None:
    """Fill the disk with this file."""
    with open(path, "wb") as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)


def assert_no_room(run: Run) -> None:
    stderr = run.end(1)
    assert stderr.startswith("error: no room left on the disk"), stderr
    assert "run the same command again" in stderr and "Traceback" not in stderr


def test_write_error_of_a_full_disk_is_reported_the_same_way(published, undisturbed, tmp_path):
    """The last chunk's parts are written to /dev/full."""
    p = chosen(tmp_path, published)
    run = Run(p)
    run.wait_until(run.works)
    work = build.works(p, read_chosen(p), build.common_header(p, read_chosen(p)))[-1]
    work.parts_folder.mkdir(exist_ok=True)
    for clip in work.clips:
        for worker in run.workers():
            partial = work.parts_folder / f".{clip['clip_id']}.npz.{worker.pid}.partial"
            partial.symlink_to("/dev/full")
    assert_no_room(run)
    assert_files_are_complete(p.cache_dir, undisturbed[0])
    assert Run(p).end(0) == ""
    assert content(p.cache_dir) == undisturbed[0]
