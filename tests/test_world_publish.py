"""A published world: upstream's layout, whole or not at all, the same bytes after any kill."""

import contextlib
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
import psutil
import pytest

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
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


def test_layout(published):
    chunk_files = {
        feature.chunk_path.format(chunk_id=chunk)
        for feature in layout.FEATURES
        for chunk in (0, 1)
        if feature.name not in cameras.BY_NAME or feature.name in FOUR
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


def test_tables_of_attributes_have_upstreams_columns(published):
    clips = world_clips(world().dataset.world)
    collected = pd.read_parquet(published / "metadata/data_collection.parquet")
    assert collected.index.name == "clip_id"
    assert collected.index.tolist() == [clip.clip_id for clip in clips]
    assert list(collected.columns) == [
        *("country", "month", "hour_of_day", "platform_class", "radar_config"),
    ]
    assert collected["month"].dtype == collected["hour_of_day"].dtype == "int64"
    assert collected["radar_config"].isna().all()  # the rig has no radar
    reasoning = pd.read_parquet(published / "reasoning/ood_reasoning.parquet")
    assert reasoning.index.name == "clip_id" and reasoning.index.tolist() == [clips[1].clip_id]
    assert list(reasoning.columns) == ["feature", "event_cluster", "events", "split"]
    assert reasoning["feature"].tolist() == [cameras.FRONT_WIDE.name]
    assert reasoning["split"].isin(["train", "val"]).all()


def test_the_catalog_tells_what_was_published(published):
    catalog = Catalog.open(published)
    collected = pd.read_parquet(published / "metadata/data_collection.parquet")
    clusters = pd.read_parquet(published / "reasoning/ood_reasoning.parquet")["event_cluster"]
    for clip in world_clips(world().dataset.world):
        assert catalog.attributes(clip.clip_id) == {
            "country": collected.at[clip.clip_id, "country"],
            "month": collected.at[clip.clip_id, "month"],
            "hour": collected.at[clip.clip_id, "hour_of_day"],
            "platform": collected.at[clip.clip_id, "platform_class"],
            "event_cluster": clusters.get(clip.clip_id),
        }


def test_cameras_that_are_not_rendered_are_absent_and_change_no_other(published, tmp_path):
    wanted = (cameras.REAR_TELE.name, cameras.FRONT_WIDE.name)
    p = world(cameras=wanted)
    two = publish(p.model_copy(update={"vision": TWO}), tmp_path / "world")
    for folder, there in ((published, FOUR), (two, wanted)):
        catalog = Catalog.open(folder)
        calibrated = pd.read_parquet(folder / catalog.path("camera_intrinsics", 1)).index
        assert set(calibrated.get_level_values("camera_name")) == set(there)
        for camera in cameras.BY_NAME:
            assert catalog.presence(camera).tolist() == [camera in there] * 4
            assert (folder / catalog.path(camera, 0)).exists() == (camera in there)
    front = catalog.path(cameras.FRONT_WIDE.name, 1)
    assert hashes(two)[front] == hashes(published)[front]


def test_a_grid_of_cameras_that_are_not_rendered_is_refused(tmp_path):
    with pytest.raises(AvomniError, match="camera_cross_left_120fov.* is rendered without") as told:
        publish(world().model_copy(update={"vision": SEVEN}), tmp_path / "world")
    assert told.value.where == "dataset.world.cameras" and "7-cam" in told.value.fix
    assert list(tmp_path.iterdir()) == []


def test_features_csv_is_upstreams_line_for_line(published):
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


def test_zips_are_stored_flat_and_in_the_order_of_the_clips(published):
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


def test_clips_are_functions_of_their_seeds():
    clips = world_clips(world(num_chunks=2, clips_per_chunk=50).dataset.world)
    assert len({clip.clip_id for clip in clips}) == len({clip.seed for clip in clips}) == 100
    assert all(str(uuid.UUID(clip.clip_id)) == clip.clip_id for clip in clips)
    # More clips leave the first as they are; another seed or town changes all.
    assert world_clips(world(clips_per_chunk=1).dataset.world)[0].clip_id == clips[0].clip_id
    for other in (world(seed=12), world(town="meadow")):
        ids = {clip.clip_id for clip in world_clips(other.dataset.world)}
        assert not ids & {clip.clip_id for clip in clips}
    scene = scene_of(world().dataset.world, clips[0].clip_id)
    assert scene.seed == clips[0].seed and scene.town.name == "harbour"
    with pytest.raises(AvomniError, match="not in this world"):
        scene_of(world().dataset.world, str(uuid.UUID(int=0)))


def test_the_asked_share_of_the_clips_strays_and_the_others_are_as_they_were(published):
    def first_states(share: float) -> list[bytes]:
        asked = world(strays=share, clips_per_chunk=10).dataset.world
        scenes = [scene_of(asked, clip.clip_id) for clip in world_clips(asked)]
        return [scene.drive.state.tobytes() for scene in scenes]

    none, some, every = map(first_states, (0.0, 0.5, 1.0))
    assert not set(none) & set(every)
    strayed = [one != two for one, two in zip(none, some, strict=True)]
    assert 4 <= sum(strayed) <= 16
    assert some == [e if s else n for n, e, s in zip(none, every, strayed, strict=True)]
    # What a folder was made from is recorded, and where nobody strays it is as it ever was.
    assert not is_published(world(strays=0.5), published)
    assert "strays" not in (published / "README.md").read_text()


@pytest.mark.parametrize("clips_per_chunk", [10, 50])
def test_splits_are_balanced_in_every_chunk(clips_per_chunk):
    clips = world_clips(world(num_chunks=3, clips_per_chunk=clips_per_chunk).dataset.world)
    for chunk in range(3):
        split = Counter(clip.split for clip in clips if clip.chunk == chunk)
        tenth = clips_per_chunk // 10
        assert split == {"train": 6 * tenth, "val": tenth, "test": 3 * tenth}


def test_the_room_that_is_asked_for_is_about_what_is_made(published):
    size = sum(path.stat().st_size for path in published.rglob("*") if path.is_file())
    assert 0.4 < expected_bytes(world().dataset.world) / size < 2.5


def test_a_whole_world_is_left_as_it_is(published):
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*")}
    assert publish(world(), published) == published
    assert {path: path.stat().st_mtime_ns for path in published.rglob("*")} == before


def test_another_world_is_not_written_over(published, tmp_path):
    with pytest.raises(AvomniError, match="something else"):
        publish(world(seed=12), published)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(AvomniError, match="something else"):
        publish(world(), tmp_path)
    assert is_published(world(), published) and not is_published(world(seed=12), published)


def test_unknown_town_stops_before_anything_is_made(tmp_path):
    with pytest.raises(AvomniError, match="unknown town 'harbor'"):
        publish(world(town="harbor"), tmp_path / "world")
    assert list(tmp_path.iterdir()) == []


PUBLISH = (
    "import sys\nfrom pathlib import Path\nfrom avomni_lib.params import Params\n"
    "from avomni_world.publish.dataset import publish\n"
    'if __name__ == "__main__":\n'
    "    publish(Params.model_validate_json(sys.argv[1]), Path(sys.argv[2]))\n"
)


def renderers(process: subprocess.Popen) -> list[psutil.Process]:
    """Those that have come to work: they have loaded panda3d."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            if any("panda3d" in mapped.path for mapped in child.memory_maps()):
                found.append(child)
    return found


def test_a_renderer_that_is_killed_is_replaced(published, tmp_path):
    command = [sys.executable, "-c", PUBLISH, world().model_dump_json(), str(tmp_path / "world")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        while not (working := renderers(run)):
            assert run.poll() is None
        working[0].kill()
        assert "Traceback" not in run.communicate(timeout=120)[1]
    assert run.returncode == 0 and hashes(tmp_path / "world") == hashes(published)


def test_renderers_that_are_always_killed_end_it_in_words_and_it_goes_on(published, tmp_path):
    """Each is killed when it has a clip to render, by itself: from outside one is too late."""
    script = tmp_path / "script.py"
    script.write_text(
        PUBLISH + "else:\n"
        "    import os, signal\n"
        "    from avomni_world.scene.render import Renderer\n"
        "    Renderer.__init__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, script, world().model_dump_json(), tmp_path / "world"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = run.stderr
    assert run.returncode == 1 and "AvomniError: " in said
    assert "was killed twice" in said and "run the same command again" in said
    assert "BrokenProcessPool" not in said
    assert hashes(publish(world(), tmp_path / "world")) == hashes(published)


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(published, tmp_path):
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
    assert counts[0] >= 3 and sum(counts) == 4  # what was there is not made again
    assert hashes(folder) == hashes(published)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]  # nothing is left beside it
