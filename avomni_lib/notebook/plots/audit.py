"""Pictures of 01_audit: what is there, clip by clip and feature by feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from avomni_lib.notebook.plots import canvas

# State -> colour, in the order in which a mixed column or legend shows them.
STATES = {
    "sound": canvas.BLUE,
    "damaged": canvas.RED,
    "missing": canvas.ORANGE,
    "evicted": canvas.PURPLE,
    "not chosen": canvas.LIGHT,
}
MAX_MARKS = 400


def matrix(
    features: Sequence[str], clip_ids: Sequence[str], states: np.ndarray, title: str = ""
) -> canvas.Picture:
    """Features × clips, each cell coloured by its state; damaged cells also bear a cross.

    Args:
        features: Rows.
        clip_ids: Columns, in the order in which they are drawn.
        states: (features, clips) of the words in `STATES`.
        title: The finding; left out, it is counted.
    """
    states = np.asarray(states, dtype=object).reshape(len(features), len(clip_ids))
    picture = canvas.Picture(1200, 110 + 26 * max(len(features), 3))
    axes = picture.add_subplot()
    names = list(STATES)
    codes = np.vectorize(names.index, otypes=[int])(states) if states.size else np.zeros((1, 1))
    axes.imshow(
        codes,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(list(STATES.values())),
        vmin=-0.5,
        vmax=len(names) - 0.5,
        extent=(0.5, max(len(clip_ids), 1) + 0.5, max(len(features), 1) - 0.5, -0.5),
    )
    rows, cols = np.nonzero(states == "damaged")
    axes.plot(cols[:MAX_MARKS] + 1, rows[:MAX_MARKS], "x", color="white", markersize=5)
    axes.set_yticks(range(len(features)), features, fontsize=9)
    canvas.quiet(axes, None).set_xlabel("number of the clip, chunk after chunk", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[:].set_visible(False)
    for row in range(1, len(features)):
        axes.axhline(row - 0.5, color="white", linewidth=1.5)
    counts = {name: int((states == name).sum()) for name in names}
    picture.legend(
        handles=[
            Patch(color=STATES[name], label=f"{name}: {count:,}")
            for name, count in counts.items()
            if count
        ],
        loc="outside lower right",
        ncols=len(names),
        frameon=False,
        fontsize=9,
    )
    picture.finding(title or _matrix_finding(counts, len(features), len(clip_ids)))
    return picture


def _matrix_finding(counts: dict[str, int], num_features: int, num_clips: int) -> str:
    wanted = num_features * num_clips - counts["not chosen"]
    if counts["sound"] == wanted:
        return f"All {wanted:,} parts of the chosen clips are on disk and sound"
    if not counts["sound"] and counts["missing"] == wanted:
        return f"None of the {wanted:,} parts of the chosen clips is on disk yet: 02 fetches them"
    rest = ", ".join(
        f"{counts[name]:,} {name}" for name in ("damaged", "missing", "evicted") if counts[name]
    )
    return f"{counts['sound']:,} of {wanted:,} parts of the chosen clips are sound, {rest}"
