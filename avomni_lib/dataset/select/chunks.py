"""Which chunks a run takes, under a number of chunks and of gigabytes, and which of their clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import (
    METADATA_FILES,
    Catalog,
    optional_features,
    required_features,
)
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.select import balance
from avomni_lib.dataset.select.ranking import NUM_SPARE, Ranking, candidates, rank
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

__all__ = ["NUM_SPARE", "Choice", "Ranking", "candidates", "choose_chunks", "rank"]


@dataclass(frozen=True)
class Choice:
    """The chunks that a run takes, why these, and what they weigh with the metadata.

    Attributes:
        passed: Chunks that would have been taken but for a fault -> the fault.
        rows: (clips,) int64 the clips to use, as rows of the clip index: chunk after chunk.
    """

    chunks: tuple[int, ...]
    reason: str
    num_bytes: int
    passed: Mapping[int, str]
    rows: np.ndarray = field(repr=False, compare=False)


def choose_chunks(
    catalog: Catalog,
    sizes: Mapping[str, RemoteFile],
    p: Params,
    ranking: Ranking | None = None,
) -> Choice:
    """The best chunks within download.target_chunks and target_size_gb, or the named ones.

    A chunk whose files the source lacks is passed over, unless it or one of its clips was named.
    With download.evict_raw a chunk has to fit the budget by itself, and all of them need not.

    Args:
        sizes: What the source lists of the candidates' files and the metadata; it is read chunk by
            chunk, and no further than chunks are taken.
        ranking: From `rank`, where it is there already.

    Raises:
        AvomniError: what is named cannot be used, or the budget is too small for it or for even
            one chunk.
    """
    ranking = ranking or rank(catalog, p)
    features, is_evicted, is_named = required_features(p), p.download.evict_raw, _is_named(p)
    more = catalog.listed(optional_features(p))
    metadata = sum(sizes[path].size for path in METADATA_FILES if path in sizes)
    total, taken, passed = metadata, dict[int, int](), dict[int, str]()
    have = np.zeros_like(ranking.quotas)
    limit = ""
    for chunk in ranking.chunks:
        paths = catalog.files([chunk], features)
        counts = ranking.counts[catalog.place(chunk)]
        fault = _fault(sizes, paths, features, counts, ranking.wanted.words)
        if fault and is_named:
            raise _unusable(catalog, p, chunk, fault, ranking.wanted.rows)
        if fault:
            passed[chunk] = fault
            continue
        paths += [path for path in catalog.files([chunk], more) if path in sizes]
        num_bytes = sum(sizes[path].size for path in paths)
        with_it = (metadata if is_evicted else total) + num_bytes
        if with_it > p.download.target_size_gb * 1e9:
            if is_named or not taken:
                raise _too_small(p, chunk, with_it)
            if not is_evicted:
                limit = f"chunk {chunk} would make it {with_it / 1e9:.2f} GB"
                break
            passed[chunk] = f"it alone takes {with_it / 1e9:.2f} GB"
            continue
        taken[chunk] = num_bytes
        total, have = total + num_bytes, have + counts
        is_enough = len(taken) == p.download.target_chunks or (have >= ranking.quotas).all()
        if is_enough and p.download.chunks is None:
            break
    over = [f"chunk {chunk} is passed over: {fault}" for chunk, fault in passed.items()]
    if not taken:
        raise AvomniError(
            "no chunk can be used: "
            + ("; ".join(over[:3]) or f"no clip has all of {', '.join(features)}"),
            where=str(catalog.folder),
            fix="check dataset.revision and vision.cameras",
        )
    rows, words = _picked(catalog, ranking, tuple(taken), p)
    if p.download.chunks is None:
        # Luck may leave a chunk without a pick: it need not be fetched.
        used = set(np.unique(catalog.chunk_idx[rows]).tolist())
        unused = [chunk for chunk in taken if catalog.place(chunk) not in used]
        total -= sum(taken.pop(chunk) for chunk in unused)
    reason = _reason(p, ranking, len(taken), limit, (have >= ranking.quotas).all())
    return Choice(tuple(taken), "; ".join([reason, *words, *over]), total, passed, rows)


def _is_named(p: Params) -> bool:
    """Whether chunks or all of some clips were asked for by name: nothing may be left out then."""
    clips = p.download.clips
    return p.download.chunks is not None or (clips.clip_ids is not None and clips.max_clips is None)


def _fault(
    sizes: Mapping[str, RemoteFile],
    paths: Sequence[str],
    features: Sequence[str],
    counts: np.ndarray,
    words: str,
) -> str | None:
    missing = [path for path in paths if path not in sizes]
    if missing:
        return f"the source lacks {missing[0]}"
    if counts.any():
        return None
    if words:
        return f"none of its clips is wanted ({words})"
    return "none of its clips has all of " + ", ".join(features)


def _unusable(
    catalog: Catalog, p: Params, chunk: int, fault: str, wanted: np.ndarray
) -> AvomniError:
    where, fix = "download.chunks", "name other chunks, or leave it out to take the first"
    if p.download.chunks is None:
        where, fix = "download.clips.clip_ids", "leave the clips of this chunk out"
        held = catalog.clips.ids(wanted[catalog.chunk_idx[wanted] == catalog.place(chunk)])
        fault += f"; of the wanted clips it holds {', '.join(held)}"
    return AvomniError(f"chunk {chunk} cannot be used: {fault}", where=where, fix=fix)


def _picked(
    catalog: Catalog, ranking: Ranking, chunks: tuple[int, ...], p: Params
) -> tuple[np.ndarray, list[str]]:
    """The rows of the clips to use, chunk after chunk, and what to say of them."""
    clips, wanted = p.download.clips, ranking.wanted
    places = np.array([catalog.place(chunk) for chunk in chunks])
    order = np.full(len(catalog.chunks), -1)
    order[places] = np.arange(len(places))
    is_here = order[catalog.chunk_idx[wanted.rows]] >= 0
    rows, group = wanted.rows[is_here], wanted.group[is_here]
    words = [f"of their clips {len(rows)} are wanted: {wanted.words}"] if wanted.words else []
    have = np.bincount(group, minlength=len(wanted.groups))
    share = have
    if clips.balance_by is not None or clips.max_clips is not None:
        share = balance.shares(have, clips.max_clips)
        is_picked = balance.pick(catalog.clips.ids(rows), group, share, p.run.seed)
        rows = rows[is_picked]
        words.append(f"{len(rows)} of {len(is_picked)} drawn by run.seed: {p.run.seed}")
    if clips.balance_by is not None:
        each = ", ".join(
            f"{share[place]} {wanted.groups[place]}" for place in np.flatnonzero(share)
        )
        words.append(f"balanced by {clips.balance_by}: {each}")
    return rows[np.lexsort((rows, order[catalog.chunk_idx[rows]]))], words


def _reason(p: Params, ranking: Ranking, num_taken: int, limit: str, is_enough: bool) -> str:
    size, count = p.download.target_size_gb, p.download.target_chunks
    clips = p.download.clips
    if p.download.chunks is not None:
        return ranking.words
    if _is_named(p):
        return "they hold the clips named by download.clips.clip_ids"
    order = "" if ranking.words == "the first" else f"{ranking.words}; "
    if limit:
        return f"{order}as many as fit download.target_size_gb: {size:g} ({limit})"
    if is_enough and clips.max_clips is not None:
        return f"{order}enough for download.clips.max_clips: {clips.max_clips}"
    if num_taken < count:
        return f"{order}all there are (download.target_chunks: {count})"
    return f"{ranking.words}, by download.target_chunks: {count}"


def _too_small(p: Params, chunk: int, num_bytes: int) -> AvomniError:
    taken = "all named chunks up to" if p.download.chunks else "even the first chunk,"
    if p.download.evict_raw:
        taken = "alone, chunk"
    elif p.download.chunks is None and _is_named(p):
        taken = "all chunks with named clips up to"
    gigabytes = num_bytes / 1e9
    return AvomniError(
        f"{taken} {chunk}, with {cameras.grid(p.vision.cameras)} and metadata, take "
        f"{gigabytes:.4g} GB; the budget is {p.download.target_size_gb:g} GB",
        where="download.target_size_gb",
        fix=f"set it to {gigabytes * 1.001:.4g} or more, or take fewer chunks or cameras",
    )
