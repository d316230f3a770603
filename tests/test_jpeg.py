"""JPEG frames can be indexed like the array they encode, and damage is always detected."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import jpeg, memmap, shard
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from tests.test_memmap import pictures, write_cache

COUNT = 7


@functools.cache
def drawn() -> np.ndarray:
    return pictures(np.random.default_rng(1), COUNT)


def view(frames: np.ndarray) -> jpeg.JpegFrames:
    encoded = jpeg.encode(frames)
    return jpeg.JpegFrames(encoded["jpeg"], encoded["offsets"], encoded["crc32"], frames.shape)


def scene(height: int = 256, width: int = 448) -> np.ndarray:
    """One (H, W, 3) image with edges, gradients, thin lines and sensor noise."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    image = np.stack([90 + 80 * y / height, 110 + 60 * x / width, 150 - 70 * y / height], -1)
    image[height // 2 :] = 95
    for left in range(0, width, 40):
        image[height // 2 :, left : left + 3] = 235
        image[40:90, left : left + 18] = rng.integers(30, 220, 3)
    return (image + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8)


slices = st.slices(COUNT)
numbers = st.integers(-COUNT, COUNT - 1)


@given(st.one_of(slices, numbers, st.lists(numbers).map(lambda n: np.array(n, dtype=int))))
def test_indexing_matches_numpy(key):
    whole = view(drawn())[:]
    decoded = view(drawn())[key]
    expected = whole[key]
    assert decoded.shape == expected.shape and decoded.dtype == expected.dtype
    assert np.array_equal(decoded, expected)
    assert not decoded.flags.writeable


@given(st.integers(-(2**63), 2**63 - 1).filter(lambda n: not -COUNT <= n < COUNT))
def test_index_out_of_range_raises_index_error(number):
    with pytest.raises(IndexError):
        view(drawn())[number]


def test_frames_have_length_shape_dtype_and_array_conversion():
    frames, encoded = drawn(), view(drawn())
    assert (len(encoded), encoded.shape, encoded.dtype, encoded.ndim) == (
        7,
        frames.shape,
        np.uint8,
        4,
    )
    assert np.array_equal(np.asarray(encoded), encoded[:])
    assert np.array_equal(np.stack(list(encoded)), encoded[:])
    assert np.asarray(encoded, dtype=np.float32).dtype == np.float32


def test_jpeg_error_is_small_at_a_tenth_of_the_size():
    picture = scene()
    decoded = view(picture[None])[0].astype(int)
    error = np.abs(decoded - picture)
    assert error.mean() < 2.5 and np.percentile(error, 99) < 16
    assert abs((decoded - picture).mean(axis=(0, 1))).max() < 0.5, "no colour is shifted"
    frames = np.stack([scene(512, 896)])
    assert 0.03 < jpeg.encode(frames)["jpeg"].nbytes / frames.nbytes < 0.12


def test_frames_are_standard_jpeg_files():
    encoded = jpeg.encode(drawn())
    start, stop = encoded["offsets"][2:4]
    content = encoded["jpeg"][start:stop].tobytes()
    assert zlib.crc32(content) == encoded["crc32"][2]
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (12, 8))
        # Chroma subsampling 4:2:0: sampling factors of Y, Cb and Cr.
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
        assert np.array_equal(np.asarray(image), view(drawn())[2])


def digest() -> str:
    return jpeg.encode(np.stack([scene()] * 2))["jpeg"].tobytes().hex()


def test_encoded_bytes_depend_only_on_the_image():
    """Another process and images encoded before make no difference."""
    jpeg.encode(drawn()[:, :, ::2])  # in several pieces
    code = "from tests.test_jpeg import digest; print(digest())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == digest()


def test_flipped_bits_are_detected():
    encoded, dice = jpeg.encode(drawn()), random.Random(7)
    for _ in range(200):
        blob, row = encoded["jpeg"].copy(), dice.randrange(COUNT)
        place = dice.randrange(*encoded["offsets"][row : row + 2].tolist())
        blob[place] ^= 1 << dice.randrange(8)
        frames = jpeg.JpegFrames(blob, encoded["offsets"], encoded["crc32"], drawn().shape)
        with pytest.raises(AvomniError, match="not what was written") as caught:
            frames[row]
        assert caught.value.where == f"frame {row}"
        with pytest.raises(AvomniError):
            frames[:]
        others = np.delete(np.arange(COUNT), row)
        assert np.array_equal(frames[others], view(drawn())[others])


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg.encode(drawn())["jpeg"][:300]])
def test_invalid_jpeg_bytes_are_refused(content):
    blob = np.frombuffer(bytes(content), np.uint8)
    crc32 = np.array([zlib.crc32(blob)], np.uint32)
    with pytest.raises(AvomniError, match="cannot be decoded"):
        jpeg.JpegFrames(blob, np.array([0, len(blob)]), crc32, (1, 8, 12, 3))[0]
    picture = jpeg.encode(drawn()[:1])
    with pytest.raises(AvomniError, match=r"is \(8, 12, 3\), it should be"):
        jpeg.JpegFrames(*picture.values(), (1, 8, 14, 3))[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    return Cache.open(write_cache(tmp_path_factory.mktemp("jpeg") / "cache", storage="jpeg"))


def test_damage_error_names_shard_clip_and_frame(tmp_path):
    folder = write_cache(tmp_path / "cache", storage="jpeg")
    cache = Cache.open(folder)
    clip = cache.clips[4]
    path, offsets = folder / "shard_0012/jpeg.npy", cache.shards[1]._load("offsets")
    content = bytearray(path.read_bytes())
    content[len(content) - offsets[-1] + offsets[clip.start + 1] + 300] ^= 4
    path.write_bytes(content)
    windows = Windows(Cache.open(folder), 3, 1)
    damaged = [i for i, window in enumerate(windows) if window.clip_id == clip.clip_id]
    with pytest.raises(AvomniError, match="not what was written") as caught:
        windows.frames(damaged[0])
    assert caught.value.where == f"{folder}/shard_0012, clip clip-12-1, frame 1"
    assert "verify" in caught.value.fix and "03_etl" in caught.value.fix
    for i in range(len(windows)):
        if windows[i].clip_id != clip.clip_id:
            windows.frames(i)


def _sum(windows: Windows) -> int:
    return int(windows.frames(0).sum())


def test_forked_process_can_decode(cache):
    """Threads do not survive a fork: waiting for the parent's threads would block forever."""
    windows = Windows(cache, 3, 1)
    expected = _sum(windows)
    with multiprocessing.get_context("fork").Pool(1) as workers:
        assert workers.apply_async(_sum, (windows,)).get(timeout=60) == expected


def test_many_shards_keep_few_files_open(tmp_path):
    """A process that may open 400 files reads 300 shards; each mapping holds a file."""
    folder = write_cache(tmp_path / "cache", chunks=(0,), clips_per_chunk=1)
    record = files.read_json(folder / "clips.json")
    header = files.read_json(folder / "shard_0000/header.json")
    rows, shards = [], []
    for chunk in range(300):
        shards.append(folder / shard.shard_name(chunk))
        shards[-1].mkdir(exist_ok=True)
        for name in shard.STORAGES["raw"] if chunk else ():
            os.link(folder / f"shard_0000/{name}.npy", shards[-1] / f"{name}.npy")
        rows.append(record["clips"][0] | {"clip_id": f"clip {chunk}", "chunk": chunk})
        clip = header["clips"][0] | {"clip_id": f"clip {chunk}", "chunk": chunk}
        (shards[-1] / "header.json").write_text(json.dumps(header | {"clips": [clip]}))
    memmap.write_table(folder, record["common"], shards, rows)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))\n"
        "from avomni_lib.etl.cache import memmap, windows\n"
        f"found = windows.Windows(memmap.Cache.open({str(folder)!r}), 3, 1)\n"
        "for i in range(len(found)):\n    found.frames(i), found.truth(i)\n"
        f"print(len(found), memmap.verify({str(folder)!r}).num_shards)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["300", "300"]
