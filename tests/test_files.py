"""Atomic writes, and errors about files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError

WRITER = """
import sys
from pathlib import Path
from avomni_lib import files
n = 0
while True:
    n += 1
    files.write_text(Path(sys.argv[1]), f"{n:>8}" * 40_000)
"""


def test_killed_writer_leaves_a_complete_file(tmp_path: Path):
    path = tmp_path / "value.txt"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        text = path.read_text()
        assert len(text) == 320_000
        assert {text[i : i + 8] for i in range(0, len(text), 8)} == {text[:8]}
        path.unlink()
    files.sweep_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_error_during_a_write_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "value.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.write_whole(path) as file:
        file.write(b"half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["value.txt"]


def test_full_disk_error_says_what_to_do(tmp_path: Path):
    """Every write to /dev/full fails as on a full disk."""
    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    error = files.refused(caught.value, tmp_path / "frames.npy")
    assert "no room left on the disk" in error.what and "run the same command" in error.fix


def test_need_room_raises_if_the_disk_is_too_small(tmp_path: Path):
    with pytest.raises(
        AvomniError, match="no room on the disk for the cache: 1000000.00 GB needed"
    ):
        files.need_room(tmp_path / "not" / "made" / "yet", 10**15, "the cache")
    files.need_room(tmp_path, 1, "the cache", keep_free=0)


def test_damaged_json_error_names_the_file(tmp_path: Path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(AvomniError, match="not a JSON file") as caught:
        files.read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)


def test_relative_paths_start_at_the_project_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert files.resolve("outputs/x") == files.PROJECT_ROOT / "outputs" / "x"
    assert files.resolve(tmp_path / "y") == tmp_path / "y"
    for path in ("a\0b", "~nobody_of_that_name/x"):
        with pytest.raises(AvomniError):
            files.resolve(path)


def test_hash_does_not_depend_on_the_order_of_keys():
    assert files.hash_json({"a": 1, "b": 2}) == files.hash_json({"b": 2, "a": 1})
    assert files.hash_json({"a": 1}) != files.hash_json({"a": 2})
