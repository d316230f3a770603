"""Partial files: one owner each, one content each, resumed by the next process."""

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
CONNECTION_LOST = AvomniError("the line is dead")


def listed(content: bytes = CONTENT, path: str = "camera/a.zip") -> RemoteFile:
    return RemoteFile(path, len(content), hashlib.sha256(content).hexdigest())


class Source:
    """A source whose connection drops after `cuts` bytes of each response."""

    def __init__(self, content: bytes = CONTENT, cuts: tuple[int, ...] = (), has_ranges=True):
        self.content, self.cuts, self.has_ranges = content, list(cuts), has_ranges
        self.backoff, self.starts = Backoff(first_s=0.0, num_tries=3), []

    @contextlib.contextmanager
    def read(self, remote: RemoteFile, start: int, stop: object = None) -> Iterator[tuple]:
        self.starts.append(start)
        start = start if self.has_ranges else 0
        yield start, self._blocks(start)

    def _blocks(self, start: int) -> Iterator[bytes]:
        stop = start + self.cuts.pop(0) if self.cuts else len(self.content)
        for place in range(start, min(stop, len(self.content)), 100):
            yield self.content[place : min(place + 100, stop)]
        if stop < len(self.content):
            raise Retry(CONNECTION_LOST)


def fetch(folder: Path, source: Source, remote: RemoteFile | None = None, **named: object) -> Path:
    with transfer.claim(folder, remote or listed()) as partial:
        return transfer.complete(partial, source, folder, **named)


@settings(max_examples=60)
@given(
    cuts=st.lists(st.integers(0, len(CONTENT)), max_size=8),
    num_present=st.integers(0, len(CONTENT) + 9),
    has_ranges=st.booleans(),
)
def test_interrupted_transfer_gives_the_whole_file_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], num_present: int, has_ranges: bool
):
    folder, bar = tmp_path_factory.mktemp("data"), Bar()
    partial = transfer.path_of(folder, listed())
    partial.parent.mkdir(parents=True)
    partial.write_bytes((CONTENT + bytes(9))[:num_present])
    source = Source(cuts=tuple(cuts), has_ranges=has_ranges)
    try:
        path = fetch(folder, source, bar=bar)
    except AvomniError as error:
        assert error is CONNECTION_LOST and cuts
        assert not (folder / "camera/a.zip").exists()
        # The partial is a prefix of the file.
        assert CONTENT.startswith(partial.read_bytes() if partial.exists() else b"")
    else:
        assert path.read_bytes() == CONTENT
        assert not partial.exists()
        num_kept = num_present if num_present <= len(CONTENT) else 0
        assert bar.count == len(CONTENT) - num_kept


def test_revisions_have_separate_partial_files(tmp_path: Path):
    """The same path and size with another content have another partial."""
    newer = CONTENT[::-1]
    with pytest.raises(AvomniError):
        fetch(tmp_path, Source(cuts=(4000, 0, 0, 0)))
    assert transfer.bytes_there(tmp_path, listed()) == 4000
    assert transfer.bytes_there(tmp_path, listed(newer)) == 0
    source = Source(newer)
    assert fetch(tmp_path, source, listed(newer)).read_bytes() == newer
    assert source.starts == [0]


def test_partial_file_has_one_owner(tmp_path: Path):
    with transfer.claim(tmp_path, listed()) as first:
        assert first is not None
        with transfer.claim(tmp_path, listed()) as second:
            assert second is None
        other = listed(path="camera/b.zip")
        with transfer.claim(tmp_path, other) as free:
            assert free is not None
    with transfer.claim(tmp_path, listed()) as first:
        assert first is not None
    assert list((tmp_path / transfer.PARTIALS).iterdir()) == [], "nothing empty is left"


def test_renamed_partial_is_not_written_to(tmp_path: Path):
    """A process that opened the partial before its owner renamed it has the finished file open."""
    path = transfer.path_of(tmp_path, listed())
    path.parent.mkdir(parents=True)
    with open(path, "a+b") as late:
        fetch(tmp_path, Source())
        assert not transfer._is_at(late, path)


def write_partial(
    folder: Path, remote: RemoteFile, num_bytes: int = 10, idle_s: float = 0.0
) -> Path:
    path = transfer.path_of(folder, remote)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    os.utime(path, (time.time() - idle_s,) * 2)
    return path


def test_sweep_removes_superseded_and_old_partials(tmp_path: Path):
    wanted = write_partial(tmp_path, listed(), idle_s=1e9)
    superseded = write_partial(tmp_path, listed(b"of an older revision"))
    of_another_run = write_partial(tmp_path, listed(b"b", "camera/b.zip"))
    forgotten = write_partial(tmp_path, listed(b"c", "camera/c.zip"), idle_s=2 * transfer.KEEP_S)
    at_work = listed(b"d", "camera/d.zip")
    with transfer.claim(tmp_path, at_work) as partial:
        partial.write(b"half")
        os.utime(partial.path, (0, 0))
        assert transfer.sweep(tmp_path, [listed()]) == 10 + 10
        assert partial.path.exists(), "a live process is writing it"
    remaining = set((tmp_path / transfer.PARTIALS).iterdir())
    assert {wanted, of_another_run} <= remaining and not {superseded, forgotten} & remaining


def test_free_space_is_checked_for_the_remaining_bytes(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    remote = RemoteFile("camera/a.zip", free + 10**9, "0" * 64)
    of_another_run = write_partial(tmp_path, listed(b"b", "camera/b.zip"))
    with pytest.raises(AvomniError, match="no room on the disk for the download") as caught:
        transfer.make_room(tmp_path, [remote])
    assert caught.value.where == str(tmp_path)
    assert not of_another_run.exists(), "partials of other runs are removed first"
    # A sparse file of 3 GB counts with its size.
    os.truncate(write_partial(tmp_path, remote), 3 * 10**9)
    transfer.make_room(tmp_path, [remote])


def test_unwritable_folder_is_one_error(tmp_path: Path):
    """A file is where a folder should be, which fails for root too."""
    (tmp_path / "camera").write_text("")
    with pytest.raises(AvomniError, match=r"cannot write a\.zip") as caught:
        fetch(tmp_path, Source())
    assert "who may write there" in caught.value.fix
