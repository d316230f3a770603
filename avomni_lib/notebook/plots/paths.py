"""Figures of single windows of 06_evaluate: frames, driven and predicted paths, texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.ticker import MaxNLocator
from scipy.spatial.transform import Rotation

from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.scores import MODEL, Scores, metric
from avomni_lib.notebook.pages import wording
from avomni_lib.notebook.plots import canvas
from avomni_lib.training.targets import Content, target

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows

BASE = "base"
LOOKS = {
    BASE: {"color": canvas.ORANGE, "marker": "s"},
    MODEL: {"color": canvas.BLUE, "marker": "o"},
}
GRID_PX, VIEW_PX, TEXT_PX = 340, 230, 280
LINE_CHARS, LINE_PX = 35, 16
MAX_LINES, ANSWER_LINES = 5, 4  # lines for the parsed answer and for its text
LEAST_REACH_M = 20.0


class Shown(NamedTuple):
    """A window with its ground truth and the answers of the base and the adapted model.

    Attributes:
        answers: Row of the ladder -> text.
        predictions: Row of the ladder -> the parsed text; None if it cannot be read.
    """

    clip_id: str
    window: int
    true: Content
    answers: Mapping[str, str | None]
    predictions: Mapping[str, Content | None]


def worst(table: pa.Table, windows: Windows, num: int) -> canvas.Picture:
    """The `num` windows with the model's largest errors, the worst first, at most one per clip."""
    picture = _draw(shown(table, metrics.worst(table, MODEL, num)), windows)
    errors, unit = _errors(table)
    picture.finding(
        f"Where the {wording.row(MODEL)} is most wrong, one window a clip: errors of up to "
        f"{wording.number(errors.max(initial=0.0))}{unit}; the mean over all {len(errors):,} "
        f"windows is {wording.number(errors.sum() / max(len(errors), 1))}{unit}"
    )
    return picture


def typical(table: pa.Table, windows: Windows, num: int) -> canvas.Picture:
    """The `num` windows with errors nearest to the median, at most one per clip."""
    picture = _draw(shown(table, metrics.typical(table, MODEL, num)), windows)
    errors, unit = _errors(table)
    median = float(np.median(errors)) if len(errors) else None
    picture.finding(
        f"Typical windows, one a clip: the median error of all {len(errors):,} is "
        f"{wording.number(median)}{unit}, and here it is about as large"
    )
    return picture


def shown(table: pa.Table, rows: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """The windows of some of the adapted model's rows in a table of answers."""
    read = target(table["target"][0].as_py()).read
    base = table.filter((pc.field("model") == BASE) & (pc.field("sample") == 0)).to_pylist()
    texts = {(row["clip_id"], row["window"]): row["answer"] for row in base}
    windows = []
    for row in rows:
        place = row["clip_id"], row["window"]
        answers = {BASE: texts[place]} if place in texts else {}
        answers[MODEL] = row["answer"]
        path, numbers = row["future_true_m"], row.get("numbers_true")
        waypoints = None if path is None else np.reshape(path, (16, -1, 2))[:, -1].tolist()
        true = Content(
            speed_mps=row["speed_true_mps"],
            displacement_m=row["displacement_true_m"],
            action_m=row["displacement_true_m"],
            waypoints_m=waypoints and tuple(map(tuple, waypoints)),
            numbers=None if numbers is None else tuple(numbers),
            cause_from=row["cause_from"],
            **{name: row[f"{name}_true"] for name in ("along", "across", "cause")},
        )
        predictions = {name: read(text or "") for name, text in answers.items()}
        windows.append(Shown(*place, true, answers, predictions))
    return windows


def describe(prediction: Content | None) -> str:
    """A short description of a prediction."""
    if prediction is None:
        return "cannot be read"
    parts = []
    if prediction.speed_mps is not None:
        parts.append(f"{prediction.speed_mps:.2f} m/s, {prediction.displacement_m:.1f} m")
    if prediction.along is not None:
        parts.append(f"{prediction.along}, {prediction.across}".replace("_", " "))
    if prediction.waypoints_m is not None:
        x, y = prediction.waypoints_m[-1]
        parts.append(f"in 6.4 s {x:.1f} m ahead, {abs(y):.1f} m {'left' if y >= 0 else 'right'}")
    if prediction.numbers is not None:
        parts.append(", ".join(f"{number:g}" for number in prediction.numbers))
    if prediction.cause is not None:
        parts.append(prediction.cause)
    return "; ".join(parts)


def _errors(table: pa.Table) -> tuple[np.ndarray, str]:
    """Errors (n,) of the windows with the primary figure, and their unit with a leading space."""
    scores = Scores(table)
    errors, figure = scores.errors(MODEL), metric(scores.primary)
    # For words and classes the error is the share that is wrong.
    unit = " (1 is all wrong)" if figure.more_is_better else f" {figure.unit}"
    return errors[np.isfinite(errors)], unit


def _draw(chosen: Sequence[Shown], windows: Windows) -> canvas.Picture:
    """One row per window: its first and last frame, the paths from above, the texts."""
    grid = windows.cache.grid
    index = {(window.clip_id, window.number): i for i, window in enumerate(windows)}
    places = [index[window.clip_id, window.window] for window in chosen]
    cards = [_card(window) for window in chosen]
    text_px = LINE_PX * max(card.count("\n") + 1 for card in cards)
    image_px = canvas.height_of(windows.frames(places[0])[0], grid, GRID_PX)
    height_px = max(image_px, VIEW_PX, text_px) + 36
    widths = [GRID_PX, GRID_PX, VIEW_PX, TEXT_PX]
    picture = canvas.Picture(sum(widths), 60 + len(chosen) * height_px)
    picture.get_layout_engine().set(w_pad=0.1)
    lines = picture.subplots(len(chosen), 4, squeeze=False, width_ratios=widths)
    for line, window, place, card in zip(lines, chosen, places, cards, strict=True):
        frames = windows.frames(place)
        canvas.show_grid(line[0], frames[-windows.sequence_length], grid, GRID_PX, "first frame")
        canvas.show_grid(line[1], frames[-1], grid, GRID_PX, "last frame")
        if window.true.waypoints_m is not None:
            draw_future(line[2], window)
        else:
            draw_driven(line[2], window, driven_m(windows.egomotion(place)))
        line[2].set_anchor("N")
        look = {"fontsize": 8.5, "linespacing": 1.35, "color": canvas.INK, "parse_math": False}
        # `height_px` accounts for its height; in the layout it would shrink the other axes.
        text = canvas.bare(line[3]).text(0.0, 1.0, card, va="top", in_layout=False, **look)
        text.set_transform(line[3].transAxes)
    # The first window may lack a line (unreadable answer): its legend has the lines of all.
    drawn = [line for axes in lines[:, 2] for line in axes.get_legend_handles_labels()[0]]
    legend = {line.get_label(): line for line in drawn}
    lines[0, 2].legend(handles=[*legend.values()], frameon=False, fontsize=7.5, loc="upper left")
    return picture


def _card(window: Shown) -> str:
    """A window as text: the ground truth and the answer of each model."""
    lines = [f"clip {canvas.short(window.clip_id)}, window {window.window}"]
    lines += canvas.fit(f"ground truth: {describe(window.true)}", LINE_CHARS, MAX_LINES)
    for name in reversed(LOOKS):
        if name in window.answers:
            read = f"{wording.row(name)}: {describe(window.predictions[name])}"
            text = " ".join((window.answers[name] or "").split()) or "(nothing)"
            lines += ["", *canvas.fit(read, LINE_CHARS, MAX_LINES)]
            lines += canvas.fit(text, LINE_CHARS, ANSWER_LINES)
    return "\n".join(lines)


def driven_m(egomotion: np.ndarray) -> np.ndarray:
    """(T, 2) metres: the path of a window's egomotion in the rig's frame at its first frame."""
    ego = np.array(egomotion)
    to_rig = Rotation.from_quat(ego[0, 3:7]).inv()
    return to_rig.apply(ego[:, :3] - ego[0, :3])[:, :2]


def draw_driven(axes: canvas.Axes, window: Shown, path_m: np.ndarray) -> None:
    """Draw the window's path from above, and beside it the displacement of each answer."""
    axes.plot(-path_m[:, 1], path_m[:, 0], "--", color=canvas.INK, linewidth=1.6, label="driven")
    draw_start(axes)
    true_m = float(np.linalg.norm(np.diff(path_m, axis=0), axis=1).sum())
    lengths = {
        name: prediction.displacement_m
        for name in LOOKS
        if (prediction := window.predictions.get(name)) and prediction.displacement_m is not None
    }
    most = 3 * true_m + 10  # outliers are cut off here
    reach = max(LEAST_REACH_M, true_m, *(min(length, most) for length in lengths.values()), 0.0)
    for name, length in lengths.items():
        side = -1 if name == BASE else 1
        along = beside(path_m, min(length, reach), side * 0.03 * reach)
        look = LOOKS[name] | {"markevery": [-1], "markersize": 7, "linewidth": 2.6}
        axes.plot(-along[:, 1], along[:, 0], label=wording.row(name), **look)
    draw_view(axes, np.array([[reach, 0.0]]), path_m)
    canvas.head(axes, "how far in the window", 8.5)


def beside(path_m: np.ndarray, length_m: float, aside_m: float) -> np.ndarray:
    """(N, 2) metres: a path (T, 2) cut or extended straight to a length, and shifted left."""
    hops = np.linalg.norm(np.diff(path_m, axis=0), axis=1)
    path = path_m[np.append(True, hops > 1e-6)]
    if len(path) < 2:
        path = np.array([[0.0, 0.0], [1.0, 0.0]])
    ahead = np.diff(path, axis=0)
    hops = np.linalg.norm(ahead, axis=1)
    heading, done = ahead / hops[:, None], np.append(0.0, np.cumsum(hops))
    at = np.append(done[done < length_m], length_m)
    leg = np.minimum(np.searchsorted(done[1:], at), len(heading) - 1)
    points = path[leg] + (at - done[leg])[:, None] * heading[leg]
    return points + aside_m * np.stack([-heading[leg, 1], heading[leg, 0]], axis=1)


def draw_future(axes: canvas.Axes, window: Shown) -> None:
    """Draw the driven and predicted paths of the next 6.4 s from above."""
    paths = {"driven": window.true.waypoints_m}
    paths |= {name: read.waypoints_m for name in LOOKS if (read := window.predictions.get(name))}
    drawn = {
        name: np.array([(0.0, 0.0), *waypoints]) for name, waypoints in paths.items() if waypoints
    }
    driven = {"color": canvas.INK, "linestyle": "--", "linewidth": 1.6, "zorder": 3}
    draw_paths(axes, drawn, LOOKS | {"driven": driven}, drawn["driven"])


def draw_paths(
    axes: canvas.Axes,
    paths_m: Mapping[str, np.ndarray],
    looks: Mapping[str, Mapping[str, Any]],
    true_m: np.ndarray,
) -> None:
    """Draw paths of the next 6.4 s from above: (N, 2) metres, forward and left."""
    for name, path in paths_m.items():
        look = {"linewidth": 1.8, "markersize": 3.5} | looks[name]
        axes.plot(-path[:, 1], path[:, 0], label=wording.row(name), **look)
    draw_start(axes)
    draw_view(axes, np.vstack([*paths_m.values()]), true_m)
    canvas.head(axes, "the next 6.4 s", 8.5)


def draw_start(axes: canvas.Axes) -> None:
    axes.plot(0, 0, "^", color="white", markersize=9, markeredgecolor=canvas.INK, zorder=4)


def draw_view(axes: canvas.Axes, drawn_m: np.ndarray, true_m: np.ndarray) -> None:
    """Set equal scales around everything drawn, except for outlying paths."""
    farthest = 2 * max(float(np.abs(true_m).max(initial=0.0)), LEAST_REACH_M)
    points = np.vstack([np.clip(drawn_m, -farthest, farthest), true_m, [[0.0, 0.0]]])
    canvas.square_view(axes, points[:, 0], points[:, 1], LEAST_REACH_M)
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
