"""A run small enough for a test: the whole chain on a few rendered seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from avomni_lib import files
from avomni_lib.params import Params, yaml_file

SMALL = {
    "run": {"name": "small"},
    "dataset": {"world": {"num_chunks": 2, "clips_per_chunk": 5, "clip_seconds": 3.0}},
    "processing": {"num_workers": 2},
    "training": {"max_steps": 6, "save_steps": 2, "batch_size": 2, "heldout_windows": None},
    "evaluation": {"max_windows": 4, "batch_size": 4},
}


def write_params(folder: Path, **sections: dict) -> Path:
    """The demo's params with `SMALL` and the sections laid over, everything below `folder`."""
    values = yaml.safe_load((files.PROJECT_ROOT / "params" / "demo.yaml").read_text())
    own = {"run": {"outputs_dir": str(folder)}, "dataset": {"local_dir": str(folder / "data")}}
    for changes in (SMALL, own, sections):
        values = yaml_file.merge(values, changes)
    path = folder / "small.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    Params.from_files([path])
    return path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "avomni_lib", *words]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def avomni(*words: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(),
        cwd=files.PROJECT_ROOT,
    )
