"""`evicted.json`: raw files that were removed on purpose, when the cache of a run held them.

With `download.evict_raw` a chunk's raw files go when its shard is whole. The run keeps a record,
and so does the folder of raw files, which other runs may share. A file counts as evicted while it
is recorded, still chosen with the same content, and not on the disk: one that was fetched again, or
that another revision replaces, is not.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.download import verified
from avomni_lib.dataset.select import users
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

log = logging.getLogger(__name__)

FILE = "evicted.json"
SHARED = f"{verified.FOLDER}/{FILE}"
KEYS = {"sha256", "evicted_on"}


def path_of(p: Params) -> Path:
    return p.run_dir / FILE


def read_evicted(p: Params) -> dict[str, str]:
    """The run's files that were evicted, by itself or by another run of the same raw files.

    Returns:
        Path below local_dir -> the day (ISO) on which it went.
    """
    record = _of_others(p) | _read(path_of(p))
    return {path: entry["evicted_on"] for path, entry in _gone(p, record).items()}


def by_others(p: Params) -> dict[str, str]:
    """Of `read_evicted`, what other runs removed: path -> the folder of that run."""
    return {path: entry["run"] for path, entry in _gone(p, _of_others(p)).items()}


def evict(p: Params, paths: Collection[str]) -> int:
    """Remove chosen files from the disk for good; returns the bytes that this freed.

    They are recorded first. A run killed in between leaves files that are recorded and still there,
    which count as there; the next run evicts the chunk again. Gone without a record they would look
    lost, and would be fetched again. What another run has come to need stays, unless
    `download.evict_shared` allows it.

    Args:
        paths: Below local_dir, as in chosen.json; those not on the disk are passed over.

    Raises:
        AvomniError: a path was not chosen by this run; 02_download has not run.
    """
    chosen = read_chosen(p).files
    if strange := sorted(set(paths) - set(chosen)):
        raise AvomniError(
            f"{len(strange)} files are not this run's to remove, such as {strange[0]}",
            where=str(p.local_dir),
        )
    if not any((p.local_dir / path).is_file() for path in paths):
        return 0
    with users.hold(p.local_dir):
        there = [path for path in paths if (p.local_dir / path).is_file()]
        if not p.download.evict_shared:
            needed = users.needed_by_others(p)
            for path in (path for path in there if path in needed):
                log.warning("%s stays: %s needs it", path, needed[path])
            there = [path for path in there if path not in needed]
        today = datetime.date.today().isoformat()
        fresh = {path: {"sha256": chosen[path]["sha256"], "evicted_on": today} for path in there}
        run = {"run": str(p.run_dir.resolve())}
        _add(path_of(p), fresh)
        _add(p.local_dir / SHARED, {path: entry | run for path, entry in fresh.items()})
        num_bytes = 0
        for path in there:
            num_bytes += (p.local_dir / path).stat().st_size
            (p.local_dir / path).unlink()
    log.info("evicted %d raw files, %d bytes", len(there), num_bytes)
    return num_bytes


def _of_others(p: Params) -> dict[str, dict[str, Any]]:
    """What other runs have recorded and this one has not."""
    own, run = _read(path_of(p)), str(p.run_dir.resolve())
    return {
        path: entry
        for path, entry in _read(p.local_dir / SHARED).items()
        if path not in own and entry.get("run", run) != run
    }


def _gone(p: Params, record: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries of files that this run has chosen with that content, and that are not there."""
    if not record:
        return {}
    with contextlib.suppress(AvomniError):
        chosen = read_chosen(p).files
        return {
            path: entry
            for path, entry in record.items()
            if chosen.get(path, {}).get("sha256") == entry["sha256"]
            and not (p.local_dir / path).exists()
        }
    return {}


def _add(path: Path, fresh: dict[str, dict[str, Any]]) -> None:
    if fresh:
        files.write_json(path, dict(sorted((_read(path) | fresh).items())))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """A record as it stands; one that cannot be read costs only the word "evicted"."""
    with contextlib.suppress(AvomniError, AttributeError, TypeError):
        return {
            path: entry
            for path, entry in files.read_json(path).items()
            if entry.keys() in (KEYS, KEYS | {"run"})
        }
    return {}
