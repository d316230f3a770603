"""The clips of a revision by name: which chunk and split each belongs to."""

from __future__ import annotations

import bisect
import difflib
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avomni_lib.dataset import names
from avomni_lib.dataset.metadata import encode
from avomni_lib.dataset.tables import (
    ClipTable,
    is_null,
    number_column,
    numbers,
    places,
    read_table,
    truths,
)
from avomni_lib.errors import AvomniError

INDEX_FILE = "clip_index.parquet"
SPLITS = ("train", "val", "test")
MAX_CHUNK = 10**6


class ClipIndex:
    """clip_index.parquet as columns: a clip is a row.

    Attributes:
        path: Of the file.
        clip_ids: (clips,) text; one that is no plain name stands as `names.shown` shows it, so
            that it cannot reach a path.
        faults: clip_id -> why it is no plain name, of those.
        is_named: (clips,) bool whether the clip's id is a plain name.
        chunk: (clips,) int64 numbers.
        split: (clips,) int32 places in `SPLITS`: the data set's own column, else by the clip's id.
        is_valid: (clips,) bool, as marked at the source.
    """

    def __init__(self, path: Path):
        """Read it.

        Raises:
            AvomniError: it is missing, damaged or contradicts itself.
        """
        self.path, where = path, str(path)
        table = ClipTable(path)
        if not len(table.clip_ids):
            raise AvomniError("the clip index lists no clip", where=where)
        self.clip_ids, self.is_named, self.faults = _checked(table.clip_ids)
        # Sorted, to find a clip by its name; and two of one name lie side by side.
        self._order = pc.array_sort_indices(self.clip_ids)
        self._sorted = self.clip_ids.take(self._order)
        twice = truths(pc.equal(self._sorted[1:], self._sorted[:-1]))
        twice &= self.is_named[numbers(self._order)[1:]]
        if twice.any():
            clip_id = self._sorted[int(np.argmax(twice))]
            count = pc.sum(pc.equal(self.clip_ids, clip_id)).as_py()
            raise AvomniError(f"clip {clip_id} is listed {count} times", where=where)
        chunk = number_column(read_table(path, where, ["chunk"]), "chunk", where)
        # Not what NaN, a fraction or a negative number gives.
        if not ((chunk >= 0) & (chunk < MAX_CHUNK) & (chunk == np.floor(chunk))).all():
            raise AvomniError(
                "column chunk holds something else than numbers of chunks", where=where
            )
        self.chunk = chunk.astype(np.int64)
        self.split = self._splits(table)
        self.is_valid = np.ones(len(self), bool)
        if "clip_is_valid" in table.names:
            self.is_valid = table.truths("clip_is_valid")

    def __len__(self) -> int:
        return len(self.clip_ids)

    def ids(self, rows: np.ndarray) -> tuple[str, ...]:
        """The names of the clips in these rows."""
        return tuple(self.clip_ids.take(places(rows)).to_pylist())

    def rows(self, clip_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64 the rows of these clips; -1 for those that are not listed."""
        rows = pc.index_in(pa.array(clip_ids, pa.string()), value_set=self.clip_ids)
        return np.where(is_null(rows), -1, numbers(rows))

    def row_of(self, clip_id: str) -> int:
        """The row of one clip.

        Raises:
            AvomniError: it is not listed; the error names the nearest.
        """
        place = _place(self._sorted, clip_id)
        if place == len(self) or self._sorted[place].as_py() != clip_id:
            near = self.nearest(clip_id)
            raise AvomniError(
                f"unknown clip {clip_id}" + (f"; the nearest is {near}" if near else ""),
                where=str(self.path),
            )
        return self._order[place].as_py()

    def nearest(self, clip_id: str) -> str | None:
        """The clip whose name is most like this one, or None if none is like it.

        A name with one mistake shares its beginning or its end with the right one, so that the two
        are neighbours among the names sorted forwards or backwards.
        """
        near = _neighbours(self._sorted, clip_id)
        near += [name[::-1] for name in _neighbours(self._sorted_backwards, clip_id[::-1])]
        return next(iter(difflib.get_close_matches(clip_id, near, n=1)), None)

    @functools.cached_property
    def _sorted_backwards(self) -> pa.StringArray:
        backwards = pc.utf8_reverse(self.clip_ids)
        return backwards.take(pc.array_sort_indices(backwards))

    def _splits(self, table: ClipTable) -> np.ndarray:
        codes = np.full(len(self), -1, np.int32)
        if "split" in table.names:
            stored = encode(table.column("split"))
            unknown = sorted(set(stored.names) - set(SPLITS))
            if unknown:
                raise AvomniError(f"unknown split {unknown[0]!r}", where=str(self.path))
            codes = np.array([*map(SPLITS.index, stored.names), -1], np.int32)[stored.codes]
        without = np.flatnonzero(codes < 0)
        by_hash = [SPLITS.index(split_by_hash(clip_id)) for clip_id in self.ids(without)]
        codes[without] = by_hash
        return codes


def split_by_hash(clip_id: str) -> str:
    """For clips without a split at the source: 80 % train, 10 % val, 10 % test, by id alone."""
    share = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def _checked(clip_ids: pa.StringArray) -> tuple[pa.StringArray, np.ndarray, dict[str, str]]:
    """`clip_ids`, `is_named` and `faults` of the ids as a table lists them."""
    is_named = truths(pc.match_substring_regex(clip_ids, rf"\A{names.ORDINARY}\z")).copy()
    shown, faults = {}, {}
    for row in np.flatnonzero(~is_named).tolist():
        clip_id = clip_ids[row].as_py()
        fault = names.name_fault(clip_id)
        is_named[row] = fault is None
        if fault is not None:
            shown[row] = names.shown(clip_id)
            faults[shown[row]] = f"its id {shown[row]} is no plain name: {fault}"
    if shown:
        texts = clip_ids.to_pylist()
        for row, text in shown.items():
            texts[row] = text
        clip_ids = pa.array(texts, pa.string())
    return clip_ids, is_named, faults


def _place(sorted_ids: pa.StringArray, name: str) -> int:
    """Where a name is, or would be, among sorted ones (by code point, as UTF-8's bytes are)."""
    return bisect.bisect_left(range(len(sorted_ids)), name, key=lambda row: sorted_ids[row].as_py())


def _neighbours(sorted_ids: pa.StringArray, name: str, reach: int = 2) -> list[str]:
    place = _place(sorted_ids, name)
    return sorted_ids[max(place - reach, 0) : place + reach].to_pylist()
