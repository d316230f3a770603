"""A choice written into a params file of its own, and shown before it is done."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import yaml

from avomni_lib import files, params_yaml
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.tiles.choice import KEYS, Choice
from avomni_lib.params import Params

FIRST_LINE = "# What 04_tiles chose, to be laid over the run's own params file:"


def default_path(p: Params) -> Path:
    """Where a choice goes unless another file is named: in the run's folder."""
    return p.run_dir / "tiles.yaml"


def shown(path: Path) -> str:
    """A path as the command line takes it: below the project root without the root."""
    inside = path.is_relative_to(files.PROJECT_ROOT)
    return str(path.relative_to(files.PROJECT_ROOT) if inside else path)


def text_of(path: Path, p: Params, choice: Choice) -> str:
    """What the file would be with the choice in it: what differs from the run, or stands there.

    Raises:
        AvomniError: a file is there that cannot be read, or is of another's making.
    """
    text = _read(path)
    if text and not text.startswith(FIRST_LINE):
        raise AvomniError(
            "the file is not one that 04_tiles has written, and stays as it is",
            where=str(path),
            fix="name a file that is not there yet: it is laid over your own with "
            "`run YOURS.yaml THIS.yaml`",
        )
    stated = params_yaml.parse(text, str(path))
    before, after = p.values(*KEYS), choice.laid_over(p).values(*KEYS)
    lines = [FIRST_LINE, f"#   python -m avomni_lib run PARAMS.yaml {shown(path)}"]
    for section, keys in KEYS.items():
        own = [
            f"{f'  {key}: {_scalar(new)}':<30}# {_scalar(old)} before"
            for key in keys
            for old, new in [(before[section][key], after[section][key])]
            if new != old or key in (stated.get(section) or {})
        ]
        lines += [f"{section}:", *own] if own else []
    return "\n".join(lines) + "\n" if lines[2:] else text


def difference(path: Path, text: str) -> str:
    """Unified diff from the file as it stands to `text`; empty where nothing changes."""
    names, now = (shown(path), shown(path), "before", "after"), _read(path).splitlines()
    return "\n".join(difflib.unified_diff(now, text.splitlines(), *names, lineterm=""))


def write(path: Path, text: str) -> None:
    """Put the text in the place of the file, whole or not at all.

    Raises:
        AvomniError: the folder cannot be written to.
    """
    try:
        files.write_text(path, text)
    except OSError as error:
        raise AvomniError(f"params file cannot be written: {error}", where=str(path)) from None


def _read(path: Path) -> str:
    """The file's text; empty where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise AvomniError(f"params file cannot be read: {error}", where=str(path)) from None


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).split("\n")[0]
