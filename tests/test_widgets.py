"""The tile preview, driven by its traits: the picture follows the controls."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from avomni_lib.dataset import cameras
from avomni_lib.dataset.select.evicted import evict
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.notebook.plots import canvas, tiles
from avomni_lib.notebook.tiles import widgets
from avomni_lib.notebook.tiles.preview import Listed
from avomni_lib.params import Params
from tests import cached_run
from tests.pictures import finding
from tests.published_set import Drive, clip_id_of, read_frame

SHORT = 4  # this clip has fewer windows than the others


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    return cached_run.make(tmp_path_factory.mktemp("preview"), shortened=SHORT)


@pytest.fixture
def view(p):
    return widgets.TilePreview(p, clip_id=clip_id_of(1), window=2, frame=1)


def pixels(view):
    return np.asarray(Image.open(io.BytesIO(view.image.value)).convert("RGB"))


def shown(view):
    """The grid (H, W, 3) in the PNG of the widget, without the camera labels."""
    assert np.array_equal(pixels(view), view.sheet())
    return view.grid_frame()


def tile_at(image, grid, row, col):
    height, width = image.shape[0] // grid.rows, image.shape[1] // grid.cols
    return image[row * height : (row + 1) * height, col * width : (col + 1) * width]


def decoded(view, row, col):
    """(clip number, index in cameras.CAMERAS, frame) of a displayed tile."""
    return read_frame(tile_at(shown(view), view.choice.grid, row, col))


def windows_of(p, clip_number, length=cached_run.LENGTH):
    windows = Windows(Cache.open(p.cache_dir), length, cached_run.STRIDE)
    of_clip = [i for i in range(len(windows)) if windows[i].clip_id == clip_id_of(clip_number)]
    return windows, of_clip


def test_preview_shows_the_cached_frame_pixel_for_pixel(p, view):
    windows, of_clip = windows_of(p, 1)
    assert np.array_equal(shown(view), windows.frames(of_clip[2])[1])
    view.frame.value = 3
    assert np.array_equal(shown(view), windows.frames(of_clip[2])[3])
    view.window.value = 4
    assert np.array_equal(shown(view), windows.frames(of_clip[4])[3])
    view.clip.value = clip_id_of(2)
    assert decoded(view, 0, 0)[0] == 2
    assert "read from the cache" in view.note.value
    assert "do not share" in view.note.value, "clips of a folder are not ours"


def test_values_are_clamped_and_buttons_step_into_the_next_window(p, view):
    with pytest.raises(AvomniError, match="there is no clip nowhere"):
        widgets.TilePreview(p, clip_id="nowhere")
    view.frame.value = 99
    assert view.frame.value == view.frame.max == cached_run.LENGTH - 1
    view.place.ahead.click()
    assert (view.window.value, view.frame.value) == (3, 0)
    view.place.back.click()
    assert (view.window.value, view.frame.value) == (2, view.frame.max)
    last = view.window.max
    view.window.value = 99
    assert view.window.value == last
    view.place.ahead.click()
    assert (view.window.value, view.frame.value) == (last, view.frame.max)
    view.clip.value = clip_id_of(SHORT)
    assert 0 < view.window.max < last and view.window.value == view.window.max
    windows, of_clip = windows_of(p, SHORT)
    assert np.array_equal(shown(view), windows.frames(of_clip[-1])[view.frame.value])


def test_search_finds_clips_by_id_split_and_country(view):
    clip_ids = [name for _, name in view.clip.options]
    assert len(clip_ids) == 2 * cached_run.CLIPS_PER_CHUNK
    label = next(label for label, name in view.clip.options if name == clip_id_of(3))
    mean = Drive(3).travelled(2.0) / 2
    assert label.split()[:3] == [clip_id_of(3)[:8], "train", "Germany"]
    assert float(label.split()[3].strip(",")) == pytest.approx(mean, abs=0.3)
    before = pixels(view)
    view.place.search.value = "germany TEST"
    matches = [name for _, name in view.clip.options]
    assert matches == [clip_id_of(1), clip_id_of(5)], "clip 5, and the one that is shown"
    assert view.clip.value == clip_id_of(1) and np.array_equal(pixels(view), before)
    view.clip.value = clip_id_of(5)
    assert decoded(view, 0, 0)[0] == 5
    view.place.search.value = clip_id_of(7)[9:20]
    assert [name for _, name in view.clip.options] == [clip_id_of(5), clip_id_of(7)]
    view.place.search.value = ""
    assert [name for _, name in view.clip.options] == clip_ids


def test_long_clip_list_is_cut_around_the_chosen_clip(p):
    num = 3 * widgets.MOST_SHOWN
    many = [Listed(f"{n:08d}", "val", None, None, None) for n in range(num)]
    controls = widgets.PlaceControls(many, many[900].clip_id)
    names = [name for _, name in controls.clip.options]
    assert len(names) == widgets.MOST_SHOWN and many[900].clip_id in names
    assert controls.clip.value == many[900].clip_id
    controls.search.value = "00000007"
    assert [name for _, name in controls.clip.options] == ["00000007", "00000900"]


def test_seven_cameras_are_read_from_the_raw_clip(view):
    before = decoded(view, 0, 0)
    view.setup.value = "7-cam"
    grid, image = cameras.grid("7-cam"), shown(view)
    frames = {}
    for place, camera in enumerate(grid.cells):
        tile = tile_at(image, grid, *divmod(place, grid.cols))
        if camera is None:
            assert not tile.any()
            continue
        number, camera_idx, frames[camera.name] = read_frame(tile)
        assert (number, cameras.CAMERAS[camera_idx]) == (1, camera)
    assert frames[cameras.FRONT_WIDE.name] == before[2], "the same instant as before"
    assert "read from the raw clip" in view.note.value


def test_custom_camera_list_is_laid_out_in_its_order(view):
    view.setup.value = widgets.OWN_LIST
    view.controls.cameras.value = ["rear tele", "cross left", "front wide"]
    labels = [cameras.CAMERAS[decoded(view, *place)[1]].label for place in ((0, 0), (0, 1), (1, 0))]
    assert labels == view.controls.cameras.value
    assert not tile_at(shown(view), view.choice.grid, 1, 1).any()
    assert not view.write.disabled and "+  cameras: [[camera_rear" in view.difference.value
    view.controls.add.value = "rear left"
    assert view.controls.cameras.value[-1] == "rear left" and not view.controls.add.value
    assert "rear left" not in dict(view.controls.add.options)
    assert cameras.CAMERAS[decoded(view, 1, 1)[1]] == cameras.REAR_LEFT
    view.controls.cameras.value = []
    assert view.controls.cameras.value == ["front wide"], "one camera at least"
    assert shown(view).shape == (cached_run.TILE_HEIGHT, cached_run.TILE_WIDTH, 3)


def test_tile_size_and_fit_change_picture_and_cost(view):
    before = view.cost().figures
    view.controls.width.value, view.controls.height.value = 96, 64
    assert shown(view).shape == (128, 192, 3)
    number, camera_idx, _ = decoded(view, 1, 1)
    assert (number, cameras.CAMERAS[camera_idx]) == (1, cameras.REAR_RIGHT)
    # 4 frames are 2 temporal patches; a vision token is 32 × 32 px.
    after = view.cost().figures
    assert (before["vision_tokens"], after["vision_tokens"]) == (12, 48)
    assert after["sample_mb"] == pytest.approx(4 * before["sample_mb"]) == 4 * 128 * 192 * 3 / 1e6
    assert ">48<" in view.cost_table.value and "0.3 MB" in view.cost_table.value
    # Fits differ, and letterbox leaves black bars.
    view.controls.height.value = 32
    tile_by_fit = {}
    for fit in ("letterbox", "crop", "stretch"):
        view.controls.fit.value = fit
        tile_by_fit[fit] = tile_at(shown(view), view.choice.grid, 0, 0)
    black = ~tile_by_fit["letterbox"].any(axis=(0, 2))
    # 64×48 px in a tile of 96×32: 43 columns, between bars of 26 and 27.
    assert black[:26].all() and black[-26:].all() and not black[30:-30].any()
    assert tile_by_fit["crop"].any(axis=(0, 2)).all() and not np.array_equal(
        tile_by_fit["crop"], tile_by_fit["stretch"]
    )


def test_changing_rate_or_length_keeps_the_current_time(p, view):
    before = decoded(view, 0, 0)[2]
    view.controls.length.value = 8
    windows, of_clip = windows_of(p, 1, length=8)
    assert view.frame.max == 7 and view.window.value == 2
    assert np.array_equal(shown(view), windows.frames(of_clip[2])[1])
    assert "read from the cache" in view.note.value
    view.controls.rate.value = 15.0
    assert "read from the raw clip" in view.note.value
    frames = []
    for frame in range(4):
        view.frame.value = frame
        frames.append(decoded(view, 0, 0)[2])
    assert set(np.diff(frames)) <= {1, 2, 3} and sum(np.diff(frames)) in (5, 6, 7)
    assert abs(frames[1] - before) <= 5
    view.controls.length.value = 400
    assert "no window fits" in view.note.value and view.image.value == b""
    view.controls.length.value = 4
    assert shown(view).any()


def test_vision_token_squares_are_drawn_on_request(view):
    assert "32×32" in view.controls.squares.description
    before = pixels(view)
    view.controls.squares.value = True
    after = pixels(view)
    assert after.shape == before.shape
    scale = canvas.scale_for(view.choice.size[1], widgets.WIDE_PX)
    left, top, _, _ = canvas.tile_box(view.choice.size, view.choice.grid, 0, 0, scale)
    differs = (after != before).any(axis=2)[top:, left:]
    assert (
        differs[:, 32 * scale][: 32 * scale].all() and not differs[: 32 * scale, 31 * scale].any()
    )
    assert np.array_equal(after, view.sheet())


def test_choice_that_the_model_refuses_is_shown_with_a_warning(view):
    view.setup.value = "7-cam"  # 3 × 48 px are no multiple of 32
    assert shown(view).any()
    assert "would refuse it: a grid of 144×96 px does not divide" in view.cost_table.value
    assert "would refuse it: a grid of 144×96 px" in finding(view.figure())
    small = view.p.model_copy(
        update={"model": view.p.model.model_copy(update={"max_seq_length": 70})}
    )
    assert "too long" in widgets.TilePreview(small).cost_table.value


def test_missing_raw_files_are_named_and_the_cache_is_still_shown(p, tmp_path):
    copy = tmp_path / "published"
    shutil.copytree(p.local_dir, copy)
    for path in (copy / "camera" / cameras.REAR_TELE.name).iterdir():
        path.unlink()
    values = p.model_dump() | {"dataset": p.dataset.model_dump() | {"local_dir": str(copy)}}
    view = widgets.TilePreview(Params.from_values(values))
    view.setup.value = "7-cam"
    assert view.image.value == b""
    assert "rear tele is not in the folder" in view.note.value and "<br>" in view.note.value
    with pytest.raises(AvomniError, match="rear tele is not in the folder"):
        view.figure()
    shutil.rmtree(copy)
    view.setup.value = "4-cam"
    assert shown(view).any(), "raw chunks may be evicted once the cache is there"


def test_preview_reads_only_the_cache_after_eviction(p, tmp_path):
    shutil.copytree(p.run_dir, tmp_path / "outputs" / "test")
    shutil.copytree(p.local_dir, tmp_path / "published")
    p = Params.from_values(cached_run.values(tmp_path))
    videos = [name for name in read_chosen(p).files if name.startswith("camera/")]
    evict(p, videos)
    view = widgets.TilePreview(p)
    assert shown(view).any()
    assert "read from the cache; raw files are evicted" in view.note.value
    view.controls.width.value = 96
    assert "raw files of this clip were evicted on 20" in view.note.value
    assert view.image.value == b""
    view.controls.width.value = cached_run.TILE_WIDTH
    assert shown(view).any()


def test_preview_before_the_etl_matches_the_later_cache(p, tmp_path):
    bare = Params.from_values(
        cached_run.values(tmp_path) | {"dataset": p.dataset.model_dump(mode="json")}
    )
    with pytest.raises(AvomniError, match="no raw files have been chosen"):
        widgets.TilePreview(bare)
    bare.run_dir.mkdir(parents=True)
    shutil.copy(p.run_dir / "chosen.json", bare.run_dir)
    view = widgets.TilePreview(bare, clip_id=clip_id_of(1), window=2, frame=1)
    cached = widgets.TilePreview(p, clip_id=clip_id_of(1), window=2, frame=1)
    assert "there is no cache yet" in view.note.value
    assert np.array_equal(view.image.value, cached.image.value)
    assert [name for _, name in view.clip.options] == [name for _, name in cached.clip.options]
    assert view.answer.value == cached.answer.value
    assert view.figure().png() == cached.figure().png()


def test_path_and_speed_match_the_simulated_drive(p, view):
    truth, drive = Drive(1), view.drive()
    windows, of_clip = windows_of(p, 1)
    times_s = drive.times_s + windows.times_us(of_clip[0])[0] / 1e6
    assert np.allclose(drive.speed_mps, truth.speed(times_s), atol=0.02)
    assert np.allclose(drive.xy_m, truth.position(times_s)[:, :2], atol=0.01)
    yaw = truth.curvature * truth.travelled(times_s)
    assert np.allclose(np.unwrap(drive.yaw_rad), yaw, atol=0.01)
    window_times_s = times_s[drive.start : drive.stop]
    assert window_times_s == pytest.approx(windows.times_us(of_clip[2]) / 1e6)
    assert drive.now == drive.start + 1
    motion = view.motion.value
    view.frame.value = 2
    assert view.drive().now == drive.now + 1 and view.motion.value != motion


def test_answer_shows_the_target_text(p, view):
    windows, of_clip = windows_of(p, 1)
    truth = windows.truth(of_clip[2])
    assert f"Avg Velocity: {truth.speed_mps:.2f}m/s." in view.answer.value
    assert "&lt;think&gt;" in view.answer.value
    far = p.model_copy(update={"training": p.training.model_copy(update={"target": "future_v1"})})
    # The cache holds one second of egomotion after the last frame.
    assert "05_train leaves this window out" in widgets.TilePreview(far).answer.value


def test_static_figure_shows_the_current_choice(view):
    picture = view.figure()
    title = finding(picture)
    assert title.startswith("4-cam, tiles of 48×32, 10 Hz: 12 vision tokens a window")
    assert "Avg Velocity" in picture.axes[0].get_xlabel()
    view.setup.value, view.controls.width.value, view.controls.height.value = "7-cam", 96, 64
    title = finding(view.figure())
    assert title.startswith("7-cam, tiles of 96×64, 10 Hz: 108 vision tokens")


def test_written_params_file_reproduces_the_choice(p, view, tmp_path):
    base, path = tmp_path / "base.yaml", tmp_path / "tiles.yaml"
    base.write_text(json.dumps(p.values()))
    view.path.value = str(path)
    assert view.write.disabled and "nothing to write" in view.difference.value
    view.setup.value, view.controls.width.value, view.controls.rate.value = "7-cam", 64, 5.0
    assert not view.write.disabled and not path.exists()
    assert "+  cameras: 7-cam" in view.difference.value
    view.write.click()
    assert "Written" in view.written.value and view.write.disabled
    loaded = Params.from_files([base, path])
    assert loaded == view.choice.laid_over(p)
    assert loaded.vision.cameras == "7-cam" and loaded.processing.sample_hz == 5.0
    view.controls.rate.value = p.processing.sample_hz
    assert "-  sample_hz: 5.0" in view.difference.value
    view.write.click()
    assert Params.from_files([base, path]) == view.choice.laid_over(p)
    view.path.value = str(tmp_path / "base.yaml" / "below.yaml")
    view.write.click()
    assert "cannot be" in view.written.value + view.difference.value


def test_motion_is_drawn_below_a_wide_grid():
    times = np.arange(40) / 10
    drive = tiles.WindowMotion(
        times, np.ones((40, 2)) * times[:, None], times * 0, times + 1, 3, 9, 5
    )
    beside, below = tiles.motion(drive), tiles.motion(drive, wide=True)
    assert beside.get_figwidth() < beside.get_figheight()
    assert below.get_figwidth() > below.get_figheight()
