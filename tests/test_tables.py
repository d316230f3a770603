"""Columns of parquet tables as numpy arrays, without pandas, and errors that name the file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from tests.published_set import listed_clip, write_metadata

SLICE = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda ends: slice(*sorted(ends)))


@settings(deadline=None)
@given(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=30), SLICE)
def test_numbers_and_gaps_of_any_piece(values: list, piece: slice):
    array = pa.array(values, pa.int32())[piece.start : piece.stop]
    gaps = is_null(array)
    assert gaps.tolist() == [value is None for value in values[piece]]
    known = [value for value in values[piece] if value is not None]
    assert numbers(array).dtype == np.int32 and numbers(array)[~gaps].tolist() == known


@settings(deadline=None)
@given(st.lists(st.sampled_from([True, False, None]), max_size=30), SLICE)
def test_truths_of_any_piece(values: list, piece: slice):
    array = pa.array(values, pa.bool_())[piece.start : piece.stop]
    assert truths(array).tolist() == [value is True for value in values[piece]]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=20))
def test_rows_are_taken_where_they_are_asked_for(rows: list[int]):
    letters = pa.array(list("abcdefghij"))
    for dtype in (np.int64, np.int32):
        taken = letters.take(places(np.array(rows, dtype)))
        assert taken.to_pylist() == [letters[row].as_py() for row in rows]
    backwards = np.arange(10)[::-2]  # no row of numbers in memory
    assert letters.take(places(backwards)).to_pylist() == list("jhfdb")


def test_gaps_in_floats_are_nan_and_in_whole_numbers_an_error():
    table = pa.table(
        {
            "speed": pa.chunked_array([[1.5, None], [2.5]], pa.float64()),
            "row": [1, None, 3],
            "name": ["a", "b", "c"],
        }
    )
    np.testing.assert_array_equal(number_column(table, "speed", "here"), [1.5, np.nan, 2.5])
    for name, says in (
        ("row", "1 values of row are missing"),
        ("name", "column name holds string, not numbers"),
        ("pace", "no column pace; there are speed, row, name"),
    ):
        with pytest.raises(AvomniError, match=says) as caught:
            number_column(table, name, "here")
        assert caught.value.where == "here"


def test_a_folders_name_is_no_column(tmp_path: Path):
    """pyarrow's own reader takes `key=value` in a path for one."""
    path = tmp_path / "run=7" / "t.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"x": [1]}), path)
    assert read_table(path, str(path)).column_names == ["x"]
    assert read_table(path.read_bytes(), "bytes", ["x"]).to_pydict() == {"x": [1]}


def test_a_file_cut_after_its_footer_was_read_is_named(tmp_path: Path):
    path = write_metadata(tmp_path, [listed_clip(n, 0) for n in range(3)]) / "clip_index.parquet"
    table = ClipTable(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AvomniError, match="not a readable parquet file") as caught:
        table.column("chunk")
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(AvomniError, match="file not found"):
        ClipTable(path)


def test_opening_a_catalog_imports_no_pandas(tmp_path: Path):
    """Every worker opens one; pandas takes 0.2 s and 40 MB."""
    write_metadata(tmp_path, [listed_clip(n, n // 2) for n in range(6)], "main")
    code = (
        "import sys; from pathlib import Path; from avomni_lib.dataset.catalog import Catalog\n"
        f"catalog = Catalog.open(Path({str(tmp_path)!r}))\n"
        "for clip_id in catalog.clip_ids(chunk=1):\n"
        "    catalog.attributes(clip_id), catalog.present(clip_id, 'egomotion')\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
