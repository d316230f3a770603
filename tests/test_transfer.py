"""Partials: one owner each, never of two contents, gone on with by whoever comes next."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.download.backoff import Backoff, Retry
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar

CONTENT = bytes(range(256)) * 40
LINE = AvomniError("the line is dead")


def listed(content: bytes = CONTENT, path: str = "camera/a.zip") -> RemoteFile:
    return RemoteFile(path, len(content), hashlib.sha256(content).hexdigest())


class Line:
    """A source whose line drops after so many bytes of each answer."""

    def __init__(self, content: bytes = CONTENT, lives: tuple[int, ...] = (), has_ranges=True):
        self.content, self.lives, self.has_ranges = content, list(lives), has_ranges
        self.backoff, self.starts = Backoff(first_s=0.0, num_tries=3), []

    @contextlib.contextmanager
    def read(self, remote: RemoteFile, start: int, stop: object = None) -> Iterator[tuple]:
        self.starts.append(start)
        start = start if self.has_ranges else 0
        yield start, self._blocks(start)

    def _blocks(self, start: int) -> Iterator[bytes]:
        stop = start + self.lives.pop(0) if self.lives else len(self.content)
        for place in range(start, min(stop, len(self.content)), 100):
            yield self.content[place : min(place + 100, stop)]
        if stop < len(self.content):
            raise Retry(LINE)


def fetch(folder: Path, line: Line, remote: RemoteFile | None = None, **named: object) -> Path:
    with transfer.claim(folder, remote or listed()) as partial:
        return transfer.complete(partial, line, folder, **named)


@settings(max_examples=60)
@given(
    lives=st.lists(st.integers(0, len(CONTENT)), max_size=8),
    there=st.integers(0, len(CONTENT) + 9),
    has_ranges=st.booleans(),
)
def test_whatever_the_line_does_the_file_is_whole_or_the_run_says_why(
    tmp_path_factory: pytest.TempPathFactory, lives: list[int], there: int, has_ranges: bool
):
    folder, bar = tmp_path_factory.mktemp("data"), Bar()
    partial = transfer.path_of(folder, listed())
    partial.parent.mkdir(parents=True)
    partial.write_bytes((CONTENT + bytes(9))[:there])
    line = Line(lives=tuple(lives), has_ranges=has_ranges)
    try:
        path = fetch(folder, line, bar=bar)
    except AvomniError as error:
        assert error is LINE and lives
        assert not (folder / "camera/a.zip").exists()
        # What is kept is a beginning of the file.
        assert CONTENT.startswith(partial.read_bytes() if partial.exists() else b"")
    else:
        assert path.read_bytes() == CONTENT
        assert not partial.exists()
        was_here = there if there <= len(CONTENT) else 0
        assert bar.count == len(CONTENT) - was_here


def test_bytes_of_two_revisions_never_meet(tmp_path: Path):
    """The same path, the same size, another content: another partial."""
    newer = CONTENT[::-1]
    with pytest.raises(AvomniError):
        fetch(tmp_path, Line(lives=(4000, 0, 0, 0)))
    assert transfer.bytes_there(tmp_path, listed()) == 4000
    assert transfer.bytes_there(tmp_path, listed(newer)) == 0
    line = Line(newer)
    assert fetch(tmp_path, line, listed(newer)).read_bytes() == newer
    assert line.starts == [0]


def test_a_file_has_one_owner(tmp_path: Path):
    with transfer.claim(tmp_path, listed()) as mine:
        assert mine is not None
        with transfer.claim(tmp_path, listed()) as yours:
            assert yours is None
        other = listed(path="camera/b.zip")
        with transfer.claim(tmp_path, other) as free:
            assert free is not None
    with transfer.claim(tmp_path, listed()) as mine:
        assert mine is not None
    assert list((tmp_path / transfer.PARTIALS).iterdir()) == [], "nothing empty is left"


def test_what_got_its_name_meanwhile_is_not_written_to(tmp_path: Path):
    """Who opened the partial just before its owner renamed it holds the finished file."""
    path = transfer.path_of(tmp_path, listed())
    path.parent.mkdir(parents=True)
    with open(path, "a+b") as late:
        fetch(tmp_path, Line())
        assert not transfer._is_at(late, path)


def lay(folder: Path, remote: RemoteFile, num_bytes: int = 10, idle_s: float = 0.0) -> Path:
    path = transfer.path_of(folder, remote)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    os.utime(path, (time.time() - idle_s,) * 2)
    return path


def test_a_sweep_takes_what_nobody_will_go_on_with(tmp_path: Path):
    wanted = lay(tmp_path, listed(), idle_s=1e9)
    superseded = lay(tmp_path, listed(b"of an older revision"))
    of_another_run = lay(tmp_path, listed(b"b", "camera/b.zip"))
    forgotten = lay(tmp_path, listed(b"c", "camera/c.zip"), idle_s=2 * transfer.KEEP_S)
    at_work = listed(b"d", "camera/d.zip")
    with transfer.claim(tmp_path, at_work) as partial:
        partial.write(b"half")
        os.utime(partial.path, (0, 0))
        assert transfer.sweep(tmp_path, [listed()]) == 10 + 10
        assert partial.path.exists(), "a living process is at work on it"
    left = set((tmp_path / transfer.PARTIALS).iterdir())
    assert {wanted, of_another_run} <= left and not {superseded, forgotten} & left


def test_room_is_asked_of_the_raw_files_own_volume_for_what_is_still_to_come(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    remote = RemoteFile("camera/a.zip", free + 10**9, "0" * 64)
    of_another_run = lay(tmp_path, listed(b"b", "camera/b.zip"))
    with pytest.raises(AvomniError, match="no room on the disk for the download") as caught:
        transfer.make_room(tmp_path, [remote])
    assert caught.value.where == str(tmp_path)
    assert not of_another_run.exists(), "what another run left goes first"
    # A hole of 3 GB: the size counts as it would if it were filled.
    os.truncate(lay(tmp_path, remote), 3 * 10**9)
    transfer.make_room(tmp_path, [remote])


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path):
    """A file stands where a folder should be: that stops root too."""
    (tmp_path / "camera").write_text("")
    with pytest.raises(AvomniError, match=r"cannot write a\.zip") as caught:
        fetch(tmp_path, Line())
    assert "who may write there" in caught.value.fix
