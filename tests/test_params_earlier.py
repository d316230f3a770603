"""Params files with earlier keys: accepted where they agree with the present ones, else refused."""

import pytest

from avomni_lib.dataset.catalog import INDEX_FILE
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params, grids
from avomni_lib.params.earlier_keys import INDEX_FILE as EARLIER_INDEX

FOUR, SEVEN = (
    [name for row in grids.PRESETS[preset] for name in row if name] for preset in ("4-cam", "7-cam")
)
FILE = """
project_name: mi300x_run
extends: params/mi300x.yaml
dataset:
  index_file: clip_index.parquet
download:
  max_concurrent: 6
vision:
  camera_setup: 4-cam
  schema: 2x2
  setups:
    4-cam: [{four}]
    7-cam: [{seven}]
"""


def read(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return Params.from_files([path])


def test_earlier_keys_that_agree_are_accepted(tmp_path):
    p = read(tmp_path, FILE.format(four=", ".join(FOUR), seven=", ".join(SEVEN)))
    assert p.run.name == "mi300x_run" and p.download.max_workers == 6
    assert p.vision.cameras == "4-cam"
    assert p == read(
        tmp_path,
        "extends: params/mi300x.yaml\nrun: {name: mi300x_run}\ndownload: {max_workers: 6}\n",
    )
    assert EARLIER_INDEX == INDEX_FILE


@pytest.mark.parametrize(("names", "preset"), [(FOUR, "4-cam"), (SEVEN[::-1], "7-cam")])
def test_flat_list_of_a_presets_cameras_becomes_the_preset(tmp_path, names, preset):
    p = read(tmp_path, f"vision: {{cameras: [{', '.join(names)}]}}")
    assert p.vision.cameras == preset


def test_contradicting_earlier_keys_are_reported_with_all_mistakes(tmp_path):
    with pytest.raises(AvomniError) as error:
        read(
            tmp_path,
            "project_name: a\nrun: {name: b}\n"
            "dataset: {index_file: my_index.csv}\n"
            "download: {max_concurrent: 4, max_workers: 5}\n"
            "vision: {cameras: 4-cam, schema: 3x3, setups: {4-cam: [a, b]}}\n"
            "training: {packing: true, batch_size: 0}\n",
        )
    message = str(error.value)
    assert "to fix: 7" in message
    for part in (
        "keep run.name",
        "keep download.max_workers",
        "dataset.index_file is 'my_index.csv'",
        "delete vision.schema",
        "delete vision.setups",
        "training.packing: unknown parameter; it is gone",
        "training.batch_size: Input should be",
    ):
        assert part in message


@pytest.mark.parametrize(
    "vision",
    [
        "{cameras: [a, b]}",
        "{schema: 2x2}",
        "{setups: 4}",
        "{cameras: 4-cam, setups: {}}",
        "{cameras: 4-cam, setups: {4-cam: [5]}}",
        "{cameras: 4-cam, setups: {4-cam: [[[a]]]}}",
    ],
)
def test_ambiguous_earlier_grid_is_refused(tmp_path, vision):
    with pytest.raises(AvomniError, match=r"vision\.cameras"):
        read(tmp_path, f"extends: null\nvision: {vision}")


def test_value_in_place_of_a_section_is_refused(tmp_path):
    index = "dataset: {index_file: mine.csv}\nvision: 4"
    for text in ("project_name: a\nrun: 3", "download: [max_concurrent]", "vision: 4", index):
        with pytest.raises(AvomniError, match="a section of keys is wanted"):
            read(tmp_path, text)
