"""A server on 127.0.0.1 that answers what a test tells it to, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What is sent; `body` may be anything that JSON can say."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class Asked(str):
    """A request: its path, without its query; its body; two of its headers, empty without them."""

    body: bytes
    secret: str
    range: str


@dataclass
class Answering:
    """A running server.

    Attributes:
        answer: Request -> the answer.
        asked: The requests so far.
    """

    port: int
    answer: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def secrets(self) -> list[str]:
        return [asked.secret for asked in self.asked if asked.secret]


@contextlib.contextmanager
def answering(answer: Callable[[Asked], Answer]) -> Iterator[Answering]:
    """Serve while the context is open."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = Asked(self.path.partition("?")[0])
            asked.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.secret = self.headers.get("Authorization", "")
            asked.range = self.headers.get("Range", "")
            running.asked.append(asked)
            given = running.answer(asked)
            self.send_response(given.status)
            for name, value in given.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(given.content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(given.content)

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Answering(server.server_address[1], answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
