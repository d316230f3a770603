"""The same run over several seeds of the world: mean and spread of every row of the ladder.

    python -m avomni_lib.evaluation.spread outputs/seed_11 outputs/seed_12 outputs/seed_13

An interval over the clips of one run says how far its score may be off for these weights. How far
another world and another training would have come is seen by doing it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation.scores import FALLBACK

RESULT = Path("06_evaluate") / "result.json"


def spread(runs: Sequence[Path | str]) -> tuple[str, pd.DataFrame]:
    """The metric's name, and its value: a line a row of the ladder, a column a run.

    Rows are those that all runs have, in the order of the first.

    Raises:
        AvomniError: fewer than two runs, one without a score, or runs of different metrics.
    """
    if len(runs) < 2:
        raise AvomniError("one run has no spread", fix="name two runs or more, as outputs/seed_*")
    ladders = [_ladder(Path(run)) for run in runs]
    metrics = sorted(set(pd.concat(ladders)["metric"]))
    if len(metrics) > 1:
        raise AvomniError(
            f"the runs are scored by {' and '.join(metrics)}",
            fix="name runs of one training.target",
        )
    values = [ladder["value"].rename(str(run)) for ladder, run in zip(ladders, runs, strict=True)]
    return metrics[0], pd.concat(values, axis=1, join="inner").astype(float)


def _ladder(run: Path) -> pd.DataFrame:
    path = run / RESULT
    if not path.exists():
        raise AvomniError("no score there", where=str(path), fix="run its 06_evaluate first")
    ladder = files.read_record(path, figures=dict)["figures"]["ladder"]
    return pd.DataFrame(ladder).set_index("name")


def table(metric: str, values: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation of a sample, the mean share of the mean row's, and each run."""
    fallback = values.loc[FALLBACK] if FALLBACK in values.index else float("nan")
    shares = (values / fallback).replace([np.inf, -np.inf], np.nan)
    figures = {
        f"{metric}: mean": values.mean(axis=1),
        "deviation": values.std(axis=1),
        "of the mean row's": shares.mean(axis=1, skipna=False),
    }
    return pd.concat([pd.DataFrame(figures), values], axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avomni_lib.evaluation.spread")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="outputs/RUN")
    try:
        found = table(*spread(parser.parse_args(arguments).runs))
        print(found.to_string(float_format="{:.3f}".format, na_rep="", index_names=False))
    except AvomniError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
