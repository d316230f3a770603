"""What the local hub answers to huggingface_hub: one method a route, with huggingface.co's headers.

Read from the client that asks (huggingface_hub 1.33.0, `hf_api.py` and `file_download.py`): refs,
revision, tree in pages, paths-info, auth-check, whoami, and `resolve` with Range, X-Repo-Commit,
X-Linked-ETag (sha256 of large files; git's blob id is the ETag of small ones) and X-Linked-Size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import socketserver
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    from avomni_lib.world.local_hub import LocalHub

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
BRANCH = "main"
PAGE_SIZE = 1000
BLOCK_BYTES = 1 << 16


@dataclass
class Request:
    """One request; `path` is a file of the repository or an API route as `api:refs`."""

    method: str
    path: str
    status: int
    num_bytes: int = 0


@dataclass(frozen=True)
class Blob:
    """One published file as the hub describes it."""

    path: str
    size: int
    sha256: str
    git_id: str
    is_large: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_id


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps for a large file (git-lfs, docs/spec.md)."""
    version = "version https://git-lfs.github.com/spec/v1"
    return f"{version}\noid sha256:{sha256}\nsize {size}\n".encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    hub: LocalHub

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for a name, which can take seconds; nobody needs it.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the local hub went away", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes; with Nagle's delay each small answer would take 40 ms.
    disable_nagle_algorithm = True
    server: Server

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.form = parse_qs(self.rfile.read(length).decode()) if length else {}
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        api, site = f"/api/datasets/{self.hub.repo_id}", f"/datasets/{self.hub.repo_id}/resolve/"
        if url.path == "/api/whoami-v2":
            self._whoami()
        elif url.path == api or url.path.startswith(api + "/"):
            self._api(*(unquote(part) for part in url.path[len(api) + 1 :].split("/", 2)))
        elif url.path.startswith(site):
            revision, _, path = url.path[len(site) :].partition("/")
            self._resolve(unquote(revision), unquote(path))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound", "api:unknown")

    def _api(self, route: str, revision: str = BRANCH, path: str = "") -> None:
        name = f"api:{route or 'info'}"
        if self.hub.happens(self.hub.faults.busy, name):
            self._busy(name)
        elif revision not in (BRANCH, self.hub.commit):
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", name)
        elif route in ("", "revision"):
            siblings = [{"rfilename": path} for path in self.hub.blobs]
            info = {"id": self.hub.repo_id, "sha": self.hub.commit, "siblings": siblings}
            info |= {"private": False, "gated": "auto" if self.hub.token else False}
            self._json(name, info)
        elif route == "refs":
            main = {"name": BRANCH, "ref": f"refs/heads/{BRANCH}", "targetCommit": self.hub.commit}
            self._json(name, {"branches": [main], "converts": [], "tags": []})
        elif route == "tree":
            self._tree(name, revision, path)
        elif route == "paths-info":
            wanted = [self.hub.blobs.get(path) for path in self.form.get("paths", [])]
            self._json(name, [self._entry(blob) for blob in wanted if blob])
        elif route == "auth-check":
            if not self._is_barred(name):
                self._json(name, {})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", name)

    def _entry(self, blob: Blob) -> dict[str, Any]:
        size = self.hub.faults.sizes.get(blob.path, blob.size)
        entry = {"type": "file", "path": blob.path, "size": size, "oid": blob.git_id}
        if blob.is_large:
            pointer_size = len(pointer(blob.sha256, blob.size))
            entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": pointer_size}
        return entry

    def _tree(self, name: str, revision: str, folder: str) -> None:
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries, folders = [], set()
        for blob in self.hub.blobs.values():
            if not blob.path.startswith(prefix):
                continue
            parts = blob.path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                inner = prefix + "/".join(parts[:depth])
                if inner not in folders:
                    folders.add(inner)
                    oid = hashlib.sha1(inner.encode()).hexdigest()
                    entries.append({"type": "directory", "path": inner, "size": 0, "oid": oid})
            if recursive or len(parts) == 1:
                entries.append(self._entry(blob))
        if prefix and not entries:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", name)
            return
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE_SIZE < len(entries):
            where = f"{self.hub.endpoint}/api/datasets/{self.hub.repo_id}/tree/{revision}"
            where += f"/{quote(folder, safe='')}" if folder else ""
            query = f"recursive={recursive}&cursor={start + PAGE_SIZE}"
            headers["Link"] = f'<{where}?{query}>; rel="next"'
        self._json(name, entries[start : start + PAGE_SIZE], headers)

    def _whoami(self) -> None:
        given = self.headers.get("Authorization")
        if given and self.hub.token in (None, given.removeprefix("Bearer ")):
            self._json("api:whoami", {"type": "user", "name": "local", "orgs": []})
        else:
            self._refuse(HTTPStatus.UNAUTHORIZED, None, "api:whoami")

    def _resolve(self, revision: str, path: str) -> None:
        blob = self.hub.blobs.get(path)
        if revision not in (BRANCH, self.hub.commit):
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", path)
        elif self._is_barred(path):
            pass
        elif blob is None or path in self.hub.faults.vanished:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", path)
        elif self.hub.happens(self.hub.faults.busy, path):
            self._busy(path)
        else:
            self._file(blob)

    def _is_barred(self, name: str) -> bool:
        """Refuse who may not read gated files (the two answers of huggingface.co)."""
        given = self.headers.get("Authorization")
        if self.hub.token is None or given == f"Bearer {self.hub.token}":
            return False
        status = HTTPStatus.FORBIDDEN if given else HTTPStatus.UNAUTHORIZED
        self._refuse(status, "GatedRepo", name)
        return True

    def _file(self, blob: Blob) -> None:
        status, start, stop = HTTPStatus.OK, 0, blob.size
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and blob.size:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            status, start = HTTPStatus.PARTIAL_CONTENT, int(first) if first else -int(last)
            start = max(blob.size + start, 0) if start < 0 else start
            stop = min(int(last) + 1, blob.size) if first and last else blob.size
            if start >= stop:
                headers = {"Content-Range": f"bytes */{blob.size}"}
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, None, blob.path, headers)
                return
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(stop - start),
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob.etag}"',
        }
        if status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        if blob.is_large:
            headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        request = self._head(status, headers, blob.path)
        if self.command != "HEAD":
            self._send_file(blob, start, stop, request)

    def _send_file(self, blob: Blob, start: int, stop: int, request: Request) -> None:
        middle = (start + stop) // 2
        is_flipped = self.hub.happens(self.hub.faults.flipped, blob.path)
        if self.hub.happens(self.hub.faults.cut, blob.path):
            stop, self.close_connection = middle, True
        place = start
        with open(self.hub.folder / blob.path, "rb") as file:
            file.seek(start)
            while place < stop and (block := file.read(min(BLOCK_BYTES, stop - place))):
                if is_flipped and place <= middle < place + len(block):
                    wrong = bytearray(block)
                    wrong[middle - place] ^= 1
                    block = bytes(wrong)
                # Counted first: who has read the last byte may look at the count at once.
                request.num_bytes += len(block)
                self.wfile.write(block)
                place += len(block)
                if self.hub.bytes_per_s:
                    time.sleep(len(block) / self.hub.bytes_per_s)

    def _busy(self, name: str) -> None:
        self._refuse(HTTPStatus.TOO_MANY_REQUESTS, None, name, {"Retry-After": "0"})

    def _refuse(
        self, status: HTTPStatus, code: str | None, name: str, headers: dict[str, str] | None = None
    ) -> None:
        headers = {"Content-Length": "0"} | (headers or {})
        self._head(status, headers | ({"X-Error-Code": code} if code else {}), name)

    def _json(self, name: str, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        size = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._head(HTTPStatus.OK, size | (headers or {}), name).num_bytes = len(body)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, headers: dict[str, str], name: str) -> Request:
        """Note the request (before its answer is acted upon), send status and headers."""
        request = self.hub.note(Request(self.command, name, status))
        self.send_response(status)
        for header, value in ({"X-Repo-Commit": self.hub.commit} | headers).items():
            self.send_header(header, value)
        self.end_headers()
        return request
