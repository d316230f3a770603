"""NVIDIA's own kit reads the rendered world, unchanged, over HTTP from the local hub.

Its frames, egomotion and calibration are compared with the rendered scenes, and known points of
the world, projected with the kit's objects, are located in the frames that it decodes.
"""

import contextlib
import functools
from dataclasses import astuple

import huggingface_hub
import numpy as np
import pandas as pd
import physical_ai_av
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.params import Params
from avomni_world.publish import recording
from avomni_world.publish.attributes import circumstances
from avomni_world.publish.dataset import publish, scene_of, world_clips
from avomni_world.scene.render import Renderer
from tests.local_hub import serve

WIDTH, HEIGHT = 128, 72
SECONDS = 1.2
CAMERAS = [camera.name for camera in cameras.CAMERAS]


def world(**values) -> Params:
    values = {"clip_seconds": SECONDS, "cameras": "7-cam", "num_chunks": 2} | values
    values |= {"width": WIDTH, "height": HEIGHT}
    # The kit asks for the name of the real data set.
    repo_id = "nvidia/PhysicalAI-Autonomous-Vehicles"
    return Params.model_validate(
        {"dataset": {"source": "world", "repo_id": repo_id, "world": values}}
    )


@contextlib.contextmanager
def kit_on(p: Params, tmp_path):
    folder = publish(p, tmp_path / "world")
    with (
        serve(folder, p.dataset.repo_id) as hub,
        pytest.MonkeyPatch.context() as patch,
    ):
        # The kit has no endpoint argument, and HF_ENDPOINT is read at import.
        here = functools.partial(huggingface_hub.HfApi, endpoint=hub.endpoint)
        patch.setattr(huggingface_hub, "HfApi", here)
        kit = physical_ai_av.PhysicalAIAVDatasetInterface(cache_dir=tmp_path / "cache", token=False)
        assert kit.revision == hub.commit
        kit.download_clip_features(kit.clip_index.index)
        yield kit


@pytest.fixture(scope="module")
def harbour(tmp_path_factory):
    p = world(town="harbour", clips_per_chunk=2)
    with kit_on(p, tmp_path_factory.mktemp("harbour")) as kit:
        yield p.dataset.world, kit


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    p = world(town="survey", clips_per_chunk=1)
    with kit_on(p, tmp_path_factory.mktemp("survey")) as kit:
        yield p.dataset.world, kit


def test_index_and_metadata_match_the_world(harbour):
    published, kit = harbour
    clips = world_clips(published)
    assert kit.clip_index.index.tolist() == [clip.clip_id for clip in clips]
    assert kit.clip_index["chunk"].tolist() == [0, 0, 1, 1]
    assert kit.clip_index["split"].tolist() == [clip.split for clip in clips]
    assert kit.clip_index["clip_is_valid"].all()
    assert list(kit.feature_presence.columns) == list(kit.features.features_df.index)
    assert kit.feature_presence.all(axis=None)
    assert kit.data_collection.index.tolist() == kit.clip_index.index.tolist()
    assert list(kit.data_collection.columns) == [
        *("country", "month", "hour_of_day", "platform_class", "radar_config"),
    ]
    for clip in clips:
        row = kit.data_collection.loc[clip.clip_id]
        about = circumstances(clip.clip_id, clip.number, clip.chunk, published.town)
        assert (row.country, row.month, row.hour_of_day, row.platform_class) == (
            *(about.country, about.month, about.hour, about.platform),
        )


def test_frames_match_the_scene_at_their_timestamps(harbour):
    published, kit = harbour
    wanted = np.array([100_000, 433_333, 700_000, 1_200_000])
    with Renderer(WIDTH, HEIGHT) as renderer:
        for clip_id in kit.clip_index.index[[0, 3]]:
            scene = scene_of(published, clip_id)
            renderer.open(scene)
            for idx, camera in enumerate(CAMERAS):
                reader = kit.get_clip_feature(clip_id, camera)
                stamps = reader.timestamps
                assert (
                    stamps.tolist() == recording.camera_clocks(scene.seed, SECONDS)[:, idx].tolist()
                )
                images, at = reader.decode_images_from_timestamps(wanted)
                assert ((at <= wanted) & (wanted - at < 33_500)).all()
                ours = np.stack([f[idx] for f in renderer.frames(at / 1e6)]).astype(int)
                error = np.abs(images.astype(int) - ours).mean(axis=(1, 2, 3))
                assert error.max() < 7.0, (camera, error)  # of 255: the loss of H.264
                far = np.stack([f[idx] for f in renderer.frames(at / 1e6 + 0.2)]).astype(int)
                moved = np.abs(images.astype(int) - far).mean(axis=(1, 2, 3))
                assert (error < moved)[scene.drive.at(at / 1e6)["speed"] > 1.0].all(), camera


def test_egomotion_matches_the_drive(harbour):
    published, kit = harbour
    for clip_id in kit.clip_index.index:
        scene = scene_of(published, clip_id)
        motion = kit.get_clip_feature(clip_id, "egomotion")
        first, last = motion.time_range
        assert first < -22_100 and last >= (SECONDS + 10.3) * 1e6
        t_us = np.arange(0, 11_000_000, 3_700)
        state, ours = motion(t_us), scene.egomotion(t_us)
        xyz = np.stack([ours["x"], ours["y"], ours["z"]], axis=-1)
        assert np.abs(state.pose.translation - xyz).max() < 1e-4
        yaw = state.pose.rotation.as_euler("ZYX")[:, 0]
        assert np.abs(yaw - 2 * np.arctan2(ours["qz"], ours["qw"])).max() < 1e-5
        # Velocity is the pose's own rate of change, in the anchor frame.
        step = 10_000
        there, here = motion(t_us + step), motion(t_us)
        drift = (there.pose.translation - here.pose.translation) / (step / 1e6)
        assert np.abs(drift - (there.velocity + here.velocity) / 2).max() < 2e-3
        zero = motion(np.array([0]))
        assert np.abs(zero.pose.translation).max() < 1e-6
        assert zero.pose.rotation.magnitude().max() < 1e-6


def test_calibration_matches_the_rig(harbour):
    published, kit = harbour
    for clip_id in kit.clip_index.index:
        scene = scene_of(published, clip_id)
        models = kit.get_clip_feature(clip_id, "camera_intrinsics").camera_models
        poses = kit.get_clip_feature(clip_id, "sensor_extrinsics").sensor_poses
        assert set(models) == set(poses) == set(CAMERAS)
        for camera in CAMERAS:
            mount = scene.mounts[camera].rotation
            assert np.allclose(poses[camera].rotation.as_matrix(), mount, atol=1e-12)
            assert np.allclose(poses[camera].translation, scene.mounts[camera].position, atol=1e-12)
            # The two published polynomials are inverse over the whole picture.
            corner = np.mgrid[1 : WIDTH - 1 : 9j, 1 : HEIGHT - 1 : 7j].reshape(2, -1).T
            back = models[camera].ray2pixel(models[camera].pixel2ray(corner))
            assert np.abs(back - corner).max() < 0.05, camera
        assert astuple(kit.get_clip_feature(clip_id, "vehicle_dimensions")) == astuple(
            scene.vehicle
        )


def test_obstacle_labels_match_the_scene(harbour):
    """The kit has no decoder for these labels and returns the tables."""
    published, kit = harbour
    for clip_id in kit.clip_index.index:
        scene = scene_of(published, clip_id)
        table = kit.get_clip_feature(clip_id, "obstacle.offline")["obstacle.offline"]
        assert len(table) and table.shape[1] == 16
        assert (table["timestamp_us"] == table["reference_frame_timestamp_us"]).all()
        motion = kit.get_clip_feature(clip_id, "egomotion")
        for row in table.itertuples():
            middle = np.array([row.center_x, row.center_y, row.center_z])
            place = motion(row.timestamp_us).pose.apply(middle)
            x, y, _ = scene.vehicle_poses([row.timestamp_us / 1e6])[0, int(row.track_id)]
            # The centre of a van's box is not above its origin.
            assert np.hypot(place[0] - x, place[1] - y) < 0.5


def test_blurred_boxes_are_empty_and_columns_typed(harbour):
    _, kit = harbour
    clip_id = kit.clip_index.index[0]
    paths = kit.get_clip_feature_paths(clip_id, CAMERAS[0], members="blurred_boxes")
    boxes = pd.read_parquet(paths["blurred_boxes"])
    assert list(boxes.columns) == ["frame_index", "x1", "y1", "x2", "y2"] and len(boxes) == 0
    assert boxes.dtypes.astype(str).tolist() == ["int64"] + ["float64"] * 4
    path = kit.get_clip_feature_paths(clip_id, "egomotion", members="egomotion")["egomotion"]
    motion = pd.read_parquet(path)
    assert len(motion.columns) == 15 and isinstance(motion.index, pd.RangeIndex)
    assert motion.dtypes.astype(str).tolist() == ["int64"] + ["float64"] * 14


def seen_at(picture: np.ndarray, near: np.ndarray, reach: int) -> np.ndarray | None:
    """The middle (x, y) of the light in a square of `reach` pixels around a pixel."""
    x, y = near.astype(int)
    rows, cols = np.mgrid[y - reach : y + reach + 1, x - reach : x + reach + 1]
    light = np.clip(picture[rows, cols].mean(axis=-1) - 24.0, 0, None)
    if light.sum() < 150:
        return None
    return np.array([(light * (cols + 0.5)).sum(), (light * (rows + 0.5)).sum()]) / light.sum()


def test_landmarks_project_to_their_pixels(survey):
    """Pose at the frame's timestamp, extrinsics, f-theta: all published, all read by the kit."""
    published, kit = survey
    errors = {camera: [] for camera in CAMERAS}
    for clip_id in kit.clip_index.index:
        balls = scene_of(published, clip_id).landmarks
        motion = kit.get_clip_feature(clip_id, "egomotion")
        models = kit.get_clip_feature(clip_id, "camera_intrinsics").camera_models
        mounts = kit.get_clip_feature(clip_id, "sensor_extrinsics").sensor_poses
        for camera in CAMERAS:
            reader = kit.get_clip_feature(clip_id, camera)
            pictures, stamps = reader.decode_images_from_timestamps(
                np.arange(50_000, 1_200_000, 80_000)
            )
            for picture, stamp in zip(pictures, stamps, strict=True):
                camera_to_anchor = motion(stamp).pose * mounts[camera]
                rays = camera_to_anchor.inv().apply(balls)
                rays = rays[rays[:, 2] > 0.3 * np.linalg.norm(rays, axis=1)]
                pixels = models[camera].ray2pixel(rays)
                # Radius in pixels of a ball of 0.45 m; a wide lens stretches it towards the edges.
                radius = 0.45 * 1.5 * models[camera].th2r.coef[1] / np.linalg.norm(rays, axis=1)
                for idx in np.flatnonzero((radius > 1.0) & (radius < 6.0)):
                    reach = int(np.ceil(radius[idx])) + 2
                    edge = reach + 1
                    inside = (pixels[idx] > edge) & (pixels[idx] < (WIDTH - edge, HEIGHT - edge))
                    gap = np.linalg.norm(pixels - pixels[idx], axis=1) - radius
                    alone = np.delete(gap, idx).min() > 1.5 * reach + 1
                    if inside.all() and alone:
                        middle = seen_at(picture, pixels[idx], reach)
                        assert middle is not None, (camera, stamp, pixels[idx])
                        errors[camera].append(np.linalg.norm(middle - pixels[idx]))
    for camera, distances in errors.items():
        assert len(distances) >= 8, (camera, len(distances))
        assert max(distances) <= 0.5, (camera, max(distances))
