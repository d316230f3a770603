"""The same tests for each source of clips: the hub's layout, own recordings, a LeRobot data set.

All three have drives of `published_set.Drive`; frames encode clip, camera and frame number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import open_clip
from avomni_lib.dataset.download import download
from avomni_lib.dataset.own.pack import OwnClip, pack
from avomni_lib.etl import leaks
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.run import build
from avomni_lib.etl.video import reader
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import lerobot_set, local_hub
from tests.published_set import (
    SPLITS,
    Drive,
    encode_video,
    frame_bits,
    read_frame,
    write_published_set,
)

GRID = "6-cam"
NAMES = [camera.name for camera in cameras.grid(GRID).cameras]
SECONDS, WIDTH, HEIGHT = 3.0, 64, 48
KINDS = ("physicalai", "own", "lerobot")
DATASETS = {
    "physicalai": {"source": "hub", "repo_id": "own/published", "license_accepted": True},
    "own": {"source": "folder"},
    "lerobot": {"source": "lerobot", "repo_id": lerobot_set.REPO},
}


def write_own(folder: Path) -> Path:
    clips = []
    for number in range(3):
        videos = {}
        for name in NAMES:
            camera = cameras.CAMERAS.index(cameras.BY_NAME[name])
            pictures = [frame_bits(number, camera, n, WIDTH, HEIGHT) for n in range(30)]
            videos[name] = folder / f"{number}_{name}.mp4"
            videos[name].parent.mkdir(parents=True, exist_ok=True)
            videos[name].write_bytes(encode_video(pictures, gop=5, rate=10))
        t_s, drive = np.arange(-0.5, 5, 0.05), Drive(number)
        heading = drive.curvature * drive.travelled(t_s)
        clips.append(
            OwnClip(
                f"drive {number}",
                videos,
                t_s=t_s,
                position_m=Rotation.identity().apply(drive.position(t_s)),
                heading_rad=heading,
                split=SPLITS[number],
            )
        )
    pack(folder / "packed", clips)
    return folder / "packed"


def write_lerobot(folder: Path) -> Path:
    listed = [lerobot_set.Episode(n, f"session-{n}", 0.0) for n in range(3)]
    splits = {split: f"{n}:{n + 1}" for n, split in enumerate(SPLITS)}
    return lerobot_set.write(folder, listed, splits=splits)


WRITERS = {
    "physicalai": lambda folder: write_published_set(folder, 1, 3, SECONDS),
    "own": write_own,
    "lerobot": write_lerobot,
}


@dataclass
class Read:
    """The results of 01, 02 and 03 of a run over one source."""

    kind: str
    p: Params
    audited: audit.Audit
    downloaded: download.Downloaded
    built: build.Built

    def drive_of(self, clip_id: str) -> Drive:
        """The drive of a clip; each split has one."""
        split = next(row["split"] for row in self.built.clips if row["clip_id"] == clip_id)
        return Drive(SPLITS.index(split))


@pytest.fixture(scope="module", params=KINDS)
def read(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Read]:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = WRITERS[kind](folder / "data")
    values = lerobot_set.values(folder, folder / "raw")
    values["dataset"] = {"local_dir": str(folder / "raw"), "audit": "full"} | DATASETS[kind]
    values["processing"]["obstacles"] = False
    if kind == "own":
        values["dataset"]["local_dir"] = str(data)
    repo_id = values["dataset"].get("repo_id", "own/none")
    with local_hub.serve(data, repo_id) as hub:
        values["dataset"]["endpoint"] = hub.endpoint
        p = Params.from_values(values)
        fetched = download.fetch(p, runs.open_hub(p))
        audited = audit.audit(p, runs.open_hub(p))
        yield Read(kind, p, audited, fetched, build.build(p, hub=runs.open_hub(p)))


def test_audit_reports_no_damaged_clip(read: Read):
    assert len(read.audited.clips) == 3
    severities = {row["severity"] for row in read.audited.findings if row["clip_id"]}
    assert severities <= {"odd"} and "damaged" not in {row["state"] for row in read.audited.clips}
    assert read.audited.figures["clips_by_split"] == dict.fromkeys(SPLITS, 1)
    assert {row["state"] for row in read.audited.files} <= {"sound", "not chosen"}


def test_download_lists_each_file_once_with_its_size(read: Read):
    rows = read.downloaded.rows
    assert len({row["path"] for row in rows}) == len(rows)
    for row in rows:
        assert (read.p.local_dir / row["path"]).stat().st_size == row["size"]
    assert download.missing_files(read.p) == []
    again = download.fetch(read.p, None if read.kind == "own" else runs.open_hub(read.p))
    assert again.figures["num_files_fetched"] == 0
    assert again.chosen.digest == read.downloaded.chosen.digest


def test_frames_match_their_timestamps(read: Read):
    catalog = Catalog.of(read.p)
    for clip_id in (row["clip_id"] for row in read.built.clips):
        clip, drive = open_clip(read.p.local_dir, catalog, clip_id), read.drive_of(clip_id)
        for name in NAMES[:2]:
            stamps = clip.timestamps(name)
            wanted = stamps[[0, 4, 17, -1]]
            images = reader.read_frames(clip.video(name), wanted, timestamps_us=stamps).images
            camera = cameras.CAMERAS.index(cameras.BY_NAME[name])
            seen = [read_frame(image) for image in images]
            frames = [0, 4, 17, len(stamps) - 1]
            assert seen == [(drive.clip_number, camera, frame) for frame in frames]


def test_cache_has_every_clip_and_no_leak_between_splits(read: Read):
    assert [row["state"] for row in read.built.clips] == ["ok"] * 3
    leaks.check_all(read.p, read.built.cache)


def test_windows_have_one_shape_and_match_the_drive(read: Read):
    windows = Windows(read.built.cache, 4, 2, horizon_s=1.0)
    assert {window.split for window in windows} == set(SPLITS)
    for index, window in enumerate(windows):
        frames = windows.frames(index)
        assert frames.shape == (4, 2 * 24, 3 * 32, 3) and frames.dtype == np.uint8
        times_us = windows.times_us(index)
        assert np.array_equal(np.diff(times_us), [200_000] * 3)
        drive, truth = read.drive_of(window.clip_id), windows.truth(index)
        start, stop = times_us[[0, -1]] / 1e6
        assert truth.duration_s == pytest.approx(0.6)
        driven = drive.travelled(stop) - drive.travelled(start)
        assert truth.path_m == pytest.approx(driven, abs=0.2)
        assert truth.chord_m == pytest.approx(drive.chord(start, stop), abs=0.2)
