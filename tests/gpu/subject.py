"""What is measured: a model of random weights on the disk, caches of random frames, parameters.

Full size is Qwen3-VL-8B from its config, or the backbone's in `base.FULL`; `quick` is the tests'
own tiny model, for a CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip.fingerprints import num_words
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone
from tests import families, training_set

QWEN3_VL = "qwen3_vl"
LENGTH, STRIDE, HZ = 16, 8, 2.0
# 40 frames make 4 windows: 6 clips are the 24 windows of twelve steps of two.
NUM_CLIPS, FRAMES_PER_CLIP = 6, 40
BATCH = 2


@dataclass
class Subject:
    """Where everything lies.

    Attributes:
        folder: Room for 27 GB at full size.
        quick: The tiny model and small grids.
        backbone: The model's family.
        found: What earlier parts of the measurement have found.
    """

    folder: Path
    quick: bool = False
    backbone: str = QWEN3_VL
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def bf16(self) -> Path:
        """The base model as its maker publishes it."""
        return self.folder / "base"

    @property
    def nf4(self) -> Path:
        """The same with its 4-bit weights stored, as that of params/mi300x.yaml is."""
        return self.folder / "base-bnb-4bit"

    def tile(self) -> tuple[int, int]:
        """(width, height) px of a camera."""
        if self.quick and self.backbone != QWEN3_VL:
            side = families.FAMILIES[self.backbone].kind().side_multiple
        else:
            side = backbone(self.backbone).side_multiple
        wide = (448, 256)
        is_cut = not self.quick and not any(length % side for length in wide)
        return wide if is_cut else (side, side)

    def words(self) -> Any:
        """The tokenizer of the model of random weights."""
        if self.backbone == QWEN3_VL:
            return training_set.make_words()
        return families.FAMILIES[self.backbone].tokenizer()

    def size(self, setup: str) -> str:
        grid, (width, height) = cameras.grid(setup), self.tile()
        return f"{grid.cols * width}x{grid.rows * height}"

    def params(self, name: str, setup: str, **changes: Mapping[str, Any]) -> Params:
        """The parameters of a run on the stored 4-bit base; `changes` are sections of keys."""
        width, height = self.tile()
        values: dict[str, dict[str, Any]] = {
            "run": {"name": name, "outputs_dir": str(self.folder / "outputs")},
            "dataset": {"source": "world"},
            "processing": {"sequence_length": LENGTH, "stride": STRIDE, "sample_hz": HZ}
            | {"tile_width": width, "tile_height": height},
            "vision": {"cameras": setup},
            "model": {"base_model": str(self.nf4 if self.nf4.exists() else self.bf16)}
            | {"backend": "transformers", "backbone": self.backbone},
            # Enough passes that `max_steps` alone ends it.
            "training": {"batch_size": BATCH, "num_epochs": 100},
        }
        for section, keys in changes.items():
            values[section] = values.get(section, {}) | dict(keys)
        return Params.from_values({"extends": "params/mi300x.yaml"} | values)

    def windows(self, setup: str) -> Windows:
        """The training windows of a raw cache of random frames, written at the first call."""
        folder = self.folder / "caches" / setup
        if not (folder / memmap.CLIPS_FILE).exists():
            write_cache(folder, setup, self.tile())
        return Windows(Cache.open(folder), LENGTH, STRIDE, split="train")


def write_cache(folder: Path, setup: str, tile: tuple[int, int]) -> None:
    """A cache as the ETL leaves it, of noise: no zeros, on which arithmetic is faster."""
    grid = cameras.grid(setup)
    cells = [cell.name if cell else None for cell in grid.cells]
    common = {
        "generator": "tests.gpu",
        "source": {"repo_id": "tests/noise", "revision": "0" * 40},
        "grid": {"name": grid.name, "rows": grid.rows, "cols": grid.cols, "cells": cells},
        "tile": list(tile),
        "fit": "stretch",
        "sample_hz": HZ,
        "storage": "raw",
    }
    ids = [f"clip-{number}" for number in range(NUM_CLIPS)]
    clips = [{"clip_id": clip_id, "split": "train", "chunk": 0} for clip_id in ids]

    @functools.lru_cache(maxsize=1)  # it is asked for once an array
    def load(clip_id: str) -> shard.Arrays:
        return _clip(ids.index(clip_id), grid, tile)

    place = folder / shard.shard_name(0)
    shard.write_shard(place, common | {"key": setup}, clips, load)
    whole = {"state": "ok", "reason": "", "num_frames": FRAMES_PER_CLIP}
    memmap.write_table(folder, common, [place], [clip | whole for clip in clips])


def _clip(number: int, grid: cameras.Grid, tile: tuple[int, int]) -> shard.Arrays:
    rng = np.random.default_rng(number)
    width, height = tile
    times = np.arange(FRAMES_PER_CLIP) * round(1e6 / HZ)
    egomotion = np.zeros((FRAMES_PER_CLIP, len(memmap.EGOMOTION_COLUMNS)))
    driven = times / 1e6 * (5.0 + 4.0 * number)
    for name, values in {"x": driven, "distance_m": driven, "qw": 1.0}.items():
        egomotion[:, memmap.EGOMOTION_COLUMNS.index(name)] = values
    shape = (FRAMES_PER_CLIP, grid.rows * height, grid.cols * width, 3)
    return {
        "frames": np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape),
        "prints": np.zeros((FRAMES_PER_CLIP, 2, num_words(len(grid.cameras))), np.uint64),
        "timestamps": np.repeat(times[:, None], len(grid.cameras), axis=1),
        "times": times,
        "egomotion": egomotion,
        "track": np.zeros((1, len(memmap.TRACK_COLUMNS))),
    }
