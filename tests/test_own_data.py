"""Own recordings: plain mp4s and poses, packed as in docs/own_clips.md and read back.

The drives are known in closed form, and every frame encodes its number.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import EGOMOTION_COLUMNS, Clip
from avomni_lib.dataset.download import download
from avomni_lib.dataset.own.pack import OwnClip, pack
from avomni_lib.dataset.own.poses import egomotion
from avomni_lib.errors import AvomniError
from avomni_lib.etl import leaks
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.run import build
from avomni_lib.params import Params
from tests import folder_run
from tests.published_set import Drive, encode_video, frame_bits, read_frame
from tests.streams import remuxed

WIDTH, HEIGHT, FPS, NUM_FRAMES = 96, 64, 10, 41
CAMERAS = [camera.name for camera in cameras.GRIDS["4-cam"].cameras]
UNIX_S = 1.7e9  # start of the logger's clock
POSES_S = np.arange(-0.5, 9.0, 0.05)
SPLITS = ("train", "val", "test")


def write_videos(folder: Path, number: int) -> dict[str, Path]:
    """One mp4 of each camera of the 2×2 grid, encoded at 30 frames a second."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for place, camera in enumerate(CAMERAS):
        pictures = [frame_bits(number, place, i, WIDTH, HEIGHT) for i in range(NUM_FRAMES)]
        paths[camera] = folder / f"{number}_{camera}.mp4"
        paths[camera].write_bytes(encode_video(pictures))
    return paths


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_videos(folder, number) for number in range(3)]


def clip_of(number: int, videos: list[dict[str, Path]], **changes) -> OwnClip:
    """Frames are 1/30 s apart as in the mp4; the map of the poses is rotated and shifted."""
    drive, turn = Drive(number), Rotation.from_euler("z", 0.3 + number)
    position = turn.apply(drive.position(POSES_S)) + (5e5, 4e6, 120.0)
    arguments = {
        "t_s": UNIX_S + POSES_S,
        "position_m": position,
        "heading_rad": 0.3 + number + drive.curvature * drive.travelled(POSES_S),
        "frame_times_s": {
            camera: UNIX_S + 0.004 * place + np.arange(NUM_FRAMES) / 30
            for place, camera in enumerate(CAMERAS)
        },
        "split": SPLITS[number],
        "country": "Iceland",
    }
    return OwnClip(f"drive {number}", videos[number], **(arguments | changes))


def params(folder: Path, data: Path) -> Params:
    values = folder_run.values(folder, data, sample_hz=5.0, horizon_s=6.4)
    values["dataset"] |= {"repo_id": "own/drives", "audit": "full"}
    del values["download"]
    return Params.from_values(values)


@pytest.fixture(scope="module")
def built(videos, tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, build.Built]:
    """Audited, chosen and built, by the functions that 01, 02 and 03 call."""
    folder = tmp_path_factory.mktemp("own")
    pack(folder / "data", [clip_of(number, videos) for number in range(3)], clips_per_chunk=3)
    p = params(folder, folder / "data")
    audited = audit.audit(p, None)
    assert {row["state"] for row in audited.clips} == {"sound"}, audited.summary
    assert not [row for row in audited.findings if row["severity"] != "noted"]
    download.fetch(p, None)
    return p, build.build(p)


def test_windows_match_the_drive(built):
    p, result = built
    leaks.check_all(p, result.cache)
    assert result.damaged == [] and result.figures["clips_by_split"] == dict.fromkeys(SPLITS, 1)
    windows = Windows(result.cache, 4, 2, horizon_s=6.4)
    assert len(windows) == 6
    for index, window in enumerate(windows):
        drive, truth = Drive(SPLITS.index(window.split)), windows.truth(index)
        start, stop = windows.times_us(index)[[0, -1]] / 1e6
        assert truth.duration_s == pytest.approx(0.6)
        driven = drive.travelled(stop) - drive.travelled(start)
        assert truth.path_m == pytest.approx(driven, abs=0.02)
        assert truth.chord_m == pytest.approx(drive.chord(start, stop), abs=0.01)
        assert truth.speed_mps == pytest.approx(driven / 0.6, abs=0.03)
        # 6.4 s later in the ego frame; positive y is to the left.
        ahead = drive.position(stop + 6.4) - drive.position(stop)
        yaw = drive.curvature * drive.travelled(stop)
        expected = Rotation.from_euler("z", -yaw).apply(ahead)[:2]
        assert truth.future.xy_m[-1] == pytest.approx(expected, abs=0.05)


def test_each_tile_shows_its_camera_at_the_given_time(built):
    p, made = built
    windows = Windows(made.cache, 4, 2)
    width, height = p.processing.tile_width, p.processing.tile_height
    for index, window in enumerate(windows):
        for frame, time_us in zip(windows.frames(index), windows.times_us(index), strict=True):
            for place in range(4):
                row, col = divmod(place, 2)
                tile = frame[row * height : (row + 1) * height, col * width : (col + 1) * width]
                at = int((time_us / 1e6 - 0.004 * place) * 30 + 1e-4)
                assert read_frame(tile) == (SPLITS.index(window.split), place, at)


def test_attributes_of_a_clip_are_kept(built):
    catalog = Catalog.open(built[0].local_dir)
    assert catalog.attributes(OwnClip("drive 1", {}, POSES_S, POSES_S).clip_id) == {
        "country": "Iceland",
        "month": None,
        "hour": None,
        "platform": None,
        "event_cluster": None,
    }
    assert catalog.present(catalog.clip_ids()[0], CAMERAS[0])
    assert not catalog.present(catalog.clip_ids()[0], cameras.REAR_TELE.name)


def test_packing_is_deterministic_and_never_overwrites(videos, tmp_path):
    clips = [clip_of(0, videos), clip_of(1, videos)]
    content = []
    for name in ("a", "b"):
        folder = pack(tmp_path / name, clips, clips_per_chunk=1).folder
        content.append(folder_run.content(folder))
    assert content[0] == content[1]
    assert "camera/camera_front_wide_120fov/camera_front_wide_120fov.chunk_0001.zip" in content[0]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(AvomniError, match="the folder to pack into is not empty"):
        pack(tmp_path / "a", clips)


def test_frame_times_default_to_the_videos(videos, tmp_path):
    clip = clip_of(0, videos, t_s=POSES_S, frame_times_s={})
    folder = pack(tmp_path / "data", [clip]).folder
    stamps = Clip(folder, Catalog.open(folder), clip.clip_id).timestamps(CAMERAS[2])
    assert stamps == pytest.approx(np.arange(NUM_FRAMES) * 1e6 / 30, abs=1)


def test_grid_with_missing_cameras_is_refused_by_name(built, tmp_path):
    run = {"name": "own", "outputs_dir": str(tmp_path)}
    p = Params.from_values(built[0].values() | {"vision": {"cameras": "7-cam"}, "run": run})
    with pytest.raises(AvomniError, match="no chunk can be used") as refused:
        download.fetch(p, None)
    assert "camera_rear_tele_30fov" in str(refused.value)
    assert "vision.cameras" in str(refused.value)


def three_earlier(packets: list[av.Packet]) -> list[av.Packet]:
    """As `ffmpeg -ss -c copy` does: an edit list hides the first frames of the file."""
    for packet in packets:
        early = round(3 / 30 / packet.time_base)
        packet.pts, packet.dts = packet.pts - early, packet.dts - early
    return packets


def test_inconsistent_clip_is_refused_with_its_name(videos, tmp_path):
    """Mistakes of single arguments are in tests/test_own_arguments.py."""
    path = videos[0][CAMERAS[0]]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(remuxed(path.read_bytes(), change=three_earlier))
    position = clip_of(0, videos).position_m
    for message, clip in {
        "4-cam also needs camera_rear_right_70fov": clip_of(0, [dict.fromkeys(CAMERAS[:3], path)]),
        "38 frames in the video (an edit list hides 3 more)": clip_of(
            0, [videos[0] | {CAMERAS[0]: cut}]
        ),
        "positions cover": clip_of(
            0, videos, velocity_mps=3 * np.gradient(position, POSES_S, axis=0)
        ),
    }.items():
        with pytest.raises(AvomniError) as refused:
            pack(tmp_path / "data", [clip])
        assert message in str(refused.value) and "drive 0" in refused.value.where
    assert not (tmp_path / "data").exists()


def test_one_video_may_serve_several_cameras(videos, tmp_path):
    path = videos[0][CAMERAS[0]]
    clip = clip_of(0, [dict.fromkeys(CAMERAS, path)], frame_times_s={}, t_s=POSES_S)
    folder = pack(tmp_path / "data", [clip]).folder
    packed = Clip(folder, Catalog.open(folder), clip.clip_id)
    assert {packed.video(camera).read() for camera in CAMERAS} == {path.read_bytes()}


def test_headings_and_quaternions_give_the_same_motion():
    drive, turn = Drive(1), Rotation.from_rotvec([0.4, -1.1, 0.7])
    heading = drive.curvature * drive.travelled(POSES_S)
    position = drive.position(POSES_S)
    level = Rotation.from_euler("z", heading[:, None])
    flat = egomotion(POSES_S, position * (1, 1, 0), level)
    tilted = egomotion(POSES_S, turn.apply(position) + 1e6, turn * level)
    truth = drive.egomotion(np.rint(POSES_S * 1e6).astype(np.int64))
    assert tuple(flat) == EGOMOTION_COLUMNS
    for name in EGOMOTION_COLUMNS:
        assert tilted[name] == pytest.approx(flat[name], abs=1e-5), name
        # The first and last two rows are one-sided differences.
        within = 0.05 if name in ("ax", "ay", "az") else 0.02
        assert flat[name][2:-2] == pytest.approx(truth[name][2:-2], abs=within), name


def test_code_in_the_docs_packs_a_drive(videos, tmp_path, monkeypatch, capsys):
    page = (files.PROJECT_ROOT / "docs/own_clips.md").read_text()
    lines = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    drive = Drive(0)
    x, y, _ = drive.position(POSES_S).T
    heading = drive.curvature * drive.travelled(POSES_S)
    table = np.column_stack([POSES_S, x, y, heading])
    header = re.search(r"# drive_7.csv: (\S+)", lines)[1]
    np.savetxt(tmp_path / "drive_7.csv", table, delimiter=",", header=header, comments="")
    named = re.findall(r'"(camera_\w+)": "(\w+\.mp4)"', lines)
    assert [camera for camera, _ in named] == CAMERAS
    for camera, name in named:
        (tmp_path / name).write_bytes(videos[0][camera].read_bytes())
    folder = re.search(r'pack\("([^"]+)"', lines)[1]
    assert f"local_dir: {folder}" in page
    (tmp_path / "script.py").write_text(lines.replace(folder, str(tmp_path / "own")))
    monkeypatch.chdir(tmp_path)
    runpy.run_path("script.py")
    shown = re.search(r"```\n(1 clip .*?)```", page, re.DOTALL)[1]
    assert capsys.readouterr().out.replace(str(tmp_path / "own"), folder) == shown
    p = params(tmp_path / "outputs", tmp_path / "own")
    download.fetch(p, None)
    assert {split: len(ids) for split, ids in download.read_chosen(p).clip_ids.items() if ids} == {
        "train": 1
    }


def test_docs_list_the_required_files_of_a_folder(videos, tmp_path):
    page = (files.PROJECT_ROOT / "docs/own_clips.md").read_text()
    layout = page.split("\n## The layout of a folder\n")[1]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", layout, re.MULTILINE)
    pack(tmp_path / "data", [clip_of(number, videos) for number in range(3)])
    p = params(tmp_path, tmp_path / "data")
    p = p.model_copy(update={"dataset": p.dataset.model_copy(update={"audit": "quick"})})
    for pattern, need in rows:
        is_optional = need.startswith("optional")
        paths = sorted(p.local_dir.glob(re.sub("NNNN|FEATURE", "*", pattern)))
        assert paths, pattern
        moved = paths[0].with_name("away")
        paths[0].rename(moved)
        if is_optional:
            download.fetch(p, None)
        else:
            with pytest.raises(AvomniError):
                download.fetch(p, None)
        moved.rename(paths[0])
    assert {need.startswith("optional") for _, need in rows} == {True, False}
