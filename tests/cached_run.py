"""A run with a finished cache, made by the stages themselves from the small published folder."""

from __future__ import annotations

from pathlib import Path

from avomni_lib.dataset.download import download
from avomni_lib.etl.run import build
from avomni_lib.params import Params
from tests import folder_run
from tests.published_set import clip_id_of, read_zip, write_published_set, write_zip

CLIPS_PER_CHUNK, SECONDS = 6, 2.0
HZ, LENGTH, STRIDE = 10.0, 4, 2  # as in `folder_run.values`
TILE_WIDTH, TILE_HEIGHT = 48, 32


def values(folder: Path, **sections: dict) -> dict:
    """Plain parameters of a run below `folder`; `sections` of keys are laid over them."""
    tile = {"tile_width": TILE_WIDTH, "tile_height": TILE_HEIGHT}
    plain = folder_run.values(folder / "outputs", folder / "published", **tile)
    plain |= {"extends": "params/mi300x.yaml", "vision": {"window_size": None}}
    plain["download"] = {"target_chunks": 2}
    for section, keys in sections.items():
        plain[section] = plain.get(section, {}) | keys
    return plain


def make(folder: Path, shortened: int | None = None, **sections: dict) -> Params:
    """Publish, choose and build; returns the parameters of the run.

    Clip number `shortened` is 1.2 s long.
    """
    published = write_published_set(folder / "published", 2, CLIPS_PER_CHUNK, SECONDS)
    if shortened is not None:
        # Its cameras and its ego motion are those of a set of shorter clips.
        short = write_published_set(folder / "short", 2, CLIPS_PER_CHUNK, 1.2)
        chunk, clip_id = shortened // CLIPS_PER_CHUNK, clip_id_of(shortened)
        for path in published.rglob(f"*.chunk_{chunk:04d}.zip"):
            members, theirs = read_zip(path), read_zip(short / path.relative_to(published))
            members |= {name: theirs[name] for name in members if name.startswith(clip_id)}
            write_zip(path, members)
    p = Params.from_values(values(folder, **sections))
    download.fetch(p, None)
    build.build(p)
    return p
