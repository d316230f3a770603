"""Every file that an audit speaks of: as the source lists it, as it lies on the disk, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.dataset import cameras, findings
from avomni_lib.dataset.audit.file import FileJob
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.download.transfer import PARTIALS
from avomni_lib.dataset.download.verified import Verified
from avomni_lib.dataset.findings import DAMAGED, ODD, WHOLE, Finding
from avomni_lib.dataset.select.evicted import by_others, read_evicted
from avomni_lib.dataset.select.selection import Selection
from avomni_lib.params import Params

SOUND, MISSING, ABSENT, EVICTED = "sound", "missing", "absent", "evicted"
NOT_CHOSEN = "not chosen"
# From bad to good: a clip is as its worst feature.
STATES = (DAMAGED, ABSENT, MISSING, EVICTED, ODD, SOUND, NOT_CHOSEN)
UNFINISHED = ("*.incomplete", f"*{files.PARTIAL_SUFFIX}")


@dataclass(frozen=True)
class Listing:
    """The files of an audit.

    Attributes:
        selection: What the run takes.
        place: Path -> (feature, chunk) of all that the run's chunks consist of.
        remote: Path -> as the source lists it; those that it does not list are left out.
        state: Path -> (state, reason) of those that are not to be looked at.
        note: Path -> what is known before.
        jobs: Those that are.
        findings: What is wrong with them without a look.
        others: Files below the data folder that this run does not take.
    """

    selection: Selection
    place: dict[str, tuple[str, int | None]]
    remote: dict[str, RemoteFile]
    state: dict[str, tuple[str, str]]
    note: dict[str, str]
    jobs: list[FileJob]
    findings: list[Finding]
    others: dict[str, int]

    @classmethod
    def of(cls, p: Params, hub: Hub | None, selection: Selection, verified: Verified) -> Listing:
        """Compare the source's list with the disk; nothing is opened."""
        place = selection.places(selection.choice.passed)
        remote = _remote(p.local_dir, hub, selection, place)
        evicted, others, clips = read_evicted(p), by_others(p), _Clips(selection)
        made = cls(selection, place, remote, {}, {}, [], [], {})
        for path, (feature, chunk) in place.items():
            file = remote.get(path)
            if file is None:
                absent = (ABSENT, "the source does not list it")
                made.state[path] = absent if hub else (MISSING, "not in the folder")
            elif (p.local_dir / path).is_file():
                job = _job(p, clips, file, feature, chunk, verified)
                made._add(job, file, verified, is_hub=hub is not None)
            elif path in evicted:
                reason = f"by {others[path]}" if path in others else "the cache holds its part"
                made.state[path] = (EVICTED, f"evicted on {evicted[path]}; {reason}")
            else:
                made.state[path] = (MISSING, "not on the disk; 02_download fetches it")
        for file in files_below(p.local_dir):
            path = file.relative_to(p.local_dir).as_posix()
            if path not in place:
                made.others[path] = file.stat().st_size
        return made

    def _add(self, job: FileJob, file: RemoteFile, verified: Verified, is_hub: bool) -> None:
        self.jobs.append(job)
        if verified.known(file) or job.place.stat().st_size != file.size:
            return
        if not verified.needs_hash(file):
            reason = "its content is another revision's"
            kind = "another content than the source's"
            finding = Finding(DAMAGED, kind, reason, WHOLE, job.path, job.feature, job.chunk)
            self.findings.append(finding)
        elif is_hub and not job.is_full:
            when = verified.checked_on(job.path)
            reason = f"it has changed since {when}" if when else "its hash was never checked"
            self.note[job.path] = f"{reason}; 02_download does, or dataset.audit: full"

    def file_rows(self, all_findings: Iterable[Finding]) -> list[dict[str, Any]]:
        """One row a file: path, feature, chunk, size, state, reason."""
        of_file: dict[str, list[Finding]] = {}
        for finding in all_findings:
            if finding.is_files:
                of_file.setdefault(finding.path, []).append(finding)
        rows = []
        for path, (feature, chunk) in self.place.items():
            mine = of_file.get(path, [])
            state, reason = self.state.get(path) or (
                findings.worst(mine) or SOUND,
                findings.reasons(mine) or self.note.get(path, ""),
            )
            size = self.remote[path].size if path in self.remote else 0
            rows.append(_row(path, feature, chunk, size, state, reason))
        reason = "this run does not take it"
        rows += [_row(path, "", None, n, NOT_CHOSEN, reason) for path, n in self.others.items()]
        return rows

    def clip_rows(self, all_findings: Iterable[Finding]) -> list[dict[str, Any]]:
        """One row a clip of the chunks: clip_id, chunk, split, state, reason, features."""
        catalog, features = self.selection.catalog, self.selection.features
        whole: dict[tuple[str, int | None], list[Finding]] = {}
        single: dict[tuple[str, str], list[Finding]] = {}
        for finding in all_findings:
            if finding.reach == WHOLE:
                whole.setdefault((finding.feature, finding.chunk), []).append(finding)
            elif finding.clip_id:
                single.setdefault((finding.feature, finding.clip_id), []).append(finding)
        chosen = {clip_id for ids in self.selection.clip_ids.values() for clip_id in ids}
        taken = set(self.selection.choice.chunks)
        rows = []
        choice = self.selection.choice
        for chunk in (*choice.chunks, *choice.passed):
            states = {name: self.state.get(catalog.path(name, chunk)) for name in features}
            held = {
                name: set(catalog.usable(chunk, [name]))
                for name in features
                if catalog.path(name, chunk) in self.place
            }
            for clip_id in catalog.clip_ids(chunk):
                states_of: dict[str, tuple[str, str]] = {}
                fault = catalog.clips.faults.get(clip_id)
                for name in features:
                    if fault is not None:
                        states_of[name] = (DAMAGED, fault)
                    elif clip_id not in held.get(name, ()):
                        states_of[name] = (ABSENT, "not on the source")
                    elif states[name]:
                        states_of[name] = (states[name][0], _short(states[name][0]))
                    else:
                        mine = [*whole.get((name, chunk), ()), *single.get((name, clip_id), ())]
                        states_of[name] = (findings.worst(mine) or SOUND, findings.reasons(mine))
                is_usable = all(state != ABSENT for state, _ in states_of.values())
                if fault is None and is_usable and chunk in taken and clip_id not in chosen:
                    states_of = dict.fromkeys(features, (NOT_CHOSEN, ""))
                rows.append(_clip_row(clip_id, chunk, catalog.split_of(clip_id), states_of))
        return rows


def _clip_row(
    clip_id: str, chunk: int, split: str, states_of: dict[str, tuple[str, str]]
) -> dict[str, Any]:
    by_reason: dict[str, list[str]] = {}
    for name, (_, reason) in states_of.items():
        if reason:
            by_reason.setdefault(reason, []).append(name)
    return {
        "clip_id": clip_id,
        "chunk": chunk,
        "split": split,
        "state": min((state for state, _ in states_of.values()), key=STATES.index),
        "reason": "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items()),
        "features": {name: state for name, (state, _) in states_of.items()},
    }


def _short(state: str) -> str:
    words = {ABSENT: "not on the source", MISSING: "not on the disk", EVICTED: "evicted"}
    return words[state]


def _row(path: str, feature: str, chunk: int | None, size: int, state: str, reason: str) -> dict:
    keys = ("path", "feature", "chunk", "size", "state", "reason")
    return dict(zip(keys, (path, feature, chunk, size, state, reason), strict=True))


def _remote(
    folder: Path, hub: Hub | None, selection: Selection, place: Iterable[str]
) -> dict[str, RemoteFile]:
    listed = {file.path: file for file in selection.files}
    unlisted = [path for path in place if path not in listed]
    if hub and unlisted:
        return listed | hub.sizes(unlisted)
    sizes = {path: folder / path for path in unlisted if (folder / path).is_file()}
    return listed | {path: RemoteFile(path, file.stat().st_size) for path, file in sizes.items()}


class _Clips:
    """Which clips a file of a chunk must hold, may hold, and which of them are looked at."""

    def __init__(self, selection: Selection):
        self.selection, index = selection, selection.catalog.clips
        self._chosen = {clip_id for ids in selection.clip_ids.values() for clip_id in ids}
        # Marked as not valid at the source, or without a plain name: nobody's choice, but their
        # files are there.
        rows = np.flatnonzero(~index.is_valid | ~index.is_named)
        self._invalid: dict[int, list[str]] = {}
        for chunk, clip_id in zip(index.chunk[rows].tolist(), index.ids(rows), strict=True):
            self._invalid.setdefault(chunk, []).append(clip_id)

    def of(self, feature: str, chunk: int) -> dict[str, tuple[str, ...]]:
        """`clip_ids`, `denied`, `ignored` and `wanted` of a `FileJob`."""
        catalog = self.selection.catalog
        every, held = catalog.clip_ids(chunk), catalog.usable(chunk, [feature])
        usable = set(catalog.usable(chunk, self.selection.features))
        return {
            "clip_ids": held,
            "denied": tuple(sorted(set(every) - set(held))),
            "ignored": tuple(self._invalid.get(chunk, ())),
            "wanted": tuple(c for c in held if c in self._chosen or c not in usable),
        }


def _job(
    p: Params,
    clips: _Clips,
    file: RemoteFile,
    feature: str,
    chunk: int | None,
    verified: Verified,
) -> FileJob:
    # A folder has no list of hashes: what was found there before is as good.
    known = verified.known(file)
    sha256 = file.sha256 or (known["sha256"] if known and not file.blob_id else None)
    is_full = p.dataset.audit == "full"
    if not feature:
        return FileJob(str(p.local_dir), file.path, file.size, sha256, file.blob_id, is_full)
    selection = clips.selection
    return FileJob(
        folder=str(p.local_dir),
        path=file.path,
        size=file.size,
        sha256=sha256,
        blob_id=file.blob_id,
        is_full=is_full,
        feature=feature,
        chunk=chunk,
        members=tuple(selection.catalog.features[feature].members.items()),
        **clips.of(feature, chunk),
        cameras=tuple(name for name in selection.features if name in cameras.BY_NAME),
        horizon_s=p.processing.horizon_s,
    )


def files_below(folder: Path) -> Iterator[Path]:
    """The data set's files in a folder, and others beside them; not what we and the client keep."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.relative_to(folder).parts[0].startswith("."):
            yield path


def unfinished(folder: Path) -> list[Path]:
    """What downloads that were interrupted have left, in any folder below."""
    paths = {path for pattern in UNFINISHED for path in folder.rglob(pattern)}
    return sorted(paths | {path for path in (folder / PARTIALS).glob("*") if path.is_file()})
