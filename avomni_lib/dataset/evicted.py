"""`evicted.json`: the raw files that a run has removed on purpose, when its cache held them.

With `download.evict_raw` a chunk's raw files go when its shard is whole. A file counts as evicted
while it is recorded, still chosen with the same content, and not on the disk: one that was fetched
again, or that another revision replaces, is not.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.chosen import read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

log = logging.getLogger(__name__)

FILE = "evicted.json"


def path_of(p: Params) -> Path:
    return p.run_dir / FILE


def read_evicted(p: Params) -> dict[str, str]:
    """The run's evicted files: path below local_dir -> the day (ISO) on which it went."""
    record = _read(p)
    if not record:
        return {}
    with contextlib.suppress(AvomniError):
        chosen = read_chosen(p).files
        return {
            path: entry["evicted_on"]
            for path, entry in record.items()
            if chosen.get(path, {}).get("sha256") == entry["sha256"]
            and not (p.local_dir / path).exists()
        }
    return {}


def evict(p: Params, paths: Collection[str]) -> int:
    """Remove chosen files from the disk for good; returns the bytes that this freed.

    They are recorded first. A run killed in between leaves files that are recorded and still there,
    which count as there; the next run evicts the chunk again. Gone without a record they would look
    lost, and would be fetched again.

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
    there = [path for path in paths if (p.local_dir / path).is_file()]
    if not there:
        return 0
    today = datetime.date.today().isoformat()
    fresh = {path: {"sha256": chosen[path]["sha256"], "evicted_on": today} for path in there}
    files.write_json(path_of(p), dict(sorted((_read(p) | fresh).items())))
    num_bytes = 0
    for path in there:
        num_bytes += (p.local_dir / path).stat().st_size
        (p.local_dir / path).unlink()
    log.info("evicted %d raw files, %d bytes", len(there), num_bytes)
    return num_bytes


def _read(p: Params) -> dict[str, dict[str, Any]]:
    """The record as it stands; one that cannot be read costs only the word "evicted"."""
    with contextlib.suppress(AvomniError, AttributeError, TypeError):
        return {
            path: entry
            for path, entry in files.read_json(path_of(p)).items()
            if entry.keys() == {"sha256", "evicted_on"}
        }
    return {}
