"""Download processes are killed at random moments; the local hub counts every byte it sends."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from avomni_lib.dataset.download.download import read_chosen
from avomni_lib.dataset.download.transfer import PARTIALS
from avomni_lib.params import Params
from tests import local_hub
from tests.hub_run import FETCH, REPO, contents, params, python
from tests.local_hub import LocalHub
from tests.published_set import chunk_path, write_published_set

NUM_KILLS = 20
FOUR_WORKERS = {"max_workers": 4}
LARGE = 600_000
CAMERAS = ("front_wide_120fov", "front_tele_30fov", "rear_left_70fov", "rear_right_70fov")
ZIP = chunk_path("camera_front_wide_120fov", 0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise stands in for each zip, because the download opens no video."""
    folder = write_published_set(tmp_path_factory.mktemp("published"), seconds=0.1)
    noise = random.Random(3)
    for camera in CAMERAS:
        for chunk in (0, 1):
            (folder / chunk_path(f"camera_{camera}", chunk)).write_bytes(noise.randbytes(LARGE))
    return folder


def start(p: Params, server: LocalHub, code: str = FETCH) -> subprocess.Popen:
    return python(code, p.model_dump_json(), server.commit, server.endpoint)


def test_download_killed_twenty_times_fetches_few_bytes_twice(published: Path, tmp_path: Path):
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    p, quiet = (params(tmp_path / name, download=FOUR_WORKERS) for name in ("killed", "quiet"))
    # A run would take seconds; each process fetches up to a twelfth of all bytes.
    speed, step = 150_000, len(CAMERAS) * 2 * LARGE // 12
    with local_hub.serve(published, REPO) as server:
        process = start(quiet, server)
        assert process.wait() == 0, process.stderr.read()
        whole = sum(file["size"] for file in read_chosen(quiet).files.values())
        assert server.bytes_of() == whole
        server.requests.clear()
        server.bytes_per_s = speed
        for kill in range(NUM_KILLS):
            # Some are killed while they start, the others after a number of bytes.
            before, wait_s = server.bytes_of(), draw.uniform(0, 0.6)
            goal = 0 if kill % 5 == 4 else int(draw.uniform(0.02, 0.55) * step) + 1
            process = start(p, server)
            if not goal:
                time.sleep(wait_s)
            while server.bytes_of() < before + goal:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.003)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it had ended before it was killed"
            assert not (p.run_dir / "chosen.json").exists()
        server.bytes_per_s = None
        process = start(p, server)
        assert process.wait() == 0, process.stderr.read()
        sent = server.bytes_of()
    print(f"{sent:,} bytes for {whole:,} after {NUM_KILLS} kills: {sent / whole - 1:.2%} more")
    # Each kill loses a few thousand bytes for each connection.
    assert whole <= sent <= 1.25 * whole
    assert contents(p.local_dir) == contents(quiet.local_dir)
    ours, others = (json.loads((run.run_dir / "chosen.json").read_text()) for run in (p, quiet))
    assert ours.pop("local_dir") != others.pop("local_dir")  # each has a data folder of its own
    assert ours == others
    assert list((p.local_dir / PARTIALS).iterdir()) == []


def test_ctrl_c_stops_the_download_and_the_next_run_resumes(published: Path, tmp_path: Path):
    p = params(tmp_path, download=FOUR_WORKERS)
    with local_hub.serve(published, REPO) as server:
        server.bytes_per_s = 100_000
        process = start(p, server)
        while server.bytes_of(ZIP) < 0.3 * LARGE:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
        stopped = server.bytes_of(ZIP)
        # The process did not wait for the files in flight, which would take seconds more.
        assert stopped < 0.7 * LARGE and not (p.local_dir / ZIP).exists()
        server.bytes_per_s = None
        process = start(p, server)
        assert process.wait() == 0, process.stderr.read()
        assert server.bytes_of(ZIP) <= 1.02 * LARGE
    assert (p.local_dir / ZIP).read_bytes() == (published / ZIP).read_bytes()


LIMITED = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from avomni_lib.errors import AvomniError
try:
    {FETCH.strip().replace(chr(10), chr(10) + "    ")}
except AvomniError as error:
    sys.exit(str(error))
"""


def test_full_disk_is_one_message_and_the_next_run_resumes(published: Path, tmp_path: Path):
    """A limit on the size of files stops writes in the middle, as a quota does."""
    p = params(tmp_path, download=FOUR_WORKERS)
    with local_hub.serve(published, REPO) as server:
        process = start(p, server, LIMITED)
        _, stderr = process.communicate()
        assert process.returncode == 1 and "no room left on the disk" in stderr
        assert "run the same command again: it goes on from here" in stderr
        assert "Traceback" not in stderr
        partials = {path.stat().st_size for path in (p.local_dir / PARTIALS).iterdir()}
        assert 300_000 in partials
        process = start(p, server)
        assert process.wait() == 0, process.stderr.read()
        assert any(request.start == 300_000 for request in server.requests)
    chosen = read_chosen(p)
    assert contents(p.local_dir) == {path: (published / path).read_bytes() for path in chosen.files}
