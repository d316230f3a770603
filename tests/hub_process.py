"""The local hub in a process of its own; tests ask it for faults, and for its log, by a pipe.

`python -m tests.hub_process '{"folder": …}'` answers a line of JSON to each on its standard input.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from avomni_lib import files
from tests import local_hub
from tests.local_hub import Faults, Request

REPO = "avomni/world"


class HubProcess:
    """A running hub; use it as a context manager.

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
        self.endpoint, self.commit = self._answer()

    def refuse(self, name: str, times: int, status: int, **headers: str) -> None:
        """The next requests of this name (`*` is any) are answered so."""
        self._ask(["refuse", name, times, status, headers])

    def fault(self, kind: str, value: Any) -> None:
        """Set one of `Faults`' attributes."""
        self._ask(["fault", kind, value])

    def reset(self) -> None:
        """No faults, an empty log."""
        self._ask(["reset"])

    def speed(self, bytes_per_s: float | None) -> None:
        """Of each answer from now on."""
        self._ask(["speed", bytes_per_s])

    def move_to(self, folder: Path) -> str:
        """A new commit of main; returns it."""
        return self._ask(["move_to", str(folder)])

    def forget(self, commit: str) -> None:
        """The source's history was written anew without this commit."""
        self._ask(["forget", commit])

    def requests(self, path: str | None = None) -> list[Request]:
        """All so far, in the order in which they were answered; those of one path."""
        log = [Request(**request) for request in self._ask(["requests"])]
        return [request for request in log if path in (None, request.path)]

    def bytes_of(self, path: str | None = None) -> int:
        """Bytes of a file's content that were sent so far; of all files'."""
        return self._ask(["bytes_of", path])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "HubProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, command: list[Any]) -> Any:
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        return json.loads(self._process.stdout.readline())


def _act(hub: local_hub.LocalHub, command: str, *values: Any) -> Any:
    if command == "refuse":
        name, times, status, headers = values
        hub.faults.refuse(name, times, status, **headers)
    elif command == "fault":
        kind, value = values
        there = getattr(hub.faults, kind)
        there.clear()
        there.update(value)
    elif command == "reset":
        hub.faults = Faults()
        hub.requests.clear()
    elif command == "speed":
        (hub.bytes_per_s,) = values
    elif command == "move_to":
        hub.publish(Path(values[0]))
        return hub.commit
    elif command == "forget":
        del hub.commits[values[0]]
    elif command == "bytes_of":
        return sum(
            request.num_bytes
            for request in list(hub.requests)
            if request.path == values[0] or (not values[0] and not request.path.startswith("api:"))
        )
    elif command == "requests":
        return [dataclasses.asdict(request) for request in list(hub.requests)]
    return None


def main() -> None:
    options = json.loads(sys.argv[1])
    with local_hub.serve(Path(options.pop("folder")), REPO, **options) as hub:
        print(json.dumps([hub.endpoint, hub.commit]), flush=True)
        for line in sys.stdin:
            print(json.dumps(_act(hub, *json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
