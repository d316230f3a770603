"""What each figure is, and what every row of the ladder gets by it, window by window."""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from avomni_lib import own_code
from avomni_lib.evaluation import bootstrap, trajectories
from avomni_lib.evaluation.aligned import Aligned
from avomni_lib.training.targets import coc, target

# What a target says, and by which figure its ladder stands.
PARTS = {
    "summary_v1": ("summary",),
    "future_v1": ("future",),
    "meta_v1": ("meta",),
    "coc_v1": ("cause",),
    "full_v1": ("summary", "future", "meta", "cause"),
}
PRIMARY = {
    "summary_v1": "speed_mae_mps",
    "future_v1": "ade_m",
    "meta_v1": "macro_f1",
    "coc_v1": "cause_word_f1",
    "full_v1": "speed_mae_mps",
}
OWN = "_mae"  # how the figure of a number is called that a user's own target says
# A share of less than this is a share of nothing: windows that stand have no percentage.
SHORTEST_M = 1.0
_BLOCK = 500


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure in words.

    Attributes:
        words: As in "its `words` is 0.31 m/s".
        unit: Empty for shares and F1.
        more_is_better: Else less is.
    """

    words: str
    unit: str = ""
    more_is_better: bool = False

    def shown(self, value: float, signed: bool = False) -> str:
        """A value with its unit."""
        text = f"{value:+.3f}" if signed else f"{value:.3f}"
        return f"{text} {self.unit}".rstrip()


METRICS = {
    "speed_mae_mps": Metric("mean absolute error of the speed", "m/s"),
    "speed_rmse_mps": Metric("root mean square error of the speed", "m/s"),
    "speed_mse": Metric("mean square error of the speed", "m²/s²"),
    "displacement_mae_m": Metric("mean absolute error of the displacement", "m"),
    "displacement_mape": Metric(
        f"mean error of the displacement as a share of it (windows of {SHORTEST_M:.0f} m and more)"
    ),
    "consistency_m": Metric("mean gap between speed times duration and the displacement", "m"),
    "exact_share": Metric("share of answers in the exact form", more_is_better=True),
    "match_share": Metric("share of answers that are the very text", more_is_better=True),
    "ade_m": Metric("average displacement error over 6.4 s", "m"),
    "fde_m": Metric("final displacement error at 6.4 s", "m"),
    "at_1s_m": Metric("mean distance after 1 s", "m"),
    "at_3s_m": Metric("mean distance after 3 s", "m"),
    "at_5s_m": Metric("mean distance after 5 s", "m"),
    "at_6_4s_m": Metric("mean distance after 6.4 s", "m"),
    "along_m": Metric("mean error along the driven path", "m"),
    "across_m": Metric("mean error across the driven path", "m"),
    "miss_rate": Metric("share of paths that end more than 2 m off"),
    "comfort_share": Metric("share of paths that are comfortable", more_is_better=True),
    "macro_f1": Metric("macro-F1 of the manoeuvre", more_is_better=True),
    "macro_f1_along": Metric("macro-F1 of the manoeuvre along the road", more_is_better=True),
    "macro_f1_across": Metric("macro-F1 of the manoeuvre across it", more_is_better=True),
    "cause_word_f1": Metric("F1 of the words of the cause", more_is_better=True),
    "cause_word_f1_event": Metric("the same where people wrote the cause", more_is_better=True),
    "cause_word_f1_template": Metric("the same where a template did", more_is_better=True),
}
_MIN_ADE = re.compile(r"min_ade(\d+)_m")
_ROOTS = {"speed_rmse_mps"}
_F1 = {
    "macro_f1": ("along", "across"),
    "macro_f1_along": ("along",),
    "macro_f1_across": ("across",),
}


def metric(name: str) -> Metric:
    """A figure in words; `min_ade6_m` and its like are known by their number of samples."""
    if found := _MIN_ADE.fullmatch(name):
        return Metric(f"average displacement error of the best of {found[1]} sampled paths", "m")
    if name not in METRICS and name.endswith(OWN):
        return Metric(f"mean absolute error of {name.removesuffix(OWN)}")
    return METRICS[name]


def parts_of(name: str) -> tuple[str, ...]:
    """What a target says: of a user's own its numbers."""
    return ("numbers",) if own_code.is_reference(name) else PARTS[name]


class Scores:
    """The figures of a table of answers.

    Args:
        aligned: The table, window by window.

    Attributes:
        primary: The figure by which its ladder stands.
    """

    def __init__(self, aligned: Aligned):
        self.aligned = aligned
        name = aligned.target
        self.primary = PRIMARY[name] if name in PRIMARY else target(name).figure

    @functools.cached_property
    def names(self) -> list[str]:
        """The figures that there are, the primary one first."""
        names = list(self._values)
        if "meta" in parts_of(self.aligned.target):
            names += _F1
        return sorted(names, key=lambda name: name != self.primary)

    def rows(self, name: str) -> list[str]:
        """The rows of the ladder that have a figure."""
        return list(self._values[name][0]) if name in self._values else list(self.aligned.names)

    def statistic(self, name: str, keep: np.ndarray | None = None) -> bootstrap.Statistic:
        """A figure of each of its rows over some windows.

        Args:
            keep: (n,) bool; None keeps all that the figure is about.
        """
        keep = self.about(name) if keep is None else keep & self.about(name)
        clips = self.aligned.clips[keep]
        if name in _F1:
            parts = [self._classes[part] for part in _F1[name]]
            return bootstrap.macro_f1(
                [(said[:, keep], true[keep], num) for said, true, num in parts], clips
            )
        values = self._values[name][1][:, keep]
        make = bootstrap.root_mean_square if name in _ROOTS else bootstrap.mean
        return make(values, clips)

    def about(self, name: str) -> np.ndarray:
        """(n,) bool: the windows that a figure is about, the same ones for each row."""
        if name in _F1:
            return np.logical_and.reduce([self._classes[part][1] >= 0 for part in _F1[name]])
        return ~np.isnan(self._values[name][1]).any(axis=0)

    def errors(self, row: str) -> np.ndarray:
        """(n,) float64: how far off one row is by the primary figure; more is worse.

        Of classes it is the share of them that is wrong, of an F1 what it lacks to 1.
        """
        place = self.aligned.names.index(row)
        if self.primary in _F1:
            parts = [self._classes[part] for part in _F1[self.primary]]
            return np.mean([said[place] != true for said, true, _ in parts], axis=0)
        values = self._values[self.primary][1][place]
        return 1 - values if metric(self.primary).more_is_better else values

    @functools.cached_property
    def _values(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Figure -> the rows that have it and (rows, n) float64; NaN where it is about nothing."""
        parts = parts_of(self.aligned.target)
        makers = {"summary": self._summary, "future": self._future, "cause": self._cause}
        makers["numbers"] = self._numbers
        values: dict[str, Any] = {}
        for part in parts:
            values |= makers[part]() if part in makers else {}
        values = {name: (self.aligned.names, table) for name, table in values.items()}
        return values | (self._min_ade() if "future" in parts else {})

    def _summary(self) -> dict[str, np.ndarray]:
        of = self.aligned
        speed, displacement = of.numbers("speed_mps"), of.numbers("displacement_m")
        driven = of.true("displacement_true_m")
        wrong = speed - of.true("speed_true_mps")
        off = np.abs(displacement - driven)
        share = off / np.where(driven >= SHORTEST_M, driven, np.nan)
        return {
            "speed_mae_mps": np.abs(wrong),
            "speed_rmse_mps": wrong,
            "speed_mse": np.square(wrong),
            "displacement_mae_m": off,
            "displacement_mape": share,
            "consistency_m": np.abs(speed * of.true("duration_s") - displacement),
            "exact_share": of.exact.astype(np.float64),
        }

    def _numbers(self) -> dict[str, np.ndarray]:
        of = self.aligned
        off = np.abs(of.own_numbers() - of.own_true())
        names = target(of.target).numbers
        return {
            **{f"{name}{OWN}": off[..., i] for i, name in enumerate(names)},
            "match_share": of.matches().astype(np.float64),
            "exact_share": of.exact.astype(np.float64),
        }

    def _future(self) -> dict[str, np.ndarray]:
        true, blocks = self._future_true_m, self._blocks()
        found = [trajectories.figures(self.aligned.waypoints_m(at), true[at]) for at in blocks]
        return {name: np.concatenate([of[name] for of in found], axis=1) for name in found[0]}

    def _min_ade(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        true, of_name = self._future_true_m, {}
        for row, places in self.aligned.sampled.items():
            best = [
                trajectories.min_ade(
                    trajectories.at_10hz(self.aligned.sampled_m(row, at)), true[at]
                )
                for at in self._blocks()
            ]
            of_name.setdefault(f"min_ade{len(places)}_m", {})[row] = np.concatenate(best)
        return {name: (tuple(of), np.stack(list(of.values()))) for name, of in of_name.items()}

    @functools.cached_property
    def _future_true_m(self) -> np.ndarray:
        return self.aligned.future_true_m()

    def _blocks(self) -> list[slice]:
        """Windows by the hundreds: 64 steps of all rows of all windows would be gigabytes."""
        num = self.aligned.places.shape[1]
        return [slice(first, first + _BLOCK) for first in range(0, num, _BLOCK)]

    def _cause(self) -> dict[str, np.ndarray]:
        true, said = self.aligned.true("cause_true"), self.aligned.words("cause")
        made_by = self.aligned.true("cause_from")
        scored: dict[tuple[str | None, str | None], float] = {}
        f1 = np.empty(said.shape)
        for place, one in np.ndenumerate(said):
            pair = (one, true[place[1]])
            if pair not in scored:
                scored[pair] = _word_f1(*pair)
            f1[place] = scored[pair]
        kinds = sorted(set(made_by.tolist()) - {None})
        # Of one kind alone the same would stand there twice.
        apart = {
            f"cause_word_f1_{kind}": np.where(made_by == kind, f1, np.nan)
            for kind in (kinds if len(kinds) > 1 else ())
        }
        return {"cause_word_f1": f1, **apart}

    @functools.cached_property
    def _classes(self) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
        """Of `along` and `across`: said (R, n) and true (n,) as numbers of classes; how many."""
        numbered = {}
        for part in ("along", "across"):
            true, said = self.aligned.true(f"{part}_true"), self.aligned.words(part)
            classes = _classes_of(true)
            # What is true of no window has no F1; saying it is as wrong as saying nothing.
            codes = np.frompyfunc({each: i for i, each in enumerate(classes)}.get, 2, 1)
            numbered[part] = codes(said, -1).astype(int), codes(true, -1).astype(int), len(classes)
        return numbered

    def confusion(self, row: str, part: str) -> tuple[list[str], np.ndarray]:
        """How often what is true (lines) was called what (columns).

        Args:
            part: `along` or `across`.

        Returns:
            The K classes and (K, K) int64; an answer that says none is in no column.
        """
        true, said = self.aligned.true(f"{part}_true"), self.aligned.words(part)
        said = said[self.aligned.names.index(row)]
        classes = _classes_of(true, said)
        counts = Counter(zip(true, said, strict=True))
        table = [[counts[line, column] for column in classes] for line in classes]
        return classes, np.array(table, dtype=np.int64).reshape(len(classes), len(classes))


def _classes_of(*values: np.ndarray) -> list[str]:
    found = set().union(*(each.ravel().tolist() for each in values))
    return sorted(found - {None})


def _word_f1(said: str | None, true: str | None) -> float:
    return float("nan") if true is None else coc.word_f1(said or "", true)
