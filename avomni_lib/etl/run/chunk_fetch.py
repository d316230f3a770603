"""One chunk's raw files on their way, in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from avomni_lib.dataset.download import download
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar

STOP_S = 10.0


class Arrival:
    """Fetches a chunk's files; the thread begins at once and ends soon after `end`.

    Attributes:
        num_bytes: Fetched so far.
        error: What ended it before its time.
    """

    def __init__(
        self,
        p: Params,
        hub: Hub | None,
        verified: Verified,
        chunk: int,
        remote: Sequence[RemoteFile],
    ):
        self.chunk, self.num_bytes, self.error = chunk, 0, None
        self._p, self._hub, self._verified, self._remote = p, hub, verified, remote
        self._total, self._stop = 0, threading.Event()
        # A daemon: what it leaves is partial or whole, whenever the process ends.
        self._thread = threading.Thread(target=self._work, name=f"chunk {chunk}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    @property
    def words(self) -> str:
        share = self.num_bytes / self._total if self._total else 0
        return f"chunk {self.chunk} comes: {min(share, 1):.0%}"

    def end(self) -> None:
        self._stop.set()
        self._thread.join(STOP_S)

    def _work(self) -> None:
        arrival = self

        class Counting(Bar):
            def update(self, amount: float = 1, note: str = "") -> None:
                arrival.num_bytes += int(amount)

        try:
            todo = [file for file in self._remote if not self._is_here(file)]
            self._total = sum(file.size for file in todo)
            if todo:
                download.fetch_files(todo, self._hub, self._p, self._verified, Counting, self._stop)
        except FileNotFoundError as error:
            self.error = AvomniError(
                f"raw files of chunk {self.chunk} went away as they came",
                where=str(error.filename),
                fix="does another run that evicts work there? Give it a dataset.local_dir of its "
                "own, and run the same command again",
            )
        except BaseException as error:
            self.error = error
        finally:
            self._verified.save()

    def _is_here(self, file: RemoteFile) -> bool:
        """Whether the file lies there whole; one that nobody has looked at yet is hashed."""
        if self._verified.known(file):
            return True
        return self._verified.needs_hash(file) and self._verified.find(file) is None
