"""A Xet storage on 127.0.0.1, as far as the real hf_xet asks for it when it downloads.

Read off its requests (hf_xet 1.8.0): `GET /v2/reconstructions/<hash>` with a Range, then `/v1/` if
that is 404; the answer names ranges of a packed object ("xorb"), which is a row of chunks, each
with a head of 8 bytes: version, stored length (3 bytes), scheme (0 is as it is), length (3 bytes).
"""

import contextlib
import re
from collections.abc import Iterator

from tests.answering_server import Answer, Answering, Asked, answering

CHUNK = 1 << 16
XORB = "b" * 64


class XetStorage:
    """Serves these contents by their hashes.

    Attributes:
        server: It, running.
        is_lost: Answer 404 to everything.
        flips: Spoil one bit of what is sent.
    """

    server: Answering

    def __init__(self, contents: dict[str, bytes]):
        self.contents = contents
        self.is_lost = self.flips = False

    def answer(self, asked: Asked) -> Answer:
        kind, _, content_hash = asked.strip("/").rpartition("/")
        start, stop = (int(place) for place in re.findall(r"\d+", asked.range) or (0, 0))
        if kind == "xorb" and not self.is_lost:
            return Answer(self.packed(content_hash)[start : stop + 1], 206)
        if kind != "v1/reconstructions" or self.is_lost:
            return Answer(status=404)
        return Answer(self.reconstruction(content_hash, start, stop + 1))

    def first_bytes(self, content_hash: str) -> list[int]:
        """Where each request for a file's content began."""
        path = f"/v1/reconstructions/{content_hash}"
        return [int(re.findall(r"\d+", a.range)[0]) for a in self.server.asked if a == path]

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
                        "url": f"{self.server.endpoint}/xorb/{content_hash}",
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


@contextlib.contextmanager
def serve(contents: dict[str, bytes]) -> Iterator[XetStorage]:
    storage = XetStorage(contents)
    with answering(storage.answer) as storage.server:
        yield storage
