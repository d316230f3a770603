"""One episode of a LeRobot data set as a clip, read in place without cutting files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from avomni_lib.dataset import calibration, cameras, checks, findings, limits, tables
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.findings import DAMAGED, Finding
from avomni_lib.dataset.lerobot.profile import profile_of
from avomni_lib.dataset.own import layout as own_layout
from avomni_lib.dataset.own.poses import egomotion, microseconds
from avomni_lib.dataset.streams import TimeRange
from avomni_lib.errors import AvomniError

MOST_ROWS = 100 * limits.MAX_ROWS  # of the row groups read; files of L2D have 1.3 million in all


@dataclass(frozen=True)
class EpisodeEntry:
    """An episode's entry in the table of episodes.

    Attributes:
        index, length: Its number, and its number of rows.
        fps: Rows and frames per second.
        profile: Name of the profile that defines its columns.
        axes: Names of the numbers in the profile's state.
        spans: Camera -> (start, stop) in s within its video file.
    """

    clip_id: str
    index: int
    length: int
    fps: float
    profile: str
    axes: Sequence[str]
    spans: Mapping[str, Sequence[float]]

    @property
    def times_us(self) -> np.ndarray:
        """(length,) int64 µs of its rows and frames; the layout requires a constant rate."""
        return microseconds(np.arange(self.length) / self.fps)

    def look(
        self, feature: str, path: Path, beside: Mapping[str, Any], horizon_s: float
    ) -> tuple[dict[str, Any], list[Finding]]:
        """Check its part of a file for the audit; facts and findings as for a member of a zip.

        Args:
            beside: `span_us` shown by all cameras, if known.
        """
        times_us = self.times_us
        if feature in self.spans:
            start_s, stop_s = self.spans[feature]
            walked = checks.video(TimeRange(path, start_s, stop_s, self.fps))
            facts, faults = checks.clock(times_us)
            facts, faults = walked.facts | facts, [*walked.findings, *faults]
            if walked.facts and len(walked.times_us) != len(times_us):
                reason = f"the mp4 shows {len(walked.times_us)} frames from {start_s:g} to "
                reason += f"{stop_s:g} s, and the episode has {len(times_us)}"
                faults.append(Finding(DAMAGED, "frames and rows differ in number", reason))
            elif walked.facts:
                faults += checks.agree(walked.times_us, times_us, walked.facts["tick_us"])
        else:
            try:
                columns, faults = read_motion(path, self)
            except AvomniError as error:
                return {}, [Finding(DAMAGED, "the rows are not as agreed", error.what)]
            first_us, last_us = beside.get("span_us", (int(times_us[0]), int(times_us[-1])))
            facts, more = checks.egomotion(columns, first_us, last_us, horizon_s)
            faults += more
        return facts, [finding for finding in faults if finding.what not in findings.USUAL]


class EpisodeClip(Clip):
    """An episode on the disk; methods and errors as `Clip`'s."""

    catalog: Any

    def __init__(self, folder: Path, catalog: Any, clip_id: str):
        super().__init__(folder, catalog, clip_id)
        self.episode: EpisodeEntry = catalog.episode(clip_id)

    def video(self, camera: str) -> TimeRange:
        """The time range of the camera's frames in the mp4, which contains other episodes too."""
        path = self._path(camera)
        with self._mended(camera):
            if not path.is_file():
                raise FileNotFoundError(str(path))
        start_s, stop_s = self.episode.spans[camera]
        return TimeRange(path, start_s, stop_s, self.episode.fps)

    def timestamps(self, camera: str) -> np.ndarray:
        """(N,) int64 µs: row i of an episode is at i / fps."""
        self._path(camera)
        return self.episode.times_us

    def egomotion(self) -> dict[str, np.ndarray]:
        """As `Clip.egomotion`, read by the profile at the rows' times; it ends with the video."""
        with self._mended("egomotion"):
            columns, faults = read_motion(self._path("egomotion"), self.episode)
        findings.refuse(faults, self._where("egomotion"))
        return columns

    def _row(self, feature: str, sensor: str | None) -> dict[str, float]:
        """A placeholder (`own.layout.stand_in`), as the data set has no calibration."""
        name = sensor or cameras.CAMERAS[0].name
        key = self.catalog.profile.cameras.get(name)
        size = self.catalog.info.size(key) if key in self.catalog.info.features else (2, 2)
        content = own_layout.stand_in(feature, {self.clip_id: {name: size}})
        table = calibration.CalibrationTable(content, calibration.TABLES[feature][0], feature)
        return table.row(self.clip_id, sensor)


def read_motion(path: Path, episode: EpisodeEntry) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """An episode's rows as the columns of `clip.EGOMOTION_COLUMNS`, and findings on consistency.

    Raises:
        AvomniError: the file cannot be read, its rows do not match the episode, or a value is not a
            number.
    """
    profile = profile_of(episode.profile)
    table = _rows(path, episode, ["frame_index", "timestamp", profile.state])
    if table.num_rows != episode.length:
        raise AvomniError(
            f"episode {episode.index} has {table.num_rows} rows in the table, and {episode.length} "
            "by meta/episodes"
        )
    frame = np.asarray(table["frame_index"].to_numpy(), np.int64)
    order = np.argsort(frame, kind="stable")
    if not np.array_equal(frame[order], np.arange(episode.length)):
        raise AvomniError(f"the rows of episode {episode.index} are not numbered from 0 on")
    t_s = np.asarray(table["timestamp"].to_numpy(), np.float64)[order]
    nominal = np.arange(episode.length) / episode.fps
    # float32 seconds, counted from the episode's first row.
    off = np.abs(t_s - nominal)
    if not off.max() <= 0.5 / episode.fps:
        row = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
        raise AvomniError(
            f"row {row} of episode {episode.index} is at {t_s[row]:g} s, and at "
            f"{nominal[row]:g} s by the {episode.fps:g} frames/s of info.json"
        )
    state = _array(table[profile.state], episode)[order]
    columns = {name: state[:, episode.axes.index(name)] for name in profile.axes}
    motion = profile.read(columns, nominal)
    ego = egomotion(nominal, motion.position, motion.turn, motion.velocity)
    return ego, list(motion.findings)


def _rows(path: Path, episode: EpisodeEntry, columns: list[str]) -> pa.Table:
    """Rows of one episode, from the row groups that may contain it by their statistics."""
    with tables.named_errors(str(path)):
        file = ds.ParquetFileFormat().make_fragment(str(path), LocalFileSystem())
        names = file.physical_schema.names
        if absent := [name for name in (*columns, "episode_index") if name not in names]:
            raise AvomniError(f"no column {absent[0]}")
        is_own = pc.field("episode_index") == episode.index
        file = file.subset(is_own, schema=file.physical_schema)
        if sum(group.num_rows for group in file.row_groups) > MOST_ROWS:
            raise AvomniError(f"more than {MOST_ROWS:,} rows")
        return file.to_table(columns=columns, filter=is_own, use_threads=False)


def _array(column: pa.ChunkedArray, episode: EpisodeEntry) -> np.ndarray:
    """(N, len(axes)) float64 of a column of lists; missing values are NaN."""
    rows, width = column.to_pylist(), len(episode.axes)
    for row, values in enumerate(rows):
        if not isinstance(values, list) or len(values) != width:
            count = len(values) if isinstance(values, list) else "no"
            raise AvomniError(f"row {row} has {count} numbers of state, expected {width}")
    return np.array(
        [[np.nan if value is None else value for value in values] for values in rows], np.float64
    )
