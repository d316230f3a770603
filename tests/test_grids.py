"""Grids given as rows of cameras: validation, cache, prompt, preview and adapter."""

from dataclasses import replace

import numpy as np
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import required_features
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.verify import verify
from avomni_lib.etl.clip import tiling
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.tiles.choice import TilingChoice
from avomni_lib.notebook.tiles.preview import Place, Preview
from avomni_lib.notebook.tiles.widgets import TilePreview
from avomni_lib.params import Params, grids
from avomni_lib.training.forecast import estimate
from avomni_lib.training.model import model_input
from avomni_lib.training.prompt import conversation, samples, tokens
from tests import cached_run
from tests.published_set import read_frame

WIDE, REAR, LEFT = cameras.FRONT_WIDE.name, cameras.REAR_TELE.name, cameras.CROSS_LEFT.name
ROWS = [[WIDE, None], [LEFT, REAR]]


def params_of(value) -> Params:
    return Params.from_values({"vision": {"cameras": value}})


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        ([[WIDE, None], [REAR]], ["rows are equally long, these have 2, 1 cells"]),
        ([[WIDE, REAR, WIDE]], [f"{WIDE} stands in several cells that are no rectangle"]),
        ([[WIDE, WIDE], [WIDE, REAR]], [f"{WIDE} stands in several cells that are no rectangle"]),
        ([[WIDE, REAR], [LEFT, LEFT], [WIDE, REAR]], [f"{WIDE}, {REAR} stands in several"]),
        ([["front", REAR]], ["there is no camera 'front'; there are camera_front_wide"]),
        ([[None, None]], ["no cell names a camera"]),
        ([], ["no cell names a camera"]),
        ([[WIDE] + [None] * 7], ["at most 7 rows and 7 columns, this one has 1 rows and 8"]),
        ([WIDE, REAR], ["rows of camera names are wanted, or one of 4-cam, 6-cam, 7-cam"]),
        (3, ["rows of camera names are wanted"]),
        (None, ["rows of camera names are wanted"]),
        ("5-cam", ["there is no grid '5-cam': write 4-cam, 6-cam, 7-cam, rows"]),
        ([[WIDE, "x"], [3], [WIDE]], ["equally long", "no camera 'x', 3;", "no rectangle"]),
    ],
    ids=str,
)
def test_invalid_grid_is_reported_with_all_other_mistakes(value, messages):
    with pytest.raises(AvomniError) as caught:
        Params.from_values({"vision": {"cameras": value}, "training": {"batch_size": 0}})
    assert "parameters to fix: 2" in str(caught.value) and "training.batch_size" in str(
        caught.value
    )
    for message in messages:
        assert message in str(caught.value)


def test_rows_equal_to_a_preset_become_the_preset():
    rows = [list(row) for row in grids.PRESETS["7-cam"]]
    assert params_of(rows) == params_of("7-cam") and params_of("7-cam").vision.cameras == "7-cam"
    assert cameras.grid(params_of(ROWS).vision.cameras).value == params_of(ROWS).vision.cameras


def test_camera_setup_is_accepted_as_an_alias_of_cameras(tmp_path):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("vision: {camera_setup: 7-cam}\n")
    new.write_text(f"extends: {old}\nvision: {{cameras: [[{WIDE}, null]]}}\n")
    assert Params.from_files([old]) == Params.from_values({"vision": {"camera_setup": "7-cam"}})
    assert Params.from_files([old]).vision.cameras == "7-cam"
    wide_only = ((WIDE, None),)
    assert Params.from_files([new]).vision.cameras == wide_only, (
        "the later file wins, by either name"
    )
    assert Params.from_files([old, new]).vision.cameras == wide_only
    assert Params.from_files([new, old]).vision.cameras == "7-cam"
    change = [f"vision.cameras=[[{WIDE}, null]]"]
    assert Params.from_files([old], change).vision.cameras == wide_only
    assert Params.from_files([new], ["vision.camera_setup=4-cam"]).vision.cameras == "4-cam"
    with pytest.raises(AvomniError, match="camera_setup is the old name of vision.cameras, and bo"):
        Params.from_values({"vision": {"camera_setup": "7-cam", "cameras": "4-cam"}})


def test_only_the_grids_cameras_are_fetched():
    assert required_features(params_of(ROWS))[:3] == (WIDE, LEFT, REAR)
    assert len(required_features(params_of(ROWS))) == 3 + 4


@pytest.fixture(scope="module")
def p(tmp_path_factory) -> Params:
    return cached_run.make(tmp_path_factory.mktemp("own"), vision={"cameras": ROWS})


def test_cache_has_each_camera_in_its_cell(p):
    cache = Cache.open(p.cache_dir)
    cells = [WIDE, None, LEFT, REAR]
    assert cache.header["grid"] == {"name": "own", "rows": 2, "cols": 2, "cells": cells}
    assert cache.header["cameras"] == [WIDE, LEFT, REAR]
    grid = cameras.grid(p.vision.cameras)
    frames = np.asarray(samples.windows_of(p, "train").frames(0))
    for name in (WIDE, LEFT, REAR):
        _, number, _ = map(int, read_frame(tiling.tile_of(frames, grid, cache.tile, name)[0]))
        assert cameras.CAMERAS[number].name == name
    assert not frames[0, : p.processing.tile_height, p.processing.tile_width :].any(), (
        "an empty cell"
    )


def test_prompt_plan_and_preview_follow_the_grid(p):
    seen = model_input.what_the_model_sees(p, tokens.backbone_of(p), "b", "none", {})
    assert "3 cameras of one car in a 2x2 grid" in seen["question"]
    assert "front wide, empty; cross left, rear tele." in seen["question"]
    assert conversation.grid_size(p) == (2 * p.processing.tile_height, 2 * p.processing.tile_width)
    shown = next(row for row in estimate.plan_run(p).rows if row[0] == "grid")
    assert "2×2 cameras of your own" in shown[2]
    choice = TilingChoice.of(p)
    assert choice.laid_over(p) == p and Preview(p).is_cached(choice)


def test_adapter_of_another_grid_is_refused(p):
    def seen(value, header=None):
        other = Params.from_values(p.values() | {"vision": {"cameras": value}})
        return model_input.what_the_model_sees(
            other, tokens.backbone_of(other), "b", "none", header or {}
        )

    model_input.refuse_other(seen(ROWS), seen(ROWS), "here")
    moved = [[None, WIDE], [LEFT, REAR]]
    with pytest.raises(AvomniError, match="question: trained with .*front wide, empty"):
        model_input.refuse_other(seen(ROWS), seen(moved), "here")
    with pytest.raises(AvomniError, match="vision.camera_setup: trained with 'own', now '4-cam'"):
        model_input.refuse_other(seen(ROWS), seen("4-cam"), "here")


def test_cache_of_another_grid_is_refused(p):
    moved = [[None, WIDE], [LEFT, REAR]]
    other = Params.from_values(p.values() | {"vision": {"cameras": moved}})
    with pytest.raises(AvomniError, match="grid.cells: built with"):
        samples.windows_of(other, "train")


UNEVEN = [[WIDE, WIDE, LEFT], [WIDE, WIDE, REAR]]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Params:
    tile = {"tile_width": 32, "tile_height": 32, "fit": "letterbox"}
    folder = tmp_path_factory.mktemp("uneven")
    return cached_run.make(folder, vision={"cameras": UNEVEN}, processing=tile)


def test_camera_in_several_cells_is_one_larger_tile(uneven):
    cache = Cache.open(uneven.cache_dir)
    assert cache.header["grid"]["cells"] == [WIDE, WIDE, LEFT, WIDE, WIDE, REAR]
    assert cache.header["cameras"] == [WIDE, LEFT, REAR] == list(cache.cameras)
    assert cache.grid.span_of(WIDE) == (2, 2) and cache.grid.span_of(REAR) == (1, 1)
    assert verify(uneven.cache_dir).num_clips == len(cache.clips)
    window = samples.windows_of(uneven, "train")[0]
    frames, shard = np.asarray(samples.windows_of(uneven, "train").frames(0)), cache.shards[0]
    assert frames.shape[1:] == (64, 96, 3) and shard.timestamps.shape[1] == 3
    for name, (height, width) in {WIDE: (64, 64), LEFT: (32, 32), REAR: (32, 32)}.items():
        tile = tiling.tile_of(frames, cache.grid, cache.tile, name)
        assert tile.shape[1:3] == (height, width)
        clip, number, _ = map(int, read_frame(tile[0]))
        assert cameras.CAMERAS[number].name == name
    assert window.number == 0
    # Letterboxed: a wide picture in a square tile has black bars above and below.
    large = tiling.tile_of(frames, cache.grid, cache.tile, WIDE)
    assert not large[:, [0, -1]].any() and large[:, 32].any()


def test_prompt_explains_a_larger_tile(uneven):
    seen = model_input.what_the_model_sees(uneven, tokens.backbone_of(uneven), "b", "none", {})
    assert "3 cameras of one car in a 2x3 grid" in seen["question"]
    assert (
        "front wide, front wide, cross left; front wide, front wide, rear tele. A camera that"
        in (seen["question"])
    )
    even = Params.from_values(uneven.values() | {"vision": {"cameras": ROWS}})
    plain = model_input.what_the_model_sees(even, tokens.backbone_of(even), "b", "none", {})
    assert "named in several cells" not in plain["question"]


def test_preview_and_labels_follow_a_larger_tile(uneven):
    choice, grid = TilingChoice.of(uneven), cameras.grid(uneven.vision.cameras)
    preview = Preview(uneven)
    assert choice.laid_over(uneven) == uneven and preview.is_cached(choice)
    place = Place(next(iter(preview.listed)), 0, 1)
    cached = preview.grid_frame(place, choice)
    times_us = preview.windows(place.clip_id, choice).times_us(0)
    raw = preview.raw.grid_frame(place.clip_id, times_us, 1, choice)
    assert np.array_equal(cached, raw)
    sheet = canvas.name_tiles(cached, grid, 2)
    left, top, _, _ = canvas.tile_box(cached.shape, grid, 0, 0, 2)
    large = cached[:64, :64].repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(sheet[top : top + 128, left : left + 128], large)
    # Its name is shown once, above its upper left cell.
    left, top, right, _ = canvas.tile_box(cached.shape, grid, 0, 1, 2)
    assert (sheet[: top - 1, left + 40 : right] == 255).all()


@pytest.mark.parametrize(("setup", "shape"), [("4-cam", (2, 4)), ("7-cam", (4, 3))])
def test_enlarged_camera_spans_2x2_cells_among_the_others(setup, shape):
    choice = TilingChoice.of(params_of(setup)).with_larger(WIDE)
    grid = choice.grid
    assert (grid.rows, grid.cols) == shape
    assert grid.span_of(WIDE) == (2, 2) and grid.cell_of(WIDE) == (0, 0)
    assert set(grid.cameras) == set(cameras.GRIDS[setup].cameras)
    assert all(
        grid.span_of(camera.name) == (1, 1) for camera in grid.cameras if camera.name != WIDE
    )
    assert params_of(choice.grid.value).vision.cameras == choice.grid.value


def test_preview_draws_another_grid_or_explains_why_not(uneven):
    view = TilePreview(uneven)
    drawn = view.figure_of(view.choice.with_larger(REAR))
    assert drawn.get_axes()
    cells = (*view.choice.grid.value[0], cameras.FRONT_TELE.name)
    missing = replace(view.choice, grid=cameras.grid((cells, (*cells[:2], None, None))))
    assert "vision tokens" in " ".join(view.figure_of(missing).get_suptitle().split())


def test_front_camera_is_front_wide_or_the_first():
    assert cameras.grid("4-cam").front is cameras.FRONT_WIDE
    rear = cameras.grid("4-cam").cameras[-1]
    assert cameras.grid([[rear.name, None]]).front is rear
    assert cameras.grid([[rear.name, cameras.FRONT_WIDE.name]]).front is cameras.FRONT_WIDE
