"""Which chunks a run takes, under a number of chunks and of gigabytes, and which of their clips.

`rank` puts the chunks in order by the catalog alone; `choose_chunks` takes them in that order.
"""

from __future__ import annotations

import hashlib
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
from avomni_lib.dataset.select import filters
from avomni_lib.dataset.select.filters import Wanted
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

# Ranked beyond target_chunks, to take the place of chunks that lack files.
NUM_SPARE = 8


@dataclass(frozen=True, eq=False)
class Ranking:
    """The chunks that may be taken, in the order in which to take them.

    Attributes:
        chunks: Their numbers; no more than target_chunks and a few to spare.
        wanted: The clips that may be taken.
        counts: (all chunks, groups) int64 wanted clips of each chunk of the catalog.
        quotas: (groups,) int64 clips of each group after which no further chunk is needed.
        words: Why in this order.
    """

    chunks: tuple[int, ...]
    wanted: Wanted
    counts: np.ndarray = field(repr=False)
    quotas: np.ndarray = field(repr=False)
    words: str


@dataclass(frozen=True)
class ChunkChoice:
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


def rank(catalog: Catalog, p: Params) -> Ranking:
    """Put the chunks in the order in which to take them; nothing is asked of the hub.

    The named ones in their order; else by their numbers; where clips are chosen or balanced, those
    with the most wanted clips first.

    Raises:
        AvomniError: a named chunk does not exist, clips that are asked for do not, or named clips
            lie in more chunks than may be taken.
    """
    wanted = filters.find(catalog, p)
    limit, num_groups = p.download.clips.max_clips, len(wanted.groups)
    cells = catalog.chunk_idx[wanted.rows] * num_groups + wanted.group
    counts = np.bincount(cells, minlength=len(catalog.chunks) * num_groups)
    counts = counts.reshape(-1, num_groups)
    total = counts.sum(axis=0)
    quotas = total if limit is None else shares(total, limit)
    num_taken = p.download.target_chunks
    if p.download.chunks is not None:
        chunks, words = p.download.chunks, "named by download.chunks"
        num_taken = len(chunks)
        for chunk in chunks:
            catalog.place(chunk)
    elif not wanted.words and p.download.clips.balance_by is None:
        chunks, words = catalog.chunks[: num_taken + NUM_SPARE], "the first"
    else:
        order = most_wanted(counts, quotas, num_taken + NUM_SPARE)
        chunks = tuple(catalog.chunks[place] for place in order)
        words = "those with the most wanted clips"
    ranking = Ranking(chunks, wanted, counts, quotas, words)
    _need_all_named(catalog, ranking, chunks[:num_taken], p)
    return ranking


def most_wanted(counts: np.ndarray, quotas: np.ndarray, num: int) -> list[int]:
    """Places of at most `num` chunks: each brings the most clips after those before it.

    Clips count until their group's quota is full; when all are, the rest follow by all their clips.
    Of equals the first comes first; a chunk without a wanted clip does not come at all.

    Args:
        counts: (chunks, groups) int64 wanted clips.
        quotas: (groups,) int64.
    """
    left, totals = quotas.copy(), counts.sum(axis=1)
    free, order = totals > 0, list[int]()
    while len(order) < min(num, np.count_nonzero(totals)):
        gains = np.minimum(counts, left).sum(axis=1) if left.any() else totals
        place = int(np.where(free, gains, -1).argmax())
        free[place] = False
        order.append(place)
        left -= np.minimum(counts[place], left)
    return order


def choose_chunks(
    catalog: Catalog,
    sizes: Mapping[str, RemoteFile],
    p: Params,
    ranking: Ranking | None = None,
) -> ChunkChoice:
    """The first chunks of the ranking within target_chunks and target_size_gb, or the named ones.

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
    return ChunkChoice(tuple(taken), "; ".join([reason, *words, *over]), total, passed, rows)


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
        share = shares(have, clips.max_clips)
        is_picked = pick(catalog.clips.ids(rows), group, share, p.run.seed)
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


def _need_all_named(catalog: Catalog, ranking: Ranking, chunks: tuple[int, ...], p: Params) -> None:
    """Named clips are never left out without a word."""
    if p.download.clips.clip_ids is None or p.download.clips.max_clips is not None:
        return
    places = [catalog.place(chunk) for chunk in chunks]
    held, num_wanted = int(ranking.counts[places].sum()), len(ranking.wanted.rows)
    if held == num_wanted:
        return
    holding = np.flatnonzero(ranking.counts.any(axis=1))
    chosen = p.download.chunks is not None
    parameter = "download.chunks" if chosen else "download.target_chunks"
    value = [catalog.chunks[place] for place in holding] if chosen else len(holding)
    raise AvomniError(
        f"the {num_wanted} wanted clips lie in {len(holding)} chunks; "
        f"{'the named' if chosen else p.download.target_chunks} hold {held} of them",
        where="download.clips.clip_ids",
        fix=f"set {parameter} to {value}, name fewer clips, or set download.clips.max_clips to "
        "take no more than there are",
    )


def shares(sizes: np.ndarray, total: int | None) -> np.ndarray:
    """How many to take of each group, as equal as possible.

    Groups that are large enough get the same number, or one more; smaller ones all they have.

    Args:
        sizes: (groups,) int, what each has.
        total: At most so many altogether; None: of each as many as the smallest that has any.
    """
    if total is None:
        return np.minimum(sizes, min(sizes[sizes > 0], default=0))
    # Water stands in joined vessels at one level; those that are lower are full.
    rising = np.sort(sizes)
    full = np.cumsum(rising) - rising
    levels = (total - full) // np.arange(len(sizes), 0, -1)
    unfilled = np.flatnonzero(levels < rising)
    taken = np.minimum(sizes, levels[unfilled[0]]) if len(unfilled) else sizes.copy()
    larger = np.flatnonzero(sizes > taken)
    taken[larger[: total - int(taken.sum())]] += 1
    return taken


def pick(clip_ids: Sequence[str], group: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """(clips,) bool which clips to take: so many of each group, drawn by their names and the seed.

    A clip's luck depends on no other clip's, so that a set which grows keeps its picks.

    Args:
        group: (clips,) int, each clip's group.
        wanted: (groups,) int, from `shares`.
    """
    is_taken = np.zeros(len(group), bool)
    have = np.bincount(group, minlength=len(wanted))
    for place in np.flatnonzero((have > 0) & (wanted > 0)):
        rows = np.flatnonzero(group == place)
        if have[place] > wanted[place]:
            luck = [hashlib.sha256(f"{seed}/{clip_ids[row]}".encode()).digest() for row in rows]
            rows = rows[sorted(range(len(rows)), key=luck.__getitem__)[: wanted[place]]]
        is_taken[rows] = True
    return is_taken
