"""Resumable downloads from the hub.

`<folder>/.avomni/partial/` has the partial files, named by the content's id, so that bytes of two
revisions are never mixed. A partial file is hashed while it grows, and gets its final name only if
its hash is the one listed by the hub. Processes may share the folder: a partial file has one owner
at a time, and other processes continue with other files.

huggingface_hub's downloads do not suffice (read and measured on 1.33.0): `hf_hub_download` restarts
an interrupted file and compares only sizes; `http_get` resumes, but keeps up to 10 MB of a file in
memory, which are lost on a kill or a dropped connection, does not check the range and the number of
bytes sent, and cannot be stopped while it waits.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from avomni_lib import files
from avomni_lib.dataset.download.backoff import Retry, Stopped, check
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar

if TYPE_CHECKING:
    from avomni_lib.dataset.download.hub import Hub

log = logging.getLogger(__name__)

PARTIALS = ".avomni/partial"
# Keep partial files of other runs this long, so that they can resume.
KEEP_S = 14 * 86400.0
LOOK_EVERY_S = 0.2
NO_ROOM = (*files.NO_ROOM, errno.EFBIG)


class OtherContent(Exception):
    """The source sends other content than listed."""


class Partial:
    """A partially downloaded file; only its owner writes to it."""

    def __init__(self, file: IO[bytes], path: Path, remote: RemoteFile):
        self.path, self.remote, self.file = path, remote, file
        self.size, self.hash = 0, remote.new_hash()

    def recall(self, stop: threading.Event | None = None) -> None:
        """Hash the bytes left by earlier processes; restarts if there are too many."""
        self.file.seek(0)
        while block := self.file.read(files.BLOCK_BYTES):
            check(stop)
            self.size += len(block)
            self.hash.update(block)
        if self.size > self.remote.size:
            self.restart()

    def write(self, block: bytes) -> None:
        rest = memoryview(block)
        while rest:
            rest = rest[self.file.write(rest) :]
        self.size += len(block)
        self.hash.update(block)

    def restart(self) -> int:
        """Discard all bytes; returns how many."""
        lost, self.size, self.hash = self.size, 0, self.remote.new_hash()
        self.file.truncate(0)
        return lost


@contextlib.contextmanager
def claim(folder: Path, remote: RemoteFile) -> Iterator[Partial | None]:
    """Lock a file's partial; yields None if another process or thread owns it.

    The lock is released if its owner dies; the partial file stays for the next one.
    """
    path = path_of(folder, remote)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Append mode, unbuffered: after a kill, the partial file is a valid beginning.
    with open(path, "a+b", buffering=0) as file:
        if not _lock(file) or not _is_at(file, path):
            yield None
            return
        try:
            yield Partial(file, path, remote)
        finally:
            if _is_at(file, path) and not os.fstat(file.fileno()).st_size:
                path.unlink()


def complete(
    partial: Partial,
    source: Hub,
    folder: Path,
    bar: Bar | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Fetch the missing bytes, compare the file with the hub's hash, and rename it.

    Args:
        bar: Counts newly fetched bytes.
        stop: Set by another thread to stop.

    Raises:
        AvomniError: damaged twice, gone, not accessible, no connection, or no room on the disk.
        Stopped: `stop` was set; the partial file stays.
    """
    remote, bar, path = partial.remote, bar or Bar(), folder / partial.remote.path
    try:
        path.unlink(missing_ok=True)
        partial.recall(stop)
        for attempt in (1, 2):
            try:
                _fill(partial, source, bar, stop)
                wrong = remote.wrong(partial.size, partial.hash)
            except OtherContent as error:
                wrong = str(error)
            if wrong is None:
                os.fsync(partial.file.fileno())
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial.path, path)
                files.fsync_folder(path.parent)
                return path
            log.warning("%s arrived damaged (%s), try %d of 2", remote.path, wrong, attempt)
            bar.update(-partial.restart())
            source.report_wrong_content(remote)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise files.no_room(path) from None
        raise AvomniError(
            f"cannot write {path.name}: {error}",
            where=str(path.parent),
            fix="check the disk and who may write there, then run the same command again",
        ) from None
    raise AvomniError(
        f"{remote.path} arrived damaged twice: {wrong}",
        where=str(path),
        fix="check the line, a proxy in it and the disk, then run the same command again: "
        "what is whole is kept",
    )


def _fill(partial: Partial, source: Hub, bar: Bar, stop: threading.Event | None) -> None:
    """Request the rest until the file is complete; tries that make progress are not counted."""
    num_tries, furthest, size = 0, partial.size, partial.remote.size
    while partial.size < size:
        dropped = None
        try:
            with source.read(partial.remote, partial.size, stop) as body:
                start, blocks = body
                if start != partial.size:
                    log.info("%s: the source starts over", partial.remote.path)
                    bar.update(-partial.restart())
                for block in blocks:
                    if partial.size + len(block) > size:
                        raise OtherContent(f"more than {size:,} bytes")
                    partial.write(block)
                    bar.update(len(block))
                    check(stop)
        except Retry as error:
            dropped = error
        if partial.size == size:
            return
        num_tries = 0 if partial.size > furthest else num_tries + 1
        furthest = max(furthest, partial.size)
        if num_tries == source.backoff.num_tries:
            if dropped is not None:
                raise dropped.explained
            raise OtherContent(f"the source ends it at {partial.size:,} bytes")
        if num_tries:
            source.backoff.pause(num_tries, stop)


def fetch_files(
    todo: Sequence[RemoteFile],
    source: Hub,
    p: Params,
    verified: Verified,
    progress: type[Bar] = Bar,
    stop: threading.Event | None = None,
) -> None:
    """Fetch these files into p.local_dir, several at a time; each is verified and recorded.

    Args:
        progress: One bar over the missing bytes.
        stop: Set by another thread: the function then returns soon, and partial files stay.

    Raises:
        AvomniError: no room, or as `complete`; downloads in progress are stopped, and calling this
            again resumes them.
    """
    sweep(p.local_dir, todo)
    if not todo:
        return
    missing = {file.path: file.size - bytes_there(p.local_dir, file) for file in todo}
    make_room(p.local_dir, todo)
    # Widgets must be updated by one thread: each download counts, and this thread shows the sum.
    counts, halt = {file.path: Bar() for file in todo}, threading.Event()

    def one(file: RemoteFile) -> bool:
        with claim(p.local_dir, file) as partial:
            if partial is None:
                halt.wait(LOOK_EVERY_S)
                return False
            if not _has_come(file, verified):
                complete(partial, source, p.local_dir, counts[file.path], halt)
                verified.remember(file)
        # Count exactly the announced bytes, even if some were fetched twice or by another process.
        counts[file.path].count = missing[file.path]
        return True

    num_done, shown, queue = 0, 0.0, deque(todo)
    pending: dict[concurrent.futures.Future[bool], RemoteFile] = {}
    try:
        with (
            progress(total=sum(missing.values()), unit="B", label="Download") as bar,
            concurrent.futures.ThreadPoolExecutor(p.download.max_workers) as pool,
        ):
            try:
                while queue or pending:
                    check(stop)
                    # Waiting for tens of thousands of futures at once would be slow.
                    while queue and len(pending) < 2 * p.download.max_workers:
                        file = queue.popleft()
                        pending[pool.submit(one, file)] = file
                    done, _ = concurrent.futures.wait(
                        pending, LOOK_EVERY_S, concurrent.futures.FIRST_COMPLETED
                    )
                    for future in done:
                        file = pending.pop(future)
                        num_done += future.result()
                        if not future.result():
                            queue.append(file)
                    notes = (f"{num_done} of {len(todo)} files", source.backoff.note)
                    count = sum(counter.count for counter in counts.values())
                    bar.update(count - shown, note=", ".join(filter(None, notes)))
                    shown = count
                    verified.save(now=False)
            except BaseException:
                # Partial files are kept, so there is no need to wait for running downloads.
                halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except Stopped:
        pass
    finally:
        verified.save()


def make_room(folder: Path, wanted: Sequence[RemoteFile]) -> None:
    """Check that the missing bytes of these files fit on the folder's volume.

    Raises:
        AvomniError: they do not, even after partial files of other runs were removed.
    """
    num_bytes = sum(file.size - bytes_there(folder, file) for file in wanted)
    try:
        files.need_room(folder, num_bytes, "the download")
    except AvomniError:
        if not sweep(folder, wanted, keep_s=0.0):
            raise
        files.need_room(folder, num_bytes, "the download")


def _has_come(file: RemoteFile, verified: Verified) -> bool:
    """Whether another process has fetched the file meanwhile."""
    if not (verified.folder / file.path).exists():
        return False
    verified.reload()
    return bool(verified.known(file)) or (verified.needs_hash(file) and verified.find(file) is None)


def path_of(folder: Path, remote: RemoteFile) -> Path:
    """Path of a file's partial."""
    name = PurePosixPath(remote.path).name[-120:]
    place = hashlib.sha256(remote.path.encode()).hexdigest()[:8]
    return Path(folder) / PARTIALS / f"{name}.{place}.{remote.content_id or 'unknown'}"


def bytes_there(folder: Path, remote: RemoteFile) -> int:
    """Bytes of a file's partial, judged by its size alone."""
    size, _ = files.state_of(path_of(folder, remote)) or (0, 0)
    return size if size <= remote.size else 0


def sweep(folder: Path, wanted: Collection[RemoteFile], keep_s: float = KEEP_S) -> int:
    """Remove obsolete partial files; returns the number of bytes freed.

    These are partials of other content of a wanted file, and those of other files after `keep_s`.
    Partials owned by a running process are kept.
    """
    freed, now_s = 0, time.time()
    names = {path_of(folder, remote).name for remote in wanted}
    places = {name.rpartition(".")[0] for name in names}
    for path in (Path(folder) / PARTIALS).glob("*"):
        if path.name in names:
            continue
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            state, is_superseded = path.stat(), path.name.rpartition(".")[0] in places
            if (is_superseded or now_s - state.st_mtime >= keep_s) and _lock(file):
                freed += state.st_size
                path.unlink()
    return freed


def _lock(file: IO[bytes]) -> bool:
    """Try to lock a file until it is closed; returns whether it succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A volume without locks: two concurrent owners would be detected by a wrong hash.
        log.debug("no lock on %s: %s", file.name, error)
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file still has this path; its previous owner may have renamed it."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
