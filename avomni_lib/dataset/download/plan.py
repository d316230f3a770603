"""What a download would do, before anything is done: chunks, clips, files, GB, room on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from avomni_lib import files
from avomni_lib.dataset.download import transfer
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.verified import Verified, hold
from avomni_lib.dataset.select.evicted import read_evicted
from avomni_lib.dataset.select.forecast import forecast
from avomni_lib.dataset.select.selection import (
    Selection,
    foretell,
    license_question,
    need_folder,
    pinned,
    select,
    source_in_words,
)
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes, minutes

EXAMPLE_LINE_BYTES_PER_S = 12.5e6
MOST_SHOWN = 12


def plan(p: Params, hub: Hub | None) -> Plan:
    """What `fetch` would do: chunks, clips, files, GB, what is here already, room on the disk.

    Without a hub, or before the licence is decided on, nothing is asked of anyone: chunks and clips
    are those of the metadata on the disk, if there are any, and sizes those published of chunk 0.

    Raises:
        AvomniError: as `fetch`, but for the licence and the room.
    """
    question = license_question(p)
    if question or (hub is None and p.dataset.source != "folder"):
        return _foretold(p, question)
    need_folder(p)
    hub = pinned(p, hub)
    with hold(p.local_dir):
        verified = Verified(p.local_dir)
        selection = select(p, hub, verified)
    here = [f for f in selection.files if verified.known(f) or verified.needs_hash(f)]
    unchecked = [f for f in here if not verified.known(f)]
    absent = without(selection.files, here)
    partial = sum(transfer.bytes_there(p.local_dir, file) for file in absent)
    gone = read_evicted(p) if p.download.evict_raw else {}
    evicted = [file for file in absent if file.path in gone]
    cached = sum(file.size for file in here) + partial
    to_fetch = selection.num_bytes - cached - sum(file.size for file in evicted)
    needed = largest_chunk(selection, here) if p.download.evict_raw else to_fetch
    free = files.free_bytes(p.local_dir)
    counts = {split: len(ids) for split, ids in selection.clip_ids.items()}
    figures = {
        "num_chunks": len(selection.choice.chunks),
        "num_clips": selection.num_clips,
        "num_files": len(selection.files),
        "bytes": selection.num_bytes,
        "bytes_cached": cached,
        "bytes_to_fetch": to_fetch,
        "bytes_free": free,
        "is_estimate": False,
        "clips_by_split": counts,
    }
    here_note = [f"{len(here)} files"]
    if partial:
        here_note.append(f"{gigabytes(partial)} of files that are not whole yet")
    if unchecked:
        here_note.append(f"{gigabytes(sum(f.size for f in unchecked))} of it to be hashed first")
    if evicted:
        here_note.append(f"{len(evicted)} files evicted, their clips are in the cache")
    by_03 = ", by 03, chunk after chunk" if p.download.evict_raw else ""
    budget = f"at most {p.download.target_size_gb:g} GB"
    num_features = len(selection.features) + len(selection.optional)
    rows = [
        ("source", source_in_words(p), f"revision {hub.commit[:12]}" if hub else "no revision"),
        ("chunks", _in_a_row(selection.choice.chunks), selection.choice.reason),
        ("clips", f"{selection.num_clips}", _in_words(counts)),
        ("files", f"{len(selection.files)}", f"of {num_features} features"),
        ("size", gigabytes(selection.num_bytes), budget + (" at a time" if by_03 else "")),
        ("here already", gigabytes(cached), ", ".join(here_note)),
        ("to fetch", gigabytes(to_fetch), _line_time(to_fetch) + by_03),
        ("room on the disk", gigabytes(free), str(p.local_dir)),
    ]
    warnings = []
    if needed > free:
        warnings.append(f"no room: {gigabytes(needed)} to fetch, {gigabytes(free)} free")
    for split in ("train", p.evaluation.split):
        if not counts[split]:
            warnings.append(f"no clip of the split {split} in the chosen chunks")
    return Plan("Download", rows, warnings, figures)


def largest_chunk(selection: Selection, here: Sequence[RemoteFile]) -> int:
    """Bytes of the chunk of which most is missing."""
    missing = {file.path: file.size for file in without(selection.files, here)}
    features = (*selection.features, *selection.optional)
    return max(
        sum(missing.get(path, 0) for path in selection.catalog.files([chunk], features))
        for chunk in selection.choice.chunks
    )


def without(all_files: Iterable[RemoteFile], some: Iterable[RemoteFile]) -> list[RemoteFile]:
    left_out = {*some}
    return [file for file in all_files if file not in left_out]


def _foretold(p: Params, question: str | None) -> Plan:
    """The plan of a download that may ask nobody yet.

    Args:
        question: What the user has to decide first, or None.
    """
    expected, selection, free = forecast(p), foretell(p), files.free_bytes(p.local_dir)
    chunks, num_clips = f"{expected.num_chunks}", f"about {expected.num_clips}"
    num_files, num_bytes, num_chunks = expected.num_files, expected.num_bytes, expected.num_chunks
    reason, counts = f"download.target_chunks: {p.download.target_chunks}", None
    if selection:
        chunks, reason = _in_a_row(selection.choice.chunks), selection.choice.reason
        counts = {split: len(ids) for split, ids in selection.clip_ids.items()}
        num_clips, num_files = f"{selection.num_clips}", len(selection.files)
        num_bytes, num_chunks = selection.num_bytes, len(selection.choice.chunks)
    warnings = [f"nothing is fetched before you decide: {question}"] if question else []
    if not num_chunks:
        warnings.append("download.target_size_gb is too small for one chunk of these cameras")
    if num_bytes > free and not p.download.evict_raw:
        warnings.append(f"no room: {gigabytes(num_bytes)}, {gigabytes(free)} free")
    rows = [
        ("source", source_in_words(p), expected.note),
        ("chunks", chunks, reason),
        ("clips", num_clips, _in_words(counts) if counts else ""),
        ("files", f"{num_files}", ""),
        ("size", f"about {gigabytes(num_bytes)}", _line_time(num_bytes)),
        ("room on the disk", gigabytes(free), str(p.local_dir)),
    ]
    figures = {
        "num_chunks": num_chunks,
        "num_clips": selection.num_clips if selection else expected.num_clips,
        "num_files": num_files,
        "bytes": num_bytes,
        "bytes_free": free,
        "is_estimate": True,
    }
    return Plan("Download", rows, warnings, figures)


def _line_time(num_bytes: float) -> str:
    return f"{minutes(num_bytes / EXAMPLE_LINE_BYTES_PER_S)} at 100 Mbit/s" if num_bytes else ""


def _in_a_row(chunks: Sequence[int]) -> str:
    """A night's chunks are not told one by one."""
    shown = ", ".join(map(str, chunks[:MOST_SHOWN]))
    return shown + (f" … {chunks[-1]} ({len(chunks)})" if len(chunks) > MOST_SHOWN else "")


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in counts.items())
