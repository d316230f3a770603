"""Pictures of 01_audit: how the chosen clips drive, when and where, and how each one begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from avomni_lib.notebook.circumstances import NOTHING_THERE, Circumstances, FirstFrame
from avomni_lib.notebook.plots import canvas

# Over a clip of 20 s: below it is a bend of the road, above it a corner was turned.
TURNED_DEG = 30.0
MOST_COUNTRIES = 10
LINE_PX = 22  # of a title


def spread(of: Circumstances) -> canvas.Picture:
    """Speed, turn, hour and country of the chosen clips, one panel each."""
    picture = canvas.Picture(1100, 520)
    (speed, turn), (hour, country) = picture.subplots(2, 2)
    _histogram(speed, of.speed_mps, "mean speed of a clip, m/s", of.why_not)
    label = f"turn over a clip, degrees (left positive; dashed: {TURNED_DEG:.0f})"
    _histogram(turn, of.turn_deg, label, of.why_not, symmetric=True)
    if len(of.turn_deg):
        for edge in (-TURNED_DEG, TURNED_DEG):
            turn.axvline(edge, color=canvas.INK, linestyle="--", linewidth=1)
    _hours(hour, of)
    _countries(country, of)
    picture.finding(_finding(of))
    return picture


def contact_sheet(frames: Sequence[FirstFrame]) -> canvas.Picture:
    """How clips begin; of one that cannot be read a grey tile and its reason."""
    if not frames:
        return sentence(f"There is no picture to show: {NOTHING_THERE}")
    shapes = [frame.image.shape for frame in frames if frame.image is not None]
    grey = np.full(shapes[0] if shapes else (9, 16, 3), 210, dtype=np.uint8)
    unread = sum(frame.image is None for frame in frames)
    title = f"{len(frames)} of the chosen clips, by the first frame of their front wide camera"
    if unread:
        title += f"; {unread} cannot be read (grey: why)"
    picture = canvas.in_rows(
        [grey if frame.image is None else frame.image for frame in frames],
        [
            f"{canvas.short(frame.clip_id)}, "
            + (frame.split if frame.image is not None else canvas.shortened(frame.reason, 24))
            for frame in frames
        ],
        title,
    )
    # Few clips make a narrow picture, whose title takes a second line.
    lines = picture.get_suptitle().count("\n")
    picture.set_figheight(picture.get_figheight() + lines * LINE_PX / canvas.DPI)
    return picture


def sentence(text: str) -> canvas.Picture:
    """A picture where there is nothing to draw: it says so."""
    picture = canvas.Picture(1000, 44)
    picture.finding(text)
    return picture


def _histogram(
    axes: Axes, values: np.ndarray, label: str, why_not: str, symmetric: bool = False
) -> None:
    canvas.quiet(axes).set_xlabel(label, fontsize=9)
    axes.set_ylabel("clips", fontsize=9)
    if not len(values):
        _unknown(axes, why_not)
        return
    low, high = float(values.min()), float(values.max())
    if symmetric:
        high = max(abs(low), abs(high), 1.5 * TURNED_DEG)
        low = -high
    else:
        low, high = 0.0, max(high, 1.0)
    axes.hist(values, bins=24, range=(low, high), color=canvas.BLUE, edgecolor="white")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _hours(axes: Axes, of: Circumstances) -> None:
    canvas.quiet(axes).set_xlabel("hour of the day", fontsize=9)
    axes.set_ylabel("clips", fontsize=9)
    if not of.hours:
        _unknown(axes, "the source tells no hours")
        return
    axes.bar(list(of.hours), list(of.hours.values()), color=canvas.ORANGE, width=0.9)
    axes.set_xlim(-0.6, 23.6)
    axes.set_xticks(range(0, 24, 3))
    axes.yaxis.get_major_locator().set_params(integer=True)


def _countries(axes: Axes, of: Circumstances) -> None:
    canvas.quiet(axes, "x").set_xlabel("clips", fontsize=9)
    if not of.countries:
        _unknown(axes, "the source tells no countries")
        return
    shown = dict(list(of.countries.items())[:MOST_COUNTRIES])
    if rest := sum(of.countries.values()) - sum(shown.values()):
        shown[f"{len(of.countries) - len(shown)} others"] = rest
    names = [canvas.shortened(str(name), 24) for name in shown]
    drawn = axes.barh(range(len(shown)), list(shown.values()), color=canvas.PURPLE)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _unknown(axes: Axes, why: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(
        0.5,
        0.5,
        canvas.wrapped(f"not known: {why}", 44),
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=10,
        color=canvas.INK,
    )


def _finding(of: Circumstances) -> str:
    if not of.num_clips:
        return "No clip is chosen"
    parts = []
    if len(of.speed_mps):
        low, high = float(of.speed_mps.min()), float(of.speed_mps.max())
        turned = float((np.abs(of.turn_deg) > TURNED_DEG).mean())
        corner = f"{turned:.0%} turn a corner" if turned else "none turns a corner"
        parts.append(f"drive {low:.1f} to {high:.1f} m/s on average, {corner}")
    else:
        parts.append("have not been looked into yet")
    for counted, one, many in (
        (of.countries, "country", "countries"),
        (of.hours, "hour of the day", "hours of the day"),
    ):
        if counted:
            parts.append(f"{len(counted)} {one if len(counted) == 1 else many}")
    whole = f"The {of.num_clips:,} chosen clips"
    if len(of.speed_mps) and len(of.speed_mps) < of.num_clips:
        whole = f"{len(of.speed_mps):,} of the {of.num_clips:,} chosen clips"
    return f"{whole} {', '.join(parts)}"
