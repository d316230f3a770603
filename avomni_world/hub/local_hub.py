"""A folder in the data set's layout, served to the real huggingface_hub client on 127.0.0.1.

The demo's 02 thus fetches over HTTP by the very code that fetches from huggingface.co. Standard
library only; `hub_protocol.py` holds the answers, `hub_wire.py` sends them.

It binds to loopback alone: it is no way to pass gated data on.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from avomni_lib import files
from avomni_lib.dataset.download.remote import git_blob_id
from avomni_lib.errors import AvomniError
from avomni_world.hub.faults import Faults
from avomni_world.hub.protocol import Handler
from avomni_world.hub.wire import HOST, Blob, Request, Server, pointer

# What a data set repository keeps in git itself; all else is large and known by its sha256 (LFS).
TEXT_SUFFIXES = {".csv", ".md", ".txt", ".json", ".yaml", ".yml"}
TEXT_MAX_BYTES = 10_000_000


class LocalHub:
    """A running hub; use it as a context manager.

    Attributes:
        commit: Main's: 40 hex, a function of the files' names and contents.
        commits: Every commit that is served -> path -> file.
        requests: Every request so far.
        faults: Nothing, until a test asks for some.
        storage: The second host, to which requests for large files are sent on; None without one.
        xet: The address of a Xet storage that is offered; None without one.
    """

    def __init__(
        self,
        folder: Path,
        repo_id: str,
        token: str | None,
        port: int,
        bytes_per_s: float | None,
        has_storage: bool,
        xet: str | None,
    ):
        self.repo_id, self.token, self.bytes_per_s, self.xet = repo_id, token, bytes_per_s, xet
        self.commits: dict[str, dict[str, Blob]] = {}
        self.move_to(folder)
        self.requests: list[Request] = []
        self.faults = Faults()
        self._lock = threading.Lock()
        try:
            self._server = Server((HOST, port), Handler)
            self.storage = Server((HOST, 0), Handler) if has_storage else None
        except OSError as error:
            raise AvomniError(f"the local hub cannot listen on port {port}: {error}") from None
        self._servers = [server for server in (self._server, self.storage) if server]
        self._threads = []
        for server in self._servers:
            server.hub = self
            # Looks every 50 ms whether it shall stop.
            run = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            self._threads.append(run)

    @property
    def endpoint(self) -> str:
        """Its address, `http://127.0.0.1:<port>`."""
        return self._server.address

    @property
    def blobs(self) -> dict[str, Blob]:
        """Main's files."""
        return self.commits[self.commit]

    def move_to(self, folder: Path) -> None:
        """Main's next commit holds this folder's files; the commits before are served as well.

        Raises:
            AvomniError: the folder holds no file.
        """
        blobs = {blob.path: blob for blob in _snapshot(Path(folder))}
        if not blobs:
            raise AvomniError("nothing to serve: the folder holds no file", where=str(folder))
        listing = "".join(f"{blob.git_id} {path}\n" for path, blob in blobs.items())
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[commit] = blobs
        self.commit = commit

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

    def __enter__(self) -> LocalHub:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


def serve(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    port: int = 0,
    bytes_per_s: float | None = None,
    has_storage: bool = False,
    xet: str | None = None,
) -> LocalHub:
    """A hub that serves `folder` as the data set `repo_id` while its context is open.

    Args:
        folder: Published files; names that start with a dot are left out, and links that lead to
            one or out of the folder.
        repo_id: `owner/name`.
        token: If given, files are gated: no token is answered 401, another one 403.
        port: 0 takes a free one.
        bytes_per_s: Speed of each answer; None is as fast as it goes.
        has_storage: Send requests for large files on to a second host, as huggingface.co does.
        xet: The address of a Xet storage to offer for large files.

    Raises:
        AvomniError: the folder holds no file, or the port is taken.
    """
    return LocalHub(folder, repo_id, token, port, bytes_per_s, has_storage, xet)


def _snapshot(folder: Path) -> Iterator[Blob]:
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file():
            continue
        content = path.resolve()
        if not content.is_relative_to(root):
            continue
        if any(part.startswith(".") for part in (*name.parts, *content.relative_to(root).parts)):
            continue
        size = path.stat().st_size
        sha256 = files.sha256_file(path)
        is_large = path.suffix not in TEXT_SUFFIXES or size > TEXT_MAX_BYTES
        git_id = git_blob_id(pointer(sha256, size) if is_large else path.read_bytes())
        yield Blob(name.as_posix(), size, sha256, git_id, is_large, content)
