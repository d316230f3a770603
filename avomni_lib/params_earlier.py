"""Keys of the earlier project's params files, taken where they say what is done here anyway.

`download.max_concurrent` and `project_name` have other names now. `dataset.index_file`,
`vision.setups`, `vision.schema` and a flat list in `vision.cameras` describe what is fixed here, or
said by `vision.cameras`: they are taken where they agree with it, and refused with its name else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from avomni_lib import grids
from avomni_lib.errors import AvomniError

INDEX_FILE = "clip_index.parquet"  # of the data set, at its root
SHAPE = re.compile(r"(\d+)\s*[x×]\s*(\d+)")


def taken(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values with these keys under the names of today, or without them.

    Raises:
        AvomniError: every such key that says something else than what is done, with the key to use.
    """
    found = {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    mistakes: list[str] = []
    _move(found, ("project_name",), ("run", "name"), mistakes)
    _move(found, ("download", "max_concurrent"), ("download", "max_workers"), mistakes)
    dataset, vision = found.get("dataset"), found.get("vision")
    if isinstance(dataset, dict) and "index_file" in dataset:
        name = dataset.pop("index_file")
        if str(name).rpartition("/")[2] != INDEX_FILE:
            mistakes.append(
                f"dataset.index_file is {name!r}: the index is always {INDEX_FILE} of "
                "dataset.repo_id, or of the folder dataset.local_dir; delete the line"
            )
    if isinstance(vision, dict):
        _vision(vision, mistakes)
    if mistakes:
        lines = "".join(f"\n  - {mistake}" for mistake in mistakes)
        raise AvomniError(
            f"keys of the earlier project to fix: {len(mistakes)}{lines}",
            where=where,
            fix="every parameter, its unit and default: docs/parameters.md",
        )
    return found


def _move(
    values: dict[str, Any], old: tuple[str, ...], new: tuple[str, str], mistakes: list[str]
) -> None:
    """One key under its new name."""
    holder: Any = values
    for name in old[:-1]:
        holder = holder.get(name)
        if not isinstance(holder, dict):
            return
    if old[-1] not in holder:
        return
    value = holder.pop(old[-1])
    section = values.get(new[0])
    section = {} if section is None else section
    if not isinstance(section, dict):
        return  # which is told as what it is
    if new[1] in section and section[new[1]] != value:
        both = f"{'.'.join(old)} is the old name of {'.'.join(new)}, and both are there"
        mistakes.append(f"{both}: keep {'.'.join(new)}")
    values[new[0]] = section | {new[1]: value}


def _vision(vision: dict[str, Any], mistakes: list[str]) -> None:
    own = "cameras" if "cameras" in vision else "camera_setup"
    chosen = vision.get(own)
    if _is_flat(chosen):
        preset = _preset(chosen)  # another list is refused where grids are checked
        vision[own] = chosen = preset or chosen
    checks: dict[str, Callable[[Any], bool]] = {
        "schema": lambda value: _is_schema_of(value, chosen),
        "setups": lambda value: _are_setups(value, chosen),
    }
    for key, agrees in checks.items():
        if key in vision:
            value = vision.pop(key)
            if not agrees(value):
                mistakes.append(
                    f"vision.{key} is not the grid that vision.cameras names "
                    f"({chosen or 'left out'}): say the grid by vision.cameras, a preset "
                    f"({', '.join(grids.PRESETS)}) or rows of camera names, and delete vision.{key}"
                )


def _is_flat(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str) for v in value)
    )


def _names(preset: str) -> set[str]:
    return {name for row in grids.PRESETS[preset] for name in row if name}


def _preset(names: Any) -> str | None:
    return next((preset for preset in grids.PRESETS if _names(preset) == set(names)), None)


def _is_schema_of(value: Any, chosen: Any) -> bool:
    """Whether it is the preset's name or the shape of its grid, as `2x2`."""
    if value == chosen:
        return True
    shape = SHAPE.search(str(value))
    if shape is None or not isinstance(chosen, str) or chosen not in grids.PRESETS:
        return False
    rows = grids.PRESETS[chosen]
    return (int(shape[1]), int(shape[2])) == (len(rows), len(rows[0]))


def _are_setups(value: Any, chosen: Any) -> bool:
    """Whether a table of setups has the chosen preset with the preset's cameras."""
    if not isinstance(value, Mapping) or not isinstance(chosen, str):
        return False
    setup = value.get(chosen)
    setup = setup.get("cameras") if isinstance(setup, Mapping) else setup
    if not isinstance(setup, list | tuple) or chosen not in grids.PRESETS:
        return False
    flat = [
        name for row in setup for name in ([row] if isinstance(row, str) else row or []) if name
    ]
    return set(flat) == _names(chosen)
