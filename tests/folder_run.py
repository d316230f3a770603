"""A run over a published set that lies in a folder, with small tiles, and what its cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avomni_lib.dataset.download import download
from avomni_lib.params import Params

ALL_CHUNKS = 9  # more than the sets of tests have


def values(folder: Path, published: Path, **processing: Any) -> dict[str, Any]:
    return {
        "run": {"name": "test", "outputs_dir": str(folder)},
        "dataset": {"source": "folder", "local_dir": str(published)},
        "download": {"target_chunks": ALL_CHUNKS, "target_size_gb": 150.0},
        "processing": {
            "sequence_length": 4,
            "stride": 2,
            "sample_hz": 10.0,
            "tile_width": 32,
            "tile_height": 24,
            "fit": "stretch",
            "horizon_s": 1.0,
            "num_workers": 1,
            "obstacles": False,
            **processing,
        },
    }


def chosen(folder: Path, published: Path, **processing: Any) -> Params:
    """A run whose raw files are there."""
    p = Params.from_values(values(folder, published, **processing))
    download.fetch(p, None)
    return p


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a cache or any other folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
