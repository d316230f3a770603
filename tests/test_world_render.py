"""Rendered frames: size, determinism, time and completeness."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from avomni_lib.dataset import cameras
from avomni_world.scene.render import Renderer, picture
from avomni_world.scene.scenes import make_scene
from tests.test_projection import seen_by

TIMES = np.array([0.0, 0.5, 1.0])


@pytest.fixture(scope="module")
def renderer():
    with Renderer(64, 36) as renderer:
        yield renderer


def frames(renderer: Renderer, scene, times=TIMES) -> np.ndarray:
    renderer.open(scene)
    return np.stack(list(renderer.frames(times)))


def test_frames_do_not_depend_on_earlier_renders(renderer):
    meadow, harbour = make_scene(3, "meadow", 2.0), make_scene(4, "harbour", 2.0)
    first = frames(renderer, meadow)
    assert first.shape == (3, 7, 36, 64, 3) and first.dtype == np.uint8
    frames(renderer, harbour)
    assert np.array_equal(frames(renderer, meadow), first)
    # The times in another order and another rig give the same frames.
    assert np.array_equal(frames(renderer, meadow, TIMES[::-1])[::-1], first)
    with Renderer(64, 36, cameras.GRIDS["4-cam"].cameras) as four:
        places = [cameras.CAMERAS.index(camera) for camera in cameras.GRIDS["4-cam"].cameras]
        error = frames(four, meadow).astype(int) - first[:, places]
        assert np.abs(error).mean() < 0.1


def test_each_camera_is_rendered_at_its_time(renderer):
    scene = make_scene(9, "meadow", 2.0)
    assert scene.drive.at(TIMES)["speed"].min() > 3.0
    renderer.open(scene)
    clocks = np.repeat(TIMES[:1, None], 7, axis=1)
    clocks[0, 2] = 1.0
    (mixed,) = renderer.frames(clocks)
    at_0, _, at_1 = frames(renderer, scene)
    assert np.array_equal(mixed[2], at_1[2]) and not np.array_equal(at_0[2], at_1[2])
    for idx in (0, 1, 3, 4, 5, 6):
        assert np.array_equal(mixed[idx], at_0[idx])


@pytest.mark.parametrize("town", ["meadow", "harbour"])
def test_sky_is_above_the_horizon_and_ground_below(renderer, town):
    """Sky colours are only above the row to which a level ray is projected."""
    scene = make_scene(12, town, 2.0)
    pictures = frames(renderer, scene)[0].astype(float)
    horizon, zenith = np.array(scene.town.horizon), np.array(scene.town.zenith)
    share = np.linspace(0, 1, 50)[:, None]
    sky = horizon * (1 - share) + zenith * share

    def off_sky(colour: np.ndarray) -> float:
        return np.linalg.norm(sky - colour, axis=1).min()

    for idx, camera in enumerate(cameras.CAMERAS):
        mount, lens = scene.mounts[camera.name], renderer.lenses[camera.name]
        level = mount.position + mount.rotation[:, 2] * (1, 1, 0)
        row = int(seen_by(lens, mount).pixels(level[None])[0, 1])
        top, bottom = pictures[idx][: row - 5], pictures[idx][row + 3 :]
        assert len(top) > 3 and len(bottom) > 8
        assert off_sky(np.median(top, axis=(0, 1))) < 20, camera.name
        assert off_sky(np.median(bottom, axis=(0, 1))) > 25, camera.name
        # The buffer is cleared with the zenith's colour, which on the ground would be a hole.
        assert (np.abs(bottom - zenith).max(axis=-1) > 6).all(), camera.name


def test_left_cameras_see_the_road_and_right_ones_the_verge():
    """The car drives in the right lane: the road is to its left and the verge to its right."""
    scene = make_scene(3, "meadow", 2.0)
    pictures = picture(scene, 1.0, 128, 72)
    names = [camera.name for camera in cameras.CAMERAS]

    def greenness(camera: cameras.Camera) -> float:
        low = pictures[names.index(camera.name)][52:].astype(float)
        return (low[..., 1] - low[..., [0, 2]].mean(axis=-1)).mean()

    assert greenness(cameras.CROSS_RIGHT) > greenness(cameras.CROSS_LEFT) + 10
    assert greenness(cameras.REAR_RIGHT) > greenness(cameras.REAR_LEFT) + 10


def test_frames_change_only_if_the_car_moves(renderer):
    scene = make_scene(9, "meadow", 2.0)
    moving = frames(renderer, scene).astype(int)
    assert (np.abs(moving[0] - moving[2]).mean(axis=(1, 2, 3)) > 3.0).all()
    state = np.repeat(scene.drive.state[50:51], len(scene.drive.state), axis=0)
    state[:, 3:5] = 0.0
    parked = dataclasses.replace(scene.drive, state=state)
    still = frames(renderer, dataclasses.replace(scene, drive=parked, vehicles=()))
    assert np.array_equal(still[0], still[1]) and np.array_equal(still[0], still[2])


def test_large_picture_shows_the_same_view(renderer):
    scene = make_scene(3, "meadow", 2.0)
    small = frames(renderer, scene)[1].astype(int)
    large = picture(scene, 0.5, 256, 144)
    assert large.shape == (7, 144, 256, 3)
    shrunk = large.reshape(7, 36, 4, 64, 4, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - small).mean() < 12.0


def test_rendering_prints_nothing():
    script = (
        "import numpy as np\n"
        "from avomni_world.scene.render import picture\n"
        "from avomni_world.scene.scenes import make_scene\n"
        "picture(make_scene(1, 'meadow', 1.0), 0.0, 64, 36)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_surfaces_of_equal_depth_have_a_fixed_order():
    """panda3d's order depends on memory addresses, so that a resumed world would differ."""
    times = np.arange(0, 2, 1 / 15)
    scenes = {seed: make_scene(seed, "harbour", 2.0) for seed in (3, 4, 5)}
    drawn: dict[int, list[bytes]] = {seed: [] for seed in scenes}
    for order in ((3, 4, 5), (5, 4, 3)):
        with Renderer(128, 72) as renderer:
            for seed in order:
                renderer.open(scenes[seed])
                pictures = [picture.tobytes() for picture in renderer.frames(times)]
                drawn[seed].append(hashlib.sha256(b"".join(pictures)).digest())
    assert all(first == second for first, second in drawn.values())
