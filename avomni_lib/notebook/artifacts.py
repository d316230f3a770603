"""The files that a stage has left, wherever the run's folder lies: whether they are as written.

`result.json` keeps size and sha256 of each by its path in the run's folder. Beside it
`.checked.json` keeps the dates of the files that were found to be so; it may be lost, and then they
are read once more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError

CHECKED = ".checked.json"
Described = dict[str, dict[str, Any]]


def describe(
    run_dir: Path, stage: str, made: Sequence[Path] | Mapping[Path, str | None]
) -> Described:
    """Path below the run's folder -> {"bytes", "sha256"} of files that were just written.

    Args:
        made: The files, with their sha256 where it is known.
    """
    known = made if isinstance(made, Mapping) else {}
    described, checked = {}, {}
    for path in made:
        name = Path(os.path.relpath(path, run_dir)).as_posix()
        size, date = files.state_of(Path(path)) or (0, 0)
        described[name] = {
            "bytes": size,
            "sha256": known.get(path) or files.sha256_file(path),
        }
        checked[name] = [size, date, described[name]["sha256"]]
    _remember(run_dir / stage / CHECKED, checked)
    return described


def first_wrong(run_dir: Path, stage: str, described: Described) -> str | None:
    """What is wrong with the first file that is not what was written, or None.

    A file is read where its size is right and its date is not the known one, as after a copy.
    """
    path = run_dir / stage / CHECKED
    known, fresh = _read(path), {}
    try:
        for name, entry in described.items():
            state = files.state_of(run_dir / name)
            if state is None:
                return f"{name} is missing"
            if state[0] != entry["bytes"]:
                return f"{name} has another size, {state[0]:,} for {entry['bytes']:,} bytes"
            if known.get(name) == [*state, entry["sha256"]]:
                continue
            if files.sha256_once(run_dir / name) != entry["sha256"]:
                return f"{name} is not what was written, its sha256 is another"
            fresh[name] = [*state, entry["sha256"]]
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    finally:
        if fresh:
            _remember(path, known | fresh)
    return None


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(AvomniError, OSError):
        known = files.read_json(path)
        return known if isinstance(known, dict) else {}
    return {}


def _remember(path: Path, checked: Mapping[str, Any]) -> None:
    """A folder that cannot be written to costs only that files are read again next time."""
    with contextlib.suppress(OSError, AvomniError):
        files.write_json(path, dict(checked))
