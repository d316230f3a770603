"""How the chosen clips drive, when and where, read from whatever is there of them."""

import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from avomni_lib.dataset.audit import audit
from avomni_lib.dataset.cameras import FRONT_WIDE
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.notebook import circumstances as read
from avomni_lib.notebook.circumstances import Circumstances, FirstFrame
from avomni_lib.notebook.plots import circumstances as plots
from tests import cached_run

NONE = np.zeros(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with raw files and cache, and what its audit has found."""
    p = cached_run.make(tmp_path_factory.mktemp("circumstances"))
    return p, audit.audit(p, None)


@pytest.fixture
def gone(run, tmp_path):
    """Takes files of the run away for the length of a test: `gone("*.zip")`."""
    moved = []

    def take(pattern):
        for path in sorted(run[0].local_dir.rglob(pattern)):
            away = tmp_path / f"{len(moved)}"
            shutil.move(path, away)
            moved.append((away, path))

    yield take
    for away, path in reversed(moved):
        shutil.move(away, path)


def finding(picture):
    return picture._suptitle.get_text().replace("\n", " ")


def words_in(picture):
    return " ".join(text.get_text() for axes in picture.axes for text in axes.texts)


def test_speed_and_turn_are_those_of_the_ego_motion(run):
    p, found = run
    of = read.circumstances(p, found)
    assert of.num_clips == len(of.speed_mps) == len(of.turn_deg) == 12 and not of.why_not
    cache = Cache.open(p.cache_dir)
    for clip, speed in zip(cache.clips, of.speed_mps, strict=True):
        rows = cache.shards[clip.shard].egomotion[clip.start : clip.stop]
        own = np.linalg.norm(rows[:, 7:10], axis=1)
        assert own.min() - 1 <= speed <= own.max() + 1


def test_the_clips_are_a_data_frame_to_filter(run):
    p, found = run
    of = read.circumstances(p, found)
    clips = of.clips
    assert list(clips.index) == [row["clip_id"] for row in found.clips]
    assert clips.speed_mps.tolist() == of.speed_mps.tolist()
    assert set(clips.split) == {row["split"] for row in found.clips}
    fast = clips[clips.speed_mps > of.speed_mps.mean()]
    assert 0 < len(fast) < len(clips)


@pytest.mark.parametrize("turn_deg", [-170.0, -20.0, 0.0, 35.0, 400.0])
def test_a_turn_is_left_positive_and_may_go_round(turn_deg):
    yaw = np.radians(np.linspace(100.0, 100.0 + turn_deg, 300))
    zeros = np.zeros(300)
    ego = {"qx": zeros, "qy": zeros, "qz": np.sin(yaw / 2), "qw": np.cos(yaw / 2)}
    ego |= {"vx": 3 + zeros, "vy": 4 + zeros, "vz": zeros}
    assert read._speed_and_turn(ego) == pytest.approx((5.0, turn_deg))


def test_where_raw_files_are_gone_the_cache_tells(run, gone):
    p, found = run
    before = read.circumstances(p, found)
    gone("egomotion.chunk_*.zip")
    after = read.circumstances(p, found)
    assert len(after.speed_mps) == 12
    # The cache holds its frames' moments alone.
    assert np.allclose(after.speed_mps, before.speed_mps, atol=0.5)


def test_where_nothing_is_there_yet_pictures_say_so(run, gone):
    p, found = run
    gone("*.zip")
    fresh = p.model_copy(update={"run": p.run.model_copy(update={"name": "another"})})
    of = read.circumstances(fresh, found)
    assert of.why_not == read.NOTHING_THERE and not len(of.speed_mps)
    # What 01 asks of them before anything is on the disk.
    assert len(of.clips) == 12 and not len(of.clips[of.clips.turn_deg > 20])
    assert len(of.clips.groupby(["split", "country"], dropna=False).speed_mps.describe().round(1))
    picture = plots.spread(of)
    assert finding(picture).startswith("The 12 chosen clips have not been looked into yet")
    assert words_in(picture).replace("\n", " ").count(read.NOTHING_THERE) == 2
    assert read.first_frames(fresh, found) == []
    assert read.NOTHING_THERE in finding(plots.contact_sheet([]))


def test_clips_that_are_not_chosen_do_not_count(run):
    p, found = run
    rows = [dict(row) for row in found.clips]
    for row in rows[:5]:
        row["state"] = audit.NOT_CHOSEN
    few = SimpleNamespace(clips=rows)
    assert read.circumstances(p, few).num_clips == 7
    ids = {frame.clip_id for frame in read.first_frames(p, few)}
    assert ids == {row["clip_id"] for row in rows[5:]}


def test_the_contact_sheet_shows_first_frames_and_why_one_is_missing(run, gone):
    p, found = run
    frames = read.first_frames(p, found, num=3)
    assert [frame.clip_id for frame in frames] == [found.clips[i]["clip_id"] for i in (0, 5, 11)]
    assert all(frame.image.shape == frames[0].image.shape for frame in frames)
    cache = Cache.open(p.cache_dir)
    for frame in frames:
        (clip,) = [each for each in cache.clips if each.clip_id == frame.clip_id]
        first = cache.shards[clip.shard].frames[clip.start]
        tile = first[: cached_run.TILE_HEIGHT, : cached_run.TILE_WIDTH]  # front wide
        assert np.allclose(frame.image.mean((0, 1)), tile.mean((0, 1)), atol=8)
    path = sorted(p.local_dir.rglob(f"{FRONT_WIDE.name}.chunk_0000.zip"))[0]
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        cut = read.first_frames(p, found, num=3)
    finally:
        path.write_bytes(whole)
    assert cut[0].image is None and cut[0].reason and cut[2].image is not None
    said = finding(plots.contact_sheet(cut))
    assert said.startswith("3 of the chosen clips") and "cannot be read (grey: why)" in said


def some(num, speeds=(3.0, 20.0), countries=3):
    speed = np.linspace(*speeds, num)
    turn = np.where(np.arange(num) % 4 == 0, 60.0, -3.0)
    by_country = {f"country number {i}": num // countries for i in range(countries)}
    return Circumstances(num, {8: num // 2, 22: num - num // 2}, by_country, speed, turn)


def test_titles_say_what_the_numbers_say():
    assert finding(plots.spread(some(8))) == (
        "The 8 chosen clips drive 3.0 to 20.0 m/s on average, 25% turn a corner, "
        "3 countries, 2 hours of the day"
    )
    many = Circumstances(3100, {}, {"Germany": 3100}, np.full(300, 9.0), np.zeros(300))
    assert finding(plots.spread(many)) == (
        "300 of the 3,100 chosen clips drive 9.0 to 9.0 m/s on average, none turns a corner, "
        "1 country"
    )
    assert "no hours" in words_in(plots.spread(many))
    assert not len(Circumstances(0, {}, {}, NONE, NONE, "none").clips.head())
    assert finding(plots.spread(Circumstances(0, {}, {}, NONE, NONE, "none"))) == (
        "No clip is chosen"
    )


def test_pictures_fit_a_notebook_and_cut_nothing_off():
    grey = FirstFrame("25cd4769", "train", None, "cut short in the middle of a frame " * 3)
    image = np.random.default_rng(0).integers(0, 256, (54, 96, 3), dtype=np.uint8)
    pictures = {
        "spread": plots.spread(some(40)),
        "spread over many countries": plots.spread(some(60, countries=25)),
        "spread of nothing": plots.spread(Circumstances(3, {}, {}, NONE, NONE, "why " * 30)),
        "contact": plots.contact_sheet([FirstFrame("7a36e607", "val", image), grey]),
        "only grey": plots.contact_sheet([grey]),
    }
    for name, picture in pictures.items():
        shown = Image.open(io.BytesIO(picture.png()))
        assert shown.width <= 1200, name
        ink = np.asarray(shown.convert("L")) < 250
        assert ink.mean() > 0.005, f"{name} is empty"
        edges = (ink[0], ink[-1], ink[:, 0], ink[:, -1])
        assert not any(edge.any() for edge in edges), f"{name}: something is cut off at an edge"
