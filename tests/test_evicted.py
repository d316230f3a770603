"""Eviction of raw files: its record, and files that another run still needs."""

from __future__ import annotations

import datetime
import shutil
import time
from pathlib import Path

import pytest

from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.select import evicted, manifest
from avomni_lib.dataset.select.manifest import Chosen, path_of, read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import evicting_run, local_hub
from tests.evicting_run import FILES_PER_CHUNK, NUM_CHUNKS, REPO, chosen, hub_of, raw_files
from tests.hub_run import FETCH, python

TODAY = datetime.date.today().isoformat()
PATHS = ("camera/a.zip", "camera/b.zip", "labels/c.zip")


@pytest.fixture
def p(tmp_path: Path) -> Params:
    p = Params.from_values(
        {
            "run": {"name": "test", "outputs_dir": str(tmp_path)},
            "dataset": {"local_dir": str(tmp_path / "raw")},
        }
    )
    choose(p, "1")
    for path in PATHS:
        (p.local_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (p.local_dir / path).write_bytes(b"12345")
    return p


def choose(p: Params, sha256: str) -> None:
    listed = {path: {"size": 5, "sha256": sha256} for path in PATHS}
    manifest.write_chosen(p, Chosen("owner/name", "0" * 40, (0,), {"train": ("x",)}, listed))


def test_evicted_files_are_removed_and_recorded_with_their_date(p: Params):
    assert evicted.read_evicted(p) == {}
    assert evicted.evict(p, PATHS[:2]) == 10
    assert evicted.read_evicted(p) == dict.fromkeys(PATHS[:2], TODAY)
    assert [path.name for path in p.local_dir.rglob("*.zip")] == ["c.zip"]
    assert evicted.evict(p, PATHS) == 5, "what is gone already is passed over"
    assert evicted.read_evicted(p) == dict.fromkeys(PATHS, TODAY)
    # A file that exists, as after a kill between record and removal, is not evicted.
    (p.local_dir / PATHS[0]).write_bytes(b"12345")
    assert list(evicted.read_evicted(p)) == list(PATHS[1:])
    (p.local_dir / "other.zip").write_bytes(b"of another run")
    with pytest.raises(AvomniError, match="not this run's to remove, such as other.zip"):
        evicted.evict(p, [*PATHS, "other.zip"])
    assert len(list(p.local_dir.rglob("*.zip"))) == 2
    choose(p, "2")
    assert evicted.read_evicted(p) == {}, "another content of the same name was never evicted"


def test_files_are_recorded_before_they_are_removed(p: Params):
    """The record cannot be written, because a folder has its name."""
    evicted.path_of(p).mkdir()
    with pytest.raises(OSError):
        evicted.evict(p, PATHS)
    assert len(list(p.local_dir.rglob("*.zip"))) == 3


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "{"])
def test_unreadable_eviction_record_is_replaced(p: Params, text: str):
    evicted.evict(p, PATHS[:1])
    evicted.path_of(p).write_text(text)
    assert evicted.read_evicted(p) == {}
    evicted.evict(p, PATHS)
    assert list(evicted.read_evicted(p)) == list(PATHS[1:])


# --- runs that share raw files -----------------------------------------------------------------

NUM_FILES = FILES_PER_CHUNK * NUM_CHUNKS


def run_of(
    folder: Path, name: str, evict: bool, outputs: str = "outputs", **download_values: object
) -> Params:
    """Parameters of a run of that name; all runs share one folder of raw files."""
    values = evicting_run.params(folder, evict=evict).values()
    values["run"] = {**values["run"], "name": name, "outputs_dir": str(folder / outputs)}
    values["download"] = {**values["download"], **download_values}
    return Params.from_values(values)


def refused(p: Params, served: local_hub.LocalHub) -> AvomniError:
    before = len(served.requests), raw_files(p)
    with pytest.raises(AvomniError, match="download.evict_raw would remove") as caught:
        build.build(p, hub=hub_of(served))
    assert (len(served.requests), raw_files(p)) == before, "nothing was fetched or removed"
    assert "download.evict_raw would remove" in " ".join(build.plan(p).warnings)
    return caught.value


@pytest.mark.parametrize(("outputs", "evicts"), [("outputs", True), ("elsewhere", False)])
def test_files_chosen_by_another_run_are_not_evicted_until_read(served, tmp_path, outputs, evicts):
    p = chosen(run_of(tmp_path, "one", True), served)
    other = chosen(run_of(tmp_path, "other", evicts, outputs), served)
    error = refused(p, served)
    assert f"{NUM_FILES} raw files" in error.what and str(other.run_dir) in error.what
    assert error.where == str(p.local_dir)
    ways = ("03_etl of that run", "dataset.local_dir of its own", "download.evict_shared: true")
    assert all(way in error.fix for way in ways)
    if evicts:
        assert str(p.run_dir) in refused(other, served).what, "nor the other way round"
        shutil.rmtree(other.run_dir)
    else:
        build.build(other)
    assert build.build(p, hub=hub_of(served)).figures["num_clips"] > 0
    assert raw_files(p) == []


def test_unaffected_runs_do_not_block_eviction(served, tmp_path):
    p = chosen(run_of(tmp_path, "one", True, chunks=[0, 1]), served)
    chosen(run_of(tmp_path, "others", False, chunks=[2, 3]), served)
    deleted = chosen(run_of(tmp_path, "gone", False), served)
    shutil.rmtree(deleted.run_dir)
    apart = evicting_run.params(tmp_path / "own", evict=False).values()
    apart["run"] = {**apart["run"], "name": "apart", "outputs_dir": str(tmp_path / "outputs")}
    chosen(Params.from_values(apart), served)
    broken = p.local_dir / ".avomni" / "users" / "broken.json"
    broken.write_text("{")
    build.build(p, hub=hub_of(served))
    remaining = raw_files(p)
    assert remaining and all("chunk_0002" in name or "chunk_0003" in name for name in remaining)


def test_run_with_a_changed_choice_blocks_eviction_again(served, tmp_path):
    p = chosen(run_of(tmp_path, "one", True, chunks=[0, 1]), served)
    other = chosen(run_of(tmp_path, "other", False, chunks=[0]), served)
    build.build(other)
    chosen(run_of(tmp_path, "other", False, chunks=[0, 1]), served)
    assert str(other.run_dir) in refused(p, served).what
    shutil.rmtree(other.cache_dir)
    chosen(other, served)
    assert f"{FILES_PER_CHUNK} raw files" in refused(p, served).what, "its cache is gone"


def test_run_killed_while_fetching_blocks_eviction(large_set, served, tmp_path):
    """The killed run has a server of its own, which may log its requests after the kill."""
    with local_hub.serve(large_set, REPO, bytes_per_s=2e6) as slow:
        p = chosen(run_of(tmp_path, "one", True), served)
        other = run_of(tmp_path, "other", False, "elsewhere")
        process = python(FETCH, other.model_dump_json(), slow.commit, slow.endpoint)
        while process.poll() is None and not raw_files(p):
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()
        process.wait()
        assert str(other.run_dir) in refused(p, served).what


def test_run_started_during_eviction_keeps_its_files(served, tmp_path):
    """The new run begins to fetch when the first chunk of the other run is evicted."""
    p = chosen(run_of(tmp_path, "one", True), served)
    other = run_of(tmp_path, "other", False)

    class Newcomer(build.Bar):
        def update(self, amount: float = 1, note: str = "") -> None:
            if evicted.read_evicted(p) and not path_of(other).exists():
                chosen(other, served)

    build.build(p, Newcomer, hub=hub_of(served))
    assert len(raw_files(p)) == NUM_FILES, "what it fetched, and what the other one had"
    assert not build.build(other).lost
    build.build(p)
    assert raw_files(p) == [], "evicted now that it is read"


def test_evict_shared_removes_files_and_the_other_run_refetches_them(served, tmp_path):
    other = chosen(run_of(tmp_path, "other", False), served)
    for name in ("01_audit", "02_download"):
        runs.start(other, name).finish({}, digest="the same")
    p = chosen(run_of(tmp_path, "one", True, evict_shared=True), served)
    build.build(p, hub=hub_of(served))
    assert raw_files(p) == []
    assert len(evicted.read_evicted(other)) == NUM_FILES
    state = runs.state(other, "02_download")
    assert not state.done
    assert f"{NUM_FILES} raw files evicted by another run, {p.run_dir}" in state.reason
    report = audit.audit(other, hub_of(served))
    assert report.figures["files_by_state"]["evicted"] == NUM_FILES
    [reason] = {row["reason"] for row in report.files if row["state"] == "evicted"}
    assert str(p.run_dir) in reason
    with pytest.raises(AvomniError, match="none of the 12 clips could be read: 12 are") as caught:
        build.build(other)
    assert f"evicted by {p.run_dir}" in caught.value.what and "02_download" in caught.value.fix
    chosen(other, served)
    assert not build.build(other).lost and evicted.read_evicted(other) == {}


def test_finished_run_stays_done_after_another_evicts_its_files(served, tmp_path):
    other = chosen(run_of(tmp_path, "other", False), served)
    for name in ("01_audit", "02_download", "03_etl", "04_tiles"):
        evicting_run.finish(other, name, served)
    p = chosen(run_of(tmp_path, "one", True), served)
    build.build(p, hub=hub_of(served))
    for name in ("01_audit", "02_download", "03_etl", "04_tiles"):
        state = runs.state(other, name)
        assert state.done
        if name != "03_etl":
            assert f"{NUM_FILES} raw files evicted" in state.reason
    assert read_chosen(p).digest == read_chosen(other).digest
