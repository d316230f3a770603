"""What each figure is, and what every row of the ladder gets by it, window by window."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avomni_lib import own_code
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import bootstrap, trajectories
from avomni_lib.training.targets import Said, coc, target
from avomni_lib.training.targets.form import bare

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
_BLOCK = 500  # windows: 64 steps of all rows of all windows would be gigabytes
MODEL = "adapted"  # the row that the run is about
FALLBACK = "mean"  # the row that stands in for an answer that cannot be read
NUM_WAYPOINTS, NUM_FUTURE = 16, 64
WORDS = ("along", "across", "cause")


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


@dataclass(frozen=True, eq=False)
class Aligned:
    """A table of answers as matrices: a line a row of the ladder, a column a window.

    Where an answer cannot be read, the mean's for that window stands in its place.

    Attributes:
        table: As `metrics.SCHEMA`.
        target: What all its answers speak about.
        names: The R rows of the ladder, in the order of the table.
        clips: (n,) int64, ascending: a number for each clip; n windows in all, by clip_id and
            number.
        places: (R, n) int64, the place in `table` of each greedy answer.
        sampled: Of the rows that have any, (K, n) places of the sampled answers.
    """

    table: pa.Table
    target: str
    names: tuple[str, ...]
    clips: np.ndarray
    places: np.ndarray
    sampled: dict[str, np.ndarray]

    @classmethod
    def of(cls, table: pa.Table) -> Aligned:
        """Find each row's answer for each window.

        Raises:
            AvomniError: there is no answer, they are of several targets, a row did not answer for
                the same windows as the others, each once, or the mean's own cannot be read.
        """
        frame = table.select(["clip_id", "window", "model", "target", "sample"]).to_pandas()
        names, targets = (list(frame[key].unique()) for key in ("model", "target"))
        if len(targets) != 1:
            raise _broken(
                f"answers of {' and '.join(targets)} in one table" if targets else "no answers"
            )
        frame["place"] = np.arange(len(frame))
        frame = frame.set_index(["clip_id", "window"])
        parts = {key: part["place"] for key, part in frame.groupby(["model", "sample"])}
        none = frame["place"][:0]
        first = FALLBACK if FALLBACK in names else names[0]
        asked = parts.get((first, 0), none).sort_index().index

        def matched(name: str, sample: int) -> np.ndarray:
            own = parts.get((name, sample), none)
            if asked.is_unique and own.index.sort_values().equals(asked):
                return own.reindex(asked).to_numpy()
            common, others = len(own.index.unique().intersection(asked)), asked.nunique()
            raise _broken(
                f"{name!r} has {len(own)} rows for {common} of the {others} windows that "
                f"{first!r} has"
            )

        greedy = np.stack([matched(name, 0) for name in names])
        samples = {name: sorted(s for of, s in parts if of == name and s) for name in names}
        sampled = {
            name: np.stack([matched(name, sample) for sample in of])
            for name, of in samples.items()
            if of
        }
        clips = pd.factorize(asked.get_level_values("clip_id"))[0]
        found = cls(table, targets[0], tuple(names), clips, greedy, sampled)
        if FALLBACK in names and not found.valid[names.index(FALLBACK)].all():
            raise _broken(f"an answer of {FALLBACK!r}, which stands in for others, cannot be read")
        return found

    @property
    def num_clips(self) -> int:
        return len(np.unique(self.clips))

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """(R, n) bool: whether the answer can be read."""
        return self.table["valid"].to_numpy()[self.places]

    @functools.cached_property
    def exact(self) -> np.ndarray:
        """(R, n) bool: whether it has the full form, to the letter."""
        return self.table["exact"].to_numpy()[self.places]

    def ground_truth(self, name: str) -> np.ndarray:
        """(n,) of a column that is the window's, whoever answers; null is NaN or None."""
        column = self.table[name].take(pa.array(self.places[0]))
        if pa.types.is_floating(column.type):
            return column.to_numpy()
        return np.array(column.to_pylist(), dtype=object)

    def future_m(self) -> np.ndarray:
        """(n, 64, 2) float64, the driven path."""
        lists = self.table["future_true_m"].take(pa.array(self.places[0])).combine_chunks()
        if lists.null_count or len(lists.flatten()) != len(lists) * NUM_FUTURE * 2:
            raise _broken("a window has no true path")
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, NUM_FUTURE, 2)

    def numbers(self, name: str) -> np.ndarray:
        """(R, n) float64, the predictions in the column of that name."""
        return self._filled(self.table[name].to_numpy()[self.places])

    def words(self, field: str) -> np.ndarray:
        """(R, n) str or None, the predictions of `along`, `across` or `cause`."""
        known = np.array([getattr(answer, field, None) for answer in self._read], dtype=object)
        return self._filled(known[self._texts[0][self.places]])

    def own_numbers(self) -> np.ndarray:
        """(R, n, K) float64: the predicted numbers of a target of the user's own."""
        known = self._known("numbers", (len(target(self.target).numbers),))
        return self._filled(known[self._texts[0][self.places]])

    def own_ground_truth(self) -> np.ndarray:
        """(n, K) float64: the same numbers in the ground truth."""
        return np.array(self.table["numbers_true"].take(pa.array(self.places[0])).to_pylist())

    def matches(self) -> np.ndarray:
        """(R, n) bool: whether an answer is the very text that the model had to give."""
        about, (codes, texts) = target(self.target), self._texts
        truth = [about.write(Said(numbers=tuple(row))) for row in self.own_ground_truth()]
        answers = np.array([*map(bare, texts), None], dtype=object)[codes[self.places]]
        return answers == np.array(truth, dtype=object)

    def waypoints_m(self, windows: slice = slice(None)) -> np.ndarray:
        """(R, m, 16, 2) float64: the predicted paths of some windows, in the rig's frame."""
        return self._paths(self.places[:, windows], windows)

    def sampled_m(self, name: str, windows: slice = slice(None)) -> np.ndarray:
        """(m, K, 16, 2) float64: the sampled answers of one row about some windows."""
        return self._paths(self.sampled[name][:, windows], windows).swapaxes(0, 1)

    def _paths(self, places: np.ndarray, windows: slice) -> np.ndarray:
        codes, known = self._texts[0], self._known_m
        paths = known[codes[places]]
        if FALLBACK not in self.names:
            return paths
        fallback = known[codes[self.places[self.names.index(FALLBACK), windows]]]
        return np.where(np.isnan(paths).any(axis=(-2, -1), keepdims=True), fallback, paths)

    def _filled(self, predictions: np.ndarray) -> np.ndarray:
        if FALLBACK not in self.names:
            return predictions
        return np.where(pd.isna(predictions), predictions[self.names.index(FALLBACK)], predictions)

    @functools.cached_property
    def _texts(self) -> tuple[np.ndarray, list[str]]:
        """The place of each row's text among the different ones, -1 where there is none; these."""
        codes, texts = pd.factorize(self.table["answer"].to_pandas())
        return codes, list(texts)

    @functools.cached_property
    def _read(self) -> list[Said | None]:
        """What each of the different texts says; the last one, place -1, is no text at all."""
        return [*map(target(self.target).read, self._texts[1]), None]

    def _known(self, field: str, shape: tuple[int, ...]) -> np.ndarray:
        """(N + 1, *shape) float64: a field of what each different text says, NaN where none is."""
        known = np.full((len(self._read), *shape), np.nan)
        for row, answer in zip(known, self._read, strict=True):
            if (value := getattr(answer, field, None)) is not None:
                row[:] = value
        return known

    @functools.cached_property
    def _known_m(self) -> np.ndarray:
        """(N + 1, 16, 2) float64: the path of each different text."""
        return self._known("waypoints_m", (NUM_WAYPOINTS, 2))


def _broken(what: str) -> AvomniError:
    return AvomniError(what, where="answers.parquet", fix="run 06_evaluate again")


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
                [(predicted[:, keep], truth[keep], num) for predicted, truth, num in parts], clips
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
            return np.mean([predicted[place] != truth for predicted, truth, _ in parts], axis=0)
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
        driven = of.ground_truth("displacement_true_m")
        wrong = speed - of.ground_truth("speed_true_mps")
        off = np.abs(displacement - driven)
        share = off / np.where(driven >= SHORTEST_M, driven, np.nan)
        return {
            "speed_mae_mps": np.abs(wrong),
            "speed_rmse_mps": wrong,
            "speed_mse": np.square(wrong),
            "displacement_mae_m": off,
            "displacement_mape": share,
            "consistency_m": np.abs(speed * of.ground_truth("duration_s") - displacement),
            "exact_share": of.exact.astype(np.float64),
        }

    def _numbers(self) -> dict[str, np.ndarray]:
        of = self.aligned
        off = np.abs(of.own_numbers() - of.own_ground_truth())
        names = target(of.target).numbers
        return {
            **{f"{name}{OWN}": off[..., i] for i, name in enumerate(names)},
            "match_share": of.matches().astype(np.float64),
            "exact_share": of.exact.astype(np.float64),
        }

    def _future(self) -> dict[str, np.ndarray]:
        truth, blocks = self._future_m, self._blocks()
        found = [trajectories.figures(self.aligned.waypoints_m(at), truth[at]) for at in blocks]
        return {name: np.concatenate([of[name] for of in found], axis=1) for name in found[0]}

    def _min_ade(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        truth, of_name = self._future_m, {}
        for row, places in self.aligned.sampled.items():
            best = [
                trajectories.min_ade(
                    trajectories.at_10hz(self.aligned.sampled_m(row, at)), truth[at]
                )
                for at in self._blocks()
            ]
            of_name.setdefault(f"min_ade{len(places)}_m", {})[row] = np.concatenate(best)
        return {name: (tuple(of), np.stack(list(of.values()))) for name, of in of_name.items()}

    @functools.cached_property
    def _future_m(self) -> np.ndarray:
        return self.aligned.future_m()

    def _blocks(self) -> list[slice]:
        num = self.aligned.places.shape[1]
        return [slice(first, first + _BLOCK) for first in range(0, num, _BLOCK)]

    def _cause(self) -> dict[str, np.ndarray]:
        truth, made_by = (self.aligned.ground_truth(f"cause_{name}") for name in ("true", "from"))
        score = np.frompyfunc(functools.cache(_word_f1), 2, 1)
        f1 = score(self.aligned.words("cause"), truth).astype(np.float64)
        kinds = sorted(set(made_by.tolist()) - {None})
        # Of one kind alone the same would stand there twice.
        apart = {
            f"cause_word_f1_{kind}": np.where(made_by == kind, f1, np.nan)
            for kind in (kinds if len(kinds) > 1 else ())
        }
        return {"cause_word_f1": f1, **apart}

    @functools.cached_property
    def _classes(self) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
        """Of `along` and `across` the classes predicted (R, n) and true (n,), and how many."""
        numbered = {}
        for part in ("along", "across"):
            truth, predicted = self.aligned.ground_truth(f"{part}_true"), self.aligned.words(part)
            # What is true of no window has no F1; predicting it is as wrong as saying nothing.
            classes = _classes_of(truth)
            codes = [
                pd.Index(classes, dtype=object).get_indexer(each.ravel()).reshape(each.shape)
                for each in (predicted, truth)
            ]
            numbered[part] = codes[0], codes[1], len(classes)
        return numbered

    def confusion(self, row: str, part: str) -> tuple[list[str], np.ndarray]:
        """How often each true class (lines) was predicted as each class (columns).

        Args:
            part: `along` or `across`.

        Returns:
            The K classes and (K, K) int64; an answer that says none is in no column.
        """
        truth = self.aligned.ground_truth(f"{part}_true")
        predicted = self.aligned.words(part)[self.aligned.names.index(row)]
        classes = _classes_of(truth, predicted)
        counts = pd.crosstab(truth, predicted).reindex(index=classes, columns=classes, fill_value=0)
        return classes, counts.to_numpy(np.int64)


def _classes_of(*values: np.ndarray) -> list[str]:
    found = set().union(*(each.ravel().tolist() for each in values))
    return sorted(found - {None})


def _word_f1(predicted: str | None, truth: str | None) -> float:
    return float("nan") if truth is None else coc.word_f1(predicted or "", truth)
