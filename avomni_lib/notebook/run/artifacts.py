"""The files that a stage has left, wherever the run's folder lies: whether they are as written.

`result.json` keeps size and sha256 of each by its path in the run's folder. Beside it
`.checked.json` keeps the dates of the files that were found to be so; it may be lost, and then they
are read once more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError

CHECKED = ".checked.json"
ANOTHER = "is not what was written, its sha256 is another"
Described = dict[str, dict[str, Any]]


def describe(
    run_dir: Path, stage: str, made: Sequence[Path] | Mapping[Path, str | None], since_ns: int = 0
) -> Described:
    """Path below the run's folder -> {"bytes", "sha256"} of files that were just written.

    Args:
        made: The files, with their sha256 where it is known.
        since_ns: When the stage began: a file that is older is read, whatever is known of it.

    Raises:
        AvomniError: an older file is not what is known of it.
    """
    hashes = made if isinstance(made, Mapping) else {}
    known, described, checked = _read(run_dir / stage / CHECKED), {}, {}
    for path in made:
        name = Path(os.path.relpath(path, run_dir)).as_posix()
        size, date = files.state_of(Path(path)) or (0, 0)
        sha256 = hashes.get(path)
        if not sha256 or (date < since_ns and known.get(name) != [size, date, sha256]):
            found = files.sha256_file(path)
            if sha256 not in (None, found):
                raise AvomniError(
                    f"{name} {ANOTHER}",
                    where=str(path),
                    fix=f"remove {Path(path).parent} and run {stage} again",
                )
            sha256 = found
        described[name] = {"bytes": size, "sha256": sha256}
        checked[name] = [size, date, sha256]
    _remember(run_dir / stage / CHECKED, checked)
    return described


def wrong(run_dir: Path, stage: str, described: Described) -> Iterator[tuple[str, str]]:
    """(path below the run's folder, what is wrong with it) of each file that is not as written.

    A file is read where its size is right and its date is not the known one, as after a copy.
    """
    path = run_dir / stage / CHECKED
    known, fresh = _read(path), {}
    try:
        for name, entry in described.items():
            state = files.state_of(run_dir / name)
            if state is None:
                yield name, "is missing"
            elif state[0] != entry["bytes"]:
                yield name, f"has another size, {state[0]:,} for {entry['bytes']:,} bytes"
            elif known.get(name) != [*state, entry["sha256"]]:
                try:
                    is_same = files.sha256_once(run_dir / name) == entry["sha256"]
                except OSError as error:
                    yield name, f"cannot be read: {error.strerror}"
                    continue
                if is_same:
                    fresh[name] = [*state, entry["sha256"]]
                else:
                    yield name, ANOTHER
    finally:
        if fresh:
            _remember(path, known | fresh)


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(AvomniError, OSError):
        known = files.read_json(path)
        return known if isinstance(known, dict) else {}
    return {}


def _remember(path: Path, checked: Mapping[str, Any]) -> None:
    """A folder that cannot be written to costs only that files are read again next time."""
    with contextlib.suppress(OSError, AvomniError):
        files.write_json(path, dict(checked))
