"""Near-duplicates across splits are found, with no false alarm in 500 distinct drives."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.select import split
from avomni_lib.errors import AvomniError
from avomni_lib.etl import leaks
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.cache.memmap import Cache, CachedClip
from avomni_lib.etl.clip import fingerprints, tiling
from avomni_lib.etl.video import reader
from avomni_lib.params import Params
from avomni_world.publish import recording
from avomni_world.scene import scenes
from avomni_world.scene.render import Renderer
from tests.test_fingerprints import by_jpeg
from tests.test_memmap import COMMON

GRID, TILE, HZ = cameras.grid("4-cam"), (48, 32), 2.0
NUM_DISTINCT, NUM_FRAMES = 500, 8
SPLITS = ("train", "val", "test")
LEAST = 4  # frames that a near-duplicate shares at 2 Hz

Arrays = dict[str, np.ndarray]


def clip_of(frames: np.ndarray, poses: np.ndarray) -> Arrays:
    """A clip's arrays of grid images and poses (N, 7) x, y, z, qx, qy, qz, qw."""
    count, steps = len(frames), np.diff(poses[:, :3], axis=0)
    times = np.arange(count, dtype=np.int64) * round(1e6 / HZ)
    path = np.concatenate([[0.0], np.cumsum(np.linalg.norm(steps, axis=1))])
    ego = np.column_stack([poses, np.zeros((count, 3)), path])
    return {
        "frames": frames,
        "prints": fingerprints.of_frames(frames, GRID, TILE),
        "timestamps": np.repeat(times[:, None], len(GRID.cameras), axis=1),
        "times": times,
        "egomotion": ego,
        "track": np.column_stack([times, poses, path]),
    }


def shown(clip: Arrays, frames: np.ndarray) -> Arrays:
    """The same drive with other frames."""
    return clip | {"frames": frames, "prints": fingerprints.of_frames(frames, GRID, TILE)}


def drives(seeds: range, town: str, num_frames: int = NUM_FRAMES) -> Iterator[Arrays]:
    """Rendered drives, each in a scene of its own.

    All share one road texture, as making it takes most of the time; this makes them more alike.
    """
    with pytest.MonkeyPatch.context() as patch, Renderer(*TILE, GRID.cameras) as renderer:
        painted = scenes.textures.textures(np.random.default_rng(0), scenes.towns.town(town))
        patch.setattr(scenes.textures, "textures", lambda *_: painted)
        patch.setattr(scenes, "EGO_FUTURE_S", 1.0)
        for seed in seeds:
            world = scenes.make_scene(seed, town, num_frames / HZ)
            renderer.open(world)
            times_s = np.arange(num_frames) / HZ
            tiles = np.stack([tiles.copy() for tiles in renderer.frames(times_s)], axis=1)
            grids = tiling.compose(
                {
                    camera.name: camera_tiles
                    for camera, camera_tiles in zip(GRID.cameras, tiles, strict=True)
                },
                GRID,
            )
            ego = world.egomotion(np.rint(times_s * 1e6).astype(np.int64))
            columns = ("x", "y", "z", "qx", "qy", "qz", "qw")
            yield clip_of(grids, np.stack([ego[name] for name in columns], axis=1))


def cache_of(
    folder: Path, clips: Mapping[str, Arrays], splits: Mapping[str, str], storage: str = "raw"
) -> Cache:
    """A cache of these clips in one shard; clips that `splits` lacks are in train."""
    common = COMMON | {"tile": list(TILE), "sample_hz": HZ, "storage": storage}
    rows = [
        {"clip_id": clip_id, "split": splits.get(clip_id, "train"), "chunk": 0} for clip_id in clips
    ]
    made = shard.write_shard(
        folder / shard.shard_name(0), common, rows, lambda name: shard.encode(clips[name], storage)
    )
    whole = [row | {"state": "ok", "reason": "", "num_frames": 1} for row in rows]
    memmap.write_table(folder, common, [made.folder], whole)
    return Cache.open(folder)


def part(clip: Arrays, start: int, stop: int) -> Arrays:
    """Frames `start` to `stop` as a clip of their own, whose time and poses start at zero."""
    moved = clip["egomotion"][start:stop, :7].copy()
    back = leaks.Rotation.from_quat(moved[0, 3:7]).inv()
    turned = back * leaks.Rotation.from_quat(moved[:, 3:7])
    moved[:, :3] = back.apply(moved[:, :3] - moved[0, :3])
    moved[:, 3:7] = turned.as_quat()
    return clip_of(clip["frames"][start:stop], moved)


def by_h264(frames: np.ndarray) -> np.ndarray:
    """Frames encoded once more, camera by camera, and decoded."""
    tiles = np.stack([tiling.tile_of(frames, GRID, TILE, c.name) for c in GRID.cameras], axis=1)
    clock = np.rint(np.arange(len(frames)) * 1e6 / recording.FPS).astype(np.int64)
    decoded = {
        camera.name: reader.read_frames(data, clock, timestamps_us=clock).images
        for camera, data in zip(
            GRID.cameras, recording.encode(iter(tiles), len(GRID.cameras), *TILE), strict=True
        )
    }
    return tiling.compose(decoded, GRID)


def motion(kind: str, count: int) -> np.ndarray:
    """(count, 7) poses of a car that stands or drives straight."""
    poses = np.zeros((count, 7))
    poses[:, 6] = 1.0
    poses[:, 0] = {"parked": 0.0, "10 m/s": 10.0, "1 m/s": 1.0}[kind] * np.arange(count) / HZ
    return poses


@pytest.fixture(scope="module")
def rendered() -> list[Arrays]:
    """Six drives of 12 frames through each of two towns."""
    return [*drives(range(900, 906), "harbour", 12), *drives(range(900, 906), "meadow", 12)]


@pytest.fixture
def p(tmp_path: Path) -> Params:
    return Params.from_values({"run": {"outputs_dir": str(tmp_path)}})


def named(clips: list[Arrays]) -> dict[str, Arrays]:
    return {f"clip {n}": clip for n, clip in enumerate(clips)}


def dealt(clips: Mapping[str, Arrays]) -> dict[str, str]:
    return {clip_id: SPLITS[n % 3] for n, clip_id in enumerate(clips)}


PLANTS = {
    "copied": lambda clip: clip,
    "by jpeg": lambda clip: shown(clip, by_jpeg(clip["frames"], 60)),
    "by h264": lambda clip: shown(clip, by_h264(clip["frames"])),
    "one frame later": lambda clip: part(clip, 1, 12),
    "five frames later": lambda clip: part(clip, 5, 12),
    "its end cut off": lambda clip: part(clip, 0, 7),
    "later and by jpeg": lambda clip: part(shown(clip, by_jpeg(clip["frames"], 60)), 3, 12),
    "later and by h264": lambda clip: part(shown(clip, by_h264(clip["frames"])), 3, 12),
}  # fmt: skip


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
@pytest.mark.parametrize("plant", PLANTS)
def test_copy_in_another_split_is_found(tmp_path, rendered, plant, storage):
    number = 3 if storage == "raw" else 9
    clips = named(rendered) | {"planted": PLANTS[plant](rendered[number])}
    original = f"clip {number}"
    splits = dict.fromkeys(clips, "train") | {original: "test"}
    cache = cache_of(tmp_path, clips, splits, storage)
    (leak,) = leaks.near_duplicates(cache)
    assert leak.clip_ids == (original, "planted") and leak.splits == ("test", "train")
    count = len(clips["planted"]["frames"])
    late = 12 - count if "later" in plant else 0
    assert (leak.starts, leak.num_frames) == ((late, 0), count)
    assert leak.seconds == (count - 1) / HZ and leak.apart_m < 1e-6
    with pytest.raises(AvomniError, match="near-duplicates .1 such pairs.") as caught:
        leaks.check(cache)
    assert original in caught.value.what and "planted" in caught.value.what
    assert f"pictures agree over {count} frames" in caught.value.what
    assert "poses within 0.00 m" in caught.value.what
    assert "download.clips" in caught.value.fix and "report it" in caught.value.fix
    assert caught.value.where == str(cache.folder)


def test_copy_within_a_split_is_no_leak(tmp_path, rendered):
    clips = named(rendered) | {"planted": rendered[3]}
    cache = cache_of(tmp_path, clips, {"clip 5": "test", "clip 6": "val"})
    assert leaks.near_duplicates(cache) == []
    leaks.check(cache)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 11), st.integers(0, 11), st.integers(1, 12))
def test_overlap_of_four_or_more_frames_is_found(tmp_path_factory, rendered, number, start, length):
    planted = part(rendered[number], start, min(start + length, 12))
    clips = named(rendered) | {"planted": planted}
    folder = tmp_path_factory.mktemp("overlap")
    duplicates = leaks.near_duplicates(cache_of(folder, clips, {"planted": "val"}))
    shutil.rmtree(folder)
    # A standing car gives equal frames, so only its own clip may match, at any length.
    assert {leak.clip_ids for leak in duplicates} <= {(f"clip {number}", "planted")}
    assert bool(duplicates) == (len(planted["frames"]) >= LEAST)


def test_many_copies_of_one_clip_are_all_compared(tmp_path, rendered):
    noise = np.random.default_rng(0)
    clips = named(rendered)
    for n in range(40):
        frames = rendered[7]["frames"].astype(int) + noise.integers(
            -2, 3, rendered[7]["frames"].shape
        )
        clips[f"copy {n}"] = shown(rendered[7], frames.clip(0, 255).astype(np.uint8))
    cache = cache_of(tmp_path, clips, {"copy 20": "test"})
    duplicates = leaks.near_duplicates(cache)
    assert duplicates and all("copy 20" in leak.clip_ids for leak in duplicates)
    with pytest.raises(AvomniError, match="and [0-9]+ more"):
        leaks.check(cache)


def cut_drives(seed: int, num_clips: int = 60, count: int = 9) -> SimpleNamespace:
    """A cache as `near_duplicates` reads it: parts of a few drives with varying similarity."""
    dice, bits = np.random.default_rng(seed), fingerprints.BITS * len(GRID.cameras)
    signs = dice.choice([-1.0, 1.0], (5, 20, bits))
    speeds = np.array([0.0, 0.4, 8.0, 8.3, 25.0])
    clips, shown, poses = [], [], []
    for number in range(num_clips):
        drive, start = dice.integers(5), dice.integers(20 - count)
        flips = 1 - 2 * (dice.random((count, bits)) < dice.choice([0.0, 0.04, 0.06, 0.1]))
        meant = dice.random((count, bits)) < dice.choice([0.9, 0.65])
        shown.append(fingerprints.pack(signs[drive, start : start + count] * flips * meant))
        rows = np.zeros((count, len(memmap.EGOMOTION_COLUMNS)))
        rows[:, 0] = speeds[drive] * np.arange(count) / HZ + dice.normal(0, 0.15, count)
        rows[:, [6, 10]] = np.column_stack([np.ones(count), rows[:, 0]])
        poses.append(rows)
        rows_of = {"shard": 0, "start": number * count, "stop": (number + 1) * count}
        row = {"clip_id": str(number), "split": SPLITS[dice.integers(3)], "chunk": 0}
        clips.append(CachedClip(**row, **rows_of, track_start=0, track_stop=0))
    shard_of = SimpleNamespace(prints=np.concatenate(shown), egomotion=np.concatenate(poses))
    return SimpleNamespace(clips=clips, shards=[shard_of], cameras=GRID.cameras, sample_hz=HZ)


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_the_same_pairs_as_comparing_all_clips(monkeypatch, seed):
    cache = cut_drives(seed)
    monkeypatch.setattr(leaks, "QUERIES_AT_A_TIME", 5)
    monkeypatch.setattr(leaks, "FRAMES_AT_A_TIME", 7)
    duplicates = leaks.near_duplicates(cache)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(range(len(cache.clips)), 2)
        if cache.clips[one].split != cache.clips[other].split
    ]
    monkeypatch.setattr(leaks, "_candidates", lambda *_: pairs)
    assert duplicates == leaks.near_duplicates(cache)
    assert 10 < len(duplicates) < len(pairs) / 4


@pytest.mark.parametrize("kind", ["parked", "10 m/s"])
def test_equal_motion_with_different_frames_is_no_leak(tmp_path, rendered, kind):
    """Parked cars show one frame with noise; moving ones the frames of the drives."""
    noise, clips = np.random.default_rng(0), []
    for clip in rendered:
        frames = clip["frames"].astype(int)
        if kind == "parked":
            frames = frames[:1] + noise.integers(-2, 3, frames.shape)
        clips.append(clip_of(frames.clip(0, 255).astype(np.uint8), motion(kind, len(frames))))
    cache = cache_of(tmp_path, named(clips), dealt(named(clips)))
    assert leaks.near_duplicates(cache) == []


def test_equal_frames_with_different_motion_are_no_leak(tmp_path, rendered):
    still = np.repeat(rendered[2]["frames"][:1], 12, axis=0)
    clips = named(rendered) | {
        "stands": clip_of(still, motion("parked", 12)),
        "drives": clip_of(still, motion("10 m/s", 12)),
    }
    splits = {"stands": "test"}
    assert leaks.near_duplicates(cache_of(tmp_path / "one", clips, splits)) == []
    clips["drives"] = clip_of(still, motion("parked", 12))
    (leak,) = leaks.near_duplicates(cache_of(tmp_path / "two", clips, splits))
    assert leak.num_frames == 12 and leak.path_m == 0.0


def test_equal_frames_with_mirrored_turns_are_no_leak(tmp_path, rendered):
    turning = max(range(len(rendered)), key=lambda n: np.ptp(rendered[n]["egomotion"][:, 1]))
    mirrored = {name: array.copy() for name, array in rendered[turning].items()}
    mirrored["egomotion"][:, [1, 5]] *= -1  # y and qz
    clips = named(rendered) | {"mirrored": mirrored}
    duplicates = leaks.near_duplicates(cache_of(tmp_path, clips, {"mirrored": "test"}))
    assert all(leak.num_frames < 12 for leak in duplicates)
    stretch = rendered[turning]["egomotion"]
    assert np.ptp(stretch[:, 1]) > 10


def test_only_the_shared_waiting_time_is_reported(tmp_path, rendered):
    still = np.repeat(rendered[2]["frames"][:1], 8, axis=0)
    clips = {}
    for name, kind in (("slow", "1 m/s"), ("fast", "10 m/s")):
        poses = np.concatenate([motion("parked", 8), motion(kind, 5)[1:]])
        frames = np.concatenate([still, rendered[3 if name == "slow" else 4]["frames"][:4]])
        clips[name] = clip_of(frames, poses)
    (leak,) = leaks.near_duplicates(cache_of(tmp_path, clips, {"slow": "test"}))
    assert leak.num_frames == 8 and leak.path_m == 0.0


@pytest.mark.parametrize("kind", ["black", "fog", "night"])
def test_frames_without_texture_are_no_leak(tmp_path, rendered, kind):
    frames = rendered[3]["frames"].astype(float)
    bare = {"black": 0 * frames, "fog": 200 + frames * 0.02, "night": frames * 0.02}[kind]
    clip = shown(rendered[3], bare.astype(np.uint8))
    cache = cache_of(tmp_path, {"one": clip, "two": clip}, {"one": "test"})
    assert leaks.near_duplicates(cache) == []


def test_tiny_tiles_are_no_leak(tmp_path):
    from tests.test_memmap import write_cache

    assert leaks.near_duplicates(Cache.open(write_cache(tmp_path / "cache"))) == []


@pytest.fixture(scope="module")
def distinct() -> dict[str, Arrays]:
    """500 distinct drives: 350 in the demo's town, 150 in another."""
    clips = [*drives(range(350), "harbour"), *drives(range(350, NUM_DISTINCT), "meadow")]
    return {f"distinct {n}": clip for n, clip in enumerate(clips)}


def test_five_hundred_distinct_clips_raise_no_alarm(tmp_path, p, distinct):
    cache = cache_of(tmp_path / "cache", distinct, dealt(distinct))
    assert len(cache.clips) == NUM_DISTINCT
    every = cache.shards[0].prints
    least = fingerprints.least_common(len(GRID.cameras))
    assert fingerprints.has_texture(every, least).all(), (
        "every frame must have enough texture to be compared"
    )
    assert leaks.near_duplicates(cache) == []
    split.freeze(p, {name: [i for i, s in dealt(distinct).items() if s == name] for name in SPLITS})
    leaks.check_all(p, cache, [clip.clip_id for clip in cache.clips if clip.split == "test"])
    # No two frames of different clips are near the threshold.
    for number in range(0, NUM_DISTINCT - 1, 25):
        clip_prints, later = np.split(every[number * NUM_FRAMES :], [NUM_FRAMES])
        share, _ = fingerprints.different(clip_prints, later)
        assert share.min() > 1.2 * fingerprints.MAX_DIFFERENT
    shutil.rmtree(cache.folder)


def test_only_the_planted_leaks_among_500_clips_are_found(tmp_path, distinct):
    plants = {
        "a": distinct["distinct 9"],
        "b": shown(distinct["distinct 100"], by_jpeg(distinct["distinct 100"]["frames"], 60)),
        "c": part(distinct["distinct 401"], 2, 8),
        "d": shown(distinct["distinct 499"], by_h264(distinct["distinct 499"]["frames"])),
    }
    splits = dict.fromkeys(distinct, "test")
    cache = cache_of(tmp_path / "cache", distinct | plants, splits)
    duplicates = {leak.clip_ids: leak for leak in leaks.near_duplicates(cache)}
    originals = ("distinct 9", "distinct 100", "distinct 401", "distinct 499")
    assert set(duplicates) == set(zip(originals, plants, strict=True))
    assert duplicates["distinct 401", "c"].starts == (2, 0)
    shutil.rmtree(cache.folder)


def frozen(p: Params, rendered: list[Arrays], splits: Mapping[str, str]) -> Cache:
    """The run's cache, with its splits frozen."""
    clips = named(rendered[:4])
    cache = cache_of(p.cache_dir, clips, splits)
    by_split = {name: [c.clip_id for c in cache.clips if c.split == name] for name in SPLITS}
    split.freeze(p, by_split)
    return cache


def with_clip(cache: Cache, number: int, **changes) -> Cache:
    clips = list(cache.clips)
    clips[number] = dataclasses.replace(clips[number], **changes)
    return dataclasses.replace(cache, clips=tuple(clips))


def test_check_all_finds_every_kind_of_leak(p, rendered):
    cache = frozen(p, rendered, {"clip 2": "val", "clip 3": "test"})
    record = {"base_model": "tiny", "training_clip_ids": ["clip 0", "clip 1"]}
    leaks.check_all(p, cache)
    leaks.check_all(p, cache, ["clip 3"], record)
    twice = with_clip(cache, 3, clip_id="clip 0")
    with pytest.raises(AvomniError, match="clip 0 lies in the cache 2 times, in test and train"):
        leaks.check_all(p, twice)
    for number in (1, 3):  # rows of the next clip, and rows beyond the shard
        straddling = with_clip(cache, number, stop=cache.clips[number].stop + 2)
        with pytest.raises(AvomniError, match=r"clip [23] has rows .* not its alone"):
            leaks.check_all(p, straddling)
    with pytest.raises(AvomniError, match="would change their split: clip 3 from test to train"):
        leaks.check_all(p, with_clip(cache, 3, split="train"))
    seen = record | {"training_clip_ids": ["clip 0", "clip 3"]}
    with pytest.raises(AvomniError, match="the adapter was trained on 1 of the 1 clips") as e:
        leaks.check_all(p, cache, ["clip 3"], seen)
    assert e.value.where == "clip clip 3" and "05_train" in e.value.fix


def test_check_all_finds_near_duplicates(p, rendered):
    cache = frozen(
        p, [rendered[0], rendered[1], rendered[0], rendered[3]], {"clip 2": "val", "clip 3": "test"}
    )
    with pytest.raises(AvomniError, match="near-duplicates"):
        leaks.check_all(p, cache)


def base(folder: Path, **record) -> Path:
    files.write_json(folder / "record.json", record)
    return folder


def test_held_out_clip_in_a_merged_base_or_its_own_base_is_found(p, rendered, tmp_path):
    cache = frozen(p, rendered, {"clip 2": "val", "clip 3": "test"})
    first = base(tmp_path / "first", base_model="some/hub-model", training_clip_ids=["clip 3"])
    second = base(tmp_path / "second", base_model=str(first), training_clip_ids=["other"])
    for merged in (first, second):
        model = p.model.model_copy(update={"base_model": str(merged)})
        with pytest.raises(AvomniError, match=f"the base model {first} was trained on 1") as e:
            leaks.check_all(p.model_copy(update={"model": model}), cache, ["clip 3"])
        assert "model.base_model" in e.value.fix
        leaks.check_all(p.model_copy(update={"model": model}), cache, ["clip 2"])
    assert set(leaks.base_records(str(second))) == {
        f"the base model {second}",
        f"the base model {first}",
    }


def test_base_records_end_without_a_record_or_in_a_cycle(tmp_path):
    assert leaks.base_records("some/hub-model") == {}
    assert leaks.base_records("tiny") == {}
    tiny = base(tmp_path / "tiny_base", recipe={"seed": 0})
    assert leaks.base_records("tiny", lambda name: tiny) == {
        "the base model tiny": {"recipe": {"seed": 0}}
    }
    leaks.check_training_lists(["clip 3"], leaks.base_records("tiny", lambda name: tiny))
    ring = base(tmp_path / "ring", base_model=str(tmp_path / "ring"), training_clip_ids=["x"])
    assert list(leaks.base_records(str(ring))) == [f"the base model {ring}"]
