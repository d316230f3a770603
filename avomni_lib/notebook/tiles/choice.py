"""A choice of tiling to look at before an ETL is paid for: which cameras, how large, how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avomni_lib.dataset import cameras as rig
from avomni_lib.params import Params

Tile = tuple[int, int]  # (width, height) px
OWN_LIST = "own list"


@dataclass(frozen=True)
class Choice:
    """What 04 lets one change.

    Attributes:
        setup: `4-cam`, `7-cam`, or `own list`, which is for looking at alone: `vision.camera_setup`
            knows no other grids than the first two.
        cameras: Features' names of an own list, in the order of its tiles; empty otherwise.
        tile: (width, height) px of one camera.
        fit: `letterbox`, `crop` or `stretch`.
        sample_hz: Sampled frames a second.
        sequence_length: Frames in a window.
    """

    setup: str
    cameras: tuple[str, ...]
    tile: Tile
    fit: str
    sample_hz: float
    sequence_length: int

    @classmethod
    def of(cls, p: Params) -> Choice:
        """The run's own."""
        processing = p.processing
        return cls(
            p.vision.camera_setup,
            (),
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
    def is_legal(self) -> bool:
        """Whether a params file can say it."""
        return self.setup in rig.GRIDS

    @property
    def grid(self) -> rig.Grid:
        """Rows and columns of the cameras; of an own list as square as they can be."""
        return rig.grid(self.setup) if self.is_legal else grid_of(self.cameras)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the grid, px."""
        return self.grid.rows * self.tile[1], self.grid.cols * self.tile[0]

    def laid_over(self, p: Params) -> Params:
        """The run with this choice; with an own list, all of it but the cameras."""
        processing = {
            "tile_width": self.tile[0],
            "tile_height": self.tile[1],
            "fit": self.fit,
            "sample_hz": self.sample_hz,
            "sequence_length": self.sequence_length,
        }
        vision = {"camera_setup": self.setup} if self.is_legal else {}
        vision |= {"window_size": self.sequence_length} if p.vision.window_size else {}
        return p.model_copy(
            update={
                "processing": p.processing.model_copy(update=processing),
                "vision": p.vision.model_copy(update=vision),
            }
        )


# What a choice changes in a params file, by section.
KEYS = {
    "vision": ("camera_setup", "window_size"),
    "processing": ("tile_width", "tile_height", "fit", "sample_hz", "sequence_length"),
}


def values(p: Params) -> dict[str, dict[str, Any]]:
    """All that a choice may change, by section and key, as plain values."""
    plain = p.values(*KEYS)
    return {section: {key: plain[section][key] for key in keys} for section, keys in KEYS.items()}


def grid_of(names: Sequence[str]) -> rig.Grid:
    """A grid of any cameras, in their order: as square as it can be, and wide rather than high."""
    cols = max(math.isqrt(max(len(names) - 1, 0)) + 1, 1)
    rows = max(-(-len(names) // cols), 1)
    cells = [rig.BY_NAME[name] for name in names]
    return rig.Grid(OWN_LIST, rows, cols, (*cells, *[None] * (rows * cols - len(cells))))
