"""Pictures of 06_evaluate: what is said against what is true, over all windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avomni_lib.etl.clip.manoeuvre import ACROSS, ALONG
from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.scores import FALLBACK, MODEL
from avomni_lib.notebook.pages import wording
from avomni_lib.notebook.plots import canvas

HORIZON_S = {"at_1s_m": 1.0, "at_3s_m": 3.0, "at_5s_m": 5.0, "at_6_4s_m": 6.4}
# Rows whose paths are worth a line: how each looks, told apart by form and colour.
PATHS = {
    "constant_velocity": {"color": canvas.GREY, "marker": "D", "linestyle": ":"},
    "ctra": {"color": canvas.PURPLE, "marker": "^", "linestyle": "-."},
    "ego_motion": {"color": canvas.ORANGE, "marker": "s", "linestyle": "--"},
    MODEL: {"color": canvas.BLUE, "marker": "o", "linestyle": "-"},
}
PARTS = {"along": ALONG, "across": ACROSS}
# The windows in so many equal parts, each with its mean, where each has so many.
NUM_PARTS, LEAST_PER_PART = 8, 5


def calibration(table: pa.Table, figures: Mapping[str, Any]) -> dict[str, canvas.Picture]:
    """What is said against what is true, a picture for each thing that the target speaks of.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`).
        figures: As `evaluation.metrics.figures` returns them.

    Returns:
        Of `predicted` (speed), `horizon` (paths) and `manoeuvres` those that there are.
    """
    of_model = figures["metrics"][MODEL]
    pictures = {}
    if "speed_mae_mps" in of_model:
        pictures["predicted"] = predicted_against_true(table)
    if "at_1s_m" in of_model:
        pictures["horizon"] = over_horizon(figures)
    if "macro_f1_along" in of_model:
        pictures["manoeuvres"] = confusion(table)
    return pictures


def predicted_against_true(
    table: pa.Table, models: Sequence[str] = ("base", MODEL), within_mps: float = 1.0
) -> canvas.Picture:
    """Speed said against speed driven, one panel a model; on the dashed line an answer is right.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`).
        models: The panels.
        within_mps: What the title counts as near; an answer that cannot be read is not.
    """
    picture = canvas.Picture(480 * len(models) + 20, 540)
    panels = np.atleast_1d(picture.subplots(1, len(models), sharex=True, sharey=True))
    speeds = {name: _speeds(table, name) for name in models}
    # Wild answers would squeeze the rest into a corner: they are drawn at the edge.
    top = 1.15 * max(float(true.max(initial=1.0)) for _, true in speeds.values())
    near = {}
    for axes, (name, (said, true)) in zip(panels, speeds.items(), strict=True):
        near[name] = float((np.abs(said - true) <= within_mps).mean())
        colour = canvas.BLUE if name == models[-1] else canvas.ORANGE
        _scatter(axes, said, true, top, colour)
        notes = []
        if lost := int(np.isnan(said).sum()):
            notes.append(f"{lost:,} not drawn: they cannot be read")
        if beyond := int((said > top).sum()):
            notes.append(f"{beyond:,} beyond the edge")
        title = f"{wording.row(name)}: {near[name]:.0%} within {within_mps:g} m/s"
        axes.set_title("\n".join([title, "; ".join(notes)]), fontsize=10, loc="left")
    panels[0].set_ylabel("speed said, m/s", fontsize=9)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    last = models[-1]
    comparison = " and ".join(f"{wording.row(name)} {near[name]:.0%}" for name in models[:-1])
    said, true = speeds[last]
    bias = ""
    if _any(said):
        off = float(np.nanmean(said - true))
        bias = f"; on average it says {abs(off):.2f} m/s too {'much' if off > 0 else 'little'}"
    picture.finding(
        f"The {wording.row(last)} is within {within_mps:g} m/s of the truth for {near[last]:.0%} "
        f"of the windows{f' ({comparison})' if comparison else ''}{bias}"
    )
    return picture


def over_horizon(figures: Mapping[str, Any], rows: Sequence[str] = tuple(PATHS)) -> canvas.Picture:
    """How far predicted paths are from the driven one, 1 to 6.4 s ahead, with intervals.

    Args:
        figures: As `evaluation.metrics.figures` returns them; `metrics` is drawn.
        rows: Of the ladder; those that are absent are left out.
    """
    rows = [name for name in rows if name in figures["metrics"]]
    picture = canvas.Picture(860, 460)
    axes = picture.add_subplot()
    ends = {}
    for place, name in enumerate(rows):
        of = figures["metrics"][name]
        drawn = [key for key in HORIZON_S if of.get(key, {}).get("value") is not None]
        values = np.array([of[key]["value"] for key in drawn])
        times = np.array([HORIZON_S[key] for key in drawn]) + 0.06 * (place - len(rows) / 2)
        look = PATHS.get(name, {"color": canvas.COLOURS[7], "marker": "v"})
        axes.plot(times, values, linewidth=1.8, markersize=7, label=wording.row(name), **look)
        for time, key in zip(times, drawn, strict=True):
            if of[key]["low"] is not None:
                low, high = of[key]["low"], of[key]["high"]
                axes.plot([time, time], [low, high], color=look["color"], linewidth=1.4)
        ends[name] = float(values[-1])
    axes.set_xlim(0, 6.9)
    axes.set_ylim(0, None)
    axes.set_xticks(list(HORIZON_S.values()))
    label = "seconds after the window's last frame (bars: 95 % interval, by resampling the clips)"
    canvas.quiet(axes, "both").set_xlabel(label, fontsize=9)
    axes.set_ylabel("distance to the driven path, m", fontsize=9)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    order = sorted(ends, key=ends.get)
    told = ", ".join(f"{wording.row(name)} {ends[name]:.1f} m" for name in order)
    picture.finding(f"How far off after 6.4 s, the nearest first: {told}")
    return picture


def confusion(table: pa.Table, model: str = MODEL) -> canvas.Picture:
    """What manoeuvre is said where which is true: along the road, and across it.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`) of a target that names manoeuvres.
        model: Whose answers.
    """
    picture = canvas.Picture(1180, 520)
    right, most = {}, {}
    for axes, (part, order) in zip(picture.subplots(1, 2), PARTS.items(), strict=True):
        names, counts = metrics.confusion(table, model, part)
        places = [names.index(name) for name in order if name in names]
        counts = counts[np.ix_(places, places)]
        right[part] = counts.trace() / max(counts.sum(), 1)
        most[part] = counts.sum(axis=1).max(initial=0) / max(counts.sum(), 1)
        _matrix(axes, [names[place] for place in places], counts)
        axes.set_title(f"{part} the road", fontsize=10, loc="left", fontweight="bold")
        axes.set_xlabel("manoeuvre said", fontsize=9)
        axes.set_ylabel("true manoeuvre of the next 3 s", fontsize=9)
    note = "Numbers: windows. Darker: a larger share of the windows of that true manoeuvre."
    if lost := _num_lost(table, model):
        note += f" {lost:,} answers cannot be read and count as {wording.row(FALLBACK)}."
    picture.supxlabel(note, fontsize=9, color=canvas.INK)
    picture.finding(
        f"The {wording.row(model)} is right along the road for {right['along']:.0%} of "
        f"{counts.sum():,} windows (always the most frequent: {most['along']:.0%}), across it "
        f"for {right['across']:.0%} ({most['across']:.0%})"
    )
    return picture


def _num_lost(table: pa.Table, model: str) -> int:
    own = pc.and_(pc.equal(table["model"], model), pc.equal(table["sample"], 0))
    return len(table.filter(pc.and_(own, pc.invert(table["valid"]))))


def _any(values: np.ndarray) -> bool:
    return bool((~np.isnan(values)).any())


def _speeds(table: pa.Table, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Speeds (n,) said by a model's greedy answers, NaN where none can be read, and the true."""
    own = table.filter(pc.and_(pc.equal(table["model"], model), pc.equal(table["sample"], 0)))
    columns = (own["speed_mps"], own["speed_true_mps"])
    said, true = (column.to_numpy(zero_copy_only=False) for column in columns)
    return said.astype(float), true


def _scatter(
    axes: canvas.Axes, said: np.ndarray, true: np.ndarray, top: float, colour: str
) -> None:
    axes.plot([0, top], [0, top], linestyle="--", color=canvas.INK, linewidth=1, label="right")
    inside = said <= top
    axes.plot(true[inside], said[inside], "o", color=colour, markersize=4, alpha=0.45)
    beyond = said > top
    axes.plot(true[beyond], np.full(beyond.sum(), top), "^", color=colour, markersize=5)
    if inside.sum() >= NUM_PARTS * LEAST_PER_PART:
        # From slow to fast: a mean off the dashed line is no chance of a single window.
        parts = np.array_split(np.argsort(true[inside], kind="stable"), NUM_PARTS)
        x, y = ([float(values[inside][part].mean()) for part in parts] for values in (true, said))
        axes.plot(x, y, "-", color="white", linewidth=4)
        label = f"mean said, {NUM_PARTS} equal parts of the windows"
        axes.plot(x, y, "-", color=canvas.INK, linewidth=1.8, label=label)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top * 1.02)
    axes.set_aspect("equal")
    canvas.quiet(axes, "both").set_xlabel("true speed, m/s", fontsize=9)


def _matrix(axes: canvas.Axes, names: Sequence[str], counts: np.ndarray) -> None:
    """Counts (true, said) with the share of each line as its colour."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, col in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, col] > 0.75 else canvas.INK
        options = {"ha": "center", "va": "center", "fontsize": 9, "color": colour}
        axes.text(col, row, f"{counts[row, col]:,}", **options)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=9, colors=canvas.INK)
    axes.spines[:].set_visible(False)
    for line in range(1, len(names)):
        axes.axhline(line - 0.5, color="white", linewidth=1.5)
        axes.axvline(line - 0.5, color="white", linewidth=1.5)
