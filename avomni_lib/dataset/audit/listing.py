"""The files of an audit: the source's list compared with the disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
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
# From worst to best; a clip has the state of its worst feature.
STATES = (DAMAGED, ABSENT, MISSING, EVICTED, ODD, SOUND, NOT_CHOSEN)
OF_CLIPS = {ABSENT: "not on the source", MISSING: "not on the disk", EVICTED: "evicted"}
UNFINISHED = ("*.incomplete", f"*{files.PARTIAL_SUFFIX}")


class Listing:
    """The source's list of files compared with the disk; opens no file.

    Attributes:
        place: Path -> (feature, chunk) of all files of the run's chunks.
        remote: Path -> the source's entry; files that it does not list are left out.
        state: Path -> (state, reason) of files that are not checked.
        note: Path -> remark known before the check.
        jobs: The files to check.
        findings: Findings that need no check of the content.
        others: Files below the data folder that this run does not use, and their bytes.
    """

    def __init__(self, p: Params, hub: Hub | None, selection: Selection, verified: Verified):
        self.p, self.selection, self.verified = p, selection, verified
        self.place = selection.places(selection.choice.passed)
        self.remote = {file.path: file for file in selection.files}
        unlisted = [path for path in self.place if path not in self.remote]
        if hub is None:
            there = {path: p.local_dir / path for path in unlisted}
            sizes = {path: file.stat().st_size for path, file in there.items() if file.is_file()}
            self.remote |= {path: RemoteFile(path, size) for path, size in sizes.items()}
        elif unlisted:
            self.remote |= hub.sizes(unlisted)
        self.state: dict[str, tuple[str, str]] = {}
        self.note: dict[str, str] = {}
        self.jobs: list[FileJob] = []
        self.findings: list[Finding] = []
        self._chosen = {clip_id for ids in selection.clip_ids.values() for clip_id in ids}
        # Clips that are marked as invalid at the source, or whose id is no plain name: they cannot
        # be chosen, but files contain them.
        index, self._invalid = selection.catalog.clips, defaultdict[int, list[str]](list)
        rows = np.flatnonzero(~index.is_valid | ~index.is_named)
        for chunk, clip_id in zip(index.chunk[rows].tolist(), index.ids(rows), strict=True):
            self._invalid[chunk].append(clip_id)
        evicted, others = read_evicted(p), by_others(p)
        for path, (feature, chunk) in self.place.items():
            file = self.remote.get(path)
            if file is None:
                absent = (ABSENT, "the source does not list it")
                self.state[path] = absent if hub else (MISSING, "not in the folder")
            elif (p.local_dir / path).is_file():
                self._add(file, feature, chunk, is_hub=hub is not None)
            elif path in evicted:
                reason = f"by {others[path]}" if path in others else "the cache holds its part"
                self.state[path] = (EVICTED, f"evicted on {evicted[path]}; {reason}")
            else:
                self.state[path] = (MISSING, "not on the disk; 02_download fetches it")
        below = {
            path.relative_to(p.local_dir).as_posix(): path for path in files_below(p.local_dir)
        }
        self.others = {
            name: path.stat().st_size for name, path in below.items() if name not in self.place
        }

    def _add(self, file: RemoteFile, feature: str, chunk: int | None, is_hub: bool) -> None:
        p, verified, selection = self.p, self.verified, self.selection
        # A folder has no list of hashes; use those of an earlier check.
        known = verified.known(file)
        sha256 = file.sha256 or (known["sha256"] if known and not file.blob_id else None)
        more: dict[str, Any] = {}
        if feature:
            catalog = selection.catalog
            inside = catalog.clips_in(feature, chunk)
            usable = set(catalog.usable(chunk, selection.features))
            wanted = tuple(c for c in inside if c in self._chosen or c not in usable)
            parts = catalog.parts([c for c in inside if c in self._chosen])
            more = {
                "feature": feature,
                "chunk": chunk,
                "members": tuple(catalog.features[feature].members.items()),
                "clip_ids": inside,
                "denied": tuple(sorted(set(catalog.clip_ids(chunk)) - set(inside))),
                "ignored": tuple(self._invalid[chunk]),
                "wanted": tuple(part.clip_id for part in parts) or wanted,
                "parts": parts,
                "cameras": tuple(name for name in selection.features if name in cameras.BY_NAME),
                "horizon_s": p.processing.horizon_s,
            }
        is_full = p.dataset.audit == "full"
        folder = str(p.local_dir)
        job = FileJob(folder, file.path, file.size, sha256, file.blob_id, is_full, **more)
        self.jobs.append(job)
        if known or job.place.stat().st_size != file.size:
            return
        if not verified.needs_hash(file):
            reason, what = "its content is another revision's", "another content than the source's"
            self.findings.append(Finding(DAMAGED, what, reason, WHOLE, file.path, feature, chunk))
        elif is_hub and not is_full:
            when = verified.checked_on(file.path)
            reason = f"it has changed since {when}" if when else "its hash was never checked"
            self.note[file.path] = f"{reason}; 02_download does, or dataset.audit: full"

    def file_rows(self, all_findings: Iterable[Finding]) -> list[dict[str, Any]]:
        """One row per file: path, feature, chunk, size, state, reason."""
        by_path = defaultdict[str, list[Finding]](list)
        for finding in all_findings:
            if finding.is_files:
                by_path[finding.path].append(finding)
        rows = []
        for path, (feature, chunk) in self.place.items():
            file_findings = by_path[path]
            reason = findings.reasons(file_findings) or self.note.get(path, "")
            state, reason = self.state.get(path, (findings.worst(file_findings) or SOUND, reason))
            size = self.remote[path].size if path in self.remote else 0
            rows.append((path, feature, chunk, size, state, reason))
        reason = "this run does not take it"
        rows += [(path, "", None, size, NOT_CHOSEN, reason) for path, size in self.others.items()]
        keys = ("path", "feature", "chunk", "size", "state", "reason")
        return [dict(zip(keys, row, strict=True)) for row in rows]

    def clip_rows(self, all_findings: Iterable[Finding]) -> list[dict[str, Any]]:
        """One row per clip of the chunks: clip_id, chunk, split, state, reason, features."""
        selection, features = self.selection, self.selection.features
        catalog, choice = selection.catalog, selection.choice
        grouped = defaultdict[tuple, list[Finding]](list)  # by feature and file, or clip
        for finding in all_findings:
            if finding.reach == WHOLE:  # chunks may share a file
                grouped[finding.feature, finding.path].append(finding)
            elif finding.clip_id:
                grouped[finding.feature, finding.clip_id].append(finding)
        rows = []
        for chunk in (*choice.chunks, *choice.passed):
            paths = {name: catalog.path(name, chunk) for name in features}
            having = {
                name: set(catalog.usable(chunk, [name])) if path in self.place else set()
                for name, path in paths.items()
            }
            for clip_id in catalog.clip_ids(chunk):
                states: dict[str, tuple[str, str]] = {}
                fault = catalog.clips.faults.get(clip_id)
                for name, path in paths.items():
                    faults = [*grouped[name, path], *grouped[name, clip_id]]
                    state, reason = findings.worst(faults) or SOUND, findings.reasons(faults)
                    if fault is not None:
                        state, reason = DAMAGED, fault
                    elif clip_id not in having[name]:
                        state, reason = ABSENT, OF_CLIPS[ABSENT]
                    elif path in self.state:
                        state = self.state[path][0]
                        reason = OF_CLIPS[state]
                    states[name] = state, reason
                is_usable = all(state != ABSENT for state, _ in states.values())
                is_taken = clip_id in self._chosen or chunk not in choice.chunks
                if fault is None and is_usable and not is_taken:
                    states = dict.fromkeys(features, (NOT_CHOSEN, ""))
                by_reason = defaultdict[str, list[str]](list)
                for name, (_, reason) in states.items():
                    by_reason[reason].append(name)
                reasons = [f"{', '.join(n)}: {reason}" for reason, n in by_reason.items() if reason]
                rows.append(
                    {
                        "clip_id": clip_id,
                        "chunk": chunk,
                        "split": catalog.split_of(clip_id),
                        "state": min((state for state, _ in states.values()), key=STATES.index),
                        "reason": "; ".join(reasons),
                        "features": {name: state for name, (state, _) in states.items()},
                    }
                )
        return rows


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, except in hidden folders, which hold state of downloads."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.relative_to(folder).parts[0].startswith("."):
            yield path


def unfinished(folder: Path) -> list[Path]:
    """Partial files of interrupted downloads in any folder below."""
    paths = {path for pattern in UNFINISHED for path in folder.rglob(pattern)}
    return sorted(paths | {path for path in (folder / PARTIALS).glob("*") if path.is_file()})
