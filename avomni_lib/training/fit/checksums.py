"""Size and sha256 of each file of a folder, kept in the folder and compared before it is used."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError

CHECKSUMS_FILE = "checksums.json"


def write(folder: Path, **about: Any) -> None:
    """Write `checksums.json` for the files that lie in `folder` now; the caller flushes it.

    Args:
        about: Plain values that are kept beside the checksums and compared by `fault`.
    """
    found = {
        name: {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
        for name, path in _files_in(folder).items()
    }
    text = json.dumps({"about": about, "files": found}, indent=2) + "\n"
    (folder / CHECKSUMS_FILE).write_text(text)


def fault(folder: Path, only: Collection[str] | None = None, **about: Any) -> str | None:
    """What is wrong with a folder that `write` has described, in words; None where nothing is.

    Hidden files are left aside: file systems and editors leave them.

    Args:
        only: Names of files to compare; None compares all, and lets no other file be there.
        about: What it has to be about; see `write`.
    """
    try:
        kept = files.read_json(folder / CHECKSUMS_FILE)
        written, of = kept["files"], kept["about"]
        expected = {name: (each["bytes"], each["sha256"]) for name, each in written.items()}
    except (AvomniError, OSError):
        return f"{CHECKSUMS_FILE} is missing or cannot be read"
    except (TypeError, KeyError, AttributeError):
        return f"{CHECKSUMS_FILE} does not hold checksums"
    if of != about:
        wrong = [name for name in about if not isinstance(of, dict) or of.get(name) != about[name]]
        return f"{CHECKSUMS_FILE} is about another {' and '.join(wrong or ['folder'])}"
    try:
        found = _files_in(folder)
        if only is not None:
            found = {name: path for name, path in found.items() if name in only}
            expected = {name: expected.get(name, (0, "")) for name in only}
        if missing := sorted(expected.keys() - found.keys()):
            return f"{', '.join(missing)} is missing"
        if extra := sorted(found.keys() - expected.keys()):
            return f"{', '.join(extra)} was not written by the training"
        for name, path in found.items():
            size, digest = expected[name]
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes, {size:,} were written"
            if files.sha256_file(path) != digest:
                return f"{name} is not what was written: its sha256 differs"
    except OSError as error:
        return f"it cannot be read: {error}"
    return None


def _files_in(folder: Path) -> dict[str, Path]:
    """The folder's files by their relative names, without hidden ones and the checksums."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: path
        for name, path in found.items()
        if not path.is_dir() and name != CHECKSUMS_FILE and not path.name.startswith(".")
    }
