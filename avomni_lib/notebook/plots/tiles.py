"""Figures of 04_tiles: the grid as the model sees it, the car's path and its speed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from avomni_lib.dataset.cameras import Grid
from avomni_lib.notebook.plots import canvas

NOW = {"marker": "^", "color": canvas.ORANGE, "markeredgecolor": canvas.INK}  # the frame shown


@dataclass(frozen=True)
class WindowMotion:
    """The car's motion during a clip, and the part of it that a window covers.

    Attributes:
        times_s: (N,) times of the sampled frames since the clip's first.
        xy_m: (N, 2) position, clip-local frame.
        yaw_rad: (N,) heading in that frame.
        speed_mps: (N,).
        start, stop: The window's frames, stop excluded.
        now: The displayed frame.
    """

    times_s: np.ndarray
    xy_m: np.ndarray
    yaw_rad: np.ndarray
    speed_mps: np.ndarray
    start: int
    stop: int
    now: int

    def xy_ego_m(self) -> np.ndarray:
        """(N, 2) position in the ego frame at the displayed frame: x forward, y left."""
        cos, sin = np.cos(self.yaw_rad[self.now]), np.sin(self.yaw_rad[self.now])
        return (self.xy_m - self.xy_m[self.now]) @ np.array([[cos, -sin], [sin, cos]])


def draw_path(axes: Axes, drive: WindowMotion) -> None:
    """Draw the path from above in the ego frame, forward up."""
    x, y = drive.xy_ego_m().T
    window = slice(drive.start, drive.stop)
    axes.plot(-y, x, color=canvas.GREY, linewidth=1.2, label="clip")
    axes.plot(-y[window], x[window], color=canvas.BLUE, linewidth=3, label="window")
    axes.plot([0], [0], markersize=11, **NOW)
    canvas.square_view(axes, x, y, 20.0)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def draw_speed(axes: Axes, drive: WindowMotion) -> None:
    """Draw the speed over the clip, with the window and the displayed frame marked."""
    times, speed, now = drive.times_s, drive.speed_mps, drive.now
    axes.axvspan(times[drive.start], times[drive.stop - 1], color=canvas.BLUE, alpha=0.18)
    axes.plot(times, speed, color=canvas.INK, linewidth=1.6)
    axes.plot(times[now], speed[now], markersize=9, **NOW)
    axes.set_ylim(0, max(float(speed.max()) * 1.15, 1.0))
    canvas.quiet(axes, x="seconds of the clip (shaded: the window)", y="speed, m/s")


def named(image: np.ndarray, grid: Grid, width_px: int, square_px: int = 0) -> np.ndarray:
    """A grid with its cameras' names, enlarged by an integer factor to about `width_px`.

    Args:
        image: (H, W, 3) uint8 RGB, the grid at the model's resolution.
        square_px: Side of the squares of one vision token each, drawn over the grid; 0 draws none.
            They start at the grid's corner, so a square may lie on two tiles.
    """
    scale = canvas.scale_for(image.shape[1], width_px)
    if not square_px:
        return canvas.name_tiles(image, grid, scale)
    large = image.repeat(scale, axis=0).repeat(scale, axis=1).astype(np.float32)
    colour = np.array([int(canvas.ORANGE[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)
    step = square_px * scale
    lines = np.zeros(large.shape[:2], dtype=bool)
    lines[step::step], lines[:, step::step] = True, True
    large[lines] = large[lines] * 0.25 + colour * 0.75
    return canvas.name_tiles(large.round().astype(np.uint8), grid)


def motion(drive: WindowMotion, wide: bool = False) -> canvas.Picture:
    """Path and speed, stacked beside a grid, or side by side below a wide one."""
    picture = canvas.Picture(*((900, 300) if wide else (340, 460)))
    # A fixed layout halves the time of drawing, for which a slider waits.
    picture.set_layout_engine("none")
    if wide:
        places = {"width_ratios": [1, 2], "wspace": 0.2, "left": 0.06, "bottom": 0.16}
        path, speed = picture.subplots(1, 2, gridspec_kw=places | {"right": 0.985, "top": 0.97})
    else:
        places = {"height_ratios": [2.2, 1], "hspace": 0.25, "left": 0.155, "bottom": 0.1}
        path, speed = picture.subplots(2, 1, gridspec_kw=places | {"right": 0.985, "top": 0.985})
    draw_path(path, drive)
    draw_speed(speed, drive)
    return picture


def preview(
    image: np.ndarray, grid: Grid, drive: WindowMotion, title: str, answer: str = ""
) -> canvas.Picture:
    """A grid (H, W, 3) uint8 RGB with its cameras' names, and beside it path and speed."""
    side_px = 320
    width_px = canvas.MAX_WIDTH_PX - side_px
    lines = canvas.wrapped(answer, 110).splitlines()
    height_px = max(canvas.height_of(image, grid, width_px), 440) + 40 + 16 * len(lines)
    picture = canvas.Picture(width_px + side_px, height_px)
    places = picture.add_gridspec(2, 2, width_ratios=[width_px, side_px], height_ratios=[2.2, 1])
    axes = picture.add_subplot(places[:, 0])
    canvas.show_grid(axes, image, grid, width_px)
    if lines:
        look = {"loc": "left", "fontsize": 9, "family": "monospace", "color": canvas.INK}
        axes.set_xlabel("\n".join(lines), parse_math=False, **look)
    draw_path(picture.add_subplot(places[0, 1]), drive)
    draw_speed(picture.add_subplot(places[1, 1]), drive)
    picture.finding(title)
    return picture
