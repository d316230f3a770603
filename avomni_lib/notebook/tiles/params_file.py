"""A choice of tiling as a params file, and the difference to the file as it is."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import yaml

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.notebook.tiles.choice import KEYS, TilingChoice
from avomni_lib.params import Params, yaml_file

FIRST_LINE = "# What 04_tiles chose, to be laid over the run's own params file:"


def default_path(p: Params) -> Path:
    """Default path for a choice, in the run's folder."""
    return p.run_dir / "tiles.yaml"


def text_of(path: Path, p: Params, choice: TilingChoice) -> str:
    """The new text of the file: keys that differ from the run or that the file states already.

    Raises:
        AvomniError: the file cannot be read, or was not written by 04_tiles.
    """
    text = _read(path)
    if text and not text.startswith(FIRST_LINE):
        raise AvomniError(
            "the file is not one that 04_tiles has written, and stays as it is",
            where=str(path),
            fix="name a file that is not there yet: it is laid over your own with "
            "`run YOURS.yaml THIS.yaml`",
        )
    stated = yaml_file.parse(text, str(path))
    before, after = p.values(*KEYS), choice.laid_over(p).values(*KEYS)
    lines = [FIRST_LINE, f"#   python -m avomni_lib run PARAMS.yaml {files.from_root(path)}"]
    for section, keys in KEYS.items():
        changed = [
            f"{f'  {key}: {_scalar(new)}':<30}# {_scalar(old)} before"
            for key in keys
            for old, new in [(before[section][key], after[section][key])]
            if new != old or key in (stated.get(section) or {})
        ]
        lines += [f"{section}:", *changed] if changed else []
    return "\n".join(lines) + "\n" if lines[2:] else text


def difference(path: Path, text: str) -> str:
    """Unified diff from the present file to `text`; empty if nothing changes."""
    name, now = files.from_root(path), _read(path).splitlines()
    return "\n".join(
        difflib.unified_diff(now, text.splitlines(), name, name, "before", "after", lineterm="")
    )


def _read(path: Path) -> str:
    """The file's text; empty if there is no file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise AvomniError(f"params file cannot be read: {error}", where=str(path)) from None


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).split("\n")[0]
