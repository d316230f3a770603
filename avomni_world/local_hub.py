"""A folder in the data set's layout, served to the real huggingface_hub client on 127.0.0.1.

The demo's 02_download therefore uses the same HTTP code as for huggingface.co. It needs only the
standard library, and binds only to loopback, so it cannot pass gated data on.

The responses follow what the client expects (huggingface_hub 1.33.0, `hf_api.py` and
`file_download.py`): refs, revision, paths-info, auth-check, and `resolve` with Range,
X-Repo-Commit, X-Linked-ETag (sha256 of large files; git's blob id is the ETag of small ones) and
X-Linked-Size. Listing a tree, which neither this project nor NVIDIA's kit does, is left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from avomni_lib import files
from avomni_lib.dataset.download.remote import git_blob_id
from avomni_lib.errors import AvomniError

log = logging.getLogger(__name__)

HOST, BRANCH = "127.0.0.1", "main"
BLOCK_BYTES = 1 << 16
# Files that a data set repository keeps in git itself; all others are LFS, known by their sha256.
TEXT_SUFFIXES = {".csv", ".md", ".txt", ".json", ".yaml", ".yml"}
TEXT_MAX_BYTES = 10_000_000


@dataclass(frozen=True)
class Blob:
    """One published file as the hub describes it.

    Attributes:
        file: Its path, without symbolic links.
    """

    path: str
    size: int
    sha256: str
    git_id: str
    is_large: bool
    file: Path

    @property
    def is_there(self) -> bool:
        """Whether the file still exists itself, and not a link to another one."""
        return self.file.is_file() and self.file.resolve() == self.file


class HubServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    hub: LocalHub

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def server_bind(self) -> None:
        # HTTPServer's own looks up a host name, which can take seconds and is not needed.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the local hub went away", exc_info=True)


class HubHandler(BaseHTTPRequestHandler):
    """One method per route, with huggingface.co's headers.

    Attributes:
        name: What is requested: a file's path, or a route such as `api:refs`.
        form: The fields of a POST.
    """

    protocol_version = "HTTP/1.1"
    # Head and body are two writes; with Nagle's algorithm each small response would take 40 ms.
    disable_nagle_algorithm = True
    server: HubServer

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.form = parse_qs(self.rfile.read(length).decode()) if length else {}
        self.name = "api:unknown"
        self.answer(urlsplit(self.path).path)

    do_HEAD = do_POST = do_GET

    def answer(self, path: str) -> None:
        api, site = f"/api/datasets/{self.hub.repo_id}", f"/datasets/{self.hub.repo_id}/resolve/"
        if path == api or path.startswith(api + "/"):
            route, _, revision = path[len(api) + 1 :].partition("/")
            self.name = f"api:{route or 'info'}"
            self.api(route, unquote(revision) or BRANCH)
        elif path.startswith(site):
            revision, _, file = path[len(site) :].partition("/")
            self.name = unquote(file)
            self.resolve(unquote(revision), self.name)
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")

    def api(self, route: str, revision: str) -> None:
        commit = self.hub.commit if revision == BRANCH else revision
        if commit not in self.hub.commits:
            self.refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        elif route in ("", "revision"):
            self.json(self.info(commit))
        elif route == "refs":
            main = {"name": BRANCH, "ref": f"refs/heads/{BRANCH}", "targetCommit": commit}
            self.json({"branches": [main], "converts": [], "tags": []})
        elif route == "paths-info":
            blobs = self.hub.commits[commit]
            wanted = [blobs.get(path) for path in self.form.get("paths", [])]
            self.json([self.entry(blob) for blob in wanted if blob])
        elif route == "auth-check":
            self.json({})
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")

    def info(self, commit: str) -> dict[str, Any]:
        return {"id": self.hub.repo_id, "sha": commit, "private": False, "gated": False}

    def entry(self, blob: Blob) -> dict[str, Any]:
        entry = {"type": "file", "path": blob.path, "size": blob.size, "oid": blob.git_id}
        if blob.is_large:
            pointer_size = len(_pointer(blob.sha256, blob.size))
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": pointer_size}
        return entry

    def resolve(self, revision: str, path: str) -> None:
        commit = self.hub.commit if revision == BRANCH else revision
        if commit not in self.hub.commits:
            self.refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
            return
        blob = self.hub.commits[commit].get(path)
        if blob is None or not blob.is_there:
            self.refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
        else:
            self.file(blob, commit)

    def file(self, blob: Blob, commit: str) -> None:
        """Send a file, or the requested range of it."""
        status, start, stop = self.span(blob)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self.refuse(status, None, {"Content-Range": f"bytes */{blob.size}"})
            return
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(stop - start),
            "Accept-Ranges": "bytes",
            **self.tags(blob),
        }
        if status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        self.head(status, headers, commit)
        if self.command != "HEAD":
            with open(blob.file, "rb") as file:
                file.seek(start)
                self.send(file.read, start, stop)

    def span(self, blob: Blob) -> tuple[HTTPStatus, int, int]:
        """(status, first byte, last byte + 1) of the response."""
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes=") or not blob.size:
            return HTTPStatus.OK, 0, blob.size
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(blob.size - int(last), 0)
        stop = min(int(last) + 1, blob.size) if first and last else blob.size
        if start >= stop:
            return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, start, stop
        return HTTPStatus.PARTIAL_CONTENT, start, stop

    def tags(self, blob: Blob) -> dict[str, str]:
        """The headers that the hub sends for a file, wherever its bytes come from."""
        if not blob.is_large:
            return {"ETag": f'"{blob.git_id}"'}
        etag = f'"{blob.sha256}"'
        return {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": str(blob.size)}

    def send(self, read: Callable[[int], bytes], place: int, stop: int) -> None:
        """Send the bytes `place..stop` as `read` gives them."""
        while place < stop and (block := read(min(BLOCK_BYTES, stop - place))):
            self.wfile.write(block)
            place += len(block)

    def refuse(
        self, status: HTTPStatus, code: str | None, headers: dict[str, str] | None = None
    ) -> None:
        headers = {"Content-Length": "0"} | (headers or {})
        self.head(status, headers | ({"X-Error-Code": code} if code else {}))

    def json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        size = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self.head(HTTPStatus.OK, size | (headers or {}))
        if self.command != "HEAD":
            self.send(io.BytesIO(body).read, 0, len(body))

    def head(self, status: HTTPStatus, headers: dict[str, str], commit: str | None = None) -> None:
        self.send_response(status)
        for header, value in ({"X-Repo-Commit": commit or self.hub.commit} | headers).items():
            self.send_header(header, value)
        self.end_headers()


class LocalHub:
    """A running hub; use it as a context manager.

    Args:
        folder: Published files. Names that start with a dot are left out, and so are links to one
            or out of the folder.
        repo_id: `owner/name`.
        port: 0 chooses a free one.

    Attributes:
        commit: Main's commit: 40 hex digits, a function of the files' names and contents.
        commits: Every commit that is served -> path -> file.

    Raises:
        AvomniError: the folder holds no file, or the port is taken.
    """

    handler: type[HubHandler] = HubHandler

    def __init__(self, folder: Path, repo_id: str, port: int = 0):
        self.repo_id = repo_id
        self.commits: dict[str, dict[str, Blob]] = {}
        self.publish(folder)
        self._servers: list[tuple[HubServer, threading.Thread]] = []
        self._server = self._listen(port)

    @property
    def endpoint(self) -> str:
        """Its address, `http://127.0.0.1:<port>`."""
        return self._server.address

    def publish(self, folder: Path) -> None:
        """Publish this folder's files as main's next commit; earlier commits are still served.

        Raises:
            AvomniError: the folder holds no file.
        """
        blobs = {blob.path: blob for blob in _snapshot(Path(folder))}
        if not blobs:
            raise AvomniError("nothing to serve: the folder holds no file", where=str(folder))
        listing = "".join(f"{blob.git_id} {path}\n" for path, blob in blobs.items())
        self.commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[self.commit] = blobs

    def _listen(self, port: int) -> HubServer:
        try:
            server = HubServer((HOST, port), self.handler)
        except OSError as error:
            raise AvomniError(f"the local hub cannot listen on port {port}: {error}") from None
        server.hub = self
        # Checks every 50 ms whether to stop.
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        self._servers.append((server, thread))
        return server

    def __enter__(self) -> LocalHub:
        for _, thread in self._servers:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in self._servers:
            server.shutdown()
            server.server_close()
            thread.join()


def _snapshot(folder: Path) -> Iterator[Blob]:
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():  # a link to itself cannot be resolved
            continue
        name, content = path.relative_to(folder), path.resolve()
        if not content.is_relative_to(root):
            continue
        if any(part.startswith(".") for part in (*name.parts, *content.relative_to(root).parts)):
            continue
        size = path.stat().st_size
        sha256 = files.sha256_file(path)
        is_large = path.suffix not in TEXT_SUFFIXES or size > TEXT_MAX_BYTES
        git_id = git_blob_id(_pointer(sha256, size) if is_large else path.read_bytes())
        yield Blob(name.as_posix(), size, sha256, git_id, is_large, content)


def _pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps for a large file (git-lfs, docs/spec.md)."""
    version = "version https://git-lfs.github.com/spec/v1"
    return f"{version}\noid sha256:{sha256}\nsize {size}\n".encode()
