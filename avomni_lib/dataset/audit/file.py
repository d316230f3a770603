"""One file of the data set, checked: from the outside, or whole, from its first byte to its last.

From the outside that is its name, size and table of contents; of calibration, its rows. A whole
file goes by in blocks: hash of the file, checksum of each member, and as soon as a member has gone
by, its own check, which finds it in the page cache. Memory does not grow with the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.dataset import calibration, cameras, checks
from avomni_lib.dataset.calibration import CalibrationTable
from avomni_lib.dataset.catalog import OBSTACLES
from avomni_lib.dataset.clip import columns
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.findings import DAMAGED, FILE, MEMBER, ODD, WHOLE, Finding
from avomni_lib.dataset.names import printable
from avomni_lib.dataset.stored_zip import (
    LOCAL_HEADER,
    ByteRange,
    Directory,
    behind_header,
    directory,
    is_stored,
    members,
)
from avomni_lib.errors import AvomniError

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
# Members without which 03 leaves a clip out. Labels of others may be lacking; the rest is not read.
NEEDED = ("video", "frame_timestamps", "egomotion")


@dataclass(frozen=True)
class FileJob:
    """A file of the disk, and what is expected of it.

    Attributes:
        folder: The data folder.
        path: Below it.
        size: Bytes, as the source lists it.
        sha256, blob_id: Of its content, where the source lists it or an earlier check read it.
        is_full: Whether its content is to be read.
        feature: Empty for metadata.
        chunk: None for metadata.
        members: (kind, template with {clip_id}) of a zip; empty for a table.
        clip_ids: The clips that must be in it.
        denied: The chunk's clips that have it not, as the source says.
        ignored: The chunk's clips that are marked as not valid: they may be in it.
        wanted: Of the clips, those whose content is looked at.
        cameras: Whose calibration is needed.
        beside: Clip -> facts about its cameras: `span_us` and `sizes`.
        horizon_s: Seconds of ego motion that are wanted after the video.
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

    @property
    def place(self) -> Path:
        return Path(self.folder) / self.path

    def names(self) -> dict[str, tuple[str, str]]:
        """Member -> (clip_id, kind) of all that a zip must hold."""
        return {
            template.format(clip_id=clip_id): (clip_id, kind)
            for clip_id in self.clip_ids
            for kind, template in self.members
        }


def look(job: FileJob) -> dict[str, Any]:
    """Everything that the checks find in a file, as plain values.

    Returns:
        `findings` (rows of `Finding`), `facts` (clip_id -> what was read of it), `sha256` (None
        where the content was not read) and `is_lost` (the look itself failed: False here).
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
                passed.to_end()
            findings += passed.verdict(findings)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        findings.append(Finding(DAMAGED, "the file cannot be read", reason, WHOLE))
    except Exception as error:
        # One file that nobody foresaw must not end the audit; the log keeps the traceback.
        log.exception("file %s", job.path)
        reason = f"cannot be read: {type(error).__name__}: {error}"
        findings.append(Finding(DAMAGED, "the file cannot be read", reason, WHOLE))
    place = {"path": job.path, "feature": job.feature, "chunk": job.chunk}
    return {
        "findings": [dataclasses.asdict(finding) | place for finding in findings],
        "facts": facts,
        "sha256": passed.sha256 if passed and passed.place == job.size else None,
        "is_lost": False,
    }


def outside(job: FileJob) -> list[Finding]:
    """What is wrong with a file from the outside; the findings bear no path yet."""
    size = job.place.stat().st_size
    if size != job.size:
        reason = f"{size:,} bytes in place of {job.size:,}"
        return [Finding(DAMAGED, "another size than the source's", reason, WHOLE)]
    try:
        if job.members:
            return list(_zip(job, directory(job.place)))
        if job.feature in calibration.TABLES:
            return list(_table(job))
    except AvomniError as error:
        return [Finding(DAMAGED, "the file does not open", error.what, WHOLE)]
    return []


def severity_of(kind: str) -> str:
    """What a fault of a member makes of its clip: some are read by no stage, or left out."""
    return DAMAGED if kind in NEEDED else ODD


def _zip(job: FileJob, held: Directory) -> Iterator[Finding]:
    expected = job.names()
    for name, (clip_id, kind) in sorted(expected.items()):
        if fault := held.fault(name):
            yield Finding(severity_of(kind), *fault, MEMBER, clip_id=clip_id)
    ignored, denied = set(job.ignored), set(job.denied)
    strangers = sorted(held.entries.keys() - expected.keys())
    strangers = [n for n in strangers if n.partition(".")[0] not in ignored]
    if unlisted := [n for n in strangers if n.partition(".")[0] in denied]:
        reason = f"holds a clip that should not have this feature: {_first(unlisted)}"
        yield Finding(ODD, "a member that presence denies", reason, FILE)
    if unknown := sorted(set(strangers) - set(unlisted)):
        reason = f"a member of no clip: {_first(unknown)}"
        yield Finding(ODD, "a member of no clip", reason, FILE)


def _table(job: FileJob) -> Iterator[Finding]:
    key, numbers = calibration.TABLES[job.feature]
    table = CalibrationTable(job.place, key, str(job.place))
    if lacking := [name for name in numbers if name not in table.column_names]:
        reason = f"no column {lacking[0]}{_more(lacking)}"
        yield Finding(DAMAGED, "a column is missing", reason, WHOLE)
    for clip_id in job.clip_ids:
        for sensor in calibration.sensors(job.feature, job.cameras):
            count = table.count(clip_id, sensor)
            if count != 1:
                of = f" of {sensor}" if sensor else ""
                reason = f"{job.feature} has {count or 'no'} row{'s' if count else ''}{of}"
                what = "rows that contradict" if count else "no row"
                yield Finding(DAMAGED, what, reason, MEMBER, clip_id=clip_id)
    if unknown := sorted(table.clip_ids - {None, *job.clip_ids, *job.denied, *job.ignored}):
        reason = f"a row of no clip: {_first(unknown)}"
        yield Finding(ODD, "a row of no clip", reason, FILE)


def _first(strangers: list[str]) -> str:
    return printable(strangers[0]) + _more(strangers)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


class _Pass:
    """A file on its way past, from front to back."""

    def __init__(self, file: Any, job: FileJob):
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self.path, self.place = job.place, 0
        self._file, self._job = file, job
        self._remote = RemoteFile(job.path, job.size, job.sha256, job.blob_id)
        self._hash = self._remote.new_hash()
        # Known of every file, also where the source knows it by git's id.
        self._sha256 = self._hash if self._hash.name == "sha256" else hashlib.sha256()
        self._buffer = memoryview(bytearray(BLOCK_BYTES))

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the file's end."""
        parts = []
        while count and (block := self._next(count)):
            parts.append(bytes(block))
            count -= len(block)
        return b"".join(parts)

    def crc32(self, count: int) -> int | None:
        """The checksum of the next bytes; None where the file ends before."""
        value = 0
        while count:
            block = self._next(count)
            if not block:
                return None
            value = zlib.crc32(block, value)
            count -= len(block)
        return value

    def to(self, place: int) -> bool:
        """Go on to a place; False where that lies behind."""
        if place < self.place:
            return False
        return self.crc32(place - self.place) is not None

    def to_end(self) -> None:
        while self._next(BLOCK_BYTES):
            pass

    def _next(self, count: int) -> memoryview:
        length = self._file.readinto(self._buffer[: min(count, BLOCK_BYTES)]) or 0
        block = self._buffer[:length]
        self._hash.update(block)
        if self._sha256 is not self._hash:
            self._sha256.update(block)
        self.place += length
        return block

    def verdict(self, findings: list[Finding]) -> list[Finding]:
        """Whether these were the source's bytes."""
        reason = self._remote.wrong(self.place, self._hash)
        if reason is None:
            return []
        # The members' own checksums show whose clip it is; a table has none.
        is_zip = self._job.members and not any(finding.reach == WHOLE for finding in findings)
        what = "another content than the source's"
        return [Finding(DAMAGED, what, reason, FILE if is_zip else WHOLE)]


def _read(job: FileJob, passed: _Pass, findings: list[Finding], facts: dict[str, dict]) -> None:
    if any(finding.reach == WHOLE for finding in findings):
        return
    if job.feature in calibration.TABLES:
        _read_table(job, passed.read(job.size), findings)
    elif job.members:
        held, names, wanted = members(job.place), job.names(), set(job.wanted)
        times: dict[str, dict[str, np.ndarray]] = {}
        for name, entry in sorted(held.items(), key=lambda item: item[1].header_offset):
            if is_stored(entry):
                clip_id, kind = names.get(name, ("", ""))
                part = _member(passed, name, entry, clip_id, severity_of(kind), findings)
                if part and clip_id in wanted:
                    kept = times.setdefault(clip_id, {})
                    of_clip, more = _content(job, kind, clip_id, part, kept)
                    facts.setdefault(clip_id, {}).update(of_clip)
                    _add(findings, clip_id, more)
        if job.feature in cameras.BY_NAME:
            for clip_id, of_clip in facts.items():
                _add(findings, clip_id, _agree(of_clip, times[clip_id]))


def _member(
    passed: _Pass,
    name: str,
    entry: zipfile.ZipInfo,
    clip_id: str,
    severity: str,
    findings: list[Finding],
) -> ByteRange | None:
    """Let a member go by: where it lies, or None where it is not what the directory says."""
    is_there = passed.to(entry.header_offset)
    skipped = behind_header(passed.read(LOCAL_HEADER.size)) if is_there else None
    if skipped is None:
        reason = f"no local header of {name}"
        findings.append(Finding(severity, "no local header", reason, MEMBER, clip_id=clip_id))
        return None
    passed.read(skipped)
    part = ByteRange(passed.path, passed.place, entry.file_size)
    crc32 = passed.crc32(entry.file_size)
    if crc32 == entry.CRC:
        return part
    reason = f"{name} is damaged: " + ("cut short" if crc32 is None else "its checksum is wrong")
    findings.append(Finding(severity, "wrong checksum", reason, MEMBER, clip_id=clip_id))
    return None


def _add(findings: list[Finding], clip_id: str, more: list[Finding]) -> None:
    findings += [dataclasses.replace(finding, clip_id=clip_id) for finding in more]


def _agree(facts: Mapping[str, Any], times: Mapping[str, np.ndarray]) -> list[Finding]:
    """A camera's video against its clock, where both could be read."""
    if times.keys() < {"video", "frame_timestamps"}:
        return []
    return checks.agree(times["video"], times["frame_timestamps"], facts["tick_us"])


def _content(
    job: FileJob, kind: str, clip_id: str, part: ByteRange, times: dict[str, np.ndarray]
) -> tuple[dict[str, Any], list[Finding]]:
    """Facts and findings of one member of one clip; `times` gets those of a video or a clock."""
    severity = severity_of(kind)
    try:
        if kind == "video":
            walked = checks.video(part)
            if walked.facts:
                times[kind] = walked.times_us
            return walked.facts, walked.findings
        if kind in ("frame_timestamps", "egomotion", OBSTACLES):
            held = columns(kind, part.read(), job.path)
        if kind == "frame_timestamps":
            times[kind] = held
            return checks.clock(held)
        if kind == "egomotion":
            first_us, last_us = job.beside.get(clip_id, {}).get("span_us", (0, 0))
            return checks.egomotion(held, first_us, last_us, job.horizon_s)
    except AvomniError as error:
        what = f"the table of {kind} is not as agreed"
        return {}, [Finding(severity, what, f"{kind}: {error.what}")]
    except Exception as error:
        log.exception("%s of clip %s", kind, clip_id)
        reason = f"{kind}: {type(error).__name__}: {error}"
        return {}, [Finding(severity, f"{kind} cannot be read", reason)]
    return {}, []


def _read_table(job: FileJob, content: bytes, findings: list[Finding]) -> None:
    try:
        table = CalibrationTable(content, calibration.TABLES[job.feature][0], job.path)
    except AvomniError as error:
        findings.append(Finding(DAMAGED, "the file does not open", error.what, WHOLE))
        return
    for clip_id in job.wanted:
        sizes = job.beside.get(clip_id, {}).get("sizes", {})
        for sensor in calibration.sensors(job.feature, job.cameras):
            values = table.row(clip_id, sensor)
            if values is not None:
                name, size = sensor or "vehicle", sizes.get(sensor)
                _add(findings, clip_id, list(calibration.row(job.feature, name, values, size)))
