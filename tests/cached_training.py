"""A run whose cache the ETL has made, ready to be trained on by a process of its own."""

from __future__ import annotations

from pathlib import Path

from avomni_lib.dataset.download import download
from avomni_lib.etl.run import build
from avomni_lib.params import Params
from tests import published_set, training_set


def make(folder: Path, **changes: dict) -> Params:
    """Three clips of 20 frames, one of them to train on: 9 windows; `changes` are of sections."""
    published = published_set.write_published_set(folder / "set", num_chunks=1)
    sections = {
        "dataset": {"source": "folder", "local_dir": str(published), "license_accepted": True},
        "processing": {"num_workers": 1},
    }
    for section, keys in changes.items():
        sections[section] = sections.get(section, {}) | keys
    p = training_set.params(folder, training_set.make_base(folder / "base"), **sections)
    download.fetch(p, None)
    build.build(p)
    return p


def moved(p: Params, outputs: Path, **training: object) -> Params:
    """The same run with nothing trained yet, in a folder of its own; `training` are other keys."""
    run = p.run.model_copy(update={"outputs_dir": str(outputs)})
    own = p.model_copy(update={"run": run, "training": p.training.model_copy(update=training)})
    own.run_dir.mkdir(parents=True)
    for made in (p.cache_dir.name, "split.json"):
        (own.run_dir / made).symlink_to(p.run_dir / made)
    return own
