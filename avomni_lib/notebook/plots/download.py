"""Pictures of 01_audit and 02_download: what the run takes, and its budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from avomni_lib.notebook.plots import canvas
from avomni_lib.plan import gigabytes


def bytes_by_feature(
    here: Mapping[str, int], to_fetch: Mapping[str, int], budget_bytes: float
) -> canvas.Picture:
    """One bar a feature, on disk and still to fetch, above the whole against the budget.

    Args:
        here: Feature -> bytes of its chosen files that are on disk.
        to_fetch: Feature -> bytes of its chosen files that are not.
        budget_bytes: `download.target_size_gb` in bytes.
    """
    features = sorted(
        here.keys() | to_fetch.keys(),
        key=lambda name: (here.get(name, 0) + to_fetch.get(name, 0), name),
    )
    total_here, total_fetch = sum(here.values()), sum(to_fetch.values())
    total = total_here + total_fetch
    picture = canvas.Picture(1000, 170 + 24 * len(features))
    bars, budget = picture.subplots(2, 1, height_ratios=[max(len(features), 1), 1.6])
    unit, size = _unit(max((here.get(f, 0) + to_fetch.get(f, 0) for f in features), default=1))
    lefts = [here.get(name, 0) / size for name in features]
    bars.barh(features, lefts, color=canvas.BLUE, label="on disk")
    bars.barh(
        features,
        [to_fetch.get(name, 0) / size or np.nan for name in features],  # nan: no empty box
        left=lefts,
        color="white",
        edgecolor=canvas.ORANGE,
        hatch="////",
        label="to fetch",
    )
    for row, name in enumerate(features):
        amount = here.get(name, 0) + to_fetch.get(name, 0)
        bars.text(amount / size, row, f" {gigabytes(amount)}", va="center", fontsize=8)
    canvas.quiet(bars, "x").set_xlabel(f"{unit} of the chosen chunks", fontsize=9)
    bars.margins(x=0.12)
    bars.legend(frameon=False, fontsize=9, loc="lower right")
    unit, size = _unit(max(budget_bytes, total))
    budget.barh([0], [budget_bytes / size], color=canvas.LIGHT, height=0.8)
    budget.barh([0], [total / size], color=canvas.BLUE, height=0.45)
    budget.axvline(budget_bytes / size, color=canvas.INK, linestyle="--", linewidth=1)
    budget.set_yticks([0], ["budget"])
    canvas.quiet(budget, "x").set_xlabel(f"{unit} taken of the budget (dashed)", fontsize=9)
    share = total / budget_bytes
    state = (
        "all on disk"
        if not total_fetch
        else f"{gigabytes(total_fetch)} to fetch, {gigabytes(total_here)} on disk"
    )
    picture.finding(
        f"The chosen chunks take {gigabytes(total)} ({state}): "
        f"{_percent(share)} of the budget of {gigabytes(budget_bytes)}"
    )
    return picture


def _unit(largest: float) -> tuple[str, float]:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= size:
            return unit, size
    return "B", 1.0


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 or not share else "less than 1%"
