"""Pictures of the ladder: the model beside what it has to beat, with intervals, and by slices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from avomni_lib.evaluation.claims import FEWEST_CLIPS
from avomni_lib.evaluation.scores import FALLBACK, MODEL, metric
from avomni_lib.notebook.pages import wording
from avomni_lib.notebook.pages.wording import AHEAD, BEATEN, EVEN, is_number, standing
from avomni_lib.notebook.plots import canvas

# What a slice is by.
SLICES = {
    "speed": "speed",
    "turn": "turn in the window",
    "country": "country",
    "hour": "time of day",
    "platform": "platform",
}
NUM_NAMED = 3  # rows that a title names of a kind
MAX_SLICES = 10  # of one kind; those with the most windows are shown
# A row that is so many times the median off would squeeze the rest: it is drawn at the edge.
WILD = 8.0


class Rung(NamedTuple):
    """A dot with its whiskers and what stands beside it; no dot where there is no value.

    Hollow is what nothing follows from, so that nobody needs to see colours to know.
    """

    value: float | None
    low: float | None
    high: float | None
    colour: str
    said: str
    hollow: bool = False


def ladder(figures: Mapping[str, Any], model: str = MODEL) -> canvas.Picture:
    """Every row's figure with its interval, and its difference to the model with that interval.

    Args:
        figures: As `evaluation.metrics.figures` returns them; `ladder` is drawn.
        model: The row that the others are compared with.
    """
    rows = figures["ladder"]
    of = metric(rows[0]["metric"])
    own = next(row for row in rows if row["name"] == model)
    picture = canvas.Picture(1200, 150 + 36 * len(rows))
    values, differences, notes = picture.subplots(1, 3, sharey=True, width_ratios=[5, 4, 1])
    wild = _wild([row["value"] for row in rows])
    _mark(values, own["value"])
    _draw(values, [_value_rung(row, row is own) for row in rows], wild)
    differences.axvline(0.0, color=canvas.BLUE, linewidth=1.4)
    compared = [None if row is own else _difference_rung(row) for row in rows]
    _draw(differences, compared, wild, room=0.85, margin=0.06)
    for y, row in enumerate(rows):
        notes.text(0.0, y, f"{row['valid_share']:.1%}", va="center", fontsize=9, color=canvas.INK)
    canvas.bare(notes).set_title("answers read", fontsize=9, loc="left", color=canvas.INK)
    notes.tick_params(length=0, labelleft=False)
    values.set_yticks(range(len(rows)), [wording.row(row["name"]) for row in rows])
    values.set_ylim(len(rows) - 0.5, -0.5)
    canvas.quiet(values, "x").set_xlabel(wording.axis(of), fontsize=9)
    unit = f", {of.unit}" if of.unit else ""
    side = "below" if of.more_is_better else "above"
    label = f"row minus {wording.row(model)}{unit} ({side} 0: the model is better)"
    canvas.quiet(differences, "x").set_xlabel(label, fontsize=9)
    differences.tick_params(left=False)
    note = "Whiskers: 95 % interval, by resampling the clips."
    if any(standing(row) == EVEN for row in rows if row is not own):
        note += " Orange, hollow: no difference is shown ("
        few = own["num_clips"] < FEWEST_CLIPS
        note += f"fewer than {FEWEST_CLIPS} clips)." if few else "the interval holds 0)."
    if min(row["valid_share"] for row in rows) < 1:
        note += f" An answer that cannot be read counts as {wording.row(FALLBACK)}."
    picture.supxlabel(note, fontsize=9, color=canvas.INK)
    picture.finding(ladder_finding(figures, model))
    return picture


def ladder_finding(figures: Mapping[str, Any], model: str = MODEL) -> str:
    """What the ladder says, in a sentence or two."""
    rows = figures["ladder"]
    own = next(row for row in rows if row["name"] == model)
    others = [row for row in rows if row is not own]
    of = metric(own["metric"])
    score = (
        f"{of.words[0].upper()}{of.words[1:]}: {wording.amount(of, own['value'])}, on "
        f"{own['num_windows']:,} windows of {own['num_clips']:,} held-out clips"
    )
    if own["num_clips"] < FEWEST_CLIPS:
        return f"{score}: too few to tell it from any other row, it takes {FEWEST_CLIPS} clips"
    named = {
        kind: [wording.row(row["name"]) for row in others if standing(row) == kind]
        for kind in (BEATEN, EVEN, AHEAD)
    }
    if len(named[BEATEN]) == len(others):
        parts = ["beats every other row"]
    elif named[BEATEN]:
        parts = [f"beats {len(named[BEATEN])} of {len(others)} other rows"]
    else:
        parts = ["beats no other row"]
    for kind, what in ((AHEAD, "better than it"), (EVEN, "no difference shown to")):
        if named[kind]:
            more = f" and {len(named[kind]) - NUM_NAMED} more" if named[kind][NUM_NAMED:] else ""
            parts.append(f"{what}: {', '.join(named[kind][:NUM_NAMED])}{more}")
    return f"The {wording.row(model)} {'; '.join(parts)}. {score}"


def slices(figures: Mapping[str, Any]) -> canvas.Picture:
    """The model's figure slice by slice, with predict-the-mean's as a tick beside it.

    Args:
        figures: As `evaluation.metrics.figures` returns them; `slices` is drawn. What all windows
            have in common (one country, say) is no slice and is left out.
    """
    groups = _groups(figures["slices"])
    if not groups:
        picture = canvas.Picture(900, 110)
        note = "All windows are of one speed, turn, country, hour and platform."
        canvas.bare(picture.add_subplot()).text(0.01, 0.5, note, fontsize=10, color=canvas.INK)
        picture.finding(slices_finding(figures))
        return picture
    counts = [len(rows) for rows in groups.values()]
    picture = canvas.Picture(1000, 130 + 24 * sum(counts) + 36 * len(counts))
    places = picture.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=counts)
    drawn = [row for rows in groups.values() for row in rows]
    of, own = metric(drawn[0]["metric"]), _of_all(figures)
    means = [row["mean"] for row in drawn if is_number(row["mean"])]
    wild = _wild([*(row["model"] for row in drawn), *means])
    limit = max(_limit([_slice_rung(row) for row in drawn], wild), *means)
    for axes, (by, rows) in zip(places[:, 0], groups.items(), strict=True):
        _mark(axes, own)
        _draw(axes, [_slice_rung(row) for row in rows], limit, room=0.12)
        for y, row in enumerate(rows):
            if is_number(row["mean"]):
                axes.plot([row["mean"]], [y], "d", color=canvas.INK, markersize=6)
        axes.set_yticks(range(len(rows)), [_slice_label(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * limit)
        total = sum(row["by"] == by for row in figures["slices"])
        more = f" (the {len(rows)} of {total} with the most windows)" if total > len(rows) else ""
        title = SLICES.get(by, by) + more
        axes.set_title(title, fontsize=10, loc="left", color=canvas.INK, fontweight="bold")
        canvas.quiet(axes, "x")
    places[-1, 0].set_xlabel(wording.axis(of), fontsize=9)
    note = (
        f"Dot: {wording.row(MODEL)} with its 95 % interval, by resampling the clips. "
        f"Dotted line: the same over all. Diamond: {wording.row(FALLBACK)}."
    )
    if any(row["num_clips"] < FEWEST_CLIPS for row in drawn):
        note += f"\nHollow: fewer than {FEWEST_CLIPS} clips, too few to say anything."
    picture.supxlabel(note, fontsize=9, color=canvas.INK)
    picture.finding(slices_finding(figures))
    return picture


def slices_finding(figures: Mapping[str, Any]) -> str:
    """Where the model is weakest, among slices that are large enough to say so."""
    groups = _groups(figures["slices"])
    if not groups:
        return "There is nothing to slice by"
    rows = [row for rows in groups.values() for row in rows]
    rows = [row for row in rows if row["num_clips"] >= FEWEST_CLIPS and is_number(row["model"])]
    if not rows:
        return f"No slice has {FEWEST_CLIPS} clips or more: nothing can be said of one"
    of = metric(rows[0]["metric"])
    worst = (min if of.more_is_better else max)(rows, key=lambda row: row["model"])
    text = (
        f"Of slices of {FEWEST_CLIPS} clips or more the weakest is {_slice_name(worst)}, with a "
        f"{of.words} of {wording.amount(of, worst['model'])}, {wording.number(_of_all(figures))} "
        "over all"
    )
    behind = [_slice_name(row) for row in rows if _is_behind(row)]
    if behind:
        return f"{text}; no better than {wording.row(FALLBACK)}: {'; '.join(behind[:3])}"
    return f"{text}; each beats {wording.row(FALLBACK)}"


def _value_rung(row: Mapping[str, Any], is_model: bool) -> Rung:
    said = f"{wording.number(row['value'])}   {wording.interval(row['low'], row['high'])}"
    colour = canvas.BLUE if is_model else canvas.GREY
    return Rung(row["value"], row["low"], row["high"], colour, said)


def _difference_rung(row: Mapping[str, Any]) -> Rung:
    value, low, high = (
        row[key] for key in ("difference_to_model", "difference_low", "difference_high")
    )
    said = f"{wording.number(value, sign=True)}   {wording.interval(low, high, sign=True)}"
    even = standing(row) == EVEN
    return Rung(value, low, high, canvas.ORANGE if even else canvas.INK, said, even)


def _slice_rung(row: Mapping[str, Any]) -> Rung:
    few = row["num_clips"] < FEWEST_CLIPS
    said = wording.number(row["model"])
    return Rung(row["model"], row["low"], row["high"], canvas.BLUE, said, few)


def _slice_name(row: Mapping[str, Any]) -> str:
    return f"{SLICES.get(row['by'], row['by'])} {row['value']}"


def _slice_label(row: Mapping[str, Any]) -> str:
    clips = f"{row['num_clips']:,} clip{'' if row['num_clips'] == 1 else 's'}"
    return f"{canvas.shortened(str(row['value']), 28)}   {row['num_windows']:,} windows, {clips}"


def _is_behind(row: Mapping[str, Any]) -> bool:
    if not is_number(row["mean"]):
        return False
    sign = 1 if metric(row["metric"]).more_is_better else -1
    return sign * row["model"] <= sign * row["mean"]


def _of_all(figures: Mapping[str, Any]) -> float | None:
    return next(row["value"] for row in figures["ladder"] if row["name"] == MODEL)


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Slices by what they are by, in their order; at most `MAX_SLICES` of a kind."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["by"], []).append(row)
    shown = {}
    for by, of_kind in groups.items():
        largest = sorted(of_kind, key=lambda row: -row["num_windows"])[:MAX_SLICES]
        if len(of_kind) > 1:
            shown[by] = [row for row in of_kind if row in largest]
    return shown


def _mark(axes: canvas.Axes, value: float | None) -> None:
    if is_number(value):
        axes.axvline(value, color=canvas.BLUE, linewidth=0.9, linestyle=":")


def _wild(values: Sequence[float | None]) -> float:
    known = [value for value in values if is_number(value)]
    return WILD * float(np.median(known)) if known else 0.0


def _limit(rungs: Sequence[Rung | None], wild: float) -> float:
    """How far the axis reaches: to the last whisker that is not wild."""
    ends = [x for rung in rungs if rung for x in rung[:3] if is_number(x)]
    tame = [x for x in ends if abs(x) <= wild] if wild > 0 else ends
    return max(tame, default=1.0) or 1.0


def _draw(
    axes: canvas.Axes,
    rungs: Sequence[Rung | None],
    wild: float,
    room: float = 0.55,
    margin: float = 0.0,
) -> None:
    """Rungs from top to bottom, with room for their numbers right of them."""
    right = _limit(rungs, wild)
    values = [x for rung in rungs if rung for x in rung[:3] if is_number(x)]
    left = max(min(values, default=0.0), -wild if wild > 0 else -math.inf)
    left, right = min(left, 0.0), max(right, 0.0)
    span = (right - left) or 1.0
    for y, rung in enumerate(rungs):
        if rung is not None:
            _draw_rung(axes, y, rung, right)
    axes.set_xlim(left - (0.06 if left < 0 else margin) * span, right + room * span)


def _draw_rung(axes: canvas.Axes, y: int, rung: Rung, right: float) -> None:
    options = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": canvas.INK}
    options["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    if not is_number(rung.value):
        axes.annotate("–", (0, y), (6, 0), **options)
        return
    if rung.value > right:
        axes.plot([right], [y], ">", color=rung.colour, markersize=8)
        axes.annotate(rung.said, (right, y), (9, 0), **options)
        return
    end = rung.value
    if is_number(rung.low) and is_number(rung.high):
        end = min(rung.high, right)
        axes.plot([rung.low, end], [y, y], color=rung.colour, linewidth=2.4, solid_capstyle="butt")
        axes.plot([rung.low, end], [y, y], "|", color=rung.colour, markersize=9, mew=1.6)
    face = "white" if rung.hollow else rung.colour
    look = {"color": rung.colour, "markerfacecolor": face, "markersize": 7, "mew": 1.6}
    axes.plot([rung.value], [y], "o", clip_on=False, zorder=3, **look)
    axes.annotate(rung.said, (max(end, rung.value), y), (9, 0), **options)
