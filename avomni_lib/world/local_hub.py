"""A folder in the data set's layout, served to the real huggingface_hub client on 127.0.0.1.

The demo's 02 thus fetches over HTTP by the very code that fetches from huggingface.co. Standard
library only; `hub_protocol.py` holds the answers. Xet is not offered.

It binds to loopback alone: it is no way to pass gated data on.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from avomni_lib import files
from avomni_lib.dataset.remote import git_blob_id
from avomni_lib.errors import AvomniError
from avomni_lib.world.hub_protocol import HOST, Blob, Handler, Request, Server, pointer

# What a data set repository keeps in git itself; all else is large and known by its sha256 (LFS).
TEXT_SUFFIXES = {".csv", ".md", ".txt", ".json", ".yaml", ".yml"}
TEXT_MAX_BYTES = 10_000_000


@dataclass
class Faults:
    """What a poor line or a changed source does: path -> how many more times (for tests).

    Attributes:
        flipped: GETs that carry one wrong bit.
        cut: GETs whose connection drops half way.
        busy: Requests that are answered 429; API routes too.
        vanished: Files that answer 404 although they were listed.
        sizes: Sizes that paths-info states in place of the true ones.
    """

    flipped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    vanished: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)


class LocalHub:
    """A running hub; use it as a context manager.

    Attributes:
        endpoint: Its address, `http://127.0.0.1:<port>`.
        commit: 40 hex, a function of the files' names and contents.
        requests: Every request so far.
        faults: Nothing, until a test asks for some.
    """

    def __init__(
        self, folder: Path, repo_id: str, token: str | None, port: int, bytes_per_s: float | None
    ):
        self.folder, self.repo_id = Path(folder), repo_id
        self.token, self.bytes_per_s = token, bytes_per_s
        self.blobs = {blob.path: blob for blob in _snapshot(self.folder)}
        if not self.blobs:
            raise AvomniError("nothing to serve: the folder holds no file", where=str(folder))
        listing = "".join(f"{blob.git_id} {path}\n" for path, blob in self.blobs.items())
        self.commit = hashlib.sha1(listing.encode()).hexdigest()
        self.requests: list[Request] = []
        self.faults = Faults()
        self._lock = threading.Lock()
        try:
            self._server = Server((HOST, port), Handler)
        except OSError as error:
            raise AvomniError(f"the local hub cannot listen on port {port}: {error}") from None
        self._server.hub = self
        # Looks every 50 ms whether it shall stop.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}"

    def gets(self, path: str) -> int:
        """How many GETs of the file were answered with content."""
        return sum(r.method == "GET" and r.path == path and r.status < 300 for r in self.requests)

    def bytes_of(self, path: str) -> int:
        """Bytes of the file's content sent so far."""
        return sum(r.num_bytes for r in self.requests if r.method == "GET" and r.path == path)

    def note(self, request: Request) -> Request:
        with self._lock:
            self.requests.append(request)
        return request

    def happens(self, fault: Counter[str], path: str) -> bool:
        """Use up one occurrence of a fault."""
        with self._lock:
            if fault[path] > 0:
                fault[path] -= 1
                return True
            return False

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    port: int = 0,
    bytes_per_s: float | None = None,
) -> LocalHub:
    """A hub that serves `folder` as the data set `repo_id` while its context is open.

    Args:
        folder: Published files; names that start with a dot are left out.
        repo_id: `owner/name`.
        token: If given, files are gated: no token is answered 401, another one 403.
        port: 0 takes a free one.
        bytes_per_s: Speed of each answer; None is as fast as it goes.

    Raises:
        AvomniError: the folder holds no file, or the port is taken.
    """
    return LocalHub(folder, repo_id, token, port, bytes_per_s)


def _snapshot(folder: Path) -> Iterator[Blob]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        size = path.stat().st_size
        sha256 = files.sha256_file(path)
        is_large = path.suffix not in TEXT_SUFFIXES or size > TEXT_MAX_BYTES
        git_id = git_blob_id(pointer(sha256, size) if is_large else path.read_bytes())
        yield Blob(name.as_posix(), size, sha256, git_id, is_large)
