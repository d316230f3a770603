"""Pictures of 01_audit: what is there, clip by clip and feature by feature, and first frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from avomni_lib.notebook.circumstances import NOTHING_THERE, FirstFrame
from avomni_lib.notebook.plots import canvas

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
# From the one that a column must not hide to the one that it may.
WORST = ("damaged", "odd", "absent", "missing", "evicted", "sound", "not chosen")
# A column is 3 px wide at least: more clips than this share columns.
MAX_COLUMNS = 300
MARKS = {"damaged": "x", "odd": "."}
MAX_MARKS = 400
LINE_PX = 22  # of a title


def matrix(found: Audit) -> canvas.Picture:
    """Features × clips, each cell coloured by its state; damaged and odd ones also bear a mark.

    `missing` is on the source but not on the disk, `absent` not even on the source. Where there are
    more clips than columns, a column stands for several and shows the worst of them.
    """
    features, clips = found.features, sorted(found.clips, key=lambda row: row["chunk"])
    names = list(STATES)
    states = np.array(
        [[names.index(row["features"][feature]) for row in clips] for feature in features], int
    ).reshape(len(features), len(clips))
    counts = {name: int((states == code).sum()) for code, name in enumerate(names)}
    shown, per_column = _columns(states)
    picture = canvas.Picture(1200, 110 + 26 * max(len(features), 3))
    axes = picture.add_subplot()
    end = max(len(clips), 1) + 0.5
    axes.imshow(
        shown if clips else np.full((1, 1), -1),
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(["white", *STATES.values()]),
        vmin=-1.5,
        vmax=len(names) - 0.5,
        extent=(0.5, max(shown.shape[1], 1) * per_column + 0.5, max(len(features), 1) - 0.5, -0.5),
    )
    axes.set_xlim(0.5, end)
    for state, mark in MARKS.items():
        rows, cols = np.nonzero(shown == names.index(state))
        middle = np.minimum((cols + 0.5) * per_column + 0.5, end)
        axes.plot(middle[:MAX_MARKS], rows[:MAX_MARKS], mark, color="white", markersize=5)
    axes.set_yticks(range(len(features)), features, fontsize=9)
    label = "number of the clip, chunk after chunk"
    if per_column > 1:
        label += f" (a column is {per_column:,} clips, and as the worst of them)"
    canvas.quiet(axes, None).set_xlabel(label, fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[:].set_visible(False)
    for row in range(1, len(features)):
        axes.axhline(row - 0.5, color="white", linewidth=1.5)
    handles = [
        Patch(color=STATES[name], label=f"{name}: {counts[name]:,}")
        for name in names
        if counts[name]
    ]
    picture.legend(
        handles=handles,
        loc="outside lower right",
        ncols=len(names),
        frameon=False,
        fontsize=9,
    )
    picture.finding(_matrix_finding(counts, len(clips)))
    return picture


def contact_sheet(frames: Sequence[FirstFrame]) -> canvas.Picture:
    """How clips begin; of one that cannot be read a grey tile and its reason."""
    if not frames:
        return canvas.sentence(f"There is no picture to show: {NOTHING_THERE}")
    shapes = [frame.image.shape for frame in frames if frame.image is not None]
    grey = np.full(shapes[0] if shapes else (9, 16, 3), 210, dtype=np.uint8)
    unread = sum(frame.image is None for frame in frames)
    title = f"{len(frames)} of the chosen clips, by the first frame of their front wide camera"
    if unread:
        title += f"; {unread} cannot be read (grey: why)"
    picture = canvas.in_rows(
        [grey if frame.image is None else frame.image for frame in frames],
        [
            f"{canvas.short(frame.clip_id)}, "
            + (frame.split if frame.image is not None else canvas.shortened(frame.reason, 24))
            for frame in frames
        ],
        title,
    )
    # Few clips make a narrow picture, whose title takes a second line.
    lines = picture.get_suptitle().count("\n")
    picture.set_figheight(picture.get_figheight() + lines * LINE_PX / canvas.DPI)
    return picture


def _columns(states: np.ndarray) -> tuple[np.ndarray, int]:
    """(features, columns) of the worst states, and how many clips a column stands for."""
    num_clips = states.shape[1]
    per_column = max(-(-num_clips // MAX_COLUMNS), 1)
    if per_column == 1:
        return states, 1
    # Worst first, so that the least rank of a column is its state.
    rank = np.argsort([list(STATES).index(name) for name in WORST])
    starts = np.arange(0, num_clips, per_column)
    ranks = np.minimum.reduceat(rank[states], starts, axis=1)
    return np.argsort(rank)[ranks], per_column


def _matrix_finding(counts: dict[str, int], num_clips: int) -> str:
    wanted = sum(counts.values()) - counts["not chosen"]
    whole = f"the {wanted:,} parts of {num_clips:,} clips"
    if counts["not chosen"]:
        whole = f"the {wanted:,} parts of the chosen clips"
    if not num_clips:
        return "There is no clip to look at"
    if counts["sound"] == wanted:
        return f"All {whole[4:]} are on the disk and sound"
    if counts["missing"] == wanted:
        return f"None of {whole} is on the disk yet: the run fetches them"
    if counts["evicted"] == wanted:
        return f"All {whole[4:]} are evicted: the cache holds what is needed"
    rest = [
        f"{counts[name]:,} {name}"
        for name in ("damaged", "odd", "missing", "evicted", "absent")
        if counts[name]
    ]
    return f"Of {whole}, {counts['sound']:,} are sound, {', '.join(rest)}"
