"""Pictures of 01_audit: what is there, clip by clip and feature by feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from avomni_lib.notebook.plots import canvas

if TYPE_CHECKING:
    from avomni_lib.dataset.audit import Audit

# State -> colour, in the order of the legend.
STATES = {
    "sound": canvas.BLUE,
    "damaged": canvas.RED,
    "missing": canvas.ORANGE,
    "absent": canvas.GREY,
    "not chosen": canvas.LIGHT,
}
MAX_CROSSES = 400


def matrix(found: Audit) -> canvas.Picture:
    """Features × clips, each cell coloured by its state; damaged cells also bear a cross.

    `missing` is on the source but not on the disk, `absent` not even on the source.
    """
    features, clips = found.features, sorted(found.clips, key=lambda row: row["chunk"])
    states = np.array(
        [[row["features"][feature] for row in clips] for feature in features], dtype=object
    ).reshape(len(features), len(clips))
    picture = canvas.Picture(1200, 110 + 26 * max(len(features), 3))
    axes = picture.add_subplot()
    names = list(STATES)
    codes = np.vectorize(names.index, otypes=[int])(states) if clips else np.full((1, 1), -1)
    axes.imshow(
        codes,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(["white", *STATES.values()]),
        vmin=-1.5,
        vmax=len(names) - 0.5,
        extent=(0.5, max(len(clips), 1) + 0.5, max(len(features), 1) - 0.5, -0.5),
    )
    rows, cols = np.nonzero(states == "damaged")
    axes.plot(cols[:MAX_CROSSES] + 1, rows[:MAX_CROSSES], "x", color="white", markersize=5)
    axes.set_yticks(range(len(features)), features, fontsize=9)
    canvas.quiet(axes, None).set_xlabel("number of the clip, chunk after chunk", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[:].set_visible(False)
    for row in range(1, len(features)):
        axes.axhline(row - 0.5, color="white", linewidth=1.5)
    counts = {name: int((states == name).sum()) for name in names}
    shown = [name for name in names if counts[name]]
    handles = [Patch(color=STATES[name], label=f"{name}: {counts[name]:,}") for name in shown]
    picture.legend(
        handles=handles,
        loc="outside lower right",
        ncols=len(names),
        frameon=False,
        fontsize=9,
    )
    picture.finding(_matrix_finding(counts, len(clips)))
    return picture


def _matrix_finding(counts: dict[str, int], num_clips: int) -> str:
    wanted = sum(counts.values()) - counts["not chosen"]
    whole = f"the {wanted:,} parts of {num_clips:,} clips"
    if not num_clips:
        return "There is no clip to look at"
    if counts["sound"] == wanted:
        return f"All {whole[4:]} are on the disk and sound"
    if counts["missing"] == wanted:
        return f"None of {whole} is on the disk yet: 02_download fetches them"
    rest = [f"{counts[name]:,} {name}" for name in ("damaged", "missing", "absent") if counts[name]]
    return f"Of {whole}, {counts['sound']:,} are sound, {', '.join(rest)}"
