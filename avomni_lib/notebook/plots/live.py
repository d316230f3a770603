"""Pictures of a live session: where its time goes, and its answers beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from avomni_lib.live.session import PARTS
from avomni_lib.live.subject import front_camera
from avomni_lib.notebook.plots import canvas, predicted
from avomni_lib.notebook.plots.paths import describe
from avomni_lib.params import Params

if TYPE_CHECKING:
    from avomni_lib.live.answerer import Prediction
    from avomni_lib.live.recording import Recording

MOST_ANSWERS = 24  # drawn of a long session, the last ones
ROW_PX, COLS, CHARS, MAX_LINES = 18, 3, 56, 3
COLOURS = dict(zip(PARTS, (canvas.GREY, canvas.PURPLE, canvas.ORANGE, canvas.BLUE), strict=True))


def timeline(recording: Recording) -> canvas.Picture:
    """Each answer as a bar from the capture of its last frame on, and the session's ticks below."""
    answers, ticks = recording.answers.tail(MOST_ANSWERS), recording.ticks
    if answers.empty:
        return canvas.sentence("No window was answered: none was whole before the session ended")
    drawn = canvas.Picture(1000, 130 + ROW_PX * len(answers))
    axes = canvas.quiet(drawn.subplots(), "x", "s since the session began", "answers")
    left = answers.time_s.to_numpy()
    rows = np.arange(len(answers), 0, -1)
    for part in PARTS:
        axes.barh(rows, answers[part], left=left, height=0.7, color=COLOURS[part], label=part)
        left = left + answers[part].to_numpy()
    shown = ticks[ticks.time_s.between(answers.time_s.iloc[0] - 2, left[-1])]
    for is_gap, colour in ((False, canvas.INK), (True, canvas.RED)):
        own = shown.time_s[shown.is_gap == is_gap]
        axes.plot(own, np.zeros(len(own)), "|", color=colour, markersize=9)
    axes.set_yticks([0], ["ticks"])
    handles, labels = axes.get_legend_handles_labels()
    if shown.is_gap.any():
        handles.append(Line2D([], [], linestyle="", marker="|", color=canvas.RED))
        labels.append("a gap")
    axes.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="upper right")
    total, model = recording.answers.total, recording.answers["model"].sum()
    drawn.finding(
        f"From frame to answer {total.median():.2f} s (half of all {len(total):,}), "
        f"{total.quantile(0.95):.2f} s (95 %); the model takes {model / total.sum():.0%} of it"
    )
    return drawn


def strip(p: Params, predictions: Sequence[Prediction], num: int = 6) -> canvas.Picture:
    """Answers evenly chosen over a session: what the front camera showed, the paths, the words.

    Args:
        p: The session's.
        predictions: Of a recording.
        num: How many are drawn at most.
    """
    if not predictions:
        return canvas.sentence("No window was answered: none was whole before the session ended")
    chosen = [predictions[place] for place in canvas.evenly(len(predictions), num)]
    words = [_words(each) for each in chosen]
    width_px = canvas.MAX_WIDTH_PX // COLS
    tile = width_px * p.processing.tile_height / p.processing.tile_width
    text_px = 8 + 17 * max(each.count("\n") + 1 for each in words)
    num_rows = -(-len(chosen) // COLS)
    drawn = canvas.Picture(canvas.MAX_WIDTH_PX, int(70 + num_rows * (tile + text_px)))
    places_drawn = drawn.subplots(num_rows, COLS, squeeze=False).flat
    for axes in places_drawn:
        canvas.bare(axes)
    for axes, each, text in zip(drawn.axes, chosen, words, strict=False):
        predicted.draw_scene(axes, p, each)
        axes.set_xlabel(text, fontsize=9, color=canvas.INK, loc="left", parse_math=False)
    drawn.finding(_finding(p, predictions))
    if any(predicted.paths_of(each) for each in chosen) and chosen[0].subject.lens is not None:
        looks = predicted.LOOKS.items()
        drawn.note(
            "over the picture: "
            + ", ".join(f"{name} ({_colour(colour)})" for name, (colour, _) in looks)
        )
    return drawn


def _words(each: Prediction) -> str:
    lines = canvas.fit(f"{each.subject.name}{predicted.off_in_words(each)}", CHARS, MAX_LINES)
    said = (
        describe(each.answer.said) if each.answer.said else canvas.shortened(each.answer.text, 90)
    )
    lines += canvas.fit(f"answer: {said or '(nothing)'}", CHARS, MAX_LINES)
    if each.subject.true is not None:
        lines += canvas.fit(f"ground truth: {describe(each.subject.true)}", CHARS, MAX_LINES)
    return "\n".join(lines)


def _finding(p: Params, predictions: Sequence[Prediction]) -> str:
    words = f"What {front_camera(p).label} showed when it was asked about, and the answers"
    offs = [each.off for each in predictions if each.off is not None]
    if not offs:
        return words
    name, unit = predicted.figure_in_words(predictions[0].figure)
    mean = f"{np.mean(offs):.3g} {unit}".strip()
    return f"{words}: {name} {mean}, the mean of {len(offs):,}"


def _colour(value: str) -> str:
    return {canvas.BLUE: "blue", canvas.ORANGE: "orange"}[value]
