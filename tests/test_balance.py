"""As many of each group as there can be, and the same ones each time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.dataset.select.balance import pick, shares
from tests.published_set import clip_id_of

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(np.array)


@settings(deadline=None)
@given(SIZES, st.integers(0, 50))
def test_shares_are_equal_where_there_are_enough_and_all_else(sizes: np.ndarray, total: int):
    taken = shares(sizes, total)
    assert taken.sum() == min(total, sizes.sum())
    assert (taken <= sizes).all()
    large = taken[taken < sizes]
    if len(large):
        assert large.max() - large.min() <= 1
        assert taken.max() <= large.min() + 1  # nobody got more than one who could have had more


@settings(deadline=None)
@given(SIZES)
def test_without_a_total_each_gets_as_much_as_the_smallest_has(sizes: np.ndarray):
    taken = shares(sizes, None)
    there = sizes > 0
    assert (taken[~there] == 0).all()
    assert set(taken[there]) == ({sizes[there].min()} if there.any() else set())


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 5), st.integers(0, 3))
def test_picks_are_so_many_of_each_group(groups: list[int], most: int, seed: int):
    group = np.array(groups, int)
    wanted = shares(np.bincount(group, minlength=3), most)
    ids = [clip_id_of(n) for n in range(len(group))]
    taken = pick(ids, group, wanted, seed)
    np.testing.assert_array_equal(np.bincount(group[taken], minlength=3), wanted)


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(0, 3))
def test_a_clips_luck_lies_in_its_name_and_the_seed(order: list[int], seed: int):
    ids = [clip_id_of(n) for n in range(12)]
    group, wanted = np.zeros(12, int), np.array([4])
    first = {ids[n] for n in np.flatnonzero(pick(ids, group, wanted, seed))}
    turned = [ids[n] for n in order]
    assert {turned[n] for n in np.flatnonzero(pick(turned, group, wanted, seed))} == first
    # A set that grows keeps its picks, but for those that newcomers beat.
    more = [*ids, *(clip_id_of(n) for n in range(12, 16))]
    again = {more[n] for n in np.flatnonzero(pick(more, np.zeros(16, int), wanted, seed))}
    assert first - again <= set(ids) and len(first - again) == len(again - set(ids))


def test_another_seed_draws_others():
    ids = [clip_id_of(n) for n in range(100)]
    drawn = {
        tuple(pick(ids, np.zeros(100, int), np.array([10]), seed).tolist()) for seed in range(5)
    }
    assert len(drawn) == 5
