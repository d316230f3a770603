"""Compares two runs on the windows that both answered, and summarises one run over several seeds.

`compare` uses paired resamples of two runs. An interval over the clips of one run covers the
sampling of clips for given weights, not the variation between trainings or generated worlds;
`spread` computes mean and standard deviation over runs of several seeds:

    python -m avomni_lib.evaluation.comparison outputs/seed_11 outputs/seed_12 outputs/seed_13
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import bootstrap, metrics
from avomni_lib.evaluation.claims import FEWEST_CLIPS
from avomni_lib.evaluation.scores import FALLBACK, MODEL, Scores, metric
from avomni_lib.plan import text_table

ANSWERS, STAGE, RESULT = "answers.parquet", "06_evaluate", "result.json"
HEAD = ("row", "figure", "A", "B", "B − A", "95 % interval", "")
TRUE_NUMBERS = ("speed_true_mps", "displacement_true_m", "chord_true_m", "duration_s", "turn_rad")
TRUE_WORDS = ("along_true", "across_true", "cause_true")
# Tolerance in m, s, m/s and rad; builds of a cache on different machines agree far better.
AGREES = 1e-4


@dataclass(frozen=True)
class Compared:
    """The result of a comparison.

    Attributes:
        figures: Plain values: `runs` {A, B} paths, `targets` {A, B}, `num_windows` and `num_clips`
            in both runs, `num_windows_only_in` {A, B}, `warnings`, and `rows`: row of the ladder
            -> figure -> {a, b, difference, low, high}. A difference is B's figure minus A's, with
            its 95 % interval; None where undefined.
    """

    figures: dict[str, Any]

    def lines(self) -> list[tuple[str, ...]]:
        """Every figure of the model, and the primary figure of the other rows."""
        rows, num_clips = self.figures["rows"], self.figures["num_clips"]
        return [
            (row, name, *_in_words(name, figures[name], num_clips))
            for row, figures in rows.items()
            for name in (figures if row == MODEL else list(figures)[:1])
        ]

    def title(self) -> list[str]:
        figures = self.figures
        runs, targets, only = (figures[name] for name in ("runs", "targets", "num_windows_only_in"))
        return [
            *(f"{side}: {runs[side]} ({targets[side]})" for side in ("A", "B")),
            f"{figures['num_windows']:,} windows of {figures['num_clips']:,} clips in both; "
            f"{only['A']:,} only in A, {only['B']:,} only in B",
        ]

    def __str__(self) -> str:
        warnings = [f"! {warning}" for warning in self.figures["warnings"]]
        return "\n".join([*self.title(), *warnings, "", text_table([HEAD, *self.lines()])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title = "<br>".join(map(html.escape, self.title()))
        warnings = [f"<p><b>Note:</b> {html.escape(line)}</p>" for line in self.figures["warnings"]]
        table = pd.DataFrame(self.lines(), columns=list(HEAD)).to_html(index=False, justify="left")
        return f"<p>{title}</p>{''.join(warnings)}{table}"


def compare(run_a: Path | str, run_b: Path | str) -> Compared:
    """Compare two runs.

    An answer that cannot be read is replaced by the mean row's of the same run. Figures are
    computed on the windows that both runs answered, and may differ from those in `result.json`.

    Args:
        run_a, run_b: A run's folder (outputs/<run>), its folder of 06_evaluate, or a file of
            answers.

    Raises:
        AvomniError: there is no such run, it has no answers, the two have no window, row or figure
            in common, or the ground truth of a window differs.
    """
    paths = {"A": _answers(run_a), "B": _answers(run_b)}
    where = " and ".join(map(str, paths.values()))
    tables = {side: metrics.read(path) for side, path in paths.items()}
    keys = {
        side: pd.MultiIndex.from_frame(table.select(["clip_id", "window"]).to_pandas())
        for side, table in tables.items()
    }
    common = keys["A"].intersection(keys["B"]).unique()
    only = {side: len(windows.unique().difference(common)) for side, windows in keys.items()}
    if common.empty:
        raise AvomniError(
            f"no window in common: {only['A']:,} windows in A and {only['B']:,} others in B",
            where=where,
            fix="compare runs of one data set and one evaluation.split",
        )
    a, b = (Scores(table.filter(keys[side].isin(common))) for side, table in tables.items())
    _check_truth(a, b, where)
    rows = _rows(a, b)
    if not rows:
        raise AvomniError(
            f"no row of the ladder and figure in common: the target of A is {a.target}, of B "
            f"{b.target}",
            where=where,
            fix="compare runs whose training.target has parts in common, such as summary_v1 and "
            "full_v1",
        )
    figures = {
        "runs": {side: str(path) for side, path in paths.items()},
        "targets": {"A": a.target, "B": b.target},
        "num_windows": len(common),
        "num_clips": a.num_clips,
        "num_windows_only_in": only,
        "warnings": _warnings(paths, a.num_clips),
        "rows": rows,
    }
    return Compared(figures)


def _rows(a: Scores, b: Scores) -> dict[str, dict[str, dict[str, float | None]]]:
    """Row -> figure -> {a, b, difference, low, high}, the model's row first."""
    names = sorted((name for name in a.models if name in b.models), key=lambda name: name != MODEL)
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    for figure in (name for name in a.figures if name in b.figures):
        rows_a, rows_b = a.models_with(figure), b.models_with(figure)
        shared = [row for row in names if row in rows_a and row in rows_b]
        keep, num = a.about(figure) & b.about(figure), len(shared)
        statistic_a, statistic_b = a.statistic(figure, keep), b.statistic(figure, keep)
        sums_a = statistic_a.sums[:, [rows_a.index(row) for row in shared]]
        sums_b = statistic_b.sums[:, [rows_b.index(row) for row in shared]]
        # Both runs and their differences on the same resamples.
        both = bootstrap.Statistic(np.concatenate([sums_a, sums_b], axis=1), statistic_a.finish)
        differences = both.differences([(row, num + row) for row in range(num)])
        values = bootstrap.bounded(differences)
        for i, row in enumerate(shared):
            difference = values[2 * num + i]
            known = difference.value is not None
            rows[row][figure] = {
                "a": values[i].value if known else None,
                "b": values[num + i].value if known else None,
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
            }
    return {row: figures for row, figures in rows.items() if figures}


def _in_words(name: str, paired: dict[str, float | None], num_clips: int) -> tuple[str, ...]:
    """A, B, their difference, its interval, and which is better."""
    low, high = paired["low"], paired["high"]
    if paired["difference"] is None:
        return ("", "", "", "", "no window has it")
    if low is None or num_clips < FEWEST_CLIPS:
        verdict = "too few clips to say"
    elif low <= 0 <= high:
        verdict = "no difference shown"
    else:
        verdict = "B is better" if (low > 0) == metric(name).more_is_better else "A is better"
    numbers = (f"{paired['a']:.3f}", f"{paired['b']:.3f}", f"{paired['difference']:+.3f}")
    return (*numbers, "" if low is None else f"{low:+.3f} to {high:+.3f}", verdict)


def _answers(run: Path | str) -> Path:
    """The file of answers for a run's folder, a stage's folder or a file."""
    path = Path(run).expanduser()
    path = path if path.exists() else files.resolve(path)
    for place in (path, path / STAGE / ANSWERS, path / ANSWERS):
        if place.is_file():
            return place
    if not path.is_dir():
        fix = "name a run's folder, such as outputs/demo"
        raise AvomniError("no such run", where=str(path), fix=fix)
    where = str(path / STAGE / ANSWERS)
    raise AvomniError("this run has no answers yet", where=where, fix="run its 06_evaluate first")


def _check_truth(a: Scores, b: Scores, where: str) -> None:
    """Refuse runs whose ground truths differ: their windows are not the same."""
    for name in (*TRUE_NUMBERS, *TRUE_WORDS):
        truth_a, truth_b = a.ground_truth(name), b.ground_truth(name)
        if name in TRUE_NUMBERS:
            differ = ~np.isclose(truth_a, truth_b, rtol=0, atol=AGREES, equal_nan=True)
        else:
            # None: the run's target has no such part.
            differ = ~(
                np.equal(truth_a, truth_b) | np.equal(truth_a, None) | np.equal(truth_b, None)
            )
        if differ.any():
            i = int(np.argmax(differ))
            clip_id, window = a.ground_truth("clip_id")[i], a.ground_truth("window")[i]
            raise AvomniError(
                f"the runs disagree about {int(differ.sum()):,} of {len(differ):,} windows: "
                f"{name} of window {window} of clip {clip_id} is {truth_a[i]} in A and "
                f"{truth_b[i]} in B",
                where=where,
                fix="compare runs of the same processing.sequence_length, stride and sample_hz",
            )


def _warnings(paths: dict[str, Path], num_clips: int) -> list[str]:
    warnings, hashes = [], {}
    for side, path in paths.items():
        try:
            result = files.read_json(path.with_name(RESULT))
            hashes[side] = result["figures"].get("split_sha256")
        except (AvomniError, OSError, KeyError, TypeError, AttributeError):
            hashes[side] = None
    if hashes["A"] != hashes["B"]:
        both = ", ".join(f"{side} {(sha or 'not recorded')[:12]}" for side, sha in hashes.items())
        warnings.append(
            f"the runs were split differently (split_sha256: {both}): one may have trained on "
            "clips that the other is scored on"
        )
    if num_clips < FEWEST_CLIPS:
        warnings.append(
            f"clips in common: {num_clips}; intervals of fewer than {FEWEST_CLIPS} are too narrow "
            "to be trusted"
        )
    return warnings


def spread(runs: Sequence[Path | str]) -> tuple[str, pd.DataFrame]:
    """The metric's name and a table of its values: rows of the ladder by runs.

    Only rows that all runs have are returned, in the order of the first run.

    Raises:
        AvomniError: fewer than two runs, one without a score, or runs of different metrics.
    """
    if len(runs) < 2:
        raise AvomniError("one run has no spread", fix="name two runs or more, as outputs/seed_*")
    ladders = []
    for path in (Path(run) / STAGE / RESULT for run in runs):
        if not path.exists():
            raise AvomniError("no score there", where=str(path), fix="run its 06_evaluate first")
        ladder = files.read_record(path, figures=dict)["figures"]["ladder"]
        ladders.append(pd.DataFrame(ladder).set_index("name"))
    names = sorted(set(pd.concat(ladders)["metric"]))
    if len(names) > 1:
        fix = "name runs of one training.target"
        raise AvomniError(f"the runs are scored by {' and '.join(names)}", fix=fix)
    values = [ladder["value"].rename(str(run)) for ladder, run in zip(ladders, runs, strict=True)]
    return names[0], pd.concat(values, axis=1, join="inner").astype(float)


def spread_table(name: str, values: pd.DataFrame) -> pd.DataFrame:
    """Mean, sample standard deviation, mean ratio to the row `mean`, and the value per run."""
    fallback = values.loc[FALLBACK] if FALLBACK in values.index else float("nan")
    shares = (values / fallback).replace([np.inf, -np.inf], np.nan)
    figures = {
        f"{name}: mean": values.mean(axis=1),
        "deviation": values.std(axis=1),
        "of the mean row's": shares.mean(axis=1, skipna=False),
    }
    return pd.concat([pd.DataFrame(figures), values], axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the spread of the given runs."""
    parser = argparse.ArgumentParser(prog="python -m avomni_lib.evaluation.comparison")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="outputs/RUN")
    try:
        table = spread_table(*spread(parser.parse_args(arguments).runs))
        print(table.to_string(float_format="{:.3f}".format, na_rep="", index_names=False))
    except AvomniError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
