"""A choice of tiling to look at before an ETL is paid for: which cameras, how large, how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from avomni_lib import grids
from avomni_lib.dataset.cameras import BY_NAME, GRIDS, OWN, Grid, grid
from avomni_lib.params import Params

Tile = tuple[int, int]  # (width, height) px
OWN_LIST, OWN_GRID = "own list", "own grid"


@dataclass(frozen=True)
class Choice:
    """What 04 lets one change.

    Attributes:
        setup: `4-cam`, `7-cam`, `own grid` (rows of the params file) or `own list`.
        cameras: Of an own grid its rows of names, with None for an empty cell; of an own list the
            names in the order of its tiles, which makes a grid as square as it can be.
        tile: (width, height) px of one camera.
        fit: `letterbox`, `crop` or `stretch`.
        sample_hz: Sampled frames a second.
        sequence_length: Frames in a window.
    """

    setup: str
    cameras: tuple[str, ...] | grids.Rows
    tile: Tile
    fit: str
    sample_hz: float
    sequence_length: int

    @classmethod
    def of(cls, p: Params) -> Choice:
        """The run's own."""
        processing, value = p.processing, grid(p.vision.cameras).value
        return cls(
            value if isinstance(value, str) else OWN_GRID,
            () if isinstance(value, str) else value,
            (processing.tile_width, processing.tile_height),
            processing.fit,
            processing.sample_hz,
            processing.sequence_length,
        )

    def __str__(self) -> str:
        width, height = self.tile
        how = "" if self.fit == "stretch" else f", {self.fit}"
        return f"{self.setup}, tiles of {width}×{height}{how}"

    @property
    def grid(self) -> Grid:
        """Rows and columns of the cameras."""
        if self.setup in GRIDS:
            return GRIDS[self.setup]
        return grid(self.cameras) if self.setup == OWN_GRID else grid_of(self.cameras)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the grid, px."""
        return self.grid.rows * self.tile[1], self.grid.cols * self.tile[0]

    def with_larger(self, name: str) -> Choice:
        """The same cameras with one of them over two rows and two columns, the others around it.

        Args:
            name: A camera of the grid.
        """
        others = [camera.name for camera in self.grid.cameras if camera.name != name]
        grids_ = [_around(name, others, cols) for cols in (3, 4)]
        rows = min(grids_, key=lambda rows: len(rows) * len(rows[0]))
        return replace(self, setup=OWN_GRID, cameras=rows)

    def laid_over(self, p: Params) -> Params:
        """The run with this choice."""
        processing = {
            "tile_width": self.tile[0],
            "tile_height": self.tile[1],
            "fit": self.fit,
            "sample_hz": self.sample_hz,
            "sequence_length": self.sequence_length,
        }
        # What the run names stays as it is named there, as by a module's attribute.
        same = self.grid.value == grid(p.vision.cameras).value
        vision = {} if same else {"cameras": self.grid.value}
        vision |= {"window_size": self.sequence_length} if p.vision.window_size else {}
        return p.model_copy(
            update={
                "processing": p.processing.model_copy(update=processing),
                "vision": p.vision.model_copy(update=vision),
            }
        )


def _around(name: str, others: Sequence[str], cols: int) -> grids.Rows:
    """Rows with `name` in the upper left four cells, and the others to its right and below."""
    left = iter(others)
    rows = [[name, name, *(next(left, None) for _ in range(cols - 2))] for _ in range(2)]
    while len(others) > (len(rows) - 2) * cols + 2 * (cols - 2):
        rows.append([next(left, None) for _ in range(cols)])
    return tuple(map(tuple, rows))


# What a choice changes in a params file, by section.
KEYS = {
    "vision": ("cameras", "window_size"),
    "processing": ("tile_width", "tile_height", "fit", "sample_hz", "sequence_length"),
}


def values(p: Params) -> dict[str, dict[str, Any]]:
    """All that a choice may change, by section and key, as plain values."""
    plain = p.values(*KEYS)
    return {section: {key: plain[section][key] for key in keys} for section, keys in KEYS.items()}


def grid_of(names: Sequence[str]) -> Grid:
    """A grid of any cameras, in their order: as square as it can be, and wide rather than high."""
    cols = max(math.isqrt(max(len(names) - 1, 0)) + 1, 1)
    rows = max(-(-len(names) // cols), 1)
    cells = [BY_NAME[name] for name in names]
    return Grid(OWN, rows, cols, (*cells, *[None] * (rows * cols - len(cells))))
