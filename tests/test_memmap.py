"""The cache's format: reading back what was written, and errors for invalid files."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip import fingerprints

GRID = cameras.grid("4-cam")
COMMON = {
    "generator": "avomni 9.9",
    "source": {"repo_id": "some/set", "revision": "0" * 40},
    "grid": {
        "name": GRID.name,
        "rows": GRID.rows,
        "cols": GRID.cols,
        "cells": [cell.name for cell in GRID.cells],
    },
    "tile": [6, 4],
    "fit": "stretch",
    "sample_hz": 2.0,
    "storage": "raw",
}


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Arrays of one clip with 3 to 6 frames and five times as many track rows."""
    rng = np.random.default_rng(seed)
    count = 3 + seed % 4
    times = np.arange(count) * 500_000 + seed
    frames = pictures(rng, count)
    return {
        "frames": frames,
        "prints": fingerprints.of_frames(frames, GRID, (6, 4)),
        "timestamps": times[:, None] - rng.integers(0, 33_000, (count, 4)),
        "times": times,
        "egomotion": rng.normal(size=(count, len(memmap.EGOMOTION_COLUMNS))),
        "track": np.column_stack([np.arange(count * 5) * 1e5, rng.normal(size=(count * 5, 8))]),
    }


def pictures(rng: np.random.Generator, count: int) -> np.ndarray:
    """Frames of 8 × 12 px with smooth colours and some noise, which JPEG keeps to a few levels."""
    y, x = np.mgrid[:8, :12]
    slopes = rng.uniform(-6, 6, (count, 3, 2))
    planes = slopes[..., 0, None, None] * y + slopes[..., 1, None, None] * x
    soft = rng.uniform(80, 170, (count, 3, 1, 1)) + planes + rng.normal(0, 2, planes.shape)
    return np.ascontiguousarray(soft.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def write_cache(folder, chunks=(3, 12), clips_per_chunk=3, storage="raw"):
    """A cache of clips `clip-<chunk>-<n>`, each with `arrays(10 · chunk + n)`."""
    rows, common = [], COMMON | {"storage": storage}
    for chunk in chunks:
        clips = [
            {"clip_id": f"clip-{chunk}-{n}", "split": ("train", "val", "test")[n], "chunk": chunk}
            for n in range(clips_per_chunk)
        ]
        shard.write_shard(
            folder / shard.shard_name(chunk),
            common | {"key": f"key {chunk}"},
            clips,
            lambda clip_id: shard.encode(arrays(seed_of(clip_id)), storage),
        )
        rows += [
            clip | {"state": "ok", "reason": "", "num_frames": 3 + seed_of(clip["clip_id"]) % 4}
            for clip in clips
        ]
    bad = {"clip_id": "bad", "split": "train", "chunk": 3, "state": "damaged", "reason": "x"}
    rows.append(bad | {"num_frames": 0})
    memmap.write_table(folder, common, [folder / shard.shard_name(c) for c in chunks], rows)
    return folder


def seed_of(clip_id: str) -> int:
    _, chunk, n = clip_id.split("-")
    return 10 * int(chunk) + int(n)


@pytest.fixture(params=["raw", "jpeg"])
def storage(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, storage):
    return write_cache(tmp_path / "cache", storage=storage)


def test_written_cache_is_read_back(folder, storage):
    cache = Cache.open(folder)
    assert [clip.clip_id for clip in cache.clips] == [
        f"clip-{chunk}-{n}" for chunk in (3, 12) for n in range(3)
    ]
    assert [clip.split for clip in cache.clips] == ["train", "val", "test"] * 2
    assert [clip.shard for clip in cache.clips] == [0, 0, 0, 1, 1, 1]
    for clip in cache.clips:
        expected = arrays(seed_of(clip.clip_id))
        assert len(clip) == len(expected["frames"])
        clip_arrays = cache.shards[clip.shard].arrays_of(clip)
        assert list(clip_arrays) == list(shard.STORAGES[storage])
        for name, array in shard.encode(expected, storage).items():
            assert np.array_equal(clip_arrays[name], array), name
    assert cache.grid == GRID and cache.cameras == tuple(c.name for c in GRID.cameras)
    assert cache.tile == (6, 4) and cache.sample_hz == 2.0
    assert cache.table[-1]["state"] == "damaged"


def test_numpy_opens_every_array(folder, storage):
    for name, dtype in shard.STORAGES[storage].items():
        array = np.load(folder / "shard_0012" / f"{name}.npy", mmap_mode="r")
        assert isinstance(array, np.memmap) and array.dtype == np.dtype(dtype)
        parts = [shard.encode(arrays(120 + n), storage)[name] for n in range(3)]
        if name != "offsets":
            assert np.array_equal(array, np.concatenate(parts))


def test_grid_with_black_tiles_is_read_back(tmp_path):
    grid = cameras.grid("7-cam")
    cells = [cell and cell.name for cell in grid.cells]
    common = COMMON | {"grid": {"name": "7-cam", "rows": 3, "cols": 3, "cells": cells}}
    memmap.write_table(tmp_path, common, [], [])
    assert Cache.open(tmp_path).grid == grid


@pytest.mark.parametrize("place", ["clips.json", "shard_0003/header.json"])
def test_another_format_version_is_refused(folder, place):
    record = json.loads((folder / place).read_text())
    files.write_json(folder / place, record | {"format_version": 7, "generator": "avomni 2.0"})
    with pytest.raises(AvomniError, match="format version 7, this program reads 2") as caught:
        Cache.open(folder)
    assert caught.value.where == str(folder / place)
    assert "03_etl" in caught.value.fix and "avomni 2.0" in caught.value.fix


def test_missing_or_truncated_array_is_refused(folder):
    path = folder / "shard_0003" / "track.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(AvomniError, match=r"has [\d,]+ of [\d,]+ bytes") as caught:
        Cache.open(folder)
    assert caught.value.where == str(path) and "03_etl" in caught.value.fix
    path.unlink()
    with pytest.raises(AvomniError, match="an array of the cache is missing"):
        Cache.open(folder)


def test_array_truncated_while_open_is_refused(folder, storage):
    """Reading past the end of a mapped file would kill the process with SIGBUS."""
    windows = Windows(Cache.open(folder), 3, 1)
    assert windows.frames(0).any()
    path = folder / f"shard_0003/{'frames' if storage == 'raw' else 'jpeg'}.npy"
    os.truncate(path, 200)
    with pytest.raises(AvomniError, match="has 200 of") as caught:
        windows.frames(0)
    assert caught.value.where == str(path)
    assert windows.frames(len(windows) - 1).any(), "the other shard is intact"


def test_missing_header_table_or_cache_is_refused(folder, tmp_path):
    (folder / "shard_0003" / "header.json").unlink()
    with pytest.raises(AvomniError, match="a shard has no header"):
        Cache.open(folder)
    (folder / "clips.json").unlink()
    with pytest.raises(AvomniError, match="the cache is not finished") as caught:
        Cache.open(folder)
    assert caught.value.fix == "run 03_etl"
    with pytest.raises(AvomniError, match="there is no cache"):
        Cache.open(tmp_path / "none")


def test_shards_with_different_headers_are_refused(folder):
    path = folder / "shard_0012" / "header.json"
    files.write_json(path, json.loads(path.read_text()) | {"sample_hz": 5.0})
    with pytest.raises(AvomniError, match="the shards differ in sample_hz: 5.0 and 2.0"):
        Cache.open(folder)


def test_digest_depends_on_the_content_only(folder, tmp_path, storage):
    digest = Cache.open(folder).digest
    same, fewer = tmp_path / "same", tmp_path / "fewer"
    assert Cache.open(write_cache(same, storage=storage)).digest == digest
    assert Cache.open(write_cache(fewer, chunks=(3,), storage=storage)).digest != digest


def test_failed_write_leaves_the_old_shard(folder):
    before = (folder / "shard_0003" / "header.json").read_bytes()

    def load(clip_id):
        if clip_id == "clip-3-1":
            raise OSError("the disk is gone")
        return arrays(seed_of(clip_id))

    clips = [{"clip_id": f"clip-3-{n}", "split": "train", "chunk": 3} for n in range(2)]
    with pytest.raises(OSError, match="the disk is gone"):
        shard.write_shard(folder / "shard_0003", COMMON, clips, load)
    assert (folder / "shard_0003" / "header.json").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "clips.json",
        "shard_0003",
        "shard_0012",
    ]


def test_replaced_shard_frees_its_disk_space_at_once(folder, storage):
    """A deleted file that is still mapped would keep its disk space."""
    old = Cache.open(folder).shards[0]
    inside = {clip.clip_id: clip for clip in shard.clips_of(old)}
    clips = [{"clip_id": clip_id, "split": "train", "chunk": 3} for clip_id in list(inside)[:2]]
    common = COMMON | {"storage": storage}
    shard.write_shard(old.folder, common, clips, lambda clip_id: old.arrays_of(inside[clip_id]))
    with open("/proc/self/maps") as maps:
        assert not [line for line in maps if str(folder) in line and "(deleted)" in line]


def test_unknown_storage_is_refused():
    with pytest.raises(AvomniError, match="unknown storage 'png'") as caught:
        shard.encode(arrays(3), "png")
    assert caught.value.fix == "choose one of raw, jpeg"


def test_kill_between_the_two_renames_is_undone(folder):
    before = (folder / "shard_0003" / "header.json").read_bytes()
    (folder / "shard_0003").rename(folder / ".shard_0003.old")
    shutil.copytree(folder / "shard_0012", folder / ".shard_0003.new")
    shutil.copytree(folder / "shard_0012", folder / ".shard_0012.old")
    (folder / ".shard_0099.new").mkdir()
    shard.undo_interrupted_write(folder / "shard_0003")
    assert (folder / "shard_0003" / "header.json").read_bytes() == before
    remaining = sorted(path.name for path in folder.glob(".shard*"))
    assert remaining == [".shard_0012.old", ".shard_0099.new"], "other shards are not touched"
    shard.undo_interrupted_writes(folder)
    assert not list(folder.glob(".shard*"))
    Cache.open(folder)
