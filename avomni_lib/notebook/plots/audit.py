"""Figures of 01_audit and 02_download: state of files, first frames, bytes under the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from avomni_lib.notebook.clip_table import NOTHING_THERE, FirstFrame
from avomni_lib.notebook.plots import canvas
from avomni_lib.plan import gigabytes, unit_of

if TYPE_CHECKING:
    from avomni_lib.dataset.audit.audit import Audit

# State -> colour, in the order of the legend.
STATES = {
    "sound": canvas.BLUE,
    "odd": canvas.COLOURS[7],
    "damaged": canvas.RED,
    "missing": canvas.ORANGE,
    "evicted": canvas.PURPLE,
    "absent": canvas.GREY,
    "not chosen": canvas.LIGHT,
}
# States from the worst to the best: a column shows the worst of its clips.
WORST = ("damaged", "odd", "absent", "missing", "evicted", "sound", "not chosen")
MAX_COLUMNS = 300  # of at least 3 px; more clips than this share columns
MARKS = {"damaged": "x", "odd": "."}
MAX_MARKS = 400

# State of a file in 01 or 02 -> label of its bytes; files in other states are left out.
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


def matrix(found: Audit) -> canvas.Picture:
    """Features × clips, coloured by state; damaged and odd cells are also marked.

    `missing` files are on the source but not on disk, `absent` ones not on the source either. If
    there are more clips than columns, a column shows the worst state of several clips.
    """
    features, clips = found.features, sorted(found.clips, key=lambda row: row["chunk"])
    table = pd.DataFrame([row["features"] for row in clips], columns=list(features))
    counts = {state: int((table == state).to_numpy().sum()) for state in STATES}
    counts = {state: count for state, count in counts.items() if count}
    per_column = max(-(-len(clips) // MAX_COLUMNS), 1)
    ranks = table.map(WORST.index).groupby(table.index // per_column).min()
    shown = ranks.T.to_numpy() if clips else np.full((1, 1), np.nan)
    picture = canvas.Picture(1200, 110 + 26 * max(len(features), 3))
    axes = picture.add_subplot()
    end = max(len(clips), 1) + 0.5
    axes.imshow(
        shown,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap([STATES[state] for state in WORST]),
        vmin=-0.5,
        vmax=len(WORST) - 0.5,
        extent=(0.5, shown.shape[1] * per_column + 0.5, max(len(features), 1) - 0.5, -0.5),
    )
    axes.set_xlim(0.5, end)
    for state, mark in MARKS.items():
        rows, cols = np.nonzero(shown == WORST.index(state))
        middle = np.minimum((cols + 0.5) * per_column + 0.5, end)
        axes.plot(middle[:MAX_MARKS], rows[:MAX_MARKS], mark, color="white", markersize=5)
    axes.set_yticks(range(len(features)), features, fontsize=9)
    label = "number of the clip, chunk after chunk"
    if per_column > 1:
        label += f" (a column is {per_column:,} clips and shows the worst of them)"
    canvas.quiet(axes, None, label)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[:].set_visible(False)
    for row in range(1, len(features)):
        axes.axhline(row - 0.5, color="white", linewidth=1.5)
    handles = [Patch(color=STATES[name], label=f"{name}: {num:,}") for name, num in counts.items()]
    options = {"loc": "outside lower right", "ncols": len(STATES), "frameon": False, "fontsize": 9}
    picture.legend(handles=handles, **options)
    chosen = "chosen " * ("not chosen" in counts)
    wanted = table.size - counts.pop("not chosen", 0)
    parts = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    picture.finding(
        f"{len(features):,} features of {len(clips):,} clips, {wanted:,} {chosen}parts: "
        f"{parts or 'nothing to look at'}"
    )
    return picture


def contact_sheet(frames: Sequence[FirstFrame]) -> canvas.Picture:
    """First frames of clips; a grey tile with the reason for each that cannot be read."""
    if not frames:
        return canvas.sentence(f"There is no picture to show: {NOTHING_THERE}")
    shapes = [frame.image.shape for frame in frames if frame.image is not None]
    grey = np.full(shapes[0] if shapes else (9, 16, 3), 210, dtype=np.uint8)
    title = f"{len(frames)} of the chosen clips, by the first frame of their front wide camera"
    if unread := len(frames) - len(shapes):
        title += f"; {unread} cannot be read (grey: why)"
    captions = [
        frame.split if frame.image is not None else canvas.shortened(frame.reason, 24)
        for frame in frames
    ]
    return canvas.in_rows(
        [grey if frame.image is None else frame.image for frame in frames],
        [f"{canvas.short(f.clip_id)}, {text}" for f, text in zip(frames, captions, strict=True)],
        title,
    )


def bytes_by_feature(
    rows: Iterable[Mapping[str, Any]], budget_gb: float, in_turn: bool = False
) -> canvas.Picture:
    """One bar per feature, and below them the total against the budget.

    Args:
        rows: One per file with `path`, `size` (bytes) and `state`: `Audit.files`,
            `Downloaded.rows`.
        budget_gb: `download.target_size_gb`.
        in_turn: `download.evict_raw`: the budget limits the disk usage at any time, not the total.
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
    unit, size = unit_of(ends.max() if len(ends) else 1)
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

    # With eviction, only files on disk count against the budget.
    total = whole.sum()
    here = whole["on the disk"] + whole["fetched now"] if in_turn else total
    unit, size = unit_of(max(budget, total))
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
    """The feature of a file; `metadata` for files without one."""
    folder = PurePosixPath(path).parent
    return folder.name if len(folder.parts) == 2 else "metadata"
