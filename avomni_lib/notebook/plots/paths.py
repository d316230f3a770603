"""Pictures of single windows of 06_evaluate: the frames, the true and the said path, the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.lines import Line2D
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
LEAST_REACH_M = 20.0  # a straight drive must not look like a wiggle


class Shown(NamedTuple):
    """A window, what is true of it, and what the base and the adapted model say about it.

    Attributes:
        answers: Row of the ladder -> its text.
        said: Row of the ladder -> what was read of it; None where nothing was.
    """

    clip_id: str
    window: int
    true: Said
    answers: Mapping[str, str | None]
    said: Mapping[str, Said | None]


def worst(table: pa.Table, windows: Windows, num: int, model: str = MODEL) -> canvas.Picture:
    """The windows with the largest errors, the worst first: one a clip, since windows overlap.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`).
        windows: Those that were asked about, among others.
        num: How many.
        model: Whose errors.
    """
    picture = _rows_of(shown(table, metrics.worst(table, model, num), model), windows)
    errors, unit = _errors(table, model)
    picture.finding(
        f"Where the {wording.row(model)} is most wrong, one window a clip: errors of up to "
        f"{wording.number(errors.max(initial=0.0))}{unit}; the mean over all {len(errors):,} "
        f"windows is {wording.number(errors.sum() / max(len(errors), 1))}{unit}"
    )
    return picture


def typical(table: pa.Table, windows: Windows, num: int, model: str = MODEL) -> canvas.Picture:
    """The windows whose errors lie nearest the median, one a clip.

    Args:
        table, windows, num, model: As `worst` takes them.
    """
    picture = _rows_of(shown(table, metrics.typical(table, model, num), model), windows)
    errors, unit = _errors(table, model)
    median = float(np.median(errors)) if len(errors) else None
    picture.finding(
        f"Windows like most, one a clip: the error of half of all {len(errors):,} is "
        f"{wording.number(median)}{unit} or less, and here it is about as much"
    )
    return picture


def shown(table: pa.Table, rows: Sequence[Mapping[str, Any]], model: str = MODEL) -> list[Shown]:
    """Windows with their truth and what the base and a model say about each.

    Args:
        table: Answers (`evaluation.metrics.SCHEMA`).
        rows: Of the model in that table, as `metrics.worst` returns them.
    """
    read = target(table["target"][0].as_py()).read
    base = table.filter(pc.and_(pc.equal(table["model"], BASE), pc.equal(table["sample"], 0)))
    ids = zip(base["clip_id"].to_pylist(), base["window"].to_pylist(), strict=True)
    texts = dict(zip(ids, base["answer"].to_pylist(), strict=True))
    found = []
    for row in rows:
        place = row["clip_id"], row["window"]
        answers = {BASE: texts[place]} if place in texts else {}
        answers[model] = row["answer"]
        said = {name: read(text or "") for name, text in answers.items()}
        found.append(Shown(*place, _true(row), answers, said))
    return found


def describe(said: Said | None) -> str:
    """What is said of a window, in short."""
    if said is None:
        return "cannot be read"
    parts = []
    if said.speed_mps is not None:
        parts.append(f"{said.speed_mps:.2f} m/s, {said.displacement_m:.1f} m")
    if said.along is not None:
        parts.append(f"{said.along}, {said.across}".replace("_", " "))
    if said.waypoints_m is not None:
        x, y = said.waypoints_m[-1]
        parts.append(f"in 6.4 s {x:.1f} m ahead, {abs(y):.1f} m {'left' if y >= 0 else 'right'}")
    if said.numbers is not None:
        parts.append(", ".join(f"{number:g}" for number in said.numbers))
    if said.cause is not None:
        parts.append(said.cause)
    return "; ".join(parts)


def _true(row: Mapping[str, Any]) -> Said:
    """What is true of a window, as far as its row tells."""
    path = row["future_true_m"]
    waypoints = None
    if path is not None:
        every = np.reshape(path, (-1, 2))
        step = len(every) // 16
        waypoints = tuple((float(x), float(y)) for x, y in every[step - 1 :: step])
    speed, length = row["speed_true_mps"], row["displacement_true_m"]
    manoeuvre = row["along_true"], row["across_true"]
    numbers = row.get("numbers_true")
    causes = row["cause_true"], row["cause_from"]
    own = None if numbers is None else tuple(numbers)
    return Said(speed, length, length, waypoints, *manoeuvre, *causes, own)


def _errors(table: pa.Table, model: str) -> tuple[np.ndarray, str]:
    """Errors (n,) of all windows that the primary figure is about, and their unit with a space."""
    scores = Scores(table)
    errors = scores.errors(model)
    told = metric(scores.primary)
    # Of words and classes the error is the share that is wrong.
    unit = " (1 is all wrong)" if told.more_is_better else f" {told.unit}"
    return errors[np.isfinite(errors)], unit


def _rows_of(every: Sequence[Shown], windows: Windows) -> canvas.Picture:
    grid = windows.cache.grid
    index = {(window.clip_id, window.number): i for i, window in enumerate(windows)}
    places = [index[each.clip_id, each.window] for each in every]
    sample = windows.frames(places[0])[0]
    cards = [_card(each) for each in every]
    text_px = LINE_PX * max(card.count("\n") + 1 for card in cards)
    height_px = max(canvas.height_of(sample, grid, GRID_PX), VIEW_PX, text_px) + 36
    picture = canvas.Picture(2 * GRID_PX + VIEW_PX + TEXT_PX, 60 + len(every) * height_px)
    widths = [GRID_PX, GRID_PX, VIEW_PX, TEXT_PX]
    picture.get_layout_engine().set(w_pad=0.1)
    lines = picture.subplots(len(every), 4, squeeze=False, width_ratios=widths)
    for number, (line, each, place) in enumerate(zip(lines, every, places, strict=True)):
        line[2].set_anchor("N")
        frames = windows.frames(place)
        canvas.show_grid(line[0], frames[-windows.sequence_length], grid, GRID_PX, "first frame")
        canvas.show_grid(line[1], frames[-1], grid, GRID_PX, "last frame")
        if each.true.waypoints_m is not None:
            draw_future(line[2], each)
        else:
            draw_driven(line[2], each, driven_m(windows.egomotion(place)))
        if number == 0:
            line[2].legend(handles=_legend(), frameon=False, fontsize=7.5, loc="upper left")
        canvas.bare(line[3]).text(
            0.0,
            1.0,
            cards[number],
            va="top",
            fontsize=8.5,
            linespacing=1.35,
            in_layout=False,  # its height is reckoned above; the rest would shrink for it
            color=canvas.INK,
            transform=line[3].transAxes,
            parse_math=False,
        )
    return picture


def _card(each: Shown) -> str:
    """A window in words: what is true, and what each said."""
    lines = [f"clip {canvas.short(each.clip_id)}, window {each.window}"]
    lines += _fit(f"ground truth: {describe(each.true)}")
    for name in reversed(LOOKS):
        if name in each.answers:
            lines += ["", *_fit(f"{wording.row(name)}: {describe(each.said[name])}")]
            text = " ".join((each.answers[name] or "").split())
            lines += _fit(text or "(nothing)", ANSWER_LINES)
    return "\n".join(lines)


def _fit(text: str, num_lines: int = MAX_LINES) -> list[str]:
    lines = canvas.wrapped(text, LINE_CHARS).splitlines()
    return lines if len(lines) <= num_lines else [*lines[: num_lines - 1], "…"]


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
    axes.plot(-path_m[:, 1], path_m[:, 0], "--", color=canvas.INK, linewidth=1.6)
    draw_start(axes)
    lengths = [said.displacement_m for name in LOOKS if (said := each.said.get(name))]
    true_m = float(np.linalg.norm(np.diff(path_m, axis=0), axis=1).sum())
    reach = max(LEAST_REACH_M, true_m, *(min(length, 3 * true_m + 10) for length in lengths), 0.0)
    for side, (name, look) in zip((-1, 1), LOOKS.items(), strict=True):
        said = each.said.get(name)
        if said is None:
            continue
        along = beside(path_m, min(said.displacement_m, reach), side * 0.03 * reach)
        axes.plot(
            -along[:, 1], along[:, 0], color=look["color"], linewidth=2.6, label=wording.row(name)
        )
        axes.plot(-along[-1:, 1], along[-1:, 0], markersize=7, **look)
    draw_view(axes, np.array([[reach, 0.0]]), path_m)
    axes.set_title("how far in the window", fontsize=8.5, loc="left", color=canvas.INK)


def beside(path_m: np.ndarray, length_m: float, aside_m: float) -> np.ndarray:
    """(N, 2) metres: a path cut at a length or gone on straight to it, moved aside to the left.

    Args:
        path_m: (T, 2).
        length_m: Along the path.
        aside_m: To the left; negative is right.
    """
    hops = np.linalg.norm(np.diff(path_m, axis=0), axis=1)
    moving = np.concatenate([[True], hops > 1e-6])
    path, hops = path_m[moving], hops[hops > 1e-6]
    if len(path) < 2:
        path, hops = np.array([[0.0, 0.0], [1.0, 0.0]]), np.ones(1)
    done = np.concatenate([[0.0], np.cumsum(hops)])
    heading = np.diff(path, axis=0) / hops[:, None]
    if length_m > done[-1]:
        path = np.vstack([path, path[-1] + heading[-1] * (length_m - done[-1])])
        done, heading = np.append(done, length_m), np.vstack([heading, heading[-1:]])
    at = np.append(done[done < length_m], length_m)
    points = np.stack([np.interp(at, done, column) for column in path.T], axis=1)
    ahead = heading[np.minimum(np.searchsorted(done[1:], at), len(heading) - 1)]
    return points + aside_m * np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)


def draw_future(axes: canvas.Axes, each: Shown) -> None:
    """The path of the next 6.4 s from above, true and said, from the window's last frame on."""
    true = np.array([(0.0, 0.0), *each.true.waypoints_m])
    axes.plot(-true[:, 1], true[:, 0], "--", color=canvas.INK, linewidth=1.6, zorder=3)
    draw_start(axes)
    paths = [true]
    for name, look in LOOKS.items():
        said = each.said.get(name)
        if said is None or said.waypoints_m is None:
            continue
        path = np.array([(0.0, 0.0), *said.waypoints_m])
        axes.plot(
            -path[:, 1], path[:, 0], linewidth=1.8, markersize=3.5, label=wording.row(name), **look
        )
        paths.append(path)
    draw_view(axes, np.vstack(paths), true)
    axes.set_title("the next 6.4 s", fontsize=8.5, loc="left", color=canvas.INK)


def _legend() -> list[Line2D]:
    looks = {"driven": {"color": canvas.INK, "linestyle": "--"}}
    looks |= {wording.row(name): look | {"markersize": 5} for name, look in LOOKS.items()}
    return [Line2D([], [], label=label, **look) for label, look in looks.items()]


def draw_start(axes: canvas.Axes) -> None:
    axes.plot(0, 0, "^", color="white", markersize=9, markeredgecolor=canvas.INK, zorder=4)


def draw_view(axes: canvas.Axes, drawn_m: np.ndarray, true_m: np.ndarray) -> None:
    """The same scale both ways, around all that is drawn, but not for a wild path's sake."""
    farthest = max(float(np.abs(true_m).max(initial=0.0)), LEAST_REACH_M)
    points = np.vstack([np.clip(drawn_m, -2 * farthest, 2 * farthest), true_m, [[0.0, 0.0]]])
    x, y = points.T
    reach = max(float(np.ptp(x)), float(np.ptp(y)), LEAST_REACH_M) * 0.56
    for set_limits, values in ((axes.set_xlim, -y), (axes.set_ylim, x)):
        middle = (float(values.min()) + float(values.max())) / 2
        set_limits(middle - reach, middle + reach)
    axes.set_aspect("equal")
    canvas.quiet(axes, "both").set_xlabel("m to the right", fontsize=8)
    axes.set_ylabel("m forward", fontsize=8)
    axes.tick_params(labelsize=8)
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_locator(MaxNLocator(6, integer=True))
