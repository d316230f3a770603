"""The audit: what the source has, what is on the disk, what is missing or damaged and why.

`dataset.audit: quick` checks names, sizes and tables of contents, `full` every byte. A full audit
hashes all files again, even those verified by 02_download, to find damage since then. Only files
read by the same audit before an interruption are not read again.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files, workers
from avomni_lib.dataset import cameras, checks, findings
from avomni_lib.dataset.audit import listing
from avomni_lib.dataset.audit.listing import ABSENT, MISSING, NOT_CHOSEN, STATES, Listing
from avomni_lib.dataset.audit.scan import FileScan
from avomni_lib.dataset.catalog import SPLITS
from avomni_lib.dataset.download.hub import Hub
from avomni_lib.dataset.download.verified import Verified, hold
from avomni_lib.dataset.findings import DAMAGED, NOTED, ODD, SET, Finding
from avomni_lib.dataset.select.forecast import published
from avomni_lib.dataset.select.selection import (
    Selection,
    license_question,
    opened,
    source_in_words,
)
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan, gigabytes, minutes

__all__ = ["NOT_CHOSEN", "STATES"]
log = logging.getLogger(__name__)

STAGE = "01_audit"
LICENSE_DAYS, REMIND_DAYS = 365, 30
# Hash, checksum and packets of a clip of 6 Mbit/s, measured on one core of a Xeon.
CORE_BYTES_PER_S = 450e6
# CPU time of decoding a key frame, relative to a frame in the middle of a GOP of 15 (`make bench`).
ALIGNED_SHARE = 0.34
DEPTHS = {
    "quick": "names, sizes and tables of contents: nothing that a zip holds is read",
    "full": "every byte once: hashes, streams, clocks, ego motion and calibration",
}
# Feature -> clip_id -> facts read from its files.
Facts = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        features: The features that a clip must have.
        files: One row per file: path, feature, chunk, size (bytes), state, reason.
        clips: One row per clip of the audited chunks: clip_id, chunk, split, state, reason, and
            `features`: feature -> state, one of `STATES`. `absent` is not on the source, `missing`
            not on the disk.
        figures: Counts and bytes.
        warnings: Warnings to show.
        digest: Changes with the source and the chosen clips, not with the files on the disk.
        findings: One row per fault or remark, as `findings.Finding`.
    """

    features: tuple[str, ...]
    files: list[dict[str, Any]] = field(repr=False)
    clips: list[dict[str, Any]] = field(repr=False)
    figures: dict[str, Any]
    warnings: list[str]
    digest: str
    findings: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def summary(self) -> list[dict[str, Any]]:
        """One row per kind of finding, worst first (`findings.summary`)."""
        return findings.summary(Finding(**row) for row in self.findings)


def path_of(p: Params) -> Path:
    """Path of the complete result with all files, clips and findings."""
    return p.run_dir / STAGE / "audit.json"


def plan(p: Params, hub: Hub | None) -> Plan:
    """What `audit` would check; makes no request to the hub."""
    on_disk = list(listing.files_below(p.local_dir))
    num_bytes = sum(path.stat().st_size for path in on_disk)
    question = license_question(p)
    revision = f"revision {(hub.revision or 'main')[:12]}" if hub else "as it lies there"
    depth, size = p.dataset.audit, "34 MB of the real set"
    if known := published(p):
        size = f"{gigabytes(known.bytes_metadata)} of the real set"
    rows = [
        ("source", source_in_words(p), revision),
        ("on the disk", f"{len(on_disk)} files", f"{gigabytes(num_bytes)} in {p.local_dir}"),
        ("depth", f"dataset.audit: {depth}", DEPTHS[depth]),
        ("fetches", "the metadata" if hub else "nothing", size if hub else ""),
    ]
    if depth == "full":
        cores = p.processing.num_workers or workers.num_cores()
        time = minutes(num_bytes / (CORE_BYTES_PER_S * cores))
        rows.append(("time", f"about {time}", f"{cores} cores, on a disk that keeps up"))
    warnings = [f"it stops before you decide: {question}"] if question else []
    figures = {"num_files_on_disk": len(on_disk), "bytes_on_disk": num_bytes, "depth": depth}
    return Plan("Audit", rows, warnings, figures)


def audit(p: Params, hub: Hub | None, progress: type[Bar] = Bar) -> Audit:
    """Check all files and clips of the chunks that the run takes; a bad clip is a row, no error.

    The complete result is also written to `path_of(p)`.

    Args:
        hub: None for `dataset.source: folder`.

    Raises:
        AvomniError: as `download.plan`; or the licence is not accepted yet.
    """
    with opened(p, hub) as (hub, verified, selection):
        listed = Listing(p, hub, selection, verified)
        verified.save()
    scan = FileScan(listed.jobs, p.run_dir / STAGE / "read")
    num_workers = p.processing.num_workers or workers.num_cores()
    scan.run(num_workers, p.processing.clip_timeout_s, progress)
    if scan.num_kept:
        log.info("%d files had been read by an audit that was interrupted", scan.num_kept)
    facts = scan.facts
    all_findings = [*listed.findings, *scan.findings, *_ends(facts, selection)]
    file_rows, clip_rows = listed.file_rows(all_findings), listed.clip_rows(all_findings)
    streams = _streams(facts)
    verified = _remember(p, listed, scan, all_findings)
    oldest = min(
        filter(None, (verified.checked_on(row["path"]) for row in file_rows)), default=None
    )
    figures = _figures(p, hub, selection, file_rows, clip_rows) | {
        "streams": streams,
        "bytes_read": sum(job.size for job in listed.jobs if scan.outcomes[job.path]["sha256"]),
        "oldest_file": oldest,
    }
    all_findings += [*_of_the_set(p, hub, figures), *_remarks(p, streams, facts)]
    all_findings += selection.catalog.remarks()
    severities = Counter(finding.severity for finding in all_findings)
    figures["findings"] = {word: severities[word] for word in findings.SEVERITIES}
    warnings = []
    if oldest and p.dataset.source == "hub":
        age = (datetime.date.today() - datetime.date.fromisoformat(oldest)).days
        if age >= LICENSE_DAYS - REMIND_DAYS:
            warnings.append(
                f"the oldest file is {age} days old: the licence ends 12 months after the download,"
                " and all copies are to be destroyed then; read it again"
            )
    for state in (DAMAGED, ABSENT, ODD):
        if count := figures["clips_by_state"][state]:
            warnings.append(f"clips that are {state}: {count}; see the table")
    digest = files.hash_json([figures["revision"], selection.choice.chunks, selection.clip_ids])
    rows = [dataclasses.asdict(finding) for finding in all_findings]
    result = Audit(selection.features, file_rows, clip_rows, figures, warnings, digest, rows)
    files.write_json(path_of(p), dataclasses.asdict(result))
    scan.forget()
    return result


def _remember(p: Params, listed: Listing, scan: FileScan, all_findings: list[Finding]) -> Verified:
    """Record verified files, so that 02_download need not hash them again.

    Returns:
        The current record, to which another process may have written meanwhile.
    """
    wrong = {f.path for f in all_findings if f.is_files and f.severity == DAMAGED}
    try:
        with hold(p.local_dir):
            verified = Verified(p.local_dir)
            for path, outcome in scan.outcomes.items():
                remote, sha256 = listed.remote[path], outcome["sha256"]
                is_same = scan.state[path] == files.state_of(p.local_dir / path)
                if sha256 and path not in wrong and is_same and verified.needs_hash(remote):
                    verified.remember(dataclasses.replace(remote, sha256=sha256))
            verified.save()
    except AvomniError as error:
        # Another process holds the folder; the files will only have to be hashed again.
        log.warning("hashes are not recorded: %s", error.what)
        return Verified(p.local_dir)
    return verified


def _figures(
    p: Params, hub: Hub | None, selection: Selection, file_rows: list[dict], clip_rows: list[dict]
) -> dict[str, Any]:
    catalog = selection.catalog
    num_files, num_bytes = Counter[str](), Counter[str]()
    for row in file_rows:
        num_files[row["state"]] += 1
        num_bytes[row["state"]] += row["size"]
    clips = Counter(row["state"] for row in clip_rows)
    left = [path.stat().st_size for path in listing.unfinished(p.local_dir)]
    return {
        "depth": p.dataset.audit,
        "revision": hub.commit if hub else None,
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
        "bytes_free": files.free_bytes(p.local_dir),
        "unfinished": {"num_files": len(left), "bytes": sum(left)},
        "files_by_state": {state: num_files[state] for state in STATES},
        "clips_by_state": {state: clips[state] for state in STATES},
    }


def _of_the_set(p: Params, hub: Hub | None, figures: dict[str, Any]) -> Iterator[Finding]:
    """Findings about the data set as a whole, or about the disk."""
    if hub and not re.fullmatch("[0-9a-f]{40}", hub.commit):
        reason = f"revision {hub.commit!r} is no commit: the next run may read other data"
        yield Finding(DAMAGED, "the revision is not pinned", reason, SET)
    if count := figures["unfinished"]["num_files"]:
        first = listing.unfinished(p.local_dir)[0].relative_to(p.local_dir)
        more = "02_download uses or removes them" if hub else "no download goes on with them"
        size = gigabytes(figures["unfinished"]["bytes"])
        reason = f"{size} in {count} unfinished, such as {first}: {more}"
        yield Finding(NOTED, "unfinished downloads", reason, SET)
    wanted, free = figures["bytes_to_fetch"], figures["bytes_free"]
    if wanted > free:
        reason = f"{gigabytes(wanted)} to fetch, {gigabytes(free)} free"
        yield Finding(ODD, "no room on the disk", reason, SET)


def _streams(facts: Facts) -> dict[str, dict[str, Any]]:
    """Camera -> statistics of its clips' videos.

    Counters (value -> number of streams): codecs, sizes (px), rates (frames/s), gops (frames from
    key frame to key frame); num_streams, num_open (with open GOPs), num_reordered (B-frames),
    num_variable (rate); mbit_per_s and seconds as (minimum, median, maximum).
    """
    rows = {}
    for camera in (name for name in facts if name in cameras.BY_NAME):
        clips = [values for values in facts[camera].values() if "codec" in values]
        if clips:
            rows[camera] = {
                "num_streams": len(clips),
                "codecs": dict(Counter(f"{v['codec']} {v['profile']}" for v in clips)),
                "sizes": dict(Counter(f"{v['width']}×{v['height']}" for v in clips)),
                "rates": dict(Counter(f"{v['fps']:.4g}" for v in clips if v["fps"])),
                "gops": dict(Counter("/".join(v["gops"]) for v in clips)),
                "num_open": sum(bool(v["is_open"]) for v in clips),
                "num_reordered": sum(v["is_reordered"] for v in clips),
                "num_variable": sum(v["is_constant"] is False for v in clips),
                "mbit_per_s": _range([v["bit_rate"] / 1e6 for v in clips if v["bit_rate"]]),
                "seconds": _range([v["last_us"] / 1e6 for v in clips if "last_us" in v]),
            }
    return rows


def _range(values: list[float]) -> list[float] | None:
    return np.round([min(values), np.median(values), max(values)], 3).tolist() if values else None


def _remarks(p: Params, streams: Facts, facts: Facts) -> Iterator[Finding]:
    """Remarks that are no faults but useful to know before the ETL."""
    clips = facts.get("egomotion", {}).values()
    past_s = [values["past_video_s"] for values in clips if "past_video_s" in values]
    if past_s and max(past_s) > 0:
        reason = (
            f"by {np.median(past_s):.1f} s ({min(past_s):.1f} to {max(past_s):.1f}) in "
            f"{len(past_s)} clips: the video is its first part, on the same clock"
        )
        yield Finding(NOTED, "ego motion runs past the video", reason, SET, feature="egomotion")
    for camera, row in streams.items():
        if row["num_open"]:
            reason = (
                f"{row['num_open']} of {row['num_streams']} streams have open GOPs: readers that "
                "count frames may return a wrong one"
            )
            yield Finding(NOTED, "open GOPs", reason, SET, feature=camera)
        if met := _could_meet_keys(facts[camera], p.processing.sample_hz):
            does = "makes" if p.processing.align else "would make"
            reason = (
                f"in {met} of {row['num_streams']} streams key frames lie a whole part of the "
                f"sampling step apart: processing.align: keyframes {does} every wanted frame one, "
                f"which takes {ALIGNED_SHARE:g} of the CPU time of frames half a group away"
            )
            yield Finding(NOTED, "key frames could be met", reason, SET, feature=camera)


def _could_meet_keys(facts: dict[str, dict[str, Any]], sample_hz: float) -> int:
    """Number of streams of a camera whose GOPs all have a length that divides the sampling step."""
    num = 0
    for values in facts.values():
        if values.get("is_constant") and len(values["gops"]) == 1:
            step, gop = values["fps"] / sample_hz, int(next(iter(values["gops"])))
            num += gop > 1 and step > gop - 0.01 and abs(step / gop - round(step / gop)) < 0.01
    return num


def _ends(facts: Facts, selection: Selection) -> Iterator[Finding]:
    """Findings about cameras whose videos end at an unusual time."""
    last_us = {
        (camera, clip_id): values["last_us"]
        for camera in facts
        if camera in cameras.BY_NAME
        for clip_id, values in facts[camera].items()
        if "last_us" in values
    }
    for (camera, clip_id), finding in checks.ends(last_us).items():
        chunk = selection.catalog.chunk_of(clip_id)
        yield dataclasses.replace(finding, feature=camera, clip_id=clip_id, chunk=chunk)
