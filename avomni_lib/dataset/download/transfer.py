"""Files from the hub to their names: partials that any later process goes on with.

`<folder>/.avomni/partial/` holds what has come of each file so far, named by the content's own id,
so that bytes of two revisions never meet. It is hashed as it grows and takes the file's name only
when its hash is the one that the hub lists. Processes may share the folder: each file has one owner
at a time, and who finds it taken goes on with another one.

huggingface_hub's downloads do not do this (read and measured on 1.33.0): `hf_hub_download` starts
a killed file anew and compares sizes alone; `http_get` resumes, but holds up to 10 MB of a file
in memory, which a kill or a dropped line loses, writes whatever range and however many bytes are
sent, and cannot be stopped while it waits.
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
from avomni_lib.dataset.download.remote import BLOCK_BYTES, RemoteFile
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar

if TYPE_CHECKING:
    from avomni_lib.dataset.download.hub import Hub

log = logging.getLogger(__name__)

PARTIALS = ".avomni/partial"
# Another run may still come back for its own partials.
KEEP_S = 14 * 86400.0
LOOK_EVERY_S = 0.2
NO_ROOM = (*files.NO_ROOM, errno.EFBIG)


class OtherContent(Exception):
    """The source sends something else than it listed."""


class Partial:
    """What has come of one file so far; its owner alone writes."""

    def __init__(self, file: IO[bytes], path: Path, remote: RemoteFile):
        self.path, self.remote, self.file = path, remote, file
        self.size, self.hash = 0, remote.new_hash()

    def recall(self, stop: threading.Event | None = None) -> None:
        """Hash what earlier processes left; what cannot be of this file is thrown away."""
        self.file.seek(0)
        while block := self.file.read(BLOCK_BYTES):
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
        """Throw everything away; returns how many bytes that were."""
        lost, self.size, self.hash = self.size, 0, self.remote.new_hash()
        self.file.truncate(0)
        return lost


@contextlib.contextmanager
def claim(folder: Path, remote: RemoteFile) -> Iterator[Partial | None]:
    """The partial of a file, for one owner at a time; None while someone else has it.

    A killed process owns nothing. What is left stays for the next owner.
    """
    path = path_of(folder, remote)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Appending, unbuffered: a kill at any moment leaves a beginning of the file.
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
    """Fetch what is missing, compare the whole with the hub's hash, give the file its name.

    Args:
        bar: Counts bytes as they arrive, without those that were here.
        stop: Set by another thread.

    Raises:
        AvomniError: damaged twice, gone, not to be read, no connection, no room on the disk.
        Stopped: `stop` was set; the partial stays.
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
            source.distrust(remote)
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
    """Ask for the rest until it is there; a try that brought bytes forward costs no patience."""
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
    """Fetch these files into p.local_dir, several at a time; each is checked and remembered.

    Args:
        progress: One bar over the bytes that are not here yet.
        stop: Set by another thread: this returns soon, and what is partial stays for the next one.

    Raises:
        AvomniError: no room, or what `complete` raises; the files in flight are stopped,
            and the same call goes on from there.
    """
    sweep(p.local_dir, todo)
    if not todo:
        return
    missing = {file.path: file.size - bytes_there(p.local_dir, file) for file in todo}
    make_room(p.local_dir, todo)
    # Widgets are not for threads: each counts for itself, and this one shows the sum.
    counts, halt = {file.path: Bar() for file in todo}, threading.Event()

    def one(file: RemoteFile) -> bool:
        with claim(p.local_dir, file) as partial:
            if partial is None:
                halt.wait(LOOK_EVERY_S)
                return False
            if not _has_come(file, verified):
                complete(partial, source, p.local_dir, counts[file.path], halt)
                verified.remember(file)
        # Whatever came of it twice, or by another process: it weighs what was announced.
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
                    # Waiting for tens of thousands at once would itself take long.
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
                    count = sum(each.count for each in counts.values())
                    bar.update(count - shown, note=", ".join(filter(None, notes)))
                    shown = count
                    verified.save(now=False)
            except BaseException:
                # What is partial is kept: nobody has to wait for a file in flight.
                halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except Stopped:
        pass
    finally:
        verified.save()


def make_room(folder: Path, wanted: Sequence[RemoteFile]) -> None:
    """See that what is still to come of these files fits on the folder's volume.

    Raises:
        AvomniError: it does not, even without the partials that other runs have left.
    """
    num_bytes = sum(file.size - bytes_there(folder, file) for file in wanted)
    try:
        files.need_room(folder, num_bytes, "the download")
    except AvomniError:
        if not sweep(folder, wanted, keep_s=0.0):
            raise
        files.need_room(folder, num_bytes, "the download")


def _has_come(file: RemoteFile, verified: Verified) -> bool:
    """Whether another process has fetched the file since this one looked."""
    if not (verified.folder / file.path).exists():
        return False
    verified.reload()
    return bool(verified.known(file)) or (verified.needs_hash(file) and verified.find(file) is None)


def path_of(folder: Path, remote: RemoteFile) -> Path:
    """Where the partial of a file lies."""
    name = PurePosixPath(remote.path).name[-120:]
    place = hashlib.sha256(remote.path.encode()).hexdigest()[:8]
    return Path(folder) / PARTIALS / f"{name}.{place}.{remote.content_id or 'unknown'}"


def bytes_there(folder: Path, remote: RemoteFile) -> int:
    """How much of a file an earlier process left, judged by its size alone."""
    size, _ = files.state_of(path_of(folder, remote)) or (0, 0)
    return size if size <= remote.size else 0


def sweep(folder: Path, wanted: Collection[RemoteFile], keep_s: float = KEEP_S) -> int:
    """Remove partials that nobody will go on with; returns the bytes that this set free.

    That is: those of another content of a wanted file, and those of other files after `keep_s`.
    What a living process is at work on stays.
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
    """Whether the file is this thread's now; closing gives it back."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A volume without locks: two owners there would spoil each other's hash, which is noticed.
        log.debug("no lock on %s: %s", file.name, error)
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file still bears this name: its last owner may have renamed it."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
