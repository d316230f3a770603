"""Columns of parquet tables as numpy arrays, and errors that name the file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avomni_lib.dataset.tables import ClipTable, number_column, read_table
from avomni_lib.errors import AvomniError
from tests.published_set import listed_clip, write_metadata


def test_missing_floats_are_nan_and_missing_integers_an_error():
    table = pa.table(
        {
            "speed": pa.chunked_array([[1.5, None], [2.5]], pa.float64()),
            "row": [1, None, 3],
            "name": ["a", "b", "c"],
        }
    )
    np.testing.assert_array_equal(number_column(table, "speed", "here"), [1.5, np.nan, 2.5])
    for name, message in (
        ("row", "1 values of row are missing"),
        ("name", "column name holds string, not numbers"),
        ("pace", "no column pace; there are speed, row, name"),
    ):
        with pytest.raises(AvomniError, match=message) as caught:
            number_column(table, name, "here")
        assert caught.value.where == "here"


def test_hive_style_folder_name_is_not_a_column(tmp_path: Path):
    """pyarrow's dataset reader makes a column of `key=value` in a path."""
    path = tmp_path / "run=7" / "t.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"x": [1]}), path)
    assert read_table(path, str(path)).column_names == ["x"]
    assert read_table(path.read_bytes(), "bytes", ["x"]).to_pydict() == {"x": [1]}


def test_error_names_a_file_truncated_after_opening(tmp_path: Path):
    path = write_metadata(tmp_path, [listed_clip(n, 0) for n in range(3)]) / "clip_index.parquet"
    table = ClipTable(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AvomniError, match="not a readable parquet file") as caught:
        table.column("chunk")
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(AvomniError, match="file not found"):
        ClipTable(path)
