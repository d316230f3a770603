"""`split.json`: the split of each clip, frozen when a run first uses it.

Scores must be of clips that were not trained on. The catalog defines the splits, but a newer
revision of the data set may change them, so a run keeps its first ones and identifies them by a
hash. Clips may be added, but none may change its split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

FILE = "split.json"
FORMAT = 1
MAX_NAMED = 3
START_AGAIN = "remove it and train again: what was trained before may have seen held-out clips"


def path_of(p: Params) -> Path:
    return p.run_dir / FILE


def freeze(p: Params, clip_ids: Mapping[str, Sequence[str]]) -> str:
    """Write the splits of a run's clips, or compare them with the file and add new clips.

    Clips that are no longer wanted stay in the file.

    Args:
        clip_ids: Split -> its clips, as `Chosen.clip_ids`.

    Returns:
        The sha256 of the frozen splits.

    Raises:
        AvomniError: a clip is in two splits, or has changed its split; or the file is damaged.
    """
    wanted: dict[str, str] = {}
    for split, ids in clip_ids.items():
        for clip_id in ids:
            if wanted.setdefault(clip_id, split) != split:
                raise AvomniError(
                    f"a clip is in two splits, {wanted[clip_id]} and {split}",
                    where=f"clip {clip_id}",
                    fix="the data set's clip index is at fault: report it to its makers",
                )
    path = path_of(p)
    frozen = read(p) if path.exists() else {}
    _refuse_changes(path, frozen, wanted)
    splits = dict(sorted((frozen | wanted).items()))
    record = {"format": FORMAT, "splits": splits}
    digest = files.hash_json(record)
    if splits != frozen or not path.exists():
        files.write_json(path, record | {"sha256": digest})
    return digest


def read(p: Params) -> dict[str, str]:
    """The frozen splits: clip_id -> split, sorted by clip_id.

    Raises:
        AvomniError: there are none yet, or the file is damaged or was changed by hand.
    """
    return _record(p)["splits"]


def sha256_of(p: Params) -> str | None:
    """The hash of the frozen splits, for `result.json`; None before they are frozen.

    Raises:
        AvomniError: the file is damaged or was changed by hand.
    """
    return _record(p)["sha256"] if path_of(p).exists() else None


def check(p: Params, splits: Mapping[str, str]) -> None:
    """Compare the clips of a cache (clip_id -> split) with the frozen splits.

    Raises:
        AvomniError: a clip is missing in the file or has another split there; or there is no file.
    """
    path, frozen = path_of(p), read(p)
    _refuse_changes(path, frozen, splits)
    if unknown := sorted(set(splits) - set(frozen)):
        raise AvomniError(
            f"clips of the cache are in no frozen split: {_named(unknown)}",
            where=str(path),
            fix="run 03_etl again: it adds them",
        )


def _record(p: Params) -> dict[str, Any]:
    path = path_of(p)
    if not path.exists():
        raise AvomniError(
            "the splits of this run are not frozen yet", where=str(path), fix="run 03_etl"
        )
    record = files.read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise AvomniError(
            f"not a {FILE} of format {FORMAT}",
            where=str(path),
            fix=f"use the program that wrote it, or {START_AGAIN}",
        )
    splits = record.get("splits")
    digest = files.hash_json({"format": FORMAT, "splits": splits})
    if not isinstance(splits, dict) or digest != record.get("sha256"):
        raise AvomniError(
            f"{FILE} is not what was written: its content and its sha256 disagree",
            where=str(path),
            fix=f"bring back the file of this run, or {START_AGAIN}",
        )
    return record


def _refuse_changes(path: Path, frozen: Mapping[str, str], splits: Mapping[str, str]) -> None:
    moves = [
        f"{clip_id} from {frozen[clip_id]} to {split}"
        for clip_id, split in sorted(splits.items())
        if frozen.get(clip_id, split) != split
    ]
    if moves:
        raise AvomniError(
            f"clips would change their split: {_named(moves)}",
            where=str(path),
            fix="keep dataset.revision as it was when the file was written, or " + START_AGAIN,
        )


def _named(words: Sequence[str]) -> str:
    more = f" and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else ""
    return ", ".join(words[:MAX_NAMED]) + more
