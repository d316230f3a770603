"""One chunk's file read whole, once, from its first byte to its last.

The bytes go by in blocks: hash of the file, checksum of each member, and as soon as a member has
gone by, its own check, which finds it in the page cache. Memory does not grow with the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.dataset import cameras, checks, clocks, limits, motion, obstacles, streams
from avomni_lib.dataset.audit import calibration
from avomni_lib.dataset.audit.findings import DAMAGED, FILE, MEMBER, ODD, WHOLE, Finding
from avomni_lib.dataset.catalog import OBSTACLES
from avomni_lib.dataset.checks import Job
from avomni_lib.dataset.clip import EGOMOTION_COLUMNS, CalibrationTable, motion_columns
from avomni_lib.dataset.stored_zip import (
    LOCAL_HEADER,
    ByteRange,
    behind_header,
    is_stored,
    member,
    members,
)
from avomni_lib.dataset.tables import read_table, time_column
from avomni_lib.errors import AvomniError

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
OFFLINE_COLUMNS = ("timestamp", "x", "y", "z")


def look(job: Job) -> dict[str, Any]:
    """All that can be told of a file, as plain values.

    Returns:
        `findings` (rows of `Finding`), `facts` (clip_id -> what was read of it), `sha256` (None
        where the content was not read) and `is_lost` (the look itself failed: False here).
    """
    found: list[Finding] = []
    facts: dict[str, dict[str, Any]] = {}
    passed = None
    try:
        found += checks.file(job)
        if job.is_full and job.place.stat().st_size == job.size:
            with open(job.place, "rb", buffering=0) as file:
                passed = _Pass(file, job)
                _read(job, passed, found, facts)
                passed.to_end()
            found += passed.verdict(found)
    except OSError as error:
        told = f"cannot be read: {error.strerror or error}"
        found.append(Finding(DAMAGED, "the file cannot be read", told, WHOLE))
    except Exception as error:
        # One file that nobody foresaw must not end the audit; the log keeps the traceback.
        log.exception("file %s", job.path)
        told = f"cannot be read: {type(error).__name__}: {error}"
        found.append(Finding(DAMAGED, "the file cannot be read", told, WHOLE))
    place = {"path": job.path, "feature": job.feature, "chunk": job.chunk}
    return {
        "findings": [dataclasses.asdict(finding) | place for finding in found],
        "facts": facts,
        "sha256": passed.sha256 if passed and passed.place == job.size else None,
        "is_lost": False,
    }


class _Pass:
    """A file on its way past, from front to back."""

    def __init__(self, file: Any, job: Job):
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self.path, self.place = job.place, 0
        self._file, self._job = file, job
        self._sha256 = hashlib.sha256()
        # Git's id, which the hub gives for small files: remote.git_blob_id.
        self._git = hashlib.sha1(b"blob %d\0" % job.size)
        self._needs_git = bool(job.blob_id and not job.sha256)
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
        self._sha256.update(block)
        if self._needs_git:
            self._git.update(block)
        self.place += length
        return block

    def verdict(self, found: list[Finding]) -> list[Finding]:
        """Whether these were the source's bytes."""
        job = self._job
        if job.sha256 and self.sha256 != job.sha256:
            told = "its sha256 is wrong"
        elif self._needs_git and self._git.hexdigest() != job.blob_id:
            told = "its git blob id is wrong"
        else:
            return []
        # The members' own checksums tell whose clip it is; a table has none.
        is_zip = job.members and not any(finding.reach == WHOLE for finding in found)
        what = "another content than the source's"
        return [Finding(DAMAGED, what, told, FILE if is_zip else WHOLE)]


def _read(job: Job, passed: _Pass, found: list[Finding], facts: dict[str, dict]) -> None:
    if any(finding.reach == WHOLE for finding in found):
        return
    if job.feature in calibration.TABLES:
        _read_table(job, passed.read(job.size), found)
    elif job.members:
        held, names, wanted = members(job.place), job.names(), set(job.wanted)
        times: dict[str, dict[str, np.ndarray]] = {}
        for name, entry in sorted(held.items(), key=lambda item: item[1].header_offset):
            if is_stored(entry):
                clip_id, kind = names.get(name, ("", ""))
                part = _member(passed, name, entry, clip_id, checks.severity_of(kind), found)
                if part and clip_id in wanted:
                    kept = times.setdefault(clip_id, {})
                    told, more = _content(job, kind, clip_id, part, kept)
                    facts.setdefault(clip_id, {}).update(told)
                    _add(found, clip_id, more)
        if job.feature in cameras.BY_NAME:
            for clip_id, told in facts.items():
                _add(found, clip_id, [*_agree(told, times[clip_id]), *streams.rate(told)])


def _member(
    passed: _Pass,
    name: str,
    entry: zipfile.ZipInfo,
    clip_id: str,
    severity: str,
    found: list[Finding],
) -> ByteRange | None:
    """Let a member go by: where it lies, or None where it is not what the directory says."""
    is_there = passed.to(entry.header_offset)
    skipped = behind_header(passed.read(LOCAL_HEADER.size)) if is_there else None
    if skipped is None:
        told = f"no local header of {name}"
        found.append(Finding(severity, "no local header", told, MEMBER, clip_id=clip_id))
        return None
    passed.read(skipped)
    part = ByteRange(passed.path, passed.place, entry.file_size)
    crc32 = passed.crc32(entry.file_size)
    if crc32 == entry.CRC:
        return part
    told = f"{name} is damaged: " + ("cut short" if crc32 is None else "its checksum is wrong")
    found.append(Finding(severity, "wrong checksum", told, MEMBER, clip_id=clip_id))
    return None


def _add(found: list[Finding], clip_id: str, more: list[Finding]) -> None:
    found += [dataclasses.replace(finding, clip_id=clip_id) for finding in more]


def _agree(facts: Mapping[str, Any], times: Mapping[str, np.ndarray]) -> list[Finding]:
    """A camera's video against its clock, where both could be read."""
    if times.keys() < {"video", "frame_timestamps"}:
        return []
    return clocks.agree(times["video"], times["frame_timestamps"], facts["tick_us"])


def _content(
    job: Job, kind: str, clip_id: str, part: ByteRange, times: dict[str, np.ndarray]
) -> tuple[dict[str, Any], list[Finding]]:
    """Facts and findings of one member of one clip; `times` gets those of a video or a clock."""
    severity = checks.severity_of(kind)
    try:
        if kind == "video":
            walked = streams.walk(part)
            if walked.facts:
                times[kind] = walked.times_us
            return walked.facts, walked.findings
        if kind in ("frame_timestamps", "egomotion", OBSTACLES):
            table = read_table(part.read(), job.path, max_rows=limits.MAX_ROWS)
        if kind == "frame_timestamps":
            times[kind] = time_column(table, "timestamp", job.path)
            return clocks.check(times[kind])
        if kind == "egomotion":
            return _motion(job, clip_id, motion_columns(table, EGOMOTION_COLUMNS, job.path))
        if kind == OBSTACLES:
            obstacles.columns(table, job.path)
    except AvomniError as error:
        what = f"the table of {kind} is not as agreed"
        return {}, [Finding(severity, what, f"{kind}: {error.what}")]
    except Exception as error:
        log.exception("%s of clip %s", kind, clip_id)
        told = f"{kind}: {type(error).__name__}: {error}"
        return {}, [Finding(severity, f"{kind} cannot be read", told)]
    return {}, []


def _motion(
    job: Job, clip_id: str, columns: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], list[Finding]]:
    first_us, last_us = job.beside.get(clip_id, {}).get("span_us", (0, 0))
    facts, found = motion.check(columns, first_us, last_us, job.horizon_s)
    if job.offline and not any(finding.severity == DAMAGED for finding in found):
        path, template = job.offline
        try:
            part = member(Path(job.folder) / path, template.format(clip_id=clip_id))
            table = read_table(part.read(), path, max_rows=limits.MAX_ROWS)
            refined = motion_columns(table, OFFLINE_COLUMNS, path)
        except AvomniError as error:
            told = Finding(ODD, "offline cannot be compared", f"egomotion.offline: {error.what}")
            return facts, [*found, told]
        more_facts, more = motion.offline(columns, refined)
        return facts | more_facts, [*found, *more]
    return facts, found


def _read_table(job: Job, content: bytes, found: list[Finding]) -> None:
    try:
        table = CalibrationTable(content, calibration.TABLES[job.feature][0], job.path)
    except AvomniError as error:
        found.append(Finding(DAMAGED, "the file does not open", error.what, WHOLE))
        return
    for clip_id in job.wanted:
        sizes = job.beside.get(clip_id, {}).get("sizes", {})
        for sensor in calibration.sensors(job.feature, job.cameras):
            values = table.row(clip_id, sensor)
            if values is not None:
                name, size = sensor or "vehicle", sizes.get(sensor)
                _add(found, clip_id, list(calibration.row(job.feature, name, values, size)))
