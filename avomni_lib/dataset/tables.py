"""Parquet tables of the data set, read by pyarrow alone, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avomni_lib.errors import AvomniError


def read_table(source: Path | bytes, where: str) -> pa.Table:
    """A parquet file, or the bytes of one.

    Raises:
        AvomniError: it is missing, damaged or not parquet; `where` names it.
    """
    try:
        # One thread: clips are read in several processes, each with its own.
        return pq.read_table(pa.BufferReader(source) if isinstance(source, bytes) else source)
    except FileNotFoundError:
        raise AvomniError("file not found", where=where) from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvomniError(f"not a readable parquet file: {reason}", where=where) from None


def key_column(table: pa.Table, name: str, where: str, level: int = 0) -> list[str]:
    """A column that pandas may have stored as (part of) the index, with or without its name.

    Args:
        level: Its place in an index of several columns.

    Raises:
        AvomniError: there is no such column.
    """
    for stored in (name, f"__index_level_{level}__"):
        if stored in table.column_names:
            return table[stored].to_pylist()
    raise AvomniError(f"no column {name}; there are {', '.join(table.column_names)}", where=where)


def number_column(table: pa.Table, name: str, where: str) -> np.ndarray:
    """A column of numbers; missing values of a float column become NaN.

    Raises:
        AvomniError: there is no such column, it holds no numbers, or integers with gaps.
    """
    if name not in table.column_names:
        columns = ", ".join(table.column_names)
        raise AvomniError(f"no column {name}; there are {columns}", where=where)
    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise AvomniError(f"column {name} holds {column.type}, not numbers", where=where)
    if pa.types.is_integer(column.type) and column.null_count:
        raise AvomniError(f"{column.null_count} values of {name} are missing", where=where)
    return column.to_numpy()
