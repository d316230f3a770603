"""Verification of a cache: all damage is found and reported at once with its place."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.plan import Bar
from tests.test_memmap import write_cache


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> dict[str, Path]:
    above = tmp_path_factory.mktemp("caches")
    return {name: write_cache(above / name, storage=name) for name in shard.STORAGES}


@pytest.fixture(params=["raw", "jpeg"])
def storage(request) -> str:
    return request.param


@pytest.fixture
def folder(caches, tmp_path, storage) -> Path:
    return shutil.copytree(caches[storage], tmp_path / "cache")


def findings(folder: Path) -> list[str]:
    """The lines of the verification error."""
    with pytest.raises(AvomniError, match="the cache is not what was written") as caught:
        memmap.verify(folder)
    assert caught.value.where == str(folder)
    assert "run 03_etl again" in caught.value.fix
    return [line.removeprefix("  - ") for line in caught.value.what.splitlines()[1:]]


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def change_array(folder: Path, name: str, change) -> None:
    """Change an array of the first shard and update all hashes, like a faulty writer."""
    path, header = folder / f"shard_0003/{name}.npy", folder / "shard_0003/header.json"
    array = change(np.load(path))
    np.save(path, array)
    record = files.read_json(header)
    record["arrays"][name] |= {
        "sha256": files.sha256_file(path),
        "bytes": path.stat().st_size,
        "shape": list(array.shape),
    }
    files.write_json(header, record)
    sign(folder)


def change_header(folder: Path, change) -> None:
    path = folder / "shard_0003/header.json"
    record = files.read_json(path)
    change(record)
    files.write_json(path, record)
    sign(folder)


def change_table(folder: Path, change) -> None:
    record = files.read_json(folder / "clips.json")
    change(record["clips"])
    shards = [folder / name for name in record["shards"]]
    memmap.write_table(folder, record["common"], shards, record["clips"])


def sign(folder: Path) -> None:
    change_table(folder, lambda rows: None)


def test_intact_cache_is_counted_with_progress_in_bytes(folder, storage, kept_bars):
    made, bars = kept_bars
    report = memmap.verify(folder, progress=made)
    arrays = list(folder.glob("*/*.npy"))
    assert (report.num_shards, report.num_arrays) == (2, len(arrays))
    assert report.num_arrays == 2 * len(shard.STORAGES[storage])
    assert report.num_bytes == sum(path.stat().st_size for path in arrays)
    assert report.num_clips == 6 and report.clips_by_split == {"train": 2, "val": 2, "test": 2}
    assert report.num_frames == sum(map(len, memmap.Cache.open(folder).clips))
    assert "sound: 6 clips (2 train, 2 val, 2 test)" in str(report)
    (bar,) = bars
    assert (bar.total, bar.count, bar.unit) == (report.num_bytes, report.num_bytes, "B")


def test_flipped_bit_in_any_file_is_found(folder):
    seed = random.randrange(2**32)
    print(f"{seed=}")
    dice = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths * 2:
        before = path.read_bytes()
        place, bit = dice.randrange(len(before)), 1 << dice.randrange(8)
        flip(path, place, bit)
        same = path.name == "clips.json" and is_same_json(before, path.read_bytes())
        if not same:
            with pytest.raises(AvomniError) as caught:
                memmap.verify(folder)
            message = f"{caught.value.what} {caught.value.where}"
            assert str(path.relative_to(folder)) in message, f"byte {place}, bit {bit}: {message}"
        path.write_bytes(before)
    memmap.verify(folder)


def is_same_json(before: bytes, after: bytes) -> bool:
    """Whether the flip changed only white space."""
    try:
        return json.loads(before) == json.loads(after)
    except ValueError:
        return False


def test_truncated_or_missing_file_is_found(folder):
    dice = random.Random(5)
    for path in sorted(folder.glob("*/*")):
        before = path.read_bytes()
        for length in (0, 1, 60, dice.randrange(len(before)), len(before) - 1, None):
            if length is None:
                path.unlink()
            else:
                path.write_bytes(before[:length])
            lines = findings(folder)
            assert any(line.startswith(str(path.relative_to(folder))) for line in lines)
            path.write_bytes(before)


def test_all_damage_is_reported_at_once_with_the_shards_to_remove(folder):
    flip(folder / "shard_0003/times.npy", -1)
    (folder / "shard_0003/track.npy").unlink()
    flip(folder / "shard_0012/egomotion.npy", -1)
    change_table(folder, lambda rows: rows[1].update(split="train"))
    with pytest.raises(AvomniError, match="4 things are wrong") as caught:
        memmap.verify(folder)
    for message in (
        "shard_0003/track.npy: is missing",
        "shard_0003/times.npy: has changed",
        "shard_0012/egomotion.npy: has changed",
        "clips.json: clip clip-3-1 is ('train', 3, 6) here",
    ):
        assert message in caught.value.what
    assert caught.value.fix.startswith(f"remove {folder}/shard_0003, {folder}/shard_0012; run 03")


@pytest.mark.parametrize("storage", ["jpeg"])
def test_damaged_jpegs_are_named_by_clip_and_frame(folder):
    offsets = np.load(folder / "shard_0012/offsets.npy")
    head = (folder / "shard_0012/jpeg.npy").stat().st_size - offsets[-1]
    clip = memmap.Cache.open(folder).clips[4]
    flip(folder / "shard_0012/jpeg.npy", head + offsets[clip.start + 2] + 300)
    lines = findings(folder)
    assert "shard_0012/jpeg.npy: clip clip-12-1, frame 2 is damaged" in lines
    assert len(lines) == 2


@pytest.mark.parametrize("storage", ["jpeg"])
def test_frames_lost_by_truncation_are_named(folder):
    path = folder / "shard_0012/jpeg.npy"
    offsets = np.load(folder / "shard_0012/offsets.npy")
    os.truncate(path, path.stat().st_size - int(offsets[-1] - offsets[-3]))
    lines = findings(folder)
    assert "bytes" in lines[0]
    assert [line.partition("frame ")[2] for line in lines[1:]] == ["3 is damaged", "4 is damaged"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("times", lambda a: a[::-1], "times.npy: clip clip-3-0: the times do not rise"),
        ("timestamps", lambda a: a + 10**6, "a frame is later than its wanted time"),
        ("timestamps", lambda a: a - 10**7 * np.eye(*a.shape, -2, dtype=int), "clock goes back"),
        ("timestamps", lambda a: a[:, :3], "holds [14, 3] int64, it should hold [14, 4] int64"),
        ("track", lambda a: a * -1, "track.npy: clip clip-3-0: the times do not rise"),
        ("track", lambda a: a[:-1], "ranges of track do not share out its 69 rows"),
        ("egomotion", lambda a: a * np.nan, "egomotion.npy: holds numbers that are not finite"),
        ("egomotion", lambda a: a[:, :5], "egomotion.npy: holds [14, 5] float64, it should"),
        ("egomotion", lambda a: a.astype(np.float32), "float32, it should hold [14, 11] float64"),
        ("times", lambda a: a[:-1], "ranges of frames do not share out its 13 rows"),
    ],
)
def test_faults_of_the_writer_are_found(folder, name, change, message):
    change_array(folder, name, change)
    assert any(message in line for line in findings(folder))


@pytest.mark.parametrize("storage", ["jpeg"])
@pytest.mark.parametrize("change", [lambda a: a[::-1], lambda a: a + 1, lambda a: a // 2])
def test_wrong_offsets_are_found(folder, change):
    change_array(folder, "offsets", change)
    assert any("offsets.npy: the offsets do not rise from 0" in line for line in findings(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["clips"][0].update(frames=[0, 4]), "ranges of frames do not share out"),
        (lambda h: h["clips"][1].update(clip_id="clip-3-0"), "clip-3-0 lies in the cache 2 times"),
        (lambda h: h["clips"][1].update(split="dev"), "in its shard (split, chunk, frames)"),
        (lambda h: h["clips"][2].update(chunk=7), "holds clip clip-3-2 of chunk 7"),
        (lambda h: h.update(tile=[6, 5]), "the cache's is [6, 4]"),
        (lambda h: h.update(format_version=9), "format version 9"),
        (lambda h: h["arrays"].pop("track"), "names the arrays"),
        (lambda h: h.pop("clips"), "is no header of a shard: KeyError('clips')"),
        (lambda rows: rows.append(dict(rows[0])), "clips.json: clip clip-3-0 has 2 rows"),
        (lambda rows: rows.pop(0), "clips.json: clip clip-3-0 lies in a shard and has no row"),
        (lambda rows: rows[0].update(state="damaged"), "is damaged and lies in a shard"),
        (lambda rows: rows[-1].update(state="ok"), "clips.json: clip bad is ok and lies in no sh"),
        (lambda rows: rows[0].update(state="gone"), "is in the state 'gone'"),
        (lambda rows: rows[0].update(split="dev"), "is of the split 'dev'"),
        (lambda rows: rows[0].update(split="test"), "('test', 3, 5) here and ('train', 3, 5)"),
        (lambda rows: rows[0].update(num_frames=9), "('train', 3, 9) here and ('train', 3, 5)"),
        (lambda rows: rows[0].update(chunk=12), "('train', 12, 5) here and ('train', 3, 5)"),
    ],
)
def test_inconsistent_header_or_table_is_found(folder, change, message):
    is_table = "rows" in change.__code__.co_varnames
    (change_table if is_table else change_header)(folder, change)
    assert any(message in line for line in findings(folder))


def test_extra_or_missing_shard_is_found(folder):
    shutil.copytree(folder / "shard_0003", folder / "shard_0004")
    assert "shard_0004/header.json: clips.json does not name this shard" in findings(folder)
    shutil.rmtree(folder / "shard_0004")
    shutil.rmtree(folder / "shard_0012")
    assert findings(folder) == ["shard_0012/header.json: is missing"]


def test_report_is_limited_to_a_hundred_lines(folder):
    change_table(
        folder, lambda rows: [rows.append(rows[0] | {"clip_id": f"{n}"}) for n in range(1000)]
    )
    lines = findings(folder)
    assert len(lines) == 101 and lines[-1] == "and 900 more"


def test_folder_without_a_valid_cache_is_refused(tmp_path, folder):
    with pytest.raises(AvomniError, match="there is no cache"):
        memmap.verify(tmp_path / "none")
    files.write_json(folder / "clips.json", {"format_version": 2, "clips": [{}]})
    with pytest.raises(AvomniError, match="not a table of clips"):
        memmap.verify(folder)
    (folder / "clips.json").unlink()
    with pytest.raises(AvomniError, match="the cache is not finished"):
        memmap.verify(folder)


def test_ctrl_c_ends_verification_soon(tmp_path):
    """A sparse file of a terabyte must not be read to its end."""
    folder = write_cache(tmp_path / "cache", chunks=(3,))
    with open(folder / "shard_0003/frames.npy", "r+b") as file:
        file.truncate(1 << 40)
    change_header(folder, lambda header: header["arrays"]["frames"].update(bytes=1 << 40))

    class Interrupted(Bar):
        def update(self, amount: float = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memmap.verify(folder, Interrupted)
