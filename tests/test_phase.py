"""`processing.align: keyframes`: the sampling phase at which wanted frames are key frames."""

import numpy as np
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.dataset.audit.audit import audit
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.download import download
from avomni_lib.etl.clip import sampling
from avomni_lib.etl.clip.sampling import Recipe, sample_clip
from avomni_lib.etl.run import build
from avomni_lib.etl.video import reader
from avomni_lib.live import subject
from avomni_lib.params import Params
from tests import folder_run
from tests.published_set import clip_id_of, write_published_set

HZ, STEP_US = 2.0, 500_000
GRID = cameras.grid("4-cam")


def stamps_of(first_us: int, count: int = 600, fps: int = 30, jitter: int = 0) -> np.ndarray:
    noise = np.random.default_rng(first_us).integers(-jitter, jitter + 1, count)
    return first_us + np.rint(np.arange(count) * 1e6 / fps).astype(np.int64) + noise


def times_of(stamps, keys):
    return sampling.times_of(
        stamps, min(int(camera_stamps[-1]) for camera_stamps in stamps), HZ, keys
    )


def wanted_rows(stamps, times):
    return [reader.frame_indices(camera_stamps, times) for camera_stamps in stamps]


@pytest.mark.parametrize("jitter", [0, 60])
@pytest.mark.parametrize("late", [1, 7, 12])
def test_all_frames_become_key_frames_if_the_gop_divides_the_step(jitter, late):
    """One camera's file begins `late` frames after that of the other two."""
    first = stamps_of(0, jitter=jitter)
    stamps = [first, stamps_of(400, jitter=jitter), first[late:]]
    rows = np.arange(0, 600, 15)
    keys = [rows, rows, rows[1:] - late]
    plain, none = times_of(stamps, [])
    times, moved = times_of(stamps, keys)
    assert none == 0 and -STEP_US / 2 < moved <= STEP_US / 2 and moved != 0
    for wanted, camera_keys in zip(wanted_rows(stamps, times), keys, strict=True):
        assert np.isin(wanted, camera_keys).all()
    assert not np.isin(wanted_rows(stamps, plain)[0], keys[0]).any()
    assert (np.diff(times) == STEP_US).all(), "the spacing of the frames stays"
    assert len(plain) - 1 <= len(times) <= len(plain)
    assert times[0] >= stamps[2][0], "all cameras show something"


def test_times_on_key_frames_stay():
    stamps = [stamps_of(0), stamps_of(400)]
    rows = np.arange(0, 600, 15)
    plain, _ = times_of(stamps, [])
    times, moved = times_of(stamps, [rows, rows])
    assert moved == 0 and np.array_equal(times, plain)


@pytest.mark.parametrize("gop", [7, 250])
def test_times_stay_if_few_frames_would_be_key_frames(gop):
    stamps = [stamps_of(0)[5:], stamps_of(0)]
    rows = np.arange(0, 600, gop)
    keys = [rows[rows >= 5] - 5, rows]
    assert sampling.shift_us(times_of(stamps, [])[0], stamps, keys, STEP_US) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of 30 fps with a key frame every 15 frames, whose cameras begin apart."""
    return write_published_set(tmp_path_factory.mktemp("set"), 1, 2, 4.0)


def recipe(align):
    return Recipe("4-cam", (32, 24), "stretch", HZ, 0.5, "pyav", align=align)


def num_keys(folder, number, arrays):
    """(wanted frames that are key frames, all of them)."""
    clip, count = Clip(folder, Catalog.open(folder), clip_id_of(number)), 0
    for column, camera in enumerate(GRID.cameras):
        camera_stamps = clip.timestamps(camera.name)
        key_us = camera_stamps[reader.key_rows(clip.video(camera.name))]
        count += int(np.isin(arrays["timestamps"][:, column], key_us).sum())
    return count, arrays["timestamps"].size


@pytest.mark.parametrize("number", [0, 1])
def test_clip_is_sampled_at_the_noted_phase(folder, number):
    clip = Clip(folder, Catalog.open(folder), clip_id_of(number))
    plain, aligned = (sample_clip(clip, recipe(align)) for align in (None, "keyframes"))
    before, _ = num_keys(folder, number, plain.arrays)
    after, total = num_keys(folder, number, aligned.arrays)
    moved = aligned.notes.get("phase_us", 0)
    assert "phase_us" not in plain.notes
    assert (after > before and after >= total / 2) if moved else after == before
    off = (aligned.arrays["times"][0] - plain.arrays["times"][0] - moved) % STEP_US
    assert off == 0, "moved by the phase, or by it and a whole step"
    again = sample_clip(clip, recipe("keyframes"))
    assert all(np.array_equal(again.arrays[k], v) for k, v in aligned.arrays.items())


def run_of(tmp_path, folder, align):
    values = folder_run.values(tmp_path, folder, sample_hz=HZ, align=align, horizon_s=0.5)
    values["run"]["name"] = str(align)
    p = Params.from_values(values | {"evaluation": {"max_new_tokens": 16}})
    download.fetch(p, None)
    return p, build.build(p)


def test_cache_records_the_phase_and_predict_uses_it(folder, tmp_path):
    p, built = run_of(tmp_path, folder, "keyframes")
    assert built.cache.header["align"] == "keyframes"
    rows = [
        row
        for shard in built.cache.shards
        for row in shard.header["clips"]
        if row["clip_id"] in {clip_id_of(0), clip_id_of(1)}
    ]
    clip = Clip(folder, Catalog.open(folder), rows[0]["clip_id"])
    sampled = sample_clip(clip, build.recipe_of(p))
    assert [row.get("phase_us", 0) for row in rows][0] == sampled.notes.get("phase_us", 0)
    assert any(row.get("phase_us") for row in rows)
    from_cache = subject.of_clip(p, rows[0]["clip_id"]).times_us
    (p.cache_dir / "clips.json").unlink()
    from_raw = subject.of_clip(p, rows[0]["clip_id"]).times_us
    assert (from_raw[-1] - from_cache[-1]) % STEP_US == 0

    _, plain = run_of(tmp_path, folder, None)
    assert "align" not in plain.cache.header
    assert plain.cache.digest != built.cache.digest


def test_audit_reports_a_possible_key_frame_alignment(folder, tmp_path):
    p, _ = run_of(tmp_path, folder, None)
    findings = [row for row in audit(p, None).findings if row["what"] == "key frames could be met"]
    assert findings and "processing.align: keyframes would make" in findings[0]["reason"]
    values = p.values()
    values["processing"]["sample_hz"] = 7.0
    other = audit(Params.from_values(values), None)
    assert "key frames could be met" not in {row["what"] for row in other.findings}
