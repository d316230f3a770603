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
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.errors import AvomniError

log = logging.getLogger(__name__)

FOLDER = ".avomni"
MANIFEST = f"{FOLDER}/verified.json"
LOCK = f"{FOLDER}/lock"
MANIFEST_LOCK = f"{FOLDER}/verified.lock"
# Held while the metadata is fetched and read, which is some seconds, or a minute on a poor line.
WAIT_S = 300.0
SAVE_EVERY_S = 2.0
KEYS = {"size", "mtime_ns", "sha256", "blob_id", "checked_on"}
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Verified:
    """The record of one folder; `save` it after `find` and `remember`.

    Threads may share one, and processes a folder: `save` adds to what others have written.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._unsaved: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._saved_s = time.monotonic()
        self.reload()

    def reload(self) -> None:
        """Learn what other processes have written meanwhile."""
        entries = _read(self.folder / MANIFEST)
        with self._lock:
            self._entries = entries | self._unsaved

    def _unchanged(self, remote: RemoteFile) -> dict[str, Any] | None:
        """The entry of a file that lies as it did when it was checked."""
        entry = self._entries.get(remote.path)
        state = files.state_of(self.folder / remote.path)
        return entry if entry and state == (entry["size"], entry["mtime_ns"]) else None

    def known(self, remote: RemoteFile) -> dict[str, Any] | None:
        """The entry of a file that lies unchanged since it was checked, and is `remote`'s."""
        entry = self._unchanged(remote)
        if entry is None or entry["size"] != remote.size:
            return None
        key = "sha256" if remote.sha256 else "blob_id"
        return entry if remote.content_id in (None, entry[key]) else None

    def needs_hash(self, remote: RemoteFile) -> bool:
        """Whether its content has to be hashed: it has the right size and nobody has looked yet."""
        state = files.state_of(self.folder / remote.path)
        return state is not None and state[0] == remote.size and self._unchanged(remote) is None

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
            self._entries[remote.path] = self._unsaved[remote.path] = entry

    def sha256(self, path: str) -> str:
        return self._entries[path]["sha256"]

    def checked_on(self, path: str) -> str | None:
        """The day (ISO) on which the file was fetched or first found whole."""
        return self._entries.get(path, {}).get("checked_on")

    def save(self, now: bool = True) -> None:
        """Write the record; with `now=False` at most every two seconds."""
        if not self._unsaved or (not now and time.monotonic() - self._saved_s < SAVE_EVERY_S):
            return
        try:
            busy = "another process is writing down what it has checked"
            with files.hold(self.folder / MANIFEST_LOCK, busy, WAIT_S), self._lock:
                self._entries = _read(self.folder / MANIFEST) | self._unsaved
                files.write_json(self.folder / MANIFEST, dict(sorted(self._entries.items())))
                self._unsaved = {}
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            log.warning("%s is read-only: its files will be hashed again next time", self.folder)
        self._saved_s = time.monotonic()


@contextlib.contextmanager
def hold(folder: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Keep other processes from changing the metadata of a folder while it is chosen from.

    Each file has its own lock besides (`transfer.claim`), and the record one for its writing.

    Raises:
        AvomniError: another process still works there after `wait_s`.
    """
    with contextlib.ExitStack() as stack:
        try:
            busy = "another process is fetching the metadata into this folder"
            stack.enter_context(files.hold(Path(folder) / LOCK, busy, wait_s))
        except OSError as error:
            # Nobody can fetch into a read-only folder.
            if error.errno not in READ_ONLY:
                raise
        yield


def _read(manifest: Path) -> dict[str, dict[str, Any]]:
    """A record that is missing, damaged or of another version costs only the hashing."""
    with contextlib.suppress(AvomniError, AttributeError, TypeError):
        entries = files.read_json(manifest).items()
        return {path: entry for path, entry in entries if entry.keys() == KEYS}
    return {}
