"""What the data set's tables say of each clip beside its sensors: where, when, by which vehicle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from avomni_lib.dataset.tables import ClipTable, is_null, numbers
from avomni_lib.errors import AvomniError

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
    """An attribute of every clip, each as a place in the list of names.

    Attributes:
        names: All values that occur, rising.
        codes: (clips,) int32 places in `names`; -1 where nothing is known of a clip.
    """

    names: tuple[str | int, ...]
    codes: np.ndarray

    def of(self, row: int) -> str | int | None:
        code = int(self.codes[row])
        return None if code < 0 else self.names[code]

    def counts(self, rows: np.ndarray) -> dict[str | int, int]:
        """Name -> clips among these rows (or where this mask holds), the most first."""
        codes = self.codes[rows]
        counts = np.bincount(codes[codes >= 0], minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return {self.names[place]: int(counts[place]) for place in order if counts[place]}


@dataclass(frozen=True)
class Event:
    """A moment of a clip that people wrote about.

    Attributes:
        start_us: When it begins, on the clip's clock.
        text: What the driver does then, and why.
    """

    start_us: int
    text: str


def encode(column: pa.Array) -> Values:
    """A column as places in the sorted list of its values; null, NaN and "" are not known."""
    coded = column.dictionary_encode()
    values = [_plain(value) for value in coded.dictionary.to_pylist()]
    names = sorted({value for value in values if value is not None})
    place = {name: idx for idx, name in enumerate(names)}
    # The last entry is for null.
    codes = np.array([*(place.get(value, -1) for value in values), -1], np.int32)
    stored = np.where(is_null(coded.indices), len(values), numbers(coded.indices))
    return Values(tuple(names), codes[stored])


def _plain(value: object) -> str | int | None:
    """pandas stores whole numbers with gaps as floats."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float | int):
        return int(value)
    return str(value)


class Metadata:
    """The attributes of the clips of a catalog; a table is opened when first asked for.

    Args:
        folder: In the data set's layout; a release may lack each of the tables.
        clip_ids: The catalog's clips.
    """

    def __init__(self, folder: Path, clip_ids: pa.StringArray):
        self._folder, self._clip_ids = folder, clip_ids
        self._tables: dict[str, ClipTable | None] = {}
        self._values: dict[str, Values] = {}
        self._events: pa.Array | None = None

    def values(self, attribute: str) -> Values:
        """Of every clip; without names where the release does not say.

        Raises:
            AvomniError: the table is damaged.
        """
        if attribute not in self._values:
            self._values[attribute] = self._read(*SOURCES[attribute])
        return self._values[attribute]

    def events(self, clip_id: str, row: int) -> tuple[Event, ...]:
        """Those of one clip, by time: a JSON list of {event_start_timestamp, coc}, or null.

        Raises:
            AvomniError: the table or the clip's list is damaged.
        """
        if self._events is None:
            column = self._column(REASONING_FILE, "events")
            self._events = pa.nulls(len(self._clip_ids), pa.string()) if column is None else column
        text = self._events[row].as_py()
        try:
            events = [
                Event(int(event["event_start_timestamp"]), " ".join(str(event["coc"]).split()))
                for event in json.loads(text or "[]") or ()
            ]
        except (ValueError, TypeError, KeyError) as error:
            where = f"clip {clip_id} in {self._folder / REASONING_FILE}"
            raise AvomniError(f"its events are no list of events: {error!r}", where=where) from None
        return tuple(sorted(events, key=lambda event: event.start_us))

    def _read(self, file: str, column: str) -> Values:
        stored = self._column(file, column)
        if stored is None:
            return Values((), np.full(len(self._clip_ids), -1, np.int32))
        return encode(stored)

    def _column(self, file: str, column: str) -> pa.Array | None:
        if file not in self._tables:
            path = self._folder / file
            self._tables[file] = ClipTable(path, self._clip_ids) if path.exists() else None
        table = self._tables[file]
        return None if table is None or column not in table.names else table.column(column)
