"""The budget holds at every moment, whatever happens on the way, and the bytes are the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from avomni_lib.dataset import download, evicted, rig
from avomni_lib.dataset.chosen import read_chosen
from avomni_lib.dataset.hub import Hub
from avomni_lib.errors import AvomniError
from avomni_lib.etl import build
from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params
from avomni_lib.world import local_hub
from tests.published_set import (
    chunk_path,
    write_published_set,
)

REPO = "owner/set"
NUM_CHUNKS, CLIPS_PER_CHUNK, SECONDS = 4, 3, 1.5
CAMERAS = [camera.name for camera in rig.grid("4-cam").cameras]
PADDING = 1_500_000


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Chunks whose raw files are larger than what becomes of them, as the real ones are."""
    folder = tmp_path_factory.mktemp("published")
    write_published_set(folder, NUM_CHUNKS, CLIPS_PER_CHUNK, SECONDS)
    noise = random.Random(0)
    for chunk in range(NUM_CHUNKS):
        for camera in CAMERAS:
            with zipfile.ZipFile(folder / chunk_path(camera, chunk), "a") as file:
                file.writestr("padding.bin", noise.randbytes(PADDING))
    return folder


@pytest.fixture
def served(published) -> Iterator[local_hub.LocalHub]:
    with local_hub.serve(published, REPO) as hub:
        yield hub


def hub_of(served: local_hub.LocalHub) -> Hub:
    return Hub(REPO, revision=served.commit, endpoint=served.endpoint)


def params(folder: Path, gb: float = 1.0, evict: bool = True, **sections) -> Params:
    """A run of all chunks; `dataset.source: world` tells how long a clip is."""
    return Params.from_values(
        {
            "run": {"name": "test", "outputs_dir": str(folder)},
            "dataset": {
                "source": "world",
                "repo_id": REPO,
                "local_dir": str(folder / "raw"),
                "world": {"clip_seconds": SECONDS, "clips_per_chunk": CLIPS_PER_CHUNK},
            },
            "download": {
                "target_chunks": NUM_CHUNKS,
                "target_size_gb": gb,
                "evict_raw": evict,
                **sections.get("download", {}),
            },
            "processing": {
                "sequence_length": 4,
                "stride": 2,
                "sample_hz": 10.0,
                "tile_width": 64,
                "tile_height": 48,
                "fit": "stretch",
                "horizon_s": 1.0,
                "num_workers": 2,
                **sections.get("processing", {}),
            },
        }
    )


def chosen(p: Params, served: local_hub.LocalHub) -> Params:
    """The same run after 02_download."""
    download.fetch(p, hub_of(served))
    return p


def content(p: Params) -> dict[str, bytes]:
    return {
        str(path.relative_to(p.cache_dir)): path.read_bytes()
        for path in sorted(p.cache_dir.rglob("*"))
        if path.is_file()
    }


def raw_files(p: Params) -> list[str]:
    return sorted(
        path.name for path in p.local_dir.rglob("*.chunk_*") if ".avomni" not in path.parts
    )


@pytest.fixture(scope="module")
def undisturbed(published, tmp_path_factory) -> tuple[build.Built, dict[str, bytes], Params]:
    """The same chunks with all raw files kept."""
    with local_hub.serve(published, REPO) as served:
        p = chosen(params(tmp_path_factory.mktemp("undisturbed"), evict=False), served)
    return build.build(p), content(p), p


class Process:
    """`build` in a process of its own, with its workers."""

    def __init__(self, p: Params, served: local_hub.LocalHub):
        code = (
            "import json, sys\n"
            "from avomni_lib.dataset.hub import Hub\n"
            "from avomni_lib.errors import AvomniError\n"
            "from avomni_lib.etl import build\n"
            "from avomni_lib.params import Params\n"
            "values, repo, commit, endpoint = sys.argv[1:]\n"
            "p = Params.from_values(json.loads(values))\n"
            "try:\n"
            "    built = build.build(p, hub=Hub(repo, revision=commit, endpoint=endpoint))\n"
            "except AvomniError as error:\n"
            "    sys.exit(str(error))\n"
            "print(json.dumps(built.figures))\n"
        )
        arguments = [json.dumps(p.values()), REPO, served.commit, served.endpoint]
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=PROJECT_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def is_running(self) -> bool:
        return self.popen.poll() is None

    def family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self.popen.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: int) -> None:
        for process in self.family():
            with_pid(process, number)

    def kill_when(self, ripe: Callable[[], bool]) -> bool:
        """Kill -9 of the process alone; its workers end by themselves. Whether it still ran."""
        while self.is_running() and not ripe():
            time.sleep(0.002)
        was_running = self.is_running()
        self.popen.kill()
        self.popen.communicate()
        return was_running


def with_pid(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def bytes_below(*folders: Path) -> int:
    """Bytes of all files, each once; for a time in which nobody writes."""
    total = 0
    for folder in folders:
        for where, _, names in os.walk(folder):
            total += sum(os.stat(Path(where, name)).st_size for name in names)
    return total


def sampled_peak(process: Process, p: Params) -> tuple[int, int, int]:
    """(most bytes of raw files and cache together, of raw files alone, samples taken).

    The process and its workers are stopped for each sample: while files are renamed and removed, a
    walk over them would count some twice.
    """
    most, most_raw, samples = 0, 0, 0
    while process.is_running():
        process.signal(signal.SIGSTOP)
        try:
            raw, cache = bytes_below(p.local_dir), bytes_below(p.cache_dir)
        finally:
            process.signal(signal.SIGCONT)
        most, most_raw, samples = max(most, raw + cache), max(most_raw, raw), samples + 1
        time.sleep(0.004)
    return most, most_raw, samples


def needed_gb(p: Params) -> float:
    """The least budget that goes through, as the refusal of a smaller one says it."""
    small = p.model_copy(
        update={"download": p.download.model_copy(update={"target_size_gb": 1e-6})}
    )
    with pytest.raises(AvomniError) as caught:
        build.build(small)
    return float(caught.value.fix.split("target_size_gb: ")[1].split(" ")[0])


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_a_larger_data_set_goes_through_and_the_budget_holds_at_every_moment(
    published, served, undisturbed, tmp_path, storage
):
    p = chosen(params(tmp_path, processing={"storage": storage}), served)
    p = chosen(params(tmp_path, needed_gb(p), processing={"storage": storage}), served)
    limit = p.download.target_size_gb * 1e9
    assert read_chosen(p).num_bytes > 1.5 * limit, "it does not fit as a whole"
    process = Process(p, served)
    most, _, samples = sampled_peak(process, p)
    told, wrong = process.popen.communicate()
    assert process.popen.returncode == 0, wrong
    figures = json.loads(told)
    assert samples > 50
    assert 0.5 * limit < most <= figures["peak_bytes"] <= limit
    assert figures["num_chunks"] == NUM_CHUNKS and figures["num_damaged"] == 0
    assert raw_files(p) == []
    files_of_chunks = [path for path in read_chosen(p).files if ".chunk_" in path]
    assert sorted(evicted.read_evicted(p)) == sorted(files_of_chunks)
    assert figures["bytes_fetched"] == sum(
        read_chosen(p).files[path]["size"] for path in files_of_chunks
    )
    if storage == "raw":
        assert content(p) == undisturbed[1], "as with all raw files kept"
    else:
        kept = chosen(
            params(tmp_path / "kept", evict=False, processing={"storage": "jpeg"}), served
        )
        assert build.build(kept).cache.digest == figures["digest"]
