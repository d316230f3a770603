"""What a poor line, a busy hub or a changed source does to the local hub's answers (for tests)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

ANY = "*"


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
