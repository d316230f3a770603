"""The download: resumable, checked, nothing fetched twice, refusals before the first byte."""

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
from avomni_lib.dataset.download.transfer import CLIENT_CACHE, PARTIALS, bytes_there, path_of
from avomni_lib.dataset.download.verified import MANIFEST, Verified, hold
from avomni_lib.dataset.select.evicted import evict
from avomni_lib.dataset.select.forecast import forecast
from avomni_lib.dataset.select.selection import LICENSE_CLAUSE, pinned
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.plots import download as plots
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from tests import local_hub
from tests.local_hub import LocalHub
from tests.published_set import SPLITS, chunk_path, clip_id_of, write_published_set

REPO = "avomni/world"
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
    return Hub(REPO, server.commit, server.endpoint)


@pytest.fixture
def p(tmp_path: Path) -> Params:
    return params(tmp_path)


def params(tmp_path: Path, **sections: dict) -> Params:
    values = {
        "run": {"name": "run", "outputs_dir": str(tmp_path / "outputs")},
        "dataset": {"source": "world", "repo_id": REPO, "local_dir": str(tmp_path / "data")},
        "download": {"target_chunks": 2, "target_size_gb": 1.0},
    }
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys
    return Params.from_values(values)


def contents(folder: Path) -> dict[str, str]:
    """Path -> sha256 of all that is not hidden."""
    paths = [f.relative_to(folder) for f in folder.rglob("*") if f.is_file()]
    return {
        str(path): hashlib.sha256((folder / path).read_bytes()).hexdigest()
        for path in paths
        if not path.parts[0].startswith(".")
    }


def wanted(p: Params, chunks: tuple[int, ...] = (0, 1)) -> set[str]:
    return {*METADATA} | {chunk_path(f, chunk) for f in required_features(p) for chunk in chunks}


def gets(server: LocalHub) -> list[str]:
    return [r.path for r in server.requests if r.method == "GET" and not r.path.startswith("api:")]


class Recorded(Bar):
    """Keeps every bar that was opened."""

    bars: list["Recorded"] = []

    def __init__(self, total: float | None = None, unit: str = "", label: str = ""):
        super().__init__(total, unit, label)
        Recorded.bars.append(self)


def test_the_chosen_files_arrive_whole_and_chosen_json_says_which(
    server: LocalHub, hub: Hub, p: Params, published: Path
):
    downloaded = fetch(p, hub)
    source = contents(published)
    assert contents(p.local_dir) == {path: source[path] for path in wanted(p)}
    chosen = read_chosen(p)
    assert chosen == downloaded.chosen
    assert (chosen.repo_id, chosen.revision, chosen.chunks) == (REPO, server.commit, (0, 1))
    assert {path: file["sha256"] for path, file in chosen.files.items()} == contents(p.local_dir)
    for path, file in chosen.files.items():
        assert (p.local_dir / path).stat().st_size == file["size"]
    assert chosen.clip_ids == {
        split: tuple(clip_id_of(n) for n in range(6) if SPLITS[n % 3] == split) for split in SPLITS
    }
    assert missing_files(p) == []
    assert sorted(gets(server)) == sorted(wanted(p))


def test_nothing_is_fetched_or_hashed_twice(server: LocalHub, hub: Hub, p: Params):
    first = fetch(p, hub)
    before = len(gets(server))
    second = fetch(p, hub)
    assert len(gets(server)) == before
    assert second.figures["num_files_fetched"] == second.figures["num_files_hashed"] == 0
    assert second.figures["bytes_fetched"] == 0
    assert second.chosen == first.chosen
    assert {row["state"] for row in second.rows} == {"kept"}


def test_one_bar_counts_every_byte(hub: Hub, p: Params):
    Recorded.bars = []
    downloaded = fetch(p, hub, progress=Recorded)
    (bar,) = Recorded.bars
    assert (bar.unit, bar.total) == ("B", downloaded.figures["bytes_fetched"])
    assert bar.count == bar.total > 0


def test_another_run_shares_the_files(server: LocalHub, hub: Hub, p: Params, tmp_path: Path):
    fetch(p, hub)
    before = len(gets(server))
    other = params(tmp_path, run={"name": "other"}, download={"chunks": [1]})
    assert fetch(other, hub).chosen.chunks == (1,)
    assert len(gets(server)) == before
    assert read_chosen(p).chunks == (0, 1)


def damage_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [damage_bit, damage_cut, Path.unlink])
@pytest.mark.parametrize("path", [ZIP, "clip_index.parquet"])
def test_a_damaged_file_is_noticed_and_it_alone_is_fetched_again(
    server: LocalHub, hub: Hub, p: Params, published: Path, damage, path: str
):
    fetch(p, hub)
    before = len(gets(server))
    damage(p.local_dir / path)
    fetch(p, hub)
    assert gets(server)[before:] == [path]
    assert (p.local_dir / path).read_bytes() == (published / path).read_bytes()


def test_files_that_were_put_there_by_hand_are_hashed_and_kept(
    server: LocalHub, hub: Hub, p: Params, published: Path
):
    shutil.copytree(published, p.local_dir)
    downloaded = fetch(p, hub)
    assert gets(server) == []
    assert downloaded.figures["num_files_hashed"] > 0


def test_a_lost_record_costs_hashing_only(server: LocalHub, hub: Hub, p: Params):
    fetch(p, hub)
    before = len(gets(server))
    (p.local_dir / MANIFEST).write_text("{half")
    assert fetch(p, hub).figures["num_files_fetched"] == 0
    assert len(gets(server)) == before


def test_of_another_revision_only_what_changed_is_fetched(
    hub: Hub, p: Params, published: Path, tmp_path: Path
):
    old = fetch(p, hub).chosen
    newer = shutil.copytree(published, tmp_path / "newer")
    changed = chunk_path("vehicle_dimensions", 1)
    # Same size, other content: the hash alone can tell.
    damage_bit(newer / changed)
    with local_hub.serve(newer, REPO) as server:
        new = fetch(p, Hub(REPO, server.commit, server.endpoint)).chosen
        assert gets(server) == [changed]
    assert new.revision != old.revision
    differing = {path for path in new.files if new.files[path] != old.files[path]}
    assert differing == {changed}


def test_the_presence_table_of_another_revision_is_not_taken_for_this_ones(
    hub: Hub, p: Params, tmp_path: Path
):
    fetch(p, hub)
    old = tmp_path / "old"
    write_published_set(old, seconds=0.2, release="25.10")
    with local_hub.serve(old, REPO) as server:
        chosen = fetch(p, Hub(REPO, server.commit, server.endpoint)).chosen
    assert "metadata/sensor_presence.parquet" in chosen.files
    assert not (p.local_dir / "metadata/feature_presence.parquet").exists()


def test_a_run_stays_at_the_commit_that_it_took_from_main(
    server: LocalHub, published: Path, tmp_path: Path
):
    accepted = {"source": "hub", "license_accepted": True}
    p = params(tmp_path, dataset=accepted)
    fetch(p, Hub(REPO, None, server.endpoint))
    newer = shutil.copytree(published, tmp_path / "newer")
    damage_bit(newer / ZIP)
    with local_hub.serve(newer, REPO) as moved:
        main = Hub(REPO, None, moved.endpoint)
        assert main.commit == moved.commit != server.commit
        assert pinned(p, main).commit == server.commit
        other = params(tmp_path, run={"name": "other"}, dataset=accepted)
        assert pinned(other, main).commit == moved.commit


def test_a_bit_flipped_on_the_wire_costs_one_more_fetch(
    server: LocalHub, hub: Hub, p: Params, published: Path
):
    server.faults.flipped[ZIP] = 1
    Recorded.bars = []
    fetch(p, hub, progress=Recorded)
    assert server.gets(ZIP) == 2
    assert (p.local_dir / ZIP).read_bytes() == (published / ZIP).read_bytes()
    assert Recorded.bars[0].count == Recorded.bars[0].total


def test_after_a_fault_what_was_whole_is_kept(server: LocalHub, hub: Hub, p: Params):
    lost = chunk_path("egomotion", 1)
    server.faults.vanished.add(lost)
    with pytest.raises(AvomniError, match=f"{lost} is gone from the source"):
        fetch(p, hub)
    with pytest.raises(AvomniError, match="no raw files have been chosen"):
        read_chosen(p)
    server.faults.vanished.clear()
    fetch(p, hub)
    assert contents(p.local_dir).keys() == wanted(p)
    # The files in flight were stopped where they were, and taken up from there.
    for path in wanted(p):
        assert server.bytes_of(path) <= 1.01 * (p.local_dir / path).stat().st_size + 1


class Interrupted(Bar):
    """Ctrl-C after the first bytes."""

    def update(self, amount: float = 1, note: str = "") -> None:
        super().update(amount, note)
        if self.count:
            raise KeyboardInterrupt


def test_ctrl_c_stops_the_files_in_flight(published: Path, p: Params):
    with local_hub.serve(published, REPO, bytes_per_s=60_000) as slow:
        with pytest.raises(KeyboardInterrupt):
            fetch(p, Hub(REPO, slow.commit, slow.endpoint), progress=Interrupted)
        assert len(gets(slow)) < len(wanted(p))
        # What was on its way was not waited for, and is kept.
        assert set(gets(slow)) - contents(p.local_dir).keys()
        assert any(path.stat().st_size for path in (p.local_dir / PARTIALS).iterdir())
    with local_hub.serve(published, REPO) as server:
        fetch(p, Hub(REPO, server.commit, server.endpoint))
    assert contents(p.local_dir).keys() == wanted(p)


def test_the_licence_is_asked_about_before_the_first_byte(server: LocalHub, tmp_path: Path):
    real = {"source": "hub", "repo_id": "nvidia/PhysicalAI-Autonomous-Vehicles"}
    p = params(tmp_path, dataset=real)
    hub = Hub(p.dataset.repo_id, None, server.endpoint)
    with pytest.raises(AvomniError, match=r"dataset\.license_accepted is false") as caught:
        fetch(p, hub)
    assert LICENSE_CLAUSE in caught.value.what
    assert "dataset.license_accepted: true" in caught.value.fix
    assert "allowed" not in str(caught.value) and "permitted" not in str(caught.value)
    assert server.requests == [] and not p.local_dir.exists()
    foretold = plan(p, hub)
    assert LICENSE_CLAUSE in foretold.warnings[0] and foretold.figures["is_estimate"]
    assert server.requests == []


def test_with_the_licence_accepted_the_download_goes_on(server: LocalHub, tmp_path: Path):
    p = params(tmp_path, dataset={"source": "hub", "license_accepted": True})
    assert fetch(p, Hub(REPO, None, server.endpoint)).chosen.revision == server.commit


def test_no_room_is_said_before_the_first_large_file(server: LocalHub, hub: Hub, tmp_path: Path):
    """The server states a size that no disk has."""
    server.faults.sizes[ZIP] = 10**16
    p = params(tmp_path, download={"target_size_gb": 1e9})
    with pytest.raises(
        AvomniError, match="no room on the disk for the download: 10000000"
    ) as caught:
        fetch(p, hub)
    assert str(p.local_dir) == caught.value.where
    assert set(gets(server)) == set(METADATA)
    assert any("no room" in warning for warning in plan(p, hub).warnings)


def test_a_data_set_of_another_layout_is_said(tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.csv").write_text("a,b\n")
    says = r"expected layout: it has no clip_index\.parquet"
    with local_hub.serve(other, REPO) as server, pytest.raises(AvomniError, match=says):
        fetch(params(tmp_path), Hub(REPO, server.commit, server.endpoint))


def test_a_folder_is_taken_as_it_is(published: Path, tmp_path: Path):
    local = shutil.copytree(published, tmp_path / "local")
    p = params(tmp_path, dataset={"source": "folder", "local_dir": str(local)})
    chosen = fetch(p, None).chosen
    assert len(chosen.revision) == 40 and set(chosen.files) == wanted(p)
    source = contents(published)
    assert {path: file["sha256"] for path, file in chosen.files.items()} == {
        path: source[path] for path in wanted(p)
    }
    assert fetch(p, None).chosen == chosen
    assert plan(p, None).figures["bytes_to_fetch"] == 0
    damage_bit(local / ZIP)
    assert fetch(p, None).chosen.revision != chosen.revision
    (local / ZIP).unlink()
    assert fetch(p, None).chosen.chunks == (1,)


def test_a_folder_that_is_not_there_is_said_and_not_made(tmp_path: Path):
    p = params(tmp_path, dataset={"source": "folder"})
    for stage in (plan, fetch):
        with pytest.raises(AvomniError, match="the folder does not exist"):
            stage(p, None)
    assert not p.local_dir.exists()


def test_the_plan_says_what_the_fetch_then_does(server: LocalHub, hub: Hub, p: Params):
    before = plan(p, hub)
    assert set(gets(server)) == set(METADATA)
    downloaded = fetch(p, hub)
    assert before.figures["bytes"] == downloaded.figures["bytes"]
    assert before.figures["bytes_to_fetch"] == downloaded.figures["bytes_fetched"]
    assert before.figures["num_files"] == downloaded.figures["num_files"]
    assert before.figures["clips_by_split"] == {"train": 2, "val": 2, "test": 2}
    after = plan(p, hub)
    assert after.figures["bytes_to_fetch"] == 0
    assert after.figures["bytes_cached"] == after.figures["bytes"]


def test_the_plan_warns_of_a_split_without_clips(published: Path, tmp_path: Path):
    thin = write_published_set(tmp_path / "thin", 2, 1, seconds=0.1)
    with local_hub.serve(thin, REPO) as server:
        warnings = plan(params(tmp_path), Hub(REPO, server.commit, server.endpoint)).warnings
    assert warnings == ["no clip of the split test in the chosen chunks"]


def test_without_a_hub_the_plan_is_a_forecast_by_published_sizes(tmp_path: Path):
    real = {"source": "hub", "license_accepted": True}
    p = params(tmp_path, dataset=real, download={"target_chunks": 99, "target_size_gb": 100.0})
    for setup, chunks in (("4-cam", 12), ("7-cam", 6)):
        asked = p.model_copy(update={"vision": p.vision.model_copy(update={"cameras": setup})})
        expected = forecast(asked)
        assert expected.num_chunks == chunks
        assert expected.num_bytes < 100e9 < expected.num_bytes * (chunks + 1) / chunks
    assert plan(p, None).figures["is_estimate"]
    assert not p.local_dir.exists()


def test_the_forecast_of_a_world_knows_its_chunks_and_clips(tmp_path: Path):
    world = {"num_chunks": 2, "clips_per_chunk": 3, "clip_seconds": 2.0}
    p = params(tmp_path, dataset={"world": world}, download={"target_chunks": 5})
    figures = plan(p, None).figures
    assert (figures["num_chunks"], figures["num_clips"]) == (2, 6)


def test_one_process_at_a_time_fetches_into_a_folder(tmp_path: Path):
    says = "another process is fetching"
    with hold(tmp_path), pytest.raises(AvomniError, match=says), hold(tmp_path, 0.2):
        pass
    with hold(tmp_path, 0.2):
        pass


def test_missing_files_reads_sizes_alone(hub: Hub, p: Params):
    fetch(p, hub)
    (p.local_dir / ZIP).unlink()
    os.truncate(p.local_dir / "features.csv", 5)
    assert set(missing_files(p)) == {ZIP, "features.csv"}


def test_a_chosen_json_of_another_kind_is_said(p: Params):
    p.run_dir.mkdir(parents=True)
    (p.run_dir / "chosen.json").write_text("[]")
    with pytest.raises(AvomniError, match=r"not a chosen\.json of this version"):
        read_chosen(p)


def evicting(tmp_path: Path, **download: object) -> Params:
    return params(tmp_path, download={"evict_raw": True} | download)


def test_where_raw_files_are_evicted_only_the_metadata_is_fetched_and_the_choice_is_the_same(
    server: LocalHub, hub: Hub, p: Params, tmp_path: Path
):
    whole = fetch(p, hub)
    before = len(gets(server))
    loop = evicting(tmp_path / "loop")
    downloaded = fetch(loop, hub)
    assert sorted(gets(server)[before:]) == sorted(METADATA)
    # Size and hash of each file are those of a run that fetches everything: the cache is the same.
    assert downloaded.chosen.digest == whole.chosen.digest
    states = {row["path"]: row["state"] for row in downloaded.rows}
    assert {path for path, state in states.items() if state != "missing"} == set(METADATA)
    here = sum((loop.local_dir / path).stat().st_size for path in METADATA)
    assert downloaded.figures["bytes_to_fetch"] == downloaded.figures["bytes"] - here


def test_what_the_loop_has_fetched_or_evicted_is_told(
    server: LocalHub, hub: Hub, published: Path, tmp_path: Path
):
    loop = evicting(tmp_path)
    chosen = fetch(loop, hub).chosen
    kept, gone = chunk_path("egomotion", 1), chunk_path("egomotion", 0)
    remotes = hub.sizes([kept, gone])
    fetch_files(list(remotes.values()), hub, loop, Verified(loop.local_dir))
    evict(loop, [gone])
    before = len(gets(server))
    again = fetch(loop, hub)
    assert gets(server)[before:] == [] and again.chosen == chosen
    states = {row["path"]: row["state"] for row in again.rows}
    assert (states[kept], states[gone]) == ("kept", "evicted")
    foretold = plan(loop, hub)
    rest = sum(row["size"] for row in again.rows if row["state"] == "missing")
    assert foretold.figures["bytes_to_fetch"] == again.figures["bytes_to_fetch"] == rest
    assert "1 files evicted" in str(foretold) and "by 03, chunk after chunk" in str(foretold)


def test_a_disk_too_small_for_one_chunk_is_said_before_the_loop(
    server: LocalHub, hub: Hub, tmp_path: Path
):
    server.faults.sizes[ZIP] = 10**16
    loop = evicting(tmp_path, target_size_gb=1e9)
    with pytest.raises(AvomniError, match="no room on the disk for the largest chunk: 10000000"):
        fetch(loop, hub)
    assert not (loop.run_dir / "chosen.json").exists()


def test_the_day_of_the_first_download_of_a_revision_stays(
    hub: Hub, p: Params, published: Path, tmp_path: Path
):
    """The licence of the real data ends twelve months after it."""
    today = datetime.date.today().isoformat()
    first = fetch(p, hub)
    assert first.chosen.chosen_on == first.figures["chosen_on"] == today
    assert Verified(p.local_dir).checked_on(ZIP) == today
    path = p.run_dir / "chosen.json"
    path.write_text(path.read_text().replace(today, "2026-01-31"))
    assert fetch(p, hub).chosen.chosen_on == "2026-01-31"
    newer = shutil.copytree(published, tmp_path / "newer")
    damage_bit(newer / ZIP)
    with local_hub.serve(newer, REPO) as server:
        assert fetch(p, Hub(REPO, server.commit, server.endpoint)).chosen.chosen_on == today


def test_the_plan_counts_what_is_partly_here(server: LocalHub, hub: Hub, p: Params):
    remote = hub.sizes([ZIP])[ZIP]
    path = path_of(p.local_dir, remote)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(500))
    foretold = plan(p, hub)
    assert foretold.figures["bytes_cached"] == 500 + sum(
        (p.local_dir / path).stat().st_size for path in METADATA
    )
    assert "500 B of files that are not whole yet" in str(foretold)


def test_before_the_licence_is_decided_on_the_plan_reads_the_metadata_that_is_here(
    server: LocalHub, published: Path, tmp_path: Path
):
    large = {"target_size_gb": 100.0}
    open_question = params(tmp_path, dataset={"source": "hub"}, download=large)
    assert plan(open_question, None).figures["num_clips"] == 200
    shutil.copytree(published, open_question.local_dir)
    figures = plan(open_question, None).figures
    assert (figures["num_chunks"], figures["num_clips"]) == (2, 6) and figures["is_estimate"]
    assert server.requests == []


def test_raw_files_and_outputs_may_lie_apart(server: LocalHub, hub: Hub, tmp_path: Path):
    """Room is asked of the volume of `dataset.local_dir`, and its name is said."""
    server.faults.sizes[ZIP] = 10**16
    p = params(
        tmp_path,
        dataset={"local_dir": str(tmp_path / "big" / "disk")},
        download={"target_size_gb": 1e9},
    )
    with pytest.raises(AvomniError, match="no room on the disk for the download") as caught:
        fetch(p, hub)
    assert caught.value.where == str(tmp_path / "big" / "disk")


def test_a_thread_can_be_stopped_and_the_rest_is_fetched_by_the_next_call(
    published: Path, p: Params
):
    """As 03 does with the chunk that comes next."""
    stop = threading.Event()
    with local_hub.serve(published, REPO, bytes_per_s=20_000) as slow:
        hub = Hub(REPO, slow.commit, slow.endpoint)
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


def test_the_picture_of_a_loop_tells_the_budget_from_the_whole(hub: Hub, tmp_path: Path):
    rows = fetch(evicting(tmp_path), hub).rows
    for row, state in zip(rows, ("evicted", "kept"), strict=False):
        row["state"] = state
    picture = plots.bytes_by_feature(rows, 0.001, in_turn=True)
    assert "chunk after chunk under a budget of 1.00 MB" in picture._suptitle.get_text()
    label = picture.axes[1].get_xlabel()
    assert "at every moment" in label
    assert [text.get_text() for text in picture.axes[0].get_legend().get_texts()] == [
        "on the disk",
        "to fetch",
        "evicted",
    ]


def test_two_processes_that_write_one_record_lose_nothing_of_each_other(
    published: Path, tmp_path: Path
):
    """Here two records of one folder, which is what two processes hold."""
    sizes = {path: (published / path).stat().st_size for path in METADATA[:2]}
    folder = shutil.copytree(published, tmp_path / "data")
    first, second = Verified(folder), Verified(folder)
    mine, yours = (RemoteFile(path, size) for path, size in sizes.items())
    first.remember(mine)
    second.remember(yours)
    first.save()
    assert second.known(mine) is None
    second.reload()
    assert second.known(mine) and second.known(yours)
    second.save()
    assert all(Verified(folder).known(remote) for remote in (mine, yours))


def test_what_the_client_of_an_earlier_version_left_goes(hub: Hub, p: Params):
    fetch(p, hub)
    left = p.local_dir / CLIENT_CACHE / "camera/a.0123abcd.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(1000))
    os.utime(left, (0, 0))
    fetch(p, hub)
    assert not left.exists()
