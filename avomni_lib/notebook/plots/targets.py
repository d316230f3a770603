"""Pictures of what the model must say: the manoeuvre with its thresholds, and the path ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.patches import Polygon

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import manoeuvre
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.plots.paths import draw_start, draw_view

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows
    from avomni_lib.etl.clip.scene import Scene

NUM_SHOWN = 4
MAX_DECIDED = 400  # windows that are looked at to find different manoeuvres
NUM_WAYPOINTS = 16
NONE_AHEAD = "No window has 6.4 s of ego motion after it: raise processing.horizon_s to see them"
TOLD_S = (1.6, 3.2, 4.8, 6.4)  # waypoints that bear their time


class Level(NamedTuple):
    """Where a label begins and where it ends on a signal, above 0 and below it alike."""

    name: str
    begin: float
    end: float
    colour: str


class Signal(NamedTuple):
    """One line of the picture: its name and unit, its values, what is decided on it."""

    name: str
    values: np.ndarray
    levels: tuple[Level, ...]
    least: float  # the axis reaches so far at least


def manoeuvres(windows: Windows, indices: Sequence[int] | None = None) -> canvas.Picture:
    """The signals of the next 3 s, the thresholds on them, and the labels that come out.

    A column is a window. A label begins where its signal crosses the solid line and ends where it
    falls below the dotted one: shaded is where it holds.

    Args:
        windows: Whose clips' ego motion goes on for 6.4 s.
        indices: Which of them; left out, some whose manoeuvres differ, the most frequent first.

    Raises:
        AvomniError: the ego motion ends before.
    """
    if not len(windows):
        return canvas.sentence(NONE_AHEAD)
    chosen = _different(windows) if indices is None else list(indices)
    futures = [_future(windows, index) for index in chosen]
    seen = [manoeuvre.signals(after) for after in futures]
    called = [manoeuvre.decide(after) for after in futures]
    picture = canvas.Picture(max(60 + 280 * len(chosen), 620), 720)
    places = picture.subplots(4, len(chosen), sharex=True, sharey="row", squeeze=False)
    for column, index, signals, label in zip(places.T, chosen, seen, called, strict=True):
        window = windows[index]
        head = f"{canvas.short(window.clip_id)}, window {window.number}"
        column[0].set_title(
            f"{head}\n{label.along}, {label.across}", fontsize=9.5, loc="left", color=canvas.INK
        )
        for axes, signal in zip(column, _signals(signals), strict=True):
            _draw_signal(axes, signals.t_s, signal)
        column[-1].set_xlabel("seconds after the last frame", fontsize=9)
    of_lines = zip(*map(_signals, seen), strict=True)
    for number, (line, of_windows) in enumerate(zip(places, of_lines, strict=True)):
        line[0].set_ylabel(of_windows[0].name, fontsize=9)
        values = np.concatenate([signal.values for signal in of_windows])
        top = max(of_windows[0].least, 1.12 * float(np.abs(values).max()))
        # Speed alone is never below 0 but in reverse.
        two_sided = number > 0 or values.min() < -0.1
        line[0].set_ylim(-top if two_sided else -0.06 * top, top)
    picture.supxlabel(
        "A label begins at its solid line and ends at its dotted one; shaded: where it holds.",
        fontsize=9,
        color=canvas.INK,
    )
    names = "; ".join(dict.fromkeys(f"{each.along}, {each.across}" for each in called))
    picture.finding(f"What the next 3 s are called: {names}")
    return picture


def paths(windows: Windows, index: int = 0) -> canvas.Picture:
    """The window's last frame, and from above where the car goes in the next 6.4 s.

    Args:
        windows: Whose clips' ego motion goes on for 6.4 s.
        index: Which of them.

    Raises:
        AvomniError: the ego motion ends before.
    """
    if not len(windows):
        return canvas.sentence(NONE_AHEAD)
    after, before = _future(windows, index), windows.past(index)
    image, grid = windows.frames(index)[-1], windows.cache.grid
    picture = canvas.Picture(1160, max(canvas.height_of(image, grid, 680), 440) + 50)
    frame, view = picture.subplots(1, 2, width_ratios=[680, 440])
    canvas.show_grid(frame, image, grid, 680, "last frame")
    step = len(after) // NUM_WAYPOINTS
    driven, waypoints = after.xy_m, after.xy_m[step - 1 :: step]
    past = np.vstack([before.xy_m, [[0.0, 0.0]]])
    view.plot(-past[:, 1], past[:, 0], color=canvas.GREY, linewidth=3, label="the last 1.6 s")
    view.plot(-driven[:, 1], driven[:, 0], "--", color=canvas.INK, linewidth=1.4, label="driven")
    label = f"{NUM_WAYPOINTS} waypoints, 0.4 s apart"
    view.plot(-waypoints[:, 1], waypoints[:, 0], "o", color=canvas.BLUE, markersize=6, label=label)
    for time in TOLD_S:
        x, y = waypoints[round(time / 0.4) - 1]
        options = {"textcoords": "offset points", "fontsize": 8.5, "color": canvas.INK}
        view.annotate(f"{time:g} s", (-y, x), (9, -3), **options)
    draw_start(view)
    draw_view(view, np.vstack([past, driven]), driven)
    scene = windows.truth(index).scene
    if scene is not None:
        _draw_others(view, scene)
    view.legend(frameon=False, fontsize=8, loc="upper left")
    x, y = waypoints[-1]
    side = "to the left" if y >= 0 else "to the right"
    picture.finding(
        f"In {after.t_s[-1]:.1f} s the car is {x:.1f} m ahead and {abs(y):.1f} m {side}, "
        f"from {after.speed_mps:.1f} m/s"
    )
    return picture


def _future(windows: Windows, index: int) -> manoeuvre.Trajectory:
    after = windows.future(index)
    if after is None:
        raise AvomniError(
            f"the ego motion ends less than 6.4 s after window {index}",
            where=f"clip {windows[index].clip_id}",
            fix="take the windows with horizon_s=6.4: those that it does not cover are left out",
        )
    return after


def _different(windows: Windows) -> list[int]:
    """One window of each of the most frequent manoeuvres."""
    first: dict[manoeuvre.Manoeuvre, int] = {}
    counts: dict[manoeuvre.Manoeuvre, int] = {}
    every = range(0, len(windows), max(len(windows) // MAX_DECIDED, 1))
    for index in every:
        after = windows.future(index)
        if after is not None:
            label = manoeuvre.decide(after)
            first.setdefault(label, index)
            counts[label] = counts.get(label, 0) + 1
    # Four that go straight on tell nothing: a label that has not been shown yet goes first.
    order = sorted(counts, key=counts.get, reverse=True)
    picked: list[manoeuvre.Manoeuvre] = []
    while order and len(picked) < NUM_SHOWN:
        known = {part for label in picked for part in label}
        picked.append(max(order, key=lambda label: len(set(label) - known)))
        order.remove(picked[-1])
    return [first[label] for label in picked]


def _signals(seen: manoeuvre.Signals) -> list[Signal]:
    at = manoeuvre.THRESHOLDS
    degrees = np.degrees
    turn = Level("turn", degrees(at.turn_rad), degrees(at.turn_end_rad), canvas.BLUE)
    u_turn = Level("u-turn", degrees(at.u_turn_rad), degrees(at.u_turn_end_rad), canvas.PURPLE)
    gentle = Level("gentle", at.gentle_mps2, at.gentle_end_mps2, canvas.BLUE)
    strong = Level("strong", at.strong_mps2, at.strong_end_mps2, canvas.PURPLE)
    nudge = Level("nudge", at.nudge_m, at.nudge_end_m, canvas.BLUE)
    moves = Level("moves", at.move_mps, at.stand_mps, canvas.GREY)
    heading = degrees(seen.heading_rad)
    # A U-turn's lines would flatten all else where nobody turns so far.
    turns = (turn, u_turn) if np.abs(heading).max() > 0.6 * u_turn.begin else (turn,)
    return [
        Signal("speed, m/s", seen.speed_mps, (moves,), 1.5),
        Signal("acceleration, m/s²", seen.acceleration_mps2, (gentle, strong), 2.6),
        Signal("heading, °\n(left: above 0)", heading, turns, 32.0),
        Signal("offset, m\n(left: above 0)", seen.offset_m, (nudge,), 0.8),
    ]


def _draw_signal(axes: canvas.Axes, t_s: np.ndarray, signal: Signal) -> None:
    is_speed = signal.name.startswith("speed")
    for level in signal.levels:
        before = int(np.sign(signal.values[0])) if is_speed else 0
        holds = manoeuvre.levels(signal.values, level.begin, level.end, before)
        axes.fill_between(
            t_s, 0, signal.values, where=holds != 0, color=level.colour, alpha=0.3, linewidth=0
        )
        sides = (1,) if is_speed and signal.values.min() > -level.end else (1, -1)
        for side in sides:
            axes.axhline(side * level.begin, color=level.colour, linewidth=1.2)
            axes.axhline(side * level.end, color=level.colour, linewidth=1.2, linestyle=":")
        options = {"fontsize": 7.5, "color": canvas.INK, "va": "center", "zorder": 4}
        options["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        axes.text(t_s[0] + 0.05, level.begin, level.name, **options)
    axes.plot(t_s, signal.values, color=canvas.INK, linewidth=2)
    axes.set_xlim(t_s[0], t_s[-1])
    canvas.quiet(axes, None)


def _draw_others(axes: canvas.Axes, scene: Scene) -> None:
    """Boxes of the other road users at the last frame, those that lie in the view."""
    limits = axes.get_xlim(), axes.get_ylim()
    for other in scene.others:
        ahead = np.array([np.cos(other.yaw_rad), np.sin(other.yaw_rad)]) * other.length_m / 2
        aside = np.array([-np.sin(other.yaw_rad), np.cos(other.yaw_rad)]) * other.width_m / 2
        middle = np.array([other.x_m, other.y_m])
        corners = [middle + a * ahead + b * aside for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))]
        box = [(-y, x) for x, y in corners]
        axes.add_patch(Polygon(box, facecolor=canvas.LIGHT, edgecolor=canvas.INK, linewidth=0.8))
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
