"""Several files at a time, from one hub into one folder, under one bar.

Processes may share the folder: each file has one owner at a time, and who finds it taken goes on
with another one.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from avomni_lib import files
from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.download.backoff import Stopped
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Tally

LOOK_EVERY_S = 0.2


def fetch_files(
    todo: Sequence[RemoteFile],
    hub: Hub,
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
        AvomniError: no room, or what `transfer.complete` raises; the files in flight are stopped,
            and the same call goes on from there.
    """
    transfer.sweep(p.local_dir, todo)
    if not todo:
        return
    missing = {file.path: file.size - transfer.bytes_there(p.local_dir, file) for file in todo}
    make_room(p.local_dir, todo)
    count, halt = Tally(), threading.Event()

    def one(file: RemoteFile) -> bool:
        with transfer.claim(p.local_dir, file) as partial:
            if partial is None:
                halt.wait(LOOK_EVERY_S)
                return False
            share = _Share(count)
            if not _has_come(file, verified):
                transfer.complete(partial, hub, p.local_dir, share, halt)
                verified.remember(file)
        share.finish(missing[file.path])
        return True

    num_done = 0
    try:
        with (
            progress(total=sum(missing.values()), unit="B", label="Download") as bar,
            concurrent.futures.ThreadPoolExecutor(p.download.max_workers) as pool,
        ):
            try:
                queue, pending = deque(todo), {}
                while queue or pending:
                    if stop is not None and stop.is_set():
                        raise Stopped
                    # Waiting for tens of thousands at once would itself take long.
                    while queue and len(pending) < 2 * p.download.max_workers:
                        file = queue.popleft()
                        pending[pool.submit(one, file)] = file
                    done, _ = concurrent.futures.wait(
                        pending, LOOK_EVERY_S, concurrent.futures.FIRST_COMPLETED
                    )
                    for future in done:
                        file = pending.pop(future)
                        if future.result():
                            num_done += 1
                        else:
                            queue.append(file)
                    notes = (f"{num_done} of {len(todo)} files", hub.backoff.note)
                    bar.update(count.take(), note=", ".join(filter(None, notes)))
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
    num_bytes = sum(file.size - transfer.bytes_there(folder, file) for file in wanted)
    try:
        files.need_room(folder, num_bytes, "the download")
    except AvomniError:
        if not transfer.sweep(folder, wanted, keep_s=0.0):
            raise
        files.need_room(folder, num_bytes, "the download")


def _has_come(file: RemoteFile, verified: Verified) -> bool:
    """Whether another process has fetched the file since this one looked."""
    if not (verified.folder / file.path).exists():
        return False
    verified.reload()
    return bool(verified.known(file)) or (verified.needs_hash(file) and verified.find(file) is None)


class _Share(Bar):
    """One file's part of the count."""

    def __init__(self, count: Tally):
        super().__init__()
        self._count = count

    def update(self, amount: float = 1, note: str = "") -> None:
        super().update(amount, note)
        self._count.add(amount)

    def finish(self, num_bytes: float) -> None:
        """Whatever came of it twice, or by another process: it weighs what was announced."""
        self.update(num_bytes - self.count)
