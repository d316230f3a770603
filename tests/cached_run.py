"""A run with a finished cache, made by the stages themselves from the small published folder."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq

from avomni_lib.dataset import download
from avomni_lib.etl import build
from avomni_lib.params import Params
from tests.published_set import (
    clip_id_of,
    parquet_bytes,
    read_zip,
    write_published_set,
    write_zip,
)

CLIPS_PER_CHUNK, SECONDS = 6, 2.0
HZ, LENGTH, STRIDE = 10.0, 4, 2
TILE_WIDTH, TILE_HEIGHT = 48, 32


def values(folder: Path, **sections: dict) -> dict:
    """Plain parameters of a run below `folder`; `sections` of keys are laid over them."""
    plain = {
        "run": {"name": "test", "outputs_dir": str(folder / "outputs")},
        "dataset": {"source": "folder", "local_dir": str(folder / "published")},
        "download": {"target_chunks": 2, "target_size_gb": 150.0},
        "processing": {
            "sequence_length": LENGTH,
            "stride": STRIDE,
            "sample_hz": HZ,
            "tile_width": TILE_WIDTH,
            "tile_height": TILE_HEIGHT,
            "fit": "stretch",
            "horizon_s": 1.0,
            "num_workers": 1,
            "obstacles": False,
        },
    }
    for section, keys in sections.items():
        plain[section] = plain.get(section, {}) | keys
    return plain


def make(folder: Path, shortened: int | None = None, **sections: dict) -> Params:
    """Publish, choose and build; returns the parameters of the run.

    The ego motion of clip number `shortened` ends after 1.2 s, and the clip in the cache with it.
    """
    published = write_published_set(folder / "published", 2, CLIPS_PER_CHUNK, SECONDS)
    if shortened is not None:
        chunk = shortened // CLIPS_PER_CHUNK
        path = published / f"labels/egomotion/egomotion.chunk_{chunk:04d}.zip"
        members, name = read_zip(path), f"{clip_id_of(shortened)}.egomotion.parquet"
        table = pq.read_table(io.BytesIO(members[name])).to_pydict()
        kept = [row for row, t_us in enumerate(table["timestamp"]) if t_us <= 1.2e6]
        members[name] = parquet_bytes({key: [v[row] for row in kept] for key, v in table.items()})
        write_zip(path, members)
    p = Params.from_values(values(folder, **sections))
    download.fetch(p, None)
    build.build(p)
    return p
