"""Selection of clips and chunks within a number of chunks and of gigabytes.

`wanted_clips` are the clips that have the required features and match `download.clips`; `rank`
orders the chunks by the catalog alone; `choose_chunks` takes them in that order.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import (
    Catalog,
    optional_features,
    required_features,
)
from avomni_lib.dataset.clip_index import SOURCES, Values
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

# Parameter of download.clips -> the attribute that it filters by.
FILTERS = {
    "splits": "split",
    "countries": "country",
    "hours": "hour",
    "platforms": "platform",
    "event_clusters": "event_cluster",
}
MAX_SHOWN = 50
# Chunks ranked beyond target_chunks, to replace chunks that lack files.
NUM_SPARE = 8


class Wanted(NamedTuple):
    """The clips that a run may take."""

    rows: np.ndarray  # (K,) int64 rows of the clip index, ascending
    group: np.ndarray  # (K,) int64 group of each clip by download.clips.balance_by; 0 without it
    groups: tuple[Any, ...]  # names of the groups; a single one without balance_by
    words: str  # description of the filters, such as "country Germany"; empty without filters


class Ranking(NamedTuple):
    """The chunks that may be taken, in the order in which to take them."""

    chunks: tuple[int, ...]  # at most target_chunks plus a few spare ones
    wanted: Wanted
    counts: np.ndarray  # (all chunks, groups) int64 wanted clips of each chunk of the catalog
    quotas: np.ndarray  # (groups,) int64 clips of each group that suffice
    words: str  # reason for this order


@dataclass(frozen=True)
class ChunkChoice:
    """The chunks that a run takes, the reason, and their size including the metadata."""

    chunks: tuple[int, ...]
    reason: str
    num_bytes: int
    passed: Mapping[int, str]  # chunks that were skipped because of a fault -> the fault
    # (clips,) int64 the clips to use, as rows of the clip index, ordered by chunk
    rows: np.ndarray = field(repr=False, compare=False)


def wanted_clips(catalog: Catalog, p: Params) -> Wanted:
    """The valid clips that have all required features and match all filters.

    Raises:
        AvomniError: a filter has unknown values, a named clip cannot be used, or no clip is left;
            the message names the filter and the existing values.
    """
    clips, features, asked = p.download.clips, required_features(p), list[str]()
    usable = np.logical_and.reduce([catalog.clips.is_valid, *map(catalog.presence, features)])
    if clips.clip_ids is not None:
        usable = _named(catalog, list(clips.clip_ids), usable, features)
        asked.append(f"{usable.sum()} named clips")
    for key, attribute in FILTERS.items():
        if (names := getattr(clips, key)) is None:
            continue
        where = f"download.clips.{key}"
        values = _values(catalog, attribute, where)
        codes = _codes(values, names, attribute, where)
        narrower = usable & np.isin(values.codes, codes)
        if usable.any() and not narrower.any():
            of_which = f" with {', '.join(asked)}" if asked else ""
            raise AvomniError(
                f"no clip is left by download.clips.{key}: {', '.join(map(str, names))}; "
                f"the {usable.sum():,} usable clips{of_which} have the {attribute} "
                + (_counted(values.counts(usable)) or "which nobody knows"),
                where=where,
                fix="ask for what there is, or leave one of the filters out",
            )
        usable = narrower
        asked.append(f"{attribute} {' or '.join(str(values.names[code]) for code in codes)}")
    rows, words = np.flatnonzero(usable), ", ".join(asked)
    if clips.balance_by is None:
        return Wanted(rows, np.zeros(len(rows), np.int64), ("",), words)
    values = _values(catalog, clips.balance_by, "download.clips.balance_by")
    known = rows[values.codes[rows] >= 0]
    if len(rows) and not len(known):
        raise AvomniError(
            f"nothing to balance: the {clips.balance_by} of none of the {len(rows):,} wanted clips "
            "is known",
            where="download.clips.balance_by",
            fix="balance by something else, or leave it out",
        )
    return Wanted(known, values.codes[known].astype(np.int64), values.names, words)


def _named(
    catalog: Catalog, names: Sequence[str], usable: np.ndarray, features: Sequence[str]
) -> np.ndarray:
    """(clips,) bool: the named clips.

    Raises:
        AvomniError: listing all named clips that cannot be used, with reasons.
    """
    index = catalog.clips
    rows = index.rows(names)

    def fault(name: str, row: int) -> str:
        if row < 0:
            near = index.nearest(name)
            return "it is not in the clip index" + (f"; the nearest is {near}" if near else "")
        if not index.is_valid[row]:
            return "the clip index marks it as not valid"
        absent = ", ".join(name for name in features if not catalog.presence(name)[row])
        return index.faults.get(name) or f"it has no {absent}"

    faulty = [pair for pair in zip(names, rows, strict=True) if pair[1] < 0 or not usable[pair[1]]]
    if faulty:
        lines = [f"{name}: {fault(name, row)}" for name, row in faulty[:MAX_SHOWN]]
        more = [f"and {len(faulty) - MAX_SHOWN} more"] if len(faulty) > MAX_SHOWN else []
        raise AvomniError(
            f"{len(faulty)} of {len(names)} named clips cannot be used:\n  - "
            + "\n  - ".join([*lines, *more]),
            where="download.clips.clip_ids",
            fix="correct the names or leave the clips out, or set dataset.revision to the release "
            "that they are from, or choose another vision.cameras",
        )
    is_named = np.zeros(len(usable), bool)
    is_named[rows] = True
    return is_named


def _values(catalog: Catalog, attribute: str, where: str) -> Values:
    """An attribute of all clips; raises if the release does not have it."""
    values = catalog.values(attribute)
    if not values.names:
        file, _ = SOURCES[attribute]
        is_there = (catalog.folder / file).exists()
        raise AvomniError(
            f"the {attribute} of clips is asked for, and this release does not have it: "
            + (f"its {file} names none" if is_there else f"it has no {file}"),
            where=where,
            fix="leave it out, or set dataset.revision to a release that has it",
        )
    return values


def _codes(values: Values, names: Sequence[str | int], attribute: str, where: str) -> list[int]:
    """Codes of these names, ignoring case; raises for unknown names, listing all of them."""
    place = {str(name).casefold(): code for code, name in enumerate(values.names)}
    keys = {name: str(name).casefold() for name in names}
    unknown = []
    for name, key in keys.items():
        if key not in place:
            near = difflib.get_close_matches(key, place, n=1)
            hint = f" (do you mean {values.names[place[near[0]]]}?)" if near else ""
            unknown.append(f"{name!r}{hint}")
    # All hours of the day are valid, even if no clip was recorded then.
    if unknown and attribute != "hour":
        counts = values.counts(np.arange(len(values.codes)))
        raise AvomniError(
            f"no clip has the {attribute} {' or '.join(unknown)}; there are {_counted(counts)}",
            where=where,
            fix="name some of these, or leave it out",
        )
    return [place[key] for key in keys.values() if key in place]


def _counted(counts: dict[str | int, int]) -> str:
    """Format as `United States (155,360), Germany (7,012)`; integers are sorted."""
    names = sorted(counts) if all(isinstance(name, int) for name in counts) else counts
    return ", ".join(f"{name} ({counts[name]:,})" for name in names)


def _is_named(p: Params) -> bool:
    """Whether chunks or clips were requested by name, so that none may be left out."""
    clips = p.download.clips
    return p.download.chunks is not None or (clips.clip_ids is not None and clips.max_clips is None)


def rank(catalog: Catalog, p: Params) -> Ranking:
    """Order the chunks for selection, without requests to the hub.

    Named chunks keep their order; otherwise chunks are ordered by number, or, if clips are filtered
    or balanced, by their number of wanted clips.

    Raises:
        AvomniError: a named chunk or requested clips do not exist, or named clips are in more
            chunks than may be taken.
    """
    wanted, clips, named = wanted_clips(catalog, p), p.download.clips, p.download.chunks
    cells = catalog.chunk_idx[wanted.rows] * len(wanted.groups) + wanted.group
    counts = np.bincount(cells, minlength=len(catalog.chunks) * len(wanted.groups))
    counts = counts.reshape(-1, len(wanted.groups))
    quotas = counts.sum(axis=0)
    if clips.max_clips is not None:
        quotas = shares(quotas, clips.max_clips)
    num_taken = p.download.target_chunks if named is None else len(named)
    if named is not None:
        chunks, words = named, "named by download.chunks"
    elif not wanted.words and clips.balance_by is None:
        chunks, words = catalog.chunks[: num_taken + NUM_SPARE], "the first"
    else:
        order = most_wanted(counts, quotas, num_taken + NUM_SPARE)
        chunks = tuple(catalog.chunks[place] for place in order)
        words = "those with the most wanted clips"
        if _is_named(p):
            words = "they hold the clips named by download.clips.clip_ids"
    num_held = int(counts[[catalog.place(chunk) for chunk in chunks[:num_taken]]].sum())
    if clips.clip_ids is not None and clips.max_clips is None and num_held < len(wanted.rows):
        holding = [catalog.chunks[place] for place in np.flatnonzero(counts.any(axis=1))]
        setting = f"download.target_chunks to {len(holding)}"
        raise AvomniError(
            f"the {len(wanted.rows)} wanted clips lie in {len(holding)} chunks; "
            f"{num_taken if named is None else 'the named'} hold {num_held} of them",
            where="download.clips.clip_ids",
            fix=f"set {setting if named is None else f'download.chunks to {holding}'}, name fewer "
            "clips, or set download.clips.max_clips to take no more than there are",
        )
    return Ranking(chunks, wanted, counts, quotas, words)


def most_wanted(counts: np.ndarray, quotas: np.ndarray, num: int) -> list[int]:
    """Indices of at most `num` chunks, each of which adds the most clips to those before it.

    Clips count until their group's quota is full; when all quotas are full, the remaining chunks
    are ordered by their number of clips. Ties keep the order; chunks without wanted clips are left
    out.

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
    """Take the first chunks of the ranking within target_chunks and target_size_gb, or named ones.

    A chunk whose files the source lacks is skipped, unless it or one of its clips was named. With
    download.evict_raw, each chunk has to fit into the budget by itself.

    Args:
        sizes: The source's entries for files of candidate chunks and metadata; accessed chunk by
            chunk, only as far as needed.

    Raises:
        AvomniError: a named chunk or clip cannot be used, or the budget is too small for the named
            chunks or for a single chunk.
    """
    ranking = ranking or rank(catalog, p)
    wanted, target, budget = ranking.wanted, p.download.target_chunks, p.download.target_size_gb
    features, more = required_features(p), catalog.listed(optional_features(p))
    metadata = sum(sizes[path].size for path in catalog.metadata_files if path in sizes)
    total, taken, passed = metadata, dict[int, int](), dict[int, str]()
    held_by = dict[str, int]()  # path -> the first chunk that uses it; chunks may share files
    have, why = np.zeros_like(ranking.quotas), f"all there are (download.target_chunks: {target})"
    for chunk in ranking.chunks:
        paths, counts = catalog.files([chunk], features), ranking.counts[catalog.place(chunk)]
        fault = ""
        if missing := [path for path in paths if path not in sizes]:
            fault = f"the source lacks {missing[0]}"
        elif not counts.any() and wanted.words:
            fault = f"none of its clips is wanted ({wanted.words})"
        elif not counts.any():
            fault = f"none of its clips has all of {', '.join(features)}"
        if fault and _is_named(p):
            raise _unusable(catalog, p, chunk, fault, wanted.rows)
        if fault:
            passed[chunk] = fault
            continue
        paths += [path for path in catalog.files([chunk], more) if path in sizes]
        fresh = [path for path in paths if p.download.evict_raw or path not in held_by]
        num_bytes = sum(sizes[path].size for path in fresh)
        with_it = (metadata if p.download.evict_raw else total) + num_bytes
        if with_it > budget * 1e9:
            if _is_named(p) or not taken:
                raise _too_small(p, chunk, with_it / 1e9)
            if not p.download.evict_raw:
                why = f"as many as fit download.target_size_gb: {budget:g} "
                why += f"(chunk {chunk} would make it {with_it / 1e9:.2f} GB)"
                break
            passed[chunk] = f"it alone takes {with_it / 1e9:.2f} GB"
            continue
        taken[chunk] = num_bytes
        held_by |= dict.fromkeys(fresh, chunk)
        total, have = total + num_bytes, have + counts
        is_enough = bool((have >= ranking.quotas).all())
        if p.download.chunks is None and (is_enough or len(taken) == target):
            if is_enough and p.download.clips.max_clips is not None:
                why = f"enough for download.clips.max_clips: {p.download.clips.max_clips}"
            elif len(taken) == target:
                why = f"by download.target_chunks: {target}"
            break
    over = [f"chunk {chunk} is passed over: {fault}" for chunk, fault in passed.items()]
    if not taken:
        raise AvomniError(
            "no chunk can be used: "
            + ("; ".join(over[:3]) or f"no clip has all of {', '.join(features)}"),
            where=str(catalog.folder),
            fix="check dataset.revision and vision.cameras",
        )
    rows, words = _picked(catalog, wanted, tuple(taken), p)
    if p.download.chunks is None:
        # Chunks from which no clip was drawn need not be fetched.
        used = set(np.unique(catalog.chunk_idx[rows]).tolist())
        unused = [chunk for chunk in taken if catalog.place(chunk) not in used]
        total -= sum(taken.pop(chunk) for chunk in unused)
    reason = ranking.words if _is_named(p) else f"{ranking.words}, {why}"
    return ChunkChoice(tuple(taken), "; ".join([reason, *words, *over]), total, passed, rows)


def _unusable(
    catalog: Catalog, p: Params, chunk: int, fault: str, wanted: np.ndarray
) -> AvomniError:
    where, fix = "download.chunks", "name other chunks, or leave it out to take the first"
    if p.download.chunks is None:
        where, fix = "download.clips.clip_ids", "leave the clips of this chunk out"
        inside = catalog.clips.ids(wanted[catalog.chunk_idx[wanted] == catalog.place(chunk)])
        fault += f"; of the wanted clips it holds {', '.join(inside)}"
    return AvomniError(f"chunk {chunk} cannot be used: {fault}", where=where, fix=fix)


def _too_small(p: Params, chunk: int, gigabytes: float) -> AvomniError:
    taken = f"all named chunks up to {chunk}" if _is_named(p) else f"even the first chunk, {chunk}"
    if p.download.evict_raw:
        taken = f"alone, chunk {chunk}"
    return AvomniError(
        f"{taken}, with {cameras.grid(p.vision.cameras)} and metadata, take {gigabytes:.4g} GB; "
        f"the budget is {p.download.target_size_gb:g} GB",
        where="download.target_size_gb",
        fix=f"set it to {gigabytes * 1.001:.4g} or more, or take fewer chunks or cameras",
    )


def _picked(
    catalog: Catalog, wanted: Wanted, chunks: tuple[int, ...], p: Params
) -> tuple[np.ndarray, list[str]]:
    """The rows of the clips to use, ordered by chunk, and remarks on their selection."""
    clips = p.download.clips
    order = np.full(len(catalog.chunks), -1)
    order[[catalog.place(chunk) for chunk in chunks]] = np.arange(len(chunks))
    is_here = order[catalog.chunk_idx[wanted.rows]] >= 0
    rows, group = wanted.rows[is_here], wanted.group[is_here]
    words = [f"of their clips {len(rows)} are wanted: {wanted.words}"] if wanted.words else []
    if clips.balance_by is not None or clips.max_clips is not None:
        share = shares(np.bincount(group, minlength=len(wanted.groups)), clips.max_clips)
        is_picked = pick(catalog.clips.ids(rows), group, share, p.run.seed)
        rows = rows[is_picked]
        words.append(f"{len(rows)} of {len(is_picked)} drawn by run.seed: {p.run.seed}")
        if clips.balance_by is not None:
            parts = (f"{share[place]} {wanted.groups[place]}" for place in np.flatnonzero(share))
            words.append(f"balanced by {clips.balance_by}: {', '.join(parts)}")
    return rows[np.lexsort((rows, order[catalog.chunk_idx[rows]]))], words


def shares(sizes: np.ndarray, total: int | None) -> np.ndarray:
    """How many to take of each group, as equally as possible.

    Groups that are large enough get the same number, or one more; smaller groups are taken whole.

    Args:
        sizes: (groups,) int, size of each group.
        total: Maximum sum; None takes as many of each as the smallest non-empty group has.
    """
    if total is None:
        return np.minimum(sizes, min(sizes[sizes > 0], default=0))
    # Find the common level at which all larger groups are cut off.
    rising = np.sort(sizes)
    levels = (total - (np.cumsum(rising) - rising)) // np.arange(len(sizes), 0, -1)
    unfilled = np.flatnonzero(levels < rising)
    taken = np.minimum(sizes, levels[unfilled[0]]) if len(unfilled) else sizes.copy()
    taken[np.flatnonzero(sizes > taken)[: total - int(taken.sum())]] += 1
    return taken


def pick(clip_ids: Sequence[str], group: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """(clips,) bool: clips drawn from each group by a hash of name and seed.

    A clip's hash does not depend on other clips, so a growing set keeps its picks.

    Args:
        group: (clips,) int, each clip's group.
        wanted: (groups,) int number to draw from each group, from `shares`.
    """
    is_taken = np.zeros(len(group), bool)
    for place in np.flatnonzero(wanted):
        rows = np.flatnonzero(group == place)
        if len(rows) > wanted[place]:
            keys = [hashlib.sha256(f"{seed}/{clip_ids[row]}".encode()).digest() for row in rows]
            rows = rows[sorted(range(len(rows)), key=keys.__getitem__)[: wanted[place]]]
        is_taken[rows] = True
    return is_taken
