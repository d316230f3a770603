"""Fetch the chosen chunks: access and room first, each file checked, no byte fetched twice.

A killed run leaves whole, remembered files and beginnings of others; the next one goes on from
there and ends the same. `chosen.json` is written last. With `download.evict_raw` the chunks
themselves are left to 03, which fetches, reads and removes one after another.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.catalog import METADATA_FILES
from avomni_lib.dataset.download.batch import fetch_files
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.plan import largest_chunk, plan, without
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import Verified, hold
from avomni_lib.dataset.select import manifest as chosen_file
from avomni_lib.dataset.select import split, users
from avomni_lib.dataset.select.evicted import read_evicted
from avomni_lib.dataset.select.manifest import Chosen, missing_files, read_chosen
from avomni_lib.dataset.select.selection import (
    Selection,
    content_revision,
    need_folder,
    need_license,
    pinned,
    select,
)
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar

__all__ = ["Chosen", "Downloaded", "fetch", "fetch_files", "missing_files", "plan", "read_chosen"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Downloaded:
    """What a download did.

    Attributes:
        chosen: As written to chosen.json.
        rows: One a file: path, size, state (`fetched`, `kept`; with `download.evict_raw` also
            `missing`, which 03 fetches, and `evicted`, which it has read and removed).
        figures: The same in numbers.
        reason: Why these chunks.
    """

    chosen: Chosen = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    figures: dict[str, Any]
    reason: str


def fetch(p: Params, hub: Hub | None, progress: type[Bar] = Bar) -> Downloaded:
    """Fetch what is missing, check everything once, write chosen.json.

    With `download.evict_raw` that is the metadata alone, and one chunk must fit on the disk.

    Args:
        hub: None for `dataset.source: folder`: the files must be there.
        progress: One bar over all bytes.

    Raises:
        AvomniError: the licence is not decided on, no access, no room, a file is missing from a
            folder or arrives damaged twice.
    """
    need_license(p)
    need_folder(p)
    hub = pinned(p, hub)
    with hold(p.local_dir):
        verified = Verified(p.local_dir)
        selection = select(p, hub, verified)
    users.register(p, [file.path for file in selection.files])
    later = _left_to_the_loop(p, selection)
    wanted = without(selection.files, later)
    num_hashed = _hash_unknown(wanted, verified, progress)
    todo = [file for file in wanted if not verified.known(file)]
    if hub is not None:
        fetch_files(todo, hub, p, verified, progress)
    elif todo:
        raise AvomniError(
            f"{len(todo)} files are missing from the folder, such as {todo[0].path}",
            where=str(p.local_dir),
            fix="complete the folder, or name other chunks in download.chunks",
        )
    if later:
        here = [file for file in later if verified.known(file)]
        files.need_room(p.local_dir, largest_chunk(selection, here), "the largest chunk")
    chosen = _chosen(p, hub, selection, {*later}, verified)
    split.freeze(p, chosen.clip_ids)
    chosen_file.write_chosen(p, chosen)
    rows = _rows(p, selection, {*todo}, {*later}, verified)
    figures = {
        "num_chunks": len(chosen.chunks),
        "num_clips": chosen.num_clips,
        "clips_by_split": {split: len(ids) for split, ids in chosen.clip_ids.items()},
        "num_files": len(rows),
        "num_files_fetched": len(todo),
        "num_files_hashed": num_hashed,
        "bytes": chosen.num_bytes,
        "bytes_fetched": sum(file.size for file in todo),
        "bytes_to_fetch": sum(row["size"] for row in rows if row["state"] == "missing"),
        "revision": chosen.revision,
        "chosen_on": chosen.chosen_on,
    }
    return Downloaded(chosen, rows, figures, selection.choice.reason)


def _left_to_the_loop(p: Params, selection: Selection) -> list[RemoteFile]:
    """What 03 fetches: all but the metadata and what has no hash at the source."""
    if not p.download.evict_raw:
        return []
    return [f for f in selection.files if f.path not in METADATA_FILES and f.sha256]


def _hash_unknown(wanted: Sequence[RemoteFile], verified: Verified, progress: type[Bar]) -> int:
    """Look at files that nobody has looked at since they changed; returns how many are sound."""
    unknown = [file for file in wanted if verified.needs_hash(file)]
    if not unknown:
        return 0
    num_sound = 0
    with progress(total=sum(f.size for f in unknown), unit="B", label="Check") as bar:
        for file in unknown:
            wrong = verified.find(file)
            if wrong:
                log.warning("%s is damaged and will be fetched again: %s", file.path, wrong)
            num_sound += wrong is None
            bar.update(file.size)
            verified.save(now=False)
    verified.save()
    return num_sound


def _rows(
    p: Params,
    selection: Selection,
    fetched: set[RemoteFile],
    later: set[RemoteFile],
    verified: Verified,
) -> list[dict[str, Any]]:
    evicted = read_evicted(p)
    rows = []
    for file in selection.files:
        state = "fetched" if file in fetched else "kept"
        if file.path in evicted:
            state = "evicted"
        elif file in later and not verified.known(file):
            state = "missing"
        rows.append({"path": file.path, "size": file.size, "state": state})
    return rows


def _chosen(
    p: Params, hub: Hub | None, selection: Selection, later: set[RemoteFile], verified: Verified
) -> Chosen:
    hashes = {
        file.path: file.sha256 if file in later else verified.sha256(file.path)
        for file in selection.files
    }
    revision = hub.commit if hub else content_revision(hashes.items())
    return Chosen(
        repo_id=p.dataset.repo_id,
        revision=revision,
        chunks=selection.choice.chunks,
        clip_ids=selection.clip_ids,
        files={
            file.path: {"size": file.size, "sha256": hashes[file.path]} for file in selection.files
        },
        chosen_on=_chosen_on(p, revision),
        local_dir=str(p.local_dir.resolve()),
    )


def _chosen_on(p: Params, revision: str) -> str:
    """The licence's term counts from the first download of a revision."""
    with contextlib.suppress(AvomniError):
        before = chosen_file.read_chosen(p)
        if (before.repo_id, before.revision) == (p.dataset.repo_id, revision) and before.chosen_on:
            return before.chosen_on
    return datetime.date.today().isoformat()
