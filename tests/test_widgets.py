"""The tile preview, by its traits: what is set on the left is what is drawn on the right."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from avomni_lib.dataset import rig
from avomni_lib.dataset.chosen import read_chosen
from avomni_lib.dataset.evicted import evict
from avomni_lib.errors import AvomniError
from avomni_lib.etl.memmap import Cache
from avomni_lib.etl.windows import Windows
from avomni_lib.notebook import widgets
from avomni_lib.notebook.plots import canvas
from avomni_lib.params import Params
from tests import cached_run
from tests.published_set import Drive, clip_id_of, read_frame

SHORT = 4  # this clip has fewer windows than the others
OWN = (cached_run.TILE_WIDTH, cached_run.TILE_HEIGHT)


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    return cached_run.make(tmp_path_factory.mktemp("preview"), shortened=SHORT)


@pytest.fixture
def view(p):
    return widgets.TilePreview(p, clip_id=clip_id_of(1), window=2, frame=1)


def shown(view):
    """The grid out of the widget's PNG: names cut away, enlargement undone."""
    sheet = np.asarray(Image.open(io.BytesIO(view.image.value)).convert("RGB"))
    grid, (width, height) = rig.grid(view.setup.value), view.tile.value
    shape = (grid.rows * height, grid.cols * width)
    scale = canvas.scale_for(shape[1], widgets.WIDE_PX)
    last = canvas.tile_box(shape, grid, grid.rows - 1, grid.cols - 1, scale)
    assert sheet.shape[:2] == last[:1:-1]
    image = np.zeros((*shape, 3), dtype=np.uint8)
    for row in range(grid.rows):
        for col in range(grid.cols):
            left, top, right, bottom = canvas.tile_box(shape, grid, row, col, scale)
            tile = sheet[top:bottom, left:right][::scale, ::scale]
            image[row * height : (row + 1) * height, col * width : (col + 1) * width] = tile
    return image


def tile_at(image, grid, row, col):
    height, width = image.shape[0] // grid.rows, image.shape[1] // grid.cols
    return image[row * height : (row + 1) * height, col * width : (col + 1) * width]


def test_the_picture_is_the_caches_array_pixel_for_pixel(p, view):
    windows = Windows(Cache.open(p.cache_dir), cached_run.LENGTH, cached_run.STRIDE)
    of_clip = [i for i in range(len(windows)) if windows[i].clip_id == clip_id_of(1)]
    assert np.array_equal(shown(view), windows.frames(of_clip[2])[1])
    view.frame.value = 3
    assert np.array_equal(shown(view), windows.frames(of_clip[2])[3])
    view.window.value = 4
    assert np.array_equal(shown(view), windows.frames(of_clip[4])[3])
    view.clip.value = clip_id_of(2)
    assert read_frame(tile_at(shown(view), rig.grid("4-cam"), 0, 0))[0] == 2
    assert "read from the cache" in view.note.value
    assert "do not share" in view.note.value, "clips of a folder are not ours"


def test_values_out_of_range_are_clamped_and_a_shorter_clip_moves_the_window(view):
    view.frame.value = 99
    assert view.frame.value == cached_run.LENGTH - 1
    last = view.window.max
    view.window.value = 99
    assert view.window.value == last
    view.clip.value = clip_id_of(SHORT)
    assert 0 < view.window.max < last and view.window.value == view.window.max
    assert view.windows[view.index].clip_id == clip_id_of(SHORT)
    assert np.array_equal(shown(view), view.windows.frames(view.index)[view.frame.value])


def test_seven_cameras_come_from_the_raw_clip_at_the_windows_times(view):
    before = [read_frame(tile_at(shown(view), rig.grid("4-cam"), 0, 0))]
    view.setup.value = "7-cam"
    grid, image = rig.grid("7-cam"), shown(view)
    assert image.shape == (3 * OWN[1], 3 * OWN[0], 3)
    frames = {}
    for place, camera in enumerate(grid.cells):
        tile = tile_at(image, grid, *divmod(place, grid.cols))
        if camera is None:
            assert not tile.any()
            continue
        number, camera_idx, frames[camera.name] = read_frame(tile)
        assert (number, rig.CAMERAS[camera_idx]) == (1, camera)
    assert frames[rig.FRONT_WIDE.name] == before[0][2], "the same instant as before"
    assert "read from the raw clip" in view.note.value


def test_raw_clips_at_the_runs_own_choice_give_the_caches_very_pixels(p, view):
    for index in (0, view.index):
        window, times_us = view.windows[index], view.windows.times_us(index)
        raw = widgets.RawFrames(p).grid_frames(window.clip_id, times_us, "4-cam", OWN)
        assert np.array_equal(raw, view.windows.frames(index))


def test_another_tile_size_changes_picture_and_cost(view):
    assert OWN in dict(view.tile.options).values()
    own_words = view.note.value
    view.tile.value = (96, 64)
    assert shown(view).shape == (128, 192, 3)
    number, camera_idx, _ = read_frame(tile_at(shown(view), rig.grid("4-cam"), 1, 1))
    assert (number, rig.CAMERAS[camera_idx]) == (1, rig.REAR_RIGHT)
    # 4 frames are 2 temporal patches; a vision token is 32 × 32 px.
    assert "48 vision tokens" in view.note.value and "0.3 MB a sample" in view.note.value
    assert "12 vision tokens" in own_words and "0.1 MB a sample" in own_words


def test_a_choice_that_the_model_would_refuse_is_shown_and_says_so(view):
    view.setup.value = "7-cam"  # 3 × 48 px are no multiple of 32
    assert shown(view).any()
    assert "would refuse it: a grid of 144×96 px does not divide" in view.note.value
    small = view.p.model_copy(
        update={"model": view.p.model.model_copy(update={"max_seq_length": 70})}
    )
    assert "too long" in widgets.TilePreview(small).note.value


def test_missing_raw_files_are_named_and_the_cache_is_still_shown(p, tmp_path):
    copy = tmp_path / "published"
    shutil.copytree(p.local_dir, copy)
    for path in (copy / "camera" / rig.REAR_TELE.name).iterdir():
        path.unlink()
    values = p.model_dump() | {"dataset": p.dataset.model_dump() | {"local_dir": str(copy)}}
    view = widgets.TilePreview(Params.from_values(values))
    view.setup.value = "7-cam"
    assert view.image.value == b""
    assert rig.REAR_TELE.name in view.note.value and "<br>" in view.note.value
    with pytest.raises(AvomniError, match=rig.REAR_TELE.name):
        view.figure()
    shutil.rmtree(copy)
    view.setup.value = "4-cam"
    assert shown(view).any(), "raw chunks may be evicted once the cache is there"


def test_path_and_speed_follow_the_drive(view):
    truth, drive = Drive(1), view.drive()
    times_us = view.windows.times_us(view.index)
    first_us = view.windows.times_us(view._first[clip_id_of(1)])[0]
    times_s = drive.times_s + first_us / 1e6
    assert np.allclose(drive.speed_mps, truth.speed(times_s), atol=0.02)
    assert np.allclose(drive.xy_m, truth.position(times_s)[:, :2], atol=0.01)
    yaw = truth.curvature * truth.travelled(times_s)
    assert np.allclose(np.unwrap(drive.yaw_rad), yaw, atol=0.01)
    assert times_s[drive.start : drive.stop] == pytest.approx(times_us / 1e6)
    assert drive.now == drive.start + 1
    motion = view.motion.value
    view.frame.value = 2
    assert view.drive().now == drive.now + 1 and view.motion.value != motion


def test_the_static_figure_shows_the_current_choice(view):
    picture = view.figure()
    title = picture._suptitle.get_text().replace("\n", " ")
    assert title.startswith("4-cam, tiles of 48×32: 12 vision tokens a window")
    before = picture.png()
    view.setup.value, view.tile.value = "7-cam", (96, 64)
    other = view.figure()
    assert other._suptitle.get_text().startswith("7-cam, tiles of 96×64: 108 vision tokens")
    assert other.png() != before


def test_decoded_windows_are_read_once_and_kept_within_a_bound(p):
    view = widgets.TilePreview(p)
    one = cached_run.LENGTH * 192 * 128 * 3
    raw = widgets.RawFrames(p, limit_bytes=2 * one)
    times = [view.windows.times_us(i) for i in range(3)]
    name = view.windows[0].clip_id
    first = raw.grid_frames(name, times[0], "4-cam", (96, 64))
    assert raw.grid_frames(name, times[0], "4-cam", (96, 64)) is first
    for wanted in times[1:]:
        raw.grid_frames(name, wanted, "4-cam", (96, 64))
        assert raw.num_bytes <= 2 * one
    assert raw.grid_frames(name, times[0], "4-cam", (96, 64)) is not first


def test_an_unknown_clip_is_refused_and_a_window_past_the_end_is_the_last(p):
    with pytest.raises(AvomniError, match="clip nowhere has no window"):
        widgets.TilePreview(p, clip_id="nowhere")
    view = widgets.TilePreview(p, window=10_000, frame=10_000)
    assert view.window.value == view.window.max and view.frame.value == view.frame.max


def test_with_raw_files_evicted_the_cache_is_shown_and_another_choice_says_why_not(p, tmp_path):
    shutil.copytree(p.run_dir, tmp_path / "outputs" / "test")
    shutil.copytree(p.local_dir, tmp_path / "published")
    p = Params.from_values(cached_run.values(tmp_path))
    cameras = [name for name in read_chosen(p).files if name.startswith("camera/")]
    evict(p, cameras)
    view = widgets.TilePreview(p)
    assert shown(view).any()
    assert "read from the cache; raw files are evicted" in view.note.value
    view.tile.value = view.tile.options[0][1]
    assert "raw files of this clip were evicted on 20" in view.note.value
    assert view.image.value == b""
    view.tile.value = OWN
    assert shown(view).any()


@pytest.mark.parametrize("own", [(48, 32), (448, 256), (224, 128), (100, 60)])
def test_tile_sizes_hold_the_runs_own(own):
    sizes = widgets.tile_sizes(own)
    assert own in sizes and len(sizes) >= 4
    assert all(w % 16 == 0 and h % 16 == 0 for w, h in sizes if (w, h) != own)
