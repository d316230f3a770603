"""Answers to figures: one row a window and row of the ladder, and all that follows from them alone.

`answers.parquet` is such a table; whoever has it can recompute every figure without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.windows import Truth
from avomni_lib.evaluation import bootstrap
from avomni_lib.evaluation.claims import claims
from avomni_lib.evaluation.scores import FALLBACK, MODEL, Aligned, Scores, parts_of
from avomni_lib.evaluation.slices import slices
from avomni_lib.training.targets import Target

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("window", pa.int64()),  # number within the clip
        ("model", pa.string()),  # row of the ladder
        ("target", pa.string()),
        ("sample", pa.int64()),  # 0 is greedy, from 1 on sampled
        ("answer", pa.string()),  # as generated; null where nothing was said
        ("exact", pa.bool_()),  # it has the full form, to the letter
        ("valid", pa.bool_()),  # it can be read
        ("speed_mps", pa.float64()),  # as read; null where it says none
        ("displacement_m", pa.float64()),
        ("speed_true_mps", pa.float64()),
        ("displacement_true_m", pa.float64()),
        ("chord_true_m", pa.float64()),
        ("duration_s", pa.float64()),
        # 64 steps of 0.1 s, x forward and y left of each, in the rig's frame at the last frame.
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

# Of a target of the user's own: what is true, in the order of its numbers.
OWN_NUMBERS = pa.field("numbers_true", pa.list_(pa.float64()))


@dataclass(frozen=True)
class Asked:
    """A window that is asked about.

    Attributes:
        clip_id: Whose it is.
        number: Index of the window within its clip, from 0.
        truth: What the car did.
        turn_rad: Change of heading from the first frame to the last, to the left positive.
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
    """One part of the table: what one row of the ladder says about all windows.

    Args:
        name: Of the row.
        target: What the answers are about; reads them.
        asked: The windows.
        texts: An answer for each of them; None where there is none.
        sample: 0 for the greedy answers, a number from 1 on for each set of sampled ones.
    """
    spoken = [text for text in dict.fromkeys(texts) if text is not None]
    read = {None: None} | {text: target.read(text) for text in spoken}
    exact = {text for text in spoken if target.parse(text) is not None}
    said, true = [read[text] for text in texts], [target.of(each.truth) for each in asked]
    num = len(asked)

    def true_of(field_name: str) -> list[Any]:
        return [getattr(each.truth, field_name) for each in asked]

    def attribute(key: str) -> list[Any]:
        return [each.attributes.get(key) for each in asked]

    columns = {
        "clip_id": [each.clip_id for each in asked],
        "window": [each.number for each in asked],
        "model": [name] * num,
        "target": [target.name] * num,
        "sample": [sample] * num,
        "answer": list(texts),
        "exact": [text in exact for text in texts],
        "valid": [one is not None for one in said],
        "speed_mps": [one and one.speed_mps for one in said],
        "displacement_m": [one and one.displacement_m for one in said],
        "speed_true_mps": true_of("speed_mps"),
        "displacement_true_m": true_of("path_m"),
        "chord_true_m": true_of("chord_m"),
        "duration_s": true_of("duration_s"),
        "future_true_m": [each and each.xy_m.ravel() for each in true_of("future")],
        "along_true": [each.along for each in true],
        "across_true": [each.across for each in true],
        "cause_true": [each.cause for each in true],
        "cause_from": [each.cause_from for each in true],
        "turn_rad": [each.turn_rad for each in asked],
        "country": attribute("country"),
        "hour": attribute("hour"),
        "platform": attribute("platform"),
    }
    if not target.numbers:
        return pa.table(columns, schema=SCHEMA)
    columns[OWN_NUMBERS.name] = [each.numbers for each in true]
    return pa.table(columns, schema=SCHEMA.append(OWN_NUMBERS))


def write(table: pa.Table, path: Path) -> Path:
    with files.write_whole(path) as file:
        pq.write_table(table, file)
    return path


def read(path: Path) -> pa.Table:
    """The answers of a run.

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


def models(table: pa.Table) -> list[str]:
    """The rows of the ladder that a table has, in the order in which they come."""
    return table["model"].unique().to_pylist()


def figures(table: pa.Table, seed: int = 0) -> dict[str, Any]:
    """The stage's figures, from the answers alone, as plain values for `result.json`.

    Intervals are of 95 %, from resampled clips (`bootstrap`); None where there are fewer than two.
    `interval` and `difference_interval` name their method: "BCa", or "percentile" where that is
    not defined.
    An answer that cannot be read counts as the mean's for its window. Differences are the row's
    figure minus the model's.

    Args:
        seed: Of the resamples.

    Returns:
        `ladder`: an entry for each row, by the target's primary figure. `metrics`: row, figure ->
        value, interval and difference. `slices`, `claims`: see there. `valid_share` (of the model),
        `valid_share_by_row`, `exact_share_by_row`, `num_windows`, `num_clips`; of a target that
        says them `speed_mae_mps` and `displacement_mae_m` by row.

    Raises:
        AvomniError: the rows are not of the same windows, each once, or not of one target.
    """
    scores = Scores(Aligned.of(table))
    of = scores.aligned
    metrics: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in of.names}
    for figure in scores.names:
        for row, measured in _measured(scores, figure, seed).items():
            metrics[row][figure] = measured
    valid = dict(zip(of.names, of.valid.mean(axis=1).tolist(), strict=True))
    about = scores.about(scores.primary)
    counted = {
        "num_clips": len(np.unique(of.clips[about])),
        "num_windows": int(about.sum()),
    }
    ladder = [
        {
            "name": name,
            "target": of.target,
            "metric": scores.primary,
            **metrics[name][scores.primary],
            **counted,
            "valid_share": valid[name],
        }
        for name in of.names
    ]
    kept = ("speed_mae_mps", "displacement_mae_m") if "summary" in parts_of(of.target) else ()
    return {
        **{figure: {row: metrics[row][figure]["value"] for row in of.names} for figure in kept},
        "valid_share": valid.get(MODEL),
        "valid_share_by_row": valid,
        "exact_share_by_row": dict(zip(of.names, of.exact.mean(axis=1).tolist(), strict=True)),
        "num_windows": of.places.shape[1],
        "num_clips": of.num_clips,
        "ladder": ladder,
        "metrics": metrics,
        "slices": slices(scores, seed),
        "claims": claims(ladder),
    }


def worst(table: pa.Table, model: str, num: int) -> list[dict[str, Any]]:
    """The windows that a row is most wrong about by the primary figure, the worst first.

    At most one a clip: windows of a clip overlap, and without that bound the same bad second would
    be shown several times.

    Returns:
        Rows of the table, by column.
    """
    scores = _alone(table, model)
    return _picked(scores, model, -scores.errors(model), num)


def typical(table: pa.Table, model: str, num: int) -> list[dict[str, Any]]:
    """The windows whose error is nearest to the row's median, at most one a clip; see `worst`."""
    scores = _alone(table, model)
    errors = scores.errors(model)
    middle = np.nanmedian(errors) if np.isfinite(errors).any() else 0.0
    return _picked(scores, model, np.abs(errors - middle), num)


def confusion(table: pa.Table, model: str, part: str) -> tuple[list[str], np.ndarray]:
    """How often what is true (lines) was called what (columns); see `Scores.confusion`."""
    return _alone(table, model).confusion(model, part)


def _alone(table: pa.Table, model: str) -> Scores:
    """The greedy answers of one row, and of the one that stands in for what cannot be read.

    Raises:
        AvomniError: there is no such row.
    """
    is_row = pc.is_in(table["model"], pa.array([model, FALLBACK]))
    part = table.filter(pc.and_(is_row, pc.equal(table["sample"], 0)))
    if model not in models(part):
        raise AvomniError(
            f"no row {model!r}; there are {', '.join(models(table))}", where="answers.parquet"
        )
    return Scores(Aligned.of(part))


def _measured(scores: Scores, figure: str, seed: int) -> dict[str, dict[str, float | None]]:
    """Value, interval and difference of each row that has a figure; by which method they are."""
    rows_of = scores.rows(figure)
    base = rows_of.index(MODEL) if MODEL in rows_of else None
    values, apart = bootstrap.estimates(scores.statistic(figure), base, seed)
    return {
        row: {
            "value": value.value,
            "low": value.low,
            "high": value.high,
            "difference_to_model": difference.value,
            "difference_low": difference.low,
            "difference_high": difference.high,
            "interval": value.method,
            "difference_interval": difference.method,
        }
        for row, value, difference in zip(rows_of, values, apart, strict=True)
    }


def _picked(scores: Scores, model: str, rank: np.ndarray, num: int) -> list[dict[str, Any]]:
    """The rows of least rank, one a clip; a rank of NaN is none."""
    of = scores.aligned
    best: dict[int, int] = {}
    for i in np.argsort(rank, kind="stable"):
        if not np.isnan(rank[i]):
            best.setdefault(int(of.clips[i]), int(i))
    places = of.places[of.names.index(model)][list(best.values())[:num]]
    return of.table.take(pa.array(places, pa.int64())).to_pylist()
