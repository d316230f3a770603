"""The files and clips of a run: few requests, only wanted clips, and the same offline."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from avomni_lib.dataset.catalog import required_features
from avomni_lib.dataset.download.hub import PATHS_A_REQUEST, Hub
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.dataset.select.selection import Selection, listed, select, selection_offline
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from tests import local_hub
from tests.hub_run import REPO
from tests.hub_run import params as run
from tests.local_hub import LocalHub
from tests.published_set import chunk_path, clip_id_of, listed_clip, write_metadata

NUM_CHUNKS, CLIPS_PER_CHUNK = 150, 2
SPLITS = ("train", "val", "test")
FILE_BYTES = 1000


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many chunks of placeholder files, which no test reads."""
    folder = tmp_path_factory.mktemp("published")
    clips = [listed_clip(n, n // CLIPS_PER_CHUNK) for n in range(NUM_CHUNKS * CLIPS_PER_CHUNK)]
    write_metadata(folder, clips, "main")
    for chunk in range(NUM_CHUNKS):
        for feature in required_features(Params()):
            path = folder / chunk_path(feature, chunk)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"0" * FILE_BYTES)
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[LocalHub]:
    with local_hub.serve(published, REPO) as server:
        yield server


def params(tmp_path: Path, source: str = "world", **download: object) -> Params:
    world = {"clip_seconds": 1.0, "width": 32, "height": 32}
    return run(tmp_path, dataset={"source": source, "world": world}, download=download)


def taken(p: Params, server: LocalHub) -> Selection:
    return select(p, Hub(REPO, server.commit, server.endpoint), Verified(p.local_dir))


def requests_for(server: LocalHub, path: str) -> int:
    return sum(request.path == path for request in server.requests)


METADATA = (
    "features.csv",
    "clip_index.parquet",
    "metadata/feature_presence.parquet",
    "metadata/data_collection.parquet",
    "reasoning/ood_reasoning.parquet",
)


def test_sizes_take_one_request_for_metadata_and_one_for_files(tmp_path: Path, server: LocalHub):
    p = params(tmp_path)
    selection = taken(p, server)
    assert requests_for(server, "api:paths-info") == 2
    assert requests_for(server, "metadata/sensor_presence.parquet") == 0
    assert {f.path for f in selection.files} == {*METADATA} | {
        chunk_path(feature, chunk) for feature in selection.features for chunk in (0, 1)
    }
    assert selection.num_bytes == selection.choice.num_bytes
    assert selection.files[: len(METADATA)] == tuple(
        next(f for f in selection.files if f.path == path) for path in METADATA
    )
    # No file of a chunk was fetched.
    assert {r.path for r in server.requests if not r.path.startswith("api:")} == {*METADATA}


@pytest.mark.parametrize(
    ("download", "num_chunks", "num_requests"),
    [
        # 8 files a chunk: 150 chunks are 1,200 paths.
        ({"target_chunks": 150}, 150, 3),
        # Sizes beyond the budget are requested only to fill a request.
        ({"target_chunks": 150, "target_size_gb": 0.0005}, 60, 1),
        ({"target_chunks": 150, "evict_raw": True, "target_size_gb": 0.0001}, 150, 3),
        ({"target_chunks": 150, "clips": {"max_clips": 100}}, 50, 1),
    ],
)
def test_sizes_are_requested_500_at_a_time_up_to_the_budget(
    tmp_path: Path, server: LocalHub, download: dict, num_chunks: int, num_requests: int
):
    selection = taken(params(tmp_path, **download), server)
    assert PATHS_A_REQUEST == 500
    metadata = sum(f.size for f in selection.files if "chunk_" not in f.path)
    if "target_size_gb" in download and "evict_raw" not in download:
        num_chunks = int((download["target_size_gb"] * 1e9 - metadata) // (8 * FILE_BYTES))
        assert 10 < num_chunks < 62
    assert len(selection.choice.chunks) == num_chunks
    assert requests_for(server, "api:paths-info") == 1 + num_requests


def test_only_wanted_clips_are_selected(tmp_path: Path, server: LocalHub):
    wanted = {"countries": ["Germany"], "hours": [8, 9], "splits": ["train", "test"]}
    p = params(tmp_path, target_chunks=9, clips=wanted)
    selection = taken(p, server)
    ids = [clip_id for split in SPLITS for clip_id in selection.clip_ids[split]]
    assert ids and selection.clip_ids["val"] == () and selection.num_clips == len(ids)
    for clip_id in ids:
        attributes = selection.catalog.attributes(clip_id)
        assert attributes["country"] == "Germany" and attributes["hour"] in (8, 9)
        assert clip_id in selection.clip_ids[selection.catalog.split_of(clip_id)]
        assert selection.catalog.chunk_of(clip_id) in selection.choice.chunks
    assert "country Germany, hour 8 or 9" in selection.choice.reason


def test_offline_selection_equals_the_hubs(tmp_path: Path, server: LocalHub):
    clips = {"platforms": ["hyperion_8"], "balance_by": "country", "max_clips": 12}
    p = params(tmp_path, target_chunks=20, clips=clips)
    assert selection_offline(p) is None  # no metadata yet
    selection = taken(p, server)
    before = len(server.requests)
    offline = selection_offline(p)
    assert len(server.requests) == before
    assert offline.choice.chunks == selection.choice.chunks
    assert offline.clip_ids == selection.clip_ids
    assert [f.path for f in offline.files] == [f.path for f in selection.files]
    assert offline.choice.num_bytes == offline.num_bytes > 0


def test_offline_sizes_are_the_published_estimates(tmp_path: Path):
    p = params(tmp_path, source="hub", target_chunks=3, target_size_gb=1e3)
    clips = [listed_clip(n, n // 100) for n in range(300)]
    absent = "camera_front_tele_30fov"
    clips[0] = replace(clips[0], absent=(*clips[0].absent, absent))
    write_metadata(p.local_dir, clips)
    offline = selection_offline(p)
    size = {f.path: f.size for f in offline.files}
    # Sizes of chunk 0 of the data set, in July 2026.
    assert size[chunk_path("camera_front_wide_120fov", 1)] == 2_051_000_000
    assert size[chunk_path(absent, 1)] == 1_627_000_000
    assert size[chunk_path(absent, 0)] == 1_610_730_000
    four_cameras = offline.num_bytes - sum(n for path, n in size.items() if "chunk_" not in path)
    assert four_cameras / 3e9 == pytest.approx(8.24, abs=0.01)


def test_listing_has_a_row_for_each_file_of_the_download(tmp_path: Path, server: LocalHub):
    p, hub = params(tmp_path), Hub(REPO, server.commit, server.endpoint)
    rows = {row["path"]: row for row in listed(p, hub)}
    assert rows.keys() == {file.path for file in taken(p, server).files}
    for path, row in rows.items():
        # Only the metadata tables have been fetched.
        assert row["is_here"] == (row["feature"] is None) == (path in METADATA)
        if row["feature"]:
            assert path == chunk_path(row["feature"], row["chunk"]) and row["size"] == FILE_BYTES
    present = p.local_dir / chunk_path("egomotion", 1)
    present.parent.mkdir(parents=True)
    present.write_bytes(b"0" * FILE_BYTES)
    again = {row["path"]: row["is_here"] for row in listed(p, hub)}
    changed = {path for path, is_here in again.items() if is_here != rows[path]["is_here"]}
    assert changed == {chunk_path("egomotion", 1)}


def test_table_absent_in_a_new_revision_is_removed(
    tmp_path: Path, server: LocalHub, published: Path
):
    p = params(tmp_path)
    taken(p, server)
    other = write_metadata(tmp_path / "other", [listed_clip(0, 0)], "26.03")
    for feature in required_features(p):
        path = other / chunk_path(feature, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    with local_hub.serve(other, REPO) as server:
        selection = taken(params(tmp_path), server)
        with pytest.raises(AvomniError, match="does not have it"):
            taken(params(tmp_path, clips={"event_clusters": ["OTHER_LONGTAIL"]}), server)
    assert not (p.local_dir / "reasoning/ood_reasoning.parquet").exists()
    assert selection.catalog.attributes(clip_id_of(0))["event_cluster"] is None
