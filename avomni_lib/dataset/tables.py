"""Parquet tables of the data set. What is wrong with one is an AvomniError that names the file."""

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
    """A parquet file, or its bytes; more than `max_rows` are refused before they are read."""
    with opened(source, where) as file:
        if max_rows is not None and file.metadata.num_rows > max_rows:
            reason = f"the table has {file.metadata.num_rows:,} rows; {max_rows:,} are the most"
            raise AvomniError(reason, where=where)
        # One thread: clips are read in several processes, each with its own.
        return file.read(columns, use_threads=False)


@contextlib.contextmanager
def opened(source: Path | bytes, where: str) -> Iterator[pq.ParquetFile]:
    """A parquet file, or its bytes; what keeps it from being read is an AvomniError."""
    try:
        with pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source) as f:
            yield f
    except FileNotFoundError:
        raise AvomniError("file not found", where=where) from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvomniError(f"not a readable parquet file: {reason}", where=where) from None


def key_column(table: pa.Table, name: str, where: str, level: int = 0) -> list[str]:
    """A column of text that pandas may have stored as the index, with or without its name; `level`
    is its place in an index of several columns."""
    column = _text(table, _stored_name(table.column_names, name, where, level), where)
    return _readable(column.combine_chunks()).to_pylist()


def text_column(table: pa.Table, name: str, where: str) -> list[str | None]:
    """A column of text, with None for what is missing."""
    try:
        return _text(table, name, where).to_pylist()
    except UnicodeDecodeError:
        raise AvomniError(f"column {name} holds bytes that are no text", where=where) from None


def _text(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    column = column_of(table, name, where)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # A column without any value has a type of its own.
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
    """A column; an error where there is none of this name, or more than one."""
    count = table.column_names.count(name)
    if count != 1:
        reason = f"{count} columns {name}" if count else f"no column {name}"
        raise AvomniError(f"{reason}; there are {', '.join(table.column_names)}", where=where)
    return table[name]


def number_column(table: pa.Table, name: str, where: str) -> np.ndarray:
    """A column of numbers; missing values of floats become NaN, those of integers are an error."""
    column = column_of(table, name, where)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise AvomniError(f"column {name} holds {column.type}, not numbers", where=where)
    if column.null_count and pa.types.is_integer(column.type):
        raise AvomniError(f"{column.null_count} values of {name} are missing", where=where)
    return column.to_numpy()


def time_column(table: pa.Table, name: str, where: str) -> np.ndarray:
    """(N,) int64 µs: a column of times, stored as whole numbers or as others."""
    values = number_column(table, name, where)
    # Compared as they are stored: what is beyond int64 would come out as something else.
    for row in np.flatnonzero(~((values <= MAX_TIME_US) & (values >= -MAX_TIME_US)))[:1]:
        raise AvomniError(f"{name} is {values[row]} at row {row}: no time in µs", where=where)
    return np.rint(values).astype(np.int64)


class ClipTable:
    """A table with one row a clip, whatever its order: columns come in the order of given clips.

    Only the file's footer is read at first; each column when it is asked for.

    Its column or index `clip_id` names the clips. Without `clip_ids` their order is its own.
    """

    def __init__(self, path: Path, clip_ids: pa.StringArray | None = None):
        self.path, self._wanted = path, clip_ids
        with opened(path, str(path)) as file:
            self.names: tuple[str, ...] = tuple(file.schema_arrow.names)
        self._key = _stored_name(self.names, "clip_id", str(path))

    @functools.cached_property
    def clip_ids(self) -> pa.StringArray:
        """The clips that the table lists, in its own order."""
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
        """Of each wanted clip, null where it is not listed; None where the order is the same."""
        if self._wanted is None or self._wanted.equals(self.clip_ids):
            return None
        return pc.index_in(self._wanted, value_set=self.clip_ids)

    def column(self, name: str) -> pa.Array:
        """One column, with null for the clips that the table does not list."""
        values = self._read(name)
        return values if self._rows is None else values.take(self._rows)

    def truths(self, name: str) -> np.ndarray:
        """A column as (clips,) bool, with False for what is null or not listed."""
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
    """Texts of a table, which need not be UTF-8: another byte is written as `\\xff`."""
    try:
        texts.validate(full=True)
        return texts
    except pa.ArrowInvalid:
        binary = texts.cast(pa.large_binary()).to_pylist()
        plain = [b if b is None else b.decode("utf-8", "backslashreplace") for b in binary]
        return pa.array(plain, pa.string())
