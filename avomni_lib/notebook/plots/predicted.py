"""One answer drawn: the path over the front camera and from above, beside the words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from avomni_lib.dataset import calibration, cameras
from avomni_lib.etl.clip import tiling
from avomni_lib.live.subject import front_camera
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.plots import paths as path_plots
from avomni_lib.params import Params
from avomni_lib.training.targets.form import figure_in_words

if TYPE_CHECKING:
    from avomni_lib.live.answerer import Prediction
    from avomni_lib.training.targets import Said

SCENE_PX, VIEW_PX, TEXT_PX, HEIGHT_PX = 560, 260, 360, 400
LINE_CHARS, MAX_LINES = 48, 11  # of an answer
LOOKS = {"predicted": (canvas.BLUE, "o"), "driven": (canvas.ORANGE, "s")}


def picture(p: Params, made: Prediction) -> canvas.Picture:
    """The window's last frame, the answer's path over it and from above, and the answer's words."""
    paths = paths_of(made)
    widths = [SCENE_PX, VIEW_PX, TEXT_PX] if paths else [SCENE_PX, TEXT_PX]
    drawn = canvas.Picture(sum(widths), HEIGHT_PX)
    scene, *view, words = drawn.subplots(1, len(widths), width_ratios=widths)
    draw_scene(scene, p, made)
    scene.set_xlabel(f"{front_camera(p).label}, last frame, as the model sees it", fontsize=9)
    for axes in view:
        _draw_view(axes, paths)
    look = {"fontsize": 9, "color": canvas.INK, "parse_math": False, "in_layout": False}
    canvas.bare(words).text(0, 1, _words(made), va="top", transform=words.transAxes, **look)
    drawn.finding(f"{made.subject.name}{off_in_words(made)}")
    return drawn


def paths_of(made: Prediction) -> dict[str, np.ndarray]:
    """ "predicted" and "driven" -> (N, 2) m in the rig's frame, from the car on, where known."""
    paths = {"predicted": made.answer.said, "driven": made.subject.true}
    return {name: path for name, said in paths.items() if (path := _path(said)) is not None}


def off_in_words(made: Prediction) -> str:
    """How far off the answer is; empty where the truth is not known."""
    if made.subject.true is None:
        return ""
    if made.off is None:
        return ": the answer cannot be read"
    words, unit = figure_in_words(made.figure)
    return f": {words} {made.off:.3g} {unit}".rstrip()


def draw_scene(axes: Axes, p: Params, made: Prediction) -> None:
    """The last frame of the front camera, and the paths over it where its lens is known."""
    grid, camera = cameras.grid(p.vision.cameras), front_camera(p)
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
        axes.plot(*pixels.T, color=LOOKS[name][0], linewidth=2.5, alpha=0.85)


def _path(said: Said | None) -> np.ndarray | None:
    if said is None or said.waypoints_m is None:
        return None
    return np.vstack([(0.0, 0.0), said.waypoints_m])


def _words(made: Prediction) -> str:
    lines = [f"{made.model} model, {made.answer.seconds:.1f} s:"]
    lines += canvas.fit(made.answer.text or "(nothing)", LINE_CHARS, MAX_LINES)
    if made.subject.truth is not None:
        lines += ["", "ground truth:", *canvas.fit(made.subject.truth, LINE_CHARS, MAX_LINES)]
    return "\n".join(lines)


def _draw_view(axes: Axes, paths: dict[str, np.ndarray]) -> None:
    for name, xy_m in paths.items():
        colour, marker = LOOKS[name]
        axes.plot(-xy_m[:, 1], xy_m[:, 0], color=colour, marker=marker, markersize=3, label=name)
    path_plots.draw_start(axes)
    true_m = paths.get("driven", np.zeros((1, 2)))
    path_plots.draw_view(axes, np.vstack(list(paths.values())), true_m)
    axes.set_anchor("N")
    canvas.head(axes, "the next 6.4 s", 9)
    axes.legend(fontsize=8, frameon=False)
