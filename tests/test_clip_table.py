"""Speed, turn, time and place of the chosen clips, read from raw files or the cache."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.cameras import FRONT_WIDE
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.notebook import clip_table as read
from avomni_lib.notebook.clip_table import FirstFrame
from avomni_lib.notebook.plots import audit as plots
from tests import cached_run
from tests.pictures import finding, fits_a_notebook


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with raw files and a cache, and its audit."""
    p = cached_run.make(tmp_path_factory.mktemp("circumstances"))
    return p, audit.audit(p, None)


@pytest.fixture
def remove(run, tmp_path):
    """Moves files of the run away for the duration of a test: `remove("*.zip")`."""
    moved = []

    def take(pattern):
        for path in sorted(run[0].local_dir.rglob(pattern)):
            away = tmp_path / f"{len(moved)}"
            shutil.move(path, away)
            moved.append((away, path))

    yield take
    for away, path in reversed(moved):
        shutil.move(away, path)


def test_speed_and_turn_match_the_egomotion(run):
    p, audited = run
    clips = read.clips(p, audited)
    assert len(clips) == 12 and clips.turn_deg.notna().all()
    cache = Cache.open(p.cache_dir)
    for clip, speed in zip(cache.clips, clips.speed_mps, strict=True):
        rows = cache.shards[clip.shard].egomotion[clip.start : clip.stop]
        speeds = np.linalg.norm(rows[:, 7:10], axis=1)
        assert speeds.min() - 1 <= speed <= speeds.max() + 1


def test_clips_are_a_filterable_data_frame(run):
    p, audited = run
    clips = read.clips(p, audited)
    assert list(clips.index) == [row["clip_id"] for row in audited.clips]
    assert set(clips.split) == {row["split"] for row in audited.clips}
    assert clips.country.notna().all() and clips.hour.between(0, 23).all()
    fast = clips[clips.speed_mps > clips.speed_mps.mean()]
    assert 0 < len(fast) < len(clips)


@pytest.mark.parametrize("turn_deg", [-170.0, -20.0, 0.0, 35.0, 400.0])
def test_turn_is_left_positive_and_unwrapped(turn_deg):
    yaw = np.radians(np.linspace(100.0, 100.0 + turn_deg, 300))
    zeros = np.zeros(300)
    ego = {"qx": zeros, "qy": zeros, "qz": np.sin(yaw / 2), "qw": np.cos(yaw / 2)}
    ego |= {"vx": 3 + zeros, "vy": 4 + zeros, "vz": zeros}
    heading = np.degrees(read.yaw(ego))
    assert read.speed(ego) == pytest.approx(5.0)
    assert heading[-1] - heading[0] == pytest.approx(turn_deg)


def test_speed_is_read_from_the_cache_without_raw_files(run, remove):
    p, audited = run
    before = read.clips(p, audited)
    remove("egomotion.chunk_*.zip")
    after = read.clips(p, audited)
    assert after.speed_mps.notna().all()
    # The cache holds egomotion only at the times of its frames.
    assert np.allclose(after.speed_mps, before.speed_mps, atol=0.5)


def test_clips_without_files_have_no_speed_or_turn(run, remove):
    p, audited = run
    remove("*.zip")
    fresh = p.model_copy(update={"run": p.run.model_copy(update={"name": "another"})})
    clips = read.clips(fresh, audited)
    # The queries of 01 before anything is downloaded, and when no clip is chosen.
    for table in (clips, read.clips(fresh, SimpleNamespace(clips=[]))):
        assert not table.speed_mps.notna().any() and not len(table[table.turn_deg > 20])
        by_place = table.groupby(["split", "country"], dropna=False).speed_mps.describe().round(1)
        assert len(by_place) == len(table.drop_duplicates(["split", "country"]))
        turned = table.assign(turned=table.turn_deg.abs() > 30).groupby("hour", dropna=False).turned
        assert turned.agg(["size", "sum"])["size"].sum() == len(table)
    assert len(clips) == 12
    assert read.first_frames(fresh, audited) == []
    assert read.NOTHING_THERE in finding(plots.contact_sheet([]))


def test_clips_that_are_not_chosen_are_left_out(run):
    p, audited = run
    rows = [dict(row) for row in audited.clips]
    for row in rows[:5]:
        row["state"] = audit.NOT_CHOSEN
    few = SimpleNamespace(clips=rows)
    assert len(read.clips(p, few)) == 7
    ids = {frame.clip_id for frame in read.first_frames(p, few)}
    assert ids == {row["clip_id"] for row in rows[5:]}


def test_contact_sheet_shows_first_frames_or_why_one_is_missing(run, remove):
    p, audited = run
    frames = read.first_frames(p, audited, num=3)
    assert [frame.clip_id for frame in frames] == [audited.clips[i]["clip_id"] for i in (0, 6, 11)]
    assert all(frame.image.shape == frames[0].image.shape for frame in frames)
    cache = Cache.open(p.cache_dir)
    for frame in frames:
        (clip,) = [candidate for candidate in cache.clips if candidate.clip_id == frame.clip_id]
        first = cache.shards[clip.shard].frames[clip.start]
        tile = first[: cached_run.TILE_HEIGHT, : cached_run.TILE_WIDTH]  # front wide
        assert np.allclose(frame.image.mean((0, 1)), tile.mean((0, 1)), atol=8)
    path = sorted(p.local_dir.rglob(f"{FRONT_WIDE.name}.chunk_0000.zip"))[0]
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        cut = read.first_frames(p, audited, num=3)
    finally:
        path.write_bytes(whole)
    assert cut[0].image is None and cut[0].reason and cut[2].image is not None
    title = finding(plots.contact_sheet(cut))
    assert title.startswith("3 of the chosen clips") and "cannot be read (grey: why)" in title


def test_contact_sheets_fit_a_notebook_without_clipping():
    grey = FirstFrame("25cd4769", "train", None, "cut short in the middle of a frame " * 3)
    image = np.random.default_rng(0).integers(0, 256, (54, 96, 3), dtype=np.uint8)
    pictures = {
        "contact": plots.contact_sheet([FirstFrame("7a36e607", "val", image), grey]),
        "only grey": plots.contact_sheet([grey]),
    }
    for name, picture in pictures.items():
        fits_a_notebook(name, picture)
