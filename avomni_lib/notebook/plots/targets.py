"""Figures of targets: the manoeuvre labels with their thresholds, and the path ahead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.patches import Rectangle

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import manoeuvre
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.plots.paths import draw_start, draw_view

if TYPE_CHECKING:
    from avomni_lib.etl.cache.windows import Windows

NUM_SHOWN = 4
MAX_DECIDED = 400  # number of windows searched for different manoeuvres
NUM_WAYPOINTS = 16
NONE_AHEAD = "No window has 6.4 s of ego motion after it: raise processing.horizon_s to see them"


class Level(NamedTuple):
    """Thresholds at which a label begins and ends on a signal, symmetric about 0."""

    name: str
    begin: float
    end: float
    colour: str


AT, DEGREES = manoeuvre.THRESHOLDS, 180 / np.pi
TURN = Level("turn", AT.turn_rad * DEGREES, AT.turn_end_rad * DEGREES, canvas.BLUE)
U_TURN = Level("u-turn", AT.u_turn_rad * DEGREES, AT.u_turn_end_rad * DEGREES, canvas.PURPLE)
# Of each signal: its label with unit, its thresholds, and the least range of the axis.
SIGNALS = (
    ("speed, m/s", (Level("moves", AT.move_mps, AT.stand_mps, canvas.GREY),), 1.5),
    (
        "acceleration, m/s²",
        (
            Level("gentle", AT.gentle_mps2, AT.gentle_end_mps2, canvas.BLUE),
            Level("strong", AT.strong_mps2, AT.strong_end_mps2, canvas.PURPLE),
        ),
        2.6,
    ),
    ("heading, °\n(left: above 0)", (TURN, U_TURN), 32.0),
    ("offset, m\n(left: above 0)", (Level("nudge", AT.nudge_m, AT.nudge_end_m, canvas.BLUE),), 0.8),
)


def manoeuvres(windows: Windows, indices: Sequence[int] | None = None) -> canvas.Picture:
    """The signals of the next 3 s with the thresholds and the resulting labels.

    A column is a window. A label begins where its signal crosses the solid line and ends where it
    falls below the dotted one; it holds in the shaded area.

    Args:
        windows: Windows followed by 6.4 s of egomotion.
        indices: Windows to show; by default some with different manoeuvres, the most frequent
            first.

    Raises:
        AvomniError: the egomotion ends earlier.
    """
    if not len(windows):
        return canvas.sentence(NONE_AHEAD)
    chosen = _different(windows) if indices is None else list(indices)
    futures = [_future(windows, index) for index in chosen]
    labels = [manoeuvre.decide(after) for after in futures]
    picture = canvas.Picture(max(60 + 280 * len(chosen), 620), 720)
    places = picture.subplots(4, len(chosen), sharex=True, sharey="row", squeeze=False)
    seen = [manoeuvre.signals(after) for after in futures]
    by_signal = [[s.speed_mps for s in seen], [s.acceleration_mps2 for s in seen]]
    by_signal += [[np.degrees(s.heading_rad) for s in seen], [s.offset_m for s in seen]]
    for line, values, (name, levels, least) in zip(places, by_signal, SIGNALS, strict=True):
        is_speed = name.startswith("speed")
        for axes, signals, signal in zip(line, seen, values, strict=True):
            _draw_signal(axes, signals.t_s, signal, levels, is_speed)
        line[0].set_ylabel(name, fontsize=9)
        every = np.concatenate(values)
        top = max(least, 1.12 * np.abs(every).max())
        # Only speed is never negative, except in reverse.
        is_one_sided = is_speed and every.min() >= -0.1
        line[0].set_ylim(-0.06 * top if is_one_sided else -top, top)
    for column, index, label in zip(places.T, chosen, labels, strict=True):
        window = windows[index]
        head = f"{canvas.short(window.clip_id)}, window {window.number}"
        canvas.head(column[0], f"{head}\n{label.along}, {label.across}", 9.5)
        column[-1].set_xlabel("seconds after the last frame", fontsize=9)
    picture.note(
        "A label begins at its solid line and ends at its dotted one; shaded: where it holds."
    )
    names = "; ".join(dict.fromkeys(f"{label.along}, {label.across}" for label in labels))
    picture.finding(f"What the next 3 s are called: {names}")
    return picture


def paths(windows: Windows, index: int = 0) -> canvas.Picture:
    """The window's last frame, and the path of the next 6.4 s from above; raises as above."""
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
    for number, (x, y) in enumerate(waypoints[3::4], start=1):
        look = {"textcoords": "offset points", "fontsize": 8.5, "color": canvas.INK}
        view.annotate(f"{1.6 * number:.1f} s", (-y, x), (9, -3), **look)
    draw_start(view)
    scene = windows.truth(index).scene
    for other in scene.others if scene is not None else ():
        # Forward is up, so x of the rig's frame is rotated by 90°.
        corner = (-other.y_m - other.length_m / 2, other.x_m - other.width_m / 2)
        box = Rectangle(
            corner,
            other.length_m,
            other.width_m,
            angle=90 + np.degrees(other.yaw_rad),
            rotation_point="center",
            facecolor=canvas.LIGHT,
            edgecolor=canvas.INK,
            linewidth=0.8,
        )
        view.add_patch(box)
    draw_view(view, np.vstack([past, driven]), driven)
    view.legend(frameon=False, fontsize=8, loc="upper left")
    x, y = waypoints[-1]
    picture.finding(
        f"In {after.t_s[-1]:.1f} s the car is {x:.1f} m ahead and {abs(y):.1f} m to the "
        f"{'left' if y >= 0 else 'right'}, from {after.speed_mps:.1f} m/s"
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
    """Windows with different manoeuvres, one each."""
    first: dict[manoeuvre.Manoeuvre, int] = {}
    counts: Counter[manoeuvre.Manoeuvre] = Counter()
    for index in range(0, len(windows), max(len(windows) // MAX_DECIDED, 1)):
        if (after := windows.future(index)) is not None:
            label = manoeuvre.decide(after)
            first.setdefault(label, index)
            counts[label] += 1
    # Labels that have not been shown yet go first.
    order = [label for label, _ in counts.most_common()]
    picked: list[manoeuvre.Manoeuvre] = []
    while order and len(picked) < NUM_SHOWN:
        known = {part for label in picked for part in label}
        picked.append(max(order, key=lambda label: len(set(label) - known)))
        order.remove(picked[-1])
    return [first[label] for label in picked]


def _draw_signal(
    axes: canvas.Axes,
    t_s: np.ndarray,
    values: np.ndarray,
    levels: Sequence[Level],
    is_speed: bool,
) -> None:
    for level in levels:
        # Without a large turn, the lines of a U-turn would compress the plot.
        if level is U_TURN and np.abs(values).max() <= 0.6 * level.begin:
            continue
        before = int(np.sign(values[0])) if is_speed else 0
        holds = manoeuvre.levels(values, level.begin, level.end, before) != 0
        axes.fill_between(t_s, 0, values, where=holds, color=level.colour, alpha=0.3, linewidth=0)
        for side in (1,) if is_speed and values.min() > -level.end else (1, -1):
            axes.axhline(side * level.begin, color=level.colour, linewidth=1.2)
            axes.axhline(side * level.end, color=level.colour, linewidth=1.2, linestyle=":")
        look = {"fontsize": 7.5, "color": canvas.INK, "zorder": 4, "bbox": canvas.ON_WHITE}
        axes.text(t_s[0] + 0.05, level.begin, level.name, va="center", **look)
    axes.plot(t_s, values, color=canvas.INK, linewidth=2)
    axes.set_xlim(t_s[0], t_s[-1])
    canvas.quiet(axes, None)
