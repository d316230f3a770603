"""Leaks: what a score is made on and the model has seen before.

A clip in two splits, clips that share frames, so that windows straddle a split, a clip that is not
of the split that was frozen, a held-out clip in a recorded training list, and near-duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.select import split
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import windows
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.leaks.duplicates import Leak, near_duplicates
from avomni_lib.params import Params
from avomni_lib.plan import Bar

__all__ = [
    "Leak",
    "base_records",
    "check",
    "check_all",
    "check_training_lists",
    "near_duplicates",
]

MAX_NAMED = 3
RECORD_FILE = "record.json"  # of an adapter, a merged model and the tiny base


def check(cache: Cache, progress: type[Bar] = Bar) -> None:
    """Refuse a cache in which splits share a drive.

    Raises:
        AvomniError: naming the pairs and what agrees in them.
    """
    found = near_duplicates(cache, progress)
    if found:
        named = "\n".join(f"  {leak}" for leak in found[:MAX_NAMED])
        more = f"\n  and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        raise AvomniError(
            f"clips of different splits are near-duplicates ({len(found)} such pairs):\n"
            f"{named}{more}",
            where=str(cache.folder),
            fix="leave one clip of each pair out: name the clips to keep in "
            "download.clips.clip_ids and run 02_download and 03_etl again; if the pair is of the "
            "data set's own making, report it to its makers",
        )


def check_training_lists(
    held_out_ids: Collection[str], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to score a model on what it, or what it was made from, was trained on.

    Args:
        held_out_ids: The clips that are scored on.
        records: What is asked, in words ("the adapter in …") -> its record; one that names no
            `training_clip_ids` cannot be asked.

    Raises:
        AvomniError: a held-out clip is in one of the lists.
    """
    held_out = set(held_out_ids)
    for name, record in records.items():
        seen = sorted(held_out & set(record.get("training_clip_ids") or ()))
        if seen:
            raise AvomniError(
                f"{name} was trained on {len(seen)} of the {len(held_out)} clips held out, "
                f"such as {seen[0]}",
                where=f"clip {seen[0]}",
                fix="if the splits have changed since, run 05_train again; a base model that knows "
                "them cannot be scored on them: choose another one (model.base_model), or another "
                "evaluation.split",
            )


def base_records(
    base_model: str, locate: Callable[[str], str | Path] = files.resolve
) -> dict[str, dict[str, Any]]:
    """The records of a base model and of what it was made from in turn, as far as they lie here.

    A merged model keeps the record of the adapter that was folded into it, and that one names its
    own base model. A model of the hub has no such record: what it has seen nobody can tell.

    Args:
        base_model: As `model.base_model` names it.
        locate: Such a name -> its folder, or something that is no folder.

    Returns:
        "the base model NAME" -> what stands in its record.json.

    Raises:
        AvomniError: a record is not JSON.
    """
    found: dict[str, dict[str, Any]] = {}
    name: str | None = base_model
    while name and f"the base model {name}" not in found:
        path = Path(locate(name)) / RECORD_FILE
        if not path.is_file():
            break
        found[f"the base model {name}"] = record = files.read_json(path)
        name = record.get("base_model")
    return found


def check_all(
    p: Params,
    cache: Cache,
    held_out_ids: Collection[str] = (),
    adapter_record: Mapping[str, Any] | None = None,
    locate: Callable[[str], str | Path] = files.resolve,
    progress: type[Bar] = Bar,
) -> None:
    """Everything that stops a run: what 03_etl, 05_train and 06_evaluate call.

    Args:
        held_out_ids: The clips that will be scored on.
        adapter_record: Of the adapter that is scored; None before there is one.
        locate: As `base_records` takes it.
        progress: One unit a frame that is compared.

    Raises:
        AvomniError: a clip lies in two splits, or its windows hold another clip's frames; it is not
            of the split that was frozen; a held-out clip was trained on; near-duplicates.
    """
    windows.check_leaks(cache)
    split.check(p, {clip.clip_id: clip.split for clip in cache.clips})
    records = base_records(p.model.base_model, locate)
    check_training_lists(held_out_ids, {"the adapter": adapter_record or {}} | records)
    check(cache, progress)
