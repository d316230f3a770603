"""Part files: each clip is stored on its own until all clips of the chunk are read."""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import open_clip
from avomni_lib.errors import AvomniError, system_error
from avomni_lib.etl.cache import shard
from avomni_lib.etl.clip.sampling import Recipe, sample_clip

log = logging.getLogger(__name__)

PARTS_FOLDER = ".parts"


@dataclass(frozen=True)
class ClipJob:
    """Job for a worker process: read one clip and write its part to `path`."""

    clip_id: str
    chunk: int
    local_dir: Path
    recipe: Recipe
    path: Path
    storage: str = "raw"
    lerobot_profile: str | None = None


@dataclass(frozen=True)
class JobOutcome:
    """Outcome of a job: done (`reason` is None), or the clip is damaged or lost.

    A lost clip failed because of the machine, so that another try may succeed.
    """

    reason: str | None
    cpu_s: float
    is_lost: bool = False


def do(job: ClipJob | Assembly) -> JobOutcome:
    """The worker processes' function: `make_part` for a clip, `assemble` for a chunk."""
    if isinstance(job, ClipJob):
        return make_part(job)
    started = time.process_time()
    job.work.assemble(job.common, job.left_out)
    return JobOutcome(None, time.process_time() - started)


def make_part(job: ClipJob) -> JobOutcome:
    """Read one clip and write its part; a damaged or lost clip is an outcome, not an error.

    A clip is lost if the system cannot read its raw files: they are gone, or the disk fails.

    Raises:
        AvomniError: no room on the disk.
        MemoryError: this process ran out of memory; a fresh one may succeed.
    """
    started = time.process_time()
    try:
        clip = open_clip(job.local_dir, _catalog(job.local_dir, job.lerobot_profile), job.clip_id)
        sampled = sample_clip(clip, job.recipe)
        arrays = shard.encode(sampled.arrays, job.storage)
    except MemoryError:
        raise MemoryError(f"clip {job.clip_id}") from None  # NumPy's subclass does not pickle
    except Exception as error:
        where = error.where if isinstance(error, AvomniError) else None
        if (fault := system_error(error)) is not None:
            what, where = f"could not be read: {fault.strerror}", where or fault.filename
        elif isinstance(error, AvomniError):
            what = error.what
        else:
            # An unforeseen error in one clip must not end a long build; the traceback is logged.
            log.exception("clip %s", job.clip_id)
            what = f"{type(error).__name__}: {error}"
        reason = (what + (f" ({where})" if where else "")).replace(f"{job.local_dir}/", "")
        return JobOutcome(reason, time.process_time() - started, is_lost=fault is not None)
    with files.write_whole(job.path) as file:
        np.savez(file, **arrays, **shard.pack_notes(sampled.notes))
    return JobOutcome(None, time.process_time() - started)


@functools.lru_cache(maxsize=1)
def _catalog(local_dir: Path, lerobot_profile: str | None) -> Catalog:
    return Catalog.read_as(local_dir, lerobot_profile)


class ChunkWork:
    """A chunk to be made into a shard.

    Args:
        clips: clip_id, split and chunk of each clip, in the order of the catalog.
        key: A hash of everything that the shard's bytes depend on.
    """

    def __init__(
        self,
        cache_dir: Path,
        chunk: int,
        clips: list[dict[str, Any]],
        key: str,
        raw: Collection[Path],
    ):
        self.chunk, self.clips, self.key, self.raw = chunk, clips, key, raw
        self.shard_folder = cache_dir / shard.shard_name(chunk)
        self.parts_folder = cache_dir / PARTS_FOLDER / key[:16]

    def part(self, clip_id: str) -> Path:
        return self.parts_folder / f"{clip_id}.npz"

    @property
    def shard(self) -> shard.Shard | None:
        """The shard on the disk if it is complete and has the same key, else None."""
        try:
            opened = shard.open_shard(self.shard_folder)
        except AvomniError:
            return None
        return opened if opened.header.get("key") == self.key else None

    def missing(self) -> list[str]:
        """The clips that are neither in a part file nor in the shard."""
        opened = self.shard
        have = {clip.clip_id for clip in shard.clips_of(opened)} if opened else set()
        ids = [clip["clip_id"] for clip in self.clips]
        return [i for i in ids if i not in have and not self.part(i).exists()]

    def has_raw(self) -> bool:
        return all(path.exists() for path in self.raw)

    def assemble(self, common: Mapping[str, Any], left_out: Collection[str]) -> None:
        """Make the shard of all clips except `left_out`, unless it exists, and remove the parts.

        Clips are taken from their parts or from the existing shard. If a worker was killed while
        replacing a shard, the old one is restored first.
        """
        shard.undo_interrupted_write(self.shard_folder)
        clips = [clip for clip in self.clips if clip["clip_id"] not in left_out]
        existing = self.shard
        inside = {clip.clip_id: clip for clip in shard.clips_of(existing)} if existing else {}

        def load(clip_id: str) -> Mapping[str, np.ndarray]:
            if self.part(clip_id).exists():
                return np.load(self.part(clip_id), allow_pickle=False)
            return existing.arrays_of(inside[clip_id])

        if clips and list(inside) != [clip["clip_id"] for clip in clips]:
            shard.write_shard(self.shard_folder, {**common, "key": self.key}, clips, load)
        shutil.rmtree(self.parts_folder, ignore_errors=True)


@dataclass(frozen=True)
class Assembly:
    """Job for a worker process: make the shard of a chunk whose clips have all been read.

    It hashes and writes gigabytes, which would block the process that submits the jobs.
    """

    work: ChunkWork
    common: Mapping[str, Any]
    left_out: frozenset[str]
