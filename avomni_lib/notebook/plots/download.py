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
    # Room for the sizes and the legend.
    bars.margins(x=0.25)
    if features:
        bars.legend(frameon=False, fontsize=9, loc="lower right")
    _draw_budget(budget, whole, budget_gb * 1e9, in_turn)
    picture.finding(_finding(whole, budget_gb * 1e9, in_turn))
    return picture


def feature_of(path: str) -> str:
    """The feature that a file belongs to; what belongs to none is metadata."""
    folder = PurePosixPath(path).parent
    return folder.name if len(folder.parts) == 2 else "metadata"


def _draw_budget(axes: Axes, whole: Mapping[str, int], budget: float, in_turn: bool) -> None:
    """The whole against the budget; chunk after chunk, only what is on the disk counts."""
    total = sum(whole.values())
    unit, size = _unit(max(budget, total))
    axes.barh([0], [budget / size], color=canvas.LIGHT, height=0.8)
    here = whole["on the disk"] + whole["fetched now"] if in_turn else total
    axes.barh([0], [here / size], color=canvas.BLUE, height=0.45)
    rest = {"facecolor": "none", "edgecolor": canvas.BLUE, "linestyle": ":"}
    axes.barh([0], [(total - here) / size], left=[here / size], height=0.45, **rest)
    axes.axvline(budget / size, color=canvas.INK, linestyle="--", linewidth=1)
    axes.set_yticks([0], ["budget"])
    label = f"{unit} taken of the budget (dashed)"
    if in_turn:
        label = f"{unit} on the disk; the budget (dashed) holds at every moment, not for all chunks"
    canvas.quiet(axes, "x").set_xlabel(label, fontsize=9)


def _finding(whole: Mapping[str, int], budget: float, in_turn: bool) -> str:
    parts = [f"{gigabytes(size)} {kind}" for kind, size in whole.items() if size]
    total = sum(whole.values())
    taken = f"The chosen chunks take {gigabytes(total)} ({', '.join(parts) or 'nothing'})"
    if in_turn:
        return f"{taken}, chunk after chunk under a budget of {gigabytes(budget)}"
    return f"{taken}: {_percent(total / budget)} of the budget of {gigabytes(budget)}"


def _unit(largest: float) -> tuple[str, float]:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= size:
            return unit, size
    return "B", 1.0


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 or not share else "less than 1%"
