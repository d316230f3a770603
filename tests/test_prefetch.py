"""Builds that evict raw files stay within the disk budget and write the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.select import evicted
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build, disk_budget
from avomni_lib.files import PROJECT_ROOT
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from tests import local_hub
from tests.evicting_run import (
    CAMERAS,
    CLIPS_PER_CHUNK,
    FILES_PER_CHUNK,
    NUM_CHUNKS,
    PADDING,
    REPO,
    chosen,
    content,
    hub_of,
    needed_gb,
    params,
    raw_files,
)
from tests.published_set import chunk_path, clip_id_of, read_zip, write_zip


@pytest.fixture(scope="module")
def undisturbed(large_set, tmp_path_factory) -> tuple[build.Built, dict[str, bytes], Params]:
    """The same chunks with all raw files kept."""
    with local_hub.serve(large_set, REPO) as served:
        p = chosen(params(tmp_path_factory.mktemp("undisturbed"), evict=False), served)
    return build.build(p), content(p), p


class Process:
    """`build` in a separate process, with its workers."""

    def __init__(self, p: Params, served: local_hub.LocalHub):
        code = (
            "import json, sys\n"
            "from avomni_lib.dataset.download.hub import Hub\n"
            "from avomni_lib.errors import AvomniError\n"
            "from avomni_lib.etl.run import build\n"
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
        self.seen: dict[int, psutil.Process] = {}
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
        """Signal the process and all workers, also those whose parent has ended since."""
        self.seen |= {process.pid: process for process in self.family()}
        for process in self.seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> bool:
        """Stop the process and its workers; whether all of their threads have stopped.

        A thread that starts a program stops only once the program runs, which is then stopped too.
        """
        for _ in range(50):
            self.signal(signal.SIGSTOP)  # also workers started in the meantime
            if all(state in "TtZX" for process in self.family() for state in states_of(process)):
                return True
            time.sleep(0.001)
        return False

    def kill_after(self, seconds: float) -> bool:
        """Send SIGKILL to the process, not to its workers; whether it was still running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
        was_running = self.is_running()
        self.popen.kill()
        self.popen.communicate()
        return was_running


def states_of(process: psutil.Process) -> list[str]:
    """The states of the process's threads, one letter each as in proc(5)."""
    states = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{process.pid}/task").iterdir():
            states.append(path.joinpath("stat").read_text().rpartition(")")[2].split()[0])
    return states


def bytes_below(*folders: Path) -> int:
    """Bytes of all files below the folders; nothing may write meanwhile."""
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
        is_still = process.stop()
        raw, cache = (bytes_below(p.local_dir), bytes_below(p.cache_dir)) if is_still else (0, 0)
        process.signal(signal.SIGCONT)
        most, most_raw, samples = max(most, raw + cache), max(most_raw, raw), samples + is_still
        time.sleep(0.015)
    return most, most_raw, samples


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_data_set_larger_than_the_budget_is_built_within_it(
    large_set, served, undisturbed, tmp_path, storage
):
    how = {"storage": storage, "num_workers": 2}
    p = chosen(params(tmp_path, processing=how), served)
    p = chosen(params(tmp_path, needed_gb(p), processing=how), served)
    limit = p.download.target_size_gb * 1e9
    assert read_chosen(p).num_bytes > 1.5 * limit, "the whole data set must exceed the budget"
    process = Process(p, served)
    most, _, samples = sampled_peak(process, p)
    stdout, stderr = process.popen.communicate()
    assert process.popen.returncode == 0, stderr
    figures = json.loads(stdout)
    assert samples > 30
    assert 0.5 * limit < most <= figures["peak_bytes"] <= limit
    assert figures["num_chunks"] == NUM_CHUNKS and figures["num_damaged"] == 0
    assert raw_files(p) == []
    files_of_chunks = [path for path in read_chosen(p).files if ".chunk_" in path]
    assert sorted(evicted.read_evicted(p)) == sorted(files_of_chunks)
    assert figures["bytes_fetched"] == sum(
        read_chosen(p).files[path]["size"] for path in files_of_chunks
    )
    if storage == "raw":
        assert content(p) == undisturbed[1], "equal to a build that keeps all raw files"
    else:
        kept = chosen(
            params(tmp_path / "kept", evict=False, processing={"storage": "jpeg"}), served
        )
        assert build.build(kept).cache.digest == figures["digest"]


def test_budget_below_one_chunk_is_refused_before_any_download(served, tmp_path):
    p = chosen(params(tmp_path), served)
    least = needed_gb(p)
    before = len(served.requests)
    small = params(tmp_path, least * 0.97)
    with pytest.raises(AvomniError, match=f"3 of {NUM_CHUNKS} chunks go through") as caught:
        build.build(small, hub=hub_of(served))
    assert len(served.requests) == before
    for way in ("download.target_chunks: 3", f"{least} or more", "storage: jpeg", "tile_width"):
        assert way in caught.value.fix
    assert any("3 of 4 chunks go through" in warning for warning in build.plan(small).warnings)
    assert build.plan(small).figures["num_chunks_fitting"] == 3
    fitting = build.plan(params(tmp_path, least))
    assert not [warning for warning in fitting.warnings if "chunks go through" in warning]
    assert fitting.figures["peak_bytes"] <= least * 1e9
    fewer = params(tmp_path, least * 0.97, download={"target_chunks": 3})
    built = build.build(chosen(fewer, served), hub=hub_of(served))
    assert [row["chunk"] for row in built.chunks] == [0, 1, 2]


def test_next_chunk_is_downloaded_while_clips_are_read(served, undisturbed, tmp_path):
    p = chosen(params(tmp_path), served)
    a_chunk = len(CAMERAS) * PADDING
    tight, roomy = needed_gb(p), needed_gb(p) + 1.05 * a_chunk / 1e9
    most_raw = []
    for gb in (tight, roomy):
        p = chosen(params(tmp_path / f"{gb}", gb), served)
        built = build.build(p, hub=hub_of(served))
        assert built.figures["peak_bytes"] <= gb * 1e9
        assert content(p) == undisturbed[1]
        most_raw.append(max(raw for _, raw, _ in built.moments))
    assert 1 * a_chunk < most_raw[0] < 2 * a_chunk < most_raw[1] < 3 * a_chunk


def test_killed_build_resumes_and_downloads_nothing_twice(large_set, undisturbed, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with local_hub.serve(large_set, REPO, bytes_per_s=6e6) as served:
        p = chosen(params(tmp_path), served)
        p = chosen(params(tmp_path, needed_gb(p) + 0.002), served)
        fetched, kills = {}, 0
        for _ in range(6):
            num_before = len(served.requests)
            process = Process(p, served)
            while process.is_running() and len(served.requests) == num_before:
                time.sleep(0.002)
            # A build takes some seconds after its first request.
            was_running = process.kill_after(moments.uniform(0.0, 1.0))
            kills += was_running
            evicted_paths = evicted.read_evicted(p)
            for path, num in fetched.items():
                assert served.gets(path) == num, f"{path} was evicted and is fetched again"
            assert bytes_below(p.local_dir, p.cache_dir) <= p.download.target_size_gb * 1e9
            fetched = {path: served.gets(path) for path in evicted_paths}
            if not was_running:
                break
        build.build(p, hub=hub_of(served))
        for path, num in fetched.items():
            assert served.gets(path) == num
        wanted = {path: file for path, file in read_chosen(p).files.items() if ".chunk_" in path}
        sent = sum(served.bytes_of(path) for path in wanted)
    assert kills
    # Only bytes that a killed transfer had not written are sent again.
    assert sent < 1.2 * sum(file["size"] for file in wanted.values())
    assert content(p) == undisturbed[1] and raw_files(p) == []
    assert set(evicted.read_evicted(p)) == set(wanted)


def fetched_since(served: local_hub.LocalHub, before: int) -> set[str]:
    return {request.path for request in served.requests[before:] if ".chunk_" in request.path}


def test_leftover_raw_files_are_evicted_and_only_missing_ones_fetched(
    served, undisturbed, large_set, tmp_path
):
    kept = chosen(params(tmp_path, evict=False), served)
    before = build.build(kept)
    raw_paths = raw_files(kept)
    assert before.figures["bytes_evicted"] == 0 and len(raw_paths) == FILES_PER_CHUNK * NUM_CHUNKS
    p, num = params(tmp_path), len(served.requests)
    after = build.build(p)
    assert after.cache.digest == before.cache.digest and after.figures["num_clips_read"] == 0
    assert raw_files(p) == [] and len(evicted.read_evicted(p)) == len(raw_paths)
    chunk_files = {k: file for k, file in read_chosen(p).files.items() if ".chunk_" in k}
    assert after.figures["bytes_evicted"] == sum(file["size"] for file in chunk_files.values())
    # The state after a kill between writing a shard and evicting, with and without a record.
    for is_recorded in (True, False):
        for path in chunk_files:
            shutil.copy(large_set / path, p.local_dir / path)
        if not is_recorded:
            evicted.path_of(p).unlink()
        built = build.build(p, hub=hub_of(served))
        assert built.figures["num_clips_read"] == 0 and raw_files(p) == []
        assert set(evicted.read_evicted(p)) == set(chunk_files)
    assert build.build(kept).figures["num_clips_read"] == 0, "switching back reads no clip either"
    assert len(served.requests) == num
    shutil.rmtree(p.cache_dir / "shard_0002")
    built = build.build(p, hub=hub_of(served))
    fetched = fetched_since(served, num)
    assert len(fetched) == FILES_PER_CHUNK and all("chunk_0002" in path for path in fetched)
    assert built.figures["num_clips_read"] == CLIPS_PER_CHUNK
    assert content(p) == undisturbed[1] and raw_files(p) == []


def test_failed_download_is_reported_and_the_next_run_resumes(served, undisturbed, tmp_path):
    p = chosen(params(tmp_path), served)
    lost = chunk_path(CAMERAS[1], 2)
    served.faults.vanished.add(lost)
    with pytest.raises(AvomniError) as caught:
        build.build(p, hub=hub_of(served))
    assert lost in str(caught.value) and caught.value.fix
    for chunk in (0, 1):
        assert (p.cache_dir / f"shard_{chunk:04d}" / "header.json").exists()
    assert len(evicted.read_evicted(p)) == 2 * FILES_PER_CHUNK, (
        "complete chunks are in the cache and evicted"
    )
    served.faults.vanished.clear()
    before = len(served.requests)
    built = build.build(p, hub=hub_of(served))
    fetched = fetched_since(served, before)
    assert not [path for path in fetched if "chunk_0000" in path or "chunk_0001" in path]
    assert built.figures["num_clips_read"] == 2 * CLIPS_PER_CHUNK
    assert content(p) == undisturbed[1]


def test_ctrl_c_ends_thread_and_workers_and_the_next_run_resumes(large_set, undisturbed, tmp_path):
    with local_hub.serve(large_set, REPO, bytes_per_s=1e6) as slow:
        p = chosen(params(tmp_path), slow)
        process = Process(p, slow)
        while process.is_running() and not list((p.local_dir / transfer.PARTIALS).glob("*")):
            time.sleep(0.01)
        family = process.family()
        process.popen.send_signal(signal.SIGINT)
        _, stderr = process.popen.communicate(timeout=60)
    assert process.popen.returncode != 0 and "KeyboardInterrupt" in stderr
    assert not psutil.wait_procs(family, timeout=10)[1]
    with local_hub.serve(large_set, REPO) as served:
        build.build(p, hub=hub_of(served))
    assert content(p) == undisturbed[1]


def spoil(folder: Path, number: int) -> None:
    """Remove a clip's video from its zip."""
    path = folder / chunk_path(CAMERAS[0], number // CLIPS_PER_CHUNK)
    members = read_zip(path)
    del members[f"{clip_id_of(number)}.{CAMERAS[0]}.mp4"]
    write_zip(path, members)


def test_damaged_clip_of_an_evicted_chunk_is_not_downloaded_again(large_set, tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(large_set, folder)
    for number in (1, 3, 4, 5):  # one of chunk 0, all of chunk 1
        spoil(folder, number)
    with local_hub.serve(folder, REPO) as served:
        p = chosen(params(tmp_path), served)
        served.faults.vanished.add(chunk_path(CAMERAS[1], 3))
        with pytest.raises(AvomniError):
            build.build(p, hub=hub_of(served))
        assert len(evicted.read_evicted(p)) == 3 * FILES_PER_CHUNK, (
            "a chunk with damaged clips is evicted"
        )
        served.faults.vanished.clear()
        before = len(served.requests)
        built = build.build(p, hub=hub_of(served))
        fetched = fetched_since(served, before)
        assert fetched and all("chunk_0003" in path for path in fetched)
        assert [row["clip_id"] for row in built.damaged] == [clip_id_of(n) for n in (1, 3, 4, 5)]
        assert all("no member" in row["reason"] for row in built.damaged)
        again = build.build(p, hub=hub_of(served))
        assert again.clips == built.clips and again.figures["bytes_fetched"] == 0
        kept = chosen(params(tmp_path / "kept", evict=False), served)
        assert build.build(kept).clips == built.clips
        assert content(kept) == content(p)


def test_existing_raw_files_are_read_first_and_damaged_ones_fetched(
    large_set, served, undisturbed, tmp_path
):
    p = chosen(params(tmp_path), served)
    p = chosen(params(tmp_path, needed_gb(p) + 1.1 * len(CAMERAS) * PADDING / 1e9), served)
    existing = [path for path in read_chosen(p).files if "chunk_0003" in path]
    for path in existing:
        (p.local_dir / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(large_set / path, p.local_dir / path)
    damaged = existing.pop()
    with open(p.local_dir / damaged, "r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))
    process = Process(p, served)
    most, _, _ = sampled_peak(process, p)
    _, stderr = process.popen.communicate()
    assert process.popen.returncode == 0, stderr
    assert most <= p.download.target_size_gb * 1e9
    assert not any(served.gets(path) for path in existing) and served.gets(damaged)
    assert content(p) == undisturbed[1], "the order of the chunks does not matter"


def test_raw_files_removed_during_a_build_make_clips_lost(served, undisturbed, tmp_path):
    """Another run that evicts in the same dataset.local_dir may remove them."""
    p = chosen(params(tmp_path), served)

    class Remover(Bar):
        """A progress bar that removes raw files after the first clip."""

        def update(self, amount: float = 1, note: str = "") -> None:
            for path in p.local_dir.rglob(f"{CAMERAS[0]}.chunk_0000.zip"):
                path.unlink()

    built = build.build(p, Remover, hub=hub_of(served))
    lost = [row["clip_id"] for row in built.lost]
    # The second clip is being read meanwhile and may hold its files open already.
    assert lost[-1:] == [clip_id_of(2)] and set(lost) <= {clip_id_of(1), clip_id_of(2)}
    assert not built.damaged
    for row in built.lost:
        assert f"raw files of chunk {row['chunk']}, such as" in row["reason"]
        assert "went away while it was read" in row["reason"]
        assert f"{CAMERAS[0]}.chunk_{row['chunk']:04d}.zip" in row["reason"]
    assert not build.build(p, hub=hub_of(served)).lost
    assert content(p) == undisturbed[1] and raw_files(p) == []


def test_clips_longer_than_planned_stop_the_build_within_the_budget(served, tmp_path):
    """Clips are longer than `clip_seconds` in the parameters."""
    p = params(tmp_path)
    world = p.dataset.world.model_copy(update={"clip_seconds": 1.0})
    short = p.model_copy(update={"dataset": p.dataset.model_copy(update={"world": world})})
    chosen(short, served)
    gb = needed_gb(short)
    short = short.model_copy(
        update={"download": short.download.model_copy(update={"target_size_gb": gb})}
    )
    process = Process(short, served)
    most, _, _ = sampled_peak(process, short)
    _, stderr = process.popen.communicate()
    assert process.popen.returncode == 1
    assert f"of {NUM_CHUNKS} chunks go through with a budget of" in stderr
    assert most <= gb * 1e9
    with pytest.raises(AvomniError, match="chunks go through") as caught:
        build.build(short, hub=hub_of(served))
    enough = float(caught.value.fix.split("target_size_gb: ")[1].split(" ")[0])
    assert enough > gb
    p = params(tmp_path, enough)
    assert build.build(p, hub=hub_of(served)).figures["num_chunks"] == NUM_CHUNKS


def test_changed_source_is_reported_before_any_download(large_set, tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(large_set, folder)
    with local_hub.serve(folder, REPO) as served:
        p = chosen(params(tmp_path), served)
        changed = chunk_path(CAMERAS[0], 1)
        served.faults.sizes[changed] = 17
        with pytest.raises(AvomniError, match=f"{changed} is another file at the source"):
            build.build(p, hub=hub_of(served))
        assert not any(served.gets(path) for path in read_chosen(p).files if ".chunk_" in path)


def test_build_without_a_hub_says_what_to_do(served, tmp_path):
    p = chosen(params(tmp_path), served)
    with pytest.raises(AvomniError, match="4 chunks are not on the disk, and no hub") as caught:
        build.build(p)
    assert "03_etl" in caught.value.fix


def test_disk_space_is_checked_on_the_disks_of_raw_files_and_cache(served, tmp_path):
    """/dev/shm is a separate file system on Linux."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        p = params(tmp_path, gb=1e8, processing={"tile_width": 10**6, "tile_height": 10**6})
        dataset = p.dataset.model_copy(update={"local_dir": other})
        p = chosen(p.model_copy(update={"dataset": dataset}), served)
        assert Path(other).stat().st_dev != tmp_path.stat().st_dev
        with pytest.raises(AvomniError, match="no room on the disk for the cache: ") as caught:
            build.build(p, hub=hub_of(served))
        assert str(p.cache_dir) in caught.value.where


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_measured_shard_sizes_do_not_exceed_the_planned_ones(tmp_path, storage):
    """Measured sizes up to the forecast do not raise a chunk's load; larger ones do."""
    p = params(tmp_path, processing={"storage": storage})

    def load(measured: float) -> disk_budget.Load:
        return disk_budget.load_of(p, 0, 1, 0, 50, disk_budget.most_seconds(p), measured)

    clip_bytes = load(0).stays / 50
    for share in (0.5, 0.9, 0.999):
        smaller = load(share * clip_bytes)
        assert smaller.cache <= load(0).cache and smaller.stays <= load(0).stays
    larger = load(9 * clip_bytes)
    assert larger.cache > load(0).cache and larger.stays > load(0).stays
