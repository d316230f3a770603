"""Figures of `predict` and of live sessions: paths over the front camera, and latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from avomni_lib.dataset import calibration, cameras
from avomni_lib.etl.clip import tiling
from avomni_lib.live.session import PARTS
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.plots.paths import describe, draw_paths
from avomni_lib.params import Params
from avomni_lib.training.targets.form import figure_in_words

if TYPE_CHECKING:
    from avomni_lib.live.answerer import Prediction
    from avomni_lib.live.recording import SessionRecord
    from avomni_lib.training.targets import Content

SCENE_PX, VIEW_PX, TEXT_PX, HEIGHT_PX = 560, 260, 360, 400
LINE_CHARS, ANSWER_LINES = 48, 11  # limits for the text of an answer
PATHS = {"predicted": ("blue", canvas.BLUE, "o"), "driven": ("orange", canvas.ORANGE, "s")}
MOST_ANSWERS = 24  # number of answers drawn, the last ones of a session
ROW_PX, COLS, CHARS, MAX_LINES = 18, 3, 56, 3
COLOURS = dict(zip(PARTS, (canvas.GREY, canvas.PURPLE, canvas.ORANGE, canvas.BLUE), strict=True))


def picture(p: Params, made: Prediction) -> canvas.Picture:
    """The window's last frame, the paths over it and from above, and the answer's text."""
    paths = paths_of(made)
    widths = [SCENE_PX, VIEW_PX, TEXT_PX] if paths else [SCENE_PX, TEXT_PX]
    drawn = canvas.Picture(sum(widths), HEIGHT_PX)
    scene, *view, words = drawn.subplots(1, len(widths), width_ratios=widths)
    draw_scene(scene, p, made)
    scene.set_xlabel(
        f"{cameras.grid(p.vision.cameras).front.label}, last frame, as the model sees it",
        fontsize=9,
    )
    for axes in view:
        looks = {name: {"color": colour, "marker": m} for name, (_, colour, m) in PATHS.items()}
        draw_paths(axes, paths, looks, paths.get("driven", np.zeros((1, 2))))
        axes.set_anchor("N")
        axes.legend(fontsize=8, frameon=False)
    lines = [f"{made.model} model, {made.answer.seconds:.1f} s:"]
    lines += canvas.fit(made.answer.text or "(nothing)", LINE_CHARS, ANSWER_LINES)
    if made.subject.truth is not None:
        truth = canvas.fit(made.subject.truth, LINE_CHARS, ANSWER_LINES)
        lines += ["", "ground truth:", *truth]
    look = {"fontsize": 9, "color": canvas.INK, "parse_math": False, "in_layout": False}
    canvas.bare(words).text(0, 1, "\n".join(lines), va="top", transform=words.transAxes, **look)
    drawn.finding(f"{made.subject.name}{off_in_words(made)}")
    return drawn


def paths_of(made: Prediction) -> dict[str, np.ndarray]:
    """`predicted` and `driven` -> (N, 2) m in the rig's frame, starting at the rig, if known."""
    paths = {"predicted": made.answer.content, "driven": made.subject.true}
    return {name: path for name, answer in paths.items() if (path := _path(answer)) is not None}


def off_in_words(made: Prediction) -> str:
    """The error of the answer, as text; empty without ground truth."""
    if made.subject.true is None:
        return ""
    if made.off is None:
        return ": the answer cannot be read"
    words, unit = figure_in_words(made.figure)
    return f": {words} {made.off:.3g} {unit}".rstrip()


def draw_scene(axes: Axes, p: Params, made: Prediction) -> None:
    """Draw the last frame of the front camera, with the paths over it if its lens is known."""
    grid = cameras.grid(p.vision.cameras)
    camera = grid.front
    cell = p.processing.tile_width, p.processing.tile_height
    tile = tiling.tile_of(made.subject.frames[-1:], grid, cell, camera.name)[0]
    size = tiling.tile_size(grid, cell, camera.name)
    canvas.show_image(axes, tile)
    axes.set_xlim(-0.5, size[0] - 0.5)
    axes.set_ylim(size[1] - 0.5, -0.5)
    if made.subject.lens is None:
        return
    lens = calibration.Projection.of(*made.subject.lens)
    placement = tiling.fit_tile((lens.width, lens.height), size, p.processing.fit)
    for name, xy_m in paths_of(made).items():
        ground = np.column_stack([calibration.along(xy_m), np.zeros(calibration.PATH_POINTS)])
        pixels = placement.move(lens.pixels(ground), (lens.width, lens.height))
        axes.plot(*pixels.T, color=PATHS[name][1], linewidth=2.5, alpha=0.85)


def _path(answer: Content | None) -> np.ndarray | None:
    if answer is None or answer.waypoints_m is None:
        return None
    return np.vstack([(0.0, 0.0), answer.waypoints_m])


def timeline(recording: SessionRecord) -> canvas.Picture:
    """Answers as bars that start at the capture of their last frame, with the ticks below."""
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
        times_s = shown.time_s[shown.is_gap == is_gap]
        axes.plot(times_s, np.zeros(len(times_s)), "|", color=colour, markersize=9)
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
    """At most `num` answers of a session, evenly chosen: front camera, paths and text."""
    if not predictions:
        return canvas.sentence("No window was answered: none was whole before the session ended")
    chosen = [predictions[place] for place in canvas.evenly(len(predictions), num)]
    texts = [_words(prediction) for prediction in chosen]
    width_px = canvas.MAX_WIDTH_PX // COLS
    tile = width_px * p.processing.tile_height / p.processing.tile_width
    text_px = 8 + 17 * max(text.count("\n") + 1 for text in texts)
    num_rows = -(-len(chosen) // COLS)
    drawn = canvas.Picture(canvas.MAX_WIDTH_PX, int(70 + num_rows * (tile + text_px)))
    places_drawn = drawn.subplots(num_rows, COLS, squeeze=False).flat
    for axes in places_drawn:
        canvas.bare(axes)
    for axes, prediction, text in zip(drawn.axes, chosen, texts, strict=False):
        draw_scene(axes, p, prediction)
        axes.set_xlabel(text, fontsize=9, color=canvas.INK, loc="left", parse_math=False)
    drawn.finding(_finding(p, predictions))
    if any(map(paths_of, chosen)) and chosen[0].subject.lens is not None:
        words = ", ".join(f"{name} ({colour})" for name, (colour, *_) in PATHS.items())
        drawn.note(f"over the picture: {words}")
    return drawn


def _words(made: Prediction) -> str:
    lines = canvas.fit(f"{made.subject.name}{off_in_words(made)}", CHARS, MAX_LINES)
    answer = made.answer
    read = describe(answer.content) if answer.content else canvas.shortened(answer.text, 90)
    lines += canvas.fit(f"answer: {read or '(nothing)'}", CHARS, MAX_LINES)
    if made.subject.true is not None:
        lines += canvas.fit(f"ground truth: {describe(made.subject.true)}", CHARS, MAX_LINES)
    return "\n".join(lines)


def _finding(p: Params, predictions: Sequence[Prediction]) -> str:
    words = (
        f"{cameras.grid(p.vision.cameras).front.label} at the end of some windows, and the answers"
    )
    offs = [prediction.off for prediction in predictions if prediction.off is not None]
    if not offs:
        return words
    name, unit = figure_in_words(predictions[0].figure)
    mean = f"{np.mean(offs):.3g} {unit}".strip()
    return f"{words}: {name} {mean}, the mean of {len(offs):,}"
