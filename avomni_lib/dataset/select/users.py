"""Which runs use a folder of raw files, and which of its files each of them still needs.

`<local_dir>/.avomni/users/` names the folders of the runs that have begun to fetch here, whatever
their `run.outputs_dir`. What a run has chosen, and what its cache holds of that, stands in its own
folder; one that is gone needs nothing. Runs beside this one count too where they are not named.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import OBSTACLES
from avomni_lib.dataset.download import verified
from avomni_lib.dataset.select import manifest as chosen_file
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

FOLDER = f"{verified.FOLDER}/users"
LOCK = f"{verified.FOLDER}/users.lock"
TABLE = "cache/clips.json"  # of a run whose cache is finished
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Let no run begin to use a folder of raw files while another one removes some of them."""
    busy = "another process registers or evicts raw files here"
    with files.hold(folder / LOCK, busy, verified.WAIT_S):
        yield


def register(p: Params, paths: Collection[str]) -> None:
    """Say that the run uses these files, before it looks which of them are there.

    Nobody evicts from a folder that is read-only, and nothing is said there.

    Args:
        paths: Below local_dir.
    """
    folder = p.run_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    try:
        with hold(p.local_dir):
            record = {"run": str(folder), "files": sorted(paths)}
            files.write_json(p.local_dir / FOLDER / f"{name}.json", record)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def needed_by_others(p: Params) -> dict[str, Path]:
    """Path below local_dir -> the folder of another run that has not read that file yet.

    A run needs what it is fetching or has chosen, until its cache holds every clip of the choice.
    """
    needed: dict[str, Path] = {}
    for folder, named in sorted(_others(p).items()):
        for path in _needed(folder, named):
            needed.setdefault(path, folder)
    return needed


def need_alone(p: Params, paths: Collection[str]) -> None:
    """Refuse to evict what other runs need, before anything is fetched.

    Raises:
        AvomniError: another run needs some of these files, and `download.evict_shared` is false.
    """
    if p.download.evict_raw and not p.download.evict_shared and (error := refusal(p, paths)):
        raise error


def refusal(p: Params, paths: Collection[str]) -> AvomniError | None:
    """What to say where other runs need some of these files; None where none does."""
    needed = needed_by_others(p)
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


def _others(p: Params) -> dict[Path, set[str]]:
    """Folder of each other run of these raw files -> the files that it has named."""
    others: dict[Path, set[str]] = {}
    for path in (p.local_dir / FOLDER).glob("*.json"):
        with contextlib.suppress(AvomniError, KeyError, TypeError):
            record = files.read_json(path)
            others[Path(record["run"])] = set(record["files"])
    for path in p.run_dir.parent.glob(f"*/{chosen_file.FILE}"):
        # One of an earlier version does not say where its raw files are.
        if _read(path).get("local_dir") in (None, str(p.local_dir.resolve())):
            others.setdefault(path.parent.resolve(), set())
    return {folder: named for folder, named in others.items() if folder != p.run_dir.resolve()}


def _needed(folder: Path, named: set[str]) -> set[str]:
    """What a run named or chose, but for what its cache was made from."""
    if not folder.is_dir():
        return set()
    chosen = _read(folder / chosen_file.FILE)
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        paths = set(chosen["files"])
        return named - paths if _is_cached(folder, chosen) else named | paths
    return named


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


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(AvomniError, OSError):
        content = files.read_json(path)
        return content if isinstance(content, dict) else {}
    return {}
