"""A tiling choice written to a params file, which is read after the run's own file."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.tiles import params_file
from avomni_lib.notebook.tiles.choice import TilingChoice, grid_of
from avomni_lib.params import Params

SHIPPED = sorted((files.PROJECT_ROOT / "params").glob("*.yaml"))
CHOICE = TilingChoice(cameras.grid("7-cam"), (320, 192), "crop", 4.0, 8)

choices = st.builds(
    TilingChoice,
    grid=st.sampled_from(["4-cam", "7-cam"]).map(cameras.grid),
    tile=st.tuples(st.integers(8, 960), st.integers(8, 960)),
    fit=st.sampled_from(["letterbox", "crop", "stretch"]),
    sample_hz=st.floats(0.1, 60).map(lambda hz: round(hz, 3)),
    sequence_length=st.integers(2, 128),
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@given(choice=choices)
def test_written_file_over_the_runs_file_gives_the_choice(path, choice, tmp_path_factory):
    p = Params.from_files([path])
    fresh = tmp_path_factory.mktemp("fresh") / "tiles.yaml"
    text = params_file.text_of(fresh, p, choice)
    if choice == TilingChoice.of(p):
        assert text == ""
        return
    assert params_file.difference(fresh, text).startswith(f"--- {fresh}\tbefore")
    files.write_text(fresh, text)
    merged = Params.from_files([path, fresh])
    assert merged == choice.laid_over(p)
    assert params_file.difference(fresh, text) == ""
    # Another choice in the merged run, and the original one again.
    for other in (CHOICE, TilingChoice.of(p)):
        files.write_text(fresh, params_file.text_of(fresh, merged, other))
        merged = Params.from_files([path, fresh])
        assert merged == other.laid_over(p)


def test_file_from_another_source_is_not_overwritten(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("processing:\n  sample_hz: 10.0  # mine\n")
    with pytest.raises(AvomniError, match="stays as it is"):
        params_file.text_of(path, Params.from_files([path]), CHOICE)


def test_user_grid_is_written_as_rows(tmp_path):
    names = ("camera_front_wide_120fov", "camera_rear_tele_30fov", "camera_cross_left_120fov")
    own, path = TilingChoice(grid_of(names), (64, 64), "crop", 2.0, 8), tmp_path / "own.yaml"
    text = params_file.text_of(path, Params(), own)
    rows = f"[[{', '.join(names[:2])}], [{names[2]}, null]]"
    assert f"  cameras: {rows}" in text
    path.write_text(text)
    merged = Params.from_files([path])
    assert TilingChoice.of(merged) == own and own.setup == "own grid"


def test_default_path_is_not_a_shipped_file():
    for path in SHIPPED:
        default = params_file.default_path(Params.from_files([path]))
        assert default not in SHIPPED and default.name == "tiles.yaml"
        text = params_file.text_of(default.with_name("none.yaml"), Params(), CHOICE)
        assert re.search(r"tile_width: 320 +# 48 before", text)
        assert yaml.safe_load(text)["processing"]["tile_width"] == 320
