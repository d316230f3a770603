"""The download resumes, verifies, fetches nothing twice and refuses before the first byte."""

import datetime
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from avomni_lib.dataset.catalog import required_features
from avomni_lib.dataset.download.download import (
    fetch,
    fetch_files,
    missing_files,
    plan,
    read_chosen,
)
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.transfer import bytes_there, path_of
from avomni_lib.dataset.download.verified import MANIFEST, Verified, hold
from avomni_lib.dataset.select.evicted import evict
from avomni_lib.dataset.select.forecast import forecast
from avomni_lib.dataset.select.selection import LICENSE_CLAUSE
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.plots import audit as plots
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from tests import local_hub
from tests.hub_run import REPO, contents, params
from tests.local_hub import LocalHub
from tests.published_set import SPLITS, chunk_path, clip_id_of, write_published_set

METADATA = (
    *("features.csv", "clip_index.parquet"),
    *("metadata/feature_presence.parquet", "metadata/data_collection.parquet"),
)
ZIP = chunk_path("camera_front_wide_120fov", 0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published_set(tmp_path_factory.mktemp("published"), seconds=0.2)


@pytest.fixture
def server(published: Path) -> Iterator[LocalHub]:
    with local_hub.serve(published, REPO) as server:
        yield server


@pytest.fixture
def hub(server: LocalHub) -> Hub:
    return hub_of(server)


def hub_of(server: LocalHub) -> Hub:
    return Hub(REPO, server.commit, server.endpoint)


@pytest.fixture
def p(tmp_path: Path) -> Params:
    return params(tmp_path)


def evicting(tmp_path: Path, **download: object) -> Params:
    return params(tmp_path, download={"evict_raw": True} | download)


def wanted(p: Params, chunks: tuple[int, ...] = (0, 1)) -> set[str]:
    return {*METADATA} | {chunk_path(f, chunk) for f in required_features(p) for chunk in chunks}


def gets(server: LocalHub) -> list[str]:
    return [r.path for r in server.requests if r.method == "GET" and not r.path.startswith("api:")]


def damage_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


class Recorded(Bar):
    """Keeps every bar that was opened."""

    bars: list["Recorded"] = []

    def __init__(self, total: float | None = None, unit: str = "", label: str = ""):
        super().__init__(total, unit, label)
        Recorded.bars.append(self)


def test_chosen_files_are_fetched_and_hashed_once(
    server: LocalHub, hub: Hub, p: Params, published: Path, tmp_path: Path
):
    Recorded.bars = []
    first = fetch(p, hub, progress=Recorded)
    (bar,) = Recorded.bars
    assert (bar.unit, bar.total) == ("B", first.figures["bytes_fetched"])
    assert bar.count == bar.total > 0
    source, chosen = contents(published), read_chosen(p)
    assert contents(p.local_dir) == {path: source[path] for path in wanted(p)}
    assert chosen == first.chosen
    assert (chosen.repo_id, chosen.revision, chosen.chunks) == (REPO, server.commit, (0, 1))
    for path, file in chosen.files.items():
        content = (p.local_dir / path).read_bytes()
        assert file == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert chosen.clip_ids == {
        split: tuple(clip_id_of(n) for n in range(6) if SPLITS[n % 3] == split) for split in SPLITS
    }
    assert sorted(gets(server)) == sorted(wanted(p))
    again = fetch(p, hub)
    assert again.figures["num_files_fetched"] == again.figures["num_files_hashed"] == 0
    assert again.chosen == chosen and {row["state"] for row in again.rows} == {"kept"}
    # Another run shares the files.
    other = params(tmp_path, run={"name": "other"}, download={"chunks": [1]})
    assert fetch(other, hub).chosen.chunks == (1,) and read_chosen(p).chunks == (0, 1)
    assert len(gets(server)) == len(wanted(p))
    # Missing and truncated files are detected without hashing.
    assert missing_files(p) == []
    (p.local_dir / ZIP).unlink()
    os.truncate(p.local_dir / "features.csv", 5)
    assert set(missing_files(p)) == {ZIP, "features.csv"}


@pytest.mark.parametrize("damage", [damage_bit, damage_cut, Path.unlink])
@pytest.mark.parametrize("path", [ZIP, "clip_index.parquet"])
def test_only_a_damaged_file_is_fetched_again(
    server: LocalHub, hub: Hub, p: Params, published: Path, damage, path: str
):
    shutil.copytree(published, p.local_dir)
    damage(p.local_dir / path)
    # Files that were put there by hand are hashed and kept.
    assert fetch(p, hub).figures["num_files_hashed"] > 0
    assert gets(server) == [path]
    assert (p.local_dir / path).read_bytes() == (published / path).read_bytes()
    # A lost record costs hashing only.
    (p.local_dir / MANIFEST).write_text("{half")
    assert fetch(p, hub).figures["num_files_fetched"] == 0 and gets(server) == [path]


def test_only_changed_files_of_another_revision_are_fetched(
    hub: Hub, p: Params, published: Path, tmp_path: Path
):
    """The day of a revision's first download stays: the licence's term counts from it."""
    today = datetime.date.today().isoformat()
    old = fetch(p, hub)
    assert old.chosen.chosen_on == old.figures["chosen_on"] == today
    assert Verified(p.local_dir).checked_on(ZIP) == today
    path = p.run_dir / "chosen.json"
    path.write_text(path.read_text().replace(today, "2026-01-31"))
    assert fetch(p, hub).chosen.chosen_on == "2026-01-31"
    newer, changed = shutil.copytree(published, tmp_path / "newer"), chunk_path("egomotion", 1)
    damage_bit(newer / changed)  # same size, other content: only the hash differs
    with local_hub.serve(newer, REPO) as server:
        new = fetch(p, hub_of(server)).chosen
        assert gets(server) == [changed]
    assert new.revision != old.chosen.revision and new.chosen_on == today
    assert {n for n in new.files if new.files[n] != old.chosen.files[n]} == {changed}


def test_license_must_be_accepted_before_any_request(
    server: LocalHub, published: Path, tmp_path: Path
):
    large, real = {"target_size_gb": 100.0}, "nvidia/PhysicalAI-Autonomous-Vehicles"
    p = params(tmp_path, dataset={"source": "hub", "repo_id": real}, download=large)
    hub = Hub(real, None, server.endpoint)
    with pytest.raises(AvomniError, match=r"dataset\.license_accepted is false") as caught:
        fetch(p, hub)
    assert LICENSE_CLAUSE in caught.value.what
    assert "dataset.license_accepted: true" in caught.value.fix
    assert "allowed" not in str(caught.value) and "permitted" not in str(caught.value)
    planned = plan(p, hub)
    assert LICENSE_CLAUSE in planned.warnings[0] and planned.figures["is_estimate"]
    assert planned.figures["num_clips"] == 200 and not p.local_dir.exists()
    # The plan reads metadata that is already in the folder.
    shutil.copytree(published, p.local_dir)
    figures = plan(p, None).figures
    assert (figures["num_chunks"], figures["num_clips"]) == (2, 6) and figures["is_estimate"]
    assert server.requests == []
    accepted = params(tmp_path, dataset={"source": "hub", "license_accepted": True})
    assert fetch(accepted, Hub(REPO, None, server.endpoint)).chosen.revision == server.commit


@pytest.mark.parametrize(
    ("is_evicting", "what"), [(False, "the download"), (True, "the largest chunk")]
)
def test_full_disk_is_reported_before_the_first_large_file(
    server: LocalHub, hub: Hub, tmp_path: Path, is_evicting: bool, what: str
):
    """The server states a size that no disk has."""
    server.faults.sizes[ZIP] = 10**16
    p = params(
        tmp_path,
        dataset={"local_dir": str(tmp_path / "another" / "disk")},
        download={"target_size_gb": 1e9, "evict_raw": is_evicting},
    )
    with pytest.raises(AvomniError, match=f"no room on the disk for {what}: 10000000") as caught:
        fetch(p, hub)
    assert str(p.local_dir) == caught.value.where
    assert set(gets(server)) == set(METADATA) and not (p.run_dir / "chosen.json").exists()
    assert any("no room" in warning for warning in plan(p, hub).warnings)


def test_data_set_of_another_layout_is_refused(tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train.csv").write_text("a,b\n")
    message = r"expected layout: it has no (clip_index\.parquet|features\.csv)"
    served = local_hub.serve(tmp_path / "other", REPO)
    with served as server, pytest.raises(AvomniError, match=message):
        fetch(params(tmp_path), hub_of(server))


def test_folder_source_is_used_as_it_is(published: Path, tmp_path: Path):
    local = tmp_path / "local"
    p = params(tmp_path, dataset={"source": "folder", "local_dir": str(local)})
    for stage in (plan, fetch):
        with pytest.raises(AvomniError, match="the folder does not exist"):
            stage(p, None)
    assert not local.exists()
    shutil.copytree(published, local)
    chosen, source = fetch(p, None).chosen, contents(published)
    assert len(chosen.revision) == 40
    assert {path: file["sha256"] for path, file in chosen.files.items()} == {
        path: hashlib.sha256(source[path]).hexdigest() for path in wanted(p)
    }
    assert fetch(p, None).chosen == chosen
    assert plan(p, None).figures["bytes_to_fetch"] == 0
    damage_bit(local / ZIP)
    assert fetch(p, None).chosen.revision != chosen.revision
    (local / ZIP).unlink()
    assert fetch(p, None).chosen.chunks == (1,)


def test_plan_predicts_the_downloads_figures(server: LocalHub, hub: Hub, p: Params):
    partial = path_of(p.local_dir, hub.sizes([ZIP])[ZIP])
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(500))
    before = plan(p, hub)
    assert set(gets(server)) == set(METADATA)
    assert "500 B of files that are not whole yet" in str(before)
    bytes_here = sum((p.local_dir / path).stat().st_size for path in METADATA)
    assert before.figures["bytes_cached"] == 500 + bytes_here
    partial.unlink()
    before, downloaded = plan(p, hub), fetch(p, hub)
    assert before.figures["bytes"] == downloaded.figures["bytes"]
    assert before.figures["bytes_to_fetch"] == downloaded.figures["bytes_fetched"]
    assert before.figures["num_files"] == downloaded.figures["num_files"]
    assert before.figures["clips_by_split"] == {"train": 2, "val": 2, "test": 2}
    after = plan(p, hub)
    assert after.figures["bytes_to_fetch"] == 0
    assert after.figures["bytes_cached"] == after.figures["bytes"]


def test_plan_warns_about_a_split_without_clips(tmp_path: Path):
    thin = write_published_set(tmp_path / "thin", 2, 1, seconds=0.1)
    with local_hub.serve(thin, REPO) as server:
        warnings = plan(params(tmp_path), hub_of(server)).warnings
    assert warnings == ["no clip of the split test in the chosen chunks"]


@pytest.mark.parametrize(("setup", "chunks"), [("4-cam", 12), ("7-cam", 6)])
def test_plan_without_a_hub_estimates_from_published_sizes(tmp_path: Path, setup: str, chunks: int):
    real = {"source": "hub", "license_accepted": True}
    large = {"target_chunks": 99, "target_size_gb": 100.0}
    p = params(tmp_path, dataset=real, download=large, vision={"cameras": setup})
    expected = forecast(p)
    assert expected.num_chunks == chunks
    assert expected.num_bytes < 100e9 < expected.num_bytes * (chunks + 1) / chunks
    assert plan(p, None).figures["is_estimate"] and not p.local_dir.exists()


def test_plan_of_a_world_counts_its_chunks_and_clips(tmp_path: Path):
    world = {"num_chunks": 2, "clips_per_chunk": 3, "clip_seconds": 2.0}
    p = params(tmp_path, dataset={"world": world}, download={"target_chunks": 5})
    figures = plan(p, None).figures
    assert (figures["num_chunks"], figures["num_clips"]) == (2, 6)


def test_second_process_cannot_fetch_into_a_locked_folder(tmp_path: Path):
    message = "another process is fetching"
    with hold(tmp_path), pytest.raises(AvomniError, match=message), hold(tmp_path, 0.2):
        pass
    with hold(tmp_path, 0.2):
        pass


def test_with_eviction_only_metadata_is_fetched(
    server: LocalHub, hub: Hub, p: Params, tmp_path: Path
):
    whole, num_before = fetch(p, hub), len(gets(server))
    loop = evicting(tmp_path / "loop")
    downloaded = fetch(loop, hub)
    assert sorted(gets(server)[num_before:]) == sorted(METADATA)
    # Sizes and hashes equal those of a run that fetches everything, so the cache is the same.
    assert downloaded.chosen.digest == whole.chosen.digest
    states = {row["path"]: row["state"] for row in downloaded.rows}
    assert {path for path, state in states.items() if state != "missing"} == set(METADATA)
    bytes_here = sum((loop.local_dir / path).stat().st_size for path in METADATA)
    assert downloaded.figures["bytes_to_fetch"] == downloaded.figures["bytes"] - bytes_here
    # Files that the loop has fetched or evicted since are reported.
    kept_path, evicted_path = chunk_path("egomotion", 1), chunk_path("egomotion", 0)
    fetch_files(
        [*hub.sizes([kept_path, evicted_path]).values()], hub, loop, Verified(loop.local_dir)
    )
    evict(loop, [evicted_path])
    num_before = len(gets(server))
    again = fetch(loop, hub)
    assert len(gets(server)) == num_before and again.chosen == downloaded.chosen
    states = {row["path"]: row["state"] for row in again.rows}
    assert (states[kept_path], states[evicted_path]) == ("kept", "evicted")
    planned = plan(loop, hub)
    rest = sum(row["size"] for row in again.rows if row["state"] == "missing")
    assert planned.figures["bytes_to_fetch"] == again.figures["bytes_to_fetch"] == rest
    assert "1 files evicted" in str(planned) and "by 03, chunk after chunk" in str(planned)


def test_stopped_download_is_completed_by_the_next_call(published: Path, p: Params):
    """As 03 prefetches the next chunk."""
    stop = threading.Event()
    with local_hub.serve(published, REPO, bytes_per_s=20_000) as slow:
        hub = hub_of(slow)
        wanted = list(hub.sizes([chunk_path(f, 0) for f in required_features(p)]).values())
        work = (wanted, hub, p, Verified(p.local_dir), Bar, stop)
        thread = threading.Thread(target=fetch_files, args=work)
        thread.start()
        while not slow.bytes_of(ZIP):
            time.sleep(0.01)
        stop.set()
        thread.join(5)
        assert not thread.is_alive()
        assert any(bytes_there(p.local_dir, remote) for remote in wanted)
        slow.bytes_per_s = None
        fetch_files(wanted, hub, p, Verified(p.local_dir))
        for remote in wanted:
            assert slow.bytes_of(remote.path) <= 1.2 * remote.size + 4096
    assert contents(p.local_dir).keys() == {remote.path for remote in wanted}


def test_figure_with_eviction_shows_the_budget_at_every_moment(hub: Hub, tmp_path: Path):
    rows = fetch(evicting(tmp_path), hub).rows
    for row, state in zip(rows, ("evicted", "kept"), strict=False):
        row["state"] = state
    figure = plots.bytes_by_feature(rows, 0.001, in_turn=True)
    assert "chunk after chunk under a budget of 1.00 MB" in figure._suptitle.get_text()
    axes = figure.axes
    assert "at every moment" in axes[1].get_xlabel()
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["on the disk", "to fetch", "evicted"]


def test_two_writers_keep_each_others_verified_entries(published: Path, tmp_path: Path):
    """Two records of one folder stand for two processes."""
    sizes = {path: (published / path).stat().st_size for path in METADATA[:2]}
    folder = shutil.copytree(published, tmp_path / "data")
    first, second = Verified(folder), Verified(folder)
    first_file, second_file = (RemoteFile(path, size) for path, size in sizes.items())
    first.remember(first_file)
    second.remember(second_file)
    first.save()
    assert second.known(first_file) is None
    second.reload()
    assert second.known(first_file) and second.known(second_file)
    second.save()
    assert all(Verified(folder).known(remote) for remote in (first_file, second_file))
