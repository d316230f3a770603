"""How the local hub's answers leave: heads, JSON, files by Range, and the faults of a line."""

from __future__ import annotations

import io
import json
import logging
import select
import socketserver
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avomni_world.hub.faults import ANY

if TYPE_CHECKING:
    from avomni_world.hub.local_hub import LocalHub

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
BLOCK_BYTES = 1 << 16
TRICKLE_S = 0.02
# A client that has not given up a silent line by then never will.
MAX_SILENCE_S = 120.0


@dataclass
class Request:
    """One request.

    Attributes:
        path: A file of the repository, or an API route as `api:refs`.
        start: The first byte that was asked for.
        has_token: Whether a token came with it.
        is_storage: Whether it came to the second host.
        at_s: When, by `time.monotonic`.
    """

    method: str
    path: str
    status: int
    num_bytes: int = 0
    start: int = 0
    has_token: bool = False
    is_storage: bool = False
    at_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Blob:
    """One published file as the hub describes it.

    Attributes:
        file: Where it lies, with no symbolic link on the way.
    """

    path: str
    size: int
    sha256: str
    git_id: str
    is_large: bool
    file: Path

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_id

    @property
    def is_there(self) -> bool:
        """Whether the file still lies there itself, and not a link to another one."""
        return self.file.is_file() and self.file.resolve() == self.file


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps for a large file (git-lfs, docs/spec.md)."""
    version = "version https://git-lfs.github.com/spec/v1"
    return f"{version}\noid sha256:{sha256}\nsize {size}\n".encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    hub: LocalHub

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for a name, which can take seconds; nobody needs it.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the local hub went away", exc_info=True)


class Wire(BaseHTTPRequestHandler):
    """What every route needs to answer."""

    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes; with Nagle's delay each small answer would take 40 ms.
    disable_nagle_algorithm = True
    server: Server

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _is_refused(self, name: str) -> bool:
        """Whether a test has asked for another answer."""
        refusal = self.hub.faults.next_refusal(name)
        if refusal:
            self._refuse(HTTPStatus(refusal.status), None, name, dict(refusal.headers))
        return refusal is not None

    def _file(self, blob: Blob, commit: str, path: str | None = None) -> None:
        """Send a file, or the part that was asked for.

        Args:
            path: The name under which it was asked for.
        """
        path, faults, is_storage = path or blob.path, self.hub.faults, path is None
        name = f"storage:{path}" if is_storage else path
        if is_storage and self._is_refused(name):
            return
        status, start, stop = HTTPStatus.OK, 0, blob.size
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and blob.size and not {path, ANY} & faults.whole:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            status, start = HTTPStatus.PARTIAL_CONTENT, int(first) if first else -int(last)
            start = max(blob.size + start, 0) if start < 0 else start
            stop = min(int(last) + 1, blob.size) if first and last else blob.size
            if start >= stop:
                headers = {"Content-Range": f"bytes */{blob.size}"}
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, None, path, headers)
                return
        end = (start + stop + 1) // 2 if faults.happens(faults.short, path) else stop
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - start),
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob.sha256[:32]}-1"' if is_storage else f'"{blob.etag}"',
        }
        if status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
        if blob.is_large and not is_storage:
            headers |= linked(blob)
        request = self._head(status, headers, path, commit)
        request.start = start
        if self.command == "HEAD":
            return
        flipped = (start + end) // 2 if faults.happens(faults.flipped, path) else None
        with open(blob.file, "rb") as file:
            file.seek(start)
            self._send(name, request, start, end, file.read, flipped)

    def _send(
        self,
        name: str,
        request: Request,
        place: int,
        stop: int,
        read: Callable[[int], bytes],
        flipped: int | None = None,
    ) -> None:
        """Send the bytes `place..stop` as `read` gives them, until the line breaks."""
        broken = self.hub.faults.next_break(name, place, stop)
        stop = broken[0] if broken else stop
        # A slow line trickles.
        speed = self.hub.bytes_per_s
        most = min(BLOCK_BYTES, int(speed * TRICKLE_S) + 1) if speed else BLOCK_BYTES
        while place < stop and (block := read(min(most, stop - place))):
            if flipped is not None and place <= flipped < place + len(block):
                wrong = bytearray(block)
                wrong[flipped - place] ^= 1
                block = bytes(wrong)
            # Counted first: who has read the last byte may look at the count at once.
            request.num_bytes += len(block)
            self.wfile.write(block)
            place += len(block)
            if self.hub.bytes_per_s:
                time.sleep(len(block) / self.hub.bytes_per_s)
        if broken:
            self.close_connection = True
            if broken[1] == "stalls":
                select.select([self.connection], [], [], MAX_SILENCE_S)

    def _refuse(
        self, status: HTTPStatus, code: str | None, name: str, headers: dict[str, str] | None = None
    ) -> None:
        headers = {"Content-Length": "0"} | (headers or {})
        self._head(status, headers | ({"X-Error-Code": code} if code else {}), name)

    def _json(self, name: str, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        size = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        request = self._head(HTTPStatus.OK, size | (headers or {}), name)
        if self.command != "HEAD":
            self._send(name, request, 0, len(body), io.BytesIO(body).read)

    def _head(
        self, status: HTTPStatus, headers: dict[str, str], name: str, commit: str | None = None
    ) -> Request:
        """Note the request (before its answer is acted upon), send status and headers."""
        request = Request(self.command, name.removeprefix("storage:"), status)
        request.has_token = "Authorization" in self.headers
        request.is_storage = self.server is self.hub.storage
        self.hub.note(request)
        self.send_response(status)
        for header, value in ({"X-Repo-Commit": commit or self.hub.commit} | headers).items():
            self.send_header(header, value)
        self.end_headers()
        return request


def linked(blob: Blob) -> dict[str, str]:
    """What the hub itself says of a large file, wherever its bytes come from."""
    return {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
