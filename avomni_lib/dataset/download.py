"""Fetch the chosen chunks: room first, several files at a time, each checked, none fetched twice.

A killed run leaves whole, remembered files; the next one goes on with the rest and ends the same.
`chosen.json` is written last.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import chosen as chosen_file
from avomni_lib.dataset.chosen import Chosen, missing_files, read_chosen
from avomni_lib.dataset.forecast import forecast
from avomni_lib.dataset.hub import Hub
from avomni_lib.dataset.remote import RemoteFile
from avomni_lib.dataset.selection import (
    Selection,
    content_revision,
    license_question,
    need_folder,
    need_license,
    pinned,
    select,
    source_in_words,
)
from avomni_lib.dataset.verified import Verified, hold
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan, gigabytes, minutes

__all__ = ["Chosen", "Downloaded", "fetch", "fetch_files", "missing_files", "plan", "read_chosen"]
log = logging.getLogger(__name__)

# Where huggingface_hub keeps what it has not finished; a killed process leaves it there for good.
CLIENT_CACHE = ".cache/huggingface/download"
EXAMPLE_LINE_BYTES_PER_S = 12.5e6


@dataclass(frozen=True)
class Downloaded:
    """What a download did.

    Attributes:
        chosen: As written to chosen.json.
        rows: One a file: path, size, state (`fetched`, `kept`).
        figures: The same in numbers.
        reason: Why these chunks.
    """

    chosen: Chosen = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    figures: dict[str, Any]
    reason: str


def plan(p: Params, hub: Hub | None) -> Plan:
    """What `fetch` would do: chunks, clips, files, GB, what is here already, room on the disk.

    Without a hub, or before the licence is decided on, sizes are those published of chunk 0, and
    nothing is asked of anyone.

    Raises:
        AvomniError: as `fetch`, but for the licence and the room.
    """
    question = license_question(p)
    if question or (hub is None and p.dataset.source != "folder"):
        return _forecast_plan(p, question)
    need_folder(p)
    hub = pinned(p, hub)
    with hold(p.local_dir):
        verified = Verified(p.local_dir)
        selection = select(p, hub, verified)
    here = [f for f in selection.files if verified.known(f) or verified.needs_hash(f)]
    unchecked = [f for f in here if not verified.known(f)]
    cached = sum(f.size for f in here)
    to_fetch = selection.num_bytes - cached
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
    here_note = f"{len(here)} files"
    if unchecked:
        here_note += f", {gigabytes(sum(f.size for f in unchecked))} of it to be hashed first"
    rows = [
        ("source", source_in_words(p), f"revision {hub.commit[:12]}" if hub else "no revision"),
        ("chunks", ", ".join(map(str, selection.choice.chunks)), selection.choice.reason),
        ("clips", f"{selection.num_clips}", _in_words(counts)),
        ("files", f"{len(selection.files)}", f"of {len(selection.features)} features"),
        ("size", gigabytes(selection.num_bytes), f"at most {p.download.target_size_gb:g} GB"),
        ("here already", gigabytes(cached), here_note),
        ("to fetch", gigabytes(to_fetch), _line_time(to_fetch)),
        ("room on the disk", gigabytes(free), str(p.local_dir)),
    ]
    warnings = []
    if to_fetch > free:
        warnings.append(f"no room: {gigabytes(to_fetch)} to fetch, {gigabytes(free)} free")
    for split in ("train", p.evaluation.split):
        if not counts[split]:
            warnings.append(f"no clip of the split {split} in the chosen chunks")
    return Plan("Download", rows, warnings, figures)


def fetch(p: Params, hub: Hub | None, progress: type[Bar] = Bar) -> Downloaded:
    """Fetch what is missing, check everything once, write chosen.json.

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
        before = {file.path for file in selection.files if verified.known(file)}
        _hash_unknown(selection.files, verified, progress)
        todo = [file for file in selection.files if not verified.known(file)]
        if hub is not None:
            fetch_files(todo, hub, p, verified, progress)
        elif todo:
            raise AvomniError(
                f"{len(todo)} files are missing from the folder, such as {todo[0].path}",
                where=str(p.local_dir),
                fix="complete the folder, or name other chunks in download.chunks",
            )
        chosen = _chosen(p, hub, selection, verified)
        chosen_file.write_chosen(p, chosen)
    fetched = {file.path for file in todo}
    rows = [
        {
            "path": file.path,
            "size": file.size,
            "state": "fetched" if file.path in fetched else "kept",
        }
        for file in selection.files
    ]
    figures = {
        "num_chunks": len(chosen.chunks),
        "num_clips": chosen.num_clips,
        "clips_by_split": {split: len(ids) for split, ids in chosen.clip_ids.items()},
        "num_files": len(rows),
        "num_files_fetched": len(fetched),
        "num_files_hashed": len(rows) - len(before) - len(fetched),
        "bytes": chosen.num_bytes,
        "bytes_fetched": sum(file.size for file in todo),
        "revision": chosen.revision,
    }
    return Downloaded(chosen, rows, figures, selection.choice.reason)


def _hash_unknown(wanted: Sequence[RemoteFile], verified: Verified, progress: type[Bar]) -> None:
    """Files that are here but were never looked at, or changed since."""
    unknown = [file for file in wanted if verified.needs_hash(file)]
    if not unknown:
        return
    with progress(total=sum(f.size for f in unknown), unit="B", label="Check") as bar:
        for file in unknown:
            wrong = verified.find(file)
            if wrong:
                log.warning("%s is damaged and will be fetched again: %s", file.path, wrong)
            bar.update(file.size)
            verified.save(now=False)
    verified.save()


def fetch_files(
    todo: Sequence[RemoteFile],
    hub: Hub,
    p: Params,
    verified: Verified,
    progress: type[Bar] = Bar,
    stop: threading.Event | None = None,
) -> None:
    """Fetch these files into p.local_dir, several at a time; each is checked and remembered.

    Args:
        stop: Set by another thread: ends soon; what is partial stays for the next one.

    Raises:
        AvomniError: as `fetch`.
    """
    _sweep(p.local_dir)
    if not todo:
        return
    total = sum(file.size for file in todo)
    files.need_room(p.local_dir, total, "the download")
    count = _Count()

    def one(file: RemoteFile) -> None:
        hub.fetch(file, p.local_dir, count)
        verified.remember(file)

    try:
        with (
            progress(total=total, unit="B", label="Download") as bar,
            concurrent.futures.ThreadPoolExecutor(p.download.max_workers) as pool,
        ):
            pending = {pool.submit(one, file) for file in todo}
            try:
                while pending:
                    if stop is not None and stop.is_set():
                        raise _Stopped
                    done, pending = concurrent.futures.wait(
                        pending, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    finished = len(todo) - len(pending)
                    bar.update(count.take(), note=f"{finished} of {len(todo)} files")
                    for future in done:
                        future.result()
                    verified.save(now=False)
            except BaseException as error:
                # A fault lets the files in flight end: they are worth keeping. Ctrl-C does not.
                count.is_stopped = not isinstance(error, Exception) or isinstance(error, _Stopped)
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except _Stopped:
        if stop is None or not stop.is_set():
            raise
    finally:
        verified.save()


class _Count(Bar):
    """Bytes counted by threads, to be shown by the main one: widgets are not for threads."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stopped = False
        self._lock = threading.Lock()

    def update(self, amount: float = 1, note: str = "") -> None:
        if self.is_stopped and amount > 0:
            raise _Stopped
        with self._lock:
            self.count += amount

    def take(self) -> float:
        with self._lock:
            count, self.count = self.count, 0.0
            return count


class _Stopped(Exception):
    """The user has stopped the download."""


def _sweep(folder: Path) -> None:
    files.sweep_partials(folder / ".avomni")
    for path in (folder / CLIENT_CACHE).rglob("*.incomplete"):
        path.unlink(missing_ok=True)


def _chosen(p: Params, hub: Hub | None, selection: Selection, verified: Verified) -> Chosen:
    hashes = {file.path: verified.sha256(file.path) for file in selection.files}
    return Chosen(
        repo_id=p.dataset.repo_id,
        revision=hub.commit if hub else content_revision(hashes.items()),
        chunks=selection.choice.chunks,
        clip_ids=selection.clip_ids,
        files={
            file.path: {"size": file.size, "sha256": hashes[file.path]} for file in selection.files
        },
    )


def _forecast_plan(p: Params, question: str | None) -> Plan:
    expected, free = forecast(p), files.free_bytes(p.local_dir)
    warnings = [f"nothing is fetched before you decide: {question}"] if question else []
    if not expected.num_chunks:
        warnings.append("download.target_size_gb is too small for one chunk of these cameras")
    if expected.num_bytes > free:
        warnings.append(f"no room: {gigabytes(expected.num_bytes)}, {gigabytes(free)} free")
    rows = [
        ("source", source_in_words(p), expected.note),
        ("chunks", f"{expected.num_chunks}", f"download.target_chunks: {p.download.target_chunks}"),
        ("clips", f"about {expected.num_clips}", ""),
        ("files", f"{expected.num_files}", ""),
        ("size", f"about {gigabytes(expected.num_bytes)}", _line_time(expected.num_bytes)),
        ("room on the disk", gigabytes(free), str(p.local_dir)),
    ]
    figures = {
        "num_chunks": expected.num_chunks,
        "num_clips": expected.num_clips,
        "num_files": expected.num_files,
        "bytes": expected.num_bytes,
        "bytes_free": free,
        "is_estimate": True,
    }
    return Plan("Download", rows, warnings, figures)


def _line_time(num_bytes: float) -> str:
    return f"{minutes(num_bytes / EXAMPLE_LINE_BYTES_PER_S)} at 100 Mbit/s" if num_bytes else ""


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in counts.items())
