"""In which order chunks are to be taken, told by the catalog alone: nothing is asked of the hub."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from avomni_lib.dataset.catalog import Catalog, optional_features, required_features
from avomni_lib.dataset.select import balance, sizes
from avomni_lib.dataset.select import filters as wanted
from avomni_lib.dataset.select.filters import Wanted
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

# Weighed beyond target_chunks, to take the place of chunks that lack files.
NUM_SPARE = 8


@dataclass(frozen=True, eq=False)
class Ranking:
    """The chunks that may be taken, the best first.

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


def candidates(catalog: Catalog, p: Params) -> tuple[int, ...]:
    """The chunks to weigh: the named ones, else the first, or the best where clips are chosen.

    Raises:
        AvomniError: as `rank`.
    """
    return rank(catalog, p).chunks


def rank(catalog: Catalog, p: Params) -> Ranking:
    """Put the chunks in the order in which to take them.

    Where clips are chosen, chunks with the most wanted clips a GB come first (by the sizes that
    are published); or with the most wanted clips, where that brings more under target_chunks.

    Raises:
        AvomniError: a named chunk does not exist, clips that are asked for do not, or named clips
            lie in more chunks than may be taken.
    """
    found = wanted.find(catalog, p)
    limit, num_groups = p.download.clips.max_clips, len(found.groups)
    cells = catalog.chunk_idx[found.rows] * num_groups + found.group
    counts = np.bincount(cells, minlength=len(catalog.chunks) * num_groups)
    counts = counts.reshape(-1, num_groups)
    total = counts.sum(axis=0)
    quotas = total if limit is None else balance.shares(total, limit)
    num_taken = p.download.target_chunks
    if p.download.chunks is not None:
        chunks, words = p.download.chunks, "named by download.chunks"
        num_taken = len(chunks)
        for chunk in chunks:
            catalog.place(chunk)
    elif not found.words and p.download.clips.balance_by is None:
        chunks, words = catalog.chunks[: num_taken + NUM_SPARE], "the first"
    else:
        chunks, words = _best_chunks(catalog, counts, quotas, p)
    ranking = Ranking(chunks, found, counts, quotas, words)
    _need_all_named(catalog, ranking, chunks[:num_taken], p)
    return ranking


def _best_chunks(
    catalog: Catalog, counts: np.ndarray, quotas: np.ndarray, p: Params
) -> tuple[tuple[int, ...], str]:
    """The chunks and why these: of two orders the one that brings more clips, or fewer GB."""
    num_taken = p.download.target_chunks
    features = (*required_features(p), *catalog.listed(optional_features(p)))
    gigabytes = sizes.chunk_bytes(catalog, features, p) / 1e9
    budget = np.inf if p.download.evict_raw else p.download.target_size_gb
    orders = {
        "those with the most wanted clips a GB": np.maximum(gigabytes, 1e-9),
        "those with the most wanted clips": np.ones(len(gigabytes)),
    }
    best, best_score, best_words = np.zeros(0, int), (-1, 0.0), ""
    for words, costs in orders.items():
        order = greedy(counts, costs, quotas, num_taken + NUM_SPARE)
        score = _score(order[:num_taken], counts, gigabytes, quotas, budget)
        if score > best_score:
            best, best_score, best_words = order, score, words
    return tuple(catalog.chunks[place] for place in best), best_words


def greedy(counts: np.ndarray, costs: np.ndarray, quotas: np.ndarray, num: int) -> np.ndarray:
    """(≤ num,) places of chunks, each the one that brings most for its cost after those before it.

    Clips count until their group's quota is full; when all are, the rest follow by all their clips.
    """
    gains = counts.sum(axis=1) / costs
    order: list[int] = []
    if (quotas < counts.sum(axis=0)).any():
        left = quotas.copy()
        # What a chunk brings only falls: the first one of old figures that is still first is best.
        heap = [(-gain, place) for place, gain in enumerate(gains.tolist()) if gain]
        heapq.heapify(heap)
        while heap and len(order) < num and left.any():
            place = heap[0][1]
            brings = np.minimum(counts[place], left)
            heapq.heapreplace(heap, (-brings.sum() / costs[place], place))
            if heap[0][1] == place:
                heapq.heappop(heap)
                order.append(place)
                left -= brings
        gains[order] = 0.0
    rest = np.argsort(-gains, kind="stable")[: np.count_nonzero(gains)]
    return np.concatenate([np.array(order, int), rest])[:num]


def _score(
    order: np.ndarray, counts: np.ndarray, gigabytes: np.ndarray, quotas: np.ndarray, budget: float
) -> tuple[int, float]:
    """What an order brings within the budget: clips, and minus the GB that they cost."""
    have = np.minimum(np.cumsum(counts[order], axis=0), quotas).sum(axis=1)
    cost = np.cumsum(gigabytes[order])
    fit = np.flatnonzero(cost <= budget)
    if not len(fit):
        return 0, 0.0
    # Where the quotas are full no further chunk is taken.
    last = min(int(fit[-1]), int(np.searchsorted(have, have[fit[-1]])))
    return int(have[last]), -float(cost[last])


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
