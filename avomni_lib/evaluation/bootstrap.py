"""How sure a score is: resampling whole clips, the same ones for every row of the ladder.

Windows of one clip overlap and resemble each other, so a clip is drawn with all its windows. Every
row is scored on the same draws: the difference of two rows is known better than either. Intervals
are scipy's BCa ones, corrected for bias and skewness: Efron and Tibshirani, "An Introduction to the
Bootstrap" (1993), chapter 14.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95
_BLOCK_CELLS = 1 << 21  # of one block of resamples: many clips need no more memory than a few
# BCa leaves out each clip in turn. Of more clips than these it costs more than the resamples do,
# and corrects what is beyond the digits shown.
MOST_CLIPS_BCA = 2000


@dataclass(frozen=True)
class Statistic:
    """A figure of every row of the ladder that follows from sums over clips.

    Attributes:
        sums: (C, R, k) float64, finite: what each of C clips adds, for each of R rows.
        finish: (..., R, k) sums over clips -> (..., R) the figure; NaN where there is none.
    """

    sums: np.ndarray
    finish: Callable[[np.ndarray], np.ndarray]

    @property
    def num_clips(self) -> int:
        return len(self.sums)

    def differences(self, pairs: list[tuple[int, int]]) -> Statistic:
        """Its rows, and after them for each pair (a, b) row b's figure minus row a's."""
        a, b = np.array(pairs, dtype=int).reshape(-1, 2).T

        def finish(sums: np.ndarray) -> np.ndarray:
            values = self.finish(sums)
            return np.concatenate([values, values[..., b] - values[..., a]], axis=-1)

        return Statistic(self.sums, finish)

    def of_draws(self, clips: np.ndarray) -> np.ndarray:
        """(..., R) float64: the figure of the clips (..., n) int that were drawn, some twice."""
        drawn, num = clips.reshape(-1, clips.shape[-1]), self.num_clips
        places = drawn + num * np.arange(len(drawn))[:, None]
        counts = np.bincount(places.ravel(), minlength=len(drawn) * num).reshape(-1, num)
        sums = counts.astype(np.float64) @ self.sums.reshape(num, self.sums[0].size)
        return self.finish(sums.reshape(*clips.shape[:-1], *self.sums.shape[1:]))

    def in_order(self) -> Statistic:
        """Clips ordered by their sums: so their names and places change no draw."""
        order = np.lexsort(self.sums.reshape(self.num_clips, self.sums[0].size).T[::-1])
        return Statistic(self.sums[order], self.finish)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the bounds of its interval; None where there is none.

    Attributes:
        method: Of the interval: "BCa", or "percentile" where BCa is not defined, as of a figure
            that is the same for each clip, or that some resamples do not have.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    method: str | None = None


def estimates(
    statistic: Statistic, base: int | None = None, seed: int = 0
) -> tuple[list[Estimate], list[Estimate]]:
    """A figure of each row, and how far each is from row `base` on the same resamples, if any."""
    num = statistic.sums.shape[1]
    if base is None:
        return bounded(statistic, seed), [Estimate()] * num
    both = bounded(statistic.differences([(base, row) for row in range(num)]), seed)
    return both[:num], both[num:]


def entry(name: str, value: Estimate, difference: Estimate) -> dict[str, float | None]:
    """A row's figure under `name`, its interval, and how far it is from the model's."""
    return {
        name: value.value,
        "low": value.low,
        "high": value.high,
        "difference_to_model": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }


def bounded(statistic: Statistic, seed: int = 0, num: int = NUM_RESAMPLES) -> list[Estimate]:
    """The figures of a statistic with 95 % intervals; of fewer than two clips there are none.

    A resample that holds no window of those that a figure speaks of says nothing about it.
    """
    ordered = statistic.in_order() if statistic.num_clips else statistic
    with np.errstate(all="ignore"):
        values = ordered.finish(ordered.sums.sum(axis=0))
    if statistic.num_clips < 2:
        return [Estimate(_known(value)) for value in values]
    from scipy import stats

    method = "BCa" if statistic.num_clips <= MOST_CLIPS_BCA else "percentile"
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of figures without a BCa interval, and of empty slices
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
    """The mean over windows, as a ratio of two sums: a clip counts by its windows.

    Args:
        values: (R, n) float64, finite, one a window.
        clips: (n,) int, the clip of each window, ascending.
    """
    return Statistic(_per_clip(np.stack([values, np.ones_like(values)], axis=-1), clips), _ratio)


def root_mean_square(values: np.ndarray, clips: np.ndarray) -> Statistic:
    """The root of the mean of squares over windows; arguments as of `mean`."""
    return Statistic(mean(np.square(values), clips).sums, lambda sums: np.sqrt(_ratio(sums)))


def macro_f1(parts: list[tuple[np.ndarray, np.ndarray, int]], clips: np.ndarray) -> Statistic:
    """The mean over classes of F1 = 2·hits / (true + predicted), averaged over `parts`.

    Classes that are true of no window are not averaged over, in the data as in each resample.

    Args:
        parts: (predicted (R, n) int, true (n,) int, number of classes K) each; a class is 0 to
            K - 1, and -1 is a prediction of none.
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
    """(R, n, k) of windows -> (C, R, k) sums of each clip that has a window."""
    firsts = np.flatnonzero(np.diff(clips, prepend=-1))
    if not len(firsts):
        return np.zeros((0, values.shape[0], values.shape[2]))
    sums = np.add.reduceat(values, firsts, axis=1, dtype=np.float64)
    return np.ascontiguousarray(sums.swapaxes(0, 1))
