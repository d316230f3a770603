"""The ETL stage writes reproducible bytes and records every damaged clip as a row."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import memmap
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.run import build, forecast, parts
from avomni_lib.params import Params
from tests.folder_run import chosen, content, values
from tests.published_set import (
    Drive,
    chunk_path,
    clip_id_of,
    parquet_bytes,
    read_frame,
    read_zip,
    write_published_set,
    write_zip,
)

CLIPS_PER_CHUNK, SECONDS = 5, 1.5
NUM_CLIPS = 2 * CLIPS_PER_CHUNK
FRONT = cameras.FRONT_WIDE.name


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_published_set(tmp_path_factory.mktemp("set"), 2, CLIPS_PER_CHUNK, SECONDS)


@pytest.fixture(scope="module")
def undisturbed(published, tmp_path_factory) -> tuple[build.Built, dict[str, bytes]]:
    p = chosen(tmp_path_factory.mktemp("undisturbed"), published, num_workers=2)
    return build.build(p), content(p.cache_dir)


def test_cache_holds_every_clip_with_its_own_frames(undisturbed, published):
    built, _ = undisturbed
    assert [row["state"] for row in built.clips] == ["ok"] * NUM_CLIPS
    assert [row["clip_id"] for row in built.clips] == [clip_id_of(n) for n in range(NUM_CLIPS)]
    for number, clip in enumerate(built.cache.clips):
        assert clip.clip_id == clip_id_of(number)
        assert clip.split == ("train", "val", "test")[number % 3]
        frames = built.cache.shards[clip.shard].frames[clip.start : clip.stop]
        for place, camera in enumerate(built.cache.grid.cameras):
            row, col = divmod(place, 2)
            tile = frames[:, 24 * row : 24 * row + 24, 32 * col : 32 * col + 32]
            names = [read_frame(image) for image in tile]
            assert {name[:2] for name in names} == {(number, cameras.CAMERAS.index(camera))}
            assert (np.diff([name[2] for name in names]) >= 2).all()


def test_window_ground_truth_matches_the_drive(undisturbed):
    windows = Windows(undisturbed[0].cache, 8, 3)
    assert len(windows) == 3 * NUM_CLIPS
    for i, window in enumerate(windows):
        drive = Drive([clip_id_of(n) for n in range(NUM_CLIPS)].index(window.clip_id))
        first, last = windows.times_us(i)[[0, -1]] / 1e6
        path = float(drive.travelled(last) - drive.travelled(first))
        truth = windows.truth(i)
        assert truth.duration_s == pytest.approx(0.7)
        assert truth.path_m == pytest.approx(path, rel=2e-3)
        assert truth.speed_mps == pytest.approx(path / 0.7, rel=2e-3)
        assert truth.chord_m == pytest.approx(float(drive.chord(first, last)), rel=1e-3)


def test_figures_match_the_cache(undisturbed):
    built, files = undisturbed
    figures = built.figures
    assert figures["num_clips"] == figures["num_clips_read"] == NUM_CLIPS
    assert figures["num_damaged"] == 0 and built.damaged == []
    assert figures["num_frames"] == sum(row["num_frames"] for row in built.clips)
    arrays = sum(len(data) for name, data in files.items() if name.endswith(".npy"))
    assert figures["cache_bytes"] == arrays == memmap.verify(built.cache.folder).num_bytes
    assert figures["num_windows"] == len(Windows(built.cache, 4, 2))
    for split, count in figures["windows_by_split"].items():
        assert count == len(Windows(built.cache, 4, 2, split))
    assert figures["decoder"] == "pyav" and figures["decoder_reason"]


def test_one_and_two_workers_write_the_same_bytes_with_progress(
    published, undisturbed, tmp_path, kept_bars
):
    made, bars = kept_bars
    p = chosen(tmp_path, published)
    build.build(p, made)
    assert content(p.cache_dir) == undisturbed[1]
    assert [(bar.total, bar.count, bar.unit) for bar in bars] == [(NUM_CLIPS, NUM_CLIPS, "clip")]


def spoilt_member(feature: str, number: int, change: Callable[[bytes], bytes | None]):
    """Change one member of a clip's zip, or take it away."""

    def spoil(folder: Path) -> None:
        path = folder / chunk_path(feature, number // CLIPS_PER_CHUNK)
        members = read_zip(path)
        ending = ".mp4" if feature.startswith("camera") else ".parquet"
        name = f"{clip_id_of(number)}.{feature}{ending}"
        members[name] = change(members[name])
        write_zip(path, {k: v for k, v in members.items() if v is not None})

    return spoil


def egomotion(number: int, change: Callable[[dict], dict]):
    from tests.published_set import egomotion_times

    columns = Drive(number).egomotion(egomotion_times(number, SECONDS))
    return spoilt_member("egomotion", number, lambda _: parquet_bytes(change(dict(columns))))


def with_nan(columns: dict) -> dict:
    columns["x"] = np.array(columns["x"])
    columns["x"][60] = np.nan
    return columns


DAMAGE = {
    0: (spoilt_member(FRONT, 0, lambda _: None), "no member"),
    2: (spoilt_member(FRONT, 2, lambda c: c[: len(c) // 2]), "not a video"),
    3: (spoilt_member(cameras.REAR_LEFT.name, 3, lambda _: b"no video at all"), "not a video"),
    4: (egomotion(4, with_nan), "x is nan at row 60"),
    6: (
        egomotion(6, lambda c: {k: np.delete(v, slice(60, 150)) for k, v in c.items()}),
        "a gap of .* s in ego motion .*row 59",
    ),
    8: (spoilt_member(cameras.FRONT_TELE.name, 8, lambda _: b""), "is empty"),
}


def test_damaged_clips_become_rows_and_the_others_are_built(copied, undisturbed):
    folder, p = copied
    intact = {path: path.read_bytes() for path in folder.rglob("*.zip")}
    for spoil, _ in DAMAGE.values():
        spoil(folder)
    built = build.build(p)
    rows = {row["clip_id"]: row for row in built.clips}
    for number in range(NUM_CLIPS):
        row = rows[clip_id_of(number)]
        assert row["state"] == ("damaged" if number in DAMAGE else "ok"), row
        if number in DAMAGE:
            assert re.search(DAMAGE[number][1], row["reason"]), row
            assert clip_id_of(number) in row["reason"] or "chunk_000" in row["reason"]
            assert row["num_frames"] == 0
    assert [row["clip_id"] for row in built.damaged] == [clip_id_of(n) for n in DAMAGE]
    assert len(built.cache.clips) == NUM_CLIPS - len(DAMAGE) == built.figures["num_clips"]
    assert built.figures["num_damaged"] == len(DAMAGE)
    table = json.loads((p.cache_dir / memmap.CLIPS_FILE).read_text())["clips"]
    assert table == built.clips

    for path, data in intact.items():  # the files are downloaded again
        path.write_bytes(data)
    mended = build.build(p)
    assert mended.figures["num_clips_read"] == len(DAMAGE), "sound clips are not read again"
    expected = {
        name: data for name, data in undisturbed[1].items() if name.endswith((".npy", ".lock"))
    }
    assert {k: v for k, v in content(p.cache_dir).items() if k in expected} == expected
    assert not mended.damaged


@pytest.fixture
def copied(published, tmp_path) -> tuple[Path, Params]:
    """A copy of the data set that a test may damage, and a run that reads it."""
    folder = tmp_path / "set"
    shutil.copytree(published, folder)
    return folder, chosen(tmp_path, folder)


def test_damaged_clip_stays_a_row_after_its_raw_files_are_deleted(copied):
    folder, p = copied
    DAMAGE[3][0](folder)
    before = build.build(p)
    for path in folder.rglob("camera_*.zip"):
        path.unlink()
    after = build.build(p)
    assert after.figures["num_clips_read"] == 0
    assert after.clips == before.clips and len(after.damaged) == 1


@pytest.mark.parametrize(
    ("state", "counts", "way", "reason"),
    [
        ("damaged", "0 are lost and 10 damaged", "01_audit", "no member"),
        ("lost", "10 are lost and 0 damaged", "02_download", "not on the disk"),
    ],
)
def test_build_fails_if_no_clip_can_be_read(copied, state, counts, way, reason):
    folder, p = copied
    for number in range(NUM_CLIPS) if state == "damaged" else ():
        spoilt_member(FRONT, number, lambda _: None)(folder)
    for path in folder.rglob(f"{FRONT}.chunk_*.zip") if state == "lost" else ():
        path.unlink()
    with pytest.raises(AvomniError, match=f"none of the 10 clips could be read: {counts}") as e:
        build.build(p)
    assert way in e.value.fix and reason in e.value.what
    with pytest.raises(AvomniError, match="the cache is not finished"):
        memmap.Cache.open(p.cache_dir)


def test_changed_parameters_rebuild_the_cache_without_leftovers(published, undisturbed, tmp_path):
    p = chosen(tmp_path, published)
    shutil.copytree(undisturbed[0].cache.folder, p.cache_dir)
    stray = p.cache_dir / parts.PARTS_FOLDER / "0123456789abcdef" / "clip.npz"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of other parameters")
    (p.cache_dir / f"shard_{7:04d}").mkdir()
    changed = Params.from_values(values(tmp_path, published, tile_width=16, fit="letterbox"))
    built = build.build(changed)
    assert built.figures["num_clips_read"] == NUM_CLIPS
    assert built.cache.tile == (16, 24) and built.cache.header["fit"] == "letterbox"
    names = sorted(path.name for path in p.cache_dir.iterdir())
    assert names == [".lock", "clips.json", "shard_0000", "shard_0001"]
    fresh = chosen(tmp_path / "fresh", published, tile_width=16, fit="letterbox")
    build.build(fresh)
    assert content(p.cache_dir) == content(fresh.cache_dir)


def test_intact_shards_are_kept_and_a_truncated_one_is_rebuilt(published, undisturbed, tmp_path):
    p = chosen(tmp_path, published, sequence_length=6, stride=1)
    shutil.copytree(undisturbed[0].cache.folder, p.cache_dir)
    built = build.build(p)
    assert built.figures["num_clips_read"] == 0, "another length or stride needs no new ETL"
    assert built.figures["num_windows"] == len(Windows(built.cache, 6, 1)) > 0
    path = p.cache_dir / "shard_0001" / "frames.npy"
    path.write_bytes(path.read_bytes()[:-10])
    assert build.build(p).figures["num_clips_read"] == CLIPS_PER_CHUNK
    assert content(p.cache_dir) == undisturbed[1]


def test_build_is_refused_if_the_disk_is_too_small(published, tmp_path):
    p = chosen(tmp_path, published, tile_width=10**6, tile_height=10**6)
    with pytest.raises(AvomniError, match="no room on the disk for the cache"):
        build.build(p)
    assert any("the cache needs" in warning for warning in build.plan(p).warnings)


def test_plan_works_before_the_download_and_build_does_not(published, tmp_path):
    p = Params.from_values(values(tmp_path, published))
    figures = build.plan(p).figures
    assert figures["num_frames"] == 200 * figures["num_clips"] > 0, "20 s a clip, as published"
    with pytest.raises(AvomniError, match="no raw files have been chosen"):
        build.build(p)


def test_plan_figures_match_the_build(published, undisturbed, tmp_path):
    planned = build.plan(chosen(tmp_path, published)).figures
    made = undisturbed[0].figures
    assert planned["num_clips"] == made["num_clips"]
    assert abs(planned["num_frames"] - made["num_frames"]) <= NUM_CLIPS
    assert abs(planned["num_windows"] - made["num_windows"]) <= NUM_CLIPS
    assert planned["cache_bytes"] == pytest.approx(made["cache_bytes"], rel=0.15)


def test_window_too_long_for_every_clip_is_refused_with_the_longest_length(published, tmp_path):
    p = chosen(tmp_path, published, sequence_length=999)
    for stage in (build.plan, build.build):
        with pytest.raises(AvomniError, match="no window fits on a clip") as caught:
            stage(p)
    longest = int(re.search(r"sequence_length to ([0-9]+) at most", str(caught.value))[1])
    fitting = chosen(tmp_path, published, sequence_length=longest)
    assert build.plan(fitting).figures["num_windows"] > 0
    assert build.build(fitting).figures["num_windows"] > 0
    with pytest.raises(AvomniError, match="no window fits"):
        build.build(chosen(tmp_path, published, sequence_length=longest + 1))


def test_plan_checks_for_a_clip_longer_than_the_first(published, tmp_path, monkeypatch):
    p = chosen(tmp_path, published, sequence_length=25, sample_hz=10.0)
    read = iter([1.0, 1.0, 3.0])
    monkeypatch.setattr(forecast, "clip_seconds", lambda *_: next(read, 1.0))
    assert build.plan(p).figures["num_windows"] == 0, "of clips like the first; it is no error"


def test_header_records_the_selection(undisturbed, published, tmp_path):
    p = chosen(tmp_path, published)
    header = undisturbed[0].cache.header
    assert header["source"]["revision"] == read_chosen(p).revision
    assert header["sample_hz"] == 10.0 and header["horizon_s"] == 1.0
    assert header["cameras"] == [camera.name for camera in cameras.grid("4-cam").cameras]
