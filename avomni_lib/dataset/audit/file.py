"""Checks of one file of the data set: from the outside, or of all its bytes.

The outside check covers name, size and table of contents; for calibration, also the rows. A full
check reads the file in blocks and computes its hash and each member's checksum; a member is checked
as soon as it has been read, while it is in the page cache. Memory does not grow with the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.dataset import calibration, checks
from avomni_lib.dataset.calibration import CalibrationTable
from avomni_lib.dataset.catalog import OBSTACLES
from avomni_lib.dataset.clip import columns
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.findings import DAMAGED, FILE, MEMBER, ODD, WHOLE, Finding
from avomni_lib.dataset.names import printable
from avomni_lib.dataset.stored_zip import (
    LOCAL_HEADER,
    ByteRange,
    behind_header,
    directory,
    is_stored,
)
from avomni_lib.errors import AvomniError

log = logging.getLogger(__name__)

# Members without which 03_etl leaves a clip out. Labels of other road users are optional; other
# members are not read.
NEEDED = ("video", "frame_timestamps", "egomotion")


@dataclass(frozen=True)
class FileJob:
    """A file on the disk, and its expected content.

    Attributes:
        path: Path below `folder`.
        size, sha256, blob_id: As listed by the source, or known from an earlier check.
        is_full: Whether to read its content.
        feature, chunk: Empty and None for metadata.
        members: (kind, template with {clip_id}) of a zip; empty for a table.
        clip_ids: The clips that must be in it.
        denied: The chunk's clips that do not have the feature according to the source.
        ignored: The chunk's clips that are marked as invalid and may be in it.
        wanted: The clips whose content is checked.
        cameras: The cameras whose calibration is needed.
        beside: Clip -> facts about its cameras: `span_us` and `sizes`.
        horizon_s: Seconds of ego motion needed after the video.
        parts: Parts that check the wanted clips if the file is not in the data set's layout.
    """

    folder: str
    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None
    is_full: bool = False
    feature: str = ""
    chunk: int | None = None
    members: tuple[tuple[str, str], ...] = ()
    clip_ids: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    horizon_s: float = 0.0
    parts: tuple[Any, ...] = ()

    @property
    def place(self) -> Path:
        return Path(self.folder) / self.path

    def names(self) -> dict[str, tuple[str, str]]:
        """Member -> (clip_id, kind) for all members that a zip must have."""
        return {
            template.format(clip_id=clip_id): (clip_id, kind)
            for clip_id in self.clip_ids
            for kind, template in self.members
        }


def look(job: FileJob) -> dict[str, Any]:
    """Check a file; returns plain values.

    Returns:
        `findings` (rows of `Finding`), `facts` (clip_id -> facts), `sha256` (None if the content
        was not read) and `is_lost` (whether the check itself failed; always False here).
    """
    findings: list[Finding] = []
    facts: dict[str, dict[str, Any]] = {}
    passed = None
    try:
        findings += outside(job)
        if job.is_full and job.place.stat().st_size == job.size:
            with open(job.place, "rb", buffering=0) as file:
                passed = _Pass(file, job)
                _read(job, passed, findings, facts)
            if reason := passed.remote.wrong(passed.place, passed.hash):
                # A zip's members have checksums of their own, which show which clips are damaged.
                is_zip = job.members and not any(f.reach == WHOLE for f in findings)
                what = "another content than the source's"
                findings.append(Finding(DAMAGED, what, reason, FILE if is_zip else WHOLE))
    except Exception as error:
        # An unforeseen error in one file must not end the audit; the traceback is logged.
        why: object = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError):
            why = error.strerror or error
        else:
            log.exception("file %s", job.path)
        reason = f"cannot be read: {why}"
        findings.append(Finding(DAMAGED, "the file cannot be read", reason, WHOLE))
    place = {"path": job.path, "feature": job.feature, "chunk": job.chunk}
    return {
        "findings": [dataclasses.asdict(finding) | place for finding in findings],
        "facts": facts,
        "sha256": passed.sha256.hexdigest() if passed and passed.place == job.size else None,
        "is_lost": False,
    }


def outside(job: FileJob) -> list[Finding]:
    """Check a file from the outside; findings have no path yet."""
    size = job.place.stat().st_size
    if size != job.size:
        reason = f"{size:,} bytes in place of {job.size:,}"
        return [Finding(DAMAGED, "another size than the source's", reason, WHOLE)]
    try:
        if job.members:
            return list(_zip(job))
        if job.feature in calibration.TABLES:
            return list(_table(job))
    except AvomniError as error:
        return [Finding(DAMAGED, "the file does not open", error.what, WHOLE)]
    return []


def severity_of(kind: str) -> str:
    """Severity for the clip of a fault in a member: some members are optional or never read."""
    return DAMAGED if kind in NEEDED else ODD


def _zip(job: FileJob) -> Iterator[Finding]:
    listed, expected = directory(job.place), job.names()
    for name, (clip_id, kind) in sorted(expected.items()):
        if fault := listed.fault(name):
            yield Finding(severity_of(kind), *fault, MEMBER, clip_id=clip_id)
    strangers = {name: name.partition(".")[0] for name in listed.entries if name not in expected}
    denied = [name for name, clip_id in strangers.items() if clip_id in job.denied]
    known = {*job.denied, *job.ignored}
    unknown = [name for name, clip_id in strangers.items() if clip_id not in known]
    if denied:
        reason = f"holds a clip that should not have this feature: {_first(denied)}"
        yield Finding(ODD, "a member that presence denies", reason, FILE)
    if unknown:
        yield Finding(ODD, "a member of no clip", f"a member of no clip: {_first(unknown)}", FILE)


def _table(job: FileJob) -> Iterator[Finding]:
    key, numbers = calibration.TABLES[job.feature]
    table = CalibrationTable(job.place, key, str(job.place))
    absent = [name for name in numbers if name not in table.column_names]
    if absent:
        yield Finding(DAMAGED, "a column is missing", f"no column {absent[0]}", WHOLE)
    looked_at = set(job.wanted) if job.is_full and not absent else set()
    for clip_id in job.clip_ids:
        sizes = job.beside.get(clip_id, {}).get("sizes", {})
        for sensor in job.cameras if key else (None,):
            if fault := table.fault(clip_id, sensor):
                reason = f"{job.feature} {fault[1]}"
                yield Finding(DAMAGED, fault[0], reason, MEMBER, clip_id=clip_id)
            elif clip_id in looked_at:
                values, size = table.row(clip_id, sensor), sizes.get(sensor)
                for finding in calibration.row(job.feature, sensor or "vehicle", values, size):
                    yield dataclasses.replace(finding, clip_id=clip_id)
    if unknown := table.clip_ids - {None, *job.clip_ids, *job.denied, *job.ignored}:
        yield Finding(ODD, "a row of no clip", f"a row of no clip: {_first(unknown)}", FILE)


def _first(strangers: Iterable[str]) -> str:
    first, *others = sorted(strangers)
    return printable(first) + (f" and {len(others)} more" if others else "")


class _Pass:
    """Sequential reading of a file, which updates its hashes."""

    def __init__(self, file: Any, job: FileJob):
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._file, self.place = file, 0
        self.remote = RemoteFile(job.path, job.size, job.sha256, job.blob_id)
        self.hash = self.remote.new_hash()
        # The sha256 is always computed, even if the source only lists git's blob id.
        self.sha256 = self.hash if self.hash.name == "sha256" else hashlib.sha256()
        self._buffer = memoryview(bytearray(files.BLOCK_BYTES))

    def blocks(self, count: float = math.inf) -> Iterator[memoryview]:
        """Yield up to `count` bytes in blocks; a block is valid until the next one is read."""
        while count > 0:
            length = self._file.readinto(self._buffer[: min(count, files.BLOCK_BYTES)])
            if not length:
                return
            for digest in {self.hash, self.sha256}:
                digest.update(self._buffer[:length])
            self.place += length
            count -= length
            yield self._buffer[:length]

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the file's end."""
        return b"".join(map(bytes, self.blocks(count)))


def _read(job: FileJob, passed: _Pass, findings: list[Finding], facts: dict[str, dict]) -> None:
    """Read a whole file and check its members."""
    if any(finding.reach == WHOLE for finding in findings):
        pass
    elif job.members:
        names, wanted = job.names(), set(job.wanted)
        times: dict[str, dict[str, np.ndarray]] = {}
        entries = directory(job.place).entries.items()
        for name, entry in sorted(entries, key=lambda item: item[1].header_offset):
            if is_stored(entry):
                clip_id, kind = names.get(name, ("", ""))
                part = _member(passed, job.place, entry)
                if not isinstance(part, ByteRange):
                    _add(findings, clip_id, [Finding(severity_of(kind), *part, MEMBER)])
                elif clip_id in wanted:
                    kept = times.setdefault(clip_id, {})
                    clip_facts, more = _content(job, kind, clip_id, part, kept)
                    facts.setdefault(clip_id, {}).update(clip_facts)
                    _add(findings, clip_id, more)
        for clip_id, kept in times.items():
            if kept.keys() >= {"video", "frame_timestamps"}:
                tick_us = facts[clip_id]["tick_us"]
                more = checks.agree(kept["video"], kept["frame_timestamps"], tick_us)
                _add(findings, clip_id, more)
    elif job.parts:
        for _ in passed.blocks():
            pass
        for part in job.parts:
            beside = job.beside.get(part.clip_id, {})
            facts[part.clip_id], more = part.look(job.feature, job.place, beside, job.horizon_s)
            _add(findings, part.clip_id, more)
    for _ in passed.blocks():
        pass


def _member(passed: _Pass, path: Path, entry: zipfile.ZipInfo) -> ByteRange | tuple[str, str]:
    """Read past a member; returns its byte range, or (kind, reason) if it is damaged."""
    for _ in passed.blocks(entry.header_offset - passed.place):
        pass
    is_there = passed.place == entry.header_offset
    skipped = behind_header(passed.read(LOCAL_HEADER.size)) if is_there else None
    if skipped is None:
        return "no local header", f"no local header of {entry.filename}"
    passed.read(skipped)
    part, crc32 = ByteRange(path, passed.place, entry.file_size), 0
    for block in passed.blocks(entry.file_size):
        crc32 = zlib.crc32(block, crc32)
    if passed.place == part.offset + part.length and crc32 == entry.CRC:
        return part
    how = "cut short" if passed.place < part.offset + part.length else "its checksum is wrong"
    return "wrong checksum", f"{entry.filename} is damaged: {how}"


def _add(findings: list[Finding], clip_id: str, more: Iterable[Finding]) -> None:
    findings += [dataclasses.replace(finding, clip_id=clip_id) for finding in more]


def _content(
    job: FileJob, kind: str, clip_id: str, part: ByteRange, times: dict[str, np.ndarray]
) -> tuple[dict[str, Any], list[Finding]]:
    """Facts and findings of a clip's member; adds the times of a video or clock to `times`."""
    severity = severity_of(kind)
    try:
        if kind == "video":
            walked = checks.video(part)
            if walked.facts:
                times[kind] = walked.times_us
            return walked.facts, walked.findings
        if kind in ("frame_timestamps", "egomotion", OBSTACLES):
            table = columns(kind, part.read(), job.path)
        if kind == "frame_timestamps":
            times[kind] = table
            return checks.clock(table)
        if kind == "egomotion":
            first_us, last_us = job.beside.get(clip_id, {}).get("span_us", (0, 0))
            return checks.egomotion(table, first_us, last_us, job.horizon_s)
    except AvomniError as error:
        what = f"the table of {kind} is not as agreed"
        return {}, [Finding(severity, what, f"{kind}: {error.what}")]
    except Exception as error:
        log.exception("%s of clip %s", kind, clip_id)
        reason = f"{kind}: {type(error).__name__}: {error}"
        return {}, [Finding(severity, f"{kind} cannot be read", reason)]
    return {}, []
