"""The audit: what the source holds, what is on the disk, what is missing or damaged and why."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.dataset import checks, rig
from avomni_lib.dataset.catalog import SPLITS, Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.hub import Hub
from avomni_lib.dataset.remote import RemoteFile
from avomni_lib.dataset.selection import (
    Selection,
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
from avomni_lib.plan import Bar, Plan, gigabytes

# The states of a file, and of one feature of one clip.
SOUND, DAMAGED, MISSING, ABSENT = "sound", "damaged", "missing", "absent"
NOT_CHOSEN = "not chosen"
# From bad to good: a clip is as its worst feature.
STATES = (DAMAGED, ABSENT, MISSING, SOUND)
LICENSE_DAYS, REMIND_DAYS = 365, 30


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        features: What a clip must have; the columns of the picture.
        files: One row a file: path, feature, chunk, size (bytes), state, reason.
        clips: One row a clip of the chunks that were looked at: clip_id, chunk, split, state,
            reason, and `features`: feature -> state. `absent` is not on the source, `missing` not
            on the disk.
        figures: Counts and bytes.
        warnings: Sentences to read.
        digest: Changes with the source and the choice, not with what is on the disk.
    """

    features: tuple[str, ...]
    files: list[dict[str, Any]] = field(repr=False)
    clips: list[dict[str, Any]] = field(repr=False)
    figures: dict[str, Any]
    warnings: list[str]
    digest: str

    @property
    def states(self) -> np.ndarray:
        """(features, clips) of words, the rows and columns of the picture."""
        columns = [[row["features"][name] for name in self.features] for row in self.clips]
        return np.array(columns, object).reshape(len(self.clips), len(self.features)).T

    @property
    def clip_ids(self) -> list[str]:
        return [row["clip_id"] for row in self.clips]

    def bytes_by_feature(self, *states: str) -> dict[str, int]:
        """Feature -> bytes of its files in one of these states; the metadata are one too."""
        total: dict[str, int] = {}
        for row in self.files:
            if row["state"] in states:
                name = row["feature"] or "metadata"
                total[name] = total.get(name, 0) + row["size"]
        return total


def plan(p: Params, hub: Hub | None) -> Plan:
    """What `audit` would look at; asks nothing of the hub."""
    on_disk = list(_files_below(p.local_dir))
    num_bytes = sum(path.stat().st_size for path in on_disk)
    question = license_question(p)
    revision = f"revision {(hub.revision or 'main')[:12]}" if hub else "as it lies there"
    rows = [
        ("source", source_in_words(p), revision),
        ("on the disk", f"{len(on_disk)} files", f"{gigabytes(num_bytes)} in {p.local_dir}"),
        ("reads", "headers, tables and clocks", "no picture; a file that changed is hashed"),
        ("fetches", "the metadata" if hub else "nothing", "34 MB of the real set" if hub else ""),
    ]
    warnings = [f"it stops before you decide: {question}"] if question else []
    figures = {"num_files_on_disk": len(on_disk), "bytes_on_disk": num_bytes}
    return Plan("Audit", rows, warnings, figures)


def audit(p: Params, hub: Hub | None, progress: type[Bar] = Bar) -> Audit:
    """Look at every file and clip of the chunks that the run takes. One bad clip is a row.

    Args:
        hub: None for `dataset.source: folder`.

    Raises:
        AvomniError: as `download.plan`, and where the licence is not decided on.
    """
    need_license(p)
    need_folder(p)
    hub = pinned(p, hub)
    with hold(p.local_dir):
        verified = Verified(p.local_dir)
        selection = select(p, hub, verified)
        file_rows = _file_rows(p.local_dir, hub, selection, verified)
        verified.save()
    state_of = {row["path"]: row["state"] for row in file_rows}
    catalog, codecs = selection.catalog, Counter[str]()
    chunks = (*selection.choice.chunks, *selection.choice.passed)
    clip_ids = [clip_id for chunk in chunks for clip_id in catalog.clip_ids(chunk)]
    clip_rows = []
    with progress(total=len(clip_ids), unit="clip", label="Audit") as bar:
        for clip_id in clip_ids:
            clip_rows.append(_clip_row(clip_id, selection, p.local_dir, state_of, codecs))
            bar.update(1)
    figures = _figures(selection, file_rows, clip_rows, codecs)
    oldest, warnings = _license_age(p, state_of, verified)
    figures |= {"revision": hub.commit if hub else None, "oldest_file": oldest}
    for state in (DAMAGED, ABSENT):
        if figures["clips_by_state"][state]:
            count = figures["clips_by_state"][state]
            warnings.append(f"clips that are {state}: {count}; see the table")
    digest = files.hash_json([figures["revision"], selection.choice.chunks, selection.clip_ids])
    return Audit(selection.features, file_rows, clip_rows, figures, warnings, digest)


def _file_rows(
    folder: Path, hub: Hub | None, selection: Selection, verified: Verified
) -> list[dict[str, Any]]:
    catalog = selection.catalog
    listed = {file.path: file for file in selection.files}
    place: dict[str, tuple[str, int | None]] = dict.fromkeys(listed, ("", None))
    chunks = (*selection.choice.chunks, *selection.choice.passed)
    for chunk in chunks:
        for feature in selection.features:
            for path in catalog.files([chunk], [feature]):
                place[path] = (feature, chunk)
    unlisted = [path for path in place if path not in listed]
    if hub and unlisted:
        listed |= hub.sizes(unlisted)
    elif unlisted:
        sizes = {path: folder / path for path in unlisted if (folder / path).is_file()}
        listed |= {path: RemoteFile(path, file.stat().st_size) for path, file in sizes.items()}
    rows = []
    for path, (feature, chunk) in place.items():
        remote = listed.get(path)
        state, reason = _file_state(folder, remote, path, hub, verified)
        if state == SOUND and feature:
            fault = checks.chunk_file(folder / path, catalog.features[feature], catalog, chunk)
            state, reason = (DAMAGED, fault) if fault else (state, reason)
        size = remote.size if remote else 0
        rows.append(_row(path, feature, chunk, size, state, reason))
    for file in _files_below(folder):
        path = file.relative_to(folder).as_posix()
        if path not in place:
            size = file.stat().st_size
            rows.append(_row(path, "", None, size, NOT_CHOSEN, "this run does not take it"))
    return rows


def _row(path: str, feature: str, chunk: int | None, size: int, state: str, reason: str) -> dict:
    keys = ("path", "feature", "chunk", "size", "state", "reason")
    return dict(zip(keys, (path, feature, chunk, size, state, reason), strict=True))


def _file_state(
    folder: Path, remote: RemoteFile | None, path: str, hub: Hub | None, verified: Verified
) -> tuple[str, str]:
    if remote is None:
        return (ABSENT, "the source does not list it") if hub else (MISSING, "not in the folder")
    if not (folder / path).is_file():
        return MISSING, "not on the disk; 02_download fetches it"
    if verified.known(remote):
        return SOUND, ""
    size = (folder / path).stat().st_size
    if size != remote.size:
        return DAMAGED, f"{size:,} bytes in place of {remote.size:,}"
    if verified.checked_on(path) is None:
        return SOUND, "its hash was never checked; 02_download does" if hub else ""
    # It was whole once and has been touched since, or belongs to another revision.
    wrong = verified.find(remote)
    return (DAMAGED, wrong) if wrong else (SOUND, "")


def _clip_row(
    clip_id: str, selection: Selection, folder: Path, state_of: dict[str, str], codecs: Counter[str]
) -> dict[str, Any]:
    catalog = selection.catalog
    clip = Clip(folder, catalog, clip_id)
    states: dict[str, str] = {}
    reasons: list[str] = []
    spans: list[int] = []
    # Cameras come first among the features: ego motion has to cover their span.
    for feature in selection.features:
        file_state = state_of.get(catalog.path(feature, clip.chunk), ABSENT)
        if not catalog.present(clip_id, feature) or file_state == ABSENT:
            state, reason = ABSENT, "not on the source"
        elif file_state == MISSING:
            state, reason = MISSING, "not on the disk"
        else:
            is_suspect = file_state == DAMAGED
            state, reason = _feature_state(clip, feature, selection, spans, codecs, is_suspect)
        states[feature] = state
        if reason:
            reasons.append(f"{feature}: {reason}")
    worst = min(states.values(), key=STATES.index)
    return {
        "clip_id": clip_id,
        "chunk": clip.chunk,
        "split": catalog.split_of(clip_id),
        "state": worst,
        "reason": "; ".join(_grouped(reasons)),
        "features": states,
    }


def _feature_state(
    clip: Clip,
    feature: str,
    selection: Selection,
    spans: list[int],
    codecs: Counter[str],
    is_suspect: bool,
) -> tuple[str, str]:
    cameras = [name for name in selection.features if name in rig.BY_NAME]
    try:
        if feature in rig.BY_NAME:
            times, codec = checks.camera(clip, feature)
            if is_suspect:
                # The file has a wrong hash: the members' own checksums tell whose clip it is.
                clip.video(feature).read()
            spans += [int(times[0]), int(times[-1])]
            codecs[codec] += 1
        elif feature == "egomotion":
            checks.egomotion(clip, min(spans, default=0), max(spans, default=0))
        else:
            checks.calibration(clip, feature, cameras)
    except AvomniError as error:
        return DAMAGED, error.what
    return SOUND, ""


def _grouped(reasons: list[str]) -> list[str]:
    """One sentence for features that share a reason."""
    by_reason: dict[str, list[str]] = {}
    for line in reasons:
        feature, _, reason = line.partition(": ")
        by_reason.setdefault(reason, []).append(feature)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _figures(
    selection: Selection, file_rows: list[dict], clip_rows: list[dict], codecs: Counter[str]
) -> dict[str, Any]:
    catalog: Catalog = selection.catalog
    num_files, num_bytes = Counter[str](), Counter[str]()
    for row in file_rows:
        num_files[row["state"]] += 1
        num_bytes[row["state"]] += row["size"]
    clips = Counter(row["state"] for row in clip_rows)
    return {
        "source": {
            "num_chunks": len(catalog.chunks),
            "num_clips": len(catalog.clip_ids()),
            "num_features": len(catalog.features),
            "clips_by_split": {split: len(catalog.clip_ids(split=split)) for split in SPLITS},
        },
        "num_chunks": len(selection.choice.chunks),
        "reason": selection.choice.reason,
        "num_clips": selection.num_clips,
        "clips_by_split": {split: len(ids) for split, ids in selection.clip_ids.items()},
        "num_files": len(selection.files),
        "bytes": selection.num_bytes,
        "bytes_to_fetch": num_bytes[MISSING] + num_bytes[DAMAGED],
        "files_by_state": {state: num_files[state] for state in (*STATES, NOT_CHOSEN)},
        "clips_by_state": {state: clips[state] for state in STATES},
        "codecs": dict(codecs),
    }


def _license_age(
    p: Params, paths: Iterable[str], verified: Verified
) -> tuple[str | None, list[str]]:
    """The day of the oldest file, and a reminder before the licence of real data ends."""
    days = [day for path in paths if (day := verified.checked_on(path))]
    oldest = min(days, default=None)
    if oldest is None or p.dataset.source != "hub":
        return oldest, []
    age = (datetime.date.today() - datetime.date.fromisoformat(oldest)).days
    if age < LICENSE_DAYS - REMIND_DAYS:
        return oldest, []
    return oldest, [
        f"the oldest file is {age} days old: the licence ends 12 months after the download, "
        "and all copies are to be destroyed then; read it again"
    ]


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.relative_to(folder).parts[0].startswith("."):
            yield path
