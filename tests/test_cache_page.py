"""docs/cache.md: its code opens a cache, and its tables match the files."""

from __future__ import annotations

import re

import numpy as np
import pytest

from avomni_lib import files
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.clip import obstacles
from tests.test_memmap import COMMON, write_cache

PAGE = (files.PROJECT_ROOT / "docs/cache.md").read_text()
RAW, DATASET, JPEG = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def opened(tmp_path, monkeypatch, request) -> memmap.Cache:
    """A cache at the path that the page's code opens."""
    folder = write_cache(tmp_path / "outputs/demo/cache", chunks=(0,), storage=request.param)
    monkeypatch.chdir(tmp_path)
    return memmap.Cache.open(folder)


@pytest.mark.parametrize("opened", ["raw"], indirect=True)
def test_code_on_the_page_opens_raw_frames(opened):
    names: dict = {}
    exec(RAW, names)
    clip = opened.clips[1]
    assert names["clip"]["clip_id"] == clip.clip_id
    frames = opened.shards[0].frames[clip.start : clip.start + 16]
    assert isinstance(names["frames"], np.memmap) and np.array_equal(names["window"], frames)
    assert names["seconds"][:2].tolist() == [0.0, 0.5]


@pytest.mark.parametrize("opened", ["raw", "jpeg"], indirect=True)
def test_code_on_the_page_gives_windows_to_a_dataloader(opened):
    # Clips here are shorter than the demo's, and each split has few of them.
    code = DATASET.replace("sequence_length=16", "sequence_length=3").replace('"train"', "None")
    names: dict = {}
    exec(code, names)
    assert names["frames"].shape == (2, 3, *opened.shards[0].frames.shape[1:])


@pytest.mark.parametrize("opened", ["jpeg"], indirect=True)
def test_code_on_the_page_opens_jpegs(opened):
    names: dict = {}
    exec(JPEG, names)
    assert np.array_equal(names["frame"], opened.shards[0].frames[5])


@pytest.mark.parametrize("block", [RAW, JPEG])
def test_code_on_the_page_does_not_import_avomni(block):
    assert set(re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)) <= {
        "io",
        "json",
        "numpy",
        "PIL",
    }


@pytest.mark.parametrize("opened", ["raw", "jpeg"], indirect=True)
def test_page_lists_every_file_with_its_dtype(opened):
    for path in opened.folder.rglob("*"):
        if path.is_file():
            assert f"{path.name}` |" in PAGE, path
    for layout in (*shard.STORAGES.values(), shard.OBSTACLES):
        for name, dtype in layout.items():
            (line,) = re.findall(rf"^\| `… {name}\.npy` \| (.*)$", PAGE, re.MULTILINE)
            assert str(np.dtype(dtype)) in line
            columns = {
                "egomotion": memmap.EGOMOTION_COLUMNS,
                "track": memmap.TRACK_COLUMNS,
                "obstacles": obstacles.COLUMNS,
            }
            if name in columns:
                assert f", {len(columns[name])})" in line
    header = files.read_json(opened.shards[0].folder / shard.HEADER_FILE)
    assert {"format_version", "arrays", "clips", "storage", *COMMON} <= header.keys()


def test_page_states_the_jpeg_quality_and_the_verify_command():
    quality, subsampling = shard.jpeg.QUALITY, shard.jpeg.SUBSAMPLING
    assert f"quality {quality}, {subsampling}" in PAGE
    assert "python -m avomni_lib verify outputs/<run>/cache" in PAGE
