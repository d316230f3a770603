"""A run's clips exported as a LeRobot data set, and read back by the LeRobot source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from avomni_lib.__main__ import main
from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import open_clip
from avomni_lib.dataset.download import download
from avomni_lib.errors import AvomniError
from avomni_lib.etl import leaks
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.run import build
from avomni_lib.etl.video import reader
from avomni_lib.params import Params
from avomni_lib.training.export import lerobot
from avomni_world.publish.dataset import publish
from tests import folder_run, lerobot_set
from tests.published_set import Drive, read_frame, write_published_set

WORLD = {"num_chunks": 1, "clips_per_chunk": 4, "clip_seconds": 2.0, "width": 64, "height": 36}


def reads(folder: Path, data: Path) -> Params:
    """A run over an exported data set."""
    values = lerobot_set.values(folder, data, repo_id="own/exported")
    values["dataset"]["lerobot"] = {"profile": "rig", "is_local": True}
    return Params.from_values(values | {"vision": {"cameras": "4-cam"}})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, lerobot.Exported]:
    """An export of a folder of clips whose frames encode clip, camera and frame number."""
    folder = tmp_path_factory.mktemp("own")
    data = write_published_set(folder / "data", num_chunks=1, clips_per_chunk=6, seconds=3.0)
    text = (data / "features.csv").read_text().splitlines(keepends=True)
    lines = [line for line in text if not line.startswith(("lidar", "radar", "obstacle"))]
    (data / "features.csv").write_text("".join(lines))
    p = Params.from_values(folder_run.values(folder, data) | {"vision": {"cameras": "4-cam"}})
    download.fetch(p, None)
    return p, lerobot.export(p, folder / "exported")


def test_exported_frames_and_poses_match_the_clips(exported, tmp_path: Path):
    p, export = exported
    assert [row["episode"] for row in export.rows] == list(range(6))
    before = Catalog.of(p)
    read = reads(tmp_path, export.folder)
    after = Catalog.of(read)
    for row in export.rows[:2]:
        clip = open_clip(export.folder, after, f"episode_{row['episode']:06d}")
        source = open_clip(p.local_dir, before, row["clip_id"])
        number = before.clips.row_of(row["clip_id"])
        camera = "camera_rear_left_70fov"
        stamps = clip.timestamps(camera)
        images = reader.read_frames(clip.video(camera), stamps, timestamps_us=stamps).images
        source_stamps = source.timestamps(camera)
        seen = [read_frame(image) for image in images]
        assert {clip_number for clip_number, _, _ in seen} == {number}
        # 30 frames a second, sampled at 10 Hz.
        assert set(np.diff([frame for _, _, frame in seen])) == {3}
        motion = clip.egomotion()
        first_s = source_stamps[seen[0][2]] / 1e6
        driven = Drive(number).travelled(first_s + 1.0) - Drive(number).travelled(first_s)
        path_m = np.linalg.norm(np.diff([motion["x"][:11], motion["y"][:11]], axis=1), axis=0).sum()
        assert path_m == pytest.approx(driven, abs=0.2)


def test_exported_data_set_passes_audit_and_can_be_built(exported, tmp_path: Path):
    _, export = exported
    p = reads(tmp_path, export.folder)
    audited = audit.audit(p, None)
    assert {row["state"] for row in audited.clips} == {"sound"}, audited.summary
    assert download.fetch(p, None).figures["clips_by_split"] == dict.fromkeys(
        ("train", "val", "test"), 2
    )
    cache = build.build(p).cache
    leaks.check_all(p, cache)
    assert len(Windows(cache, 4, 2)) > 0


def test_command_line_exports_rendered_clips(tmp_path: Path, capsys):
    values = folder_run.values(tmp_path, tmp_path / "raw", sample_hz=5.0)
    values["dataset"] = {"source": "world", "world": WORLD, "local_dir": str(tmp_path / "raw")}
    p = Params.from_values(values)
    publish(p, tmp_path / "raw")  # as 02 does, without a hub
    folder_source = {"source": "folder", "local_dir": str(tmp_path / "raw")}
    download.fetch(Params.from_values(values | {"dataset": folder_source}), None)
    path = tmp_path / "world.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["export", str(path), "--lerobot"]) == 0
    folder = p.run_dir / "lerobot"
    assert f"LeRobot data set: {folder} (4 episodes" in capsys.readouterr().out
    assert "license: mit" in (folder / "README.md").read_text()
    again = reads(tmp_path / "again", folder)
    assert {row["state"] for row in audit.audit(again, None).clips} == {"sound"}
    assert main(["export", str(path), "--lerobot"]) == 1
    assert "is there already" in capsys.readouterr().err


def test_confidential_clips_are_refused(exported, tmp_path: Path):
    p, _ = exported
    gated = p.dataset.model_copy(update={"repo_id": "nvidia/PhysicalAI-Autonomous-Vehicles"})
    with pytest.raises(AvomniError, match="confidential: their licence forbids"):
        lerobot.export(p.model_copy(update={"dataset": gated}), tmp_path / "out")
    # A copy of the real data set in a folder of any name.
    data = write_published_set(tmp_path / "data", num_chunks=1, clips_per_chunk=3)
    copied = folder_run.chosen(tmp_path, data)
    with pytest.raises(AvomniError, match="confidential: their licence forbids"):
        lerobot.export(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fractional_rate_is_refused(exported, tmp_path: Path):
    p, _ = exported
    half = p.processing.model_copy(update={"sample_hz": 2.5})
    with pytest.raises(AvomniError, match="LeRobot's fps is a whole"):
        lerobot.export(p.model_copy(update={"processing": half}), tmp_path / "out")
