"""Which clips a run may take: those that have what it needs and that `download.clips` asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avomni_lib.dataset.catalog import Catalog, required_features
from avomni_lib.dataset.clip_index import SOURCES, Values
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

# Parameter of download.clips -> the attribute that it names values of.
FILTERS = {
    "splits": "split",
    "countries": "country",
    "hours": "hour",
    "platforms": "platform",
    "event_clusters": "event_cluster",
}
MAX_SHOWN = 50


@dataclass(frozen=True, eq=False)
class Wanted:
    """The clips that a run may take.

    Attributes:
        rows: (K,) int64 rows of the clip index, rising.
        group: (K,) int64 the group of each by download.clips.balance_by; 0 without it.
        groups: The groups' names; one without it.
        words: What was asked for, such as "country Germany"; empty where nothing was.
    """

    rows: np.ndarray = field(repr=False)
    group: np.ndarray = field(repr=False)
    groups: tuple[Any, ...]
    words: str


def find(catalog: Catalog, p: Params) -> Wanted:
    """The valid clips that have all required features, and for which every filter holds.

    Raises:
        AvomniError: a filter names what there is not, a named clip cannot be used, or no clip is
            left; it says by which filter, and what there is.
    """
    clips = p.download.clips
    features = required_features(p)
    usable = catalog.clips.is_valid.copy()
    for feature in features:
        usable &= catalog.presence(feature)
    is_wanted, words = usable, []
    if clips.clip_ids is not None:
        is_wanted = _named(catalog, clips.clip_ids, usable, features)
        words.append(f"{is_wanted.sum()} named clips")
    for key, attribute in FILTERS.items():
        names = getattr(clips, key)
        if names is None:
            continue
        values = _values(catalog, attribute, f"download.clips.{key}")
        codes = _codes(values, names, f"download.clips.{key}", attribute)
        narrower = is_wanted & np.isin(values.codes, codes)
        if is_wanted.any() and not narrower.any():
            raise _none_left(key, attribute, names, values, is_wanted, words)
        is_wanted = narrower
        words.append(f"{attribute} {' or '.join(str(values.names[code]) for code in codes)}")
    rows = np.flatnonzero(is_wanted)
    if clips.balance_by is None:
        return Wanted(rows, np.zeros(len(rows), np.int64), ("",), ", ".join(words))
    values = _values(catalog, clips.balance_by, "download.clips.balance_by")
    known = rows[values.codes[rows] >= 0]
    if len(rows) and not len(known):
        raise AvomniError(
            f"nothing to balance: the {clips.balance_by} of none of the {len(rows):,} wanted clips "
            "is known",
            where="download.clips.balance_by",
            fix="balance by something else, or leave it out",
        )
    group = values.codes[known].astype(np.int64)
    return Wanted(known, group, values.names, ", ".join(words))


def _named(
    catalog: Catalog, clip_ids: Sequence[str], usable: np.ndarray, features: Sequence[str]
) -> np.ndarray:
    """(clips,) bool the clips that are named.

    Raises:
        AvomniError: all names that are unknown, or all clips that cannot be used, and why.
    """
    names = list(clip_ids)
    where = "download.clips.clip_ids"
    rows = catalog.clips.rows(names)
    unknown = [name for name, row in zip(names, rows, strict=True) if row < 0]
    if unknown:
        raise AvomniError(
            f"{len(unknown)} of {len(names)} clips are not in the clip index:"
            + _lines(unknown, lambda name: _with_nearest(name, catalog.clips.nearest(name))),
            where=where,
            fix="mend the names, or set dataset.revision to the release that they are from",
        )

    def lacks(row: int) -> str:
        if not catalog.clips.is_valid[row]:
            return "the clip index marks it as not valid"
        if fault := catalog.clips.faults.get(catalog.clips.ids([row])[0]):
            return fault
        absent = [feature for feature in features if not catalog.presence(feature)[row]]
        return f"it has no {', '.join(absent)}"

    faulty = [row for row in rows if not usable[row]]
    if faulty:
        raise AvomniError(
            f"{len(faulty)} of {len(names)} named clips cannot be used:"
            + _lines(faulty, lambda row: f"{catalog.clips.ids([row])[0]}: {lacks(row)}"),
            where=where,
            fix="leave them out, or choose another vision.cameras",
        )
    is_named = np.zeros(len(usable), bool)
    is_named[rows] = True
    return is_named


def _lines(items: Sequence[Any], text: Callable[[Any], str]) -> str:
    more = [f"and {len(items) - MAX_SHOWN} more"] if len(items) > MAX_SHOWN else []
    return "".join(f"\n  - {line}" for line in [*map(text, items[:MAX_SHOWN]), *more])


def _with_nearest(name: str, near: str | None) -> str:
    return f"{name} (the nearest is {near})" if near else name


def _values(catalog: Catalog, attribute: str, where: str) -> Values:
    """What the release says of all clips.

    Raises:
        AvomniError: it says nothing.
    """
    values = catalog.values(attribute)
    if not values.names:
        file, column = SOURCES[attribute]
        path = catalog.folder / file
        lacks = f"its {file} names none" if path.exists() else f"it has no {file}"
        raise AvomniError(
            f"the {attribute} of clips is asked for, and this release does not have it: {lacks}",
            where=where,
            fix="leave it out, or set dataset.revision to a release that has it",
        )
    return values


def _codes(values: Values, names: Iterable[str | int], where: str, attribute: str) -> list[int]:
    """The places of these names, whatever their case.

    Raises:
        AvomniError: all names that no clip has; it says which there are.
    """
    place = {str(name).casefold(): code for code, name in enumerate(values.names)}
    names = list(names)
    # Every hour of the day is a right one, also where nobody drove.
    known = [name for name in names if str(name).casefold() in place]
    unknown = [] if attribute == "hour" else [name for name in names if name not in known]
    if unknown:
        counts = values.counts(np.arange(len(values.codes)))
        asked = []
        for name in unknown:
            near = difflib.get_close_matches(str(name).casefold(), place, n=1)
            asked.append(
                f"{name!r}" + (f" (do you mean {values.names[place[near[0]]]}?)" if near else "")
            )
        raise AvomniError(
            f"no clip has the {attribute} {' or '.join(asked)}; there are {_counted(counts)}",
            where=where,
            fix="name some of these, or leave it out",
        )
    return [place[str(name).casefold()] for name in known]


def _counted(counts: dict[str | int, int]) -> str:
    """United States (155,360), Germany (7,012); whole numbers in their order."""
    names = sorted(counts) if all(isinstance(name, int) for name in counts) else counts
    return ", ".join(f"{name} ({counts[name]:,})" for name in names)


def _none_left(
    key: str,
    attribute: str,
    names: Sequence[str | int],
    values: Values,
    before: np.ndarray,
    words: Sequence[str],
) -> AvomniError:
    counts = values.counts(before)
    there = _counted(counts) if counts else "which nobody knows"
    of_which = f" with {', '.join(words)}" if words else ""
    return AvomniError(
        f"no clip is left by download.clips.{key}: {', '.join(map(str, names))}; "
        f"the {before.sum():,} usable clips{of_which} have the {attribute} {there}",
        where=f"download.clips.{key}",
        fix="ask for what there is, or leave one of the filters out",
    )
