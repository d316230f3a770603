"""Eviction of raw files, and which runs still need them.

With `download.evict_raw`, a chunk's raw files are removed when its shard is complete. This is
recorded in the run's `evicted.json` and in the folder of raw files, which other runs may share. A
file counts as evicted while it is recorded, still chosen with the same content, and not on the
disk; a file that was fetched again, or replaced by another revision, does not.

`<local_dir>/.avomni/users/` lists the folders of the runs that fetch here, whatever their
`run.outputs_dir`. A run's choice, and its cache, are read from its own folder; a run whose folder
is gone needs nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import OBSTACLES
from avomni_lib.dataset.download import verified
from avomni_lib.dataset.select import manifest
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

log = logging.getLogger(__name__)

FILE = "evicted.json"
SHARED = f"{verified.FOLDER}/{FILE}"
KEYS = ({"sha256", "evicted_on"}, {"sha256", "evicted_on", "run"})
USERS = f"{verified.FOLDER}/users"
USERS_LOCK = f"{verified.FOLDER}/users.lock"
TABLE = "cache/clips.json"  # exists in a run's folder once its cache is finished


def path_of(p: Params) -> Path:
    return p.run_dir / FILE


def read_evicted(p: Params) -> dict[str, str]:
    """The run's files that were evicted, by itself or by another run with the same raw files.

    Returns:
        Path below local_dir -> the day (ISO) of its eviction.
    """
    record = _of_others(p) | _record(path_of(p))
    return {path: entry["evicted_on"] for path, entry in _gone(p, record).items()}


def by_others(p: Params) -> dict[str, str]:
    """The files of `read_evicted` that other runs evicted: path -> the folder of that run."""
    return {path: entry["run"] for path, entry in _gone(p, _of_others(p)).items()}


def evict(p: Params, paths: Collection[str]) -> int:
    """Remove chosen files from the disk; returns the number of bytes freed.

    Evictions are recorded first: if the run is killed in between, files that are recorded but still
    exist count as present, and the next run evicts them again; without a record they would look
    lost and be fetched again. Files that another run needs are kept, unless
    `download.evict_shared` is set.

    Args:
        paths: Paths below local_dir, as in chosen.json; missing files are skipped.

    Raises:
        AvomniError: a path was not chosen by this run; or 02_download has not run.
    """
    chosen = manifest.read_chosen(p).files
    if strange := sorted(set(paths) - set(chosen)):
        raise AvomniError(
            f"{len(strange)} files are not this run's to remove, such as {strange[0]}",
            where=str(p.local_dir),
        )
    if not any((p.local_dir / path).is_file() for path in paths):
        return 0
    num_bytes, today = 0, datetime.date.today().isoformat()
    with hold(p.local_dir):
        present = [path for path in paths if (p.local_dir / path).is_file()]
        needed = {} if p.download.evict_shared else needed_by_others(p)
        for path in (path for path in present if path in needed):
            log.warning("%s stays: %s needs it", path, needed[path])
        fresh = {
            path: {"sha256": chosen[path]["sha256"], "evicted_on": today}
            for path in present
            if path not in needed
        }
        run = {"run": str(p.run_dir.resolve())}
        _add(path_of(p), fresh)
        _add(p.local_dir / SHARED, {path: entry | run for path, entry in fresh.items()})
        for path in fresh:
            num_bytes += (p.local_dir / path).stat().st_size
            (p.local_dir / path).unlink()
    log.info("evicted %d raw files, %d bytes", len(fresh), num_bytes)
    return num_bytes


def _of_others(p: Params) -> dict[str, dict[str, Any]]:
    """Entries of other runs for files that this run has not recorded."""
    recorded, run = _record(path_of(p)), str(p.run_dir.resolve())
    return {
        path: entry
        for path, entry in _record(p.local_dir / SHARED).items()
        if path not in recorded and entry.get("run", run) != run
    }


def _gone(p: Params, record: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries of files that this run has chosen with the same content and that are missing."""
    with contextlib.suppress(AvomniError):
        chosen = manifest.read_chosen(p).files if record else {}
        return {
            path: entry
            for path, entry in record.items()
            if chosen.get(path, {}).get("sha256") == entry["sha256"]
            and not (p.local_dir / path).exists()
        }
    return {}


def _add(path: Path, fresh: dict[str, dict[str, Any]]) -> None:
    if fresh:
        files.write_json(path, dict(sorted((_record(path) | fresh).items())))


def _record(path: Path) -> dict[str, dict[str, Any]]:
    """Read a record of evictions; an unreadable one counts as empty."""
    with contextlib.suppress(AttributeError):
        return {name: entry for name, entry in _read(path).items() if entry.keys() in KEYS}
    return {}


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if it is missing or damaged."""
    with contextlib.suppress(AvomniError, OSError):
        content = files.read_json(path)
        return content if isinstance(content, dict) else {}
    return {}


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock that excludes registering and evicting in a folder of raw files."""
    busy = "another process registers or evicts raw files here"
    with files.hold(folder / USERS_LOCK, busy, verified.WAIT_S):
        yield


def register(p: Params, paths: Collection[str]) -> None:
    """Register that the run uses these files (below local_dir), before it checks which exist.

    Nothing is written to a read-only folder, from which nothing can be evicted either.
    """
    folder = p.run_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    try:
        with hold(p.local_dir):
            record = {"run": str(folder), "files": sorted(paths)}
            files.write_json(p.local_dir / USERS / f"{name}.json", record)
    except OSError as error:
        if error.errno not in verified.READ_ONLY:
            raise


def needed_by_others(p: Params) -> dict[str, Path]:
    """Path below local_dir -> the folder of another run that has not read that file yet.

    A run needs the files that it fetches or has chosen until its cache has all chosen clips.
    """
    others: dict[Path, set[str]] = {}
    for path in (p.local_dir / USERS).glob("*.json"):
        with contextlib.suppress(KeyError, TypeError):
            record = _read(path)
            others[Path(record["run"])] = set(record["files"])
    others.pop(p.run_dir.resolve(), None)
    needed: dict[str, Path] = {}
    for folder, paths in sorted(others.items()):
        chosen = _read(folder / manifest.FILE)
        with contextlib.suppress(KeyError, TypeError):
            read = set(chosen["files"])
            paths = paths - read if _is_cached(folder, chosen) else paths | read
        for name in paths if folder.is_dir() else ():
            needed.setdefault(name, folder)
    return needed


def _is_cached(folder: Path, chosen: dict[str, Any]) -> bool:
    """Whether a finished cache has all chosen clips, except damaged ones."""
    table = _read(folder / TABLE)
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        common, text = table["common"], " ".join(chosen["files"])
        cached = {clip["clip_id"] for clip in table["clips"] if clip["state"] != "lost"}
        return (
            cached >= {clip_id for ids in chosen["clip_ids"].values() for clip_id in ids}
            and common["source"]["revision"] == chosen["revision"]
            and set(common["cameras"]) >= {name for name in cameras.BY_NAME if name in text}
            and ("obstacle_columns" in common or OBSTACLES not in text)
        )
    return False


def refusal(p: Params, paths: Collection[str]) -> AvomniError | None:
    """The error if other runs need some of these files; None if all may be evicted."""
    needed = {} if p.download.evict_shared else needed_by_others(p)
    shared = [path for path in paths if path in needed]
    if not shared:
        return None
    runs = ", ".join(sorted({str(needed[path]) for path in shared}))
    return AvomniError(
        f"download.evict_raw would remove {len(shared)} raw files that another run has chosen and "
        f"not read yet, such as {shared[0]}: {runs}",
        where=str(p.local_dir),
        fix="run 03_etl of that run first, or remove its folder if nobody wants it; or give this "
        "run a dataset.local_dir of its own; or set download.evict_shared: true, and the other run "
        "has to fetch them again",
    )
