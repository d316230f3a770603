"""All files of an audit, looked at in parallel; what a killed one had read is not read again.

A camera's zip comes before the ego motion and the calibration of its chunk: they have to cover its
span and fit its pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections import deque
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

# Of the checks: what an older version read is read again.
VERSION = 3
# Directories of this many files are read while worker processes would still start.
NUM_AT_ONCE = 64
SLOWEST_BYTES_PER_S = 1e6  # a disk, if nothing hangs


class FileScan:
    """Files, the findings in them, and the facts about their clips.

    Args:
        jobs: A file each; `beside` of all but the cameras' is filled in here.
        records: A folder for what was read so far; None keeps nothing.

    Attributes:
        findings: Of all files. All of these are in the order of the jobs, whatever finished first.
        facts: Feature -> clip_id -> what was read of it.
        sha256: Path -> of the files that were read.
        state: Path -> size and date (ns) before it was looked at.
        num_kept: Files that an interrupted audit had read.
    """

    def __init__(self, jobs: Sequence[FileJob], records: Path | None = None):
        self.jobs, self.records = jobs, records
        self.findings: list[Finding] = []
        self.facts: dict[str, dict[str, dict[str, Any]]] = {}
        self.sha256: dict[str, str] = {}
        self.state: dict[str, tuple[int, int] | None] = {}
        self.num_kept = 0
        self._outcomes: dict[str, Mapping[str, Any]] = {}
        # Chunk -> cameras to come, and jobs that wait for them; chunks that wait no more.
        self._left: dict[int | None, int] = {}
        self._later: dict[int | None, list[FileJob]] = {}
        self._ready: deque[int | None] = deque()

    def run(self, num_workers: int, limit_s: float, progress: type[Bar] = Bar) -> None:
        """Look at every file; one whose worker dies or hangs is a finding, and looked at again by
        the next audit.

        Args:
            limit_s: The least that a file may take before its worker is stopped; a large one may
                take as long as a slow disk does.
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
            # Closed at once when this ends early: no worker goes on behind an error or a Ctrl-C.
            with contextlib.closing(done):
                for job, outcome in done:
                    if job.is_full and self.records and not outcome["is_lost"]:
                        record = {"key": self._key(job), "outcome": outcome}
                        files.write_json(self._record(job), record)
                    self._take(job, outcome)
                    bar.update(_work(job), note=job.path.rpartition("/")[2])
        self.facts = {}
        for job in self.jobs:
            outcome = self._outcomes[job.path]
            self.findings += [Finding(**row) for row in outcome["findings"]]
            self.facts.setdefault(job.feature, {}).update(outcome["facts"])
            if outcome["sha256"]:
                self.sha256[job.path] = outcome["sha256"]

    def forget(self) -> None:
        """Remove the records: the audit has ended."""
        if self.records and self.records.is_dir():
            for path in self.records.iterdir():
                path.unlink()
            self.records.rmdir()

    def _feed(self, bar: Bar) -> Iterator[FileJob | Wait]:
        """Cameras chunk by chunk, and what lies beside them as soon as they are done."""
        camera_jobs: deque[FileJob] = deque()
        for job in self.jobs:
            self._left.setdefault(job.chunk, 0)
            if job.feature in cameras.BY_NAME:
                camera_jobs.append(job)
                self._left[job.chunk] += 1
            else:
                self._later.setdefault(job.chunk, []).append(job)
        self._ready.extend(chunk for chunk, count in self._left.items() if not count)
        while camera_jobs or self._later:
            if self._ready:
                todo = [self._beside(job) for job in self._later.pop(self._ready.popleft(), ())]
            elif camera_jobs:
                todo = [camera_jobs.popleft()]
            else:
                yield WAIT
                continue
            for job in todo:
                kept = self._kept(job)
                if kept is None:
                    yield job
                else:
                    self.num_kept += 1
                    self._take(job, kept)
                    bar.update(_work(job))

    def _beside(self, job: FileJob) -> FileJob:
        """The job with the facts that it needs of the cameras of its clips."""
        beside: dict[str, dict[str, Any]] = {}
        for clip_id in job.wanted if job.is_full else ():
            sizes, spans = {}, []
            for camera in job.cameras:
                facts = self.facts.get(camera, {}).get(clip_id, {})
                if "width" in facts:
                    sizes[camera] = (facts["width"], facts["height"])
                if "first_us" in facts:
                    spans.append((facts["first_us"], facts["last_us"]))
            beside[clip_id] = {"sizes": sizes}
            if spans:
                beside[clip_id]["span_us"] = checks.common(spans)
        return dataclasses.replace(job, beside=beside)

    def _take(self, job: FileJob, outcome: Mapping[str, Any]) -> None:
        if job.feature in cameras.BY_NAME:
            self._left[job.chunk] -= 1
            if not self._left[job.chunk]:
                self._ready.append(job.chunk)
        self._outcomes[job.path] = outcome
        self.facts.setdefault(job.feature, {}).update(outcome["facts"])

    def _record(self, job: FileJob) -> Path:
        return self.records / f"{hashlib.sha256(job.path.encode()).hexdigest()[:32]}.json"

    def _kept(self, job: FileJob) -> Mapping[str, Any] | None:
        """What an interrupted audit made of the same job, while the file has not changed."""
        # Before it is read: a file that changes meanwhile has another state than is kept here.
        self.state[job.path] = files.state_of(job.place)
        if not (job.is_full and self.records):
            return None
        try:
            record = files.read_json(self._record(job))
            return record["outcome"] if record["key"] == self._key(job) else None
        except (AvomniError, KeyError, TypeError):
            return None

    def _key(self, job: FileJob) -> str:
        seen = [VERSION, self.state[job.path], dataclasses.asdict(job)]
        return files.hash_json(seen)


def _work(job: FileJob) -> int:
    return job.size if job.is_full else 1


def _lost(job: FileJob, reason: str) -> dict[str, Any]:
    """Nothing is known of the file: what befell its worker is no fault that it has."""
    what = f"could not be looked at: {reason}; 01_audit, run again, tries it again"
    finding = Finding(ODD, "looking at it failed", what, WHOLE, job.path, job.feature, job.chunk)
    row = dataclasses.asdict(finding)
    return {"findings": [row], "facts": {}, "sha256": None, "is_lost": True}
