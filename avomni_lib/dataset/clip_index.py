"""The clip index: chunk, split, place, time, vehicle and events of each clip."""

from __future__ import annotations

import bisect
import difflib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avomni_lib.dataset import names
from avomni_lib.dataset.tables import ClipTable, number_column, read_table
from avomni_lib.errors import AvomniError

INDEX_FILE = "clip_index.parquet"
SPLITS = ("train", "val", "test")
MAX_CHUNK = 10**6
COLLECTION_FILE = "metadata/data_collection.parquet"
REASONING_FILE = "reasoning/ood_reasoning.parquet"  # since the release after 26.03; few clips
# Attribute -> its table and column.
SOURCES: Mapping[str, tuple[str, str]] = {
    "country": (COLLECTION_FILE, "country"),
    "month": (COLLECTION_FILE, "month"),
    "hour": (COLLECTION_FILE, "hour_of_day"),
    "platform": (COLLECTION_FILE, "platform_class"),
    "event_cluster": (REASONING_FILE, "event_cluster"),
}


@dataclass(frozen=True, eq=False)
class Values:
    """An attribute of all clips: `codes` (clips,) int32 index the sorted values `names`; -1 is
    unknown."""

    names: tuple[str | int, ...]
    codes: np.ndarray

    def of(self, row: int) -> str | int | None:
        code = int(self.codes[row])
        return None if code < 0 else self.names[code]

    def counts(self, rows: np.ndarray) -> dict[str | int, int]:
        """Value -> number of clips among these rows (or with this mask), largest first."""
        codes = self.codes[rows]
        counts = np.bincount(codes[codes >= 0], minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return {self.names[place]: int(counts[place]) for place in order if counts[place]}


@dataclass(frozen=True)
class Event:
    """What the driver does from `start_us` (clip's clock) and why, written by annotators."""

    start_us: int
    text: str


def encode(column: pa.Array) -> Values:
    """Encode a column as `Values`; null, NaN and "" are unknown."""
    import pandas as pd

    values = column.to_pandas()
    if pd.api.types.is_numeric_dtype(values):
        # pandas stores whole numbers with gaps as floats.
        values = np.trunc(values.where(np.isfinite(values.astype(float)))).astype("Int64")
    else:
        values = values.where(values.isna(), values.astype(str)).replace("", None)
    codes, names = pd.factorize(values, sort=True)
    return Values(tuple(names.tolist()), codes.astype(np.int32))


class ClipIndex:
    """clip_index.parquet as columns: a clip is a row.

    Attributes:
        path: Of the file.
        clip_ids: (clips,) text; an id that is no plain name is replaced by `names.shown`, so that
            it cannot become part of a path.
        faults: clip_id -> why it is no plain name, for these.
        is_named: (clips,) bool whether the clip's id is a plain name.
        chunk: (clips,) int64 numbers.
        split: (clips,) int32 index into `SPLITS`: the data set's column, else by the clip's id.
        is_valid: (clips,) bool, as marked at the source.
    """

    def __init__(self, folder: Path):
        import pandas as pd

        self._folder, self.path = folder, folder / INDEX_FILE
        self._tables: dict[str, ClipTable] = {}
        self._values: dict[str, Values] = {}
        path, where = self.path, str(self.path)
        table = ClipTable(path)
        if not len(table.clip_ids):
            raise AvomniError("the clip index lists no clip", where=where)
        self.clip_ids, self.is_named, self.faults = _checked(table.clip_ids)
        self._names = pd.Index(self.clip_ids.to_pandas())
        twice = self._names[self._names.duplicated() & self.is_named]
        if len(twice):
            count = int((self._names == twice[0]).sum())
            raise AvomniError(f"clip {twice[0]} is listed {count} times", where=where)
        chunk = number_column(read_table(path, where, ["chunk"]), "chunk", where)
        # Also refuses NaN, fractions and negative numbers.
        if not ((chunk >= 0) & (chunk < MAX_CHUNK) & (chunk == np.floor(chunk))).all():
            reason = "column chunk holds something else than numbers of chunks"
            raise AvomniError(reason, where=where)
        self.chunk = chunk.astype(np.int64)
        self.split = np.full(len(self), -1, np.int32)
        if "split" in table.names:
            stored = encode(table.column("split"))
            if unknown := sorted(set(stored.names) - set(SPLITS)):
                raise AvomniError(f"unknown split {unknown[0]!r}", where=where)
            places = np.array([*map(SPLITS.index, stored.names), -1], np.int32)
            self.split = places[stored.codes]
        without = np.flatnonzero(self.split < 0)
        self.split[without] = [SPLITS.index(split_by_hash(clip)) for clip in self.ids(without)]
        is_marked = "clip_is_valid" in table.names
        self.is_valid = table.truths("clip_is_valid") if is_marked else np.ones(len(self), bool)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def ids(self, rows: np.ndarray) -> tuple[str, ...]:
        """The names of the clips in these rows."""
        return tuple(self.clip_ids.take(pa.array(rows, pa.int64())).to_pylist())

    def rows(self, clip_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64 rows of these clips; -1 for clips that are not listed."""
        rows = pc.index_in(pa.array(clip_ids, pa.string()), value_set=self.clip_ids)
        return rows.fill_null(-1).to_numpy().astype(np.int64)

    def row_of(self, clip_id: str) -> int:
        """The row of one clip; the error for an unknown clip names the most similar one."""
        try:
            # An integer; or a slice or mask if several invalid ids have the same replacement.
            rows = self._names.get_loc(clip_id)
            return int(np.arange(len(self))[rows].min())
        except KeyError:
            near = self.nearest(clip_id)
            raise AvomniError(
                f"unknown clip {clip_id}" + (f"; the nearest is {near}" if near else ""),
                where=str(self.path),
            ) from None

    def nearest(self, clip_id: str) -> str | None:
        """The clip with the most similar name, or None if none is similar.

        A name with one mistake shares its beginning or its end with the correct one, so the two are
        neighbours among the names sorted forwards or backwards.
        """
        near: list[str] = []
        for step, ordered in zip((1, -1), self._sorted, strict=True):
            place = bisect.bisect_left(ordered, clip_id[::step])
            near += [name[::step] for name in ordered[max(place - 2, 0) : place + 2]]
        return next(iter(difflib.get_close_matches(clip_id, near, n=1)), None)

    @functools.cached_property
    def _sorted(self) -> tuple[list[str], list[str]]:
        """The sorted names, and the sorted reversed names."""
        clip_names = self.clip_ids.to_pylist()
        return sorted(clip_names), sorted(name[::-1] for name in clip_names)

    def values(self, attribute: str) -> Values:
        """`split` or one of `SOURCES`, for all clips; empty if the release lacks it."""
        if attribute == "split":
            return Values(SPLITS, self.split)
        if attribute not in self._values:
            stored = self._column(*SOURCES[attribute])
            nothing = Values((), np.full(len(self), -1, np.int32))
            self._values[attribute] = nothing if stored is None else encode(stored)
        return self._values[attribute]

    def events(self, clip_id: str) -> tuple[Event, ...]:
        """Events of one clip by time; stored as a JSON list of {event_start_timestamp, coc}."""
        row = self.row_of(clip_id)
        text = None if self._events is None else self._events[row].as_py()
        try:
            events = [
                Event(int(event["event_start_timestamp"]), " ".join(str(event["coc"]).split()))
                for event in json.loads(text or "[]") or ()
            ]
        except (ValueError, TypeError, KeyError) as error:
            where = f"clip {clip_id} in {self._folder / REASONING_FILE}"
            raise AvomniError(f"its events are no list of events: {error!r}", where=where) from None
        return tuple(sorted(events, key=lambda event: event.start_us))

    @functools.cached_property
    def _events(self) -> pa.Array | None:
        return self._column(REASONING_FILE, "events")

    def _column(self, file: str, column: str) -> pa.Array | None:
        """A column of a table about the clips; None if the release lacks it."""
        path = self._folder / file
        if not path.exists():
            return None
        if file not in self._tables:
            self._tables[file] = ClipTable(path, self.clip_ids)
        table = self._tables[file]
        return table.column(column) if column in table.names else None


def split_by_hash(clip_id: str) -> str:
    """Split of clips without one at the source: 80 % train, 10 % val, 10 % test, by id alone."""
    share = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def _checked(clip_ids: pa.StringArray) -> tuple[pa.StringArray, np.ndarray, dict[str, str]]:
    """`ClipIndex.clip_ids`, `is_named` and `faults` for the ids of a table."""
    is_named = np.array(pc.match_substring_regex(clip_ids, rf"\A{names.ORDINARY}\z"))
    texts, faults = None, {}
    for row in np.flatnonzero(~is_named).tolist():
        clip_id = clip_ids[row].as_py()
        fault = names.name_fault(clip_id)
        is_named[row] = fault is None
        if fault is not None:
            texts = texts or clip_ids.to_pylist()
            texts[row] = shown = names.shown(clip_id)
            faults[shown] = f"its id {shown} is no plain name: {fault}"
    return pa.array(texts, pa.string()) if texts else clip_ids, is_named, faults
