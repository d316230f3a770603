"""Which file holds what, and which chunks fit the budget."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.dataset.catalog import (
    INDEX_FILE,
    OLD_PRESENCE_FILE,
    PRESENCE_FILE,
    Catalog,
    ranges,
    required_features,
    split_by_hash,
)
from avomni_lib.dataset.choice import candidates, choose_chunks
from avomni_lib.dataset.remote import RemoteFile
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from tests.published_set import CAMERAS, FEATURES, RADARS, clip_id_of, write_published_set

NUM_CHUNKS, CLIPS_PER_CHUNK = 4, 3
MB = 1_000_000


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return write_published_set(folder, NUM_CHUNKS, CLIPS_PER_CHUNK, seconds=0.1)


@pytest.fixture(scope="module")
def catalog(published: Path) -> Catalog:
    return Catalog.open(published)


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """The metadata alone, to be spoilt."""
    for path in ("features.csv", INDEX_FILE, PRESENCE_FILE):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(published / path, tmp_path / path)
    return tmp_path


def params(setup: str = "4-cam", **download: object) -> Params:
    values = {"target_chunks": 2, "target_size_gb": 1.0} | download
    return Params.from_values({"download": values, "vision": {"camera_setup": setup}})


def sizes_of(
    catalog: Catalog, p: Params, mb_a_chunk: dict[int, int] | int
) -> dict[str, RemoteFile]:
    """What a source might list: the whole chunk's weight lies in its ego motion."""
    sizes = {}
    for chunk in catalog.chunks:
        for path in catalog.files([chunk], required_features(p)):
            mb = mb_a_chunk if isinstance(mb_a_chunk, int) else mb_a_chunk[chunk]
            sizes[path] = RemoteFile(path, mb * MB if "/egomotion." in path else 0)
    return sizes


def test_the_data_sets_own_features_csv_is_understood(catalog: Catalog):
    assert tuple(catalog.features) == FEATURES
    assert catalog.path("egomotion", 7) == "labels/egomotion/egomotion.chunk_0007.zip"
    assert (
        catalog.path("camera_intrinsics.offline", 3145)
        == "calibration/camera_intrinsics.offline/camera_intrinsics.offline.chunk_3145.parquet"
    )
    camera = "camera_front_wide_120fov"
    assert catalog.member(camera, "abc", "frame_timestamps") == f"abc.{camera}.timestamps.parquet"
    assert (
        catalog.member("lidar_top_360fov", "abc", "pointclouds") == "abc.lidar_top_360fov.parquet"
    )
    with pytest.raises(AvomniError, match="has no 'scans'; it has video, frame_timestamps"):
        catalog.member(camera, "abc", "scans")
    with pytest.raises(AvomniError, match="unknown feature 'camera_top'"):
        catalog.path("camera_top", 0)


def test_clips_chunks_and_splits_are_those_of_the_index(catalog: Catalog):
    everyone = [clip_id_of(n) for n in range(NUM_CHUNKS * CLIPS_PER_CHUNK)]
    assert catalog.chunks == (0, 1, 2, 3)
    assert list(catalog.clip_ids()) == everyone
    assert list(catalog.clip_ids(chunk=1)) == everyone[3:6]
    assert list(catalog.clip_ids(split="val")) == everyone[1::3]
    assert catalog.clip_ids(chunk=2, split="test") == (everyone[8],)
    assert [catalog.chunk_of(c) for c in everyone] == [n // 3 for n in range(12)]
    assert [catalog.split_of(c) for c in everyone[:3]] == ["train", "val", "test"]


def test_files_that_no_clip_of_the_chunk_has_are_left_out(catalog: Catalog):
    files = catalog.files([0, 2], ["egomotion", RADARS[0], "vehicle_dimensions"])
    assert files == [
        "labels/egomotion/egomotion.chunk_0000.zip",
        "calibration/vehicle_dimensions/vehicle_dimensions.chunk_0000.parquet",
        "labels/egomotion/egomotion.chunk_0002.zip",
        "calibration/vehicle_dimensions/vehicle_dimensions.chunk_0002.parquet",
    ]
    assert catalog.present(clip_id_of(0), "egomotion")
    assert not catalog.present(clip_id_of(0), RADARS[0])


def test_presence_is_by_clip_and_its_rows_may_come_in_any_order(folder: Path):
    table = pd.read_parquet(folder / PRESENCE_FILE)
    table.loc[table.clip_id == clip_id_of(4), CAMERAS[0]] = False
    table = table[table.clip_id != clip_id_of(5)]
    table.sample(frac=1, random_state=1).to_parquet(folder / PRESENCE_FILE)
    catalog = Catalog.open(folder)
    assert catalog.usable(1, ["egomotion", CAMERAS[0]]) == (clip_id_of(3),)
    assert catalog.usable(1, ["egomotion"]) == (clip_id_of(3), clip_id_of(4))
    assert catalog.usable(0, ["egomotion", CAMERAS[0]]) == tuple(map(clip_id_of, range(3)))


@pytest.mark.parametrize("index_name", ["clip_id", None])
def test_clip_id_may_be_a_pandas_index(folder: Path, catalog: Catalog, index_name: str | None):
    for path in (INDEX_FILE, PRESENCE_FILE):
        table = pd.read_parquet(folder / path).set_index("clip_id").rename_axis(index_name)
        table.to_parquet(folder / path)
    indexed = Catalog.open(folder)
    assert indexed.clip_ids() == catalog.clip_ids()
    assert indexed.files(indexed.chunks, FEATURES) == catalog.files(catalog.chunks, FEATURES)


def test_the_layout_before_26_03_is_understood(tmp_path: Path):
    write_published_set(tmp_path, 1, 1, seconds=0.1, release="25.10")
    assert (tmp_path / OLD_PRESENCE_FILE).exists() and not (tmp_path / PRESENCE_FILE).exists()
    catalog = Catalog.open(tmp_path)
    assert catalog.present(clip_id_of(0), CAMERAS[0])
    assert catalog.present(clip_id_of(0), "egomotion")
    assert not catalog.present(clip_id_of(0), RADARS[0])


def test_clips_marked_as_faulty_are_left_out(folder: Path):
    table = pd.read_parquet(folder / INDEX_FILE)
    table.loc[1, "clip_is_valid"] = False
    table.to_parquet(folder / INDEX_FILE)
    catalog = Catalog.open(folder)
    assert catalog.clip_ids(chunk=0) == (clip_id_of(0), clip_id_of(2))
    assert catalog.usable(0, ["egomotion"]) == (clip_id_of(0), clip_id_of(2))


@pytest.mark.parametrize("empty", ["no column", "no values"])
def test_clips_without_a_split_get_one_by_their_id(folder: Path, empty: str):
    table = pd.read_parquet(folder / INDEX_FILE)
    table["split"] = None
    (table.drop(columns="split") if empty == "no column" else table).to_parquet(folder / INDEX_FILE)
    catalog = Catalog.open(folder)
    assert [catalog.split_of(c) for c in catalog.clip_ids()] == [
        split_by_hash(c) for c in catalog.clip_ids()
    ]


def test_splits_by_id_have_the_promised_shares():
    splits = [split_by_hash(clip_id_of(n)) for n in range(5000)]
    shares = [splits.count(name) / 5000 for name in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)


def spoil_twice(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.iloc[[3]]])


def spoil_split(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(split="dev")


def spoil_chunk(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="chunk")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_twice, f"clip {clip_id_of(3)} is listed 2 times"),
        (spoil_split, "unknown split 'dev'"),
        (spoil_chunk, "no column chunk"),
        (lambda table: table.head(0), "lists no clip"),
    ],
)
def test_an_index_that_contradicts_itself_is_said(folder: Path, spoil, says: str):
    spoil(pd.read_parquet(folder / INDEX_FILE)).to_parquet(folder / INDEX_FILE)
    with pytest.raises(AvomniError, match=says) as caught:
        Catalog.open(folder)
    assert INDEX_FILE in caught.value.where


def test_missing_or_damaged_metadata_is_said(folder: Path):
    (folder / PRESENCE_FILE).write_bytes(b"half a file")
    with pytest.raises(AvomniError, match="not a readable parquet"):
        Catalog.open(folder)
    (folder / "features.csv").write_text("feature,directory\negomotion,labels\n")
    with pytest.raises(AvomniError, match=r"not the data set's features\.csv"):
        Catalog.open(folder)
    (folder / "features.csv").unlink()
    with pytest.raises(AvomniError, match=r"not in the data set's layout: no features\.csv"):
        Catalog.open(folder)


def test_required_features_follow_the_camera_setup():
    assert len(required_features(params("4-cam"))) == 4 + 4
    assert set(required_features(params("7-cam"))) == set(CAMERAS) | {
        "egomotion",
        "camera_intrinsics",
        "sensor_extrinsics",
        "vehicle_dimensions",
    }


def test_the_first_chunks_are_taken_up_to_target_chunks(catalog: Catalog):
    p = params(target_chunks=2)
    choice = choose_chunks(catalog, sizes_of(catalog, p, 10), p)
    assert (choice.chunks, choice.num_bytes) == ((0, 1), 20 * MB)
    assert "target_chunks: 2" in choice.reason


def test_target_size_gb_stops_before_target_chunks(catalog: Catalog):
    p = params(target_chunks=4, target_size_gb=0.035)
    choice = choose_chunks(catalog, sizes_of(catalog, p, 10), p)
    assert choice.chunks == (0, 1, 2)
    assert "target_size_gb: 0.035 (chunk 3 would make it 0.04 GB)" in choice.reason


def test_a_budget_that_is_met_exactly_is_met(catalog: Catalog):
    p = params(target_chunks=4, target_size_gb=0.03)
    assert choose_chunks(catalog, sizes_of(catalog, p, 10), p).chunks == (0, 1, 2)


def test_metadata_count_towards_the_budget(catalog: Catalog):
    p = params(target_chunks=4, target_size_gb=0.035)
    sizes = sizes_of(catalog, p, 10) | {INDEX_FILE: RemoteFile(INDEX_FILE, 6 * MB)}
    choice = choose_chunks(catalog, sizes, p)
    assert (choice.chunks, choice.num_bytes) == ((0, 1), 26 * MB)


def test_more_chunks_than_there_are_takes_all_and_says_so(catalog: Catalog):
    p = params(target_chunks=9)
    choice = choose_chunks(catalog, sizes_of(catalog, p, 10), p)
    assert choice.chunks == (0, 1, 2, 3) and "all there are" in choice.reason


def test_a_budget_below_one_chunk_is_an_error_with_numbers(catalog: Catalog):
    p = params(target_size_gb=0.005)
    with pytest.raises(AvomniError, match=r"take 0\.01 GB; the budget is 0\.005 GB") as caught:
        choose_chunks(catalog, sizes_of(catalog, p, 10), p)
    assert caught.value.where == "download.target_size_gb"


@given(mb=st.integers(1, 10**6))
def test_the_budget_that_the_error_proposes_is_enough(catalog: Catalog, mb: int):
    p = params(target_chunks=1, target_size_gb=1e-6)
    sizes = sizes_of(catalog, p, mb)
    with pytest.raises(AvomniError) as caught:
        choose_chunks(catalog, sizes, p)
    proposed = float(caught.value.fix.split("set it to ")[1].split(" ")[0])
    assert choose_chunks(catalog, sizes, params(target_chunks=1, target_size_gb=proposed))


def test_named_chunks_are_taken_in_their_order_whatever_target_chunks(catalog: Catalog):
    p = params(target_chunks=1, chunks=[3, 1, 3])
    choice = choose_chunks(catalog, sizes_of(catalog, p, 10), p)
    assert choice.chunks == (3, 1) and "named" in choice.reason


def test_an_unknown_chunk_is_an_error_that_says_which_exist(catalog: Catalog):
    p = params(chunks=[0, 9])
    with pytest.raises(AvomniError, match="unknown chunk 9; there are 0-3") as caught:
        candidates(catalog, p)
    assert caught.value.where == "download.chunks"


def test_named_chunks_that_do_not_fit_are_never_cut_silently(catalog: Catalog):
    p = params(chunks=[0, 1, 2], target_size_gb=0.025)
    with pytest.raises(AvomniError, match=r"up to 2, .* take 0\.03 GB; the budget is 0\.025"):
        choose_chunks(catalog, sizes_of(catalog, p, 10), p)


def test_a_chunk_whose_file_the_source_lost_is_passed_over_unless_named(catalog: Catalog):
    p = params(target_chunks=2)
    sizes = sizes_of(catalog, p, 10)
    lost = catalog.path("camera_rear_left_70fov", 0)
    del sizes[lost]
    choice = choose_chunks(catalog, sizes, p)
    assert choice.chunks == (1, 2)
    assert f"chunk 0 is passed over: the source lacks {lost}" in choice.reason
    with pytest.raises(AvomniError, match="chunk 0 cannot be used: the source lacks"):
        choose_chunks(catalog, sizes, params(chunks=[0]))


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_number_once(numbers: set[int]):
    named: list[int] = []
    for part in filter(None, ranges(sorted(numbers)).split(", ")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(numbers)
