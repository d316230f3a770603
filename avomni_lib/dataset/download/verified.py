"""Record of the verified files in a data folder, so that nothing is fetched or hashed twice.

`<folder>/.avomni/verified.json` has size, mtime and hash of each file that was verified. If size or
mtime have changed since, the file is hashed again.
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
# The lock is held while metadata are fetched and read: seconds, or a minute on a poor connection.
WAIT_S = 300.0
SAVE_EVERY_S = 2.0
KEYS = {"size", "mtime_ns", "sha256", "blob_id", "checked_on"}
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Verified:
    """The record of one folder; call `save` after `find` and `remember`.

    Threads may share an instance, and processes a folder: `save` merges their entries.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._unsaved: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._saved_s = time.monotonic()
        self.reload()

    def reload(self) -> None:
        """Read entries that other processes have written meanwhile."""
        entries = _read(self.folder / MANIFEST)
        with self._lock:
            self._entries = entries | self._unsaved

    def _unchanged(self, remote: RemoteFile) -> dict[str, Any] | None:
        """The entry of a file that is unchanged since it was verified, or None."""
        entry = self._entries.get(remote.path)
        state = files.state_of(self.folder / remote.path)
        return entry if entry and state == (entry["size"], entry["mtime_ns"]) else None

    def known(self, remote: RemoteFile) -> dict[str, Any] | None:
        """The entry of a file that is verified as `remote` and unchanged since, or None."""
        entry = self._unchanged(remote)
        if entry is None or entry["size"] != remote.size:
            return None
        key = "sha256" if remote.sha256 else "blob_id"
        return entry if remote.content_id in (None, entry[key]) else None

    def needs_hash(self, remote: RemoteFile) -> bool:
        """Whether the file has the right size and must be hashed to be verified."""
        state = files.state_of(self.folder / remote.path)
        return state is not None and state[0] == remote.size and self._unchanged(remote) is None

    def find(self, remote: RemoteFile) -> str | None:
        """Hash the file; returns why it is not `remote`, or None after recording it."""
        wrong = remote.differs(self.folder / remote.path)
        if wrong is None:
            self.remember(remote)
        return wrong

    def remember(self, remote: RemoteFile) -> None:
        """Record that the file on the disk was verified as `remote`."""
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
        """The day (ISO) on which the file was fetched or verified."""
        return self._entries.get(path, {}).get("checked_on")

    def save(self, now: bool = True) -> None:
        """Write the record; with `now=False` at most every two seconds."""
        if not self._unsaved or (not now and time.monotonic() - self._saved_s < SAVE_EVERY_S):
            return
        try:
            busy = "another process is writing its record of verified files"
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
    """Prevent other processes from changing the metadata of a folder during a selection.

    Files have their own locks (`transfer.claim`), as has the record.

    Raises:
        AvomniError: another process still works there after `wait_s`.
    """
    with contextlib.ExitStack() as stack:
        try:
            busy = "another process is fetching the metadata into this folder"
            stack.enter_context(files.hold(Path(folder) / LOCK, busy, wait_s))
        except OSError as error:
            # Nothing can be fetched into a read-only folder.
            if error.errno not in READ_ONLY:
                raise
        yield


def _read(manifest: Path) -> dict[str, dict[str, Any]]:
    """Read a record; one that is missing, damaged or of another version counts as empty."""
    with contextlib.suppress(AvomniError, AttributeError, TypeError):
        entries = files.read_json(manifest).items()
        return {path: entry for path, entry in entries if entry.keys() == KEYS}
    return {}
