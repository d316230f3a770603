"""Pictures of single windows of 06_evaluate: the frames, the true and the said path, the words."""

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
from avomni_lib.training.targets import Said, target

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows

BASE = "base"
LOOKS = {
    BASE: {"color": canvas.ORANGE, "marker": "s"},
    MODEL: {"color": canvas.BLUE, "marker": "o"},
}
GRID_PX, VIEW_PX, TEXT_PX = 340, 230, 280
LINE_CHARS, LINE_PX = 35, 16
MAX_LINES, ANSWER_LINES = 5, 4  # of what was read, and of the text itself
LEAST_REACH_M = 20.0


class Shown(NamedTuple):
    """A window, what is true of it, and what the base and the adapted model say about it.

    Attributes:
        answers: Row of the ladder -> its text.
        predictions: Row of the ladder -> what was read of it; None where nothing was.
    """

    clip_id: str
    window: int
    true: Said
    answers: Mapping[str, str | None]
    predictions: Mapping[str, Said | None]


def worst(table: pa.Table, windows: Windows, num: int) -> canvas.Picture:
    """The windows with the model's largest errors, the worst first, one a clip: they overlap.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`).
        windows: Those that were asked about, among others.
        num: How many.
    """
    picture = _draw(shown(table, metrics.worst(table, MODEL, num)), windows)
    errors, unit = _errors(table)
    picture.finding(
        f"Where the {wording.row(MODEL)} is most wrong, one window a clip: errors of up to "
        f"{wording.number(errors.max(initial=0.0))}{unit}; the mean over all {len(errors):,} "
        f"windows is {wording.number(errors.sum() / max(len(errors), 1))}{unit}"
    )
    return picture


def typical(table: pa.Table, windows: Windows, num: int) -> canvas.Picture:
    """The windows whose errors lie nearest the median, one a clip; arguments as of `worst`."""
    picture = _draw(shown(table, metrics.typical(table, MODEL, num)), windows)
    errors, unit = _errors(table)
    median = float(np.median(errors)) if len(errors) else None
    picture.finding(
        f"Windows like most, one a clip: the error of half of all {len(errors):,} is "
        f"{wording.number(median)}{unit} or less, and here it is about as much"
    )
    return picture


def shown(table: pa.Table, rows: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """Windows with their truth and what the base and the adapted model say about each.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`).
        rows: Of the adapted model in that table, as `metrics.worst` returns them.
    """
    read = target(table["target"][0].as_py()).read
    base = table.filter((pc.field("model") == BASE) & (pc.field("sample") == 0)).to_pylist()
    texts = {(row["clip_id"], row["window"]): row["answer"] for row in base}
    found = []
    for row in rows:
        place = row["clip_id"], row["window"]
        answers = {BASE: texts[place]} if place in texts else {}
        answers[MODEL] = row["answer"]
        path, numbers = row["future_true_m"], row.get("numbers_true")
        waypoints = None if path is None else np.reshape(path, (16, -1, 2))[:, -1].tolist()
        true = Said(
            speed_mps=row["speed_true_mps"],
            displacement_m=row["displacement_true_m"],
            action_m=row["displacement_true_m"],
            waypoints_m=waypoints and tuple(map(tuple, waypoints)),
            numbers=None if numbers is None else tuple(numbers),
            cause_from=row["cause_from"],
            **{name: row[f"{name}_true"] for name in ("along", "across", "cause")},
        )
        predictions = {name: read(text or "") for name, text in answers.items()}
        found.append(Shown(*place, true, answers, predictions))
    return found


def describe(prediction: Said | None) -> str:
    """What is said of a window, in short."""
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
    """Errors (n,) of all windows that the primary figure is about, and their unit with a space."""
    scores = Scores(table)
    errors, of = scores.errors(MODEL), metric(scores.primary)
    # Of words and classes the error is the share that is wrong.
    unit = " (1 is all wrong)" if of.more_is_better else f" {of.unit}"
    return errors[np.isfinite(errors)], unit


def _draw(every: Sequence[Shown], windows: Windows) -> canvas.Picture:
    """A line of a window each: its first and last frame, the paths from above, the words."""
    grid = windows.cache.grid
    index = {(window.clip_id, window.number): i for i, window in enumerate(windows)}
    places = [index[each.clip_id, each.window] for each in every]
    cards = [_card(each) for each in every]
    text_px = LINE_PX * max(card.count("\n") + 1 for card in cards)
    image_px = canvas.height_of(windows.frames(places[0])[0], grid, GRID_PX)
    height_px = max(image_px, VIEW_PX, text_px) + 36
    widths = [GRID_PX, GRID_PX, VIEW_PX, TEXT_PX]
    picture = canvas.Picture(sum(widths), 60 + len(every) * height_px)
    picture.get_layout_engine().set(w_pad=0.1)
    lines = picture.subplots(len(every), 4, squeeze=False, width_ratios=widths)
    for line, each, place, card in zip(lines, every, places, cards, strict=True):
        frames = windows.frames(place)
        canvas.show_grid(line[0], frames[-windows.sequence_length], grid, GRID_PX, "first frame")
        canvas.show_grid(line[1], frames[-1], grid, GRID_PX, "last frame")
        if each.true.waypoints_m is not None:
            draw_future(line[2], each)
        else:
            draw_driven(line[2], each, driven_m(windows.egomotion(place)))
        line[2].set_anchor("N")
        look = {"fontsize": 8.5, "linespacing": 1.35, "color": canvas.INK, "parse_math": False}
        # Its height is reckoned above; the rest would shrink for it.
        text = canvas.bare(line[3]).text(0.0, 1.0, card, va="top", in_layout=False, **look)
        text.set_transform(line[3].transAxes)
    # The first window's answers may be unreadable: its legend is that of all windows.
    drawn = [line for axes in lines[:, 2] for line in axes.get_legend_handles_labels()[0]]
    legend = {line.get_label(): line for line in drawn}
    lines[0, 2].legend(handles=[*legend.values()], frameon=False, fontsize=7.5, loc="upper left")
    return picture


def _card(each: Shown) -> str:
    """A window in words: what is true, and what each model says."""
    lines = [f"clip {canvas.short(each.clip_id)}, window {each.window}"]
    lines += canvas.fit(f"ground truth: {describe(each.true)}", LINE_CHARS, MAX_LINES)
    for name in reversed(LOOKS):
        if name in each.answers:
            read = f"{wording.row(name)}: {describe(each.predictions[name])}"
            text = " ".join((each.answers[name] or "").split()) or "(nothing)"
            lines += ["", *canvas.fit(read, LINE_CHARS, MAX_LINES)]
            lines += canvas.fit(text, LINE_CHARS, ANSWER_LINES)
    return "\n".join(lines)


def driven_m(egomotion: np.ndarray) -> np.ndarray:
    """(T, 2) metres: a window's path from above, seen from its first frame: x forward, y left.

    Args:
        egomotion: (T, 11), as `Windows.egomotion` gives it.
    """
    ego = np.array(egomotion)
    to_rig = Rotation.from_quat(ego[0, 3:7]).inv()
    return to_rig.apply(ego[:, :3] - ego[0, :3])[:, :2]


def draw_driven(axes: canvas.Axes, each: Shown, path_m: np.ndarray) -> None:
    """The path driven in the window from above, and beside it how far each answer goes along it."""
    axes.plot(-path_m[:, 1], path_m[:, 0], "--", color=canvas.INK, linewidth=1.6, label="driven")
    draw_start(axes)
    true_m = float(np.linalg.norm(np.diff(path_m, axis=0), axis=1).sum())
    lengths = {
        name: prediction.displacement_m
        for name in LOOKS
        if (prediction := each.predictions.get(name)) and prediction.displacement_m is not None
    }
    most = 3 * true_m + 10  # a wild answer ends there
    reach = max(LEAST_REACH_M, true_m, *(min(length, most) for length in lengths.values()), 0.0)
    for name, length in lengths.items():
        side = -1 if name == BASE else 1
        along = beside(path_m, min(length, reach), side * 0.03 * reach)
        look = LOOKS[name] | {"markevery": [-1], "markersize": 7, "linewidth": 2.6}
        axes.plot(-along[:, 1], along[:, 0], label=wording.row(name), **look)
    draw_view(axes, np.array([[reach, 0.0]]), path_m)
    canvas.head(axes, "how far in the window", 8.5)


def beside(path_m: np.ndarray, length_m: float, aside_m: float) -> np.ndarray:
    """(N, 2) metres: a path cut at a length or gone on straight to it, moved aside to the left.

    Args:
        path_m: (T, 2).
        length_m: Along the path.
        aside_m: To the left; negative is right.
    """
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


def draw_future(axes: canvas.Axes, each: Shown) -> None:
    """The path of the next 6.4 s from above, driven and predicted, from the last frame on."""
    paths = {"driven": each.true.waypoints_m}
    paths |= {name: read.waypoints_m for name in LOOKS if (read := each.predictions.get(name))}
    drawn = {
        name: np.array([(0.0, 0.0), *waypoints]) for name, waypoints in paths.items() if waypoints
    }
    driven = {"color": canvas.INK, "linestyle": "--", "linewidth": 1.6, "zorder": 3}
    for name, path in drawn.items():
        look = {"linewidth": 1.8, "markersize": 3.5} | LOOKS.get(name, driven)
        axes.plot(-path[:, 1], path[:, 0], label=wording.row(name), **look)
    draw_start(axes)
    draw_view(axes, np.vstack([*drawn.values()]), drawn["driven"])
    canvas.head(axes, "the next 6.4 s", 8.5)


def draw_start(axes: canvas.Axes) -> None:
    axes.plot(0, 0, "^", color="white", markersize=9, markeredgecolor=canvas.INK, zorder=4)


def draw_view(axes: canvas.Axes, drawn_m: np.ndarray, true_m: np.ndarray) -> None:
    """The same scale both ways, around all that is drawn, but not for a wild path's sake."""
    farthest = 2 * max(float(np.abs(true_m).max(initial=0.0)), LEAST_REACH_M)
    points = np.vstack([np.clip(drawn_m, -farthest, farthest), true_m, [[0.0, 0.0]]])
    canvas.square_view(axes, points[:, 0], points[:, 1], LEAST_REACH_M)
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
