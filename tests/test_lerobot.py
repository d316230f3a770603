"""LeRobot v3 data sets: several episodes in a file, L2D's units, sessions and damaged episodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import EGOMOTION_COLUMNS, open_clip
from avomni_lib.dataset.download import download
from avomni_lib.dataset.lerobot import clip as lerobot_clip
from avomni_lib.dataset.lerobot import layout
from avomni_lib.errors import AvomniError
from avomni_lib.etl import leaks
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.run import build
from avomni_lib.etl.video import reader
from avomni_lib.notebook.run import runs
from avomni_lib.params import CONFIDENTIAL, NOT_ANONYMISED, Params, user_code
from avomni_lib.training.forecast import estimate
from tests import lerobot_set, local_hub
from tests.lerobot_set import LENGTH, Episode
from tests.published_set import Drive, read_frame

FRONT_FILE = "videos/observation.images.front_left/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lerobot_set.write(tmp_path_factory.mktemp("l2d") / "data")


@pytest.fixture
def data(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(written, tmp_path / "data"))


@pytest.fixture(scope="module")
def built(written: Path, tmp_path_factory: pytest.TempPathFactory):
    p = lerobot_set.params(tmp_path_factory.mktemp("run"), written)
    download.fetch(p, None)
    return p, build.build(p)


def states(p) -> dict[str, tuple[str, str]]:
    audited = audit.audit(p, None)
    return {row["clip_id"]: (row["state"], row["reason"]) for row in audited.clips}


def test_frames_are_exact_in_a_file_of_several_episodes(written: Path, tmp_path: Path):
    catalog = Catalog.of(lerobot_set.params(tmp_path, written))
    for number in (0, 1, 4):
        clip = open_clip(written, catalog, f"episode_{number:06d}")
        for name in catalog.profile.cameras:
            stamps = clip.timestamps(name)
            assert len(stamps) == LENGTH
            read = reader.read_frames(clip.video(name), stamps[[0, 7, 8, -1]], timestamps_us=stamps)
            camera = cameras.CAMERAS.index(cameras.BY_NAME[name])
            seen = [read_frame(image) for image in read.images]
            assert seen == [(number, camera, frame) for frame in (0, 7, 8, LENGTH - 1)]


def test_egomotion_matches_the_drive(written: Path, tmp_path: Path):
    """km/h, degrees clockwise from north and float32 latitudes, against the closed form."""
    catalog = Catalog.of(lerobot_set.params(tmp_path, written))
    for number in (0, 1, 5):
        motion = open_clip(written, catalog, f"episode_{number:06d}").egomotion()
        assert tuple(motion) == EGOMOTION_COLUMNS
        t_us = np.arange(LENGTH) * 100_000
        assert np.array_equal(motion["timestamp"], t_us)
        truth = Drive(number).egomotion(t_us)
        for name, within in {"x": 0.3, "y": 0.3, "vx": 0.4, "vy": 0.4, "qz": 1e-3}.items():
            assert np.abs(motion[name] - truth[name]).max() < within, name


def test_only_row_groups_of_the_episode_are_read(data, tmp_path, monkeypatch):
    clip = open_clip(data, Catalog.of(lerobot_set.params(tmp_path, data)), "episode_000001")
    path, before = data / "data/chunk-000/file-000.parquet", clip.egomotion()
    table = pq.read_table(path)
    assert table.num_rows > LENGTH
    monkeypatch.setattr(lerobot_clip, "MOST_ROWS", LENGTH)
    with pytest.raises(AvomniError, match=f"more than {LENGTH} rows"):
        clip.egomotion()
    pq.write_table(table, path, row_group_size=LENGTH)
    for name, values in clip.egomotion().items():
        assert np.array_equal(values, before[name])


def test_overlapping_episode_is_omitted_and_windows_have_a_future(built):
    p, result = built
    leaks.check_all(p, result.cache)
    assert [row["state"] for row in result.clips] == ["ok"] * 5
    assert {row["clip_id"][-1]: row["split"] for row in result.clips} == {
        **{"0": "train", "1": "train"},  # the third overlaps the second in time
        **{"3": "val", "4": "val", "5": "test"},
    }
    windows = Windows(result.cache, 4, 2, horizon_s=1.0)
    assert len(windows) == 20  # poses end with the frames, and each window needs a second of future


def test_missing_information_is_noted(written: Path, tmp_path: Path):
    audited = audit.audit(lerobot_set.params(tmp_path, written), None)
    notes = {row["what"]: row["reason"] for row in audited.summary}
    assert {row["severity"] for row in audited.summary} == {"noted"}
    assert "stand-ins" in notes["no camera intrinsics"]
    assert "anonymised" in notes["nothing said of anonymisation"]
    assert notes["episodes that overlap"].startswith("1 of 6 episodes share time")


def test_splits_are_by_session_if_the_data_set_has_none(tmp_path: Path):
    listed = [Episode(n % 6, f"session-{n // 2}", 10.0 * n) for n in range(12)]
    data = lerobot_set.write(tmp_path / "data", listed, splits={"train": "0:12"})
    catalog = Catalog.of(lerobot_set.params(tmp_path, data))
    splits = [catalog.split_of(f"episode_{n:06d}") for n in range(12)]
    assert splits[::2] == splits[1::2]
    # In the order of the files, so that a small choice has all three.
    assert splits[::2] == ["train", "val", "test", "train", "train", "train"]


def test_task_sentence_is_the_event_of_every_window(built):
    """`coc_v1` uses it as the cause in every window of the episode."""
    windows = Windows(built[1].cache, 4, 2)
    for index, window in enumerate(windows):
        number = int(window.clip_id[-1])
        assert windows.scene(index).event == f"Drive on to crossing {number}"


def test_download_respects_the_size_budget(written: Path, tmp_path: Path):
    with local_hub.serve(written, lerobot_set.REPO) as hub:
        p = lerobot_set.params(
            tmp_path, tmp_path / "raw", endpoint=hub.endpoint, lerobot={"profile": "l2d"}
        )
        downloaded = download.fetch(p, runs.open_hub(p))
        assert downloaded.figures["num_clips"] == 5
        assert not (tmp_path / "raw/videos/observation.images.map").exists()
        size = {row["path"]: row["size"] for row in downloaded.rows}
        assert len(size) == len(downloaded.rows) == downloaded.figures["num_files"]
        # Files that two chunks share are counted once.
        less = p.model_copy(
            update={
                "run": p.run.model_copy(update={"name": "less"}),
                "download": p.download.model_copy(
                    update={"target_size_gb": (sum(size.values()) - 1) / 1e9}
                ),
            }
        )
        fewer = download.fetch(less, runs.open_hub(less))
        assert fewer.figures["num_clips"] < 5
        assert "as many as fit download.target_size_gb" in fewer.reason


def test_cache_is_the_same_with_eviction(written: Path, tmp_path: Path, built):
    with local_hub.serve(written, lerobot_set.REPO) as hub:
        p = lerobot_set.params(
            tmp_path, tmp_path / "raw", endpoint=hub.endpoint, lerobot={"profile": "l2d"}
        )
        small = {"evict_raw": True, "target_size_gb": 0.02}
        p = p.model_copy(update={"download": p.download.model_copy(update=small)})
        download.fetch(p, runs.open_hub(p))
        result = build.build(p, hub=runs.open_hub(p))
        assert [row["state"] for row in result.clips] == ["ok"] * 5
        assert not list((tmp_path / "raw").rglob("*.mp4"))
        assert 0 < result.figures["peak_bytes"] <= 0.02e9
        frames = [shard.frames[:] for shard in result.cache.shards]
        before = [shard.frames[:] for shard in built[1].cache.shards]
        assert all(np.array_equal(*pair) for pair in zip(frames, before, strict=True))


def test_missing_file_is_reported_and_its_chunks_are_skipped(data, tmp_path):
    (data / FRONT_FILE).unlink()
    p = lerobot_set.params(tmp_path, data)
    states_by_clip = states(p)
    assert (
        states_by_clip["episode_000000"][0] == "missing"
        and states_by_clip["episode_000005"][0] == "sound"
    )
    assert download.fetch(p, None).figures["num_clips"] == 3
    assert len(build.build(p).damaged) == 0


EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FRONT_SPAN = "videos/observation.images.front_left"
EVERY = range(LENGTH)
# Faults of an episode: values of its row in the episodes table, values of its state rows by
# (row, column), and the expected message. The last one has a wrong time.
BROKEN: dict[str, tuple[dict, dict, str]] = {
    "beyond the end of its file": (
        {f"{FRONT_SPAN}/from_timestamp": 30.0, f"{FRONT_SPAN}/to_timestamp": 33.0},
        {},
        "no frame from 30 to 33 s",
    ),
    "a short video": ({f"{FRONT_SPAN}/to_timestamp": 5.0}, {}, "s, and the episode has 30"),
    "too few rows": ({"length": 31}, {}, "30 rows in the table, and 31"),
    "one row": ({"length": 1}, {}, "its number of rows is 1"),
    "no file": ({"data/file_index": -4}, {}, "its file of data is chunk 0, file -4"),
    "not a number": ({}, {(3, "speed"): np.nan}, "speed is nan at row 3"),
    "infinite": ({}, {(5, "hp_loc_latitude"): np.inf}, "hp_loc_latitude is inf at row 5"),
    "another unit": (
        {},
        {(n, "speed"): 2.0 for n in EVERY},
        "times as fast as its speed column says",
    ),
    "another heading": ({}, {(n, "heading"): 200.0 for n in EVERY}, "beside the heading"),
    "another time": ({}, {}, "is at 7.5 s"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory):
    """The audit and the built clips of an intact episode and one of each fault."""
    folder = tmp_path_factory.mktemp("broken")
    listed = [Episode(n % 4, f"session-{n}", 0.0) for n in range(len(BROKEN) + 1)]
    for episode, (_, states, _) in zip(listed[1:], BROKEN.values(), strict=True):
        episode.states = states
    data = lerobot_set.write(folder / "data", listed, keys=lerobot_set.KEYS[:6])
    rows = pq.read_table(data / EPISODES).to_pylist()
    for row, (values, _, _) in zip(rows[1:], BROKEN.values(), strict=True):
        row.update(values)
    lerobot_set.put(data / EPISODES, pa.Table.from_pylist(rows))
    last = len(BROKEN)
    path = data / f"data/chunk-000/file-{last // 4:03d}.parquet"
    table = pq.read_table(path)
    times = table["timestamp"].to_numpy().copy()
    times[np.flatnonzero(table["episode_index"].to_numpy() == last)[4]] = 7.5
    place = table.column_names.index("timestamp")
    lerobot_set.put(path, table.set_column(place, "timestamp", pa.array(times)))
    p = lerobot_set.params(folder, data)
    audited = {row["clip_id"]: row for row in audit.audit(p, None).clips}
    download.fetch(p, None)
    return audited, {row["clip_id"]: row for row in build.build(p).clips}


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_episode_is_reported_and_the_others_are_used(broken, kind):
    audited, read = broken
    clip_id, message = f"episode_{1 + list(BROKEN).index(kind):06d}", BROKEN[kind][2]
    assert audited["episode_000000"]["state"] == "sound"
    assert audited[clip_id]["state"] == "damaged" and message in audited[clip_id]["reason"]
    assert read["episode_000000"]["state"] == "ok"
    # An episode whose fault the episodes table shows is not chosen.
    assert clip_id not in read or read[clip_id]["state"] == "damaged"


def test_session_in_two_splits_is_assigned_to_one(data, tmp_path):
    info = json.loads((data / "meta/info.json").read_text())
    info["splits"] = {"train": "0:1", "val": "1:5", "test": "5:6"}
    (data / "meta/info.json").write_text(json.dumps(info))
    p = lerobot_set.params(tmp_path, data)
    audited = audit.audit(p, None)
    findings = [row for row in audited.findings if row["what"] == "a session in two splits"]
    assert len(findings) == 1 and findings[0]["reason"].startswith(
        "2 episodes are in another split"
    )
    rows = {row["clip_id"]: row for row in audited.clips}
    assert rows["episode_000001"]["state"] == "damaged"
    assert "info.json puts it into val" in rows["episode_000001"]["reason"]
    assert download.fetch(p, None).chosen.clip_ids["val"] == ("episode_000003", "episode_000004")


def test_episode_in_two_splits_is_excluded(data, tmp_path):
    info = json.loads((data / "meta/info.json").read_text())
    info["splits"] = {"train": "0:4", "val": "3:5", "test": "5:6"}
    (data / "meta/info.json").write_text(json.dumps(info))
    p = lerobot_set.params(tmp_path, data)
    rows = {row["clip_id"]: row for row in audit.audit(p, None).clips}
    assert rows["episode_000003"]["state"] == "damaged"
    assert "info.json puts it into two splits, train and val" in rows["episode_000003"]["reason"]
    chosen = download.fetch(p, None).chosen.clip_ids
    assert "episode_000003" not in [*chosen["train"], *chosen["val"]]


def test_fps_unlike_the_videos_is_reported_for_each_episode(tmp_path: Path):
    data = lerobot_set.write(tmp_path / "data", video_fps=30, keys=lerobot_set.KEYS[:6])
    p = lerobot_set.params(tmp_path, data)
    states_by_clip = states(p)
    assert len(states_by_clip) == 5 and {state for state, _ in states_by_clip.values()} == {
        "damaged"
    }
    assert "frames from 0 to 3 s, and the episode has 30" in states_by_clip["episode_000000"][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v2.1"}, "a LeRobot data set of version 'v2.1', and v3 is read"),
        ({"fps": 0}, "fps is 0"),
        ({"codebase_version": None}, "names its codebase_version, and here is None"),
        ({"splits": ["train"]}, "splits is ['train'], no object"),
        ({"splits": {"train": "all"}}, "the split 'train' is 'all', not FIRST:END"),
        ({"data_path": "../{chunk_index}/{file_index}"}, "it leaves its folder"),
        ({"video_path": "v/{video_key.__class__}/{chunk_index}/{file_index}"}, "is refused"),
        ({"features": {}}, "has no speed, heading"),
    ],
)
def test_invalid_info_json_is_refused(data, tmp_path, changes, message):
    path = data / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(AvomniError) as caught:
        Catalog.of(lerobot_set.params(tmp_path, data))
    assert message in str(caught.value) and "info.json" in str(caught.value)


def test_plan_mentions_the_licence_except_for_l2d(tmp_path: Path):
    free = lerobot_set.params(tmp_path, tmp_path / "raw", lerobot={"profile": "l2d"})
    assert download.plan(free, None).warnings == []
    other = lerobot_set.params(
        tmp_path, tmp_path / "raw", repo_id="somebody/drives", lerobot={"profile": "rig"}
    )
    assert "comes under its owner's licence" in download.plan(other, None).warnings[0]


def test_plan_of_l2d_is_offline_and_names_unknowns():
    p = Params.from_files(["params/l2d.yaml"])
    plan = estimate.plan_run(p)
    rows = {label: (value, note) for label, value, note in plan.rows}
    assert 60 < plan.figures["fetch_gb"] <= 65 and plan.figures["num_clips"] > 300
    assert "735 h in 100,000 episodes, of which 53.5% overlap" in rows["driving"][1]
    assert "the hub is not asked" in rows["to fetch"][1]
    assert any("anonymised" in warning for warning in plan.warnings)
    assert any("intrinsics" in warning for warning in plan.warnings)
    assert p.notice == NOT_ANONYMISED
    other = p.model_copy(update={"dataset": p.dataset.model_copy(update={"repo_id": "a/b"})})
    assert other.notice == CONFIDENTIAL


OWN_PROFILE = """
from avomni_lib.dataset.lerobot import motion
from avomni_lib.dataset.lerobot.profile import Profile

ONE = Profile(
    name="one",
    cameras={"camera_front_wide_120fov": "observation.images.rear"},
    state="observation.state.vehicle",
    axes=("speed", "heading", "hp_loc_latitude", "hp_loc_longitude"),
    read=motion.of_speed_heading_and_gps,
)
NONE = 5
"""


def test_user_profile_is_named_by_module_and_attribute(written, tmp_path, monkeypatch):
    (tmp_path / "my_profile.py").write_text(OWN_PROFILE)
    values = lerobot_set.values(tmp_path, written)
    values["dataset"]["lerobot"]["profile"] = "my_profile:ONE"
    values["vision"] = {"cameras": [["camera_front_wide_120fov"]]}
    user_code.look_in(tmp_path)
    p = Params.from_values(values)
    assert {state for state, _ in states(p).values()} == {"sound"}
    download.fetch(p, None)
    # Without session ids each episode is a session, and none overlaps.
    assert [row["state"] for row in build.build(p).clips] == ["ok"] * 6
    values["dataset"]["lerobot"]["profile"] = "my_profile:NONE"
    with pytest.raises(AvomniError, match="is of type int, expected a Profile"):
        Catalog.of(Params.from_values(values))


@pytest.mark.parametrize("value", [{}, [], 5, "abc", {"motors": {}}, [[]], None, {"shape": 3}])
def test_malformed_names_and_shapes_are_tolerated(value):
    feature = {"names": value, "shape": value, "info": value}
    info = layout.Info("info.json", 10.0, "", "", {"x": feature}, {})
    assert all(isinstance(name, str) for name in info.axes("x"))
    with pytest.raises(AvomniError, match="the size of x"):
        info.size("x")
