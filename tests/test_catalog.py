"""The catalog: clips, chunks, splits, attributes and file paths of every release."""

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
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
from avomni_lib.dataset.clip_index import COLLECTION_FILE, REASONING_FILE
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from tests.published_set import (
    CAMERAS,
    FEATURES,
    FEATURES_25_10,
    RADARS,
    RELEASES,
    ListedClip,
    clip_id_of,
    listed_clip,
    write_metadata,
)

NUM_CHUNKS, CLIPS_PER_CHUNK = 4, 3
CLIPS = [listed_clip(n, n // CLIPS_PER_CHUNK) for n in range(NUM_CHUNKS * CLIPS_PER_CHUNK)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Metadata that a test may damage."""
    return write_metadata(tmp_path, CLIPS)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog.open(write_metadata(tmp_path_factory.mktemp("main"), CLIPS, "main"))


def params(setup: str) -> Params:
    return Params.from_values({"vision": {"cameras": setup}})


def test_features_csv_gives_paths_and_members(catalog: Catalog):
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


def test_clips_chunks_and_splits_match_the_index(catalog: Catalog):
    clip_ids = [clip_id_of(n) for n in range(NUM_CHUNKS * CLIPS_PER_CHUNK)]
    assert catalog.chunks == (0, 1, 2, 3)
    assert list(catalog.clip_ids()) == clip_ids
    assert list(catalog.clip_ids(chunk=1)) == clip_ids[3:6]
    assert list(catalog.clip_ids(split="val")) == clip_ids[1::3]
    assert catalog.clip_ids(chunk=2, split="test") == (clip_ids[8],)
    assert [catalog.chunk_of(c) for c in clip_ids] == [n // 3 for n in range(12)]
    assert [catalog.split_of(c) for c in clip_ids[:3]] == ["train", "val", "test"]


def test_files_of_features_absent_from_a_chunk_are_omitted(catalog: Catalog):
    files = catalog.files([0, 2], ["egomotion", RADARS[0], "vehicle_dimensions"])
    assert files == [
        "labels/egomotion/egomotion.chunk_0000.zip",
        "calibration/vehicle_dimensions/vehicle_dimensions.chunk_0000.parquet",
        "labels/egomotion/egomotion.chunk_0002.zip",
        "calibration/vehicle_dimensions/vehicle_dimensions.chunk_0002.parquet",
    ]
    assert catalog.present(clip_id_of(0), "egomotion")
    assert not catalog.present(clip_id_of(0), RADARS[0])


def test_presence_is_matched_by_clip_id_in_any_row_order(folder: Path):
    table = pd.read_parquet(folder / PRESENCE_FILE)
    table.loc[table.clip_id == clip_id_of(4), CAMERAS[0]] = False
    table = table[table.clip_id != clip_id_of(5)]
    table.sample(frac=1, random_state=1).to_parquet(folder / PRESENCE_FILE)
    catalog = Catalog.open(folder)
    assert catalog.usable(1, ["egomotion", CAMERAS[0]]) == (clip_id_of(3),)
    assert catalog.usable(1, ["egomotion"]) == (clip_id_of(3), clip_id_of(4))
    assert catalog.usable(0, ["egomotion", CAMERAS[0]]) == tuple(map(clip_id_of, range(3)))


def test_clip_id_may_be_an_unnamed_pandas_index(folder: Path, catalog: Catalog):
    for path in (INDEX_FILE, PRESENCE_FILE):
        table = pd.read_parquet(folder / path).set_index("clip_id").rename_axis(None)
        table.to_parquet(folder / path)
    indexed = Catalog.open(folder)
    assert indexed.clip_ids() == catalog.clip_ids()
    assert indexed.files(indexed.chunks, FEATURES) == catalog.files(catalog.chunks, FEATURES)


@pytest.mark.parametrize("is_indexed", [False, True])
@pytest.mark.parametrize("release", RELEASES)
def test_every_release_can_be_opened(tmp_path: Path, release: str, is_indexed: bool):
    catalog = Catalog.open(write_metadata(tmp_path, CLIPS, release, is_indexed))
    is_old = release == "25.10"
    assert (tmp_path / OLD_PRESENCE_FILE).exists() == is_old
    assert (tmp_path / PRESENCE_FILE).exists() != is_old
    assert tuple(catalog.features) == (FEATURES_25_10 if is_old else FEATURES)
    assert catalog.clip_ids() == tuple(clip.clip_id for clip in CLIPS)
    assert catalog.present(clip_id_of(0), CAMERAS[0])
    assert catalog.present(clip_id_of(0), "egomotion")  # no column in the old table
    assert not catalog.present(clip_id_of(0), RADARS[0])
    paths = catalog.files([1], required_features(params("7-cam")))
    assert len(paths) == 7 + 4 and all("chunk_0001" in path for path in paths)
    for clip in CLIPS:
        assert catalog.attributes(clip.clip_id) == {
            "country": clip.country,
            "month": clip.month,
            "hour": clip.hour,
            "platform": clip.platform,
            "event_cluster": clip.event_cluster if release == "main" else None,
        }


def test_additional_columns_and_features_are_accepted(folder: Path, catalog: Catalog):
    features = (folder / "features.csv").read_text().splitlines()
    features = [f"{line},new" for line in features]
    features.append(
        "camera_roof,camera,camera/camera_roof/camera_roof.chunk_{chunk_id:04d}.zip,,new"
    )
    (folder / "features.csv").write_text("\n".join(features) + "\n")
    for path in (INDEX_FILE, PRESENCE_FILE, COLLECTION_FILE):
        table = pd.read_parquet(folder / path).assign(weather="rain", sun=1.5, boxes=None)
        table.to_parquet(folder / path)
    later = Catalog.open(folder)
    assert later.files([2], FEATURES) == catalog.files([2], FEATURES)
    assert later.path("camera_roof", 3) == "camera/camera_roof/camera_roof.chunk_0003.zip"
    assert later.present(clip_id_of(0), "camera_roof")  # no table says that it is not
    assert later.attributes(clip_id_of(4))["country"] == CLIPS[4].country


def test_attributes_are_matched_by_clip_id_and_gaps_are_none(folder: Path):
    table = pd.read_parquet(folder / COLLECTION_FILE)
    table.loc[2, "country"] = None
    table["hour_of_day"] = table["hour_of_day"].astype(float)
    table.loc[3, "hour_of_day"] = np.nan
    table["platform_class"] = table["platform_class"].astype("category")
    stranger = table.iloc[[0]].assign(clip_id=clip_id_of(99), country="Narnia")
    table = pd.concat([table.drop(index=5), stranger]).sample(frac=1, random_state=1)
    table.to_parquet(folder / COLLECTION_FILE)
    catalog = Catalog.open(folder)
    assert catalog.attributes(clip_id_of(2))["country"] is None
    assert catalog.attributes(clip_id_of(3))["hour"] is None
    assert set(catalog.attributes(clip_id_of(5)).values()) == {None}
    hour = catalog.attributes(clip_id_of(4))["hour"]
    assert hour == CLIPS[4].hour and isinstance(hour, int)
    assert catalog.attributes(clip_id_of(4))["platform"] == CLIPS[4].platform
    values = catalog.values("country")
    assert "Narnia" not in values.counts(np.arange(len(CLIPS)))
    assert values.counts(np.array([0, 1, 2, 3])) == {"United States": 2, "Germany": 1}


def test_release_without_attribute_tables_can_be_opened(folder: Path):
    (folder / COLLECTION_FILE).unlink()
    catalog = Catalog.open(folder)
    assert set(catalog.attributes(clip_id_of(0)).values()) == {None}
    assert len(catalog.clip_ids()) == len(CLIPS)


@given(
    order=st.permutations(range(len(CLIPS))),
    chunks=st.lists(st.integers(0, 9999), min_size=12, max_size=12),
)
@settings(max_examples=25)
def test_clips_of_a_chunk_need_not_be_adjacent_rows(order: list[int], chunks: list[int]):
    clips = [replace(CLIPS[n], chunk=chunks[n]) for n in order]
    with TemporaryDirectory() as name:
        catalog = Catalog.open(write_metadata(Path(name), clips))
        assert catalog.chunks == tuple(sorted(set(chunks)))
        for clip in clips:
            assert catalog.chunk_of(clip.clip_id) == clip.chunk
            assert catalog.split_of(clip.clip_id) == clip.split
        for chunk in catalog.chunks:
            clip_ids = tuple(clip.clip_id for clip in clips if clip.chunk == chunk)
            assert catalog.clip_ids(chunk) == catalog.usable(chunk, ["egomotion"]) == clip_ids
        rows = catalog.clips.rows([clips[3].clip_id, "stranger", clips[0].clip_id])
        assert rows.tolist() == [3, -1, 0]


@pytest.mark.parametrize("place", [0, 7, 20, 35])
def test_unknown_clip_error_names_the_nearest_clip(catalog: Catalog, place: int):
    known = clip_id_of(6)
    unknown = known[:place] + ("z" if known[place] != "-" else "_") + known[place + 1 :]
    with pytest.raises(AvomniError, match=f"unknown clip {unknown}; the nearest is {known}"):
        catalog.chunk_of(unknown)
    with pytest.raises(AvomniError, match="unknown clip 25\n"):
        catalog.attributes("25")


def test_clip_ids_need_not_be_uuids_of_one_length(tmp_path: Path):
    names = ["b", "a", "a-longer-name", "é", "zz", "B"]
    clips = [ListedClip(name, chunk) for chunk, name in enumerate(names)]
    catalog = Catalog.open(write_metadata(tmp_path, clips))
    assert [catalog.chunk_of(name) for name in names] == list(range(6))


@pytest.mark.parametrize("empty", ["no column", "no values"])
def test_clips_without_a_split_get_one_from_their_id(folder: Path, empty: str):
    table = pd.read_parquet(folder / INDEX_FILE)
    table["split"] = None
    (table.drop(columns="split") if empty == "no column" else table).to_parquet(folder / INDEX_FILE)
    catalog = Catalog.open(folder)
    assert [catalog.split_of(c) for c in catalog.clip_ids()] == [
        split_by_hash(c) for c in catalog.clip_ids()
    ]


def test_splits_by_id_are_80_10_10_percent():
    splits = [split_by_hash(clip_id_of(n)) for n in range(5000)]
    shares = [splits.count(name) / 5000 for name in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: pd.concat([t, t.iloc[[3]]]), f"clip {clip_id_of(3)} is listed 2 times"),
        (lambda t: t.assign(split="dev"), "unknown split 'dev'"),
        (lambda t: t.drop(columns="chunk"), "no column chunk"),
        (lambda t: t.assign(chunk=[0.5, *[1.0] * (len(t) - 1)]), "else than numbers of chunks"),
        (lambda t: t.assign(clip_id=[None, *t.clip_id[1:]]), "1 rows have no clip_id"),
        (lambda t: t.assign(clip_id=[[1]] * len(t)), "clip_id holds list.*, not text"),
        (lambda t: t.drop(columns="clip_id"), "no column clip_id"),
        (lambda t: t.assign(clip_is_valid="yes"), "holds .*string, not true or false"),
        (lambda t: t.head(0), "lists no clip"),
    ],
)
def test_invalid_index_is_refused(folder: Path, spoil, message: str):
    spoil(pd.read_parquet(folder / INDEX_FILE)).to_parquet(folder / INDEX_FILE)
    with pytest.raises(AvomniError, match=message) as caught:
        Catalog.open(folder)
    assert INDEX_FILE in caught.value.where


def test_missing_or_damaged_metadata_is_refused(folder: Path):
    (folder / PRESENCE_FILE).write_bytes(b"half a file")
    with pytest.raises(AvomniError, match="not a readable parquet"):
        Catalog.open(folder)
    (folder / COLLECTION_FILE).write_bytes(b"half a file")
    write_metadata(folder / "other", CLIPS)
    shutil.copy(folder / "other" / PRESENCE_FILE, folder / PRESENCE_FILE)
    with pytest.raises(AvomniError, match="not a readable parquet") as caught:
        Catalog.open(folder).attributes(clip_id_of(0))
    assert COLLECTION_FILE in caught.value.where
    (folder / "features.csv").write_text("feature,directory\negomotion,labels\n")
    with pytest.raises(AvomniError, match=r"not the data set's features\.csv"):
        Catalog.open(folder)
    (folder / "features.csv").unlink()
    with pytest.raises(AvomniError, match=r"not in the data set's layout: no features\.csv"):
        Catalog.open(folder)


@given(st.sets(st.integers(0, 60)))
def test_ranges_list_every_number_once(numbers: set[int]):
    named: list[int] = []
    for part in filter(None, ranges(sorted(numbers)).split(", ")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(numbers)


def test_empty_attribute_table_gives_none(folder: Path):
    write_metadata(folder, [replace(clip, event_cluster=None) for clip in CLIPS], "main")
    assert len(pd.read_parquet(folder / REASONING_FILE)) == 0
    assert Catalog.open(folder).attributes(clip_id_of(1))["event_cluster"] is None
