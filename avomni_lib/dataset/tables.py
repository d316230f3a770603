"""Parquet tables of the data set; errors are AvomniErrors that name the file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avomni_lib.dataset.limits import MAX_TIME_US
from avomni_lib.errors import AvomniError


def read_table(
    source: Path | bytes,
    where: str,
    columns: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> pa.Table:
    """Read a parquet file or its bytes; a table of more than `max_rows` rows is refused unread."""
    with opened(source, where) as file:
        if max_rows is not None and file.metadata.num_rows > max_rows:
            reason = f"the table has {file.metadata.num_rows:,} rows; {max_rows:,} are the most"
            raise AvomniError(reason, where=where)
        # Single-threaded, as clips are read in several processes.
        return file.read(columns, use_threads=False)


@contextlib.contextmanager
def opened(source: Path | bytes, where: str) -> Iterator[pq.ParquetFile]:
    """Open a parquet file or its bytes; errors of the block are AvomniErrors."""
    file = pa.BufferReader(source) if isinstance(source, bytes) else source
    with named_errors(where), pq.ParquetFile(file) as parquet:
        yield parquet


@contextlib.contextmanager
def named_errors(where: str) -> Iterator[None]:
    """Turn errors of reading a parquet file into AvomniErrors that name it."""
    try:
        yield
    except FileNotFoundError:
        raise AvomniError("file not found", where=where) from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvomniError(f"not a readable parquet file: {reason}", where=where) from None


def key_column(table: pa.Table, name: str, where: str, level: int = 0) -> list[str]:
    """A column of text that pandas may have stored as an index, with or without its name.

    Args:
        level: The column's position in an index of several columns.
    """
    column = _text(table, _stored_name(table.column_names, name, where, level), where)
    return _readable(column.combine_chunks()).to_pylist()


def text_column(table: pa.Table, name: str, where: str) -> list[str | None]:
    """A column of text, with None for missing values."""
    try:
        return _text(table, name, where).to_pylist()
    except UnicodeDecodeError:
        raise AvomniError(f"column {name} holds bytes that are no text", where=where) from None


def _text(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    column = column_of(table, name, where)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # A column without any value has the type null.
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise AvomniError(f"column {name} holds {kind}, not text", where=where)
    return column


def _stored_name(columns: Sequence[str], name: str, where: str, level: int = 0) -> str:
    for stored in (name, f"__index_level_{level}__"):
        if stored in columns:
            return stored
    raise AvomniError(f"no column {name}; there are {', '.join(columns)}", where=where)


def column_of(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """A column; raises unless there is exactly one of this name."""
    count = table.column_names.count(name)
    if count != 1:
        reason = f"{count} columns {name}" if count else f"no column {name}"
        raise AvomniError(f"{reason}; there are {', '.join(table.column_names)}", where=where)
    return table[name]


def number_column(table: pa.Table, name: str, where: str) -> np.ndarray:
    """A column of numbers; missing floats become NaN, missing integers are an error."""
    column = column_of(table, name, where)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise AvomniError(f"column {name} holds {column.type}, not numbers", where=where)
    if column.null_count and pa.types.is_integer(column.type):
        raise AvomniError(f"{column.null_count} values of {name} are missing", where=where)
    return column.to_numpy()


def time_column(table: pa.Table, name: str, where: str) -> np.ndarray:
    """(N,) int64 µs: a column of times, stored as integers or floats."""
    values = number_column(table, name, where)
    # Checked before the conversion, in which values beyond int64 would wrap around.
    for row in np.flatnonzero(~((values <= MAX_TIME_US) & (values >= -MAX_TIME_US)))[:1]:
        raise AvomniError(f"{name} is {values[row]} at row {row}: no time in µs", where=where)
    return np.rint(values).astype(np.int64)


class ClipTable:
    """A table with one row per clip, in any order; columns are returned in the order of `clip_ids`.

    Its column or index `clip_id` names the clips. Without `clip_ids`, the table's order is kept.
    At first only the file's footer is read; columns are read on access.
    """

    def __init__(self, path: Path, clip_ids: pa.StringArray | None = None):
        self.path, self._wanted = path, clip_ids
        with opened(path, str(path)) as file:
            self.names: tuple[str, ...] = tuple(file.schema_arrow.names)
        self._key = _stored_name(self.names, "clip_id", str(path))

    @functools.cached_property
    def clip_ids(self) -> pa.StringArray:
        """The clips listed in the table, in the table's order."""
        column = self._read(self._key)
        if column.null_count:
            raise AvomniError(f"{column.null_count} rows have no clip_id", where=str(self.path))
        try:
            return _readable(column.cast(pa.string()))
        except pa.ArrowException:
            raise AvomniError(
                f"clip_id holds {column.type}, not text", where=str(self.path)
            ) from None

    @functools.cached_property
    def _rows(self) -> pa.Array | None:
        """The row of each wanted clip (null: not listed); None if the order is the same."""
        if self._wanted is None or self._wanted.equals(self.clip_ids):
            return None
        return pc.index_in(self._wanted, value_set=self.clip_ids)

    def column(self, name: str) -> pa.Array:
        """One column, with null for clips that are not listed."""
        values = self._read(name)
        return values if self._rows is None else values.take(self._rows)

    def truths(self, name: str) -> np.ndarray:
        """A column as (clips,) bool; null and clips that are not listed are False."""
        values = self.column(name)
        try:
            return values.cast(pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False)
        except pa.ArrowException:
            raise AvomniError(
                f"column {name} holds {values.type}, not true or false", where=str(self.path)
            ) from None

    def _read(self, name: str) -> pa.Array:
        column = read_table(self.path, str(self.path), [name])[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        column = column.combine_chunks()
        return _readable(column) if pa.types.is_string(column.type) else column


def _readable(texts: pa.Array) -> pa.Array:
    """Make texts valid UTF-8; invalid bytes are written as `\\xff`."""
    try:
        texts.validate(full=True)
        return texts
    except pa.ArrowInvalid:
        binary = texts.cast(pa.large_binary()).to_pylist()
        plain = [b if b is None else b.decode("utf-8", "backslashreplace") for b in binary]
        return pa.array(plain, pa.string())
