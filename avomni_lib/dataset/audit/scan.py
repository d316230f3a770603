"""Checks all files of an audit in parallel; resumable after an interruption.

The cameras' zips come first, as ego motion and calibration are compared with their times and sizes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.dataset import cameras, checks
from avomni_lib.dataset.audit.file import FileJob, look
from avomni_lib.dataset.findings import ODD, WHOLE, Finding
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar
from avomni_lib.workers import WAIT, Wait, run_jobs

# Version of the checks; records of older versions are not used.
VERSION = 4
# Up to this many files, quick checks are faster than starting worker processes.
NUM_AT_ONCE = 64
SLOWEST_BYTES_PER_S = 1e6  # of a disk, if nothing hangs


class FileScan:
    """Checks of files: findings, and facts about their clips.

    Attributes:
        jobs: One per file; `FileJob.beside` is filled in here, except for cameras.
        records: Folder for the outcomes so far.
        outcomes: Path -> result of `file.look`.
        state: Path -> size and modification time (ns) before the check.
        num_kept: Number of files already checked by an interrupted audit.
    """

    def __init__(self, jobs: Sequence[FileJob], records: Path):
        self.jobs, self.records, self.num_kept = jobs, records, 0
        self.outcomes: dict[str, Mapping[str, Any]] = {}
        self.state: dict[str, tuple[int, int] | None] = {}

    @property
    def findings(self) -> list[Finding]:
        """All findings, in the order of the jobs."""
        rows = (row for job in self.jobs for row in self.outcomes[job.path]["findings"])
        return [Finding(**row) for row in rows]

    @property
    def facts(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Feature -> clip_id -> facts."""
        facts: dict[str, dict[str, dict[str, Any]]] = {}
        for job in self.jobs:
            if job.path in self.outcomes:
                facts.setdefault(job.feature, {}).update(self.outcomes[job.path]["facts"])
        return facts

    def run(self, num_workers: int, limit_s: float, progress: type[Bar] = Bar) -> None:
        """Check all files; a worker that dies or hangs is a finding, and the next audit retries.

        A check may take `limit_s`, or as long as reading the largest file from a slow disk.
        """
        is_full = any(job.is_full for job in self.jobs)
        total = sum(map(_work, self.jobs))
        with progress(total=total, unit="B" if is_full else "file", label="Audit") as bar:
            fed = self._feed(bar)
            if not is_full and len(self.jobs) <= NUM_AT_ONCE:
                done: Generator = ((job, look(job)) for job in fed)
            else:
                largest = max((job.size for job in self.jobs), default=0)
                limit_s = max(limit_s, largest / SLOWEST_BYTES_PER_S) if is_full else math.inf
                done = run_jobs(look, fed, num_workers, limit_s, lost=_lost)
            # Stop the workers at once on an error or Ctrl-C.
            with contextlib.closing(done):
                for job, outcome in done:
                    if job.is_full and not outcome["is_lost"]:
                        record = {"key": self._key(job), "outcome": outcome}
                        files.write_json(self._record(job), record)
                    self.outcomes[job.path] = outcome
                    bar.update(_work(job), note=job.path.rpartition("/")[2])

    def forget(self) -> None:
        """Remove the records after the audit has finished."""
        shutil.rmtree(self.records, ignore_errors=True)

    def _feed(self, bar: Bar) -> Iterator[FileJob | Wait]:
        camera_jobs = [job for job in self.jobs if job.feature in cameras.BY_NAME]
        yield from self._unread(camera_jobs, bar)
        while any(job.path not in self.outcomes for job in camera_jobs):
            yield WAIT
        facts = self.facts
        others = [job for job in self.jobs if job.feature not in cameras.BY_NAME]
        yield from self._unread([_beside(job, facts) for job in others], bar)

    def _unread(self, jobs: Sequence[FileJob], bar: Bar) -> Iterator[FileJob]:
        """Yield jobs without a record of an interrupted audit, or whose file has changed since."""
        for job in jobs:
            # Taken before reading, so that changes made meanwhile are noticed.
            self.state[job.path] = files.state_of(job.place)
            kept = None
            if job.is_full:
                with contextlib.suppress(AvomniError, KeyError, TypeError):
                    record = files.read_json(self._record(job))
                    kept = record["outcome"] if record["key"] == self._key(job) else None
            if kept is None:
                yield job
            else:
                self.num_kept += 1
                self.outcomes[job.path] = kept
                bar.update(_work(job))

    def _record(self, job: FileJob) -> Path:
        return self.records / f"{hashlib.sha256(job.path.encode()).hexdigest()[:32]}.json"

    def _key(self, job: FileJob) -> str:
        return files.hash_json([VERSION, self.state[job.path], dataclasses.asdict(job)])


def _beside(job: FileJob, facts: Mapping[str, Mapping[str, Any]]) -> FileJob:
    """Add the facts about the cameras of its clips to a job."""
    beside: dict[str, dict[str, Any]] = {}
    for clip_id in job.wanted if job.is_full else ():
        by_camera = {camera: facts.get(camera, {}).get(clip_id, {}) for camera in job.cameras}
        spans = [(f["first_us"], f["last_us"]) for f in by_camera.values() if "first_us" in f]
        sizes = {c: (f["width"], f["height"]) for c, f in by_camera.items() if "width" in f}
        beside[clip_id] = {"sizes": sizes}
        if spans:
            beside[clip_id]["span_us"] = checks.common(spans)
    return dataclasses.replace(job, beside=beside)


def _work(job: FileJob) -> int:
    return job.size if job.is_full else 1


def _lost(job: FileJob, reason: str) -> dict[str, Any]:
    """The outcome if a worker died or hung; the file itself may be sound."""
    what = f"could not be looked at: {reason}; 01_audit, run again, tries it again"
    finding = Finding(ODD, "looking at it failed", what, WHOLE, job.path, job.feature, job.chunk)
    row = dataclasses.asdict(finding)
    return {"findings": [row], "facts": {}, "sha256": None, "is_lost": True}
