"""What has been checked in a data folder, so that nothing is fetched or hashed twice.

`<folder>/.avomni/verified.json` keeps size, mtime and hash of each file that was once found to be
the source's. A file whose size or mtime has changed since is hashed anew.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.remote import RemoteFile
from avomni_lib.errors import AvomniError

log = logging.getLogger(__name__)

FOLDER = ".avomni"
MANIFEST = f"{FOLDER}/verified.json"
LOCK = f"{FOLDER}/lock"
# Another run in the same data folder that has nothing to fetch is done in seconds.
WAIT_S = 60.0
SAVE_EVERY_S = 2.0
KEYS = {"size", "mtime_ns", "sha256", "blob_id", "checked_on"}
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Verified:
    """The record of one folder; `save` it after `find` and `remember`. Threads may share it."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._entries: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._saved_s, self._is_changed = time.monotonic(), False
        # A record that is missing, damaged or of another version costs only the hashing.
        with contextlib.suppress(AvomniError, AttributeError, TypeError):
            for path, entry in files.read_json(self.folder / MANIFEST).items():
                if entry.keys() == KEYS:
                    self._entries[path] = entry

    def known(self, remote: RemoteFile) -> dict[str, Any] | None:
        """The entry of a file that lies unchanged since it was checked, and is `remote`'s."""
        entry = self._entries.get(remote.path)
        state = _state(self.folder / remote.path)
        if entry is None or state != (entry["size"], entry["mtime_ns"]):
            return None
        if entry["size"] != remote.size:
            return None
        if remote.sha256:
            return entry if entry["sha256"] == remote.sha256 else None
        if remote.blob_id:
            return entry if entry["blob_id"] == remote.blob_id else None
        return entry

    def needs_hash(self, remote: RemoteFile) -> bool:
        """Whether only its content can tell: it has the right size and nobody has looked yet."""
        state = _state(self.folder / remote.path)
        if state is None or state[0] != remote.size:
            return False
        entry = self._entries.get(remote.path)
        return entry is None or state != (entry["size"], entry["mtime_ns"])

    def find(self, remote: RemoteFile) -> str | None:
        """Hash the file: why it is not `remote`'s, or None, and then it is remembered."""
        wrong = remote.differs(self.folder / remote.path)
        if wrong is None:
            self.remember(remote)
        return wrong

    def remember(self, remote: RemoteFile) -> None:
        """The file on the disk has just been found to be `remote`'s."""
        path = self.folder / remote.path
        state = path.stat()
        entry = {
            "size": state.st_size,
            "mtime_ns": state.st_mtime_ns,
            "sha256": remote.sha256 or files.sha256_file(path),
            "blob_id": remote.blob_id,
            "checked_on": datetime.date.today().isoformat(),
        }
        with self._lock:
            self._entries[remote.path] = entry
            self._is_changed = True

    def sha256(self, path: str) -> str:
        return self._entries[path]["sha256"]

    def checked_on(self, path: str) -> str | None:
        """The day (ISO) on which the file was fetched or first found whole."""
        return self._entries.get(path, {}).get("checked_on")

    def save(self, now: bool = True) -> None:
        """Write the record; with `now=False` at most every two seconds."""
        if not self._is_changed or (not now and time.monotonic() - self._saved_s < SAVE_EVERY_S):
            return
        with self._lock:
            entries, self._is_changed = dict(sorted(self._entries.items())), False
        try:
            files.write_json(self.folder / MANIFEST, entries)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            log.warning("%s is read-only: its files will be hashed again next time", self.folder)
        self._saved_s = time.monotonic()


@contextlib.contextmanager
def hold(folder: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Keep a second process from fetching into the same folder.

    Raises:
        AvomniError: another process still works there after `wait_s`.
    """
    with contextlib.ExitStack() as stack:
        try:
            busy = "another process is fetching into this folder"
            stack.enter_context(files.hold(Path(folder) / LOCK, busy, wait_s))
        except OSError as error:
            # Nobody can fetch into a read-only folder.
            if error.errno not in READ_ONLY:
                raise
        yield


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns
