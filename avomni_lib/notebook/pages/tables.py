"""Data frames that notebooks show: parameters, choices and the outcome of a stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from avomni_lib.params import EXTENDS, Params, notebook_cell
from avomni_lib.plan import gigabytes, minutes
from avomni_lib.training.model import model_input

MOST_PARTS = 12
HASH = re.compile(r"[0-9a-f]{40,}")
pd.set_option("display.max_colwidth", None)  # do not truncate reasons


def parameters(p: Params, names: Mapping[str, Any]) -> pd.DataFrame:
    """The keys of a parameters cell (`names`: its `globals()`), their values, and who set these."""
    keys = notebook_cell.shown(names)
    values = model_input.flat(p.values())
    injected = model_input.flat(notebook_cell.injected(names))
    cell = {name: names[name] for name in Params.model_fields if name in names}
    changed = model_input.flat(notebook_cell.changed(cell, Params().values()))
    sources = [
        "papermill" if key in injected else "this notebook" if key in changed else names[EXTENDS]
        for key in keys
    ]
    rows = {"value": [values[key] for key in keys], "set by": sources}
    return pd.DataFrame(rows, index=pd.Index(keys, name="parameter"), dtype=object)


def choices(chosen: Mapping[str, tuple[Any, str]]) -> pd.DataFrame:
    """Choices made for the user, with reasons."""
    return pd.DataFrame.from_dict(chosen, orient="index", columns=["taken", "because"])


def outcome(finished: Mapping[str, Any]) -> pd.DataFrame:
    """The outcome of a stage, as returned by `OpenStage.finish`: one row per scalar figure.

    For nested figures the number of entries is shown; `result.json` has all of them.
    """
    rows = {
        "stage": finished["stage"],
        "time": minutes(finished["seconds"]),
        "memory at most": f"{finished['peak_memory_gb']:.2f} GB",
    }
    for name, value in finished["figures"].items():
        if text := _value(name, value):
            rows[name.removeprefix("num_").replace("_", " ")] = text
    return pd.Series(rows, name="what came out").to_frame()


def _value(name: str, value: Any) -> str:
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if name.startswith("bytes") or name.endswith("bytes"):
            return gigabytes(value)
        is_whole = isinstance(value, int) or abs(value) >= 1000
        return f"{value:,.0f}" if is_whole else f"{value:.4g}"
    if isinstance(value, Mapping):
        is_flat = not any(isinstance(part, Mapping | list | tuple) for part in value.values())
        if is_flat and len(value) <= MOST_PARTS:
            parts = {key: _value(name, part) for key, part in value.items() if part != 0}
            return ", ".join(f"{key} {text}" for key, text in parts.items() if text)
        return f"{len(value):,} entries"
    if isinstance(value, list | tuple):
        return f"{len(value):,} entries"
    # The first characters identify a hash.
    return f"{value[:12]}…" if HASH.fullmatch(str(value)) else str(value)
