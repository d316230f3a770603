"""Tables as pandas and pyarrow read them."""

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from avomni_lib.dataset.clip import EGOMOTION_COLUMNS
from avomni_world.publish import tables


def test_types_are_as_declared_and_empty_tables_keep_them():
    schema = pq.read_schema(
        io.BytesIO(
            tables.parquet({name: [] for name in tables.BLURRED_BOXES}, tables.BLURRED_BOXES)
        )
    )
    assert dict(zip(schema.names, schema.types, strict=True)) == tables.BLURRED_BOXES
    types = tables.floats(EGOMOTION_COLUMNS, timestamp=pa.int64())
    values = dict.fromkeys(EGOMOTION_COLUMNS, [1])
    frame = pd.read_parquet(io.BytesIO(tables.parquet(values, types)))
    assert frame["timestamp"].dtype == "int64" and (frame.dtypes.iloc[1:] == "float64").all()
    assert len(frame.columns) == 15 and isinstance(frame.index, pd.RangeIndex)
