"""Pictures of 06_evaluate: the ladder, said against true, and where the model is most wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avomni_lib.evaluation import metrics
from avomni_lib.notebook.plots import canvas

if TYPE_CHECKING:
    from avomni_lib.etl.windows import Windows

WORDS = {
    "mean": "predict the mean",
    "median": "predict the median",
    "base": "base model",
    "blind": "adapted, blind",
    "adapted": "adapted model",
}


def ladder(figures: Mapping[str, Any], model: str = "adapted") -> canvas.Picture:
    """Mean absolute errors of every row, the model's own in colour, with the share that parsed.

    Args:
        figures: As `evaluation.metrics.figures` returns them.
        model: The row that the others are compared with.
    """
    speeds, shares = figures["speed_mae_mps"], figures["valid_share_by_row"]
    names = list(speeds)
    picture = canvas.Picture(1100, 130 + 42 * len(names))
    panels = picture.subplots(1, 2, sharey=True)
    for axes, values, unit in (
        (panels[0], speeds, "speed error, m/s (mean absolute)"),
        (panels[1], figures["displacement_mae_m"], "displacement error, m (mean absolute)"),
    ):
        colours = [canvas.BLUE if name == model else canvas.GREY for name in names]
        drawn = axes.barh(
            [_label(name, shares[name]) for name in names],
            [values[name] for name in names],
            color=colours,
            height=0.68,
        )
        axes.bar_label(drawn, fmt="{:.2f}", padding=3, fontsize=9)
        canvas.quiet(axes, "x").set_xlabel(unit, fontsize=9)
        axes.margins(x=0.14)
    panels[0].invert_yaxis()
    if min(shares.values()) < 1:
        note = "An answer that does not parse counts as predict the mean."
        picture.supxlabel(note, fontsize=9, color=canvas.INK)
    picture.finding(_ladder_finding(figures, model))
    return picture


def _label(name: str, valid_share: float) -> str:
    parse = "" if name in ("mean", "median") else f"\n{valid_share:.1%} parse"
    return WORDS.get(name, name) + parse


def _ladder_finding(figures: Mapping[str, Any], model: str) -> str:
    speeds = figures["speed_mae_mps"]
    others = {name: value for name, value in speeds.items() if name != model}
    best = min(others, key=others.get)
    beaten = "beats every other row" if speeds[model] < others[best] else "does not beat every row"
    ratio = f"{speeds[model] / others[best]:.2f} of the next best ({WORDS.get(best, best)})"
    if speeds[model] >= others[best]:
        ratio = f"{WORDS.get(best, best)} has {others[best]:.2f}"
    return (
        f"The {WORDS.get(model, model)} {beaten}: {speeds[model]:.2f} m/s, {ratio}, on "
        f"{figures['num_windows']:,} windows of {figures['num_clips']} held-out clips"
    )


def predicted_against_true(
    table: pa.Table, models: Sequence[str] = ("base", "adapted"), within_mps: float = 1.0
) -> canvas.Picture:
    """Speed said against speed driven, one panel a model; on the dashed line an answer is right.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`).
        models: The panels.
        within_mps: What the title counts as near.
    """
    picture = canvas.Picture(480 * len(models) + 20, 520)
    panels = np.atleast_1d(picture.subplots(1, len(models), sharex=True, sharey=True))
    true, said, near = {}, {}, {}
    for name in models:
        errors = metrics.errors(table, name)
        part = table.filter(pc.equal(table["model"], name))
        true[name] = part["speed_true_mps"].to_numpy()[errors.valid]
        said[name] = part["speed_mps"].to_numpy(zero_copy_only=False)[errors.valid]
        near[name] = float((np.abs(errors.speed_mps) <= within_mps).mean())
    top = max((float(values.max(initial=1.0)) for values in true.values()), default=1.0) * 1.15
    for axes, name in zip(panels, models, strict=True):
        axes.plot([0, top], [0, top], linestyle="--", color=canvas.INK, linewidth=1)
        colour = canvas.BLUE if name == models[-1] else canvas.ORANGE
        inside = said[name] <= top
        axes.plot(
            true[name][inside], said[name][inside], "o", color=colour, markersize=4, alpha=0.6
        )
        # Wild answers would squeeze the rest into a corner: they are drawn at the edge.
        axes.plot(
            true[name][~inside], np.full((~inside).sum(), top), "^", color=colour, markersize=5
        )
        axes.set_xlim(0, top)
        axes.set_ylim(0, top * 1.02)
        axes.set_aspect("equal")
        canvas.quiet(axes, "both").set_xlabel("true speed, m/s", fontsize=9)
        notes = []
        lost = len(table.filter(pc.equal(table["model"], name))) - len(true[name])
        notes += [f"{lost} not drawn: they do not parse"] if lost else []
        notes += [f"{(~inside).sum()} beyond the edge"] if (~inside).any() else []
        title = f"{WORDS.get(name, name)}: {near[name]:.0%} within {within_mps:g} m/s"
        axes.set_title("\n".join([title, "; ".join(notes)]), fontsize=10, loc="left")
    panels[0].set_ylabel("speed said, m/s", fontsize=9)
    last = models[-1]
    comparison = " and ".join(f"{WORDS.get(n, n)} {near[n]:.0%}" for n in models[:-1])
    picture.finding(
        f"The {WORDS.get(last, last)} is within {within_mps:g} m/s of the truth for "
        f"{near[last]:.0%} of the windows" + (f" ({comparison})" if comparison else "")
    )
    return picture


def worst(table: pa.Table, windows: Windows, num: int, model: str = "adapted") -> canvas.Picture:
    """The windows with the largest speed errors: first and last frame, the truth and the answer.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`).
        windows: Those that were asked about, among others.
        num: How many, one a clip at most.
        model: Whose errors.
    """
    rows, grid = metrics.worst(table, model, num), windows.cache.grid
    index = {(window.clip_id, window.number): i for i, window in enumerate(windows)}
    frames = [windows.frames(index[row["clip_id"], row["window"]]) for row in rows]
    height_px = canvas.height_of(frames[0][0], grid, 420) + 26
    picture = canvas.Picture(1180, 50 + len(rows) * height_px)
    places = picture.subplots(len(rows), 3, squeeze=False, width_ratios=[420, 420, 300])
    for line, row, window in zip(places, rows, frames, strict=True):
        canvas.show_grid(line[0], window[0], grid, 420, "first frame")
        canvas.show_grid(line[1], window[-1], grid, 420, "last frame")
        canvas.bare(line[2]).text(
            0.02,
            0.96,
            describe(row),
            va="top",
            fontsize=10,
            linespacing=1.5,
            color=canvas.INK,
            transform=line[2].transAxes,
            parse_math=False,
        )
    picture.finding(
        f"Where the {WORDS.get(model, model)} is most wrong, one window a clip, the worst first"
    )
    return picture


def describe(row: Mapping[str, Any]) -> str:
    """A row of the answers in words."""
    lines = [
        f"clip {canvas.short(row['clip_id'])}, window {row['window']}",
        f"true: {row['speed_true_mps']:.2f} m/s, {row['displacement_true_m']:.1f} m",
    ]
    if row["speed_mps"] is None:
        said = canvas.wrapped(repr(row["answer"] or ""), 40).splitlines()
        lines.append("said what does not parse:\n" + "\n".join(said[:4]))
    else:
        lines.append(f"said: {row['speed_mps']:.2f} m/s, {row['displacement_m']:.1f} m")
        lines.append(f"off by {row['speed_mps'] - row['speed_true_mps']:+.2f} m/s")
    return "\n".join(lines)
