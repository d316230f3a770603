"""Raw files that are removed on purpose, and which runs still need them.

With `download.evict_raw` a chunk's raw files go when its shard is whole. The run keeps a record,
`evicted.json`, and so does the folder of raw files, which other runs may share. A file counts as
evicted while it is recorded, still chosen with the same content, and not on the disk: one that was
fetched again, or that another revision replaces, is not.

`<local_dir>/.avomni/users/` names the folders of the runs that have begun to fetch here, whatever
their `run.outputs_dir`. What a run has chosen, and what its cache holds of that, stands in its own
folder; one that is gone needs nothing.
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
TABLE = "cache/clips.json"  # of a run whose cache is finished


def path_of(p: Params) -> Path:
    return p.run_dir / FILE


def read_evicted(p: Params) -> dict[str, str]:
    """The run's files that were evicted, by itself or by another run of the same raw files.

    Returns:
        Path below local_dir -> the day (ISO) on which it went.
    """
    record = _of_others(p) | _record(path_of(p))
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
        there = [path for path in paths if (p.local_dir / path).is_file()]
        needed = {} if p.download.evict_shared else needed_by_others(p)
        for path in (path for path in there if path in needed):
            log.warning("%s stays: %s needs it", path, needed[path])
        fresh = {
            path: {"sha256": chosen[path]["sha256"], "evicted_on": today}
            for path in there
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
    """What other runs have recorded and this one has not."""
    own, run = _record(path_of(p)), str(p.run_dir.resolve())
    return {
        path: entry
        for path, entry in _record(p.local_dir / SHARED).items()
        if path not in own and entry.get("run", run) != run
    }


def _gone(p: Params, record: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries of files that this run has chosen with that content, and that are not there."""
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
    """A record of evictions; one that cannot be read costs only the word "evicted"."""
    with contextlib.suppress(AttributeError):
        return {name: entry for name, entry in _read(path).items() if entry.keys() in KEYS}
    return {}


def _read(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is not there or damaged."""
    with contextlib.suppress(AvomniError, OSError):
        content = files.read_json(path)
        return content if isinstance(content, dict) else {}
    return {}


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Let no run begin to use a folder of raw files while another one removes some of them."""
    busy = "another process registers or evicts raw files here"
    with files.hold(folder / USERS_LOCK, busy, verified.WAIT_S):
        yield


def register(p: Params, paths: Collection[str]) -> None:
    """Say that the run uses these files (below local_dir), before it looks which are there.

    Nobody evicts from a folder that is read-only, and nothing is written there.
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

    A run needs what it is fetching or has chosen, until its cache holds every clip of the choice.
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
    """Whether a finished cache holds every chosen clip, those apart that are damaged."""
    table = _read(folder / TABLE)
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        common, text = table["common"], " ".join(chosen["files"])
        held = {clip["clip_id"] for clip in table["clips"] if clip["state"] != "lost"}
        return (
            held >= {clip_id for ids in chosen["clip_ids"].values() for clip_id in ids}
            and common["source"]["revision"] == chosen["revision"]
            and set(common["cameras"]) >= {name for name in cameras.BY_NAME if name in text}
            and ("obstacle_columns" in common or OBSTACLES not in text)
        )
    return False


def refusal(p: Params, paths: Collection[str]) -> AvomniError | None:
    """What to say where other runs need some of these files and `download.evict_shared` is false;
    None where all of them may be evicted."""
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
