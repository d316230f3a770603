"""All files of an audit, looked at in parallel; what a killed one had read is not read again.

The cameras' zips come first: ego motion and calibration have to cover their span and fit their
pictures.
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

# Of the checks: what an older version read is read again.
VERSION = 3
# Directories of this many files are read while worker processes would still start.
NUM_AT_ONCE = 64
SLOWEST_BYTES_PER_S = 1e6  # a disk, if nothing hangs


class FileScan:
    """Files, the findings in them, and the facts about their clips.

    Attributes:
        jobs: A file each; `beside` of all but the cameras' is filled in here.
        records: A folder for what was read so far.
        outcomes: Path -> what `file.look` made of it.
        state: Path -> size and date (ns) before it was looked at.
        num_kept: Files that an interrupted audit had read.
    """

    def __init__(self, jobs: Sequence[FileJob], records: Path):
        self.jobs, self.records, self.num_kept = jobs, records, 0
        self.outcomes: dict[str, Mapping[str, Any]] = {}
        self.state: dict[str, tuple[int, int] | None] = {}

    @property
    def findings(self) -> list[Finding]:
        """In the order of the jobs, whatever finished first."""
        rows = (row for job in self.jobs for row in self.outcomes[job.path]["findings"])
        return [Finding(**row) for row in rows]

    @property
    def facts(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Feature -> clip_id -> what was read of it."""
        facts: dict[str, dict[str, dict[str, Any]]] = {}
        for job in self.jobs:
            if job.path in self.outcomes:
                facts.setdefault(job.feature, {}).update(self.outcomes[job.path]["facts"])
        return facts

    def run(self, num_workers: int, limit_s: float, progress: type[Bar] = Bar) -> None:
        """Look at every file; one whose worker dies or hangs is a finding, and looked at again by
        the next audit.

        A file may take `limit_s`, a large one as long as a slow disk does, until its worker is
        stopped.
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
                    if job.is_full and not outcome["is_lost"]:
                        record = {"key": self._key(job), "outcome": outcome}
                        files.write_json(self._record(job), record)
                    self.outcomes[job.path] = outcome
                    bar.update(_work(job), note=job.path.rpartition("/")[2])

    def forget(self) -> None:
        """Remove the records: the audit has ended."""
        shutil.rmtree(self.records, ignore_errors=True)

    def _feed(self, bar: Bar) -> Iterator[FileJob | Wait]:
        of_cameras = [job for job in self.jobs if job.feature in cameras.BY_NAME]
        yield from self._unread(of_cameras, bar)
        while any(job.path not in self.outcomes for job in of_cameras):
            yield WAIT
        facts = self.facts
        others = [job for job in self.jobs if job.feature not in cameras.BY_NAME]
        yield from self._unread([_beside(job, facts) for job in others], bar)

    def _unread(self, jobs: Sequence[FileJob], bar: Bar) -> Iterator[FileJob]:
        """Those of which an interrupted audit has left nothing, or that have changed since."""
        for job in jobs:
            # Before it is read: a file that changes meanwhile has another state than is kept here.
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
    """The job with the facts that it needs of the cameras of its clips."""
    beside: dict[str, dict[str, Any]] = {}
    for clip_id in job.wanted if job.is_full else ():
        of_clip = {camera: facts.get(camera, {}).get(clip_id, {}) for camera in job.cameras}
        spans = [(f["first_us"], f["last_us"]) for f in of_clip.values() if "first_us" in f]
        sizes = {c: (f["width"], f["height"]) for c, f in of_clip.items() if "width" in f}
        beside[clip_id] = {"sizes": sizes}
        if spans:
            beside[clip_id]["span_us"] = checks.common(spans)
    return dataclasses.replace(job, beside=beside)


def _work(job: FileJob) -> int:
    return job.size if job.is_full else 1


def _lost(job: FileJob, reason: str) -> dict[str, Any]:
    """Nothing is known of the file: what befell its worker is no fault that it has."""
    what = f"could not be looked at: {reason}; 01_audit, run again, tries it again"
    finding = Finding(ODD, "looking at it failed", what, WHOLE, job.path, job.feature, job.chunk)
    row = dataclasses.asdict(finding)
    return {"findings": [row], "facts": {}, "sha256": None, "is_lost": True}
