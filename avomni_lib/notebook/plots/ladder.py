"""Figures of the ladder: all rows with intervals, and the model by slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from avomni_lib.evaluation.claims import FEWEST_CLIPS
from avomni_lib.evaluation.scores import FALLBACK, MODEL, metric
from avomni_lib.notebook.pages import wording
from avomni_lib.notebook.pages.wording import AHEAD, BEATEN, EVEN, is_number, standing
from avomni_lib.notebook.plots import canvas

# Labels of the attributes of slices.
SLICES = {
    "speed": "speed",
    "turn": "turn in the window",
    "country": "country",
    "hour": "time of day",
    "platform": "platform",
}
MAX_SLICES = 10  # slices per attribute; those with the most windows are shown
OUTLIER_FACTOR = 8.0  # values beyond this multiple of the median are drawn at the edge


class Whisker(NamedTuple):
    """A dot with whiskers and a text beside it; without a value there is no dot.

    A hollow dot marks a result from which nothing can be concluded, without relying on colour.
    """

    value: float | None
    low: float | None
    high: float | None
    colour: str
    text: str
    hollow: bool = False


def ladder(figures: Mapping[str, Any]) -> canvas.Picture:
    """Every row's figure and its difference to the model, of `evaluation.metrics.figures`."""
    rows, model = figures["ladder"], _model_row(figures)
    figure, unit = metric(model["metric"]), metric(model["metric"]).unit
    picture = canvas.Picture(1200, 150 + 36 * len(rows))
    values, differences, notes = picture.subplots(1, 3, sharey=True, width_ratios=[5, 4, 1])
    outlier = _outlier(row["value"] for row in rows)
    value_whiskers, difference_whiskers = [], []
    for row in rows:
        value_whiskers.append(whisker_of(row["name"], row, "value"))
        value, low, high = (row[f"difference_{name}"] for name in ("to_model", "low", "high"))
        text = f"{wording.number(value, sign=True)}   {wording.interval(low, high, sign=True)}"
        even = standing(row) == EVEN
        difference = Whisker(value, low, high, canvas.ORANGE if even else canvas.INK, text, even)
        difference_whiskers.append(None if row is model else difference)
    if is_number(model["value"]):
        values.axvline(model["value"], color=canvas.BLUE, linewidth=0.9, linestyle=":")
    draw_whiskers(values, value_whiskers, outlier)
    differences.axvline(0.0, color=canvas.BLUE, linewidth=1.4)
    draw_whiskers(differences, difference_whiskers, outlier, room=0.85, margin=0.06)
    for y, row in enumerate(rows):
        notes.text(0.0, y, f"{row['valid_share']:.1%}", va="center", fontsize=9, color=canvas.INK)
    canvas.head(canvas.bare(notes), "answers read", 9)
    notes.tick_params(length=0, labelleft=False)
    name_rows(values, rows)
    canvas.quiet(values, "x", wording.axis(figure))
    side = "below" if figure.more_is_better else "above"
    label = f"row minus {wording.row(MODEL)}{f', {unit}' if unit else ''}"
    canvas.quiet(differences, "x", f"{label} ({side} 0: the model is better)")
    differences.tick_params(left=False)
    picture.note(
        "Whiskers: 95 % interval, by resampling the clips. Orange, hollow: no difference is shown "
        f"(the interval holds 0, or fewer than {FEWEST_CLIPS} clips).\n"
        f"An answer that cannot be read counts as {wording.row(FALLBACK)}."
    )
    picture.finding(ladder_finding(figures))
    return picture


def ladder_finding(figures: Mapping[str, Any]) -> str:
    """Summary of the ladder in one or two sentences."""
    model = _model_row(figures)
    figure = metric(model["metric"])
    score = (
        f"{figure.words[0].upper()}{figure.words[1:]}: {wording.amount(figure, model['value'])}, "
        f"on {model['num_windows']:,} windows of {model['num_clips']:,} held-out clips"
    )
    if model["num_clips"] < FEWEST_CLIPS:
        return f"{score}: too few to tell it from any other row, it takes {FEWEST_CLIPS} clips"
    others = [row for row in figures["ladder"] if row is not model]
    named: dict[str, list[str]] = {BEATEN: [], AHEAD: [], EVEN: []}
    for row in others:
        named[standing(row)].append(wording.row(row["name"]))
    text = f"The {wording.row(MODEL)} beats {len(named[BEATEN])} of {len(others)} other rows"
    for kind, what in ((AHEAD, "better than it"), (EVEN, "no difference shown to")):
        if named[kind]:
            text += f"; {what}: {', '.join(named[kind])}"
    return f"{text}. {score}"


def slices(figures: Mapping[str, Any]) -> canvas.Picture:
    """The model's figure by slices, with that of predicting the mean as a diamond.

    An attribute with one value for all windows (such as one country) is left out.
    """
    groups = _groups(figures)
    if not groups:
        return canvas.sentence("All windows are of one speed, turn, country, hour and platform")
    counts, overall = [len(rows) for rows in groups.values()], _model_row(figures)["value"]
    picture = canvas.Picture(1000, 140 + 24 * sum(counts) + 36 * len(counts))
    places = picture.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=counts)
    drawn = [row for rows in groups.values() for row in rows]
    means = [row["mean"] for row in drawn if is_number(row["mean"])]
    outlier = _outlier([*(row["model"] for row in drawn), *means])
    limit = max(_limit([_slice_whisker(row) for row in drawn], outlier), *means)
    for axes, (by, rows) in zip(places[:, 0], groups.items(), strict=True):
        if is_number(overall):
            axes.axvline(overall, color=canvas.BLUE, linewidth=0.9, linestyle=":")
        draw_whiskers(axes, [_slice_whisker(row) for row in rows], limit, room=0.12)
        for y, row in enumerate(rows):
            if is_number(row["mean"]):
                axes.plot([row["mean"]], [y], "d", color=canvas.INK, markersize=6)
        labels = [
            f"{canvas.shortened(str(row['value']), 28)}   {row['num_windows']:,} windows, "
            f"clips: {row['num_clips']:,}"
            for row in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * limit)
        total = sum(row["by"] == by for row in figures["slices"])
        more = f" (the {len(rows)} of {total} with the most windows)" if total > len(rows) else ""
        canvas.head(canvas.quiet(axes, "x"), SLICES.get(by, by) + more, fontweight="bold")
    places[-1, 0].set_xlabel(wording.axis(metric(drawn[0]["metric"])), fontsize=9)
    picture.note(
        f"Dot: {wording.row(MODEL)} with its 95 % interval, by resampling the clips. "
        f"Dotted line: the same over all. Diamond: {wording.row(FALLBACK)}.\n"
        f"Hollow: fewer than {FEWEST_CLIPS} clips, too few to say anything."
    )
    picture.finding(slices_finding(figures))
    return picture


def slices_finding(figures: Mapping[str, Any]) -> str:
    """The weakest slice of the model, among slices with enough clips."""
    shown = pd.DataFrame([row for rows in _groups(figures).values() for row in rows])
    if shown.empty:
        return "There is nothing to slice by"
    shown = shown[(shown.num_clips >= FEWEST_CLIPS) & shown.model.notna()]
    if shown.empty:
        return f"No slice has {FEWEST_CLIPS} clips or more: nothing can be said of one"
    figure, overall = metric(shown.metric.iloc[0]), _model_row(figures)["value"]
    names = shown.by.replace(SLICES) + " " + shown.value
    sign = -1 if figure.more_is_better else 1
    losses = sign * shown.model
    behind = names[losses >= sign * shown["mean"].astype(float)]
    weakest = losses.idxmax()
    text = (
        f"Of slices of {FEWEST_CLIPS} clips or more the weakest is {names[weakest]}, with a "
        f"{figure.words} of {wording.amount(figure, shown.model[weakest])}, "
        f"{wording.number(overall)} over all"
    )
    if len(behind):
        return f"{text}; no better than {wording.row(FALLBACK)}: {'; '.join(behind[:3])}"
    return f"{text}; each beats {wording.row(FALLBACK)}"


def _model_row(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(row for row in figures["ladder"] if row["name"] == MODEL)


def _slice_whisker(row: Mapping[str, Any]) -> Whisker:
    few, text = row["num_clips"] < FEWEST_CLIPS, wording.number(row["model"])
    return Whisker(row["model"], row["low"], row["high"], canvas.BLUE, text, few)


def _groups(figures: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Attribute -> its slices in order, at most `MAX_SLICES`."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in figures["slices"]:
        groups.setdefault(row["by"], []).append(row)
    shown = {}
    for by, rows in groups.items():
        largest = sorted(rows, key=lambda row: -row["num_windows"])[:MAX_SLICES]
        if len(rows) > 1:
            shown[by] = [row for row in rows if row in largest]
    return shown


def _outlier(values: Any) -> float:
    known = [value for value in values if is_number(value)]
    return OUTLIER_FACTOR * float(np.median(known)) if known else 0.0


def _limit(whiskers: Sequence[Whisker | None], outlier: float) -> float:
    """Limit of the axis: the largest end of a whisker that is not an outlier."""
    ends = [x for whisker in whiskers if whisker for x in whisker[:3] if is_number(x)]
    return max((x for x in ends if abs(x) <= outlier or outlier <= 0), default=1.0) or 1.0


def whisker_of(name: str, row: Mapping[str, Any], value: str) -> Whisker:
    """The whisker of a ladder's row for its figure named `value`, with text."""
    bounds = row["low"], row["high"]
    text = f"{wording.number(row[value])}   {wording.interval(*bounds)}"
    return Whisker(row[value], *bounds, canvas.BLUE if name == MODEL else canvas.GREY, text)


def name_rows(axes: canvas.Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Label the rows of a ladder at the left of an axes, from top to bottom."""
    axes.set_yticks(range(len(rows)), [wording.row(row["name"]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def draw_whiskers(
    axes: canvas.Axes,
    whiskers: Sequence[Whisker | None],
    outlier: float = 0.0,
    room: float = 0.55,
    margin: float = 0.0,
) -> None:
    """Draw whiskers from top to bottom, with space for their texts at the right.

    Args:
        outlier: Larger values are drawn at the edge; 0 draws all values in place.
        room: Space for the texts, as a share of the range of values.
        margin: Space at the left, as a share of the range of values.
    """
    right = max(_limit(whiskers, outlier), 0.0)
    least = min(
        (x for whisker in whiskers if whisker for x in whisker[:3] if is_number(x)), default=0.0
    )
    left = min(max(least, -outlier) if outlier > 0 else least, 0.0)
    look = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": canvas.INK}
    look["bbox"] = canvas.ON_WHITE
    for y, whisker in enumerate(whiskers):
        if whisker is None:
            continue
        value, low, high, colour, text, hollow = whisker
        if not is_number(value):
            axes.annotate("–", (0, y), (6, 0), **look)
            continue
        end = min(high if is_number(high) else value, right)
        if value > right:
            axes.plot([right], [y], ">", color=colour, markersize=8)
        else:
            if is_number(low) and is_number(high):
                ends = [low, end]
                axes.plot(ends, [y, y], color=colour, linewidth=2.4, solid_capstyle="butt")
                axes.plot(ends, [y, y], "|", color=colour, markersize=9, mew=1.6)
            face = {"color": colour, "markerfacecolor": "white" if hollow else colour}
            axes.plot([value], [y], "o", clip_on=False, zorder=3, markersize=7, mew=1.6, **face)
        axes.annotate(text, (min(max(end, value), right), y), (9, 0), **look)
    span = (right - left) or 1.0
    axes.set_xlim(left - (0.06 if left < 0 else margin) * span, right + room * span)
