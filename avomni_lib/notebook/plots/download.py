"""Pictures of 01_audit and 02_download: what the run takes, and its budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from matplotlib.axes import Axes

from avomni_lib.notebook.plots import canvas
from avomni_lib.plan import gigabytes

# A file's state in 01 or 02 -> what its bytes are called here; other states are not taken.
KINDS = {
    "sound": "on the disk",
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


def bytes_by_feature(rows: Iterable[Mapping[str, Any]], budget_gb: float) -> canvas.Picture:
    """One bar a feature, above the whole against the budget.

    Args:
        rows: One a file with `path`, `size` (bytes) and `state`: `Audit.files`, `Downloaded.rows`.
        budget_gb: `download.target_size_gb`.
    """
    sizes: dict[str, dict[str, int]] = {kind: defaultdict(int) for kind in LOOKS}
    for row in rows:
        if row["state"] in KINDS:
            sizes[KINDS[row["state"]]][feature_of(row["path"])] += row["size"]
    whole = {kind: sum(by_feature.values()) for kind, by_feature in sizes.items()}
    features = sorted({name for by_feature in sizes.values() for name in by_feature})
    features.sort(key=lambda name: sum(by_feature[name] for by_feature in sizes.values()))
    picture = canvas.Picture(1000, 170 + 24 * len(features))
    bars, budget = picture.subplots(2, 1, height_ratios=[max(len(features), 1), 1.6])
    ends = dict.fromkeys(features, 0)
    unit, size = _unit(max((sum(s[name] for s in sizes.values()) for name in features), default=1))
    for kind, by_feature in sizes.items():
        there = [name for name in features if by_feature[name]]
        bars.barh(
            there,
            [by_feature[name] / size for name in there],
            left=[ends[name] / size for name in there],
            label=kind if there else None,
            **LOOKS[kind],
        )
        for name in there:
            ends[name] += by_feature[name]
    for name, end in ends.items():
        bars.text(end / size, name, f" {gigabytes(end)}", va="center", fontsize=8)
    canvas.quiet(bars, "x").set_xlabel(f"{unit} of the chosen chunks", fontsize=9)
    bars.margins(x=0.12)
    if features:
        bars.legend(frameon=False, fontsize=9, loc="lower right")
    _draw_budget(budget, sum(whole.values()), budget_gb * 1e9)
    picture.finding(_finding(whole, budget_gb * 1e9))
    return picture


def feature_of(path: str) -> str:
    """The feature that a file belongs to; what belongs to none is metadata."""
    folder = PurePosixPath(path).parent
    return folder.name if len(folder.parts) == 2 else "metadata"


def _draw_budget(axes: Axes, total: float, budget: float) -> None:
    unit, size = _unit(max(budget, total))
    axes.barh([0], [budget / size], color=canvas.LIGHT, height=0.8)
    axes.barh([0], [total / size], color=canvas.BLUE, height=0.45)
    axes.axvline(budget / size, color=canvas.INK, linestyle="--", linewidth=1)
    axes.set_yticks([0], ["budget"])
    canvas.quiet(axes, "x").set_xlabel(f"{unit} taken of the budget (dashed)", fontsize=9)


def _finding(whole: Mapping[str, int], budget: float) -> str:
    parts = [f"{gigabytes(size)} {kind}" for kind, size in whole.items() if size]
    total = sum(whole.values())
    return (
        f"The chosen chunks take {gigabytes(total)} ({', '.join(parts) or 'nothing'}): "
        f"{_percent(total / budget)} of the budget of {gigabytes(budget)}"
    )


def _unit(largest: float) -> tuple[str, float]:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= size:
            return unit, size
    return "B", 1.0


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 or not share else "less than 1%"
