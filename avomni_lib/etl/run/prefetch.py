"""Chunks for the ETL as their raw files come: all at once, or under a budget one after another.

With `download.evict_raw` a thread fetches the next chunk while the clips of the one before are
read; a chunk whose shard is whole is evicted. Raw files, what is partly fetched, parts and shards
together stay within `download.target_size_gb` at every moment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avomni_lib.dataset.download import download
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.dataset.select import evicted, selection
from avomni_lib.dataset.select.manifest import Chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import disk_budget, forecast
from avomni_lib.etl.run.parts import ChunkWork
from avomni_lib.params import Params
from avomni_lib.plan import Bar

log = logging.getLogger(__name__)

STOP_S = 10.0


class Prefetch:
    """Hands out chunks whose raw files are whole; a context manager, for one thread.

    Args:
        works: All chunks of the run.
        to_read: Chunk -> its clips that must be read.
        hub: What chunks are fetched from; only needed where raw files are missing.

    Attributes:
        rows: Chunk -> its row: chunk, num_clips, num_read, bytes_fetched, bytes_evicted,
            cache_bytes.
        moments: (seconds from the start, raw bytes, cache bytes), whenever they change; what is
            fetched or written counts in full from its start.

    Raises:
        AvomniError: another run needs what would be evicted, the chunks do not go through under the
            budget, or a disk lacks room; nothing has been fetched then.
    """

    def __init__(
        self,
        p: Params,
        chosen: Chosen,
        works: Sequence[ChunkWork],
        to_read: Mapping[int, Sequence[str]],
        hub: Hub | None = None,
    ):
        self.p, self._chosen, self._hub = p, chosen, hub
        self._works = {work.chunk: work for work in works}
        self._verified = Verified(p.local_dir)
        self._working: dict[int, list[Path]] = {}  # and the raw files that were there
        self._kept: set[int] = set()  # chunks whose raw files stay though their shards are whole
        self._coming: ChunkFetch | None = None
        self._error: AvomniError | None = None
        self._started = time.monotonic()
        counts = dict.fromkeys(("bytes_fetched", "bytes_evicted", "cache_bytes"), 0)
        self.rows: dict[int, dict[str, Any]] = {}
        for chunk, work in self._works.items():
            row = {"chunk": chunk, "num_clips": len(work.clips), "num_read": len(to_read[chunk])}
            self.rows[chunk] = row | counts
        self.moments: list[tuple[float, int, int]] = []

        done = {work.chunk for work in works if not to_read[work.chunk] and work.shard}
        self._sizes = sizes = disk_budget.ChunkSizes(p, chosen, works, done)
        limit = float("inf")
        if p.download.evict_raw:
            if refused := evicted.refusal(p, sizes.to_evict()):
                raise refused
            limit = p.download.target_size_gb * 1e9
            sizes.need_budget()
        sizes.need_room()
        raw = {chunk: sizes.here(chunk) for chunk in self._works}
        shards = sum(sizes.shards.values())
        self._budget = disk_budget.DiskBudget(limit, sizes.metadata, shards, raw, sizes.parts)
        unread = [load.chunk for load in sizes.left if to_read[load.chunk]]
        known, evicts = self._verified.known, p.download.evict_raw
        self._whole = deque(
            chunk for chunk in unread if not evicts or all(map(known, sizes.remote[chunk]))
        )
        self._waiting = deque(chunk for chunk in unread if chunk not in self._whole)
        self._note()

    def __enter__(self) -> Prefetch:
        if self._waiting:
            self._open_source()
        return self

    def __exit__(self, *_: object) -> None:
        if self._coming:
            self._coming.end()

    @property
    def peak_bytes(self) -> int:
        """So much lay on the disk at most: metadata, raw files, parts and shards."""
        return max(raw + cache for _, raw, cache in self.moments)

    @property
    def message(self) -> str:
        """What is being fetched."""
        return self._coming.message if self._coming else ""

    def ready(self) -> list[int]:
        """Chunks to read from now on, none twice; has the next one fetched. Does not wait.

        Raises:
            AvomniError: a chunk cannot be fetched, and what was at work is done; or the shards are
                larger than was to be expected, so that the next chunk does not fit.
        """
        self._collect()
        handed = []
        while self._whole:
            work = self._works[self._whole[0]]
            self._sizes.learn_seconds(work.chunk)
            load = self._sizes.load(work.chunk)
            if not self._budget.may_work(load):
                break
            self._budget.reserved[work.chunk] = load.cache
            self._working[work.chunk] = [path for path in work.raw if path.exists()]
            handed.append(self._whole.popleft())
        if self._waiting and not (self._whole or self._coming or self._error):
            load = self._sizes.load(self._waiting[0])
            if self._budget.may_fetch(load):
                chunk = self._waiting.popleft()
                self._budget.raw[chunk] = load.raw
                remote = self._sizes.remote[chunk]
                self._coming = ChunkFetch(self.p, self._hub, self._verified, chunk, remote)
                self._note()
        if not (self._working or self._coming):
            if self._error:
                raise self._error
            if self._whole or self._waiting:
                raise self._too_large()
        return handed

    def begin(self, chunk: int, clip_id: str | None = None) -> bool:
        """Whether there is room now for a clip's part, or for the chunk's shard; then it counts.

        Raises:
            AvomniError: there is none, and nothing that is at work would make some.
        """
        num_bytes = self._budget.parts[chunk] + disk_budget.SHARD_RESERVE
        if clip_id is not None:
            num_bytes = disk_budget.most_of_part(self.p, self._sizes.seconds)
        if not self._budget.may_write(num_bytes):
            if not self._budget.writing:
                raise self._too_large()
            return False
        self._budget.writing[chunk, clip_id] = num_bytes
        self._note()
        return True

    def end(self, chunk: int, clip_id: str | None = None) -> None:
        """What was begun has ended, well or not."""
        del self._budget.writing[chunk, clip_id]
        if clip_id is not None:
            self._budget.parts[chunk] += forecast.size_of(self._works[chunk].part(clip_id))
        self._note()

    def release(self, chunk: int, is_needed: bool = False) -> None:
        """The chunk's shard is whole: its raw files go, if the run evicts.

        Args:
            is_needed: They stay: a clip was lost, and the next run reads it.
        """
        row, paths = self.rows[chunk], self._sizes.let_go(chunk)
        row["cache_bytes"] = self._sizes.learn_size(chunk)
        if self.p.download.evict_raw:
            if not is_needed:
                row["bytes_evicted"] = evicted.evict(self.p, paths)
            # Another run may have come to need them.
            if is_needed or any((self.p.local_dir / path).exists() for path in paths):
                self._kept.add(chunk)
        self._budget.shards += row["cache_bytes"] - self._sizes.shards[chunk]
        self._budget.parts[chunk], self._budget.raw[chunk] = 0, self._sizes.here(chunk)
        self._budget.reserved.pop(chunk, None)
        self._working.pop(chunk, None)
        self._note()

    def gone(self, chunk: int) -> str | None:
        """What became of raw files of a chunk that was handed out; None where all are there."""
        gone = [path for path in self._works[chunk].raw if not path.exists()]
        if not gone:
            return None
        name = gone[0].relative_to(self.p.local_dir).as_posix()
        by = evicted.by_others(self.p).get(name)
        files_of_it = f"{len(gone)} raw files of chunk {chunk}, such as {name},"
        if any(path in self._working[chunk] for path in gone):
            how = "went away while it was read" + (f": evicted by {by}" if by else "")
        else:
            how = f"were evicted by {by}" if by else "are not on the disk"
        return f"{files_of_it} {how}"

    def _collect(self) -> None:
        """Take what a fetch has brought."""
        if not self._coming or not self._coming.is_over:
            return
        came, self._coming = self._coming, None
        self.rows[came.chunk]["bytes_fetched"] = came.num_bytes
        if came.error is None:
            self._whole.append(came.chunk)
        elif isinstance(came.error, AvomniError):
            # The chunks at hand are read to their end first.
            log.warning("chunk %d cannot be fetched: %s", came.chunk, came.error.what)
            self._waiting.appendleft(came.chunk)
            self._error = came.error
        else:
            raise came.error

    def _open_source(self) -> None:
        """The licence and the access, before the first byte; then the revision that was chosen."""
        selection.need_license(self.p)
        if self._hub is None:
            raise AvomniError(
                f"{len(self._waiting)} chunks are not on the disk, and no hub was given to fetch "
                "them from",
                where=str(self.p.local_dir),
                fix="run notebooks/03_etl.ipynb, which opens it",
            )
        if self._hub.revision != self._chosen.revision:
            self._hub = self._hub.at(self._chosen.revision)
        self._hub.check_access()
        remote = self._sizes.remote
        listed = self._hub.sizes([file.path for chunk in self._waiting for file in remote[chunk]])
        for chunk in self._waiting:
            for number, file in enumerate(remote[chunk]):
                now = listed.get(file.path)
                if now is None or (now.size, now.sha256 or file.sha256) != (file.size, file.sha256):
                    raise AvomniError(
                        f"{file.path} is {'another file' if now else 'gone'} at the source since "
                        "02_download chose it",
                        where=self._hub.page,
                        fix="run 02_download again",
                    )
                remote[chunk][number] = now  # with all that the source says of it

    def _too_large(self) -> AvomniError:
        coming = [self._coming.chunk] if self._coming else []
        unfinished = [*self._working, *coming, *self._whole, *self._waiting]
        left = [self._sizes.load(chunk) for chunk in unfinished]
        needed = disk_budget.peak(left, self._budget.metadata + self._budget.shards)
        needed = max(needed, round(self._budget.limit) + 1)
        if self._kept:
            held = sum(map(self._sizes.here, self._kept))
            return disk_budget.held(self.p, len(self._kept), held, needed + held)
        num_done = len(self._works) - len(left)
        return disk_budget.too_large(self.p, num_done, len(self._works), needed)

    def _note(self) -> None:
        self.moments.append((time.monotonic() - self._started, *self._budget.now))


class ChunkFetch:
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
    def message(self) -> str:
        share = self.num_bytes / self._total if self._total else 0
        return f"chunk {self.chunk} comes: {min(share, 1):.0%}"

    def end(self) -> None:
        self._stop.set()
        self._thread.join(STOP_S)

    def _work(self) -> None:
        fetch = self

        class Counting(Bar):
            def update(self, amount: float = 1, note: str = "") -> None:
                fetch.num_bytes += int(amount)

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
