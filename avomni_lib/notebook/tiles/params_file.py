"""A choice written into a params file: key by key, comments kept, and shown before it is done."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from avomni_lib import files, params_yaml
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.tiles import choice as choices
from avomni_lib.notebook.tiles.choice import Choice
from avomni_lib.params import Params

Changes = Mapping[str, Mapping[str, Any]]  # section -> key -> value
FILE = "tiles.yaml"


def default_path(p: Params) -> Path:
    """Where a choice goes unless another file is named: a file of its own in the run's folder."""
    return p.run_dir / FILE


def shown(path: Path) -> str:
    """A path as the command line takes it: below the project root without the root."""
    inside = path.is_relative_to(files.PROJECT_ROOT)
    return str(path.relative_to(files.PROJECT_ROOT) if inside else path)


def read(path: Path) -> str:
    """The file's text; empty where there is none.

    Raises:
        AvomniError: it is there and cannot be read.
    """
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise AvomniError(f"params file cannot be read: {error}", where=str(path)) from None


def text_of(path: Path, p: Params, choice: Choice) -> str:
    """What the file would be with the choice in it.

    A file that is not there yet is made as one to be laid over the run's own params file, with what
    differs from the run alone. In one that is there, what differs and what it states already is
    changed in its place, and all else stays, comments too.

    Raises:
        AvomniError: the file is not of a form that can be changed line by line.
    """
    before, text = choices.values(p), read(path)
    stated = params_yaml.parse(text, str(path))
    changes: dict[str, dict[str, Any]] = {}
    for section, keys in choices.values(choice.laid_over(p)).items():
        for key, value in keys.items():
            if value != before[section][key] or key in (stated.get(section) or {}):
                changes.setdefault(section, {})[key] = value
    if not changes:
        return text
    if not text:
        return _fresh(path, changes, before)
    return edited(text, changes, path)


def difference(path: Path, text: str) -> str:
    """Unified diff from the file as it stands to `text`; empty where nothing changes."""
    now = read(path)
    lines = difflib.unified_diff(
        now.splitlines(),
        text.splitlines(),
        shown(path),
        shown(path),
        "before",
        "after",
        lineterm="",
    )
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put the text in the place of the file, whole or not at all.

    Raises:
        AvomniError: the folder cannot be written to.
    """
    try:
        files.write_text(path, text)
    except OSError as error:
        raise AvomniError(f"params file cannot be written: {error}", where=str(path)) from None


def edited(text: str, changes: Changes, path: Path) -> str:
    """The text with these keys changed, each in its line, or added to its section.

    Raises:
        AvomniError: the sections are not written a key a line.
    """
    lines = text.splitlines()
    # A section in braces would be written a second time, and the last one counts.
    in_braces = [name for name in changes if re.search(rf"(?m)^{name}:[ \t]*[^#\s]", text)]
    for section, keys in changes.items():
        for key, value in keys.items():
            _set(lines, section, key, _scalar(value))
    new = "\n".join(lines) + "\n"
    wanted = params_yaml.parse(text, str(path))
    for section, keys in changes.items():
        wanted[section] = (wanted.get(section) or {}) | dict(keys)
    try:
        took = params_yaml.parse(new, str(path))
    except AvomniError:
        took = None
    if took != wanted or in_braces:
        raise AvomniError(
            "the file is not written a key a line, so that it cannot be changed in its place",
            where=str(path),
            fix="name a file that is not there yet: it is laid over your own with "
            "`run YOURS.yaml THIS.yaml`",
        )
    return new


def _set(lines: list[str], section: str, key: str, value: str) -> None:
    start = next(
        (i for i, line in enumerate(lines) if re.match(rf"{section}:\s*(#|$)", line)), None
    )
    if start is None:
        lines += [*([""] if lines else []), f"{section}:", f"  {key}: {value}"]
        return
    old_names = [old for old, new in params_yaml.RENAMED.get(section, {}).items() if new == key]
    last, names = start, "|".join([key, *old_names])
    for i in range(start + 1, len(lines)):
        if re.match(r"[^\s#]", lines[i]):
            break
        found = re.match(rf"( +)(?:{names}):( *)([^#\n]*?)( *)(#.*)?$", lines[i])
        if found:
            indent, space, old, gap, comment = found.groups()
            # The comment stays in its column where there is room.
            gap = " " * max(len(old) + len(gap) - len(value), 2) if comment else ""
            lines[i] = f"{indent}{key}:{space or ' '}{value}{gap}{comment or ''}"
            return
        if lines[i].strip() and not lines[i].lstrip().startswith("#"):
            last = i
    lines.insert(last + 1, f"  {key}: {value}")


def _fresh(path: Path, changes: Changes, before: Changes) -> str:
    lines = [
        "# What 04_tiles chose, to be laid over the run's own params file:",
        f"#   python -m avomni_lib run PARAMS.yaml {shown(path)}",
    ]
    for section, keys in changes.items():
        lines.append(f"{section}:")
        for key, value in keys.items():
            own = f"  {key}: {_scalar(value)}"
            lines.append(f"{own:<30}# {_scalar(before[section][key])} before")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).split("\n")[0]
