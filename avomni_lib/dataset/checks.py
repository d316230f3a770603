"""One chunk's file by its name, size and table of contents; nothing that it holds is read.

`Job` is what a worker is told about a file; `contents.py` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from avomni_lib.dataset import limits
from avomni_lib.dataset.audit import calibration
from avomni_lib.dataset.audit.findings import DAMAGED, FILE, MEMBER, ODD, WHOLE, Finding
from avomni_lib.dataset.names import printable
from avomni_lib.dataset.stored_zip import LOCAL_HEADER, Directory, directory, is_stored
from avomni_lib.dataset.tables import key_column
from avomni_lib.errors import AvomniError

# Members without which 03 leaves a clip out. Labels of others may be lacking; the rest is not read.
NEEDED = ("video", "frame_timestamps", "egomotion")


@dataclass(frozen=True)
class Job:
    """A file of the disk, and what is expected of it.

    Attributes:
        folder: The data folder.
        path: Below it.
        size: Bytes, as the source lists it.
        sha256, blob_id: Of its content, where the source or an earlier check tells.
        is_full: Whether its content is to be read.
        feature: Empty for metadata.
        chunk: None for metadata.
        members: (kind, template with {clip_id}) of a zip; empty for a table.
        clip_ids: The clips that must be in it.
        denied: The chunk's clips that have it not, as the source says.
        ignored: The chunk's clips that are marked as not valid: they may be in it.
        wanted: Of the clips, those whose content is looked at.
        cameras: Whose calibration is needed.
        beside: Clip -> what its cameras told: `span_us` and `sizes`.
        offline: (path, template) of `egomotion.offline`, where it is on the disk.
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
    offline: tuple[str, str] | None = None
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


def file(job: Job) -> list[Finding]:
    """What is wrong with a file from the outside; the findings bear no path yet."""
    size = job.place.stat().st_size
    if size != job.size:
        told = f"{size:,} bytes in place of {job.size:,}"
        return [Finding(DAMAGED, "another size than the source's", told, WHOLE)]
    try:
        if job.members:
            return list(_zip(job, directory(job.place), size))
        if job.feature in calibration.TABLES:
            return list(_table(job))
    except AvomniError as error:
        return [Finding(DAMAGED, "the file does not open", error.what, WHOLE)]
    return []


def severity_of(kind: str) -> str:
    """What a fault of a member makes of its clip: some are read by no stage, or left out."""
    return DAMAGED if kind in NEEDED else ODD


def _zip(job: Job, held: Directory, size: int) -> Iterator[Finding]:
    expected = job.names()
    for name in sorted(expected.keys() - held.entries.keys()):
        clip_id, kind = expected[name]
        told = f"no member {name}"
        yield Finding(severity_of(kind), "no member", told, MEMBER, clip_id=clip_id)
    ignored, denied = set(job.ignored), set(job.denied)
    strangers = sorted(held.entries.keys() - expected.keys())
    strangers = [n for n in strangers if n.partition(".")[0] not in ignored]
    if unlisted := [n for n in strangers if n.partition(".")[0] in denied]:
        told = f"holds a clip that should not have this feature: {_first(unlisted)}"
        yield Finding(ODD, "a member that presence denies", told, FILE)
    if unknown := sorted(set(strangers) - set(unlisted)):
        told = f"a member of no clip: {_first(unknown)}"
        yield Finding(ODD, "a member of no clip", told, FILE)
    order = sorted(held.entries, key=lambda name: held.entries[name].header_offset)
    for name, after in zip(order, [*order[1:], None], strict=True):
        entry, fault = held.entries[name], None
        end = held.entries[after].header_offset if after else size
        if not is_stored(entry):
            fault = ("not stored", f"member {name} is compressed, not stored")
        elif name in held.repeated:
            fault = ("a member twice", f"member {name} stands in the zip more than once")
        elif entry.header_offset + LOCAL_HEADER.size + len(name.encode()) + entry.file_size > end:
            fault = ("members overlap", f"member {name} reaches into the next")
        elif not entry.file_size:
            fault = ("an empty member", f"member {name} is empty")
        if fault and name in expected:
            clip_id, kind = expected[name]
            yield Finding(severity_of(kind), *fault, MEMBER, clip_id=clip_id)


def _table(job: Job) -> Iterator[Finding]:
    key, numbers = calibration.TABLES[job.feature]
    where = str(job.place)
    try:
        with pq.ParquetFile(job.place) as table:
            if table.metadata.num_rows > limits.MAX_ROWS:
                raise AvomniError(f"the table has {table.metadata.num_rows:,} rows", where=where)
            names = table.schema_arrow.names
            keys = [n for n in names if n in ("clip_id", key) or n.startswith("__index_level_")]
            held = table.read(columns=keys)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvomniError(f"not a readable parquet file: {reason}", where=where) from None
    if lacking := [name for name in numbers if name not in names]:
        told = f"no column {lacking[0]}{_more(lacking)}"
        yield Finding(DAMAGED, "a column is missing", told, WHOLE)
    clip_ids = key_column(held, "clip_id", where)
    sensors = key_column(held, key, where, level=1) if key else [None] * len(clip_ids)
    rows: dict[tuple[str, str | None], int] = {}
    for pair in zip(clip_ids, sensors, strict=True):
        rows[pair] = rows.get(pair, 0) + 1
    for clip_id in job.clip_ids:
        for sensor in calibration.sensors(job.feature, job.cameras):
            count = rows.get((clip_id, sensor), 0)
            if count != 1:
                of = f" of {sensor}" if sensor else ""
                told = f"{job.feature} has {count or 'no'} row{'s' if count else ''}{of}"
                what = "rows that contradict" if count else "no row"
                yield Finding(DAMAGED, what, told, MEMBER, clip_id=clip_id)
    if unknown := sorted({*clip_ids} - {None, *job.clip_ids, *job.denied, *job.ignored}):
        told = f"a row of no clip: {_first(unknown)}"
        yield Finding(ODD, "a row of no clip", told, FILE)


def _first(strangers: list[str]) -> str:
    return printable(strangers[0]) + _more(strangers)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
