"""What the raw files' state means for the stages: there, evicted, fetched later, or gone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from avomni_lib.dataset.catalog import METADATA_FILES
from avomni_lib.dataset.select.evicted import by_others, read_evicted
from avomni_lib.dataset.select.manifest import changed_metadata, missing_files, read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.shard import HEADER_FILE, shard_name
from avomni_lib.params import Params

EVICT, BUDGET = "download.evict_raw", "download.target_size_gb"
SEED, PLACE = "run.seed", "dataset.local_dir"


def in_words(num: int, what: str = "raw file") -> str:
    return f"{num:,} {what}{'' if num == 1 else 's'}"


def evicted_in_words(p: Params) -> str:
    """How many raw files the run has evicted, or nothing."""
    num = len(read_evicted(p))
    return f"{in_words(num)} evicted" if num else ""


def what_matters(
    p: Params, stage: str, changed: Sequence[str], then: Mapping[str, Any]
) -> list[str]:
    """The changed parameters that ask for another run of the stage.

    To evict or not changes what 01 and 02 choose only where the budget has cut the choice, and
    what 03 does only where raw files are to go now. With eviction the budget bounds the disk, not
    the choice. The seed matters where clips are drawn. The place of raw files that a hub has does
    not matter for 02, which looks whether they are there.

    Args:
        then: The parameters of the finished stage.
    """
    matter = set(changed)
    if stage == "03_etl" and not p.download.evict_raw:
        matter -= {EVICT}
    elif stage in ("01_audit", "02_download"):
        if not p.download.evict_raw or not _was_cut(p):
            matter -= {EVICT}
        if p.download.evict_raw and then.get(EVICT):
            matter -= {BUDGET}
        if p.download.clips.max_clips is None and p.download.clips.balance_by is None:
            matter -= {SEED}
        if stage == "02_download" and p.dataset.source != "folder":
            matter -= {PLACE}
    return [name for name in changed if name in matter]


def download_in_words(p: Params, is_cache_done: bool) -> tuple[bool, str]:
    """(whether 02 is done as far as its files go, why)."""
    gone = missing_files(p)
    if not is_cache_done and (changed := changed_metadata(p, read_chosen(p))):
        return False, f"{', '.join(changed)} changed or gone since"
    if not gone:
        return True, "every file is in place"
    evicted = read_evicted(p)
    lost = [path for path in gone if path not in evicted]
    if is_cache_done:
        told = [in_words(len(gone) - len(lost)) + " evicted"] if len(lost) < len(gone) else []
        told += [f"{in_words(len(lost))} gone"] if lost else []
        return True, ", ".join([*told, "the cache holds what is needed"])
    if p.download.evict_raw and not set(gone) & set(METADATA_FILES):
        if evicted:
            what = f"{in_words(len(evicted))} evicted; 03_etl fetches what the cache lacks"
        else:
            what = f"03_etl fetches {in_words(len(lost))}"
        return True, f"{what}, chunk after chunk"
    others = {path: run for path, run in by_others(p).items() if path in gone}
    if not others:
        return False, f"{in_words(len(gone))} gone or cut, such as {gone[0]}"
    runs = ", ".join(sorted(set(others.values())))
    told = [f"{in_words(len(others))} evicted by another run, {runs}"]
    if rest := [path for path in gone if path not in others]:
        told.append(f"{in_words(len(rest))} gone or cut, such as {rest[0]}")
    return False, "; ".join(told)


def lost_in_words(num: int, is_trained_on: bool) -> str:
    """What becomes of the lost clips of a cache that is whole without them.

    Args:
        is_trained_on: A training that has begun is to go on with the cache as it is.
    """
    told = f"{in_words(num, 'clip')} lost to a fault of the machine"
    if is_trained_on:
        return f"{told}: tried again when the training that has begun is through"
    return f"{told}: the next run tries again, and where that goes well the stages after it run too"


def cache_in_words(p: Params, is_begun: bool) -> str:
    """How far a 03 that is not done has come, and what it will do about files that are evicted.

    Args:
        is_begun: It has no result yet, so that the shards that are there are its own.
    """
    evicted = read_evicted(p)
    if not evicted:
        return ""
    told = f"{in_words(len(evicted))} evicted, what the cache lacks is fetched again"
    if not is_begun:
        return told
    try:
        chunks = read_chosen(p).chunks
    except AvomniError:  # what 02 left is gone, which its own state says
        return told
    num = sum((p.cache_dir / shard_name(chunk) / HEADER_FILE).exists() for chunk in chunks)
    return f"{num} of {in_words(len(chunks), 'chunk')} in the cache; {told}"


def _was_cut(p: Params) -> bool:
    """Whether the budget has kept the choice below what was asked for."""
    with contextlib.suppress(AvomniError):
        wanted = p.download.target_chunks
        return p.download.chunks is None and len(read_chosen(p).chunks) < wanted
    return False
