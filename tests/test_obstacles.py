"""Other road users, from the data set's labels through the cache to a window's scene.

The labelled obstacles move in straight lines, so their positions are known in closed form; the ego
drives on its circle (`published_set.Drive`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib import files
from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.catalog import OBSTACLES, Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.download import download
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip import obstacles, scene
from avomni_lib.etl.run import build
from avomni_lib.params import Params
from avomni_world.publish.dataset import publish, scene_of
from tests import folder_run
from tests.published_set import (
    Drive,
    chunk_path,
    clip_id_of,
    listed_clip,
    parquet_bytes,
    read_zip,
    write_metadata,
    write_published_set,
    write_zip,
)

SECONDS = 2.4
LABELLED, NOBODY, DAMAGED, LACKING = range(4)
# Label, position at time 0 (m, anchor frame), velocity (m/s), yaw (rad), first and last label (s).
OTHERS = (
    ("automobile", (20.0, 3.0), (6.0, 1.0), 0.2, 0.0, SECONDS),
    ("person", (15.0, -6.0), (0.0, 1.5), np.pi / 2, 0.0, SECONDS),
    ("train_or_tram_car", (-30.0, 9.0), (0.0, 0.0), 3.0, 0.0, SECONDS),
    ("hovercraft", (9.0, 1.0), (-2.0, 0.0), 0.0, 1.0, SECONDS),  # not a label of the data set
    ("rider", (5.0, 5.0), (3.0, 0.0), 0.0, 0.0, 0.5),
)
SIZE = (4.0, 1.8, 1.5)
LATER_US = 20_000  # the rig frame is that of a later time than the label's
EVENTS = [
    {"event_start_frame": 7, "event_start_timestamp": 548_872, "coc": "Slow for\n the person."},
    {"event_start_frame": 3, "event_start_timestamp": 148_872, "coc": "Keep the speed."},
]


def labels(clip_number: int, others=OTHERS) -> dict:
    """A clip's table of obstacles in the rig frame."""
    drive, rows = Drive(clip_number), []
    for number, (label, place, velocity, nose, first_s, last_s) in enumerate(others):
        for t_us in range(0, round(SECONDS * 1e6) + 1, 100_000):
            if first_s <= t_us / 1e6 <= last_s:
                rig_s = (t_us + LATER_US) / 1e6
                yaw = drive.curvature * float(drive.travelled(rig_s))
                apart = np.add(place, np.multiply(velocity, t_us / 1e6))
                apart = apart - drive.position(rig_s)[:2]
                x, y = turned(apart, -yaw)
                turn = (nose - yaw) / 2
                box = (x, y, 0.7, *SIZE, 0.0, 0.0, np.sin(turn), np.cos(turn))
                rows.append((t_us, "test", f"track {number}", *box, label, "rig", t_us + LATER_US))
    names = [
        *("timestamp_us", "source", "track_id"),
        *obstacle_numbers(),
        *("label_class", "reference_frame", "reference_frame_timestamp_us"),
    ]
    types = dict.fromkeys(names, pa.float64())
    types |= dict.fromkeys(("source", "track_id", "label_class", "reference_frame"), pa.string())
    types |= dict.fromkeys(("timestamp_us", "reference_frame_timestamp_us"), pa.uint64())
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return {n: pa.array(values, types[n]) for n, values in zip(names, columns, strict=True)}


def obstacle_numbers() -> list[str]:
    return [
        *(f"center_{axis}" for axis in "xyz"),
        *(f"size_{axis}" for axis in "xyz"),
        *(f"orientation_{axis}" for axis in "xyzw"),
    ]


def turned(point, yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([point[0] * cos - point[1] * sin, point[0] * sin + point[1] * cos])


def publish_with_labels(folder: Path) -> Path:
    """One chunk of four clips: labelled, labelled without obstacles, damaged labels, no labels."""
    write_published_set(folder, 1, 4, SECONDS, release="main")
    clips = [listed_clip(n, 0) for n in range(4)]
    clips = [
        dataclasses.replace(clip, absent=tuple(f for f in clip.absent if f != OBSTACLES))
        if n != LACKING
        else clip
        for n, clip in enumerate(clips)
    ]
    write_metadata(folder, clips, "main")
    members = {
        f"{clip_id_of(LABELLED)}.{OBSTACLES}.parquet": parquet_bytes(labels(LABELLED)),
        f"{clip_id_of(NOBODY)}.{OBSTACLES}.parquet": parquet_bytes(labels(NOBODY, ())),
        f"{clip_id_of(DAMAGED)}.{OBSTACLES}.parquet": b"not a table",
    }
    write_zip(folder / chunk_path(OBSTACLES, 0), members)
    reasoning = {
        "feature": ["camera_front_wide_120fov"] * 2,
        "event_cluster": ["PEDESTRIAN_DENSITY_OR_CLOSE_PROXIMITY"] * 2,
        "events": pa.array([json.dumps(EVENTS), None], pa.string()),
        "split": ["train"] * 2,
        "clip_id": [clip_id_of(LABELLED), clip_id_of(NOBODY)],
    }
    (folder / "reasoning/ood_reasoning.parquet").write_bytes(parquet_bytes(reasoning))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return publish_with_labels(tmp_path_factory.mktemp("labels") / "published")


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def run(request, published, tmp_path_factory) -> tuple[Params, build.Built]:
    folder = tmp_path_factory.mktemp(request.param)
    p = folder_run.chosen(folder, published, obstacles=True, storage=request.param)
    return p, build.build(p)


def windows_of(cache: Cache, clip_number: int, **kwargs) -> tuple[Windows, list[int]]:
    """The cache's windows, and the indices of those of this clip."""
    windows = Windows(cache, 4, 2, **kwargs)
    return windows, [i for i, w in enumerate(windows) if w.clip_id == clip_id_of(clip_number)]


def test_clip_returns_its_obstacles_and_events(published):
    catalog = Catalog.open(published)
    columns = Clip(published, catalog, clip_id_of(LABELLED)).obstacles()
    expected = labels(LABELLED)
    for name, values in columns.items():
        assert values.tolist() == expected[name].to_pylist(), name
    assert columns["timestamp_us"].dtype == np.int64 and columns["center_x"].dtype == np.float64
    assert len(Clip(published, catalog, clip_id_of(NOBODY)).obstacles()["track_id"]) == 0
    assert Clip(published, catalog, clip_id_of(LACKING)).obstacles() is None
    with pytest.raises(AvomniError, match="not a readable parquet file"):
        Clip(published, catalog, clip_id_of(DAMAGED)).obstacles()
    events = catalog.events(clip_id_of(LABELLED))
    assert [(e.start_us, e.text) for e in events] == [
        (148_872, "Keep the speed."),
        (548_872, "Slow for the person."),
    ]
    assert catalog.events(clip_id_of(NOBODY)) == catalog.events(clip_id_of(LACKING)) == ()


def test_release_without_the_feature_has_no_obstacles(tmp_path):
    folder = write_published_set(tmp_path / "old", 1, 1, 0.5, release="25.10")
    catalog = Catalog.open(folder)
    assert Clip(folder, catalog, clip_id_of(0)).obstacles() is None
    assert catalog.events(clip_id_of(0)) == ()
    built = build.build(folder_run.chosen(tmp_path / "run", folder, obstacles=True))
    assert built.figures["num_unlabelled"] == built.figures["num_clips"] == 1
    windows = Windows(built.cache, 2, 1)
    assert windows.scene(0) == scene.Surroundings((), None, is_known=False)
    memmap.verify(built.cache.folder)


def test_wrong_reference_frame_or_column_types_are_refused(tmp_path, published):
    folder = publish_with_labels(tmp_path / "published")
    path = folder / chunk_path(OBSTACLES, 0)
    good = labels(LABELLED)
    for change, message in (
        ({"reference_frame": pa.array(["anchor"] * len(good["source"]))}, "the frame of anchor"),
        ({"track_id": pa.array([1] * len(good["source"]))}, "track_id holds int64"),
        ({"center_x": pa.array(["x"] * len(good["source"]))}, "center_x holds string"),
    ):
        name = f"{clip_id_of(LABELLED)}.{OBSTACLES}.parquet"
        write_zip(path, read_zip(path) | {name: parquet_bytes(good | change)})
        with pytest.raises(AvomniError, match=message) as caught:
            Clip(folder, Catalog.open(folder), clip_id_of(LABELLED)).obstacles()
        assert str(path) in caught.value.where


def test_cache_records_why_a_clip_is_unlabelled(run):
    p, built = run
    clips = {clip.clip_id: clip for clip in built.cache.clips}
    assert len(clips) == 4 and not built.damaged, "clips with damaged or missing labels are kept"
    assert built.figures["num_unlabelled"] == 2 and built.figures["num_events"] == 2
    assert clips[clip_id_of(LABELLED)].unlabelled == clips[clip_id_of(NOBODY)].unlabelled == ""
    assert "not a readable parquet file" in clips[clip_id_of(DAMAGED)].unlabelled
    assert str(p.local_dir) not in clips[clip_id_of(DAMAGED)].unlabelled
    assert clips[clip_id_of(LACKING)].unlabelled == "the source has no labels of it"
    assert clips[clip_id_of(LABELLED)].events == (
        (148_872, "Keep the speed."),
        (548_872, "Slow for the person."),
    )
    header = files.read_json(built.cache.shards[0].folder / shard.HEADER_FILE)
    assert header["obstacle_columns"] == list(obstacles.COLUMNS)
    assert header["obstacle_labels"] == list(obstacles.LABELS)
    assert memmap.verify(p.cache_dir).num_arrays == len(header["arrays"])


def test_obstacle_rows_are_in_the_anchor_frame(run):
    _, built = run
    (clip,) = [clip for clip in built.cache.clips if clip.clip_id == clip_id_of(LABELLED)]
    rows = np.asarray(built.cache.shards[clip.shard].obstacles)[slice(*clip.obstacles)]
    times = built.cache.shards[clip.shard].times[clip.start : clip.stop]
    assert (np.diff(rows[:, 0]) >= 0).all() and rows[:, 0].max() <= times[-1]
    for number, (label, place, velocity, nose, first_s, _) in enumerate(OTHERS):
        track = rows[rows[:, obstacles.TRACK] == number]
        t_s = track[:, 0] / 1e6
        expected = np.add(place, np.multiply.outer(t_s, velocity))
        assert len(track) and t_s.min() == pytest.approx(first_s)
        assert track[:, 3:5] == pytest.approx(expected, abs=2e-3)
        assert track[:, obstacles.YAW] == pytest.approx(nose, abs=1e-3)
        assert track[:, obstacles.LENGTH :] == pytest.approx(np.tile(SIZE, (len(track), 1)))
        known = label if label in obstacles.LABELS else "unknown"
        assert {obstacles.LABELS[int(n)] for n in track[:, obstacles.LABEL]} == {known}


def test_scene_of_a_window_matches_the_closed_form(run):
    _, built = run
    windows, indices = windows_of(built.cache, LABELLED, scenes=True)
    drive, seen = Drive(LABELLED), set()
    for index in indices:
        around = windows.truth(index).scene
        assert around == windows.scene(index) and around.is_known
        now_s = windows.times_us(index)[-1] / 1e6
        yaw = drive.curvature * float(drive.travelled(now_s))
        expected = {}
        for label, place, velocity, nose, first_s, last_s in OTHERS:
            # At least two labels so far, the last one recent.
            if first_s + 0.1 <= now_s and now_s - np.floor(min(last_s, now_s) * 10) / 10 <= 0.15:
                at = np.add(place, np.multiply(velocity, now_s)) - drive.position(now_s)[:2]
                name = label if label in obstacles.LABELS else "unknown"
                expected[name] = (*turned(at, -yaw), *turned(velocity, -yaw), nose - yaw)
        assert {other.label for other in around.others} == set(expected)
        apart = [np.hypot(other.x_m, other.y_m) for other in around.others]
        assert apart == sorted(apart)
        for other in around.others:
            x, y, vx, vy, turn = expected[other.label]
            assert (other.x_m, other.y_m) == pytest.approx((x, y), abs=0.01)
            assert (other.vx_mps, other.vy_mps) == pytest.approx((vx, vy), abs=0.02)
            assert np.exp(1j * other.yaw_rad) == pytest.approx(np.exp(1j * turn), abs=1e-3)
            assert (other.length_m, other.width_m) == pytest.approx(SIZE[:2])
            seen.add(other.label)
    assert seen == {"automobile", "person", "train_or_tram_car", "unknown", "rider"}


def test_event_belongs_to_windows_near_its_time(run):
    _, built = run
    windows, indices = windows_of(built.cache, LABELLED, scenes=True)
    for index in indices:
        now_us = int(windows.times_us(index)[-1])
        near = [e for e in EVENTS if -1_000_000 <= e["event_start_timestamp"] - now_us <= 3_000_000]
        near.sort(key=lambda e: abs(e["event_start_timestamp"] - now_us))
        expected = " ".join(near[0]["coc"].split()) if near else None
        assert windows.truth(index).scene.event == expected
    events = {windows.truth(index).scene.event for index in indices}
    assert events == {"Keep the speed.", "Slow for the person.", None}


def test_clips_without_labels_have_an_unknown_scene(run):
    _, built = run
    for number, is_known in ((NOBODY, True), (DAMAGED, False), (LACKING, False)):
        windows, indices = windows_of(built.cache, number)
        assert indices and all(
            windows.scene(i) == scene.Surroundings((), None, is_known) for i in indices
        )
        with_scenes, kept = windows_of(built.cache, number, scenes=True)
        assert len(kept) == (len(indices) if is_known else 0)
        assert (
            len(with_scenes) + with_scenes.num_unknown == len(windows)
            and with_scenes.num_short == 0
        )


def test_window_of_an_unlabelled_clip_is_kept_if_it_has_an_event(run):
    _, built = run
    clips = [
        dataclasses.replace(clip, unlabelled="lost")
        if clip.clip_id == clip_id_of(LABELLED)
        else clip
        for clip in built.cache.clips
    ]
    windows, indices = windows_of(dataclasses.replace(built.cache, clips=tuple(clips)), LABELLED)
    with_scenes, kept = windows_of(windows.cache, LABELLED, scenes=True)
    with_event = [windows[i] for i in indices if windows.scene(i).event]
    assert 0 < len(with_event) < len(indices) and [with_scenes[i] for i in kept] == with_event


@given(now_us=st.integers(0, 2_400_000), noise=st.floats(-50, 50), data=st.data())
def test_scene_ignores_later_labels(now_us, noise, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    times = np.repeat(np.arange(25) * 100_000.0, 3)
    rows = np.column_stack([times, np.tile(np.arange(3), 25), np.tile([0, 1, 2], 25)])
    rows = np.hstack([rows, rng.normal(size=(75, 7))])
    now = np.concatenate([rng.normal(size=3), [0, 0, np.sin(0.3), np.cos(0.3)], np.zeros(4)])
    changed = rows.copy()
    changed[times > now_us, 3:] += noise
    before = scene.others(now_us, now, rows)
    assert scene.others(now_us, now, changed) == before
    assert len(before) == (3 if now_us >= 100_000 else 0)  # one label gives no velocity
    assert scene.others(now_us, now, rows[times <= now_us]) == before


def test_cache_without_obstacles_says_what_to_do(published, tmp_path):
    p = folder_run.chosen(tmp_path, published)
    cache = build.build(p).cache
    assert "obstacles" not in cache.shards[0].header["arrays"]
    assert not any("obstacle" in key for key in cache.header)
    windows = Windows(cache, 4, 2)
    assert windows.truth(0).scene is None
    for ask in (lambda: windows.scene(0), lambda: Windows(cache, 4, 2, scenes=True)):
        with pytest.raises(AvomniError, match="built without other road users") as caught:
            ask()
        assert "processing.obstacles" in caught.value.fix


def test_labels_are_downloaded_only_if_requested(published, tmp_path):
    path = chunk_path(OBSTACLES, 0)
    without = folder_run.chosen(tmp_path / "without", published)
    assert path not in download.read_chosen(without).files
    values = folder_run.values(tmp_path / "without", published, obstacles=True)
    p = Params.from_values(values)
    with pytest.raises(AvomniError, match="was not fetched") as caught:
        build.build(p)
    assert "02_download" in caught.value.fix
    fetched = download.fetch(p, None)
    assert path in fetched.chosen.files
    assert fetched.chosen.clip_ids == download.read_chosen(without).clip_ids
    assert build.build(p).figures["num_unlabelled"] == 2


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_audit_reports_damaged_labels_and_keeps_the_clips(published, tmp_path, depth):
    values = folder_run.values(tmp_path, published, obstacles=True)
    values["dataset"] |= {"audit": depth}
    made = audit.audit(Params.from_values(values), None)
    assert {row["state"] for row in made.clips} == {"sound"} and len(made.clips) == 4
    (file,) = [row for row in made.files if row["feature"] == OBSTACLES]
    assert file["path"] == chunk_path(OBSTACLES, 0)
    findings = [row for row in made.findings if row["feature"] == OBSTACLES]
    if depth == "full":
        (finding,) = findings
        assert finding["clip_id"] == clip_id_of(DAMAGED) and "parquet" in finding["reason"]
    else:
        assert not findings and file["state"] == "sound"


def test_shard_rebuilt_from_an_older_one_has_the_same_bytes(run, tmp_path):
    """This happens when a damaged clip is repaired or a killed build resumes."""
    p, built = run
    whole = built.cache.shards[0]
    inside = {clip.clip_id: clip for clip in built.cache.clips}
    clips = [{k: row[k] for k in ("clip_id", "split", "chunk")} for row in built.clips]
    skipped = ("format_version", "arrays", "clips", "frames_shape")
    common = {key: value for key, value in whole.header.items() if key not in skipped}
    again = shard.write_shard(
        tmp_path / "shard_0000", common, clips, lambda i: whole.arrays_of(inside[i])
    )
    for file in sorted(whole.folder.iterdir()):
        assert file.read_bytes() == (again.folder / file.name).read_bytes(), file.name
    (p.cache_dir / memmap.CLIPS_FILE).unlink()
    assert build.build(p).cache.digest == built.cache.digest


def test_obstacles_of_the_rendered_world_are_at_their_positions(tmp_path):
    values = {"num_chunks": 1, "clips_per_chunk": 2, "clip_seconds": 3.0, "width": 64, "height": 36}
    made = Params.from_values({"dataset": {"source": "world", "world": values}})
    folder = publish(made, tmp_path / "world")
    cache = build.build(folder_run.chosen(tmp_path / "run", folder, obstacles=True)).cache
    windows, count = Windows(cache, 4, 3, scenes=True), 0
    for index, window in enumerate(windows):
        world = scene_of(made.dataset.world, window.clip_id)
        now_s = windows.times_us(index)[-1] / 1e6
        ego = {name: float(v) for name, v in world.drive.at(np.array(now_s)).items()}
        poses, earlier = world.vehicle_poses([now_s, now_s - 0.01])
        for other in windows.scene(index).others:
            at = turned(poses[:, :2].T - [[ego["x"]], [ego["y"]]], -ego["yaw"]).T
            nearest = int(np.argmin(np.hypot(*(at - (other.x_m, other.y_m)).T)))
            middle = turned(world.vehicles[nearest].box[1][:2], poses[nearest, 2] - ego["yaw"])
            assert (other.x_m, other.y_m) == pytest.approx(at[nearest] + middle, abs=0.35)
            moved = turned((poses - earlier)[nearest, :2] / 0.01, -ego["yaw"])
            assert (other.vx_mps, other.vy_mps) == pytest.approx(moved, abs=1.2)  # over 0.3 s
            assert other.label == world.vehicles[nearest].label
            count += 1
        event = windows.scene(index).event
        assert event is None or event == world.event.text
    assert count > 10
    assert scene_of(made.dataset.world, window.clip_id).event.text.startswith("The car ")
