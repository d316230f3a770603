"""Plan and download of the chosen chunks; all files are verified, and no byte is fetched twice.

A killed run leaves verified files and partial ones; the next run resumes from there with the same
result. `chosen.json` is written last. With `download.evict_raw`, the chunks themselves are left to
03_etl, which fetches, reads and removes one after another.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from avomni_lib import files
from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.transfer import fetch_files
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.dataset.select import manifest, split
from avomni_lib.dataset.select.evicted import read_evicted, register
from avomni_lib.dataset.select.forecast import forecast
from avomni_lib.dataset.select.manifest import Chosen, missing_files, read_chosen
from avomni_lib.dataset.select.selection import (
    Selection,
    content_revision,
    license_question,
    opened,
    selection_offline,
    source_in_words,
)
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan, gigabytes, minutes

__all__ = ["Chosen", "Downloaded", "fetch", "fetch_files", "missing_files", "plan", "read_chosen"]
log = logging.getLogger(__name__)

EXAMPLE_LINE_BYTES_PER_S = 12.5e6
MOST_SHOWN = 12


@dataclass(frozen=True)
class Downloaded:
    """The result of a download.

    `rows` has one row per file: path, size, state (`fetched`, `kept`; with `download.evict_raw`
    also `missing`, which 03_etl will fetch, and `evicted`, which it has read and removed).
    """

    chosen: Chosen = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    figures: dict[str, Any]
    reason: str  # why these chunks


def fetch(p: Params, hub: Hub | None, progress: type[Bar] = Bar) -> Downloaded:
    """Fetch missing files, verify all files once, and write chosen.json.

    With `download.evict_raw`, only the metadata are fetched, and one chunk must fit on the disk.

    Args:
        hub: None for `dataset.source: folder`, where all files must exist.
        progress: One bar over all bytes.

    Raises:
        AvomniError: the licence is not accepted, no access, no room, a file is missing in a folder,
            or a file arrives damaged twice.
    """
    with opened(p, hub) as (hub, verified, selection):
        pass
    listed = selection.files
    # Files left to 03_etl: all except metadata and files for which the source has no hash.
    tables = selection.catalog.metadata_files
    later = {f for f in listed if f.sha256 and f.path not in tables}
    later = later if p.download.evict_raw else set()
    register(p, [file.path for file in listed])
    wanted = [file for file in listed if file not in later]
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
    missing = [file for file in listed if file in later and not verified.known(file)]
    if later:
        files.need_room(p.local_dir, _largest_chunk(selection, missing), "the largest chunk")
    hashes = {f.path: f.sha256 if f in later else verified.sha256(f.path) for f in listed}
    revision = hub.commit if hub else content_revision(hashes.items())
    chosen = Chosen(
        repo_id=p.dataset.repo_id,
        revision=revision,
        chunks=selection.choice.chunks,
        clip_ids=selection.clip_ids,
        files={f.path: {"size": f.size, "sha256": hashes[f.path]} for f in listed},
        chosen_on=_chosen_on(p, revision),
        local_dir=str(p.local_dir.resolve()),
    )
    split.freeze(p, chosen.clip_ids)
    manifest.write_chosen(p, chosen)
    states = dict.fromkeys(todo, "fetched") | dict.fromkeys(missing, "missing")
    evicted = read_evicted(p)
    rows = []
    for file in listed:
        state = "evicted" if file.path in evicted else states.get(file, "kept")
        rows.append({"path": file.path, "size": file.size, "state": state})
    figures = _counts(selection) | {
        "num_files_fetched": len(todo),
        "num_files_hashed": num_hashed,
        "bytes_fetched": sum(file.size for file in todo),
        "bytes_to_fetch": sum(row["size"] for row in rows if row["state"] == "missing"),
        "revision": revision,
        "chosen_on": chosen.chosen_on,
    }
    return Downloaded(chosen, rows, figures, selection.choice.reason)


def _hash_unknown(wanted: Sequence[RemoteFile], verified: Verified, progress: type[Bar]) -> int:
    """Hash files that have not been verified since they changed; returns how many are sound."""
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


def _chosen_on(p: Params, revision: str) -> str:
    """The day (ISO) of the first download of a revision, when the licence's term starts."""
    with contextlib.suppress(AvomniError):
        before = read_chosen(p)
        if (before.repo_id, before.revision) == (p.dataset.repo_id, revision) and before.chosen_on:
            return before.chosen_on
    return datetime.date.today().isoformat()


def _counts(selection: Selection) -> dict[str, Any]:
    return {
        "num_chunks": len(selection.choice.chunks),
        "num_clips": selection.num_clips,
        "clips_by_split": {name: len(ids) for name, ids in selection.clip_ids.items()},
        "num_files": len(selection.files),
        "bytes": selection.num_bytes,
    }


def _largest_chunk(selection: Selection, missing: Sequence[RemoteFile]) -> int:
    """The most missing bytes of any chunk."""
    places, by_chunk = selection.places(), dict.fromkeys(selection.choice.chunks, 0)
    for file in missing:
        _, chunk = places[file.path]
        if chunk is not None:
            by_chunk[chunk] += file.size
    return max(by_chunk.values())


def plan(p: Params, hub: Hub | None) -> Plan:
    """What `fetch` would do: chunks, clips, files, bytes, what is on the disk, free space.

    Without a hub, or before the licence is accepted, no requests are made: chunks and clips are
    from the metadata on the disk, if any, and sizes are the published ones of chunk 0.

    Raises:
        AvomniError: as `fetch`, except for licence and room.
    """
    question = license_question(p)
    if question or (hub is None and p.is_fetched):
        return _plan_offline(p, question)
    with opened(p, hub) as (hub, verified, selection):
        pass
    here = [f for f in selection.files if verified.known(f) or verified.needs_hash(f)]
    is_here = set(here)
    absent = [f for f in selection.files if f not in is_here]
    unchecked = sum(f.size for f in here if not verified.known(f))
    partial = sum(transfer.bytes_there(p.local_dir, file) for file in absent)
    gone = read_evicted(p) if p.download.evict_raw else {}
    evicted = [file for file in absent if file.path in gone]
    cached = sum(file.size for file in here) + partial
    to_fetch = selection.num_bytes - cached - sum(file.size for file in evicted)
    needed = _largest_chunk(selection, absent) if p.download.evict_raw else to_fetch
    free, figures = files.free_bytes(p.local_dir), _counts(selection)
    counts = figures["clips_by_split"]
    notes = [
        f"{len(here)} files",
        partial and f"{gigabytes(partial)} of files that are not whole yet",
        unchecked and f"{gigabytes(unchecked)} of it to be hashed first",
        evicted and f"{len(evicted)} files evicted, their clips are in the cache",
    ]
    by_03 = ", by 03, chunk after chunk" if p.download.evict_raw else ""
    budget = f"at most {p.download.target_size_gb:g} GB" + (" at a time" if by_03 else "")
    num_features = len(selection.features) + len(selection.optional)
    rows = [
        ("source", source_in_words(p), f"revision {hub.commit[:12]}" if hub else "no revision"),
        ("chunks", _in_a_row(selection.choice.chunks), selection.choice.reason),
        ("clips", f"{selection.num_clips}", _in_words(counts)),
        ("files", f"{len(selection.files)}", f"of {num_features} features"),
        ("size", gigabytes(selection.num_bytes), budget),
        ("here already", gigabytes(cached), ", ".join(filter(None, notes))),
        ("to fetch", gigabytes(to_fetch), _line_time(to_fetch) + by_03),
        ("room on the disk", gigabytes(free), str(p.local_dir)),
    ]
    warnings = [
        f"no clip of the split {name} in the chosen chunks"
        for name in ("train", p.evaluation.split)
        if not counts[name]
    ]
    if needed > free:
        warnings.insert(0, f"no room: {gigabytes(needed)} to fetch, {gigabytes(free)} free")
    figures |= {"bytes_cached": cached, "bytes_to_fetch": to_fetch}
    return Plan("Download", rows, warnings, figures | {"bytes_free": free, "is_estimate": False})


def _plan_offline(p: Params, question: str | None) -> Plan:
    """The plan of a download without requests; `question` must be decided first."""
    expected, selection, free = forecast(p), selection_offline(p), files.free_bytes(p.local_dir)
    figures = {key: value for key, value in expected._asdict().items() if key != "note"}
    figures["bytes"] = figures.pop("num_bytes")
    chunks, clips, counts = f"{expected.num_chunks}", f"about {expected.num_clips}", ""
    reason = f"download.target_chunks: {p.download.target_chunks}"
    if selection:
        figures = _counts(selection)
        chunks, reason = _in_a_row(selection.choice.chunks), selection.choice.reason
        clips, counts = f"{selection.num_clips}", _in_words(figures.pop("clips_by_split"))
    num_bytes = figures["bytes"]
    warnings = [f"nothing is fetched before you decide: {question}"] if question else []
    if not figures["num_chunks"]:
        warnings.append("download.target_size_gb is too small for one chunk of these cameras")
    if num_bytes > free and not p.download.evict_raw:
        warnings.append(f"no room: {gigabytes(num_bytes)}, {gigabytes(free)} free")
    rows = [
        ("source", source_in_words(p), expected.note),
        ("chunks", chunks, reason),
        ("clips", clips, counts),
        ("files", f"{figures['num_files']}", ""),
        ("size", f"about {gigabytes(num_bytes)}", _line_time(num_bytes)),
        ("room on the disk", gigabytes(free), str(p.local_dir)),
    ]
    return Plan("Download", rows, warnings, figures | {"bytes_free": free, "is_estimate": True})


def _line_time(num_bytes: float) -> str:
    return f"{minutes(num_bytes / EXAMPLE_LINE_BYTES_PER_S)} at 100 Mbit/s" if num_bytes else ""


def _in_a_row(chunks: Sequence[int]) -> str:
    """The numbers of the first chunks and the last one, as there may be hundreds."""
    shown = ", ".join(map(str, chunks[:MOST_SHOWN]))
    return shown + (f" … {chunks[-1]} ({len(chunks)})" if len(chunks) > MOST_SHOWN else "")


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in counts.items())
