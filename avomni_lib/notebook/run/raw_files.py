"""Effect of the raw files' state on the stages: present, evicted, fetched later, or missing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from avomni_lib.dataset.catalog import METADATA_FILES
from avomni_lib.dataset.lerobot.layout import metadata_files
from avomni_lib.dataset.select.evicted import by_others, read_evicted
from avomni_lib.dataset.select.manifest import changed_metadata, missing_files, read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.shard import HEADER_FILE, shard_name
from avomni_lib.params import Params

EVICT = "download.evict_raw"


def evicted_in_words(p: Params) -> str:
    """The number of raw files that the run has evicted, as text; empty if none."""
    num = len(read_evicted(p))
    return f"{num:,} raw files evicted" if num else ""


def what_matters(
    p: Params, stage: str, changed: Sequence[str], then: Mapping[str, Any]
) -> list[str]:
    """The parameters changed since the stage finished (`then`) that make it stale."""
    ignored = set()
    if stage == "03_etl" and not p.download.evict_raw:
        ignored = {EVICT}  # raw files are now kept
    elif stage in ("01_audit", "02_download"):
        was_cut = False  # whether the disk budget limited the choice of chunks
        with contextlib.suppress(AvomniError):
            num_chosen = len(read_chosen(p).chunks)
            was_cut = p.download.chunks is None and num_chosen < p.download.target_chunks
        if not p.download.evict_raw or not was_cut:
            ignored |= {EVICT}
        if p.download.evict_raw and then.get(EVICT):
            ignored |= {"download.target_size_gb"}  # limits the disk usage, not the choice
        if p.download.clips.max_clips is None and p.download.clips.balance_by is None:
            ignored |= {"run.seed"}  # clips are not sampled
        if stage == "02_download" and p.is_fetched:
            ignored |= {"dataset.local_dir"}  # 02 checks that the files exist
    return [name for name in changed if name not in ignored]


def download_in_words(p: Params, is_cache_done: bool) -> tuple[bool, str]:
    """(whether 02 is done as regards its files, the reason)."""
    gone = missing_files(p)
    if not is_cache_done and (changed := changed_metadata(p, read_chosen(p))):
        return False, f"{', '.join(changed)} changed or gone since"
    if not gone:
        return True, "every file is in place"
    evicted = read_evicted(p)
    lost = [path for path in gone if path not in evicted]
    if is_cache_done:
        counts = {"evicted": len(gone) - len(lost), "gone": len(lost)}
        parts = [f"{num:,} raw files {what}" for what, num in counts.items() if num]
        return True, ", ".join([*parts, "the cache holds what is needed"])
    if p.download.evict_raw and not set(gone) & {*METADATA_FILES, *metadata_files(p.local_dir)}:
        what = f"03_etl fetches {len(lost):,} raw files"
        if evicted:
            what = f"{len(evicted):,} raw files evicted; 03_etl fetches what the cache lacks"
        return True, f"{what}, chunk after chunk"
    others = {path: run for path, run in by_others(p).items() if path in gone}
    parts = []
    if others:
        runs = ", ".join(sorted(set(others.values())))
        parts.append(f"{len(others):,} raw files evicted by another run, {runs}")
    if rest := [path for path in gone if path not in others]:
        parts.append(f"{len(rest):,} raw files gone or cut, such as {rest[0]}")
    return False, "; ".join(parts)


def cache_in_words(p: Params, is_begun: bool) -> str:
    """Progress of an unfinished 03, and its handling of evicted files; empty without any.

    If it `is_begun`, there is no result yet, and existing shards belong to this run of the stage.
    """
    if not (evicted := evicted_in_words(p)):
        return ""
    words = f"{evicted}, what the cache lacks is fetched again"
    with contextlib.suppress(AvomniError):  # 02's files are missing, which its own state reports
        chunks = read_chosen(p).chunks if is_begun else []
        num = sum((p.cache_dir / shard_name(chunk) / HEADER_FILE).exists() for chunk in chunks)
        words = f"{num} of {len(chunks)} chunks in the cache; {words}" if is_begun else words
    return words
