"""ETL shares, run at the same time or killed, followed by a build with the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.etl.run import build, parts, slurm
from avomni_lib.params import Params
from tests.folder_run import chosen, content
from tests.published_set import clip_id_of

NUM_CLIPS = 8  # of `small_set`
CODE = (
    "import json, sys; from avomni_lib.etl.run import slurm; from avomni_lib.params import Params; "
    "p = Params.from_values(json.loads(sys.argv[1])); "
    "print(json.dumps(slurm.build_share(p, *slurm.parse(sys.argv[2]))))"
)


def part_ids(p: Params) -> set[str]:
    return {path.stem for path in p.cache_dir.glob(f"{parts.PARTS_FOLDER}/*/*.npz")}


def started(p: Params, text: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, json.dumps(p.values()), text],
        cwd=files.PROJECT_ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def test_concurrent_shares_then_a_build_give_the_same_bytes(small_set, small_cache, tmp_path):
    p = chosen(tmp_path, small_set)
    shares = [started(p, f"{index}/3") for index in (1, 2, 3)]
    figures = [json.loads(process.communicate(timeout=120)[0]) for process in shares]
    assert [process.returncode for process in shares] == [0, 0, 0]
    assert [f["num_clips"] for f in figures] == [f["num_made"] for f in figures] == [3, 3, 2]
    assert part_ids(p) == {clip_id_of(n) for n in range(NUM_CLIPS)}
    assert not list(p.cache_dir.glob("shard_*")), "a share assembles nothing"
    assert build.build(p).figures["num_clips_read"] == 0
    assert content(p.cache_dir) == small_cache


def test_share_makes_every_nth_clip_and_keeps_existing_parts(small_set, tmp_path):
    p = chosen(tmp_path, small_set)
    first = slurm.build_share(p, 2, 3)
    expected = {clip_id_of(n) for n in (1, 4, 7)}
    assert part_ids(p) == expected
    assert (first["share"], first["num_made"], first["num_there"]) == ("2/3", 3, 0)
    stamps = {path: path.stat().st_mtime_ns for path in p.cache_dir.rglob("*.npz")}
    again = slurm.build_share(p, 2, 3)
    assert (again["num_clips"], again["num_made"], again["num_there"]) == (3, 0, 3)
    assert {path: path.stat().st_mtime_ns for path in p.cache_dir.rglob("*.npz")} == stamps


def test_killed_share_loses_no_finished_parts(small_set, small_cache, tmp_path):
    p = chosen(tmp_path, small_set)
    killed, other = started(p, "1/2"), started(p, "2/2")
    stop = time.monotonic() + 60
    while len(part_ids(p)) < 2 and killed.poll() is None:
        assert time.monotonic() < stop
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert json.loads(other.communicate(timeout=120)[0])["num_made"] == NUM_CLIPS // 2
    before = part_ids(p)
    assert before >= {clip_id_of(n) for n in range(1, NUM_CLIPS, 2)}
    built = build.build(p)
    assert built.figures["num_clips_read"] == NUM_CLIPS - len(before)
    assert content(p.cache_dir) == small_cache


def test_build_and_share_exclude_each_other(small_set, tmp_path):
    """A build removes incomplete files, which must not be those of a running share."""
    p = chosen(tmp_path, small_set)
    lock = p.cache_dir / ".lock"
    with files.hold(lock, "busy", shared=True):  # as another share does
        assert slurm.build_share(p, 1, 8)["num_made"] == 1, "shares may run at the same time"
        with pytest.raises(AvomniError, match="another process is building this cache"):
            build.build(p)
    with files.hold(lock, "busy"):
        with pytest.raises(AvomniError, match="a build of the whole") as caught:
            slurm.build_share(p, 1, 8)
        assert "run the same command again" in caught.value.fix
        with pytest.raises(AvomniError, match="another process is building this cache"):
            build.build(p)


def test_shares_require_all_raw_files(small_set, tmp_path):
    values = chosen(tmp_path, small_set).values()
    values["dataset"]["source"], values["download"]["evict_raw"] = "hub", True
    with pytest.raises(AvomniError, match="shares need all raw files") as caught:
        slurm.build_share(Params.from_values(values), 1, 2)
    assert "download.evict_raw: false" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1/1", (1, 1)), ("3/16", (3, 16)), ("16/16", (16, 16)), (" 2/4 ", (2, 4))],
)
def test_parse_reads_a_share(text, expected):
    assert slurm.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "3", "0/4", "5/4", "-1/4", "1/0", "a/b", "1/2/3", "1.5/2", "٣/٤"]
)
def test_parse_refuses_an_invalid_share(text):
    with pytest.raises(AvomniError, match="is no share") as caught:
        slurm.parse(text)
    assert "1/16" in caught.value.fix and caught.value.where == "--shard"
