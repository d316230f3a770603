"""Lost clips: faults of the machine leave a clip out until the next build reads it again."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from avomni_lib.dataset import stored_zip
from avomni_lib.dataset.catalog import OBSTACLES
from avomni_lib.dataset.select import evicted
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import memmap
from avomni_lib.etl.run import build, parts, slurm
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from tests import evicting_run, folder_run
from tests.evicting_run import CAMERAS, FILES_PER_CHUNK, NUM_CHUNKS, hub_of, raw_files
from tests.folder_run import chosen, content
from tests.published_set import chunk_path, clip_id_of
from tests.test_obstacles import publish_with_labels

CLIPS_PER_CHUNK = 4  # of `small_set`
PLAN = "AVOMNI_TEST_FAULTS"  # a JSON file: clip_id -> fault of the worker that reads it
do = parts.do


def do_with_faults(job: parts.ClipJob | parts.Assembly) -> parts.JobOutcome:
    """`parts.do` with the fault that the plan sets for the clip."""
    faults = json.loads(Path(os.environ[PLAN]).read_text())
    what = faults.get(getattr(job, "clip_id", None))
    with pytest.MonkeyPatch.context() as patch:
        if what == "cannot read":
            patch.setattr(os, "pread", failing(errno.EIO))
        elif what:
            FAULTS[what][0]()
        return do(job)


DIED = "died, and again when it was alone"
# Fault of a worker, and the reason reported for it.
FAULTS = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), f"{DIED} (killed by SIGKILL)"),
    "crashes": (lambda: ctypes.string_at(0), f"{DIED} (killed by SIGSEGV)"),
    "exits": (lambda: os._exit(7), f"{DIED} (exit code 7)"),
    "leaves": (lambda: sys.exit(3), f"{DIED} (exit code 3)"),
    "hangs": (lambda: time.sleep(600), "it took longer than 4 s and was stopped"),
    "fills": (lambda: np.zeros(1 << 62, np.uint8), f"{DIED} (out of memory)"),
    "cannot read": (None, "could not be read: Input/output error"),
}


def failing(code: int):
    def fail(*_: object, **__: object):
        raise OSError(code, os.strerror(code), "raw.zip")

    return fail


@pytest.fixture
def set_faults(tmp_path, monkeypatch):
    """A function that sets the faults of clips: `set_faults(killed=2)` for clip number 2."""
    plan = tmp_path / "faults.json"
    monkeypatch.setenv(PLAN, str(plan))
    monkeypatch.setattr(parts, "do", do_with_faults)

    def set_to(**faults: int) -> None:
        plan.write_text(json.dumps({clip_id_of(n): w.replace("_", " ") for w, n in faults.items()}))

    set_to()
    return set_to


def test_lost_clips_become_rows_and_the_next_build_reads_them(
    small_set, small_cache, set_faults, tmp_path
):
    p = chosen(tmp_path, small_set, num_workers=2, clip_timeout_s=4)
    faults = {kind.replace(" ", "_"): number for number, kind in enumerate(FAULTS)}
    set_faults(**faults)
    built = build.build(p)
    assert [row["clip_id"] for row in built.lost] == [clip_id_of(n) for n in faults.values()]
    assert not built.damaged and built.figures["num_damaged"] == 0
    assert built.figures["num_lost"] == len(FAULTS) and built.figures["num_clips"] == 1
    for row, (_, reason) in zip(built.lost, FAULTS.values(), strict=True):
        assert row["state"] == "lost" and reason in row["reason"]
    assert memmap.verify(p.cache_dir).num_clips == 1, (
        "the clips that were read form a complete cache"
    )
    set_faults(cannot_read=2)
    again = build.build(p)
    assert again.figures["num_clips_read"] == len(FAULTS)
    assert [row["clip_id"] for row in again.lost] == [clip_id_of(2)]
    lacking = content(p.cache_dir)
    assert build.build(p).clips == again.clips
    assert content(p.cache_dir) == lacking, "a clip lost again must change nothing"
    set_faults()
    mended = build.build(p)
    assert mended.figures["num_clips_read"] == 1 and not mended.lost
    assert content(p.cache_dir) == small_cache


def test_slurm_share_counts_lost_clips_and_the_build_reads_them(
    small_set, small_cache, set_faults, tmp_path
):
    p = chosen(tmp_path, small_set)
    set_faults(killed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm, "make_part", do_with_faults)
        figures = slurm.build_share(p, 1, 2)
    assert (figures["num_made"], figures["num_lost"], figures["num_damaged"]) == (3, 1, 0)
    set_faults()
    assert not build.build(p).lost
    assert content(p.cache_dir) == small_cache


CAUSES = {
    "the zip's directory": (stored_zip.zipfile, "ZipFile"),
    "a member's header": (stored_zip.os, "pread"),
    "the calibration": (pq, "ParquetFile"),
}


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("cause", CAUSES)
def test_disk_error_makes_a_clip_lost_and_not_damaged(
    small_set, tmp_path, monkeypatch, cause, code
):
    """After one disk error the clip must be lost, and readable again."""
    job = parts.ClipJob(
        clip_id_of(0), 0, small_set, build.recipe_of(chosen(tmp_path, small_set)), tmp_path / "a"
    )
    for path in small_set.rglob("*.zip"):
        os.utime(path)  # cached zip directories become invalid
    with monkeypatch.context() as patch:
        patch.setattr(*CAUSES[cause], failing(code))
        outcome = parts.make_part(job)
    if cause == "the calibration" and outcome.reason is None:
        pytest.fail("nothing was read of the tables")
    assert outcome.is_lost and os.strerror(code) in outcome.reason
    assert parts.make_part(job).reason is None


def test_folder_or_link_loop_in_place_of_a_raw_file_makes_clips_lost(small_set, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(small_set, folder)
    p = chosen(tmp_path, folder)
    path = folder / chunk_path(CAMERAS[1], 0)
    kept = path.read_bytes()
    for spoil in (lambda: path.mkdir(), lambda: path.symlink_to(path.name), lambda: None):
        path.unlink()
        spoil()
        built = build.build(p)
        assert [row["chunk"] for row in built.lost] == [0] * CLIPS_PER_CHUNK and not built.damaged
        expected = "not on the disk" if not path.exists() else "could not be read"
        assert all(expected in row["reason"] for row in built.lost)
        if path.is_dir():
            path.rmdir()
            path.touch()
        elif not path.is_symlink():
            path.touch()
    path.write_bytes(kept)
    assert not build.build(p).lost


def test_invalid_zip_content_makes_clips_damaged(small_set, tmp_path):
    """A member offset beyond the file is a fault of the content and not of the disk."""
    folder = tmp_path / "set"
    shutil.copytree(small_set, folder)
    p = chosen(tmp_path, folder)
    path = folder / chunk_path(CAMERAS[0], 0)
    entry = re.compile(rb"(PK\x01\x02.{38}).{4}", re.DOTALL)  # ends with the member's offset
    path.write_bytes(entry.sub(lambda found: found[1] + b"\xff\xff\xff\x7f", path.read_bytes()))
    built = build.build(p)
    assert len(built.damaged) == CLIPS_PER_CHUNK and not built.lost


def test_clip_with_missing_label_file_is_lost_and_not_unlabelled(tmp_path):
    published = publish_with_labels(tmp_path / "set")
    p = chosen(tmp_path, published, obstacles=True)
    path = published / chunk_path(OBSTACLES, 0)
    path.rename(tmp_path / "labels")
    with pytest.raises(
        AvomniError, match="none of the 4 clips could be read: 4 are lost"
    ) as caught:
        build.build(p)
    assert path.name in caught.value.what and "not on the disk" in caught.value.what
    (tmp_path / "labels").rename(path)
    build.build(p)
    q = chosen(tmp_path / "other", published, obstacles=True)
    build.build(q)
    assert content(p.cache_dir) == content(q.cache_dir)


# Runs that evict raw files.


def test_raw_files_of_a_lost_clip_are_kept_for_the_next_build(served, set_faults, tmp_path):
    p = evicting_run.chosen(evicting_run.params(tmp_path), served)
    set_faults(killed=4)  # of chunk 1
    built = build.build(p, hub=hub_of(served))
    assert [row["clip_id"] for row in built.lost] == [clip_id_of(4)]
    there = raw_files(p)
    assert len(there) == FILES_PER_CHUNK and all("chunk_0001" in name for name in there)
    assert len(evicted.read_evicted(p)) == FILES_PER_CHUNK * (NUM_CHUNKS - 1)
    before = len(served.requests)
    assert build.build(p, hub=hub_of(served)).lost and raw_files(p) == there
    set_faults()
    mended = build.build(p, hub=hub_of(served))
    assert len(served.requests) == before, "nothing is fetched for it"
    assert mended.figures["num_clips_read"] == 1 and raw_files(p) == []
    kept = evicting_run.chosen(evicting_run.params(tmp_path / "kept", evict=False), served)
    build.build(kept)
    assert evicting_run.content(p) == evicting_run.content(kept)


def test_build_stops_if_lost_chunks_leave_no_room(served, set_faults, tmp_path):
    p = evicting_run.chosen(evicting_run.params(tmp_path), served)
    tight = evicting_run.params(tmp_path, evicting_run.needed_gb(p))
    set_faults(killed=1)  # of chunk 0, which comes first
    with pytest.raises(AvomniError, match="raw files of 1 chunks stay, as clips") as caught:
        build.build(tight, hub=hub_of(served))
    assert "run the same command again" in caught.value.fix
    assert all("chunk_0000" in name for name in raw_files(p))
    enough = float(caught.value.fix.split("target_size_gb: ")[1].split(" ")[0])
    roomy = evicting_run.params(tmp_path / "roomy", enough)
    built = build.build(evicting_run.chosen(roomy, served), hub=hub_of(served))
    assert built.figures["peak_bytes"] <= enough * 1e9 and len(built.lost) == 1
    set_faults()
    assert not build.build(tight, hub=hub_of(served)).lost
    assert raw_files(p) == []


# The stage.


def finished(p: Params) -> build.Built:
    for name in ("01_audit", "02_download"):
        runs.start(p, name).finish({}, digest="the same")
    return evicting_run.finish(p, "03_etl")


def test_stage_with_lost_clips_reruns_and_later_stages_stay_valid(small_set, set_faults, tmp_path):
    p = chosen(tmp_path, small_set)
    set_faults(killed=1)
    finished(p)
    for name in ("04_tiles", "05_train"):
        runs.start(p, name).finish({}, digest=name)
    state = runs.state(p, "03_etl")
    assert not state.done and "1 clip lost to a fault of the machine" in state.reason
    assert "the next run tries again" in state.reason
    assert runs.state(p, "02_download").done
    assert runs.state(p, "04_tiles").done and runs.state(p, "05_train").done
    finished(p)
    assert not runs.state(p, "03_etl").done and runs.state(p, "05_train").done, (
        "a clip lost again changes nothing"
    )
    set_faults()
    finished(p)
    assert runs.state(p, "03_etl").done
    for name in ("04_tiles", "05_train"):
        assert "03_etl made something else since" in runs.state(p, name).reason


def test_unfinished_training_resumes_before_lost_clips_are_retried(small_set, set_faults, tmp_path):
    """A changed cache would restart the training from its first step."""
    p = chosen(tmp_path, small_set)
    set_faults(killed=1)
    built = finished(p)
    checkpoint = p.checkpoints_dir / "0123456789ab" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    plan = checkpoint.parent / "training.json"
    plan.write_text(json.dumps({"cache": built.cache.digest}))
    state = runs.state(p, "03_etl")
    assert state.done and "1 clip lost" in state.reason
    assert "tried again when the training that has begun is through" in state.reason
    plan.write_text(json.dumps({"cache": "another"}))
    assert not runs.state(p, "03_etl").done
    plan.write_text(json.dumps({"cache": built.cache.digest}))
    runs.start(p, "05_train").finish({}, digest="05_train")
    assert not runs.state(p, "03_etl").done


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "soon"])
def test_clip_timeout_must_be_a_positive_number(tmp_path, seconds):
    with pytest.raises(AvomniError, match="clip_timeout_s"):
        Params.from_values(folder_run.values(tmp_path, tmp_path, clip_timeout_s=seconds))
