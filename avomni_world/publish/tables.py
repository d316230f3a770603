"""The data set's tables: their columns, types and indices, as bytes of parquet.

Written with pyarrow only. pandas stores a table's index in metadata beside the schema, and NVIDIA's
kit relies on it, so it is written here too. The bytes depend only on the values and on pyarrow's
version.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

BLURRED_BOXES = {"frame_index": pa.int64()} | dict.fromkeys(("x1", "y1", "x2", "y2"), pa.float64())
OBSTACLES = {
    "timestamp_us": pa.uint64(),
    "source": pa.string(),
    "track_id": pa.string(),
    **{f"center_{axis}": pa.float64() for axis in "xyz"},
    **{f"size_{axis}": pa.float64() for axis in "xyz"},
    **{f"orientation_{axis}": pa.float64() for axis in "xyzw"},
    "label_class": pa.string(),
    "reference_frame": pa.string(),
    "reference_frame_timestamp_us": pa.uint64(),
}

# pandas' names for arrow's types: (pandas_type, numpy_type).
_PANDAS_NAMES = {
    pa.string(): ("unicode", "object"),
    pa.int64(): ("int64", "int64"),
    pa.float64(): ("float64", "float64"),
    pa.bool_(): ("bool", "bool"),
}


def parquet(columns: Mapping[str, Sequence], types: Mapping[str, pa.DataType], index=()) -> bytes:
    """A table as the bytes of a parquet file.

    Args:
        columns: Name -> values, all of one length.
        types: Name -> arrow type, in the order of the columns.
        index: Columns that pandas uses as the index; they are stored last, as pandas does.
    """
    order = [name for name in types if name not in index] + list(index)
    schema = pa.schema([(name, types[name]) for name in order])
    if index:
        schema = schema.with_metadata({"pandas": json.dumps(_pandas_note(schema, index))})
    table = pa.Table.from_arrays(
        [pa.array(columns[name], types[name]) for name in order], schema=schema
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="snappy")
    return buffer.getvalue()


def _pandas_note(schema: pa.Schema, index: Sequence[str]) -> dict:
    """Format: https://pandas.pydata.org/docs/development/developer.html#storing-pandas-dataframe-objects"""
    columns = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        named = {"name": name, "field_name": name}
        types = dict(zip(("pandas_type", "numpy_type"), _PANDAS_NAMES[kind], strict=True))
        columns.append(named | types | {"metadata": None})
    return {
        "index_columns": list(index),
        "column_indexes": [],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": "0"},
        "pandas_version": "2.2.0",
    }
