"""A choice in a params file: only what it changes is changed, and the file means what was meant."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.tiles import params_file
from avomni_lib.notebook.tiles.choice import OWN_LIST, Choice
from avomni_lib.params import Params

SHIPPED = sorted((files.PROJECT_ROOT / "params").glob("*.yaml"))
CHOICE = Choice("7-cam", (), (320, 192), "crop", 4.0, 8)

choices = st.builds(
    Choice,
    setup=st.sampled_from(["4-cam", "7-cam"]),
    cameras=st.just(()),
    tile=st.tuples(st.integers(8, 960), st.integers(8, 960)),
    fit=st.sampled_from(["letterbox", "crop", "stretch"]),
    sample_hz=st.floats(0.1, 60).map(lambda hz: round(hz, 3)),
    sequence_length=st.integers(2, 128),
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@given(choice=choices)
def test_a_fresh_file_laid_over_the_runs_own_is_the_choice(path, choice, tmp_path_factory):
    p = Params.from_files([path])
    fresh = tmp_path_factory.mktemp("fresh") / "tiles.yaml"
    text = params_file.text_of(fresh, p, choice)
    if choice == Choice.of(p):
        assert text == ""
        return
    assert params_file.difference(fresh, text).startswith(f"--- {fresh}\tbefore")
    params_file.write(fresh, text)
    assert Params.from_files([path, fresh]) == choice.laid_over(p)
    assert params_file.difference(fresh, text) == ""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_file_that_is_there_keeps_all_else_and_its_comments(path, tmp_path):
    p, copy = Params.from_files([path]), tmp_path / path.name
    copy.write_text(path.read_text())
    text = params_file.text_of(copy, p, CHOICE)
    before, after = path.read_text().splitlines(), text.splitlines()
    changed = [line for line in after if line not in before]
    assert 1 <= len(changed) <= 7
    comments = [line.split("#", 1)[1] for line in before if "#" in line]
    assert [line.split("#", 1)[1] for line in after if "#" in line] == comments
    copy.write_text(text)
    assert Params.from_files([copy]) == CHOICE.laid_over(p)
    # And back again: nothing but values was touched.
    copy.write_text(params_file.text_of(copy, CHOICE.laid_over(p), Choice.of(p)))
    assert Params.from_files([copy]) == p


def test_a_comment_keeps_its_column_and_a_missing_key_joins_its_section(tmp_path):
    text = (
        "# mine\nprocessing:\n  sample_hz: 10.0               # often\n\n  # tiles\n"
        "  tile_width: 48\n\nvision:\n"
    )
    changes = {"processing": {"sample_hz": 4.0, "fit": "crop"}, "vision": {"cameras": "7-cam"}}
    assert params_file.edited(text, changes, tmp_path) == (
        "# mine\nprocessing:\n  sample_hz: 4.0                # often\n\n  # tiles\n"
        "  tile_width: 48\n  fit: crop\n\nvision:\n  cameras: 7-cam\n"
    )


def test_a_file_in_another_style_is_left_alone(tmp_path):
    path = tmp_path / "flow.yaml"
    path.write_text("processing: {sample_hz: 10.0, tile_width: 48}\n")
    p = Params.from_files([path])
    with pytest.raises(AvomniError, match="not written a key a line"):
        params_file.text_of(path, p, CHOICE)
    path.write_text("- a\n- list\n")
    with pytest.raises(AvomniError, match="this one holds a list"):
        params_file.text_of(path, p, CHOICE)
    path.write_text("a: [\n")
    with pytest.raises(AvomniError, match="not valid YAML"):
        params_file.text_of(path, p, CHOICE)


def test_an_own_list_is_written_as_rows_and_under_the_keys_present_name(tmp_path):
    names = ("camera_front_wide_120fov", "camera_rear_tele_30fov", "camera_cross_left_120fov")
    own = Choice(OWN_LIST, names, (64, 64), "crop", 2.0, 8)
    path = tmp_path / "own.yaml"
    path.write_text("vision:\n  camera_setup: 7-cam  # as it was\n")
    text = params_file.text_of(path, Params.from_files([path]), own)
    rows = f"[[{', '.join(names[:2])}], [{names[2]}, null]]"
    assert f"  cameras: {rows}  # as it was\n" in text and "camera_setup" not in text
    path.write_text(text)
    laid = Params.from_files([path])
    assert Choice.of(laid).grid == own.grid and Choice.of(laid).setup == "own grid"


def test_the_default_is_no_shipped_file():
    for path in SHIPPED:
        default = params_file.default_path(Params.from_files([path]))
        assert default not in SHIPPED and default.name == "tiles.yaml"
        text = params_file.text_of(default.with_name("none.yaml"), Params(), CHOICE)
        assert re.search(r"tile_width: 320 +# 48 before", text)
        assert yaml.safe_load(text)["processing"]["tile_width"] == 320
