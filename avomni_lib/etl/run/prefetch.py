"""Supplies the ETL with chunks: all at once, or one after another within a disk budget.

With `download.evict_raw`, a thread fetches the next chunk while clips of the previous one are read;
the raw files of a chunk are evicted once its shard is complete. Raw files, partial downloads, parts
and shards together never exceed `download.target_size_gb`.
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
    """Hands out chunks whose raw files are complete; a context manager for use by one thread.

    Args:
        to_read: Chunk -> its clips that must be read.
        hub: Source of the chunks; only needed if raw files are missing.

    Attributes:
        rows: Chunk -> its row: chunk, num_clips, num_read, bytes_fetched, bytes_evicted,
            cache_bytes.
        moments: (seconds from the start, raw bytes, cache bytes) at every change; a download or
            write counts in full from its start.

    Raises:
        AvomniError: another run needs files that would be evicted, the chunks do not fit into the
            budget, or a disk lacks room; nothing has been fetched by then.
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
        self._working: dict[int, list[Path]] = {}  # chunk -> raw files present at its start
        self._kept: set[int] = set()  # chunks with complete shards whose raw files stay
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
        """Maximum bytes on the disk: metadata, raw files, parts and shards."""
        return max(raw + cache for _, raw, cache in self.moments)

    @property
    def message(self) -> str:
        """Progress of the current download, for display."""
        return self._coming.message if self._coming else ""

    def ready(self) -> list[int]:
        """Return chunks that can be read now, each once, and start the next download; non-blocking.

        Raises:
            AvomniError: a chunk cannot be fetched, and all others are done; or the shards are
                larger than expected, so that the next chunk does not fit.
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
        """Reserve room for a clip's part, or for the chunk's shard; returns whether it fits now.

        Raises:
            AvomniError: it does not fit, and no running task would free room.
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
        """Release the reservation of `begin`, whether or not the task succeeded."""
        del self._budget.writing[chunk, clip_id]
        if clip_id is not None:
            self._budget.parts[chunk] += forecast.size_of(self._works[chunk].part(clip_id))
        self._note()

    def release(self, chunk: int, is_needed: bool = False) -> None:
        """Mark the chunk's shard as complete; with `download.evict_raw`, remove its raw files.

        Args:
            is_needed: Keep them, as a clip was lost and the next run will read it.
        """
        row, paths = self.rows[chunk], self._sizes.let_go(chunk)
        row["cache_bytes"] = self._sizes.learn_size(chunk)
        if self.p.download.evict_raw:
            if not is_needed:
                row["bytes_evicted"] = evicted.evict(self.p, paths)
            # Another run may need them by now.
            if is_needed or any((self.p.local_dir / path).exists() for path in paths):
                self._kept.add(chunk)
        self._budget.shards += row["cache_bytes"] - self._sizes.shards[chunk]
        self._budget.parts[chunk], self._budget.raw[chunk] = 0, self._sizes.here(chunk)
        self._budget.reserved.pop(chunk, None)
        self._working.pop(chunk, None)
        self._note()

    def gone(self, chunk: int) -> str | None:
        """Message about missing raw files of a chunk that was handed out; None if none is."""
        gone = [path for path in self._works[chunk].raw if not path.exists()]
        if not gone:
            return None
        name = gone[0].relative_to(self.p.local_dir).as_posix()
        by = evicted.by_others(self.p).get(name)
        if any(path in self._working[chunk] for path in gone):
            how = "went away while it was read" + (f": evicted by {by}" if by else "")
        else:
            how = f"were evicted by {by}" if by else "are not on the disk"
        return f"{len(gone)} raw files of chunk {chunk}, such as {name}, {how}"

    def _collect(self) -> None:
        """Take over the result of a finished download."""
        if not self._coming or not self._coming.is_over:
            return
        came, self._coming = self._coming, None
        self.rows[came.chunk]["bytes_fetched"] = came.num_bytes
        if came.error is None:
            self._whole.append(came.chunk)
        elif isinstance(came.error, AvomniError):
            # Chunks that are on the disk are read first.
            log.warning("chunk %d cannot be fetched: %s", came.chunk, came.error.what)
            self._waiting.appendleft(came.chunk)
            self._error = came.error
        else:
            raise came.error

    def _open_source(self) -> None:
        """Check licence and access before the first byte, and that the source is unchanged."""
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
                remote[chunk][number] = now  # with all details that the source lists

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
    """Fetches a chunk's files in a thread, which starts at once and stops soon after `end`.

    Attributes:
        num_bytes: Bytes fetched so far.
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
        # A daemon thread is safe: files are partial or complete whenever the process ends.
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
                fix="if another run with download.evict_raw works there, give it its own "
                "dataset.local_dir; then run the same command again",
            )
        except BaseException as error:
            self.error = error
        finally:
            self._verified.save()

    def _is_here(self, file: RemoteFile) -> bool:
        """Whether the file is complete on the disk; hashes it if it has not been verified yet."""
        if self._verified.known(file):
            return True
        return self._verified.needs_hash(file) and self._verified.find(file) is None
