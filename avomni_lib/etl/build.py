"""The stage 03: chosen clips -> the cache; in parallel, resumable, and a bad clip is a row.

Each clip becomes a part file, whole or not at all; the parts of a chunk become its shard, in the
order of the catalog. So the bytes depend neither on the number of workers nor on interruptions.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import __version__, files, pool
from avomni_lib.dataset import rig
from avomni_lib.dataset.catalog import Catalog, required_features
from avomni_lib.dataset.chosen import Chosen, read_chosen
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.hub import Hub
from avomni_lib.errors import AvomniError
from avomni_lib.etl import forecast, memmap, shard, video, windows
from avomni_lib.etl.parts import PARTS_FOLDER, ChunkWork, Job, make_part
from avomni_lib.etl.sampling import HISTORY_S, TRACK_HZ, Recipe
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan

log = logging.getLogger(__name__)

DIED = "the process that read it died, and again when it was alone"


@dataclass(frozen=True)
class Built:
    """What the stage made.

    Attributes:
        cache: The finished cache.
        clips: A row a clip: clip_id, split, chunk, state (`ok` or `damaged`), reason, num_frames.
        figures: Counts, bytes and seconds, for `result.json`.
    """

    cache: memmap.Cache
    clips: list[dict[str, Any]]
    figures: dict[str, Any]

    @property
    def damaged(self) -> list[dict[str, Any]]:
        """The rows of the clips that are not in the cache."""
        return [row for row in self.clips if row["state"] != "ok"]


def plan(p: Params) -> Plan:
    """Clips, frames, windows, bytes and minutes, before anything is done; needs no raw file."""
    decoder = video.choose_decoder(p.processing.decoder)
    return forecast.plan(p, recipe_of(p), num_workers(p), decoder)


def recipe_of(p: Params) -> Recipe:
    """What of the parameters decides a clip's arrays."""
    processing = p.processing
    return Recipe(
        p.vision.camera_setup,
        (processing.tile_width, processing.tile_height),
        processing.fit,
        processing.sample_hz,
        processing.horizon_s,
        video.choose_decoder(processing.decoder)[0],
    )


def num_workers(p: Params) -> tuple[int, str]:
    """(processes, reason)."""
    if p.processing.num_workers:
        return p.processing.num_workers, "asked for by processing.num_workers"
    return pool.num_cores(), "one a core, each decoding on one thread"


def build(p: Params, progress: type[Bar] = Bar, hub: Hub | None = None) -> Built:
    """Make the run's cache, or finish the one that was begun.

    What is whole and fits the parameters stays; the rest is removed and made anew. Clips that were
    damaged are tried again.

    Args:
        progress: One bar over the clips to read.
        hub: What chunks are fetched from with `download.evict_raw`; not asked for anything else.

    Raises:
        AvomniError: 02_download has not run; no room on the disk; every clip is damaged; splits
            share a clip; another process builds this cache.
    """
    started = time.monotonic()
    chosen, recipe = read_chosen(p), recipe_of(p)
    p.cache_dir.mkdir(parents=True, exist_ok=True)
    with files.hold(p.cache_dir / ".lock", "another process is building this cache"):
        common = common_header(p, chosen)
        chunk_works = works(p, chosen, common)
        reasons = _reasons_before(p.cache_dir)
        _keep_what_fits(p.cache_dir, chunk_works)
        jobs = _jobs(p, chunk_works, recipe, reasons)
        cpu_s = _work(p, chunk_works, jobs, common, reasons, progress)
        cache = _finish(p.cache_dir, chunk_works, common, reasons)
    seconds = {"seconds": time.monotonic() - started, "cpu_seconds": cpu_s}
    figures = _figures(p, cache) | {name: round(s, 2) for name, s in seconds.items()}
    return Built(cache, list(cache.table), figures | {"num_clips_read": len(jobs)})


def common_header(p: Params, chosen: Chosen) -> dict[str, Any]:
    """The header fields that all shards of the cache share."""
    recipe = recipe_of(p)
    grid = rig.grid(recipe.setup)
    cells = [cell and cell.name for cell in grid.cells]
    return {
        "generator": f"avomni {__version__}",
        "source": {"repo_id": chosen.repo_id, "revision": chosen.revision},
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
    }


def works(p: Params, chosen: Chosen, common: dict[str, Any]) -> list[ChunkWork]:
    """What there is to do, chunk by chunk; `common` is of `common_header`."""
    catalog, features = Catalog.open(p.local_dir), required_features(p)
    split_of = {clip_id: split for split, ids in chosen.clip_ids.items() for clip_id in ids}
    found = []
    for chunk in sorted(chosen.chunks):
        clips = [
            {"clip_id": clip_id, "split": split_of[clip_id], "chunk": chunk}
            for clip_id in catalog.clip_ids(chunk)
            if clip_id in split_of
        ]
        raw = catalog.files([chunk], features)
        contents = {path: chosen.files.get(path) for path in raw}
        key = files.hash_json([shard.FORMAT_VERSION, common, clips, contents])
        found.append(ChunkWork(p.cache_dir, chunk, clips, key, [p.local_dir / r for r in raw]))
    return found


def _reasons_before(cache_dir: Path) -> dict[str, str]:
    """Why clips were damaged when the cache was last finished: clip_id -> reason."""
    try:
        rows = files.read_json(cache_dir / memmap.CLIPS_FILE)["clips"]
        return {row["clip_id"]: row["reason"] for row in rows if row["state"] != "ok"}
    except (AvomniError, KeyError, TypeError):
        return {}


def _keep_what_fits(cache_dir: Path, works: list[ChunkWork]) -> None:
    """Remove shards and parts of other parameters or another source, and what is not whole."""
    files.sweep_partials(cache_dir)
    shard.settle(cache_dir)
    fitting = {work.shard_folder for work in works if work.shard}
    fitting |= {work.parts_folder for work in works}
    for folder in [*cache_dir.glob("shard_*"), *(cache_dir / PARTS_FOLDER).glob("*")]:
        if folder not in fitting:
            log.info("removing %s: it does not fit the parameters, or is not whole", folder)
            (cache_dir / memmap.CLIPS_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _jobs(p: Params, works: list[ChunkWork], recipe: Recipe, reasons: dict[str, str]) -> list[Job]:
    """The clips to read; leaves in `reasons` those known to be damaged whose raw files are gone."""
    missing = {clip_id: work for work in works for clip_id in work.missing()}
    for clip_id in list(reasons):
        if clip_id not in missing or missing[clip_id].has_raw():
            del reasons[clip_id]
    return [
        job_of(p, work, clip_id, recipe)
        for clip_id, work in missing.items()
        if clip_id not in reasons
    ]


def job_of(p: Params, work: ChunkWork, clip_id: str, recipe: Recipe) -> Job:
    """One clip of a chunk, for a worker."""
    path, storage = work.part(clip_id), p.processing.storage
    return Job(clip_id, work.chunk, p.local_dir, recipe, path, storage)


def _work(
    p: Params,
    works: list[ChunkWork],
    jobs: list[Job],
    common: dict[str, Any],
    reasons: dict[str, str],
    progress: type[Bar],
) -> float:
    """Read the clips and make each chunk's shard when its last one is there; returns CPU seconds.

    Adds to `reasons` the clips that are damaged.
    """
    left = Counter(job.chunk for job in jobs)
    work_of = {work.chunk: work for work in works}
    for work in works:
        if not left[work.chunk]:
            work.assemble(common, reasons)
    if not jobs:
        return 0.0
    (p.cache_dir / memmap.CLIPS_FILE).unlink(missing_ok=True)
    clip = Clip(p.local_dir, Catalog.open(p.local_dir), jobs[0].clip_id)
    frames = forecast.num_frames(forecast.clip_seconds(p, clip), jobs[0].recipe)
    # The parts of one chunk lie beside its shard while that is written.
    num_clips = len(jobs) + max(len(work.clips) for work in works)
    num_bytes = num_clips * frames * forecast.frame_bytes(jobs[0].recipe)
    files.need_room(p.cache_dir, num_bytes, "the cache")
    cpu_s = 0.0
    with progress(total=len(jobs), unit="clip", label="ETL") as bar:
        for job, outcome in pool.run_jobs(make_part, jobs, min(num_workers(p)[0], len(jobs))):
            reason = outcome.reason if outcome else DIED
            if reason:
                reasons[job.clip_id] = reason
                log.warning("clip %s left out: %s", job.clip_id, reason)
            cpu_s += outcome.cpu_s if outcome else 0.0
            left[job.chunk] -= 1
            if not left[job.chunk]:
                work_of[job.chunk].assemble(common, reasons)
            bar.update(1, f"{len(reasons)} damaged" if reasons else "")
    return cpu_s


def _finish(
    cache_dir: Path, works: list[ChunkWork], common: dict[str, Any], reasons: dict[str, str]
) -> memmap.Cache:
    """Write the table of clips, which makes a cache of the shards, and check it for leaks."""
    num_clips = sum(len(work.clips) for work in works)
    if len(reasons) == num_clips:
        clip_id, reason = next(iter(reasons.items()), ("none", "02_download chose no clip"))
        raise AvomniError(
            f"every one of the {num_clips} clips is damaged; the first: {reason}",
            where=f"clip {clip_id}",
            fix="run 01_audit, which tells what is missing or damaged, then 02_download",
        )
    shards = [work.shard_folder for work in works if work.shard]
    lengths = {
        clip.clip_id: len(clip)
        for folder in shards
        for clip in shard.clips_of(shard.open_shard(folder))
    }
    rows = [
        {
            **clip,
            "state": "damaged" if clip["clip_id"] in reasons else "ok",
            "reason": reasons.get(clip["clip_id"], ""),
            "num_frames": lengths.get(clip["clip_id"], 0),
        }
        for work in works
        for clip in work.clips
    ]
    memmap.write_table(cache_dir, common, shards, rows)
    shutil.rmtree(cache_dir / PARTS_FOLDER, ignore_errors=True)
    cache = memmap.Cache.open(cache_dir)
    windows.check_leaks(cache)
    return cache


def _figures(p: Params, cache: memmap.Cache) -> dict[str, Any]:
    length, stride = p.processing.sequence_length, p.processing.stride
    decoder, reason = video.choose_decoder(p.processing.decoder)
    by_split: Counter[str] = Counter()
    for clip in cache.clips:
        by_split[clip.split] += windows.num_windows(len(clip), length, stride)
    return {
        "num_clips": len(cache.clips),
        "num_damaged": len(cache.table) - len(cache.clips),
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
