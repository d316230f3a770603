"""The plan of 03_etl: size and time of both storages, disk space, and whether the grid fits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib import files
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.run import build, forecast
from avomni_lib.params import Params
from avomni_lib.params.sections import ProcessingParams
from avomni_lib.plan import gigabytes
from avomni_lib.training.prompt import tokens
from tests import cached_run


def params(folder: Path, storage: str = "raw", source: str = "hub", **sections: dict) -> Params:
    values = {
        "extends": "params/mi300x.yaml",
        "run": {"name": "test", "outputs_dir": str(folder / "outputs")},
        "dataset": {"source": source, "local_dir": str(folder / "raw")},
        "processing": {"storage": storage, "num_workers": 2},
    }
    for section, keys in sections.items():
        values[section] = values.get(section, {}) | keys
    return Params.from_values(values)


def row(plan, name: str) -> tuple[str, str]:
    (found,) = [(value, note) for label, value, note in plan.rows if label == name]
    return found


def test_plan_compares_both_storages_in_size_and_time(tmp_path):
    plans = {storage: build.plan(params(tmp_path, storage)) for storage in shard.STORAGES}
    for chosen, plan in plans.items():
        for storage, figures in plan.figures["storages"].items():
            value, note = row(plan, f"cache as {storage}")
            assert {"raw": "5.51 GB, ", "jpeg": "50"}[storage] in value and " min" in value
            assert ("not chosen" in note) == (storage != chosen)
            assert figures["seconds"] == pytest.approx(figures["cpu_seconds"] / 2)
        assert plan.figures["storage"] == chosen
        assert plan.figures["cache_bytes"] == plan.figures["storages"][chosen]["cache_bytes"]
        assert plan.figures["seconds"] == plan.figures["storages"][chosen]["seconds"]
    assert plans["raw"].figures["storages"] == plans["jpeg"].figures["storages"]
    both = plans["raw"].figures["storages"]
    assert 10 < both["raw"]["cache_bytes"] / both["jpeg"]["cache_bytes"] < 12


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Params:
    return cached_run.make(tmp_path_factory.mktemp("made"), processing={"storage": "jpeg"})


def test_forecast_is_near_the_built_cache(made):
    planned, report = build.plan(made).figures, memmap.verify(made.cache_dir)
    assert planned["num_frames"] == pytest.approx(report.num_frames, rel=0.1)
    # Flat pictures with a number in them compress better than streets.
    assert report.num_bytes < planned["cache_bytes"] < 2.5 * report.num_bytes
    frames = memmap.Cache.open(made.cache_dir).shards[0].frames
    raw = planned["storages"]["raw"]["cache_bytes"]
    assert raw == pytest.approx(report.num_frames * frames[0].nbytes, rel=0.15)


@settings(max_examples=20)
@given(
    num_clips=st.integers(1, 3000),
    seconds=st.floats(1, 30),
    storage=st.sampled_from(list(shard.STORAGES)),
)
def test_peak_size_is_all_shards_plus_one_chunks_parts(num_clips, seconds, storage):
    p = params(Path("none"), storage)
    one = forecast.clip_bytes(p, seconds, storage, forecast.JPEG_SHARE_MOST)
    peak = forecast.cache_bytes(p, num_clips, seconds)
    assert peak == (num_clips + min(num_clips, forecast.CLIPS_A_CHUNK)) * one
    assert one >= forecast.clip_bytes(p, seconds, storage)


def test_jpeg_budget_covers_the_noisiest_frames(tmp_path):
    """The noisiest frames of a camera at night are still below the assumed share."""
    p = params(tmp_path, "jpeg", processing={"tile_width": 224, "tile_height": 128})
    rng = np.random.default_rng(3)
    frames = rng.normal(60, 8, (4, 256, 448, 1)) + rng.normal(0, 4, (4, 256, 448, 3))
    encoded = shard.jpeg.encode(frames.clip(0, 255).astype(np.uint8))
    assert encoded["jpeg"].nbytes <= forecast.clip_bytes(p, 2.0, "jpeg", forecast.JPEG_SHARE_MOST)


def test_video_properties_are_read_from_a_chosen_clip(made, tmp_path):
    value, note = row(build.plan(made), "video")
    assert value == "h264, 64×48 px" and note == "camera_front_wide_120fov of a chosen clip"
    assert (
        row(build.plan(params(tmp_path / "none")), "video")[1] == "expected; no raw file was read"
    )


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_rendered_videos_properties_come_from_the_parameters(tmp_path, codec):
    p = params(tmp_path, source="world", dataset={"world": {"codec": codec, "width": 640}})
    assert row(build.plan(p), "video") == (f"{codec}, 640×72 px", "as it is rendered")


def test_decode_time_grows_with_codec_size_rate_and_decoder():
    def seconds(codec="h264", width=1920, sample_hz=2.0, decoder="pyav") -> float:
        return forecast.VideoProperties(codec, width, 1080, 600, "").cpu_s(sample_hz, decoder)

    assert seconds("av1") < seconds("h264") < seconds("hevc") == seconds("unheard of")
    assert seconds(width=640) < seconds() < seconds(sample_hz=10.0) < seconds(sample_hz=30.0)
    assert seconds(sample_hz=30.0) == seconds(sample_hz=90.0)
    assert seconds() < seconds(decoder="decord")
    names = get_args(ProcessingParams.model_fields["decoder"].annotation)
    assert set(forecast.DECODER_COST) == set(names) - {"auto"}


def endless(folder: Path, raw: Path) -> Params:
    """A run of the whole data set, whose cache needs some 16 TB."""
    return params(
        folder,
        dataset={"local_dir": str(raw)},
        download={"target_chunks": 3000, "target_size_gb": 1e6},
    )


def test_free_space_is_read_from_the_caches_volume(tmp_path):
    """/dev/shm is not the volume of the raw files."""
    elsewhere = Path("/dev/shm") / f"avomni-{os.getpid()}"
    free = files.free_bytes(elsewhere)
    assert free != files.free_bytes(tmp_path)
    p = endless(elsewhere, tmp_path)
    plan = build.plan(p)
    (warning,) = plan.warnings
    assert f"{gigabytes(free)} are free in {p.cache_dir}" in warning
    assert "processing.storage: jpeg" in warning
    assert not elsewhere.exists(), "a plan makes nothing"


def test_existing_cache_files_count_towards_the_needed_space(tmp_path):
    p = endless(tmp_path, tmp_path)
    assert "the cache needs" in build.plan(p).warnings[0]
    peak = build.plan(p).figures["peak_bytes"]
    p.cache_dir.mkdir(parents=True)
    for number in range(18):  # sparse files, which take no space
        with open(p.cache_dir / f"{number}.npy", "wb") as file:
            file.truncate(peak // 18 + 1)
    assert forecast.bytes_below(p.cache_dir) >= peak
    assert not build.plan(p).warnings


def test_plan_warns_of_a_grid_that_does_not_fit_the_backbone():
    p = params(Path("none"), processing={"tile_width": 450})
    (warning,) = build.plan(p, tokens.grid_warnings(p)).warnings
    assert "900×512 px does not divide into squares of 32 px" in warning
    assert not tokens.grid_warnings(params(Path("none")))
