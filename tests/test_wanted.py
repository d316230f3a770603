"""The clips that a run may take: filters, named clips, and errors if none is left."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.select.chunks import wanted_clips
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from tests.published_set import (
    CAMERAS,
    ListedClip,
    clip_id_of,
    listed_clip,
    write_metadata,
)

NUM_CLIPS, CLIPS_PER_CHUNK = 60, 10
CLIPS = [listed_clip(n, n // CLIPS_PER_CHUNK) for n in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog.open(write_metadata(tmp_path_factory.mktemp("main"), CLIPS, "main"))


def params(**clips: object) -> Params:
    return Params.from_values({"download": {"clips": clips}})


def names(catalog: Catalog, **clips: object) -> set[str]:
    return set(catalog.clips.ids(wanted_clips(catalog, params(**clips)).rows))


def test_without_filters_every_usable_clip_is_wanted(catalog: Catalog):
    wanted = wanted_clips(catalog, params())
    np.testing.assert_array_equal(wanted.rows, np.arange(NUM_CLIPS))
    assert wanted.words == "" and wanted.groups == ("",)


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        ({"splits": ["val", "test"]}, lambda clip: clip.split != "train"),
        ({"countries": ["Germany", "Italy"]}, lambda clip: clip.country in ("Germany", "Italy")),
        ({"countries": ["united STATES"]}, lambda clip: clip.country == "United States"),
        ({"hours": [9, 10]}, lambda clip: clip.hour in (9, 10)),
        ({"hours": [3, 9]}, lambda clip: clip.hour == 9),  # no clip has hour 3
        ({"platforms": ["hyperion_8"]}, lambda clip: clip.platform == "hyperion_8"),
        (
            {"event_clusters": ["animals_birds_roadkill"]},
            lambda clip: clip.event_cluster == "ANIMALS_BIRDS_ROADKILL",
        ),
        (
            {"countries": ["Germany"], "hours": [9], "platforms": ["hyperion_8.1"]},
            lambda clip: (clip.country, clip.hour, clip.platform) == ("Germany", 9, "hyperion_8.1"),
        ),
        (
            {"clip_ids": [clip_id_of(n) for n in (0, 6, 4)], "countries": ["Germany"]},
            lambda clip: clip.clip_id == clip_id_of(4),
        ),
    ],
)
def test_all_filters_must_match(catalog: Catalog, filters: dict, holds):
    expected = {clip.clip_id for clip in CLIPS if holds(clip)}
    assert expected and names(catalog, **filters) == expected


def test_words_describe_the_filters(catalog: Catalog):
    wanted = wanted_clips(
        catalog, params(countries=["italy", "germany"], hours=[9], splits=["train"])
    )
    assert wanted.words == "split train, country Italy or Germany, hour 9"


def test_incomplete_and_invalid_clips_are_excluded(tmp_path: Path):
    clips = [
        replace(CLIPS[0], is_valid=False),
        replace(CLIPS[1], absent=("camera_rear_left_70fov",)),
        replace(CLIPS[2], absent=("lidar_top_360fov", "camera_rear_tele_30fov")),  # not of 4-cam
    ]
    catalog = Catalog.open(write_metadata(tmp_path, clips))
    assert names(catalog) == {clip_id_of(2)}


def test_unknown_values_are_reported_with_the_existing_ones(catalog: Catalog):
    with pytest.raises(AvomniError) as caught:
        wanted_clips(catalog, params(countries=["Germny", "Narnia", "Italy"]))
    assert caught.value.what == (
        "no clip has the country 'Germny' (do you mean Germany?) or 'Narnia'; "
        "there are Germany (21), United States (21), Italy (18)"
    )
    assert caught.value.where == "download.clips.countries"
    with pytest.raises(AvomniError, match=r"platform 'hyperion_9' \(do you mean hyperion_8"):
        wanted_clips(catalog, params(platforms=["hyperion_9"]))


def test_filter_without_matches_is_named_with_existing_values(catalog: Catalog):
    with pytest.raises(AvomniError) as caught:
        wanted_clips(catalog, params(countries=["Germany"], hours=[3], platforms=["hyperion_8"]))
    assert caught.value.where == "download.clips.hours"
    hours = sorted(clip.hour for clip in CLIPS if clip.country == "Germany")
    counted = ", ".join(f"{hour} ({hours.count(hour)})" for hour in sorted(set(hours)))
    assert caught.value.what == (
        "no clip is left by download.clips.hours: 3; "
        f"the {len(hours)} usable clips with country Germany have the hour {counted}"
    )


def test_unusable_named_clips_are_reported_at_once(tmp_path: Path):
    clips = [
        replace(CLIPS[0], is_valid=False),
        replace(CLIPS[1], absent=("egomotion", CAMERAS[0], "camera_rear_left_70fov")),
        *CLIPS[2:6],
    ]
    catalog = Catalog.open(write_metadata(tmp_path, clips))
    clip_ids = [clip_id_of(n) for n in range(6)]
    first, cut = "x" + clip_ids[3][1:], clip_ids[5][:-4]
    middle = clip_ids[4][:17] + "zz" + clip_ids[4][19:]
    with pytest.raises(AvomniError) as caught:
        wanted_clips(
            catalog, params(clip_ids=[*clip_ids[:3], first, middle, cut, "nothing like it"])
        )
    assert caught.value.what.splitlines() == [
        "6 of 7 named clips cannot be used:",
        f"  - {clip_ids[0]}: the clip index marks it as not valid",
        f"  - {clip_ids[1]}: it has no camera_rear_left_70fov, egomotion",
        f"  - {first}: it is not in the clip index; the nearest is {clip_ids[3]}",
        f"  - {middle}: it is not in the clip index; the nearest is {clip_ids[4]}",
        f"  - {cut}: it is not in the clip index; the nearest is {clip_ids[5]}",
        "  - nothing like it: it is not in the clip index",
    ]


@pytest.mark.parametrize("key", ["event_clusters", "balance_by"])
def test_filter_on_an_attribute_missing_from_the_release_is_refused(tmp_path: Path, key: str):
    catalog = Catalog.open(write_metadata(tmp_path, CLIPS, "26.03"))
    value = "event_cluster" if key == "balance_by" else ["OTHER_LONGTAIL"]
    with pytest.raises(AvomniError, match=r"it has no reasoning/ood_reasoning\.parquet") as caught:
        wanted_clips(catalog, params(**{key: value}))
    assert caught.value.where == f"download.clips.{key}"


def test_balance_uses_only_clips_with_a_known_group(catalog: Catalog, tmp_path: Path):
    wanted = wanted_clips(catalog, params(balance_by="event_cluster"))
    clusters = [clip.event_cluster for clip in CLIPS if clip.event_cluster]
    assert [wanted.groups[place] for place in wanted.group] == clusters
    unknown = [ListedClip(clip_id_of(n), country=None if n else "Italy") for n in range(3)]
    other = Catalog.open(write_metadata(tmp_path, unknown))
    assert wanted_clips(other, params(balance_by="country")).rows.tolist() == [0]
    with pytest.raises(AvomniError, match="the country of none of the 2 wanted clips is known"):
        wanted_clips(other, params(balance_by="country", clip_ids=[clip_id_of(1), clip_id_of(2)]))
