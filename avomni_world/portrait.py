"""The README's picture of the world: `python -m avomni_world.portrait docs/world.png`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from avomni_lib.dataset import cameras
from avomni_world.scene.render import picture
from avomni_world.scene.scenes import make_scene

GRID = cameras.grid("7-cam")


def portrait(
    seed: int, town: str, time_s: float, width: int = 400, height: int = 225
) -> Image.Image:
    """The seven cameras of one instant in their grid, empty tiles white."""
    images = picture(make_scene(seed, town, 8.0), time_s, width, height, GRID.cameras)
    canvas = np.full((GRID.rows * height, GRID.cols * width, 3), 255, dtype=np.uint8)
    for camera, image in zip(GRID.cameras, images, strict=True):
        row, col = GRID.cell_of(camera.name)
        canvas[row * height : (row + 1) * height, col * width : (col + 1) * width] = image
    return Image.fromarray(canvas)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    portrait(seed=4, town="harbour", time_s=3.0).quantize(128).save(path, optimize=True)
