"""Atomic writes, hashes, locks and free disk space.

Files are written under a temporary name, flushed to the disk and renamed (`os.replace`), so that a
process killed at any moment leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from avomni_lib.errors import AvomniError

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PARTIAL_SUFFIX = ".partial"
BLOCK_BYTES = 1 << 20
GO_ON = "run the same command again: it goes on from here"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CHOOSE = "set run.outputs_dir and dataset.local_dir to folders that you may write to"
# errno -> (meaning, what to do).
REFUSALS = {
    **dict.fromkeys(NO_ROOM, ("no room left on the disk", "free some space")),
    errno.EROFS: ("the file system is read-only", _CHOOSE),
    errno.EACCES: ("permission denied: it belongs to another user", _CHOOSE),
    errno.EPERM: ("not permitted: it belongs to another user", _CHOOSE),
    errno.ENOTDIR: ("a file lies where a folder should be", f"move it away, or {_CHOOSE}"),
    errno.EEXIST: ("a file lies where a folder should be", f"move it away, or {_CHOOSE}"),
    errno.EISDIR: ("a folder lies where a file should be", "move it away"),
    errno.ENAMETOOLONG: ("the path is too long", "choose shorter folders or run.name"),
    errno.ELOOP: ("a link leads to itself", "remove it"),
    errno.EFBIG: ("the file is larger than is allowed here", "ulimit -f unlimited"),
    errno.EMFILE: ("too many open files for one process", "ulimit -n 65536"),
    errno.ENFILE: ("too many open files on this machine", "end other programs"),
    errno.EAGAIN: ("no further process or thread can be started", "end other programs"),
    errno.ENOMEM: ("the memory ran out", "end other programs, or lower processing.num_workers"),
    errno.EIO: ("the disk failed to read or write", "check it: dmesg says more"),
    errno.ESTALE: ("the network disk has lost the file", "mount it anew"),
    errno.ENOTCONN: ("the network disk is gone", "mount it anew"),
}


def resolve(path: str | Path) -> Path:
    """Resolve a path of a params file; relative ones start at the project root.

    Raises:
        AvomniError: it contains NUL, or a `~` that is no user's home.
    """
    if "\0" in str(path):
        raise AvomniError("a path holds the character NUL", where=repr(str(path)))
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise AvomniError(f"cannot find a home folder: {error}", where=str(path)) from None
    return path if path.is_absolute() else PROJECT_ROOT / path


def environment() -> dict[str, str]:
    """Environment variables for a process that must import this copy of the package.

    PYTHONPATH takes precedence over another copy that may be installed.
    """
    paths = [str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def copy_in_sight() -> Path | None:
    """The project root above the working folder if it is another copy of the project, else None."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "avomni_lib" / "__init__.py").is_file():
            return None if folder.samefile(PROJECT_ROOT) else folder
    return None


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[IO]:
    """Open a temporary file beside `path`; on success it is flushed and renamed to `path`.

    Raises:
        AvomniError: no room on the disk (the temporary file is removed).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise no_room(path) from None
        raise


def write_bytes(path: Path, content: bytes) -> None:
    with write_whole(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises AvomniError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AvomniError("file not found", where=str(path)) from None
    except ValueError as error:
        raise AvomniError(
            f"not a JSON file: {error}", where=str(path), fix="remove it and run the stage again"
        ) from None


def read_record(path: Path, **kinds: type) -> dict[str, Any]:
    """As `read_json`; also raises if it is not an object with these keys and types of values."""
    record = read_json(path)
    for key, kind in kinds.items():
        if not isinstance(record, dict) or not isinstance(record.get(key), kind):
            raise AvomniError(
                f"the file is damaged or is not what its name says: it has no {kind.__name__} "
                f"called {key!r}",
                where=str(path),
                fix="remove it and run the stage again",
            )
    return record


def state_of(path: Path) -> tuple[int, int] | None:
    """Size (bytes) and modification time (ns) of a file; None if there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """As `sha256_file`, cached in this process while size and modification time are unchanged."""
    path = Path(path).absolute()
    return _sha256_of(path, state_of(path))


@functools.cache
def _sha256_of(path: Path, state: tuple[int, int] | None) -> str:
    return sha256_file(path)


def hash_json(value: Any) -> str:
    """A sha256 of plain values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def free_bytes(path: Path) -> int:
    """Free bytes on the volume of `path`, which need not exist yet."""
    path = Path(path)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def need_room(path: Path, num_bytes: int, purpose: str, keep_free: int = 1 << 28) -> None:
    """Raise AvomniError if `num_bytes` for `purpose`, plus a reserve, do not fit on the disk."""
    free = free_bytes(path)
    if num_bytes + keep_free > free:
        raise AvomniError(
            f"no room on the disk for {purpose}: "
            f"{num_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            where=str(path),
            fix="free some space, move run.outputs_dir or dataset.local_dir to a larger disk, "
            "or lower download.target_size_gb",
        )


def no_room(path: Path) -> AvomniError:
    return AvomniError(
        f"no room left on the disk, {free_bytes(Path(path).parent) / 1e9:.2f} GB free",
        where=str(path),
        fix=f"free some space and {GO_ON}",
    )


def refused(error: OSError, path: Path | None = None) -> AvomniError:
    """Explain an error of the operating system whose errno is in `REFUSALS`.

    Args:
        path: The file concerned, if the error does not name it.
    """
    what, fix = REFUSALS[error.errno]
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path
    if error.errno in NO_ROOM and path is not None:
        return no_room(Path(path))
    return AvomniError(
        f"{what} ({os.strerror(error.errno)})",
        where=None if path is None else str(path),
        fix=f"{fix}; {GO_ON}",
    )


@contextlib.contextmanager
def hold(lock: Path, busy: str, wait_s: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Hold a lock between processes (`flock`); it is released when a process dies.

    Args:
        lock: The lock file, which is kept; its folder is created.
        busy: Message if another process holds it, such as "another process builds this cache".
        wait_s: Seconds to wait for it first.
        shared: Take a shared lock, which excludes only exclusive ones.

    Raises:
        AvomniError: another process still holds it after `wait_s`, or the file system has no locks.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with open(lock, "a+") as file:  # NFS requires read access for a shared lock
        stop = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise AvomniError(
                        f"the file system does not lock files: {error.strerror}",
                        where=str(lock),
                        fix="mount it with locks (Lustre: -o flock), or set run.outputs_dir and "
                        "dataset.local_dir to folders on one that has them",
                    ) from None
                if time.monotonic() >= stop:
                    raise AvomniError(
                        busy,
                        where=str(lock.parent),
                        fix="wait for it, or stop it, and run the same command again",
                    ) from None
                time.sleep(0.1)
        yield


def sweep_partials(folder: Path) -> None:
    """Remove temporary files that killed processes left below `folder`."""
    for path in list(Path(folder).rglob(f".*{PARTIAL_SUFFIX}")):
        path.unlink(missing_ok=True)


def from_root(path: Path) -> str:
    """A path for a command line: relative to the project root if it is inside it."""
    inside = path.is_relative_to(PROJECT_ROOT)
    return str(path.relative_to(PROJECT_ROOT) if inside else path)


def now() -> str:
    """The time of day with its zone, ISO 8601, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def is_held(lock: Path) -> bool:
    """Whether a process holds `lock` now (see `hold`)."""
    # Opened for reading only: the folder may be read-only, or belong to another user.
    absent = (FileNotFoundError, NotADirectoryError, PermissionError)
    with contextlib.suppress(*absent), open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False
