"""The loop of 03: as chunks come their clips are read, their shards made, their raw files released.

Reasons of damaged clips are kept in `.damaged.json` before the shard that lacks them is made, so
that a killed run neither forgets them nor fetches an evicted chunk again to find them out. Lost
clips are kept nowhere: they lack a part, so that the next run reads them.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import memmap
from avomni_lib.etl.clip import sampling
from avomni_lib.etl.run import engines, parts
from avomni_lib.etl.run.parts import Assembly, ChunkWork, ClipJob, JobOutcome
from avomni_lib.etl.run.prefetch import Prefetch
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.workers import WAIT, Wait

log = logging.getLogger(__name__)

REASONS_FILE = ".damaged.json"


class Reading:
    """One pass over the chunks of a run.

    Args:
        recipe: How clips are read.
        to_read: Chunk -> its clips to read.
        prefetch: Knows which chunks are there, and what there is room for.
        common: The header fields of all shards.
        reasons: clip_id -> why it is damaged; grows.

    Attributes:
        lost: clip_id -> what of this machine kept it from being read; grows.
    """

    def __init__(
        self,
        p: Params,
        recipe: sampling.Recipe,
        works: Sequence[ChunkWork],
        to_read: Mapping[int, Sequence[str]],
        prefetch: Prefetch,
        common: Mapping[str, Any],
        reasons: dict[str, str],
    ):
        self.p, self._recipe, self._prefetch = p, recipe, prefetch
        self._works = {work.chunk: work for work in works}
        self._to_read, self._common, self._reasons = to_read, common, reasons
        self._left = Counter({chunk: len(ids) for chunk, ids in to_read.items()})
        self._unfinished = {chunk for chunk, ids in to_read.items() if ids}
        self._to_assemble: deque[int] = deque()
        self.lost: dict[str, str] = {}
        self.cpu_s = 0.0

    def run(self, progress: type[Bar] = Bar) -> None:
        """Read what is to be read; after it every chunk has its shard, without its lost clips.

        Raises:
            AvomniError: no room on the disk or in the budget, or a chunk cannot be fetched.
        """
        for chunk, work in self._works.items():
            if chunk not in self._unfinished:
                self._prefetch.begin(chunk)
                work.assemble(self._common, self._reasons)
                self._prefetch.end(chunk)
                self._prefetch.release(chunk)
        if not self._unfinished:
            return
        save_reasons(self.p.cache_dir, self._reasons)
        (self.p.cache_dir / memmap.CLIPS_FILE).unlink(missing_ok=True)
        jobs = engines.run(self.p, parts.do, self._jobs())
        with (
            progress(total=self._left.total(), unit="clip", label="ETL") as bar,
            contextlib.closing(jobs) as outcomes,
        ):
            for job, outcome in outcomes:
                self.cpu_s += outcome.cpu_s
                is_clip = isinstance(job, ClipJob)
                if is_clip:
                    self._read(job, outcome)
                else:
                    self._assembled(job.work.chunk)  # type: ignore[attr-defined]
                bar.update(is_clip, self._message())

    def _jobs(self) -> Iterator[ClipJob | Assembly | Wait]:
        """What the workers do next: shards first, as they free parts and raw files."""
        clips: deque[tuple[int, str]] = deque()
        while self._unfinished:
            for chunk in self._prefetch.ready():
                clips.extend((chunk, clip_id) for clip_id in self._to_read[chunk])
            if self._to_assemble and self._prefetch.begin(self._to_assemble[0]):
                work = self._works[self._to_assemble.popleft()]
                left_out = frozenset(self._reasons) | frozenset(self.lost)
                yield Assembly(work, self._common, left_out)
            elif clips and not self._to_assemble and self._prefetch.begin(*clips[0]):
                chunk, clip_id = clips.popleft()
                yield job_of(self.p, self._works[chunk], clip_id, self._recipe)
            else:
                yield WAIT

    def _read(self, job: ClipJob, outcome: JobOutcome) -> None:
        reason, is_lost = outcome.reason, outcome.is_lost
        # A clip whose files are taken away may look damaged, or as if it had no labels of others.
        may_lack = reason or self.p.processing.obstacles
        if may_lack and (gone := self._prefetch.gone(job.chunk)):
            reason, is_lost = gone, True
            job.path.unlink(missing_ok=True)
        self._prefetch.end(job.chunk, job.clip_id)
        if reason:
            (self.lost if is_lost else self._reasons)[job.clip_id] = reason
            state = "lost" if is_lost else "damaged"
            log.warning("clip %s is %s: %s", job.clip_id, state, reason)
        self._left[job.chunk] -= 1
        if not self._left[job.chunk]:
            save_reasons(self.p.cache_dir, self._reasons)
            self._to_assemble.append(job.chunk)

    def _assembled(self, chunk: int) -> None:
        self._prefetch.end(chunk)
        is_needed = any(clip["clip_id"] in self.lost for clip in self._works[chunk].clips)
        self._prefetch.release(chunk, is_needed)
        self._unfinished.remove(chunk)

    def _message(self) -> str:
        counts = {"damaged": len(self._reasons), "lost": len(self.lost)}
        told = [f"{count} {word}" for word, count in counts.items() if count]
        return ", ".join(filter(None, [*told, self._prefetch.message]))


def job_of(p: Params, work: ChunkWork, clip_id: str, recipe: sampling.Recipe) -> ClipJob:
    """One clip of a chunk, for a worker."""
    path, storage = work.part(clip_id), p.processing.storage
    return ClipJob(clip_id, work.chunk, p.local_dir, recipe, path, storage)


def save_reasons(cache_dir: Path, reasons: Mapping[str, str]) -> None:
    files.write_json(cache_dir / REASONS_FILE, dict(sorted(reasons.items())))


def reasons_before(cache_dir: Path) -> dict[str, str]:
    """Why clips were damaged when the cache was last finished or worked on: clip_id -> reason."""
    found: dict[str, str] = {}
    with contextlib.suppress(AvomniError, KeyError, TypeError):
        rows = files.read_json(cache_dir / memmap.CLIPS_FILE)["clips"]
        found |= {row["clip_id"]: row["reason"] for row in rows if row["state"] == "damaged"}
    with contextlib.suppress(AvomniError, TypeError):
        found |= files.read_json(cache_dir / REASONS_FILE)
    return found
