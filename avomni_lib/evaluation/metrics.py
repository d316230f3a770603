"""Answers to errors: one row a window and model, and the figures that follow from the rows alone.

`answers.parquet` is such a table; whoever has it can recompute every figure without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avomni_lib import files
from avomni_lib.errors import AvomniError

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("window", pa.int64()),  # index within the clip
        ("model", pa.string()),
        ("answer", pa.string()),  # as generated; null for constants
        ("speed_mps", pa.float64()),  # read back; null where the answer does not parse
        ("speed_true_mps", pa.float64()),
        ("displacement_m", pa.float64()),
        ("displacement_true_m", pa.float64()),
    ]
)
MODEL = "adapted"  # the row that the run is about
FALLBACK = "mean"  # the row that stands in for an answer that does not parse


class Said(Protocol):
    """What was read back of an answer (`training/targets.py`: Summary)."""

    speed_mps: float
    displacement_m: float


@dataclass(frozen=True, slots=True)
class Errors:
    """One model's errors, window by window; where an answer did not parse the mean answers for it.

    Attributes:
        clip_ids: (n,) str.
        windows: (n,) int64, index within the clip.
        valid: (n,) bool, whether the answer parsed.
        speed_mps: (n,) float64 error, said minus true.
        displacement_m: (n,) float64 error, said minus true.
    """

    clip_ids: np.ndarray
    windows: np.ndarray
    valid: np.ndarray
    speed_mps: np.ndarray
    displacement_m: np.ndarray


@dataclass(frozen=True, slots=True)
class Score:
    """One model's figures over all windows."""

    num_windows: int
    num_valid: int
    speed_mae_mps: float
    speed_rmse_mps: float
    displacement_mae_m: float

    @property
    def valid_share(self) -> float:
        return self.num_valid / self.num_windows


def rows(
    model: str,
    clip_ids: Sequence[str],
    windows: Sequence[int],
    true: Sequence[tuple[float, float]],
    said: Sequence[Said | None],
    answers: Sequence[str | None],
) -> pa.Table:
    """One model's part of the table.

    Args:
        model: The row's name in the ladder.
        clip_ids: The clip of each window.
        windows: The window's index within its clip.
        true: (speed m/s, displacement m) of each window.
        said: What was read back of each answer; None where it does not parse.
        answers: The text of each answer; None for a constant.
    """
    return pa.table(
        {
            "clip_id": list(clip_ids),
            "window": list(windows),
            "model": [model] * len(clip_ids),
            "answer": list(answers),
            "speed_mps": [None if one is None else one.speed_mps for one in said],
            "speed_true_mps": [speed for speed, _ in true],
            "displacement_m": [None if one is None else one.displacement_m for one in said],
            "displacement_true_m": [displacement for _, displacement in true],
        },
        schema=SCHEMA,
    )


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
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise AvomniError(
            f"no answers can be read: {error}", where=str(path), fix="run 06_evaluate again"
        ) from None
    if not table.schema.equals(SCHEMA):
        raise AvomniError(
            f"not a table of answers: its columns are {', '.join(table.schema.names)}",
            where=str(path),
            fix="run 06_evaluate again",
        )
    return table


def models(table: pa.Table) -> list[str]:
    """The models of a table, in the order of their first rows."""
    return table["model"].unique().to_pylist()


def errors(table: pa.Table, model: str) -> Errors:
    """One model's errors.

    Raises:
        AvomniError: the model did not answer for the same windows as the mean, each once.
    """
    fallback, own = _rows_of(table, FALLBACK), _rows_of(table, model)
    keys = list(zip(own["clip_id"], own["window"], strict=True))
    place = {
        key: i for i, key in enumerate(zip(fallback["clip_id"], fallback["window"], strict=True))
    }
    if len(set(keys)) != len(keys) or set(keys) != set(place) or not keys:
        raise AvomniError(
            f"{model!r} has {len(keys)} rows for {len(set(keys) & set(place))} of the "
            f"{len(place)} windows that {FALLBACK!r} has",
            where="answers.parquet",
            fix="run 06_evaluate again",
        )
    order = np.array([place[key] for key in keys])
    valid = ~np.isnan(own["speed_mps"]) & ~np.isnan(own["displacement_m"])

    def error(said: str, true: str) -> np.ndarray:
        return np.where(valid, own[said], fallback[said][order]) - own[true]

    return Errors(
        clip_ids=own["clip_id"],
        windows=own["window"],
        valid=valid,
        speed_mps=error("speed_mps", "speed_true_mps"),
        displacement_m=error("displacement_m", "displacement_true_m"),
    )


def score(table: pa.Table, model: str) -> Score:
    """One model's figures; an answer that does not parse counts as predict-the-mean."""
    of = errors(table, model)
    return Score(
        num_windows=len(of.valid),
        num_valid=int(of.valid.sum()),
        speed_mae_mps=float(np.abs(of.speed_mps).mean()),
        speed_rmse_mps=float(np.sqrt(np.square(of.speed_mps).mean())),
        displacement_mae_m=float(np.abs(of.displacement_m).mean()),
    )


def figures(table: pa.Table) -> dict[str, Any]:
    """The stage's figures, from the answers alone.

    `valid_share` is the adapted model's; `valid_share_by_row` has all, 1 for constants by nature.
    """
    scores = {model: score(table, model) for model in models(table)}
    return {
        "speed_mae_mps": {model: one.speed_mae_mps for model, one in scores.items()},
        "displacement_mae_m": {model: one.displacement_mae_m for model, one in scores.items()},
        "valid_share": scores[MODEL].valid_share if MODEL in scores else None,
        "valid_share_by_row": {model: one.valid_share for model, one in scores.items()},
        "num_windows": scores[FALLBACK].num_windows,
        "num_clips": len(table["clip_id"].unique()),
    }


def worst(table: pa.Table, model: str, num: int) -> list[dict[str, Any]]:
    """The rows with the largest speed error, at most one a clip, the worst first.

    Windows of a clip overlap: without that bound the same bad second would be shown several times.
    """
    of = errors(table, model)
    own = table.filter(pc.equal(table["model"], model))
    picked: dict[str, int] = {}
    for i in np.argsort(-np.abs(of.speed_mps), kind="stable"):
        picked.setdefault(of.clip_ids[i], int(i))
    return [own.slice(i, 1).to_pylist()[0] for i in list(picked.values())[:num]]


def _rows_of(table: pa.Table, model: str) -> dict[str, np.ndarray]:
    part = table.filter(pc.equal(table["model"], model))
    return {
        name: np.array(part[name].to_pylist(), dtype=object)
        if name in ("clip_id", "answer", "model")
        else part[name].to_numpy(zero_copy_only=False)
        for name in part.column_names
    }
