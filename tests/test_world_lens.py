"""Lenses, mounts and rasters of the rendered cameras."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.dataset import cameras
from avomni_world.scene import towns
from avomni_world.scene.lens import Raster, make_lens, make_mounts

any_camera = st.sampled_from(cameras.CAMERAS)
town_names = st.sampled_from(sorted(towns.TOWNS))
sizes = st.sampled_from([(128, 72), (64, 36), (320, 180), (1920, 1080)])


@settings(max_examples=40)
@given(camera=any_camera, town=town_names, size=sizes)
def test_backward_polynomial_inverts_the_forward_one(camera, town, size):
    lens = make_lens(camera, towns.town(town), *size)
    radius = np.linspace(0, np.hypot(*size) / 2, 200)
    angle = np.polynomial.polynomial.polyval(radius, lens.bw)
    again = np.polynomial.polynomial.polyval(angle, lens.fw)
    assert np.abs(again - radius).max() < 0.03 * size[0] / 128


@pytest.mark.parametrize("camera", cameras.CAMERAS, ids=lambda c: c.name)
def test_field_of_view_matches_the_cameras_name(camera):
    lens = make_lens(camera, towns.town("meadow"), 128, 72)
    left, right = lens.rays(np.array([[lens.cx - 64, lens.cy], [lens.cx + 64, lens.cy]]))
    angle = np.degrees(np.arccos(left @ right))
    assert angle == pytest.approx(camera.fov_deg, abs=0.01)


@pytest.mark.parametrize("town", ["meadow", "harbour"])
def test_mounts_point_as_the_cameras_names_say(town):
    mounts = make_mounts(np.random.default_rng(3), towns.town(town))
    ahead = {name: mount.rotation @ (0, 0, 1) for name, mount in mounts.items()}
    for name, mount in mounts.items():
        assert np.linalg.det(mount.rotation) == pytest.approx(1.0)
        assert (mount.rotation @ (0, 1, 0))[2] < -0.9, name  # the picture's down is down
        assert mount.quaternion @ mount.quaternion == pytest.approx(1.0)
    for camera in (cameras.FRONT_WIDE, cameras.FRONT_TELE):
        assert ahead[camera.name][0] > 0.99
        assert (mounts[camera.name].rotation @ (1, 0, 0))[1] < -0.99  # right in the picture
    assert ahead[cameras.REAR_TELE.name][0] < -0.99
    assert ahead[cameras.CROSS_LEFT.name][1] > 0.8 and ahead[cameras.CROSS_RIGHT.name][1] < -0.8
    for camera, side in ((cameras.REAR_LEFT, 1), (cameras.REAR_RIGHT, -1)):
        assert ahead[camera.name][0] < -0.7 and side * ahead[camera.name][1] > 0.4
        assert side * mounts[camera.name].position[1] > 0.8


def test_harbour_rig_is_higher_and_has_other_lenses():
    rng = np.random.default_rng
    meadow, harbour = (make_mounts(rng(1), towns.town(n)) for n in ("meadow", "harbour"))
    for camera in cameras.CAMERAS:
        rise = harbour[camera.name].position[2] - meadow[camera.name].position[2]
        assert rise == pytest.approx(1.0)
        lenses = [make_lens(camera, towns.town(n), 128, 72) for n in ("meadow", "harbour")]
        assert abs(lenses[0].fw[1] / lenses[1].fw[1] - 1) > 0.05


@settings(max_examples=30)
@given(camera=any_camera, town=town_names, density=st.floats(0.4, 2.5))
def test_raster_covers_the_frame(camera, town, density):
    lens = make_lens(camera, towns.town(town), 64, 36)
    raster = Raster.of(lens, density)
    assert raster.rows.shape == raster.cols.shape == (4, 36, 64)
    for index, size in ((raster.rows, raster.height), (raster.cols, raster.width)):
        assert index.min() >= 0 and index.max() < size
        # The unused margin is a pixel, or due to the off-centre principal point.
        assert index.min() < 0.03 * size + 2 or index.max() > 0.97 * size - 3
