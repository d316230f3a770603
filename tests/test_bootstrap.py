"""Bootstrap intervals over clips: coverage, and independence of names, order and block size."""

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from avomni_lib.evaluation import bootstrap

CLIPS = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4])


def drawn(clips, rows=1, seed=0, of_clip=1.0, of_window=0.3):
    """(rows, n) normal values, mean 0, that windows of one clip share for the most part."""
    draw = np.random.default_rng(seed)
    shared = draw.normal(0, of_clip, (rows, clips.max() + 1))[:, clips]
    return shared + draw.normal(0, of_window, (rows, len(clips)))


def values_of(made):
    return [estimate.value for estimate in bootstrap.bounded(made, num=10)]


def test_mean_and_root_mean_square_match_values_computed_by_hand():
    clips = np.array([0, 0, 1])
    values = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    assert values_of(bootstrap.mean(values, clips)) == pytest.approx([3.0, 1.0])
    root = values_of(bootstrap.root_mean_square(values, clips))
    assert root == pytest.approx([math.sqrt(41 / 3), math.sqrt(3)])


def test_macro_f1_matches_values_computed_by_hand():
    # Ground truth 0 0 1 1 2; no window has class 3; -1 is a prediction without a class.
    true, clips = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1])
    predicted = np.array([[0, 1, 1, 1, 3], [0, 0, 1, 1, 2], [-1, -1, -1, -1, -1]])
    f1 = values_of(bootstrap.macro_f1([(predicted, true, 4)], clips))
    assert f1 == pytest.approx([(2 / 3 + 4 / 5 + 0) / 3, 1.0, 0.0])
    # For two parts the score is their mean.
    both = values_of(bootstrap.macro_f1([(predicted, true, 4), (predicted[::-1], true, 4)], clips))
    assert both == pytest.approx(np.add(f1, f1[::-1]) / 2)


@pytest.mark.parametrize("num_clips", [30, 80])
def test_interval_has_the_nominal_coverage(num_clips):
    clips = np.repeat(np.arange(num_clips), 4)
    num, covered = 200, 0
    for repetition in range(num):
        made = bootstrap.mean(drawn(clips, seed=repetition), clips)
        (estimate,) = bootstrap.bounded(made, repetition, num=400)
        covered += estimate.low <= 0 <= estimate.high
    # Nominal coverage is 95 %, with a standard deviation of 1.5 % over 200 repetitions.
    assert 0.90 <= covered / num <= 0.99


def test_pairing_narrows_the_interval_of_a_difference():
    clips = np.repeat(np.arange(50), 3)
    # The errors of both rows are correlated over clips, and one row is worse by 0.2.
    hard = drawn(clips)[0]
    rows = hard + np.array([[0.0], [0.2]]) + 0.1 * drawn(clips, 2, seed=1)
    _, (none, paired) = bootstrap.estimates(bootstrap.mean(rows, clips), base=0)
    one, other = (bootstrap.bounded(bootstrap.mean(rows[[row]], clips))[0] for row in (0, 1))
    # The variances of independent draws add up.
    half = math.hypot(one.high - one.low, other.high - other.low) / 2
    assert (none.value, none.low, none.high) == (0.0, 0.0, 0.0)
    assert paired.high - paired.low < 2 * half / 3
    assert paired.low > 0 > paired.value - half


def by_hand(plain, num_clips, seed, num):
    """scipy's own interval of a plain Python statistic over the numbers of the clips."""
    result = stats.bootstrap(
        (np.arange(num_clips),),
        lambda clips: plain(clips.astype(int).tolist()),
        n_resamples=num,
        vectorized=False,
        method="BCa",
        rng=seed,
    )
    return tuple(result.confidence_interval)


def clips_in_order(made):
    """The clips as the bootstrap numbers them."""
    return np.lexsort(made.sums.reshape(made.num_clips, -1).T[::-1]).tolist()


@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (bootstrap.mean, statistics.fmean),
        (bootstrap.root_mean_square, lambda all_: math.sqrt(statistics.fmean(x * x for x in all_))),
    ],
)
def test_intervals_agree_with_scipy_on_the_same_draws(make, plain):
    """The statistic is computed window by window in plain Python."""
    values = drawn(CLIPS, rows=2, seed=3)
    windows = [np.flatnonzero(clip == CLIPS).tolist() for clip in range(5)]
    made = make(values, CLIPS)
    order = clips_in_order(made)
    for row, estimate in zip(
        values.tolist(), bootstrap.bounded(made, seed=7, num=300), strict=True
    ):
        expected = by_hand(
            lambda clips, row=row: plain([row[i] for c in clips for i in windows[order[c]]]),
            *(5, 7, 300),
        )
        assert estimate.method == "BCa"
        assert (estimate.low, estimate.high) == pytest.approx(expected, rel=1e-9)


def test_macro_f1_intervals_agree_with_scipy_on_the_same_draws():
    draw = np.random.default_rng(5)
    clips = np.repeat(np.arange(6), 5)
    true, predicted = draw.integers(0, 3, 30), draw.integers(-1, 3, (2, 30))
    made = bootstrap.macro_f1([(predicted, true, 3)], clips)
    order = clips_in_order(made)
    for row, estimate in zip(predicted, bootstrap.bounded(made, seed=1, num=100), strict=True):

        def plain(drawn_, row=row):
            chosen = [i for c in drawn_ for i in np.flatnonzero(clips == order[c])]
            return _plain_f1(row[chosen], true[chosen])

        assert (estimate.low, estimate.high) == pytest.approx(by_hand(plain, 6, 1, 100), rel=1e-9)


def _plain_f1(predicted, true):
    scores = []
    for label in set(true.tolist()):
        hits = sum(
            1 for guess, right in zip(predicted, true, strict=True) if guess == right == label
        )
        precision = hits / max(sum(1 for guess in predicted if guess == label), 1)
        recall = hits / sum(1 for right in true if right == label)
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return statistics.fmean(scores)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_intervals_do_not_depend_on_clip_numbers_or_order(seed):
    values = drawn(CLIPS, rows=2, seed=seed)
    shuffled = list(range(5))
    random.Random(seed).shuffle(shuffled)
    # Renumbered clips, with the windows sorted by the new numbers.
    renamed = np.array(shuffled)[CLIPS]
    order = np.argsort(renamed, kind="stable")
    for make in (bootstrap.mean, bootstrap.root_mean_square):
        one = bootstrap.estimates(make(values, CLIPS), base=0)
        other = bootstrap.estimates(make(values[:, order], renamed[order]), base=0)
        assert one == other


def test_all_rows_use_the_same_resamples():
    values = drawn(CLIPS)
    made = bootstrap.mean(np.concatenate([values, values, 2 * values]), CLIPS)
    one, same, double = bootstrap.bounded(made)
    assert one == same
    assert (double.low, double.high) == pytest.approx((2 * one.low, 2 * one.high))


def test_block_size_does_not_change_the_intervals(monkeypatch):
    made = bootstrap.mean(drawn(CLIPS), CLIPS)
    whole = bootstrap.bounded(made, seed=3, num=100)
    monkeypatch.setattr(bootstrap, "_BLOCK_CELLS", 30)
    assert bootstrap.bounded(made, seed=3, num=100) == whole
    assert bootstrap.bounded(made, seed=4, num=100) != whole


def test_many_clips_use_percentile_intervals(monkeypatch):
    made = bootstrap.mean(drawn(CLIPS), CLIPS)
    (corrected,) = bootstrap.bounded(made)
    monkeypatch.setattr(bootstrap, "MOST_CLIPS_BCA", 4)
    (plain,) = bootstrap.bounded(made)
    assert (corrected.method, plain.method) == ("BCa", "percentile")
    assert corrected.low != plain.low
    assert plain.low == pytest.approx(corrected.low, abs=corrected.high - corrected.low)


def test_constant_values_have_an_interval_of_zero_width():
    (estimate,) = bootstrap.bounded(bootstrap.mean(np.full((1, len(CLIPS)), 0.25), CLIPS))
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)
    assert estimate.method == "percentile"


@pytest.mark.parametrize("num_clips", [0, 1])
def test_fewer_than_two_clips_have_no_interval(num_clips):
    clips = np.zeros(3 * num_clips, dtype=int)
    made = bootstrap.mean(np.ones((2, len(clips))), clips)
    assert made.num_clips == num_clips
    values, apart = bootstrap.estimates(made, base=0)
    expected = (1.0, None, None) if num_clips else (None, None, None)
    assert (values[1].value, values[1].low, values[1].high) == expected
    assert (apart[0].low, apart[0].high) == (None, None)


def test_resamples_without_a_matching_window_are_skipped():
    sums = np.array([[[4.0, 2.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    made = bootstrap.Statistic(sums, lambda sums: sums[..., 0] / sums[..., 1])
    (value,), _ = bootstrap.estimates(made)
    assert (value.value, value.low, value.high) == (2.0, 2.0, 2.0)
    assert value.method == "percentile"
