"""Which chunks and clips a run takes, under a number of chunks, of gigabytes and of clips."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.dataset.catalog import INDEX_FILE, Catalog, required_features
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.select.chunks import (
    NUM_SPARE,
    ChunkChoice,
    choose_chunks,
    most_wanted,
    pick,
    rank,
    shares,
)
from avomni_lib.dataset.select.forecast import estimated
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from tests.published_set import ListedClip, clip_id_of, listed_clip, write_metadata

NUM_CHUNKS, CLIPS_PER_CHUNK = 4, 3
MB = 1_000_000


def listed(folder: Path, chunks: Mapping[int, str]) -> Catalog:
    """A catalog of chunks given as number -> one letter for each clip, its country."""
    clips = [
        ListedClip(clip_id_of(100 * chunk + place), chunk, country=letter)
        for chunk, letters in chunks.items()
        for place, letter in enumerate(letters)
    ]
    return Catalog.open(write_metadata(folder, clips))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    clips = [listed_clip(n, n // CLIPS_PER_CHUNK) for n in range(NUM_CHUNKS * CLIPS_PER_CHUNK)]
    return Catalog.open(write_metadata(tmp_path_factory.mktemp("listed"), clips))


def params(setup: str = "4-cam", clips: dict | None = None, **download: object) -> Params:
    values = {"target_chunks": 2, "target_size_gb": 1.0, "clips": clips or {}} | download
    return Params.from_values(
        {
            "download": values,
            "vision": {"cameras": setup},
            "processing": {"obstacles": False},
            "dataset": {"source": "hub"},
        }
    )


def sizes_of(
    catalog: Catalog, p: Params, mb_a_chunk: dict[int, int] | int
) -> dict[str, RemoteFile]:
    """File sizes as a source lists them: all bytes of a chunk are in its egomotion zip."""
    sizes = {}
    for chunk in catalog.chunks:
        for path in catalog.files([chunk], required_features(p)):
            mb = mb_a_chunk if isinstance(mb_a_chunk, int) else mb_a_chunk[chunk]
            sizes[path] = RemoteFile(path, mb * MB if "/egomotion." in path else 0)
    return sizes


def choose(catalog: Catalog, p: Params) -> ChunkChoice:
    """With the published sizes."""
    return choose_chunks(catalog, estimated(catalog, catalog.chunks, p), p)


def picked(catalog: Catalog, choice: ChunkChoice) -> list[str]:
    return [catalog.attributes(clip_id)["country"] for clip_id in catalog.clips.ids(choice.rows)]


# The first chunks, or the named ones


@pytest.mark.parametrize(
    ("download", "chunks", "reason"),
    [
        ({"target_chunks": 2}, (0, 1), "the first, by download.target_chunks: 2"),
        (
            {"target_chunks": 4, "target_size_gb": 0.035},
            (0, 1, 2),
            "the first, as many as fit download.target_size_gb: 0.035 "
            "(chunk 3 would make it 0.04 GB)",
        ),
        (
            {"target_chunks": 3, "target_size_gb": 0.03},
            (0, 1, 2),
            "the first, by download",
        ),
        ({"target_chunks": 9}, (0, 1, 2, 3), "the first, all there are (download.target_chunks: 9"),
        ({"target_chunks": 1, "chunks": [3, 1, 3]}, (3, 1), "named by download.chunks"),
        (
            {"target_chunks": 4, "clips": {"max_clips": 5}},
            (0, 1),
            "the first, enough for download.clips.max_clips: 5; 5 of 6 drawn by run.seed: 0",
        ),
    ],
)
def test_first_or_named_chunks_are_chosen(
    catalog: Catalog, download: dict, chunks: tuple[int, ...], reason: str
):
    p = params(**download)
    choice = choose_chunks(catalog, sizes_of(catalog, p, 10), p)
    assert (choice.chunks, choice.num_bytes) == (chunks, len(chunks) * 10 * MB)
    assert choice.reason.startswith(reason)
    clips = [row for chunk in chunks for row in range(3 * chunk, 3 * chunk + 3)]
    assert set(choice.rows.tolist()) <= {*clips}
    assert len(choice.rows) == (5 if "clips" in download else len(clips))


@pytest.mark.parametrize(
    ("download", "message", "where"),
    [
        (
            {"target_size_gb": 0.005},
            r"even the first chunk, 0, .* take 0\.01 GB; the budget is 0\.005 GB",
            "download.target_size_gb",
        ),
        (
            {"chunks": [0, 1, 2], "target_size_gb": 0.025},
            r"all named chunks up to 2, .* take 0\.03 GB; the budget is 0\.025",
            "download.target_size_gb",
        ),
        ({"chunks": [0, 9]}, "unknown chunk 9; there are 0-3", "download.chunks"),
    ],
)
def test_impossible_choice_is_refused_with_sizes(
    catalog: Catalog, download: dict, message: str, where: str
):
    p = params(**download)
    with pytest.raises(AvomniError, match=message) as caught:
        choose_chunks(catalog, sizes_of(catalog, p, 10), p)
    assert caught.value.where == where


def test_chunk_with_a_missing_file_is_skipped_unless_named(tmp_path: Path):
    catalog = listed(tmp_path, dict.fromkeys(range(20), "ab"))
    p = params(target_chunks=2, clips={"countries": ["a"]})
    assert len(rank(catalog, p).chunks) == 2 + NUM_SPARE
    sizes, missing = sizes_of(catalog, p, 10), catalog.path("camera_rear_left_70fov", 0)
    del sizes[missing]
    choice = choose_chunks(catalog, sizes, p)
    assert choice.chunks == (1, 2) and 0 in choice.passed
    assert f"chunk 0 is passed over: the source lacks {missing}" in choice.reason
    with pytest.raises(AvomniError, match="chunk 0 cannot be used: the source lacks"):
        choose_chunks(catalog, sizes, params(chunks=[0]))


def test_metadata_counts_towards_the_budget(catalog: Catalog):
    p = params(target_chunks=4, target_size_gb=0.035)
    sizes = sizes_of(catalog, p, 10) | {INDEX_FILE: RemoteFile(INDEX_FILE, 6 * MB)}
    choice = choose_chunks(catalog, sizes, p)
    assert (choice.chunks, choice.num_bytes) == ((0, 1), 26 * MB)


@given(mb=st.integers(1, 10**6))
def test_budget_proposed_by_the_error_is_sufficient(catalog: Catalog, mb: int):
    p = params(target_chunks=1, target_size_gb=1e-6)
    sizes = sizes_of(catalog, p, mb)
    with pytest.raises(AvomniError) as caught:
        choose_chunks(catalog, sizes, p)
    proposed = float(caught.value.fix.split("set it to ")[1].split(" ")[0])
    assert choose_chunks(catalog, sizes, params(target_chunks=1, target_size_gb=proposed))


def test_sizes_are_requested_only_for_candidate_chunks(catalog: Catalog):
    """The listing is read chunk by chunk, so that a hub is asked for no more than needed."""
    p = params(target_chunks=4, target_size_gb=0.015)
    requested = []

    class Listing(dict):
        def __getitem__(self, path: str) -> RemoteFile:
            requested.append(path)
            return super().__getitem__(path)

    assert choose_chunks(catalog, Listing(sizes_of(catalog, p, 10)), p).chunks == (0,)
    assert set(requested) == set(catalog.files([0, 1], required_features(p)))


def test_with_eviction_each_chunk_must_fit_the_budget_alone(catalog: Catalog):
    p = params(target_chunks=3, target_size_gb=0.015, evict_raw=True)
    sizes = sizes_of(catalog, p, {0: 10, 1: 20, 2: 10, 3: 15})
    choice = choose_chunks(catalog, sizes, p)
    assert (choice.chunks, choice.num_bytes) == ((0, 2, 3), 35 * MB)
    assert "chunk 1 is passed over: it alone takes 0.02 GB" in choice.reason
    with pytest.raises(AvomniError, match=r"alone, chunk 1, .* take 0\.02 GB; the budget is"):
        choose_chunks(catalog, sizes, params(chunks=[0, 1], target_size_gb=0.015, evict_raw=True))
    # The metadata is not evicted.
    with_metadata = sizes | {INDEX_FILE: RemoteFile(INDEX_FILE, MB)}
    assert choose_chunks(catalog, with_metadata, p).chunks == (0, 2)


# Chosen clips


def test_chunks_with_the_most_wanted_clips_come_first(tmp_path: Path):
    catalog = listed(tmp_path, {0: "aaaaaaaa", 1: "abab", 2: "abbbaaaaaaaa", 3: "bbaa", 4: "bbba"})
    p = params(target_chunks=2, target_size_gb=9.0, clips={"countries": ["b"]})
    choice = choose(catalog, p)
    # Equal chunks keep their order.
    assert choice.chunks == (2, 4)
    assert picked(catalog, choice) == ["b"] * 6
    assert choice.reason == (
        "those with the most wanted clips, by download.target_chunks: 2; "
        "of their clips 6 are wanted: country b"
    )
    assert rank(catalog, p).chunks == (2, 4, 1, 3)


def test_chunks_without_a_wanted_clip_are_not_candidates(tmp_path: Path):
    catalog = listed(tmp_path, {0: "aa", 1: "ab", 2: "aa"})
    p = params(target_chunks=3, clips={"countries": ["b"]})
    choice = choose(catalog, p)
    assert choice.chunks == (1,) and "all there are (download.target_chunks: 3)" in choice.reason
    with pytest.raises(AvomniError, match=r"chunk 2 cannot be used: none of its clips is wanted"):
        choose(catalog, params(chunks=[1, 2], clips={"countries": ["b"]}))


def test_balanced_choice_prefers_chunks_with_rare_groups(tmp_path: Path):
    catalog = listed(tmp_path, {0: "aaaa", 1: "aaaa", 2: "aabb", 3: "aaac", 4: "bbbb"})
    p = params(target_chunks=2, target_size_gb=9.0, clips={"balance_by": "country", "max_clips": 6})
    choice = choose(catalog, p)
    assert set(choice.chunks) == {2, 3}
    assert Counter(picked(catalog, choice)) == {"a": 3, "b": 2, "c": 1}
    assert "balanced by country: 3 a, 2 b, 1 c" in choice.reason


def test_balance_without_max_clips_uses_the_smallest_groups_size(tmp_path: Path):
    catalog = listed(tmp_path, {0: "aaaabb", 1: "aaabbb"})
    choice = choose(catalog, params(target_size_gb=9.0, clips={"balance_by": "country"}))
    assert Counter(picked(catalog, choice)) == {"a": 5, "b": 5}


def test_named_clips_select_their_chunks(catalog: Catalog):
    ids = [clip_id_of(n) for n in (11, 3, 5)]
    p = params(target_chunks=2, target_size_gb=9.0, clips={"clip_ids": ids})
    choice = choose(catalog, p)
    assert choice.chunks == (1, 3)
    assert catalog.clips.ids(choice.rows) == (clip_id_of(3), clip_id_of(5), clip_id_of(11))
    assert "they hold the clips named by download.clips.clip_ids" in choice.reason


def test_named_clips_beyond_the_limits_are_an_error(catalog: Catalog):
    ids = [clip_id_of(n) for n in (0, 4, 11)]
    with pytest.raises(AvomniError, match="lie in 3 chunks; 2 hold 2 of them") as caught:
        choose(catalog, params(target_chunks=2, clips={"clip_ids": ids}))
    assert "set download.target_chunks to 3," in caught.value.fix
    with pytest.raises(AvomniError, match="lie in 3 chunks; the named hold 2 of them") as caught:
        choose(catalog, params(chunks=[0, 1, 2], clips={"clip_ids": ids}))
    assert "set download.chunks to [0, 1, 3]," in caught.value.fix
    named = params(target_chunks=3, target_size_gb=0.4, clips={"clip_ids": ids})
    with pytest.raises(AvomniError, match="all named chunks up to 1,"):
        choose(catalog, named)
    few = params(target_chunks=2, target_size_gb=9.0, clips={"clip_ids": ids, "max_clips": 2})
    assert len(choose(catalog, few).rows) == 2


def test_named_clips_in_an_incomplete_chunk_are_an_error(catalog: Catalog):
    p = params(clips={"clip_ids": [clip_id_of(4), clip_id_of(7)]})
    sizes = sizes_of(catalog, p, 10)
    missing = catalog.path("egomotion", 2)
    del sizes[missing]
    with pytest.raises(AvomniError) as caught:
        choose_chunks(catalog, sizes, p)
    assert caught.value.what == (
        f"chunk 2 cannot be used: the source lacks {missing}; of the wanted clips it holds "
        f"{clip_id_of(7)}"
    )
    assert caught.value.where == "download.clips.clip_ids"


@st.composite
def counted(draw) -> tuple[np.ndarray, np.ndarray]:
    """Clips of each group in each chunk, and quotas."""
    num_groups = draw(st.integers(1, 3))
    row = st.lists(st.integers(0, 4), min_size=num_groups, max_size=num_groups)
    counts = np.array(draw(st.lists(row, min_size=1, max_size=7)))
    return counts, shares(counts.sum(axis=0), draw(st.integers(0, 30)))


@given(counted())
def test_chunk_ranking_matches_the_greedy_reference(case):
    """Compares with a greedy choice, one chunk at a time, in plain Python."""
    counts, quotas = case
    left, free, order = quotas.tolist(), [n for n in range(len(counts)) if counts[n].any()], []
    while free:
        still = left if any(left) else [np.inf] * len(left)
        best = max(free, key=lambda n: (sum(map(min, counts[n], still)), -n))
        free.remove(best)
        order.append(best)
        left = [a - min(a, b) for a, b in zip(left, counts[best], strict=True)]
    assert most_wanted(counts, quotas, 5) == order[:5]


LETTERS = st.text("abcd", min_size=1, max_size=8)


@settings(max_examples=60)
@given(
    chunks=st.lists(LETTERS, min_size=1, max_size=8),
    countries=st.none() | st.sets(st.sampled_from("abcd"), min_size=1),
    balance_by=st.sampled_from([None, "country"]),
    max_clips=st.none() | st.integers(1, 20),
    target_chunks=st.integers(1, 9),
    budget=st.floats(0.3, 10.0),
)
def test_every_choice_respects_the_limits(
    chunks, countries, balance_by, max_clips, target_chunks, budget
):
    if countries:
        chunks = [*chunks, "".join(countries)]  # each country has a clip
    filters = {
        "countries": sorted(countries) if countries else None,
        "balance_by": balance_by,
        "max_clips": max_clips,
    }
    p = params(target_chunks=target_chunks, target_size_gb=budget, clips=filters)
    with TemporaryDirectory() as folder:
        catalog = listed(Path(folder), dict(enumerate(chunks)))
        sizes = estimated(catalog, catalog.chunks, p)
        try:
            choice = choose_chunks(catalog, sizes, p)
        except AvomniError as error:
            assert "the budget is" in error.what
            return
        again = choose_chunks(Catalog.open(Path(folder)), sizes, p)
        assert again == choice and again.rows.tolist() == choice.rows.tolist()
        picked_countries = picked(catalog, choice)
        paths = catalog.files(choice.chunks, required_features(p))
        paths += [path for path in sizes if "chunk_" not in path]
    assert choice.num_bytes == sum(sizes[path].size for path in paths)
    assert 1 <= len(choice.chunks) <= target_chunks
    assert choice.num_bytes <= budget * 1e9
    assert {catalog.chunks[place] for place in catalog.chunk_idx[choice.rows]} == set(choice.chunks)
    assert len(set(choice.rows.tolist())) == len(picked_countries) <= (max_clips or np.inf)
    available = Counter(letter for chunk in choice.chunks for letter in chunks[chunk])
    wanted = {letter: n for letter, n in available.items() if not countries or letter in countries}
    assert set(picked_countries) <= set(wanted)
    counts = Counter(picked_countries)
    if balance_by is None:
        assert len(picked_countries) == min(sum(wanted.values()), max_clips or np.inf)
    else:
        enough = [counts[letter] for letter, n in wanted.items() if n > counts[letter]]
        if enough:
            assert max(enough) - min(enough) <= 1
            assert max(counts.values()) <= min(enough) + 1


# --- balanced picks ----------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(np.array)


@given(SIZES, st.integers(0, 50))
def test_shares_are_equal_or_the_whole_group(sizes: np.ndarray, total: int):
    least = sizes[sizes > 0].min(initial=99)
    np.testing.assert_array_equal(shares(sizes, None), np.minimum(sizes, least))
    taken = shares(sizes, total)
    assert taken.sum() == min(total, sizes.sum())
    assert (taken <= sizes).all()
    large = taken[taken < sizes]
    if len(large):
        assert large.max() - large.min() <= 1
        assert taken.max() <= large.min() + 1  # no group exceeds one that has clips to spare


@given(st.permutations(range(12)), st.integers(0, 3))
def test_clip_draw_depends_only_on_clip_id_and_seed(order: list[int], seed: int):
    ids = [clip_id_of(n) for n in range(12)]
    group, wanted = np.zeros(12, int), np.array([4])
    first = {ids[n] for n in np.flatnonzero(pick(ids, group, wanted, seed))}
    reordered = [ids[n] for n in order]
    assert {reordered[n] for n in np.flatnonzero(pick(reordered, group, wanted, seed))} == first
    # With more clips, only new clips replace earlier picks.
    more = [*ids, *(clip_id_of(n) for n in range(12, 16))]
    again = {more[n] for n in np.flatnonzero(pick(more, np.zeros(16, int), wanted, seed))}
    assert first - again <= set(ids) and len(first - again) == len(again - set(ids))
