"""The local hub in a process of its own; tests ask it for faults, and for its log, by a pipe.

`python -m tests.hub_process '{"folder": …}'` answers a line of JSON to each on its standard input.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.params import Params
from tests import local_hub
from tests.local_hub import Faults, Request

REPO = "avomni/world"
FETCH = """
import sys
from avomni_lib.dataset.download.download import fetch
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.params import Params
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
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(p): (folder / p).read_bytes() for p in paths if not p.parts[0].startswith(".")}


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """A process of its own that runs this code."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


class HubProcess:
    """A running hub; use it as a context manager. Every method of `Commands` is one of it, too.

    Args:
        folder: What it serves.
        options: Of `local_hub.serve`.
    """

    def __init__(self, folder: Path, **options: Any):
        arguments = json.dumps({"folder": str(folder), **options})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub_process", arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=files.PROJECT_ROOT,
        )
        self.endpoint, self.commit = json.loads(self._process.stdout.readline())

    def __getattr__(self, command: str) -> Callable[..., Any]:
        def ask(*values: Any, **named: Any) -> Any:
            self._process.stdin.write(json.dumps([command, values, named], default=str) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

        return ask

    def requests(self, path: str | None = None) -> list[Request]:
        """All so far, in the order in which they were answered; those of one path."""
        log = [Request(**request) for request in self.log()]
        return [request for request in log if path in (None, request.path)]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "HubProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Commands:
    """What a hub in a process of its own can be asked for."""

    def __init__(self, hub: local_hub.LocalHub):
        self._hub = hub

    def refuse(self, name: str, times: int, status: int, **headers: str) -> None:
        """The next requests of this name (`*` is any) are answered so."""
        self._hub.faults.refuse(name, times, status, **headers)

    def fault(self, kind: str, value: Any) -> None:
        """Set one of `Faults`' attributes."""
        there = getattr(self._hub.faults, kind)
        there.clear()
        there.update(value)

    def reset(self) -> None:
        """No faults, an empty log."""
        self._hub.faults = Faults()
        self._hub.requests.clear()

    def speed(self, bytes_per_s: float | None) -> None:
        """Of each answer from now on."""
        self._hub.bytes_per_s = bytes_per_s

    def move_to(self, folder: str) -> str:
        """A new commit of main; returns it."""
        self._hub.publish(Path(folder))
        return self._hub.commit

    def log(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(request) for request in list(self._hub.requests)]

    def bytes_of(self, path: str | None = None) -> int:
        """Bytes of a file's content that were sent so far; of all files'."""
        return sum(
            request.num_bytes
            for request in list(self._hub.requests)
            if request.path == path or (not path and not request.path.startswith("api:"))
        )


def main() -> None:
    options = json.loads(sys.argv[1])
    with local_hub.serve(Path(options.pop("folder")), REPO, **options) as hub:
        print(json.dumps([hub.endpoint, hub.commit]), flush=True)
        for line in sys.stdin:
            command, values, named = json.loads(line)
            answer = getattr(Commands(hub), command)(*values, **named)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
