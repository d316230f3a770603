"""A published set larger than a budget, served by a hub, and runs that evict what they read."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest

from avomni_lib.dataset import cameras
from avomni_lib.dataset.download import download
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.select import split
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import folder_run
from tests.local_hub import LocalHub
from tests.published_set import chunk_path, write_published_set

REPO = "owner/set"
NUM_CHUNKS, CLIPS_PER_CHUNK, SECONDS = 4, 3, 1.5
CAMERAS = [camera.name for camera in cameras.grid("4-cam").cameras]
FILES_PER_CHUNK = len(CAMERAS) + 4
PADDING = 1_500_000


def write(folder: Path) -> Path:
    """Chunks whose raw files are larger than what becomes of them, as the real ones are."""
    write_published_set(folder, NUM_CHUNKS, CLIPS_PER_CHUNK, SECONDS)
    noise = random.Random(0)
    for chunk in range(NUM_CHUNKS):
        for camera in CAMERAS:
            with zipfile.ZipFile(folder / chunk_path(camera, chunk), "a") as file:
                file.writestr("padding.bin", noise.randbytes(PADDING))
    return folder


def hub_of(served: LocalHub) -> Hub:
    return Hub(REPO, revision=served.commit, endpoint=served.endpoint)


def params(folder: Path, gb: float = 1.0, evict: bool = True, **sections) -> Params:
    """A run of all chunks; `dataset.source: world` tells how long a clip is."""
    size = {"tile_width": 64, "tile_height": 48}
    values = folder_run.values(folder, folder / "raw", **size | sections.get("processing", {}))
    world = {"clip_seconds": SECONDS, "clips_per_chunk": CLIPS_PER_CHUNK}
    values["dataset"] |= {"source": "world", "repo_id": REPO, "world": world}
    values["download"] = {"target_chunks": NUM_CHUNKS, "target_size_gb": gb, "evict_raw": evict}
    values["download"] |= sections.get("download", {})
    return Params.from_values(values)


def finish(p: Params, name: str, served: LocalHub | None = None) -> build.Built | None:
    """A stage up to 04 as its notebook runs it, without the pictures."""
    stage, built = runs.start(p, name), None
    if name == "02_download":
        fetched = download.fetch(p, served and hub_of(served))
        stage.finish({}, [p.run_dir / "chosen.json"], fetched.chosen.digest)
    elif name == "03_etl":
        built = build.build(p, hub=served and hub_of(served))
        stage.finish(
            built.figures, built.cache.files | {split.path_of(p): None}, built.cache.digest
        )
    else:
        stage.finish({}, digest="the same")
    return built


def chosen(p: Params, served: LocalHub) -> Params:
    """The same run after 02_download."""
    download.fetch(p, hub_of(served))
    return p


def needed_gb(p: Params) -> float:
    """The least budget that goes through, as the refusal of a smaller one says it."""
    small = p.model_copy(
        update={"download": p.download.model_copy(update={"target_size_gb": 1e-6})}
    )
    with pytest.raises(AvomniError) as caught:
        build.build(small)
    return float(caught.value.fix.split("target_size_gb: ")[1].split(" ")[0])


def content(p: Params) -> dict[str, bytes]:
    """Every file of the run's cache."""
    return folder_run.content(p.cache_dir)


def raw_files(p: Params) -> list[str]:
    return sorted(
        path.name for path in p.local_dir.rglob("*.chunk_*") if ".avomni" not in path.parts
    )
