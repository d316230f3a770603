"""Points in the rig's frame fall where the rendered camera shows them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.dataset import calibration, cameras
from avomni_world.scene import lens as rendered
from avomni_world.scene.towns import TOWNS, town


def seen_by(lens: rendered.Lens, mount: rendered.Mount) -> calibration.Projection:
    """The package's projection for the published values of a lens and a mount."""
    intrinsics = {name: getattr(lens, name) for name in ("width", "height", "cx", "cy")}
    intrinsics |= {f"fw_poly_{i}": value for i, value in enumerate(lens.fw)}
    extrinsics = dict(zip(("qx", "qy", "qz", "qw"), mount.quaternion, strict=True))
    extrinsics |= dict(zip("xyz", mount.position, strict=True))
    return calibration.Projection.of(intrinsics, extrinsics)


@settings(max_examples=40)
@given(
    camera=st.sampled_from(cameras.CAMERAS),
    name=st.sampled_from(sorted(TOWNS)),
    size=st.sampled_from([(128, 72), (64, 36), (320, 180), (1920, 1080)]),
)
def test_projection_inverts_the_worlds_lens(camera, name, size):
    """The world's lens is the published polynomial, inverted to rays by independent code."""
    lens = rendered.make_lens(camera, town(name), *size)
    mount = rendered.make_mounts(np.random.default_rng(2), town(name))[camera.name]
    pixels = np.mgrid[0 : size[0] : 13j, 0 : size[1] : 9j].reshape(2, -1).T
    rays, projection = lens.rays(pixels), seen_by(lens, mount)
    assert np.linalg.norm(rays, axis=1) == pytest.approx(1.0)
    far = np.random.default_rng(1).uniform(2, 80, (len(rays), 1))
    points = projection.to_rig.apply(rays * far) + projection.position
    np.testing.assert_allclose(projection.pixels(points), pixels, atol=1e-6)


def test_points_behind_the_camera_project_to_nan():
    camera = calibration.Projection.of(
        {"width": 100, "height": 50, "cx": 50, "cy": 25}
        | {f"fw_poly_{i}": value for i, value in enumerate((0, 60, 0, 0, 0))},
        {"qx": -0.5, "qy": 0.5, "qz": -0.5, "qw": 0.5, "x": 2, "y": 0, "z": 1},
    )
    ahead, behind = camera.pixels(np.array([[12.0, 0, 1], [-5, 0, 1]]))
    np.testing.assert_allclose(ahead, (50, 25), atol=1e-9)
    assert np.isnan(behind).all()
    left, below = camera.pixels(np.array([[12.0, 3, 1], [12, 0, 0]]))
    assert left[0] < 50 and below[1] > 25
    assert dataclasses.is_dataclass(camera)


def test_path_points_are_evenly_spaced_and_keep_the_ends():
    path = np.array([[0.0, 0], [1, 0], [10, 0], [10, 5]])
    points = calibration.along(path)
    np.testing.assert_allclose(points[[0, -1]], path[[0, -1]])
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.max() < 1.01 * 15 / (calibration.PATH_POINTS - 1)
