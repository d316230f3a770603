"""The local hub as tests need it: a log of requests, gated files, a second host, faults.

With a second host `resolve` sends requests for large files on to it by a signed address, as
huggingface.co does; that host wants no token and has ETags of its own.
"""

from __future__ import annotations

import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from avomni_world import local_hub
from avomni_world.local_hub import BRANCH, Blob

ANY = "*"
STORAGE = "/storage/"
TRICKLE_S = 0.02
# A client that has not given up a silent line by then never will.
MAX_SILENCE_S = 120.0


@dataclass(frozen=True)
class Refusal:
    """An answer in place of the wanted one."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Faults:
    """Nothing, until a test asks for some.

    A name is a file's path, a route's (`api:refs`), `storage:<path>` for a file at the second host,
    or `*` for every request.

    Attributes:
        refusals: Name -> what the next requests are answered.
        cuts: Name -> bytes of the file (0 for a route) at which the connection drops, each once.
        stalls: The same, where the line falls silent.
        short: Path -> how many bodies more end half way, and say so in their length.
        flipped: Path -> how many bodies more carry one wrong bit.
        whole: Paths, or `*`, of which every request is answered with all of the file.
        vanished: Files that answer 404 although they are listed.
        swapped: Path -> the path whose content it has now, listed or not.
        sizes: Path -> the size that is listed in place of the true one.
    """

    refusals: dict[str, list[Refusal]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    stalls: dict[str, list[int]] = field(default_factory=dict)
    short: Counter[str] = field(default_factory=Counter)
    flipped: Counter[str] = field(default_factory=Counter)
    whole: set[str] = field(default_factory=set)
    vanished: set[str] = field(default_factory=set)
    swapped: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def refuse(self, name: str, times: int, status: int, **headers: str) -> None:
        """Answer the next requests so; `_` in a header's name stands for `-`."""
        named = {header.replace("_", "-"): value for header, value in headers.items()}
        with self._lock:
            self.refusals.setdefault(name, []).extend([Refusal(status, named)] * times)

    def next_refusal(self, name: str) -> Refusal | None:
        with self._lock:
            for key in (name, ANY):
                if self.refusals.get(key):
                    return self.refusals[key].pop(0)
            return None

    def happens(self, fault: Counter[str], path: str) -> bool:
        """Use up one occurrence."""
        with self._lock:
            if fault[path] > 0:
                fault[path] -= 1
                return True
            return False

    def next_break(self, name: str, start: int, stop: int) -> tuple[int, str] | None:
        """Where in `start..stop` the line breaks first, and how: `cuts` or `stalls`."""
        with self._lock:
            breaks = [
                (place, kind)
                for kind in ("cuts", "stalls")
                for place in getattr(self, kind).get(name, ())
                if start <= place < stop
            ]
            if not breaks:
                return None
            place, kind = min(breaks)
            getattr(self, kind)[name].remove(place)
            return place, kind


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


class FaultyHandler(local_hub.HubHandler):
    hub: LocalHub

    @property
    def is_storage(self) -> bool:
        return self.server is self.hub.storage

    @property
    def bare_name(self) -> str:
        return self.name.removeprefix("storage:")

    def answer(self, path: str) -> None:
        self.first_byte = 0
        if self.is_storage:
            commit, _, file = path.removeprefix(STORAGE).partition("/")
            self.name = f"storage:{unquote(file)}"
            if not self.is_refused():
                self.file(self.hub.commits[commit][unquote(file)], commit)
        else:
            super().answer(path)

    def api(self, route: str, revision: str) -> None:
        if self.is_refused():
            return
        is_known = revision == BRANCH or revision in self.hub.commits
        if is_known and route in ("auth-check", "xet-read-token") and self.is_barred():
            return
        if is_known and route == "xet-read-token" and self.hub.xet:
            expires = str(int(time.time()) + 3600)
            headers = {"X-Xet-Cas-Url": self.hub.xet, "X-Xet-Access-Token": "xet"}
            self.json({}, headers | {"X-Xet-Token-Expiration": expires})
        else:
            super().api(route, revision)

    def info(self, commit: str) -> dict[str, Any]:
        return super().info(commit) | {"gated": "auto" if self.hub.token else False}

    def entry(self, blob: Blob) -> dict[str, Any]:
        entry = super().entry(blob)
        entry["size"] = self.hub.faults.sizes.get(blob.path, blob.size)
        if blob.is_large:
            entry["lfs"]["size"] = entry["size"]
            if self.hub.xet:
                entry["xetHash"] = blob.sha256
        return entry

    def resolve(self, revision: str, path: str) -> None:
        commit = self.hub.commit if revision == BRANCH else revision
        if commit not in self.hub.commits:
            super().resolve(revision, path)
            return
        if self.is_barred() or self.is_refused():
            return
        faults = self.hub.faults
        blob = self.hub.commits[commit].get(faults.swapped.get(path, path))
        if path in faults.vanished or blob is None or not blob.is_there:
            self.refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
        elif blob.is_large and self.hub.storage and self.command == "GET":
            where = f"{self.hub.storage.address}{STORAGE}{commit}/{quote(blob.path)}?signature=1"
            tags = {name: tag for name, tag in self.tags(blob).items() if name != "ETag"}
            self.head(HTTPStatus.FOUND, {"Location": where, "Content-Length": "0"} | tags, commit)
        else:
            self.file(blob, commit)

    def span(self, blob: Blob) -> tuple[HTTPStatus, int, int]:
        status, start, stop = super().span(blob)
        if {self.bare_name, ANY} & self.hub.faults.whole:
            status, start, stop = HTTPStatus.OK, 0, blob.size
        is_part = status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        if is_part and self.hub.faults.happens(self.hub.faults.short, self.bare_name):
            stop = (start + stop + 1) // 2
        self.first_byte = start if is_part else 0
        return status, start, stop

    def tags(self, blob: Blob) -> dict[str, str]:
        return {"ETag": f'"{blob.sha256[:32]}-1"'} if self.is_storage else super().tags(blob)

    def send(self, read: Callable[[int], bytes], place: int, stop: int) -> None:
        """Until the line breaks; a slow one trickles."""
        is_flipped = self.hub.faults.happens(self.hub.faults.flipped, self.bare_name)
        flipped = (place + stop) // 2 if is_flipped else -1
        broken = self.hub.faults.next_break(self.name, place, stop)
        stop = broken[0] if broken else stop
        speed = self.hub.bytes_per_s
        block_bytes = local_hub.BLOCK_BYTES
        most = min(block_bytes, int(speed * TRICKLE_S) + 1) if speed else block_bytes
        while place < stop and (block := read(min(most, stop - place))):
            if place <= flipped < place + len(block):
                wrong = bytearray(block)
                wrong[flipped - place] ^= 1
                block = bytes(wrong)
            # Counted first: who has read the last byte may look at the count at once.
            self.request_log.num_bytes += len(block)
            self.wfile.write(block)
            place += len(block)
            if self.hub.bytes_per_s:
                time.sleep(len(block) / self.hub.bytes_per_s)
        if broken:
            self.close_connection = True
            if broken[1] == "stalls":
                select.select([self.connection], [], [], MAX_SILENCE_S)

    def head(self, status: HTTPStatus, headers: dict[str, str], commit: str | None = None) -> None:
        """Note the request before its answer is acted upon."""
        self.request_log = self.hub.note(
            Request(
                self.command,
                self.bare_name,
                status,
                start=self.first_byte,
                has_token="Authorization" in self.headers,
                is_storage=self.is_storage,
            )
        )
        super().head(status, headers, commit)

    def is_refused(self) -> bool:
        """Whether a test has asked for another answer."""
        refusal = self.hub.faults.next_refusal(self.name)
        if refusal:
            self.refuse(HTTPStatus(refusal.status), None, dict(refusal.headers))
        return refusal is not None

    def is_barred(self) -> bool:
        """Refuse who may not read gated files (the two answers of huggingface.co)."""
        given = self.headers.get("Authorization")
        if self.hub.token is None or given == f"Bearer {self.hub.token}":
            return False
        status = HTTPStatus.FORBIDDEN if given else HTTPStatus.UNAUTHORIZED
        self.refuse(status, "GatedRepo")
        return True


class LocalHub(local_hub.LocalHub):
    """The local hub with what tests ask of it.

    Args:
        token: If given, files are gated: no token is answered 401, another one 403.
        bytes_per_s: Speed of each answer; None is as fast as it goes.
        has_storage: Send requests for large files on to a second host, as huggingface.co does.
        xet: The address of a Xet storage to offer for large files.

    Attributes:
        requests: Every request so far.
        faults: Nothing, until a test asks for some.
        storage: The second host; None without one.
    """

    handler = FaultyHandler

    def __init__(
        self,
        folder: Path,
        repo_id: str,
        port: int = 0,
        *,
        token: str | None = None,
        bytes_per_s: float | None = None,
        has_storage: bool = False,
        xet: str | None = None,
    ):
        super().__init__(folder, repo_id, port)
        self.token, self.bytes_per_s, self.xet = token, bytes_per_s, xet
        self.requests: list[Request] = []
        self.faults = Faults()
        self.storage = self._listen(0) if has_storage else None
        self._lock = threading.Lock()

    @property
    def blobs(self) -> dict[str, Blob]:
        """Main's files."""
        return self.commits[self.commit]

    def gets(self, path: str) -> int:
        """How many GETs of the file were answered with content."""
        return sum(r.method == "GET" and r.path == path and r.status < 300 for r in self.requests)

    def asked(self, path: str) -> list[Request]:
        """The requests of one path, in the order in which they were answered."""
        return [request for request in list(self.requests) if request.path == path]

    def bytes_of(self, path: str | None = None) -> int:
        """Bytes of the file's content sent so far; of all files'."""
        return sum(
            request.num_bytes
            for request in list(self.requests)
            if request.method == "GET"
            and (request.path == path if path else not request.path.startswith("api:"))
        )

    def note(self, request: Request) -> Request:
        with self._lock:
            self.requests.append(request)
        return request


serve = LocalHub
