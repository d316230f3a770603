"""Keys that earlier versions used, translated to the present ones where the meaning is the same.

Keys of `MOVED` only have another name now. `dataset.index_file`, `vision.setups`, `vision.schema`
and a flat list in `vision.cameras` describe what is fixed, or what `vision.cameras` says: they are
dropped where they agree with it, and a mistake where they contradict it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from avomni_lib.params import grids

INDEX_FILE = "clip_index.parquet"  # at the root of the data set
MOVED = {
    "project_name": "run.name",
    "download.max_concurrent": "download.max_workers",
    "vision.camera_setup": "vision.cameras",
}
DROPPED = ("dataset.index_file", "vision.schema", "vision.setups")
# Keys without a successor, and why they were removed.
REMOVED = {"training.packing": "it is gone, as padding a batch was never slower"}
SHAPE = re.compile(r"(\d+)\s*[x×]\s*(\d+)")


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with their keys under the present names.

    Files are translated before they are merged, so that a later file wins by either name. A key
    that contradicts another one stays in place: validation reports it, with the text of `mistake`.
    """
    kept = {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    for old, new in MOVED.items():
        _move(kept, old, new)
    vision = kept.get("vision")
    cameras = vision.get("cameras") if isinstance(vision, dict) else None
    if isinstance(cameras, list | tuple) and all(isinstance(name, str) for name in cameras):
        # A flat list that is no preset is refused by the check of grids.
        presets = (preset for preset in grids.PRESETS if _names(preset) == set(cameras))
        vision["cameras"] = next(presets, cameras)
    for name in DROPPED:
        section, _, key = name.partition(".")
        holder = kept.get(section)
        if isinstance(holder, dict) and key in holder and mistake(name, kept) is None:
            del holder[key]
    return kept


def mistake(name: str, values: Mapping[str, Any]) -> str | None:
    """What is wrong with an earlier key that `renamed` left in place; None for any other key.

    Args:
        name: The dotted name of a key in `values`.
    """
    if name in MOVED:
        return f"{name} is the old name of {MOVED[name]}, and both are there: keep {MOVED[name]}"
    if name in REMOVED:
        return f"{name}: unknown parameter; {REMOVED[name]}: delete the line"
    if name not in DROPPED:
        return None
    section, _, key = name.partition(".")
    value = values[section][key]
    if key == "index_file":
        if str(value).rpartition("/")[2] == INDEX_FILE:
            return None
        return (
            f"{name} is {value!r}: the index is always {INDEX_FILE} of dataset.repo_id, or of the "
            "folder dataset.local_dir; delete the line"
        )
    chosen = values["vision"].get("cameras")
    if (_is_schema_of if key == "schema" else _are_setups)(value, chosen):
        return None
    return (
        f"{name} is not the grid that vision.cameras names ({chosen or 'left out'}): give the grid "
        f"by vision.cameras, a preset ({', '.join(grids.PRESETS)}) or rows of camera names, and "
        f"delete {name}"
    )


def _move(values: dict[str, Any], old: str, new: str) -> None:
    """Rename one key; it stays where the new name is there with another value."""
    section, _, key = old.rpartition(".")
    holder = values.get(section) if section else values
    if not isinstance(holder, dict) or key not in holder:
        return
    section, _, new_key = new.partition(".")
    target = values[section] = {} if values.get(section) is None else values[section]
    # A section that is no mapping is reported as such.
    if not isinstance(target, dict) or target.setdefault(new_key, holder[key]) == holder[key]:
        del holder[key]


def _names(preset: str) -> set[str]:
    return {name for row in grids.PRESETS[preset] for name in row if name}


def _is_schema_of(value: Any, chosen: Any) -> bool:
    """Whether a value is the preset's name or the shape of its grid, such as `2x2`."""
    if value == chosen:
        return True
    shape = SHAPE.search(str(value))
    if shape is None or not isinstance(chosen, str) or chosen not in grids.PRESETS:
        return False
    rows = grids.PRESETS[chosen]
    return (int(shape[1]), int(shape[2])) == (len(rows), len(rows[0]))


def _are_setups(value: Any, chosen: Any) -> bool:
    """Whether a table of setups lists the chosen preset with exactly its cameras."""
    if not isinstance(value, Mapping) or not isinstance(chosen, str):
        return False
    setup = value.get(chosen)
    setup = setup.get("cameras") if isinstance(setup, Mapping) else setup
    if not isinstance(setup, list | tuple) or chosen not in grids.PRESETS:
        return False
    rows = (row if isinstance(row, list | tuple) else [row] for row in setup)
    flat = [name for row in rows for name in row if name]
    return all(isinstance(name, str) for name in flat) and set(flat) == _names(chosen)
