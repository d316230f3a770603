"""Figures of 06_evaluate: predictions against the ground truth, over all windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avomni_lib.etl.clip.manoeuvre import ACROSS, ALONG
from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.scores import FALLBACK, MODEL
from avomni_lib.evaluation.trajectories import MOMENTS_S
from avomni_lib.notebook.pages import wording
from avomni_lib.notebook.plots import canvas

# Rows of the horizon figure, with the style of their lines.
PATHS = {
    "constant_velocity": {"color": canvas.GREY, "marker": "D", "linestyle": ":"},
    "ctra": {"color": canvas.PURPLE, "marker": "^", "linestyle": "-."},
    "ego_motion": {"color": canvas.ORANGE, "marker": "s", "linestyle": "--"},
    MODEL: {"color": canvas.BLUE, "marker": "o", "linestyle": "-"},
}
PARTS = {"along": ALONG, "across": ACROSS}
# Number of bins with a mean each, and the least number of windows per bin.
NUM_PARTS, LEAST_PER_PART = 8, 5
NEAR_MPS = 1.0  # error up to which a title counts a prediction as near


def calibration(table: pa.Table, figures: Mapping[str, Any]) -> dict[str, canvas.Picture]:
    """Figures of predictions against the ground truth, from answers (`evaluation.metrics.SCHEMA`).

    Returns:
        Those of `predicted` (speed), `horizon` (paths) and `manoeuvres` that apply to the target.
    """
    model_figures = figures["metrics"][MODEL]
    pictures = {}
    if "speed_mae_mps" in model_figures:
        pictures["predicted"] = predicted_against_true(table)
    if "at_1s_m" in model_figures:
        pictures["horizon"] = over_horizon(figures)
    if "macro_f1_along" in model_figures:
        pictures["manoeuvres"] = confusion(table)
    return pictures


def predicted_against_true(table: pa.Table) -> canvas.Picture:
    """Predicted against driven speed, of the base and the adapted model."""
    answers = table.select(["model", "sample", "speed_mps", "speed_true_mps"]).to_pandas()
    answers = answers[answers["sample"] == 0].set_index("model")
    # Outliers are drawn at the edge.
    top = 1.15 * max(float(answers.speed_true_mps.max()), 1.0)
    picture, near = canvas.Picture(980, 540), {}
    panels = picture.subplots(1, 2, sharex=True, sharey=True)
    for axes, name, colour in zip(
        panels, ("base", MODEL), (canvas.ORANGE, canvas.BLUE), strict=True
    ):
        predicted, true = (answers.loc[[name], key] for key in ("speed_mps", "speed_true_mps"))
        predicted = predicted.to_numpy(float)
        true = true.to_numpy()
        near[name] = float((np.abs(predicted - true) <= NEAR_MPS).mean())
        inside, beyond = predicted <= top, predicted > top
        axes.plot([0, top], [0, top], linestyle="--", color=canvas.INK, linewidth=1, label="right")
        axes.plot(true[inside], predicted[inside], "o", color=colour, markersize=4, alpha=0.45)
        axes.plot(true[beyond], np.full(beyond.sum(), top), "^", color=colour, markersize=5)
        if inside.sum() >= NUM_PARTS * LEAST_PER_PART:
            # Bins by true speed: the mean of a bin averages out single windows.
            parts = np.array_split(np.argsort(true[inside], kind="stable"), NUM_PARTS)
            x, y = ([values[inside][part].mean() for part in parts] for values in (true, predicted))
            axes.plot(x, y, "-", color="white", linewidth=4)
            label = f"mean predicted, {NUM_PARTS} equal parts of the windows"
            axes.plot(x, y, "-", color=canvas.INK, linewidth=1.8, label=label)
        axes.set(xlim=(0, top), ylim=(0, top * 1.02), aspect="equal")
        canvas.quiet(axes, "both", "true speed, m/s")
        canvas.head(
            axes,
            f"{wording.row(name)}: {near[name]:.0%} within {NEAR_MPS:g} m/s\n"
            f"not drawn, as not read: {np.isnan(predicted).sum():,}; "
            f"beyond the edge: {beyond.sum():,}",
        )
    panels[0].set_ylabel("speed predicted, m/s", fontsize=9)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    finding = (
        f"The {wording.row(MODEL)} is within {NEAR_MPS:g} m/s of the truth for {near[MODEL]:.0%} "
        f"of the windows ({wording.row('base')} {near['base']:.0%})"
    )
    if not np.isnan(predicted).all():
        finding += f"; its mean error is {np.nanmean(predicted - true):+.2f} m/s"
    picture.finding(finding)
    return picture


def over_horizon(figures: Mapping[str, Any]) -> canvas.Picture:
    """Distance of predicted paths from the driven one, 1 to 6.4 s ahead, with intervals."""
    picture = canvas.Picture(860, 460)
    axes, ends = picture.add_subplot(), {}
    for place, name in enumerate(name for name in PATHS if name in figures["metrics"]):
        row = pd.DataFrame(figures["metrics"][name])[list(MOMENTS_S)]
        value, low, high = row.loc[["value", "low", "high"]].to_numpy(float)
        times = np.array(list(MOMENTS_S.values())) + 0.06 * (place - 2)
        axes.plot(times, value, linewidth=1.8, markersize=7, label=wording.row(name), **PATHS[name])
        axes.vlines(times, low, high, color=PATHS[name]["color"], linewidth=1.4)
        ends[name] = value[-1]
    axes.set(xlim=(0, 6.9), ylim=(0, None), xticks=list(MOMENTS_S.values()))
    label = "seconds after the window's last frame (bars: 95 % interval, by resampling the clips)"
    canvas.quiet(axes, "both", label, "distance to the driven path, m")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    order = sorted(ends, key=ends.get)
    words = ", ".join(f"{wording.row(name)} {ends[name]:.1f} m" for name in order)
    picture.finding(f"Mean distance after 6.4 s, the nearest first: {words}")
    return picture


def confusion(table: pa.Table) -> canvas.Picture:
    """Confusion matrices of the manoeuvres along the road and across it."""
    picture, shares = canvas.Picture(1180, 520), []
    for axes, (part, order) in zip(picture.subplots(1, 2), PARTS.items(), strict=True):
        counts = metrics.confusion(table, MODEL, part)
        names = [name for name in order if name in counts.index]
        counts = counts.loc[names, names].to_numpy()
        total = max(counts.sum(), 1)
        right, most = counts.trace() / total, counts.sum(axis=1).max(initial=0) / total
        shares.append(f"{part} the road for {right:.0%} (always the most frequent: {most:.0%})")
        _matrix(axes, names, counts)
        canvas.head(axes, f"{part} the road", fontweight="bold")
        axes.set_xlabel("predicted manoeuvre", fontsize=9)
        axes.set_ylabel("true manoeuvre of the next 3 s", fontsize=9)
    answers = table.select(["model", "sample", "valid"]).to_pandas()
    greedy = answers[(answers.model == MODEL) & (answers["sample"] == 0)]
    picture.note(
        "Numbers: windows. Darker: a larger share of the windows of that true manoeuvre. "
        f"{(~greedy.valid).sum():,} answers cannot be read and count as {wording.row(FALLBACK)}."
    )
    picture.finding(
        f"Of {counts.sum():,} windows the {wording.row(MODEL)} is right {' and '.join(shares)}"
    )
    return picture


def _matrix(axes: canvas.Axes, names: Sequence[str], counts: np.ndarray) -> None:
    """Draw counts (true, predicted), coloured by their share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, col in zip(*np.nonzero(counts), strict=True):
        look = {"color": "white" if shares[row, col] > 0.75 else canvas.INK, "fontsize": 9}
        axes.text(col, row, f"{counts[row, col]:,}", ha="center", va="center", **look)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=9, colors=canvas.INK)
    axes.spines[:].set_visible(False)
    for line in range(1, len(names)):
        axes.axhline(line - 0.5, color="white", linewidth=1.5)
        axes.axvline(line - 0.5, color="white", linewidth=1.5)
