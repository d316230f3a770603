"""The same run over several seeds of the world: mean and spread of every row of the ladder.

    python -m avomni_lib.evaluation.spread outputs/seed_11 outputs/seed_12 outputs/seed_13

An interval over the clips of one run says how far its score may be off for these weights. How far
another world and another training would have come is seen by doing it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation.metrics import FALLBACK

RESULT = Path("06_evaluate") / "result.json"


@dataclass(frozen=True)
class Spread:
    """One row of the ladder over several runs.

    Attributes:
        values: Of the metric, one a run.
        shares: The same as a share of the mean row's in each run; None where there is none.
    """

    name: str
    values: tuple[float, ...]
    shares: tuple[float, ...] | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation, of a sample: divided by the number of runs less one."""
        return statistics.stdev(self.values)


def spread(runs: Sequence[Path | str]) -> tuple[str, list[Spread]]:
    """The metric's name, and the rows that all runs have, in the order of the first.

    Raises:
        AvomniError: fewer than two runs, one without a score, or runs of different metrics.
    """
    if len(runs) < 2:
        raise AvomniError("one run has no spread", fix="name two runs or more, as outputs/seed_*")
    ladders = [_ladder(Path(run)) for run in runs]
    names = {row["metric"] for ladder in ladders for row in ladder.values()}
    if len(names) > 1:
        raise AvomniError(
            f"the runs are scored by {' and '.join(sorted(names))}",
            fix="name runs of one training.target",
        )
    found = []
    for name in ladders[0]:
        if all(name in ladder for ladder in ladders):
            values = tuple(ladder[name]["value"] for ladder in ladders)
            found.append(Spread(name, values, _shares(values, ladders)))
    return names.pop(), found


def _shares(values: Sequence[float], ladders: Sequence[dict]) -> tuple[float, ...] | None:
    if any(not ladder.get(FALLBACK, {}).get("value") for ladder in ladders):
        return None
    means = (ladder[FALLBACK]["value"] for ladder in ladders)
    return tuple(value / mean for value, mean in zip(values, means, strict=True))


def _ladder(run: Path) -> dict[str, dict[str, Any]]:
    path = run / RESULT
    if not path.exists():
        raise AvomniError("no score there", where=str(path), fix="run its 06_evaluate first")
    return {row["name"]: row for row in files.read_record(path, figures=dict)["figures"]["ladder"]}


def table(metric: str, rows: Sequence[Spread]) -> str:
    """Aligned lines: mean, standard deviation, each run, and the share of the mean row's."""
    lines = [("row", f"{metric}: mean", "deviation", "of the mean row's", "each run")]
    for row in rows:
        share = "" if row.shares is None else f"{statistics.fmean(row.shares):.3f}"
        each = " ".join(f"{value:.3f}" for value in row.values)
        lines.append((row.name, f"{row.mean:.3f}", f"{row.deviation:.3f}", share, each))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avomni_lib.evaluation.spread")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="outputs/RUN")
    try:
        print(table(*spread(parser.parse_args(arguments).runs)))
    except AvomniError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
