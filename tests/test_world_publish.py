"""Publishing a world: the data set's layout, atomically, with the same bytes after any kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.own.layout import chunk_path
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.params.sections import VisionParams
from avomni_lib.plan import Bar
from avomni_world.publish import layout
from avomni_world.publish.dataset import (
    expected_bytes,
    is_published,
    publish,
    scene_of,
    world_clips,
)

FOUR = [camera.name for camera in cameras.grid("4-cam").cameras]
SMALL = {"num_chunks": 2, "clips_per_chunk": 2, "clip_seconds": 1.0, "width": 64, "height": 36}
SEVEN = VisionParams(cameras="7-cam")
TWO = VisionParams(cameras=[[cameras.FRONT_WIDE.name, cameras.REAR_TELE.name]])


def world(**values) -> Params:
    return Params.model_validate({"dataset": {"source": "world", "world": SMALL | values}})


def hashes(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): files.sha256_file(path) for path in paths}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return publish(world(), tmp_path_factory.mktemp("whole") / "world")


def test_world_has_the_data_sets_layout(published):
    chunk_files = {
        chunk_path(feature).format(chunk_id=chunk)
        for feature in layout.FEATURES
        for chunk in (0, 1)
        if feature not in cameras.BY_NAME or feature in FOUR
    }
    metadata = {
        *("README.md", "features.csv", "clip_index.parquet"),
        *("metadata/data_collection.parquet", "metadata/feature_presence.parquet"),
        "reasoning/ood_reasoning.parquet",
    }
    assert set(hashes(published)) == chunk_files | metadata
    assert "camera/camera_rear_left_70fov/camera_rear_left_70fov.chunk_0001.zip" in chunk_files
    assert "calibration/sensor_extrinsics/sensor_extrinsics.chunk_0000.parquet" in chunk_files
    assert "labels/egomotion/egomotion.chunk_0000.zip" in chunk_files


def test_attribute_tables_have_the_data_sets_columns(published):
    clips = world_clips(world().dataset.world)
    collected = pd.read_parquet(published / "metadata/data_collection.parquet")
    assert collected["month"].dtype == collected["hour_of_day"].dtype == "int64"
    assert collected["radar_config"].isna().all()  # the rig has no radar
    reasoning = pd.read_parquet(published / "reasoning/ood_reasoning.parquet")
    assert reasoning.index.name == "clip_id" and reasoning.index.tolist() == [clips[1].clip_id]
    assert list(reasoning.columns) == ["feature", "event_cluster", "events", "split"]
    assert reasoning["feature"].tolist() == [cameras.FRONT_WIDE.name]
    assert reasoning["split"].isin(["train", "val"]).all()


def test_unrendered_cameras_are_absent_and_do_not_affect_others(published, tmp_path):
    wanted = (cameras.REAR_TELE.name, cameras.FRONT_WIDE.name)
    p = world(cameras=wanted)
    two = publish(p.model_copy(update={"vision": TWO}), tmp_path / "world")
    for folder, rendered in ((published, FOUR), (two, wanted)):
        catalog = Catalog.open(folder)
        calibrated = pd.read_parquet(folder / catalog.path("camera_intrinsics", 1)).index
        assert set(calibrated.get_level_values("camera_name")) == set(rendered)
        for camera in cameras.BY_NAME:
            assert catalog.presence(camera).tolist() == [camera in rendered] * 4
            assert (folder / catalog.path(camera, 0)).exists() == (camera in rendered)
    front = catalog.path(cameras.FRONT_WIDE.name, 1)
    assert hashes(two)[front] == hashes(published)[front]


def test_grid_with_unrendered_cameras_is_refused(tmp_path):
    with pytest.raises(
        AvomniError, match="camera_cross_left_120fov.* is rendered without"
    ) as caught:
        publish(world().model_copy(update={"vision": SEVEN}), tmp_path / "world")
    assert caught.value.where == "dataset.world.cameras" and "7-cam" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_features_csv_matches_the_data_sets_line_for_line(published):
    lines = (published / "features.csv").read_text().splitlines()
    assert lines[0] == "feature,directory,chunk_path,clip_files_in_zip"
    assert lines[1] == (
        "egomotion,labels,labels/egomotion/egomotion.chunk_{chunk_id:04d}.zip,"
        '"{""egomotion"": ""{clip_id}.egomotion.parquet""}"'
    )
    assert lines[2] == (
        "obstacle.offline,labels,labels/obstacle.offline/obstacle.offline.chunk_{chunk_id:04d}.zip,"
        '"{""obstacle.offline"": ""{clip_id}.obstacle.offline.parquet""}"'
    )
    assert lines[3] == (
        "camera_intrinsics,calibration,"
        "calibration/camera_intrinsics/camera_intrinsics.chunk_{chunk_id:04d}.parquet,"
    )
    front = cameras.FRONT_WIDE.name
    row = next(row for row in csv.reader(lines) if row[0] == front)
    assert json.loads(row[3]) == {
        "video": f"{{clip_id}}.{front}.mp4",
        "frame_timestamps": f"{{clip_id}}.{front}.timestamps.parquet",
        "blurred_boxes": f"{{clip_id}}.{front}.blurred_boxes.parquet",
    }


def test_zip_members_are_stored_in_clip_order(published):
    clips = world_clips(world().dataset.world)
    for chunk in (0, 1):
        name = f"camera/{cameras.REAR_LEFT.name}/{cameras.REAR_LEFT.name}.chunk_{chunk:04d}.zip"
        with zipfile.ZipFile(published / name) as archive:
            assert archive.testzip() is None
            infos = archive.infolist()
            assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
            assert [info.filename for info in infos] == [
                f"{clip.clip_id}.{cameras.REAR_LEFT.name}{ending}"
                for clip in clips
                if clip.chunk == chunk
                for ending in (".mp4", ".timestamps.parquet", ".blurred_boxes.parquet")
            ]


def test_clips_depend_only_on_their_seeds():
    clips = world_clips(world(num_chunks=2, clips_per_chunk=50).dataset.world)
    assert len({clip.clip_id for clip in clips}) == len({clip.seed for clip in clips}) == 100
    assert all(str(uuid.UUID(clip.clip_id)) == clip.clip_id for clip in clips)
    # More clips do not change the first ones; another seed or town changes all.
    assert world_clips(world(clips_per_chunk=1).dataset.world)[0].clip_id == clips[0].clip_id
    for other in (world(seed=12), world(town="meadow")):
        ids = {clip.clip_id for clip in world_clips(other.dataset.world)}
        assert not ids & {clip.clip_id for clip in clips}
    scene = scene_of(world().dataset.world, clips[0].clip_id)
    assert scene.seed == clips[0].seed and scene.town.name == "harbour"
    with pytest.raises(AvomniError, match="not in this world"):
        scene_of(world().dataset.world, str(uuid.UUID(int=0)))


def test_share_of_straying_clips_is_as_requested(published):
    def first_states(share: float) -> list[bytes]:
        world_params = world(strays=share, clips_per_chunk=10).dataset.world
        scenes = [scene_of(world_params, clip.clip_id) for clip in world_clips(world_params)]
        return [scene.drive.state.tobytes() for scene in scenes]

    none, some, every = map(first_states, (0.0, 0.5, 1.0))
    assert not set(none) & set(every)
    strayed = [one != two for one, two in zip(none, some, strict=True)]
    assert 4 <= sum(strayed) <= 16
    assert some == [e if s else n for n, e, s in zip(none, every, strayed, strict=True)]
    # The parameters of a world are recorded; `strays` only if it is not 0.
    assert not is_published(world(strays=0.5), published)
    assert "strays" not in (published / "README.md").read_text()


@pytest.mark.parametrize("clips_per_chunk", [10, 50])
def test_splits_are_balanced_in_every_chunk(clips_per_chunk):
    clips = world_clips(world(num_chunks=3, clips_per_chunk=clips_per_chunk).dataset.world)
    for chunk in range(3):
        split = Counter(clip.split for clip in clips if clip.chunk == chunk)
        tenth = clips_per_chunk // 10
        assert split == {"train": 6 * tenth, "val": tenth, "test": 3 * tenth}


def test_expected_size_is_close_to_the_actual_size(published):
    size = sum(path.stat().st_size for path in published.rglob("*") if path.is_file())
    assert 0.4 < expected_bytes(world().dataset.world) / size < 2.5


def test_complete_world_is_not_rewritten(published):
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*")}
    assert publish(world(), published) == published
    assert {path: path.stat().st_mtime_ns for path in published.rglob("*")} == before


def test_another_world_is_not_overwritten(published, tmp_path):
    with pytest.raises(AvomniError, match="something else"):
        publish(world(seed=12), published)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(AvomniError, match="something else"):
        publish(world(), tmp_path)
    assert is_published(world(), published) and not is_published(world(seed=12), published)


def test_unknown_town_is_refused_before_writing(tmp_path):
    with pytest.raises(AvomniError, match="unknown town 'harbor'"):
        publish(world(town="harbor"), tmp_path / "world")
    assert list(tmp_path.iterdir()) == []


PUBLISH = (
    "import sys\nfrom pathlib import Path\nfrom avomni_lib.params import Params\n"
    "from avomni_world.publish.dataset import publish\n"
    'if __name__ == "__main__":\n'
    "    publish(Params.model_validate_json(sys.argv[1]), Path(sys.argv[2]))\n"
)


def test_killed_renderers_end_in_one_error_and_a_rerun_resumes(published, tmp_path):
    """Each worker kills itself when it has a clip to render; from outside it would be too late."""
    script = tmp_path / "script.py"
    script.write_text(
        PUBLISH + "else:\n"
        "    import os, signal\n"
        "    from avomni_world.scene.render import Renderer\n"
        "    Renderer.__init__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, script, world().model_dump_json(), tmp_path / "world"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    stderr = run.stderr
    assert run.returncode == 1 and "AvomniError: " in stderr
    assert "was killed twice" in stderr and "run the same command again" in stderr
    assert "BrokenProcessPool" not in stderr
    assert hashes(publish(world(), tmp_path / "world")) == hashes(published)


def test_killed_publish_resumes_to_the_same_bytes(published, tmp_path):
    folder = tmp_path / "world"
    command = [sys.executable, "-c", PUBLISH, world().model_dump_json(), str(folder)]
    for wanted in (1, 3):
        run = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while len(parts := list(tmp_path.glob(".world.*.work/*.zip"))) < wanted:
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert not folder.exists()
    (parts[0].parent / f".000009.zip.1{files.PARTIAL_SUFFIX}").write_bytes(b"half")
    counts = []

    class Counting(Bar):
        def update(self, amount: float = 1, note: str = "") -> None:
            counts.append(amount)

    publish(world(), folder, progress=Counting)
    assert counts[0] >= 3 and sum(counts) == 4  # finished clips are not rendered again
    assert hashes(folder) == hashes(published)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]  # no work folder is left
