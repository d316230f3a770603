"""How sure a score is: resampling whole clips, the same ones for every row of the ladder.

Windows of one clip overlap and resemble each other, so a clip is what is drawn, with all its
windows. Every row is scored on the same draws: what makes a draw hard for one row makes it hard for
the others, and the difference of two rows is known better than either.

Percentile intervals of the paired cluster bootstrap: Efron and Tibshirani, "An Introduction to the
Bootstrap" (1993), chapters 13 and 8.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95
# Of one block of weights, so that a hundred thousand clips need no more memory than a hundred.
_BLOCK_CELLS = 1 << 21


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

    def rows(self, places: list[int]) -> Statistic:
        """Of some rows alone."""
        return Statistic(self.sums[:, places], self.finish)

    def beside(self, other: Statistic) -> Statistic:
        """Its rows and then another's: the same figure of the same windows by other models."""
        return Statistic(np.concatenate([self.sums, other.sums], axis=1), self.finish)

    def value(self) -> np.ndarray:
        """(R,) float64, over all clips, each once."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.finish(self._in_order().sum(axis=0))

    def resampled(self, num: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray | None:
        """(num, R) float64: the figure on each resample; None of fewer than two clips."""
        if self.num_clips < 2:
            return None
        flat = self._in_order().reshape(self.num_clips, self.sums[0].size)
        with np.errstate(invalid="ignore", divide="ignore"):
            blocks = [
                self.finish((weights @ flat).reshape(len(weights), *self.sums.shape[1:]))
                for weights in draws(self.num_clips, num, seed)
            ]
        return np.concatenate(blocks)

    def _in_order(self) -> np.ndarray:
        """The sums, clips ordered by what they hold: so their names and places change nothing."""
        if not self.num_clips:
            return self.sums
        return self.sums[np.lexsort(self.sums.reshape(self.num_clips, -1).T[::-1])]


def draws(num_clips: int, num: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (b, C) float64 of how often each clip is in each of `num` resamples.

    Each resample has as many clips as there are, drawn with replacement.
    """
    generator = np.random.default_rng(seed)
    block = max(_BLOCK_CELLS // num_clips, 1)
    for first in range(0, num, block):
        size = min(block, num - first)
        drawn = generator.integers(num_clips, size=(size, num_clips))
        drawn += num_clips * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_clips)
        yield counts.reshape(size, num_clips).astype(np.float64)


def interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bounds, (R,) float64 each, between which the middle 95 % of the resamples lie.

    Args:
        resampled: (num, R). A resample that holds no window of those that a figure speaks of is
            NaN, and says nothing about it; where all are NaN, so are the bounds.
    """
    edges = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    if not np.isnan(resampled).any():
        low, high = np.percentile(resampled, edges, axis=0)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = np.nanpercentile(resampled, edges, axis=0)
    return low, high


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the bounds of its interval; None is what cannot be said."""

    value: float | None
    low: float | None
    high: float | None


def estimates(
    statistic: Statistic, base: int | None = None, seed: int = 0
) -> tuple[list[Estimate], list[Estimate]]:
    """A figure of each row, and how far each is from one of them on the same resamples.

    Args:
        base: The row that the others are compared with; without one the differences are to none.

    Returns:
        R figures, and R differences: the row's minus the base's.
    """
    values, resampled = statistic.value(), statistic.resampled(seed=seed)
    if base is None:
        none = [Estimate(None, None, None)] * len(values)
        return bounded(values, resampled), none
    apart = None if resampled is None else resampled - resampled[:, [base]]
    return bounded(values, resampled), bounded(values - values[base], apart)


def bounded(values: np.ndarray, resampled: np.ndarray | None) -> list[Estimate]:
    """Figures (R,) with the intervals of their resamples (num, R); None of these has none."""
    unknown = np.full(len(values), np.nan)
    low, high = (unknown, unknown) if resampled is None else interval(resampled)
    return [
        Estimate(*(None if np.isnan(x) else float(x) for x in each))
        for each in zip(values, low, high, strict=True)
    ]


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
    """The mean over classes of F1 = 2·hits / (true + said), averaged over `parts`.

    Classes that are true of no window are not averaged over, in the data as in each resample.

    Args:
        parts: (said (R, n) int, true (n,) int, number of classes K) each; a class is 0 to K - 1,
            and said is -1 where nothing was.
        clips: (n,) int, the clip of each window, ascending.
    """
    columns, sizes = [], []
    for said, true, num_classes in parts:
        classes = np.arange(num_classes)
        is_said = said[..., None] == classes
        is_true = np.broadcast_to(true[:, None] == classes, is_said.shape)
        columns += [is_said & is_true, is_true, is_said]
        sizes.append(num_classes)

    def finish(sums: np.ndarray) -> np.ndarray:
        scores, first = [], 0
        for size in sizes:
            hits, true, said = np.split(sums[..., first : first + 3 * size], 3, axis=-1)
            first += 3 * size
            f1 = np.where(true > 0, 2 * hits / (true + said), 0.0)
            scores.append(f1.sum(axis=-1) / (true > 0).sum(axis=-1))
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
