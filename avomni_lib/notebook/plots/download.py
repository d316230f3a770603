"""Pictures of 01_audit and 02_download: what the run takes, and its budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from avomni_lib.notebook.plots import canvas
from avomni_lib.plan import gigabytes

# A file's state in 01 or 02 -> what its bytes are called here; other states are not taken.
KINDS = {
    "sound": "on the disk",
    "odd": "on the disk",
    "kept": "on the disk",
    "fetched": "fetched now",
    "missing": "to fetch",
    "damaged": "to fetch",
    "evicted": "evicted",
}
LOOKS = {
    "on the disk": {"color": canvas.BLUE},
    "fetched now": {"color": canvas.PURPLE},
    "to fetch": {"facecolor": "white", "edgecolor": canvas.ORANGE, "hatch": "////"},
    "evicted": {"facecolor": "white", "edgecolor": canvas.BLUE, "hatch": "...."},
}


def bytes_by_feature(
    rows: Iterable[Mapping[str, Any]], budget_gb: float, in_turn: bool = False
) -> canvas.Picture:
    """One bar a feature, above the whole against the budget.

    Args:
        rows: One a file with `path`, `size` (bytes) and `state`: `Audit.files`, `Downloaded.rows`.
        budget_gb: `download.target_size_gb`.
        in_turn: `download.evict_raw`: the budget holds at every moment, not for the whole.
    """
    files = pd.DataFrame(
        [(feature_of(row["path"]), KINDS.get(row["state"]), row["size"]) for row in rows],
        columns=["feature", "kind", "size"],
    )
    sizes = files.pivot_table(index="feature", columns="kind", values="size", aggfunc="sum")
    sizes = sizes.reindex(columns=list(LOOKS)).astype(float).fillna(0.0)
    sizes = sizes.loc[sizes.sum(axis=1).sort_values(kind="stable").index]
    ends, whole, budget = sizes.sum(axis=1), sizes.sum(), budget_gb * 1e9
    picture = canvas.Picture(1000, 170 + 24 * len(sizes))
    bars, below = picture.subplots(2, 1, height_ratios=[max(len(sizes), 1), 1.6])
    unit, size = _unit(ends.max() if len(ends) else 1)
    left = 0 * ends
    for kind, look in LOOKS.items():
        there = sizes[kind] > 0
        if there.any():
            lengths = sizes[kind][there] / size
            bars.barh(lengths.index, lengths, left=left[there] / size, label=kind, **look)
        left += sizes[kind]
    for name, end in ends.items():
        bars.text(end / size, name, f" {gigabytes(end)}", va="center", fontsize=8)
    canvas.quiet(bars, "x", f"{unit} of the chosen chunks")
    bars.margins(x=0.25)  # room for the sizes and the legend
    if len(sizes):
        bars.legend(frameon=False, fontsize=9, loc="lower right")

    # Chunk after chunk, only what is on the disk counts against the budget.
    total = whole.sum()
    here = whole["on the disk"] + whole["fetched now"] if in_turn else total
    unit, size = _unit(max(budget, total))
    rest = {"facecolor": "none", "edgecolor": canvas.BLUE, "linestyle": ":"}
    below.barh([0], [budget / size], color=canvas.LIGHT, height=0.8)
    below.barh([0], [here / size], color=canvas.BLUE, height=0.45)
    below.barh([0], [(total - here) / size], left=[here / size], height=0.45, **rest)
    below.axvline(budget / size, color=canvas.INK, linestyle="--", linewidth=1)
    below.set_yticks([0], ["budget"])
    label = f"{unit} taken of the budget (dashed)"
    if in_turn:
        label = f"{unit} on the disk; the budget (dashed) holds at every moment, not for all chunks"
    canvas.quiet(below, "x", label)
    parts = ", ".join(f"{gigabytes(part)} {kind}" for kind, part in whole.items() if part)
    against = ", chunk after chunk under a" if in_turn else f": {total / budget:.0%} of the"
    picture.finding(
        f"The chosen chunks take {gigabytes(total)} ({parts or 'nothing'}){against} budget of "
        f"{gigabytes(budget)}"
    )
    return picture


def feature_of(path: str) -> str:
    """The feature that a file belongs to; what belongs to none is metadata."""
    folder = PurePosixPath(path).parent
    return folder.name if len(folder.parts) == 2 else "metadata"


def _unit(largest: float) -> tuple[str, float]:
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next(((unit, size) for unit, size in units if largest >= size), ("B", 1.0))
