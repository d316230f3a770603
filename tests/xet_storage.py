"""A Xet storage on 127.0.0.1, as far as the real hf_xet asks for it when it downloads.

Read off its requests (hf_xet 1.8.0): `GET /v2/reconstructions/<hash>` with a Range, then `/v1/` if
that is 404; the answer names ranges of a packed object ("xorb"), which is a row of chunks, each
with a head of 8 bytes: version, stored length (3 bytes), scheme (0 is as it is), length (3 bytes).
"""

import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 1 << 16
XORB = "b" * 64


@dataclass
class Asked:
    path: str
    range: str
    authorization: str


class XetStorage:
    """Serves these contents by their hashes; use it as a context manager.

    Attributes:
        asked: Every request so far.
        is_lost: Answer 404 to everything.
        flips: Spoil one bit of what is sent.
    """

    def __init__(self, contents: dict[str, bytes]):
        self.contents, self.asked = contents, []
        self.is_lost = self.flips = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.storage = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def first_bytes(self, content_hash: str) -> list[int]:
        """Where each request for a file's content began."""
        path = f"/v1/reconstructions/{content_hash}"
        return [int(re.findall(r"\d+", a.range)[0]) for a in self.asked if a.path == path]

    def __enter__(self) -> "XetStorage":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reconstruction(self, content_hash: str, start: int, stop: int) -> dict:
        content = self.contents[content_hash]
        first, last = start // CHUNK, -(-min(stop, len(content)) // CHUNK)
        chunks = {"start": first, "end": last}
        return {
            "offset_into_first_range": start - first * CHUNK,
            "terms": [
                {
                    "hash": XORB,
                    "unpacked_length": len(content[first * CHUNK : last * CHUNK]),
                    "range": chunks,
                }
            ],
            "fetch_info": {
                XORB: [
                    {
                        "range": chunks,
                        "url": f"{self.address}/xorb/{content_hash}",
                        "url_range": {
                            "start": first * (CHUNK + 8),
                            "end": len(self.packed(content_hash, last)) - 1,
                        },
                    }
                ]
            },
        }

    def packed(self, content_hash: str, num_chunks: int | None = None) -> bytes:
        content = self.contents[content_hash]
        rows = [content[place : place + CHUNK] for place in range(0, len(content), CHUNK)]
        packed = bytearray()
        for row in rows[:num_chunks]:
            length = len(row).to_bytes(3, "little")
            packed += b"\0" + length + b"\0" + length + row
        if self.flips:
            packed[100] ^= 1
        return bytes(packed)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        storage: XetStorage = self.server.storage
        asked = self.headers.get("Range", "")
        storage.asked.append(Asked(self.path, asked, self.headers.get("Authorization", "")))
        kind, _, content_hash = self.path.strip("/").rpartition("/")
        start, stop = (int(place) for place in re.findall(r"\d+", asked) or (0, 0))
        if storage.is_lost or kind not in ("v1/reconstructions", "xorb"):
            self._answer(404, b"")
        elif kind == "xorb":
            self._answer(206, storage.packed(content_hash)[start : stop + 1])
        else:
            answer = storage.reconstruction(content_hash, start, stop + 1)
            self._answer(200, json.dumps(answer).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(200, b"")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
