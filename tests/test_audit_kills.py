"""A full audit that is killed at any moment resumes and gives the result of an undisturbed one."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit.audit import audit, path_of
from avomni_lib.params import Params
from tests import folder_run
from tests.published_set import chunk_path, write_published_set

CAMERA = cameras.FRONT_WIDE.name
NUM_KILLS = 12
CODE = (
    "import sys, logging; from avomni_lib.dataset.audit.audit import audit;"
    "from avomni_lib.params import Params; logging.basicConfig(level=logging.INFO);"
    "p = Params.from_files([sys.argv[1]]); print('go', flush=True); audit(p, None)"
)


def params(folder: Path, published: Path, **processing) -> Params:
    values = folder_run.values(folder, published, **{"num_workers": 2} | processing)
    values["dataset"]["audit"] = "full"
    return Params.from_values(values | {"vision": {"cameras": "7-cam"}})


def result(p: Params) -> dict:
    """The written result without the free disk space, which other processes change."""
    values = json.loads(path_of(p).read_text())
    del values["figures"]["bytes_free"]
    return values


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_published_set(
        tmp_path_factory.mktemp("published"), num_chunks=6, clips_per_chunk=4, seconds=0.3
    )


def start(p: Params, folder: Path) -> subprocess.Popen:
    """Start the audit in a process of its own."""
    values = folder / "params.yaml"
    values.write_text(json.dumps(p.values()))
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(values)],
        cwd=files.PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "go\n", process.stderr.read()
    return process


def test_audit_killed_twelve_times_gives_the_same_result(published, tmp_path):
    """Each kill comes after a random number of further files, or before the first one."""
    expected = params(tmp_path / "undisturbed", published)
    audit(expected, None)
    p = params(tmp_path / "killed", published, num_workers=1)
    records = path_of(p).with_name("read")
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the moments: {seed}")
    moments, num_done, num_killed = random.Random(seed), 0, 0
    for _ in range(NUM_KILLS):
        wanted = num_done + moments.randrange(5)
        process = start(p, tmp_path)
        while process.poll() is None and len(list(records.glob("*.json"))) < wanted:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.6 if wanted == num_done else 0.03))
        children = []
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        num_killed += process.wait() == -signal.SIGKILL
        process.communicate()
        assert psutil.wait_procs(children, timeout=20)[1] == [], "workers end with their parent"
        done = list(records.glob("*.json"))
        assert path_of(p).exists() or len(done) >= num_done, "nothing that was read is lost"
        num_done = len(done)
        for record in done:
            json.loads(record.read_text())
        if path_of(p).exists():  # it had finished; the next audit starts from the beginning
            assert result(p) == result(expected)
            path_of(p).unlink()
            num_done = 0
    audit(p, None)
    assert result(p) == result(expected)
    assert num_killed > NUM_KILLS // 2
    assert sorted(path.name for path in path_of(p).parent.iterdir()) == ["audit.json"]


def test_file_that_kills_its_worker_twice_is_reported_and_audit_continues(published, tmp_path):
    """As by lack of memory or a crash inside a library; here the test kills the worker."""
    folder = shutil.copytree(published, tmp_path / "data")
    fatal = folder / chunk_path(CAMERA, 2)
    with open(fatal, "r+b") as file, zipfile.ZipFile(file, "a") as archive:
        # A sparse hole of 2 GiB, which takes a second or two to read.
        archive.start_dir = 2 << 30
        file.seek(archive.start_dir)
        archive.writestr(zipfile.ZipInfo("behind"), b"the hole")
    p = params(tmp_path, folder)
    process = start(p, tmp_path)
    num_killed = 0
    while process.poll() is None and num_killed < 2:
        for worker in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if str(fatal) in {file.path for file in worker.open_files()}:
                    worker.kill()
                    worker.wait(20)
                    num_killed += 1
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and num_killed == 2, stderr
    report = result(p)
    (row,) = [row for row in report["findings"] if row["severity"] == "odd"]
    assert row["what"] == "looking at it failed" and "killed by SIGKILL" in row["reason"]
    assert row["path"] == chunk_path(CAMERA, 2) and "tries it again" in row["reason"]
    assert not [row for row in report["findings"] if row["severity"] == "damaged"]
    states = {row["chunk"]: set() for row in report["clips"]}
    for row in report["clips"]:
        states[row["chunk"]].add(row["state"])
    assert states == {chunk: {"odd" if chunk == 2 else "sound"} for chunk in range(6)}
