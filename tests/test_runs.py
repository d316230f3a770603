"""Which stage is stale and why: parameters that it reads, and raw files evicted or lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from avomni_lib import files
from avomni_lib.dataset.download import download
from avomni_lib.dataset.select import evicted
from avomni_lib.notebook.run import pipeline, runs
from avomni_lib.params import Params
from tests import changed_params, evicting_run, local_hub
from tests.evicting_run import FILES_PER_CHUNK, NUM_CHUNKS, REPO

NUM_FILES = FILES_PER_CHUNK * NUM_CHUNKS
CHAIN = ("01_audit", "02_download", "03_etl", "04_tiles")
CHAIN_STAGES = [runs.BY_NAME[name] for name in CHAIN]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path]:
    """(folder of a run that has all raw files and the cache, folder of one that evicts)."""
    published = evicting_run.write(tmp_path_factory.mktemp("published"))
    folders = tmp_path_factory.mktemp("kept"), tmp_path_factory.mktemp("evicted")
    with local_hub.serve(published, REPO) as served:
        for folder, evict in zip(folders, (False, True), strict=True):
            p = evicting_run.params(folder, evict=evict)
            for name in CHAIN:
                evicting_run.finish(p, name, served)
    return folders


def copied(folder: Path, tmp_path: Path, evict: bool) -> Params:
    """A copy of the run to modify, with the raw files at another absolute path."""
    p = evicting_run.params(tmp_path / "copy", evict=evict)
    shutil.copytree(folder / "raw", p.local_dir)
    shutil.copytree(folder / "test", p.run_dir)
    record = p.local_dir / evicted.SHARED
    if record.exists():
        record.write_text(record.read_text().replace(str(folder), str(tmp_path / "copy")))
    proof = p.run_dir / "01_audit" / runs.RESULT
    result = files.read_json(proof)  # it audited raw files in another folder
    result["params"]["dataset.local_dir"] = str(p.local_dir)
    result["params_digest"] = p.digest(*runs.BY_NAME["01_audit"].reads)
    files.write_json(proof, result)
    return p


def params(folder: Path, evict: bool, changes: dict) -> Params:
    """The parameters of the run, with `changes` (`section.key` -> value) applied."""
    p = evicting_run.params(folder, evict=evict)
    for name, value in changes.items():
        p = changed_params.changed(p, name, value)
    return p


def stale(p: Params) -> list[str]:
    """The stages that are not done."""
    return [name for name in CHAIN if not runs.state(p, name).done]


def test_seed_matters_only_when_clips_are_sampled(done):
    assert stale(params(done[0], False, {"run.seed": 5})) == []
    drawn = params(done[0], False, {"download.clips.max_clips": 2, "run.seed": 5})
    assert stale(drawn) == list(CHAIN)
    reason = runs.state(drawn, "01_audit").reason
    assert "download.clips.max_clips changed (was " in reason and "run.seed changed" in reason


def test_every_stage_reports_evicted_raw_files(done):
    p = evicting_run.params(done[1])
    assert stale(p) == []
    reasons = {name: runs.state(p, name).reason for name in CHAIN}
    for name in ("01_audit", "02_download", "04_tiles"):
        assert f"{NUM_FILES} raw files evicted" in reasons[name]
    assert "the cache holds what is needed" in reasons["02_download"]
    assert "it reads the cache" in reasons["04_tiles"]


def test_size_budget_does_not_limit_the_choice_under_eviction(done):
    assert stale(params(done[1], True, {"download.target_size_gb": 2.0})) == []


def test_enabling_eviction_later_only_deletes_raw_files(done, tmp_path):
    no_eviction = copied(done[0], tmp_path, evict=False)
    assert stale(no_eviction) == []
    before = runs.read_result(no_eviction, "03_etl")["digest"]
    p = evicting_run.params(tmp_path / "copy")
    assert stale(p) == ["03_etl"]
    assert "download.evict_raw changed" in runs.state(p, "03_etl").reason
    actions = {
        outcome.stage: outcome.action for outcome in pipeline.run(p, CHAIN_STAGES, dry_run=True)
    }
    assert [name for name, action in actions.items() if action == "would run"] == ["03_etl"]
    built = evicting_run.finish(p, "03_etl")  # no hub: nothing is fetched
    assert built.figures["num_clips_read"] == 0 and built.cache.digest == before
    assert stale(p) == [] and stale(no_eviction) == [], "and told not to again, it asks for nothing"
    assert f"{NUM_FILES} raw files evicted" in runs.state(no_eviction, "02_download").reason


def test_choice_cut_by_the_budget_is_stale_under_eviction(done, tmp_path):
    no_eviction = copied(done[0], tmp_path, evict=False)
    changed = {"download.target_chunks": 9}
    for name in ("01_audit", "02_download"):
        larger = params(tmp_path / "copy", False, changed)
        stage = runs.start(larger, name)
        digest = download.read_chosen(no_eviction).digest if name == "02_download" else "the same"
        stage.finish({}, [], digest)
    assert stale(params(tmp_path / "copy", False, changed)) == []
    stale_stages = stale(params(tmp_path / "copy", True, changed))
    assert stale_stages == list(CHAIN)


def test_download_is_done_before_the_etl_under_eviction(done, tmp_path):
    p = copied(done[1], tmp_path, evict=True)
    shutil.rmtree(p.cache_dir)
    (p.run_dir / "03_etl" / runs.RESULT).unlink()
    evicted.path_of(p).unlink()
    download_state, etl_state = runs.state(p, "02_download"), runs.state(p, "03_etl")
    assert download_state.done
    assert f"03_etl fetches {NUM_FILES} raw files, chunk after chunk" in download_state.reason
    assert etl_state.reason == "not run yet"


def test_unfinished_etl_reports_the_cached_chunks(done, tmp_path):
    p = copied(done[1], tmp_path, evict=True)
    shutil.rmtree(p.cache_dir / "shard_0003")
    (p.run_dir / "03_etl" / runs.RESULT).unlink()
    reason = runs.state(p, "03_etl").reason
    assert reason.startswith("not run yet; 3 of 4 chunks in the cache; ")
    assert f"{NUM_FILES} raw files evicted" in reason


def test_cache_lost_after_eviction_makes_the_etl_stale(done, tmp_path):
    p = copied(done[1], tmp_path, evict=True)
    shutil.rmtree(p.cache_dir / "shard_0001")
    assert stale(p) == ["03_etl", "04_tiles"]
    assert "shard_0001" in runs.state(p, "03_etl").reason
    assert "stale because 03_etl is: cache/shard_0001" in runs.state(p, "04_tiles").reason
    assert "what the cache lacks is fetched again" in runs.state(p, "03_etl").reason
    assert "03_etl fetches what the cache lacks" in runs.state(p, "02_download").reason
    no_eviction = evicting_run.params(tmp_path / "copy", evict=False)
    assert stale(no_eviction) == ["02_download", "03_etl", "04_tiles"], (
        "without eviction 02 fetches"
    )
    assert f"{NUM_FILES} raw files gone or cut" in runs.state(no_eviction, "02_download").reason


def test_deleted_raw_files_are_reported_as_gone(done, tmp_path):
    p = copied(done[0], tmp_path, evict=False)
    for path in sorted(p.local_dir.rglob("camera_*.chunk_0000.zip"))[:2]:
        path.unlink()
    reason = runs.state(p, "02_download").reason
    assert "2 raw files gone, the cache holds what is needed" in reason and stale(p) == []


def test_lost_metadata_makes_02_stale_before_the_etl(done, tmp_path):
    p = copied(done[1], tmp_path, evict=True)
    (p.run_dir / "03_etl" / runs.RESULT).unlink()
    (p.local_dir / "clip_index.parquet").unlink()
    assert stale(p) == ["02_download", "03_etl", "04_tiles"]
    assert "clip_index.parquet" in runs.state(p, "02_download").reason
