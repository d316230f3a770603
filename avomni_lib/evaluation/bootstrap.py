"""Confidence intervals of scores by the bootstrap over whole clips.

Windows of one clip overlap and are correlated, so a clip is resampled with all its windows. Every
row of the ladder is scored on the same resamples, so the difference of two rows is known more
precisely than either. Intervals are scipy's BCa intervals, corrected for bias and skewness: Efron
and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 14.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95
_BLOCK_CELLS = 1 << 21  # cells of one block of resamples: bounds memory for many clips
# BCa leaves out one clip at a time. With more clips than this it costs more than the resamples,
# and its correction is below the digits shown.
MOST_CLIPS_BCA = 2000


@dataclass(frozen=True)
class Statistic:
    """A figure of every row of the ladder that is a function of sums over clips.

    Attributes:
        sums: (C, R, k) float64, finite: contribution of each of C clips for each of R rows.
        finish: Maps sums over clips (..., R, k) to the figure (..., R); NaN where undefined.
    """

    sums: np.ndarray
    finish: Callable[[np.ndarray], np.ndarray]

    @property
    def num_clips(self) -> int:
        return len(self.sums)

    def differences(self, pairs: list[tuple[int, int]]) -> Statistic:
        """The rows of this one, followed by row b's figure minus row a's for each pair (a, b)."""
        a, b = np.array(pairs, dtype=int).reshape(-1, 2).T

        def finish(sums: np.ndarray) -> np.ndarray:
            values = self.finish(sums)
            return np.concatenate([values, values[..., b] - values[..., a]], axis=-1)

        return Statistic(self.sums, finish)

    def of_draws(self, clips: np.ndarray) -> np.ndarray:
        """(..., R) float64: the figure of clips (..., n) int drawn with replacement."""
        drawn, num = clips.reshape(-1, clips.shape[-1]), self.num_clips
        places = drawn + num * np.arange(len(drawn))[:, None]
        counts = np.bincount(places.ravel(), minlength=len(drawn) * num).reshape(-1, num)
        sums = counts.astype(np.float64) @ self.sums.reshape(num, self.sums[0].size)
        return self.finish(sums.reshape(*clips.shape[:-1], *self.sums.shape[1:]))

    def in_order(self) -> Statistic:
        """Clips sorted by their sums, so that resamples do not depend on the clips' order."""
        order = np.lexsort(self.sums.reshape(self.num_clips, self.sums[0].size).T[::-1])
        return Statistic(self.sums[order], self.finish)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the bounds of its interval; None where undefined.

    Attributes:
        method: "BCa", or "percentile" where BCa is undefined, which happens if the figure is the
            same for every clip or undefined for some resamples.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    method: str | None = None


def estimates(
    statistic: Statistic, base: int | None = None, seed: int = 0
) -> tuple[list[Estimate], list[Estimate]]:
    """The figure of each row, and its difference to row `base` (if any) on the same resamples."""
    num = statistic.sums.shape[1]
    if base is None:
        return bounded(statistic, seed), [Estimate()] * num
    both = bounded(statistic.differences([(base, row) for row in range(num)]), seed)
    return both[:num], both[num:]


def entry(name: str, value: Estimate, difference: Estimate) -> dict[str, float | None]:
    """A row's figure under `name`, its interval, and its difference to the model's figure."""
    return {
        name: value.value,
        "low": value.low,
        "high": value.high,
        "difference_to_model": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }


def bounded(statistic: Statistic, seed: int = 0, num: int = NUM_RESAMPLES) -> list[Estimate]:
    """The figures of a statistic with 95 % intervals; without intervals for fewer than two clips.

    Resamples in which a figure is undefined are ignored.
    """
    ordered = statistic.in_order() if statistic.num_clips else statistic
    with np.errstate(all="ignore"):
        values = ordered.finish(ordered.sums.sum(axis=0))
    if statistic.num_clips < 2:
        return [Estimate(_known(value)) for value in values]
    from scipy import stats

    method = "BCa" if statistic.num_clips <= MOST_CLIPS_BCA else "percentile"
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # figures without a BCa interval, and empty slices
        drawn = stats.bootstrap(
            (np.arange(statistic.num_clips),),
            lambda clips, axis: np.moveaxis(ordered.of_draws(clips), -1, 0),
            n_resamples=num,
            batch=max(_BLOCK_CELLS // statistic.num_clips, 1),
            vectorized=True,
            confidence_level=LEVEL,
            method=method,
            rng=seed,
        )
        bounds = np.array(drawn.confidence_interval)
        edges = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
        plain = np.nanpercentile(drawn.bootstrap_distribution, edges, axis=-1)
    undefined = ~np.isfinite(bounds).all(axis=0)
    low, high = np.where(undefined, plain, bounds)
    methods = np.where(undefined, "percentile", method)
    return [
        Estimate(_known(value), _known(a), _known(b), None if np.isnan(a) else str(by))
        for value, a, b, by in zip(values, low, high, methods, strict=True)
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def mean(values: np.ndarray, clips: np.ndarray) -> Statistic:
    """The mean over windows, as a ratio of two sums: clips are weighted by their windows.

    Args:
        values: (R, n) float64, finite, one value per window.
        clips: (n,) int, the clip of each window, ascending.
    """
    return Statistic(_per_clip(np.stack([values, np.ones_like(values)], axis=-1), clips), _ratio)


def root_mean_square(values: np.ndarray, clips: np.ndarray) -> Statistic:
    """The root mean square over windows; arguments as in `mean`."""
    return Statistic(mean(np.square(values), clips).sums, lambda sums: np.sqrt(_ratio(sums)))


def macro_f1(parts: list[tuple[np.ndarray, np.ndarray, int]], clips: np.ndarray) -> Statistic:
    """The mean over classes of F1 = 2·hits / (true + predicted), averaged over `parts`.

    Classes without a true window are left out, in the data as in each resample.

    Args:
        parts: Tuples (predicted (R, n) int, true (n,) int, number of classes K); a class is 0 to
            K - 1, and -1 means that none was predicted.
        clips: (n,) int, the clip of each window, ascending.
    """
    columns = []
    for predicted, truth, num_classes in parts:
        is_predicted = predicted[..., None] == np.arange(num_classes)
        is_true = np.broadcast_to(truth[:, None] == np.arange(num_classes), is_predicted.shape)
        columns += [is_predicted & is_true, is_true, is_predicted]
    ends = np.cumsum([column.shape[-1] for column in columns])[:-1]

    def finish(sums: np.ndarray) -> np.ndarray:
        split, scores = np.split(sums, ends, axis=-1), []
        for hits, truth, predicted in zip(split[::3], split[1::3], split[2::3], strict=True):
            f1 = np.where(truth > 0, 2 * hits / (truth + predicted), 0.0)
            scores.append(f1.sum(axis=-1) / (truth > 0).sum(axis=-1))
        return np.mean(scores, axis=0)

    return Statistic(_per_clip(np.concatenate(columns, axis=-1), clips), finish)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _per_clip(values: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """(R, n, k) values of windows -> (C, R, k) sums over the windows of each clip."""
    firsts = np.flatnonzero(np.diff(clips, prepend=-1))
    if not len(firsts):
        return np.zeros((0, values.shape[0], values.shape[2]))
    sums = np.add.reduceat(values, firsts, axis=1, dtype=np.float64)
    return np.ascontiguousarray(sums.swapaxes(0, 1))
