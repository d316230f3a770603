"""Definitions of the figures, and their values for every row of the ladder and every window."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import bootstrap, trajectories
from avomni_lib.params import user_code
from avomni_lib.training.targets import Content, coc, target
from avomni_lib.training.targets.form import bare

# The parts of each target, and the primary figure of its ladder.
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
OWN = "_mae"  # suffix of the figures of a user's own target, one per number
SHORTEST_M = 1.0  # a percentage error is undefined for shorter displacements
_BLOCK = 500  # windows per block: 64 steps of all rows of all windows would take gigabytes
MODEL = "adapted"  # the row that the run is about
FALLBACK = "mean"  # the row whose answer replaces one that cannot be read
NUM_WAYPOINTS, NUM_FUTURE = 16, 64


@dataclass(frozen=True, slots=True)
class Metric:
    """Description of a figure.

    Attributes:
        words: As in "its `words` is 0.31 m/s".
        unit: Empty for shares and F1.
    """

    words: str
    unit: str = ""
    more_is_better: bool = False

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.3f} {self.unit}".rstrip()


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
_F1 = {
    "macro_f1": ("along", "across"),
    "macro_f1_along": ("along",),
    "macro_f1_across": ("across",),
}


def metric(name: str) -> Metric:
    """Description of a figure; the name of `min_ade6_m` contains its number of samples."""
    if match := _MIN_ADE.fullmatch(name):
        return Metric(f"average displacement error of the best of {match[1]} sampled paths", "m")
    if name not in METRICS and name.endswith(OWN):
        return Metric(f"mean absolute error of {name.removesuffix(OWN)}")
    return METRICS[name]


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a target's answer; a user's own target has only `numbers`."""
    return ("numbers",) if user_code.is_reference(name) else PARTS[name]


class Scores:
    """The figures of a table of answers, row of the ladder by window.

    An answer that cannot be read is replaced by the mean row's for that window.

    Args:
        table: See `metrics.SCHEMA`.

    Attributes:
        models: The R rows of the ladder, in the order of the table.
        windows: The n windows, by clip_id and number.
        clips: (n,) int64, ascending: index of each window's clip.
        places: (R, n) int64, index into `table` of each greedy answer.

    Raises:
        AvomniError: there is no answer, targets are mixed, a row did not answer the same windows
            as the others exactly once, or an answer of the mean row cannot be read.
    """

    def __init__(self, table: pa.Table):
        frame = table.select(["clip_id", "window", "model", "target", "sample"]).to_pandas()
        models, targets = (list(frame[key].unique()) for key in ("model", "target"))
        if len(targets) != 1:
            raise _broken(
                f"answers of {' and '.join(targets)} in one table" if targets else "no answers"
            )
        places = pd.Series(frame.index, frame.set_index(["clip_id", "window"]).index)
        parts = dict(list(places.groupby([frame["model"].to_numpy(), frame["sample"].to_numpy()])))
        first = FALLBACK if FALLBACK in models else models[0]
        windows = parts.get((first, 0), places[:0]).sort_index().index

        def matched(model: str, sample: int) -> np.ndarray:
            answered = parts.get((model, sample), places[:0])
            if windows.is_unique and answered.index.sort_values().equals(windows):
                return answered.reindex(windows).to_numpy()
            common = len(answered.index.unique().intersection(windows))
            raise _broken(
                f"{model!r} has {len(answered)} rows for {common} of the {windows.nunique()} "
                f"windows that {first!r} has"
            )

        self.table, self.target, self.models = table, targets[0], tuple(models)
        self.windows = windows
        self.places = np.stack([matched(model, 0) for model in models])
        drawn = sorted((key for key in parts if key[1]), key=lambda key: models.index(key[0]))
        self._sampled = {
            model: np.stack([matched(*key) for key in keys])
            for model, keys in itertools.groupby(drawn, key=lambda key: key[0])
        }
        self.clips = pd.factorize(windows.get_level_values("clip_id"))[0]
        self._mean = models.index(FALLBACK) if FALLBACK in models else None
        if self._mean is not None and not self.predictions("valid")[self._mean].all():
            raise _broken(f"an answer of {FALLBACK!r}, which stands in for others, cannot be read")
        about = target(self.target)
        self.primary = PRIMARY.get(self.target) or about.figure
        # Each distinct text is parsed once. The last entry stands for no text, which has code -1.
        self._codes, texts = pd.factorize(table["answer"].to_pandas())
        self._answers = [*map(about.read, texts), None]
        self._known = functools.cache(self._field)

    @property
    def num_clips(self) -> int:
        return len(np.unique(self.clips))

    def predictions(self, column: str) -> np.ndarray:
        """(R, n) values of a column of the table for the greedy answers."""
        return self.table[column].to_numpy()[self.places]

    def ground_truth(self, name: str) -> np.ndarray:
        """(n,) values of a column that is the same for all rows; null is NaN or None."""
        column = self.table[name].take(pa.array(self.places[0]))
        return column.to_numpy() if pa.types.is_floating(column.type) else _objects(column)

    def read(
        self,
        field: str,
        *shape: int,
        places: np.ndarray | None = None,
        windows: slice = slice(None),
    ) -> np.ndarray:
        """(R, n, ...) predictions of a field of `Content`: float64 of a shape, or strings and None.

        Args:
            shape: Shape of a numeric field; none for a string.
            places: (..., n) indices into the table; defaults to `self.places`.
            windows: Selects from the n windows.
        """
        known = self._known(field, shape)
        values = known[self._codes[(self.places if places is None else places)[..., windows]]]
        if self._mean is None:
            return values
        return _filled(values, known[self._codes[self.places[self._mean, windows]]])

    def _field(self, field: str, shape: tuple[int, ...]) -> np.ndarray:
        """(N + 1, ...) the field of each distinct text; NaN or None where it is missing."""
        values = [getattr(answer, field, None) for answer in self._answers]
        if not shape:
            return _objects(values)
        return np.array([np.full(shape, np.nan) if value is None else value for value in values])

    @functools.cached_property
    def future_m(self) -> np.ndarray:
        """(n, 64, 2) float64, the driven path."""
        lists = self.table["future_true_m"].take(pa.array(self.places[0])).combine_chunks()
        if lists.null_count or len(lists.flatten()) != len(lists) * NUM_FUTURE * 2:
            raise _broken("a window has no true path")
        return lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, NUM_FUTURE, 2)

    def paths_m(self, model: str) -> np.ndarray:
        """(1 + K, n, 64, 2) float64: a row's greedy paths, then those of its K samples."""
        greedy = self.places[[self.models.index(model)]]
        places = np.vstack([greedy, self._sampled.get(model, greedy[:0])])
        return trajectories.at_10hz(self.read("waypoints_m", NUM_WAYPOINTS, 2, places=places))

    @functools.cached_property
    def figures(self) -> list[str]:
        """The available figures, the primary one first."""
        names = [*self._values, *(_F1 if "meta" in parts_of(self.target) else ())]
        return sorted(names, key=lambda name: name != self.primary)

    def models_with(self, figure: str) -> tuple[str, ...]:
        """The rows of the ladder that have a figure."""
        return self._values[figure][0] if figure in self._values else self.models

    def statistic(self, figure: str, keep: np.ndarray | None = None) -> bootstrap.Statistic:
        """A figure of the rows that have it, over the windows where it is defined.

        Args:
            keep: (n,) bool, restricts the windows further.
        """
        keep = self.about(figure) if keep is None else keep & self.about(figure)
        clips = self.clips[keep]
        if figure in _F1:
            parts = [self._classes[part] for part in _F1[figure]]
            return bootstrap.macro_f1(
                [(predicted[:, keep], truth[keep], num) for predicted, truth, num in parts], clips
            )
        make = bootstrap.root_mean_square if figure == "speed_rmse_mps" else bootstrap.mean
        return make(self._values[figure][1][:, keep], clips)

    def about(self, figure: str) -> np.ndarray:
        """(n,) bool: the windows for which a figure is defined in every row."""
        if figure in _F1:
            return np.logical_and.reduce([self._classes[part][1] >= 0 for part in _F1[figure]])
        return ~np.isnan(self._values[figure][1]).any(axis=0)

    def errors(self, model: str) -> np.ndarray:
        """(n,) float64: errors of one row by the primary figure; larger is worse.

        For classes it is the share of wrong classes, for an F1 it is 1 - F1.
        """
        place = self.models.index(model)
        if self.primary in _F1:
            parts = [self._classes[part] for part in _F1[self.primary]]
            return np.mean([predicted[place] != truth for predicted, truth, _ in parts], axis=0)
        values = self._values[self.primary][1][place]
        return 1 - values if metric(self.primary).more_is_better else values

    @functools.cached_property
    def _values(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Figure -> the rows that have it and (rows, n) float64; NaN where it is undefined."""
        parts, values = parts_of(self.target), {}
        if "summary" in parts:
            values |= self._summary()
        if "future" in parts:
            true_m = self.future_m
            blocks = [slice(i, i + _BLOCK) for i in range(0, len(true_m), _BLOCK)]
            paths = functools.partial(self.read, "waypoints_m", NUM_WAYPOINTS, 2)
            by_block = [trajectories.figures(paths(windows=at), true_m[at]) for at in blocks]
            values |= {name: np.hstack([part[name] for part in by_block]) for name in by_block[0]}
        if "cause" in parts:
            values |= self._cause()
        if "numbers" in parts:
            values |= self._numbers()
        all_rows = {name: (self.models, errors) for name, errors in values.items()}
        best: dict[str, dict[str, np.ndarray]] = {}
        for model, places in self._sampled.items() if "future" in parts else ():
            sampled = [paths(places=places, windows=at).swapaxes(0, 1) for at in blocks]
            best.setdefault(f"min_ade{len(places)}_m", {})[model] = np.concatenate(
                [
                    trajectories.min_ade(trajectories.at_10hz(waypoints), true_m[at])
                    for waypoints, at in zip(sampled, blocks, strict=True)
                ]
            )
        return all_rows | {
            name: (tuple(rows), np.stack([*rows.values()])) for name, rows in best.items()
        }

    def _summary(self) -> dict[str, np.ndarray]:
        speed, displacement = map(self.predictions, ("speed_mps", "displacement_m"))
        if self._mean is not None:
            speed = _filled(speed, speed[self._mean])
            displacement = _filled(displacement, displacement[self._mean])
        driven = self.ground_truth("displacement_true_m")
        speed_error = speed - self.ground_truth("speed_true_mps")
        displacement_error = np.abs(displacement - driven)
        share = displacement_error / np.where(driven >= SHORTEST_M, driven, np.nan)
        return {
            "speed_mae_mps": np.abs(speed_error),
            "speed_rmse_mps": speed_error,
            "speed_mse": np.square(speed_error),
            "displacement_mae_m": displacement_error,
            "displacement_mape": share,
            "consistency_m": np.abs(speed * self.ground_truth("duration_s") - displacement),
            "exact_share": self.predictions("exact").astype(np.float64),
        }

    def _numbers(self) -> dict[str, np.ndarray]:
        """Figures of a user's own target; `match_share` counts answers equal to the target text."""
        about = target(self.target)
        truth = np.array(self.ground_truth("numbers_true").tolist())
        errors = np.abs(self.read("numbers", len(about.numbers)) - truth)
        wanted = np.array([about.write(Content(numbers=tuple(row))) for row in truth], dtype=object)
        texts = np.frompyfunc(lambda text: bare(text or ""), 1, 1)(self.predictions("answer"))
        return {
            **{f"{name}{OWN}": errors[..., i] for i, name in enumerate(about.numbers)},
            "match_share": (texts == wanted).astype(np.float64),
            "exact_share": self.predictions("exact").astype(np.float64),
        }

    def _cause(self) -> dict[str, np.ndarray]:
        truth, made_by = self.ground_truth("cause_true"), self.ground_truth("cause_from")
        score = np.frompyfunc(functools.cache(_word_f1), 2, 1)
        f1 = score(self.read("cause"), truth).astype(np.float64)
        kinds = sorted(set(made_by.tolist()) - {None})
        if len(kinds) < 2:  # the figure of the only kind would repeat `cause_word_f1`
            kinds = []
        by_kind = {f"cause_word_f1_{kind}": np.where(made_by == kind, f1, np.nan) for kind in kinds}
        return {"cause_word_f1": f1} | by_kind

    @functools.cached_property
    def _classes(self) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
        """`along` and `across` -> predicted (R, n) and true (n,) classes, and their number."""
        numbered = {}
        for part in ("along", "across"):
            truth, predicted = self.ground_truth(f"{part}_true"), self.read(part)
            # A class without a true window has no F1; predicting it counts as predicting none.
            classes = pd.Index(sorted(set(truth) - {None}), dtype=object)
            codes = classes.get_indexer(predicted.ravel()).reshape(predicted.shape)
            numbered[part] = (codes, classes.get_indexer(truth), len(classes))
        return numbered


def _broken(what: str) -> AvomniError:
    return AvomniError(what, where="answers.parquet", fix="run 06_evaluate again")


def _objects(values: Iterable[Any]) -> np.ndarray:
    """(n,) array of arbitrary objects; null is None."""
    values = values.to_pylist() if isinstance(values, pa.ChunkedArray) else list(values)
    return np.array([*values, None], dtype=object)[:-1]


def _filled(values: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Replace missing values by the mean row's."""
    return np.where(
        np.equal(values, None) if values.dtype == object else np.isnan(values), means, values
    )


def _word_f1(predicted: str | None, truth: str | None) -> float:
    return float("nan") if truth is None else coc.word_f1(predicted or "", truth)
