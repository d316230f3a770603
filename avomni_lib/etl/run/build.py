"""Stage 03: builds the cache of the chosen clips, in parallel and resumable.

Each clip becomes a part file, written atomically; the parts of a chunk become its shard, in the
order of the catalog. So the bytes depend neither on the number of workers nor on interruptions. A
damaged clip is a row of the table, not an error.

Reasons of damaged clips are saved in `.damaged.json` before the shard without them is made, so that
after a kill an evicted chunk is not fetched again for them. Lost clips are not recorded: they have
no part file, so the next run reads them.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import __version__, files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import REASONING_FILE, required_features
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.select import evicted, split
from avomni_lib.dataset.select.manifest import Chosen, open_catalog, path_of, read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import memmap, shard, windows
from avomni_lib.etl.clip import obstacles
from avomni_lib.etl.clip.sampling import HISTORY_S, TRACK_HZ, Recipe
from avomni_lib.etl.run import disk_budget, engines, forecast, parts
from avomni_lib.etl.run.parts import PARTS_FOLDER, Assembly, ChunkWork, ClipJob, JobOutcome
from avomni_lib.etl.run.prefetch import Prefetch
from avomni_lib.etl.video import reader
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan
from avomni_lib.workers import WAIT, Wait

log = logging.getLogger(__name__)

REASONS_FILE = ".damaged.json"


@dataclass(frozen=True)
class Built:
    """The result of the stage.

    Attributes:
        clips: One row per clip: clip_id, split, chunk, state (`ok`, `damaged` or `lost`), reason
            (empty if `ok`), num_frames.
        chunks: One row per chunk, as `Prefetch.rows`.
        moments: As `Prefetch.moments`.
        figures: Counts, bytes and seconds, for `result.json`.
    """

    cache: memmap.Cache
    clips: list[dict[str, Any]]
    chunks: list[dict[str, Any]]
    moments: list[tuple[float, int, int]]
    figures: dict[str, Any]

    @property
    def damaged(self) -> list[dict[str, Any]]:
        """The rows of damaged clips."""
        return [row for row in self.clips if row["state"] == "damaged"]

    @property
    def lost(self) -> list[dict[str, Any]]:
        """The rows of clips that this machine failed to read; the next build tries them again."""
        return [row for row in self.clips if row["state"] == "lost"]


def plan(p: Params, warnings: Sequence[str] = ()) -> Plan:
    """Estimate clips, frames, windows, bytes and time before anything is done; needs no raw files.

    With `download.evict_raw`, also estimates whether the chunks fit into the budget.

    Args:
        warnings: Warnings of later stages to include, such as `tokens.grid_warnings`.

    Raises:
        AvomniError: no clip is as long as a window.
    """
    decoder = reader.choose_decoder(p.processing.decoder)
    planned = forecast.plan(p, recipe_of(p), engines.num_workers(p), decoder)
    rows, figures = [*planned.rows], {**planned.figures}
    all_warnings = [*planned.warnings, *warnings]
    if p.download.evict_raw:
        refused = None
        if path_of(p).exists():
            chosen = read_chosen(p)
            chunk_works = works(p, chosen, common_header(p, chosen))
            to_read = _to_read(p, chunk_works, reasons_before(p.cache_dir))
            done = {work.chunk for work in chunk_works if not to_read[work.chunk] and work.shard}
            sizes = disk_budget.ChunkSizes(p, chosen, chunk_works, done)
            verdict = disk_budget.verdict(p, sizes.left, sizes.standing, len(done))
            refused = evicted.refusal(p, sizes.to_evict())
        else:
            verdict = disk_budget.verdict(p, disk_budget.expected(p))
        rows += verdict[0]
        all_warnings += verdict[1]
        figures |= verdict[2]
        if refused:
            all_warnings.append(f"{refused.what}; {refused.fix}")
    return Plan(planned.title, rows, all_warnings, figures)


def recipe_of(p: Params) -> Recipe:
    """The parameters that determine a clip's arrays."""
    processing = p.processing
    return Recipe(
        cameras.grid(p.vision.cameras).value,
        (processing.tile_width, processing.tile_height),
        processing.fit,
        processing.sample_hz,
        processing.horizon_s,
        reader.choose_decoder(processing.decoder)[0],
        processing.obstacles,
        processing.align,
    )


def build(p: Params, progress: type[Bar] = Bar, hub: Hub | None = None) -> Built:
    """Build the run's cache, or finish an interrupted build.

    Complete shards and parts that match the parameters are kept, all others are rebuilt. Damaged
    clips are tried again while their raw files are there. Lost clips (their worker was killed or
    hung, or a raw file is gone or unreadable) are left out, and every later build tries them again;
    once they are read, the cache is the same as if they had never been lost. With
    `download.evict_raw`, raw files are fetched and removed chunk by chunk, except for those of lost
    clips.

    Args:
        hub: Source of the chunks with `download.evict_raw`; not used otherwise.

    Raises:
        AvomniError: 02_download has not run, or the catalog has changed since; another run needs
            raw files that `download.evict_raw` would remove; no room on the disk or in the budget;
            a chunk cannot be fetched; no clip could be read; splits share a clip; another process
            builds this cache; or, once the cache is complete, no clip is as long as a window.
    """
    started = time.monotonic()
    chosen = read_chosen(p)
    split.freeze(p, chosen.clip_ids)
    p.cache_dir.mkdir(parents=True, exist_ok=True)
    with files.hold(p.cache_dir / ".lock", "another process is building this cache"):
        common = common_header(p, chosen)
        chunk_works = works(p, chosen, common)
        reasons = reasons_before(p.cache_dir)
        _keep_what_fits(p.cache_dir, chunk_works)
        to_read = _to_read(p, chunk_works, reasons)
        with Prefetch(p, chosen, chunk_works, to_read, hub) as prefetch:
            reading = ReadingPass(p, chunk_works, to_read, prefetch, common, reasons)
            try:
                reading.run(progress)
            except BaseException:
                # Free the room taken by half-written files; the disk may be full.
                _sweep(p.cache_dir)
                raise
        cache = _finish(p.cache_dir, chunk_works, common, reasons, reading.lost)
    chunks = [prefetch.rows[chunk] for chunk in sorted(prefetch.rows)]
    figures = _figures(p, cache) | {
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(reading.cpu_s, 2),
        "num_clips_read": sum(map(len, to_read.values())),
        "num_chunks": len(chunks),
        "bytes_fetched": sum(row["bytes_fetched"] for row in chunks),
        "bytes_evicted": sum(row["bytes_evicted"] for row in chunks),
        "peak_bytes": prefetch.peak_bytes,
    }
    if not figures["num_windows"]:
        raise windows.none_fits(max(map(len, cache.clips)), p.processing, str(p.cache_dir))
    return Built(cache, list(cache.table), chunks, prefetch.moments, figures)


def common_header(p: Params, chosen: Chosen) -> dict[str, Any]:
    """The header fields shared by all shards."""
    return {
        "generator": f"avomni {__version__}",
        "source": {"repo_id": chosen.repo_id, "revision": chosen.revision},
        **description(p),
    }


def description(p: Params) -> dict[str, Any]:
    """The header fields that depend on the parameters only."""
    recipe = recipe_of(p)
    grid = cameras.grid(recipe.setup)
    cells = [cell and cell.name for cell in grid.cells]
    return {
        "grid": {"name": grid.name, "rows": grid.rows, "cols": grid.cols, "cells": cells},
        "cameras": [camera.name for camera in grid.cameras],
        "tile": list(recipe.tile),
        "fit": recipe.fit,
        "storage": p.processing.storage,
        "sample_hz": recipe.sample_hz,
        "decoder": recipe.decoder,
        "egomotion_columns": list(memmap.EGOMOTION_COLUMNS),
        "track_columns": list(memmap.TRACK_COLUMNS),
        "track_hz": TRACK_HZ,
        "history_s": HISTORY_S,
        "horizon_s": recipe.horizon_s,
        **(obstacles.HEADER if recipe.obstacles else {}),
        **({"align": recipe.align} if recipe.align else {}),
    }


def works(p: Params, chosen: Chosen, common: dict[str, Any]) -> list[ChunkWork]:
    """The work per chunk; `common` is the result of `common_header`.

    Raises:
        AvomniError: the catalog is not the one that the run chose from; or other road users are
            requested and listed at the source, and were not fetched.
    """
    catalog, features = open_catalog(p, chosen), required_features(p)
    labels = obstacles.fetched(p, catalog, chosen)
    split_of = {clip_id: split for split, ids in chosen.clip_ids.items() for clip_id in ids}
    chunk_works = []
    for chunk in sorted(set(chosen.chunks)):
        clips = [
            {"clip_id": clip_id, "split": split_of[clip_id], "chunk": chunk}
            for clip_id in catalog.clip_ids(chunk)
            if clip_id in split_of
        ]
        raw = catalog.files([chunk], features) + labels.get(chunk, [])
        contents = {path: chosen.files.get(path) for path in raw}
        if p.processing.obstacles:
            contents[REASONING_FILE] = chosen.files.get(REASONING_FILE)
        if p.lerobot_profile:  # the metadata locate a clip within its files
            contents |= {path: chosen.files.get(path) for path in catalog.metadata_files}
            contents[p.lerobot_profile] = None
        key = files.hash_json([shard.FORMAT_VERSION, common, clips, contents])
        paths = [p.local_dir / path for path in raw]
        chunk_works.append(ChunkWork(p.cache_dir, chunk, clips, key, paths))
    return chunk_works


def job_of(p: Params, work: ChunkWork, clip_id: str, recipe: Recipe) -> ClipJob:
    """The job of reading one clip of a chunk."""
    return ClipJob(
        clip_id,
        work.chunk,
        p.local_dir,
        recipe,
        work.part(clip_id),
        p.processing.storage,
        p.lerobot_profile,
    )


def reasons_before(cache_dir: Path) -> dict[str, str]:
    """clip_id -> reason of the damaged clips known from earlier builds of the cache."""
    reasons: dict[str, str] = {}
    with contextlib.suppress(AvomniError, KeyError, TypeError):
        rows = files.read_json(cache_dir / memmap.CLIPS_FILE)["clips"]
        reasons |= {row["clip_id"]: row["reason"] for row in rows if row["state"] == "damaged"}
    with contextlib.suppress(AvomniError, TypeError):
        reasons |= files.read_json(cache_dir / REASONS_FILE)
    return reasons


def _keep_what_fits(cache_dir: Path, works: list[ChunkWork]) -> None:
    """Remove shards and parts of other parameters or sources, and incomplete ones."""
    _sweep(cache_dir)
    fitting = {work.shard_folder for work in works if work.shard}
    fitting |= {work.parts_folder for work in works}
    for folder in [*cache_dir.glob("shard_*"), *(cache_dir / PARTS_FOLDER).glob("*")]:
        if folder not in fitting:
            log.info("removing %s: it does not fit the parameters, or is not whole", folder)
            (cache_dir / memmap.CLIPS_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _sweep(cache_dir: Path) -> None:
    files.sweep_partials(cache_dir)
    shard.undo_interrupted_writes(cache_dir)


def _to_read(
    p: Params, chunk_works: Sequence[ChunkWork], reasons: dict[str, str]
) -> dict[int, list[str]]:
    """Chunk -> its clips to read; reduces `reasons` to the clips that will not be tried again.

    These are damaged clips without raw files: an evicted chunk is not fetched again only for them.
    """
    chunk_clips, stay = {}, {}
    for work in chunk_works:
        missing = to_read = work.missing()
        unknown = [clip_id for clip_id in missing if clip_id not in reasons]
        if not (work.has_raw() or (p.download.evict_raw and unknown)):
            to_read = unknown
        stay |= {clip_id: reasons[clip_id] for clip_id in missing if clip_id not in to_read}
        chunk_clips[work.chunk] = to_read
    reasons.clear()
    reasons.update(stay)
    return chunk_clips


class ReadingPass:
    """One pass over the chunks: reads clips as chunks arrive, makes shards, releases raw files.

    Args:
        to_read: Chunk -> its clips to read.
        prefetch: Tells which chunks are there and whether there is room.
        reasons: clip_id -> why it is damaged; extended in place.

    Attributes:
        lost: clip_id -> why this machine could not read it.
    """

    def __init__(
        self,
        p: Params,
        works: Sequence[ChunkWork],
        to_read: Mapping[int, Sequence[str]],
        prefetch: Prefetch,
        common: Mapping[str, Any],
        reasons: dict[str, str],
    ):
        self.p, self._prefetch, self._to_read = p, prefetch, to_read
        self._works = {work.chunk: work for work in works}
        self._common, self._reasons = common, reasons
        self._left = Counter({chunk: len(ids) for chunk, ids in to_read.items()})
        self._unfinished = {chunk for chunk, ids in to_read.items() if ids}
        self._to_assemble: deque[int] = deque()
        self.lost: dict[str, str] = {}
        self.cpu_s = 0.0

    def run(self, progress: type[Bar] = Bar) -> None:
        """Read all clips; afterwards every chunk has its shard, without damaged and lost clips.

        Raises:
            AvomniError: no room on the disk or in the budget, or a chunk cannot be fetched.
        """
        for chunk, work in self._works.items():
            if chunk not in self._unfinished:
                self._prefetch.begin(chunk)
                work.assemble(self._common, self._reasons)
                self._assembled(chunk)
        if not self._unfinished:
            return
        self._save_reasons()
        (self.p.cache_dir / memmap.CLIPS_FILE).unlink(missing_ok=True)
        with (
            progress(total=self._left.total(), unit="clip", label="ETL") as bar,
            contextlib.closing(engines.run(self.p, parts.do, self._jobs())) as outcomes,
        ):
            for job, outcome in outcomes:
                self.cpu_s += outcome.cpu_s
                if isinstance(job, ClipJob):
                    self._read(job, outcome)
                elif isinstance(job, Assembly):
                    self._assembled(job.work.chunk)
                counts = {"damaged": len(self._reasons), "lost": len(self.lost)}
                counted = [f"{count} {word}" for word, count in counts.items() if count]
                note = ", ".join(filter(None, [*counted, self._prefetch.message]))
                bar.update(isinstance(job, ClipJob), note)

    def _jobs(self) -> Iterator[ClipJob | Assembly | Wait]:
        """The jobs in order; assembling shards comes first, as it frees parts and raw files."""
        clips: deque[tuple[int, str]] = deque()
        recipe = recipe_of(self.p)
        while self._unfinished:
            for chunk in self._prefetch.ready():
                clips.extend((chunk, clip_id) for clip_id in self._to_read[chunk])
            if self._to_assemble and self._prefetch.begin(self._to_assemble[0]):
                work = self._works[self._to_assemble.popleft()]
                left_out = frozenset(self._reasons) | frozenset(self.lost)
                yield Assembly(work, self._common, left_out)
            elif clips and not self._to_assemble and self._prefetch.begin(*clips[0]):
                chunk, clip_id = clips.popleft()
                yield job_of(self.p, self._works[chunk], clip_id, recipe)
            else:
                yield WAIT

    def _read(self, job: ClipJob, outcome: JobOutcome) -> None:
        reason, is_lost = outcome.reason, outcome.is_lost
        # If files were removed meanwhile, a clip may seem damaged or without labels.
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
            self._save_reasons()
            self._to_assemble.append(job.chunk)

    def _assembled(self, chunk: int) -> None:
        self._prefetch.end(chunk)
        is_needed = any(clip["clip_id"] in self.lost for clip in self._works[chunk].clips)
        self._prefetch.release(chunk, is_needed)
        self._unfinished.discard(chunk)

    def _save_reasons(self) -> None:
        files.write_json(self.p.cache_dir / REASONS_FILE, dict(sorted(self._reasons.items())))


def _finish(
    cache_dir: Path,
    works: list[ChunkWork],
    common: dict[str, Any],
    reasons: dict[str, str],
    lost: dict[str, str],
) -> memmap.Cache:
    """Write the table of clips, which completes the cache, and check it for leaks."""
    clips = [clip for work in works for clip in work.clips]
    left_out = reasons | lost
    if len(left_out) == len(clips):
        clip_id, reason = next(
            iter({**lost, **reasons}.items()), ("none", "02_download chose no clip")
        )
        raise AvomniError(
            f"none of the {len(clips)} clips could be read: {len(lost)} are lost and "
            f"{len(reasons)} damaged; the first: {reason}",
            where=f"clip {clip_id}",
            fix="see that the raw files can be read and memory suffices (fewer "
            "processing.num_workers take less), then run the same command again: it tries the lost "
            "clips again; where raw files are gone, run 02_download first"
            if lost
            else "run 01_audit, which lists what is missing or damaged; then run 02_download, or, "
            "where dataset.source is folder, repair the folder",
        )
    shards = [work.shard_folder for work in works if work.shard]
    frames = {
        clip.clip_id: len(clip)
        for folder in shards
        for clip in shard.clips_of(shard.open_shard(folder))
    }
    rows = []
    for clip in clips:
        clip_id, count = clip["clip_id"], frames.get(clip["clip_id"], 0)
        state = "ok" if count else "lost" if clip_id in lost else "damaged"
        reason = "" if count else left_out[clip_id]
        rows.append({**clip, "state": state, "reason": reason, "num_frames": count})
    memmap.write_table(cache_dir, common, shards, rows)
    (cache_dir / REASONS_FILE).unlink(missing_ok=True)
    shutil.rmtree(cache_dir / PARTS_FOLDER, ignore_errors=True)
    cache = memmap.Cache.open(cache_dir)
    windows.check_leaks(cache)
    return cache


def _figures(p: Params, cache: memmap.Cache) -> dict[str, Any]:
    length, stride = p.processing.sequence_length, p.processing.stride
    reach = p.processing.reach
    decoder, reason = reader.choose_decoder(p.processing.decoder)
    states = Counter(row["state"] for row in cache.table)
    by_split: Counter[str] = Counter()
    for clip in cache.clips:
        by_split[clip.split] += windows.num_windows(len(clip), length, stride, reach)
    return {
        "num_clips": len(cache.clips),
        "num_damaged": states["damaged"],
        "num_lost": states["lost"],
        **(obstacles.figures(cache.clips) if p.processing.obstacles else {}),
        "clips_by_split": dict(Counter(clip.split for clip in cache.clips)),
        "num_frames": sum(map(len, cache.clips)),
        "num_windows": sum(by_split.values()),
        "windows_by_split": dict(by_split),
        "cache_bytes": sum(
            array["bytes"] for part in cache.shards for array in part.header["arrays"].values()
        ),
        "digest": cache.digest,
        "decoder": decoder,
        "decoder_reason": reason,
    }
