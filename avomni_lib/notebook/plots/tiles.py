"""Pictures of 04_tiles: the grid as the model sees it, where the car goes, and how fast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from avomni_lib.dataset.rig import Grid
from avomni_lib.notebook.plots import canvas


@dataclass(frozen=True)
class Drive:
    """Where the car is during a clip, and which part of it a window covers.

    Attributes:
        times_s: (N,) of the sampled frames, from the clip's first.
        xy_m: (N, 2) position, clip-local frame.
        yaw_rad: (N,) heading in that frame.
        speed_mps: (N,).
        start, stop: The window's frames, stop excluded.
        now: The frame that is shown.
    """

    times_s: np.ndarray
    xy_m: np.ndarray
    yaw_rad: np.ndarray
    speed_mps: np.ndarray
    start: int
    stop: int
    now: int

    def xy_ego_m(self) -> np.ndarray:
        """(N, 2) position in the ego frame of the frame shown: x forward, y left."""
        cos, sin = np.cos(self.yaw_rad[self.now]), np.sin(self.yaw_rad[self.now])
        return (self.xy_m - self.xy_m[self.now]) @ np.array([[cos, -sin], [sin, cos]])


def draw_path(axes: Axes, drive: Drive) -> None:
    """The path seen from above in the ego frame: forward is up, left is left."""
    x, y = drive.xy_ego_m().T
    window = slice(drive.start, drive.stop)
    axes.plot(-y, x, color=canvas.GREY, linewidth=1.2, label="clip")
    axes.plot(-y[window], x[window], color=canvas.BLUE, linewidth=3, label="window")
    axes.plot([0], [0], marker="^", color=canvas.ORANGE, markersize=11, markeredgecolor=canvas.INK)
    # The same scale both ways and 20 m at least: a straight drive must not look like a wiggle.
    reach = max(float(np.ptp(x)), float(np.ptp(y)), 20.0) * 0.55
    for set_limits, values in ((axes.set_xlim, -y), (axes.set_ylim, x)):
        middle = (float(values.min()) + float(values.max())) / 2
        set_limits(middle - reach, middle + reach)
    axes.set_aspect("equal")
    canvas.quiet(axes, "both").set_xlabel("m to the right", fontsize=9)
    axes.set_ylabel("m forward", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def draw_speed(axes: Axes, drive: Drive) -> None:
    """Speed over the clip with the window marked and the frame shown."""
    axes.axvspan(
        drive.times_s[drive.start], drive.times_s[drive.stop - 1], color=canvas.BLUE, alpha=0.18
    )
    axes.plot(drive.times_s, drive.speed_mps, color=canvas.INK, linewidth=1.6)
    axes.plot(
        drive.times_s[drive.now],
        drive.speed_mps[drive.now],
        marker="^",
        color=canvas.ORANGE,
        markersize=9,
        markeredgecolor=canvas.INK,
    )
    axes.set_ylim(0, max(float(drive.speed_mps.max()) * 1.15, 1.0))
    canvas.quiet(axes).set_xlabel("seconds of the clip (shaded: the window)", fontsize=9)
    axes.set_ylabel("speed, m/s", fontsize=9)


def motion(drive: Drive, width_px: int = 340, height_px: int = 460) -> canvas.Picture:
    """Path above speed, to stand beside a grid."""
    picture = canvas.Picture(width_px, height_px)
    path, speed = picture.subplots(2, 1, height_ratios=[2.2, 1])
    draw_path(path, drive)
    draw_speed(speed, drive)
    return picture


def preview(image: np.ndarray, grid: Grid, drive: Drive, title: str) -> canvas.Picture:
    """The grid with its cameras' names, the path and the speed beside it.

    Args:
        image: (H, W, 3) uint8 RGB, the grid at the model's resolution.
        grid: Which cameras stand where.
        drive: Where the car goes meanwhile.
        title: The finding: what the choice costs.
    """
    side_px = 320
    width_px = canvas.MAX_WIDTH_PX - side_px
    height_px = max(canvas.height_of(image, grid, width_px), 440) + 40
    picture = canvas.Picture(width_px + side_px, height_px)
    places = picture.add_gridspec(2, 2, width_ratios=[width_px, side_px], height_ratios=[2.2, 1])
    canvas.show_grid(picture.add_subplot(places[:, 0]), image, grid, width_px)
    draw_path(picture.add_subplot(places[0, 1]), drive)
    draw_speed(picture.add_subplot(places[1, 1]), drive)
    picture.finding(title)
    return picture
