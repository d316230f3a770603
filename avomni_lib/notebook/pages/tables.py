"""Small tables that a notebook shows: as HTML in Lab, as text in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from avomni_lib import params_cell
from avomni_lib.params import EXTENDS, Params
from avomni_lib.plan import Table, gigabytes, minutes
from avomni_lib.training.model import model_input

if TYPE_CHECKING:
    import pandas as pd

NUM_SHOWN = 20
MOST_PARTS = 12
HASH = re.compile(r"[0-9a-f]{40,}")
TRIED_AGAIN = "no fault of the clip: run the same command again, it tries these again"
SOUND = ("ok", "sound", "missing", "evicted", "not chosen")


def parameters(p: Params, names: Mapping[str, Any]) -> pd.DataFrame:
    """The keys of a notebook's parameters cell: the value that holds, and where it comes from.

    Args:
        p: From `Params.from_notebook`.
        names: The notebook's `globals()`.
    """
    import pandas as pd

    keys = params_cell.shown(names)
    values = model_input.flat(p.values())
    injected = model_input.flat(params_cell.injected(names))
    cell = {name: names[name] for name in Params.model_fields if name in names}
    changed = model_input.flat(params_cell.changed(cell, Params().values()))
    sources = [
        "papermill" if key in injected else "this notebook" if key in changed else names[EXTENDS]
        for key in keys
    ]
    rows = {"value": [values[key] for key in keys], "set by": sources}
    return pd.DataFrame(rows, index=pd.Index(keys, name="parameter"), dtype=object)


def counts(counted: Mapping[str, int], what: str) -> Table:
    """Name and number."""
    return Table(("", what), [(name, f"{number:,}") for name, number in counted.items()])


def damaged(clips: Iterable[Mapping[str, Any]]) -> Table:
    """The clips that are neither sound nor merely not on the disk, each with its reason.

    A last row says what becomes of lost ones.
    """
    clips = list(clips)
    bad = [
        (row["clip_id"], row["state"], row["reason"]) for row in clips if row["state"] not in SOUND
    ]
    shown = bad[:NUM_SHOWN]
    if len(bad) > len(shown):
        shown.append((f"and {len(bad) - len(shown)} more", "", ""))
    if num := sum(row["state"] == "lost" for row in clips):
        shown.append((f"{num} lost", "", TRIED_AGAIN))
    return Table(("clip", "state", "reason"), shown, "no damaged clip")


def chunks(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What came, was read, stays and went, chunk by chunk.

    Args:
        rows: `Built.chunks`.
    """
    head = ("chunk", "clips", "read", "fetched", "in the cache", "evicted")
    names = ("bytes_fetched", "cache_bytes", "bytes_evicted")
    lines = [
        (
            f"{row['chunk']}",
            f"{row['num_clips']:,}",
            f"{row['num_read']:,}",
            *(gigabytes(row[name]) if row[name] else "–" for name in names),
        )
        for row in rows
    ]
    shown = lines[:NUM_SHOWN]
    if len(lines) > len(shown):
        shown.append((f"and {len(lines) - len(shown)} more", *[""] * (len(head) - 1)))
    return Table(head, shown, "no chunk was chosen")


def findings(summary: Iterable[Mapping[str, Any]]) -> Table:
    """The kinds of findings of an audit, the worst first: how many, where first, and its reason.

    Args:
        summary: `Audit.summary`.
    """
    rows = [
        (
            row["severity"],
            row["what"],
            f"{row['count']:,}",
            " ".join(filter(None, (row["clip_id"][:8], row["feature"] or row["path"]))),
            row["reason"],
        )
        for row in summary
    ]
    head = ("severity", "what", "how many", "first", "its reason")
    return Table(head, rows, "nothing is damaged, odd or worth a remark")


def streams(cameras: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each camera's videos are.

    Args:
        cameras: `figures["streams"]` of an audit.
    """
    head = ("camera", "streams", "codec", "px", "frames/s", "GOP", "open", "B", "Mbit/s", "ends")
    rows = [
        (
            name,
            f"{row['num_streams']:,}",
            _counted(row["codecs"]),
            _counted(row["sizes"]),
            _counted(row["rates"]) + (", variable" if row["num_variable"] else ""),
            _counted(row["gops"]),
            f"{row['num_open']:,}",
            f"{row['num_reordered']:,}",
            _range(row["mbit_per_s"], ""),
            _range(row["seconds"], " s"),
        )
        for name, row in cameras.items()
    ]
    return Table(head, rows, "no stream was opened: dataset.audit: full does")


def _counted(values: Mapping[str, int]) -> str:
    """The three most frequent; a number each where there are several."""
    shown = list(values.items())[:3]
    words = [f"{name} ({count:,})" if len(values) > 1 else name for name, count in shown]
    return ", ".join(words) + (" …" if len(values) > len(shown) else "")


def _range(values: Iterable[float] | None, unit: str) -> str:
    if values is None:
        return ""
    low, mid, high = values
    return f"{mid:.2f}{unit}" if high - low < 0.005 else f"{mid:.2f} ({low:.2f}–{high:.2f}){unit}"


def choices(chosen: Mapping[str, tuple[Any, str]]) -> Table:
    """What was chosen for the user, and why."""
    rows = [(name, str(value), reason) for name, (value, reason) in chosen.items()]
    return Table(("choice", "taken", "because"), rows)


def outcome(finished: Mapping[str, Any]) -> Table:
    """What a stage left, as `OpenStage.finish` returns it: a row a figure that is one value.

    What holds a table of its own is counted; all of it is in `result.json`.
    """
    facts = {"stage": finished["stage"], "time": minutes(finished["seconds"])}
    facts["memory at most"] = f"{finished['peak_memory_gb']:.2f} GB"
    rows = [*facts.items(), *figures(finished["figures"]).rows]
    return Table(("", "what came out"), rows)


def figures(found: Mapping[str, Any]) -> Table:
    """Figures as people read them, a row each."""
    rows = [
        (name.removeprefix("num_").replace("_", " "), _value(name, value))
        for name, value in found.items()
    ]
    return Table(("figure", "value"), [row for row in rows if row[1]])


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
        plain = [each for each in value.values() if not isinstance(each, Mapping | list | tuple)]
        if len(plain) == len(value) <= MOST_PARTS:
            told = [(key, _value(name, each)) for key, each in value.items() if each != 0]
            return ", ".join(f"{key} {word}" for key, word in told if word)
        return f"{len(value):,} entries"
    if isinstance(value, list | tuple):
        return f"{len(value):,} entries"
    # The first characters of a hash tell it from others.
    return f"{value[:12]}…" if HASH.fullmatch(str(value)) else str(value)
