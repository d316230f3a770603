"""A run over what a local hub serves, and processes of their own that fetch it."""

import os
import subprocess
import sys
from pathlib import Path

from avomni_lib.params import Params
from tests import folder_run

REPO = "avomni/world"
FETCH = """
import sys
from avomni_lib.dataset.download.download import fetch
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.params import Params
from tests import folder_run
p = Params.model_validate_json(sys.argv[1])
fetch(p, Hub(p.dataset.repo_id, sys.argv[2] or None, sys.argv[3]))
"""


def params(folder: Path, **sections: dict) -> Params:
    """A run of two chunks of what such a hub serves."""
    values = {
        "run": {"name": "run", "outputs_dir": str(folder / "outputs")},
        "dataset": {"source": "world", "repo_id": REPO, "local_dir": str(folder / "data")},
        "download": {"target_chunks": 2, "target_size_gb": 1.0},
    }
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys
    return Params.from_values(values)


def contents(folder: Path) -> dict[str, bytes]:
    """Path -> content of all that is not hidden."""
    found = folder_run.content(folder).items()
    return {path: content for path, content in found if not path.startswith(".")}


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """A process of its own that runs this code."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
