"""Views of windows: the frames change, and nothing else."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.training.prompt.views import Black, OneCamera, Shuffled
from tests.test_memmap import write_cache
from tests.training_set import Stripes

CAMERAS = [camera.name for camera in cameras.grid("4-cam").cameras]


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def windows(request, tmp_path_factory):
    """Windows of a real cache: clips of 3 to 6 frames of 8 × 12 px in a 2×2 grid."""
    folder = write_cache(tmp_path_factory.mktemp("views") / "cache", storage=request.param)
    return Windows(Cache.open(folder), 3, 1)


def views_of(windows):
    return [Black(windows), Shuffled(windows, 7), *(OneCamera(windows, name) for name in CAMERAS)]


def test_views_change_only_the_frames(windows):
    for view in views_of(windows):
        assert len(view) == len(windows) > 4
        assert list(view) == list(windows)
        for name in ("cache", "frame_shape", "num_short", "sequence_length", "stride"):
            assert getattr(view, name) == getattr(windows, name)
        for index in range(len(windows)):
            assert view[index] == windows[index]
            assert np.array_equal(view.times_us(index), windows.times_us(index))
            assert np.array_equal(view.egomotion(index), windows.egomotion(index))
            assert view.truth(index) == windows.truth(index)
            assert np.array_equal(view.past(index).xy_m, windows.past(index).xy_m)
            assert view.future(index) is None and windows.future(index) is None
        with pytest.raises(AttributeError):
            view.nothing  # noqa: B018


def test_read_into_gives_the_same_frames(windows):
    for view in views_of(windows):
        for index in range(len(windows)):
            frames = view.frames(index)
            assert frames.shape == windows.frame_shape and frames.dtype == np.uint8
            out = np.full(windows.frame_shape, 99, np.uint8)
            view.read_into(index, out)
            assert np.array_equal(out, frames)
            with pytest.raises(ValueError):
                frames[:] = 1
        with pytest.raises(AvomniError, match="it was asked for as"):
            view.read_into(0, np.empty((2, 8, 12, 3), np.uint8))


def test_black_view_reads_nothing(windows):
    assert not any(Black(windows).frames(i).any() for i in range(len(windows)))
    blind = Black(SimpleNamespace(frame_shape=(2, 4, 4, 3)))
    assert blind.frames(0).shape == (2, 4, 4, 3)


def test_only_views_of_black_windows_are_alike(windows):
    assert Black(windows).alike and Shuffled(Black(windows), 0).alike
    assert OneCamera(Black(windows), CAMERAS[0]).alike
    assert not hasattr(Shuffled(windows, 0), "alike")


def test_shuffled_frames_are_a_permutation(windows):
    view = Shuffled(windows, 7)
    for index in range(len(windows)):
        order = view.order(index)
        assert sorted(order) == [0, 1, 2] and list(order) != [0, 1, 2]
        assert np.array_equal(view.frames(index), windows.frames(index)[order])


@given(
    seed=st.integers(0, 2**32 - 1), length=st.integers(2, 20), clip=st.text(), number=st.integers(0)
)
def test_order_is_never_chronological_and_is_deterministic(seed, length, clip, number):
    def order(seed=seed, clip=clip, number=number, others=0):
        windows = [SimpleNamespace(clip_id="x", number=3)] * others
        windows.append(SimpleNamespace(clip_id=clip, number=number))

        class WindowList(list):
            frame_shape = (length, 8, 8, 3)

        return list(Shuffled(WindowList(windows), seed).order(others))

    assert sorted(order()) == list(range(length)) and order() != list(range(length))
    assert order(others=5) == order(), "the position among the windows does not matter"


def test_orders_differ_by_seed_clip_and_number():
    def orders(view, indices):
        return [tuple(view.order(i)) for i in indices]

    windows = Stripes(400, (16, 8, 8))
    one = orders(Shuffled(windows, 0), range(40))
    assert len(set(one)) == 40 and not set(one) & set(orders(Shuffled(windows, 1), range(40)))
    of_three = orders(Shuffled(Stripes(400, (3, 8, 8)), 0), range(400))
    counts = {order: of_three.count(order) for order in set(of_three)}
    assert len(counts) == 5 and min(counts.values()) > 40


def test_windows_of_one_frame_cannot_be_shuffled():
    with pytest.raises(AvomniError, match="1 frame cannot be shuffled"):
        Shuffled(Stripes(1, (1, 8, 8)), 0).frames(0)


def test_one_camera_view_keeps_its_tile_and_blackens_the_others(windows):
    parts = [OneCamera(windows, name) for name in CAMERAS]
    for index in range(len(windows)):
        whole = windows.frames(index)
        for (row, col), part in zip([(0, 0), (0, 1), (1, 0), (1, 1)], parts, strict=True):
            place = np.s_[:, 4 * row : 4 * row + 4, 6 * col : 6 * col + 6]
            seen = part.frames(index)
            assert np.array_equal(seen[place], whole[place]) and whole[place].any()
            seen = seen.copy()
            seen[place] = 0
            assert not seen.any()


def test_camera_outside_the_grid_is_refused(windows):
    with pytest.raises(AvomniError, match="camera_cross_left_120fov"):
        OneCamera(windows, "camera_cross_left_120fov")


def test_view_can_be_pickled():
    view = pickle.loads(pickle.dumps(Shuffled(Stripes(4), 3)))
    assert np.array_equal(view.frames(2), Shuffled(Stripes(4), 3).frames(2))
