"""The table of answers, and the figures computed from it alone.

The table has one row per window, row of the ladder and sample. `answers.parquet` is such a table:
every figure can be recomputed from it without a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.windows import Truth
from avomni_lib.evaluation import bootstrap
from avomni_lib.evaluation.claims import claims
from avomni_lib.evaluation.scores import FALLBACK, MODEL, Scores, parts_of
from avomni_lib.training.targets import Target

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("window", pa.int64()),  # index within the clip
        ("model", pa.string()),  # row of the ladder
        ("target", pa.string()),
        ("sample", pa.int64()),  # 0 is greedy, from 1 on sampled
        ("answer", pa.string()),  # as generated; null if there is none
        ("exact", pa.bool_()),  # the answer matches the target's form exactly
        ("valid", pa.bool_()),  # the answer can be read
        ("speed_mps", pa.float64()),  # as parsed; null if the answer has none
        ("displacement_m", pa.float64()),
        ("speed_true_mps", pa.float64()),
        ("displacement_true_m", pa.float64()),
        ("chord_true_m", pa.float64()),
        ("duration_s", pa.float64()),
        # x forward and y left of 64 steps of 0.1 s, in the rig's frame at the last frame.
        ("future_true_m", pa.list_(pa.float64())),
        ("along_true", pa.string()),
        ("across_true", pa.string()),
        ("cause_true", pa.string()),
        ("cause_from", pa.string()),
        ("turn_rad", pa.float64()),
        ("country", pa.string()),
        ("hour", pa.int64()),
        ("platform", pa.string()),
    ]
)

# Column of a user's own target: the ground truth, in the order of its numbers.
OWN_NUMBERS = pa.field("numbers_true", pa.list_(pa.float64()))

SPEEDS = ("standing (below 2 m/s)", "2–8 m/s", "8–15 m/s", "15–22 m/s", "over 22 m/s")
SPEED_EDGES_MPS = (-math.inf, 2, 8, 15, 22, math.inf)
# A motorway bend of 1,000 m radius turns a car at 30 m/s by 13° in 7.5 s: this is still straight.
TURNED_RAD = math.radians(15)
TURNS = ("straight (within 15°)", "left", "right")
HOURS = ("night (22–6 h)", "morning (6–10 h)", "day (10–17 h)", "evening (17–22 h)")
HOUR_EDGES = (0, 6, 10, 17, 22, 24)  # 22 to 24 h is night again
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Asked:
    """A window that the models answer.

    Attributes:
        number: Index of the window within its clip, from 0.
        turn_rad: Change of heading from the first frame to the last, positive to the left.
        attributes: `country` (str), `hour` (int, 0 to 23) and `platform` (str), where known.
    """

    clip_id: str
    number: int
    truth: Truth
    turn_rad: float
    attributes: Mapping[str, Any] = field(default_factory=dict)


def rows(
    name: str,
    target: Target,
    asked: Sequence[Asked],
    texts: Sequence[str | None],
    sample: int = 0,
) -> pa.Table:
    """One part of the table: the answers of one row of the ladder to all windows.

    Args:
        texts: One answer per window; None if there is none.
        sample: 0 for greedy answers, from 1 on for each set of sampled ones.
    """
    read = {text: target.read(text) for text in set(texts) - {None}}
    exact = {text for text in read if target.parse(text) is not None}
    lines = []
    for window, text in zip(asked, texts, strict=True):
        truth, driven, prediction = target.of(window.truth), window.truth, read.get(text)
        line = {
            "clip_id": window.clip_id,
            "window": window.number,
            "model": name,
            "target": target.name,
            "sample": sample,
            "answer": text,
            "exact": text in exact,
            "valid": prediction is not None,
            "speed_mps": prediction and prediction.speed_mps,
            "displacement_m": prediction and prediction.displacement_m,
            "speed_true_mps": driven.speed_mps,
            "displacement_true_m": driven.path_m,
            "chord_true_m": driven.chord_m,
            "duration_s": driven.duration_s,
            "future_true_m": driven.future and driven.future.xy_m.ravel(),
            "along_true": truth.along,
            "across_true": truth.across,
            "cause_true": truth.cause,
            "cause_from": truth.cause_from,
            "turn_rad": window.turn_rad,
            **{key: window.attributes.get(key) for key in ("country", "hour", "platform")},
            OWN_NUMBERS.name: truth.numbers,
        }
        lines.append(line)
    schema = SCHEMA.append(OWN_NUMBERS) if target.numbers else SCHEMA
    return pa.Table.from_pylist(lines, schema=schema)


def write(table: pa.Table, path: Path) -> Path:
    with files.write_whole(path) as file:
        pq.write_table(table, file)
    return path


def read(path: Path) -> pa.Table:
    """Read the answers of a run.

    Raises:
        AvomniError: there is no such file, or it is not a table of answers.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise AvomniError(
            f"no answers can be read: {error}", where=str(path), fix="run 06_evaluate again"
        ) from None
    if not any(table.schema.equals(one) for one in (SCHEMA, SCHEMA.append(OWN_NUMBERS))):
        raise AvomniError(
            f"not a table of answers: its columns are {', '.join(table.schema.names)}",
            where=str(path),
            fix="run 06_evaluate again",
        )
    return table


def figures(table: pa.Table) -> dict[str, Any]:
    """The stage's figures, computed from the answers alone, as plain values for `result.json`.

    Intervals are 95 % intervals from resampled clips (`bootstrap`), None with fewer than two
    clips. `interval` and `difference_interval` name the method: "BCa", or "percentile" where BCa is
    undefined. An answer that cannot be read is replaced by the mean row's for its window.
    Differences are the row's figure minus the model's.

    Returns:
        `ladder`: one entry per row, by the target's primary figure. `metrics`: row -> figure ->
        value, interval and difference. `slices`, `claims`: see the functions. `valid_share` (of
        the model), `valid_share_by_row`, `exact_share_by_row`, `num_windows`, `num_clips`; if the
        target has a summary, `speed_mae_mps` and `displacement_mae_m` by row.

    Raises:
        AvomniError: rows differ in their windows, a window is repeated, or targets are mixed.
    """
    scores = Scores(table)
    metrics: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in scores.models}
    for figure in scores.figures:
        rows = scores.models_with(figure)
        base = rows.index(MODEL) if MODEL in rows else None
        estimates = bootstrap.estimates(scores.statistic(figure), base)
        for row, value, difference in zip(rows, *estimates, strict=True):
            methods = {"interval": value.method, "difference_interval": difference.method}
            metrics[row][figure] = bootstrap.entry("value", value, difference) | methods
    valid, exact = (
        dict(zip(scores.models, scores.predictions(column).mean(axis=1).tolist(), strict=True))
        for column in ("valid", "exact")
    )
    ladder = [
        {
            "name": name,
            "target": scores.target,
            "metric": scores.primary,
            **metrics[name][scores.primary],
            **_counts(scores, scores.about(scores.primary)),
            "valid_share": valid[name],
        }
        for name in scores.models
    ]
    kept = ("speed_mae_mps", "displacement_mae_m") if "summary" in parts_of(scores.target) else ()
    return {
        **{name: {row: metrics[row][name]["value"] for row in metrics} for name in kept},
        "valid_share": valid.get(MODEL),
        "valid_share_by_row": valid,
        "exact_share_by_row": exact,
        "num_windows": len(scores.clips),
        "num_clips": scores.num_clips,
        "ladder": ladder,
        "metrics": metrics,
        "slices": slices(scores),
        "claims": claims(ladder),
    }


def _counts(scores: Scores, keep: np.ndarray) -> dict[str, int]:
    return {"num_clips": len(np.unique(scores.clips[keep])), "num_windows": int(keep.sum())}


def slices(scores: Scores) -> list[dict[str, Any]]:
    """The primary figure of the model and of the mean row in each slice of the windows.

    An attribute that is unknown for all windows makes no slices. Clips are resampled within a
    slice.

    Returns:
        A list of {by, value, metric, num_windows, num_clips, model, low, high, mean}: `model` with
        its interval, and `mean` of the mean row; None without such a row.
    """
    measured, nothing = [], bootstrap.Estimate()
    about, rows = scores.about(scores.primary), scores.models_with(scores.primary)
    for by, part in _parts(scores).items():
        for value in part.categories:
            keep = (part == value) & about
            if not keep.any():
                continue
            estimates = bootstrap.bounded(scores.statistic(scores.primary, keep))
            by_row = dict(zip(rows, estimates, strict=True))
            model, mean = by_row.get(MODEL, nothing), by_row.get(FALLBACK, nothing)
            place = {"by": by, "value": value, "metric": scores.primary, **_counts(scores, keep)}
            bounds = {"model": model.value, "low": model.low, "high": model.high}
            measured.append(place | bounds | {"mean": mean.value})
    return measured


def _parts(scores: Scores) -> dict[str, pd.Categorical]:
    """Attribute -> the slice of each of n windows, with the slices in the table's order."""
    speeds, turns, hours = map(scores.ground_truth, ("speed_true_mps", "turn_rad", "hour"))
    turned = np.select([turns >= TURNED_RAD, turns <= -TURNED_RAD], TURNS[1:], TURNS[0])
    parts = {
        "speed": pd.cut(speeds, SPEED_EDGES_MPS, right=False, labels=list(SPEEDS)),
        "turn": pd.Categorical(np.where(np.isnan(turns).all(), None, turned), list(TURNS)),
        "country": pd.Categorical(scores.ground_truth("country")),
        "hour": pd.cut(
            hours.astype(float), HOUR_EDGES, right=False, labels=[*HOURS, HOURS[0]], ordered=False
        ),
        "platform": pd.Categorical(scores.ground_truth("platform")),
    }
    parts = {by: part for by, part in parts.items() if not part.isna().all()}
    for by in parts.keys() - {"speed", "turn"}:
        part = parts[by]
        names = list(dict.fromkeys([*(HOURS if by == "hour" else part.categories), UNKNOWN]))
        parts[by] = pd.Categorical(np.where(part.isna(), UNKNOWN, part.astype(object)), names)
    return parts


def worst(table: pa.Table, model: str, num: int) -> list[dict[str, Any]]:
    """The windows with a row's largest errors by the primary figure, the worst first.

    At most one window per clip is returned: windows overlap, and the same moment would otherwise
    appear several times.

    Returns:
        Rows of the table as dictionaries.
    """
    scores = _alone(table, model)
    return _picked(scores, model, -scores.errors(model), num)


def typical(table: pa.Table, model: str, num: int) -> list[dict[str, Any]]:
    """The windows whose error is nearest to the row's median, at most one per clip; see `worst`."""
    scores = _alone(table, model)
    errors = scores.errors(model)
    middle = np.nanmedian(errors) if np.isfinite(errors).any() else 0.0
    return _picked(scores, model, np.abs(errors - middle), num)


def confusion(table: pa.Table, model: str, part: str) -> pd.DataFrame:
    """Confusion matrix of a manoeuvre: true classes (rows) by predicted classes (columns).

    Args:
        part: `along` or `across`.

    Returns:
        (K, K) int64 counts; answers without a class are not counted.
    """
    scores = _alone(table, model)
    truth = scores.ground_truth(f"{part}_true")
    predicted = scores.read(part)[scores.models.index(model)]
    classes = sorted({*truth, *predicted} - {None})
    return pd.crosstab(truth, predicted).reindex(index=classes, columns=classes, fill_value=0)


def _alone(table: pa.Table, model: str) -> Scores:
    """The greedy answers of one row and of the fallback row.

    Raises:
        AvomniError: there is no such row.
    """
    part = table.filter((pc.field("sample") == 0) & pc.field("model").isin([model, FALLBACK]))
    if model not in part["model"].unique().to_pylist():
        rows = ", ".join(table["model"].unique().to_pylist())
        raise AvomniError(f"no row {model!r}; there are {rows}", where="answers.parquet")
    return Scores(part)


def _picked(scores: Scores, model: str, rank: np.ndarray, num: int) -> list[dict[str, Any]]:
    """The rows of the table with the smallest ranks, one per clip; NaN ranks are left out."""
    order = np.argsort(rank, kind="stable")[: (~np.isnan(rank)).sum()]
    firsts = np.sort(np.unique(scores.clips[order], return_index=True)[1])[:num]
    places = scores.places[scores.models.index(model), order[firsts]]
    return scores.table.take(pa.array(places, pa.int64())).to_pylist()
