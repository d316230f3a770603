"""One answer drawn: the path over the front camera and from above, beside the words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from avomni_lib.dataset import cameras, projection
from avomni_lib.etl.clip import tiling
from avomni_lib.live.subject import front_camera
from avomni_lib.notebook.plots import canvas
from avomni_lib.params import Params

if TYPE_CHECKING:
    from avomni_lib.live.predict import Prediction
    from avomni_lib.training.targets import Said

SCENE_PX, VIEW_PX, TEXT_PX, HEIGHT_PX = 560, 220, 380, 380
LOOKS = {"predicted": (canvas.BLUE, "o"), "driven": (canvas.ORANGE, "s")}


def picture(p: Params, made: Prediction) -> canvas.Picture:
    """The window's last frame, the answer's path over it and from above, and the answer's words."""
    said, true = made.answer.said, made.subject.true
    paths = {"predicted": _path(said), "driven": _path(true)}
    paths = {name: xy_m for name, xy_m in paths.items() if xy_m is not None}
    drawn = canvas.Picture(SCENE_PX + VIEW_PX + TEXT_PX, HEIGHT_PX)
    scene, view, words = drawn.subplots(1, 3, width_ratios=[SCENE_PX, VIEW_PX, TEXT_PX])
    _draw_scene(scene, p, made, paths)
    _draw_view(view, paths)
    answer = made.answer.text if len(made.answer.text) < 600 else made.answer.text[:600] + "…"
    text = f"{made.model} model:\n{answer}"
    if made.subject.truth is not None:
        text += f"\n\nground truth:\n{canvas.shortened(made.subject.truth, 600)}"
    canvas.bare(words).text(0, 1, canvas.wrapped(text, 48), va="top", fontsize=9, color=canvas.INK)
    title = made.subject.name
    if made.off is not None:
        title += f": {made.figure} {made.off:.3g}"
    drawn.finding(title)
    return drawn


def _path(said: Said | None) -> np.ndarray | None:
    """(N, 2) m in the rig's frame, from the car on."""
    if said is None or said.waypoints_m is None:
        return None
    return np.vstack([(0.0, 0.0), said.waypoints_m])


def _draw_scene(axes: Axes, p: Params, made: Prediction, paths: dict[str, np.ndarray]) -> None:
    grid, camera = cameras.grid(p.vision.cameras), front_camera(p)
    cell = p.processing.tile_width, p.processing.tile_height
    tile = tiling.tile_of(made.subject.frames[-1:], grid, cell, camera.name)[0]
    size = tiling.tile_size(grid, cell, camera.name)
    canvas.show_image(axes, tile, f"{camera.label}, last frame, as the model sees it")
    axes.set_xlim(-0.5, size[0] - 0.5)
    axes.set_ylim(size[1] - 0.5, -0.5)
    if made.subject.lens is None:
        return
    lens = projection.Camera.of(*made.subject.lens)
    placement = tiling.fit_tile((lens.width, lens.height), size, p.processing.fit)
    for name, xy_m in paths.items():
        ground = np.column_stack([projection.along(xy_m), np.zeros(projection.STEPS)])
        pixels = placement.move(lens.pixels(ground), (lens.width, lens.height))
        axes.plot(*pixels.T, color=LOOKS[name][0], linewidth=2.5, alpha=0.85)


def _draw_view(axes: Axes, paths: dict[str, np.ndarray]) -> None:
    if not paths:
        canvas.bare(axes)
        return
    canvas.quiet(axes, "both")
    for name, xy_m in paths.items():
        colour, marker = LOOKS[name]
        axes.plot(-xy_m[:, 1], xy_m[:, 0], color=colour, marker=marker, markersize=3, label=name)
    side = max(np.abs(xy_m[:, 1]).max() for xy_m in paths.values())
    axes.set_xlim(-max(side, 5) * 1.2, max(side, 5) * 1.2)
    axes.set_xlabel("m to the right", fontsize=9)
    axes.set_ylabel("m ahead, next 6.4 s", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
