"""meta/info.json and the table of episodes of a LeRobot v3 data set, validated on reading.

Layout (v3.0): `data/chunk-000/file-000.parquet` has the rows of many episodes,
`videos/{video_key}/chunk-000/file-000.mp4` their videos, and
`meta/episodes/chunk-000/file-000.parquet` the file of each key and the time range (s) of each
episode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from avomni_lib import files
from avomni_lib.dataset import names
from avomni_lib.dataset.lerobot.profile import Profile
from avomni_lib.dataset.tables import number_column, opened, read_table
from avomni_lib.errors import AvomniError

INFO_FILE, TASKS_FILE = "meta/info.json", "meta/tasks.parquet"
EPISODES_FILE = "meta/episodes/chunk-{chunk:03d}/file-{file:03d}.parquet"
VERSION = "v3."
FILES_A_CHUNK = 1000  # `chunks_size` as lerobot writes it
MOST_FILES = 10**6
MAX_FPS = 1000
MEND = "correct the file, or fetch the data set again"
FIELDS: dict[str, tuple[str, ...]] = {
    "data_path": ("chunk_index", "file_index"),
    "video_path": ("video_key", "chunk_index", "file_index"),
}
_FIELD = re.compile(r"\{(\w+)(?::0\d?d)?\}")


@dataclass(frozen=True)
class Info:
    """The content of meta/info.json.

    Attributes:
        path: Path of the file.
        fps: Rows and frames per second, of all cameras.
        data_path, video_path: Templates of file names.
        features: Name -> description.
        splits: Name -> (first, one past the last) episode.
    """

    path: str
    fps: float
    data_path: str
    video_path: str
    features: Mapping[str, Mapping[str, Any]]
    splits: Mapping[str, tuple[int, int]]

    def axes(self, feature: str) -> tuple[str, ...]:
        """The names of a feature's numbers, which may be nested in lists and objects."""
        axes = self.features.get(feature, {}).get("names")
        while isinstance(axes, dict) or (isinstance(axes, list) and axes):
            if isinstance(axes, list) and not isinstance(axes[0], list):
                break
            axes = next(iter(axes.values()), None) if isinstance(axes, dict) else axes[0]
        return tuple(map(str, axes)) if isinstance(axes, list) else ()

    def size(self, video_key: str) -> tuple[int, int]:
        """Width and height (px) of a video.

        Raises:
            AvomniError: they are missing or invalid.
        """
        feature = self.features[video_key]
        shape, info = feature.get("shape"), feature.get("info")
        shape = shape if isinstance(shape, list) else []
        info = info if isinstance(info, dict) else {}
        order = list(self.axes(video_key))
        known = dict(zip(order, shape, strict=False)) if len(order) == len(shape) else {}
        known = {str(name)[:1]: value for name, value in known.items()}  # height, h, width, w
        size = [info.get(f"video.{name}", known.get(name[0])) for name in ("width", "height")]
        if not all(type(value) is int and 0 < value < 1 << 16 for value in size):
            raise AvomniError(f"the size of {video_key} is {size}", where=self.path)
        return int(size[0] or 0), int(size[1] or 0)


def read_info(folder: Path) -> Info:
    """Read meta/info.json of a folder.

    Raises:
        AvomniError: there is none, it is of another version, or it is invalid.
    """
    path = Path(folder) / INFO_FILE
    where = str(path)
    if not path.is_file():
        raise AvomniError(
            "this folder is not in LeRobot's layout: no meta/info.json",
            where=str(folder),
            fix="check dataset.local_dir; unless dataset.lerobot.is_local, run 02_download",
        )
    content = files.read_json(path)
    version = content.get("codebase_version") if isinstance(content, dict) else None
    if not isinstance(version, str):
        what = f"a LeRobot data set names its codebase_version, and here is {names.shown(version)}"
        raise AvomniError(what, where=where, fix=MEND)
    if not version.startswith(VERSION):
        raise AvomniError(
            f"a LeRobot data set of version {names.shown(version)}, and v3 is read",
            where=where,
            fix="convert it: python -m lerobot.scripts.convert_dataset_v21_to_v30 "
            "--repo-id=OWNER/NAME",
        )
    fps, features = content.get("fps"), content.get("features")
    if not isinstance(fps, int | float) or not 0 < fps <= MAX_FPS:
        raise AvomniError(f"fps is {names.shown(fps)}", where=where, fix=MEND)
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise AvomniError("features is no object of objects", where=where, fix=MEND)
    templates = {}
    for name, fields in FIELDS.items():
        template = content.get(name)
        names.need(name, template, _template_fault(template, fields), where)
        templates[name] = template
    return Info(where, float(fps), features=features, splits=_splits(content, where), **templates)


def _template_fault(template: Any, fields: tuple[str, ...]) -> str | None:
    if not isinstance(template, str):
        return "it is not text"
    actual = _FIELD.findall(template)
    if set(actual) != set(fields):
        return f"its fields are {', '.join(actual) or 'none'}, expected {', '.join(fields)}"
    return names.path_fault(_FIELD.sub("0", template))


def _splits(content: Mapping[str, Any], where: str) -> dict[str, tuple[int, int]]:
    splits: dict[str, tuple[int, int]] = {}
    spans = content.get("splits") or {}
    if not isinstance(spans, dict):
        raise AvomniError(f"splits is {names.shown(spans)}, no object", where=where, fix=MEND)
    for name, span in spans.items():
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(span))
        if match is None:
            what = f"the split {names.shown(name)} is {names.shown(span)}, not FIRST:END"
            raise AvomniError(what, where=where, fix=MEND)
        splits[str(name)] = (int(match[1]), int(match[2]))
    return splits


def metadata_files(folder: Path) -> tuple[str, ...]:
    """The files about all episodes that are in the folder."""
    episodes = sorted(Path(folder).glob("meta/episodes/chunk-*/file-*.parquet"))
    tasks = [Path(folder) / TASKS_FILE]
    there = [path for path in (*tasks, *episodes) if path.is_file()]
    return (INFO_FILE, *(path.relative_to(folder).as_posix() for path in there))


def episode_files(number: int) -> list[str]:
    """Names of the first `number` files of the table of episodes."""
    places = (divmod(n, FILES_A_CHUNK) for n in range(number))
    return [EPISODES_FILE.format(chunk=chunk, file=file) for chunk, file in places]


@dataclass(frozen=True)
class Spans:
    """Positions of the episodes in the files of one key.

    Attributes:
        chunk, file: (E,) int64 numbers of the file; -1 if invalid.
        start_s, stop_s: (E,) float64 s within a video; NaN for rows of data.
    """

    chunk: np.ndarray
    file: np.ndarray
    start_s: np.ndarray
    stop_s: np.ndarray


@dataclass(frozen=True)
class Episodes:
    """The table of episodes as columns, ordered by number.

    Attributes:
        index, length: (E,) int64 number, and number of rows.
        tasks: Description of each episode's task.
        session: Name of each episode's recording; None if the data set has none.
        first_ns, last_ns: (E,) int64 ns by an absolute clock; None if there is none.
        spans: "data", or video key -> `Spans`.
        faults: Row -> reason why the episode is invalid.
    """

    index: np.ndarray
    length: np.ndarray
    tasks: tuple[str, ...]
    session: tuple[str, ...] | None
    first_ns: np.ndarray | None
    last_ns: np.ndarray | None
    spans: Mapping[str, Spans]
    faults: Mapping[int, str]


def read_episodes(folder: Path, info: Info, profile: Profile) -> Episodes:
    """Read all tables of episodes of a folder, without unneeded statistics.

    Raises:
        AvomniError: a table cannot be read or lacks a column, or an episode is listed twice.
    """
    paths = [Path(folder) / name for name in metadata_files(folder) if "/episodes/" in name]
    if not paths:
        raise AvomniError(
            "no table of episodes", where=str(Path(folder) / "meta/episodes"), fix=MEND
        )
    keys = {"data": "data"} | {
        key: f"videos/{key}" for key in profile.cameras.values() if key in info.features
    }
    wanted = ["episode_index", "length", "tasks", *([profile.session] if profile.session else [])]
    wanted += [f"stats/{profile.clock}/{which}" for which in ("min", "max") if profile.clock]
    for key, stem in keys.items():
        wanted += [f"{stem}/chunk_index", f"{stem}/file_index"]
        wanted += [f"{stem}/{end}_timestamp" for end in ("from", "to") if key != "data"]
    tables = []
    for path in paths:
        with opened(path, str(path)) as file:
            there = file.schema_arrow.names
        tables.append(read_table(path, str(path), [name for name in wanted if name in there]))
    where = str(paths[0])
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise AvomniError(f"tables of episodes differ: {error}", where=where, fix=MEND) from None
    if not table.num_rows:
        raise AvomniError("the data set has no episode", where=where, fix=MEND)
    index = number_column(table, "episode_index", where).astype(np.int64)
    order = np.argsort(index, kind="stable")
    table, index = table.take(pa.array(order)), index[order]
    for row in np.flatnonzero(np.diff(index) == 0)[:1]:
        raise AvomniError(f"episode {index[row]} is listed twice", where=where, fix=MEND)
    for row in np.flatnonzero((index < 0) | (index > 10**9))[:1]:
        raise AvomniError(f"an episode has the number {index[row]}", where=where, fix=MEND)
    faults: dict[int, str] = {}
    length = _numbers(table, "length", where)
    _fault(faults, ~(length >= 2), "its number of rows is {}; at least 2 are needed", length)
    spans = {}
    for key, stem in keys.items():
        chunk, file = (_numbers(table, f"{stem}/{name}_index", where) for name in ("chunk", "file"))
        is_place = (chunk >= 0) & (chunk < MOST_FILES) & (file >= 0) & (file < MOST_FILES)
        _fault(faults, ~is_place, f"its file of {key} is chunk {{}}, file {{}}", chunk, file)
        start = stop = np.full(len(index), np.nan)
        if key != "data":
            start, stop = (_numbers(table, f"{stem}/{n}_timestamp", where) for n in ("from", "to"))
            _fault(faults, ~((start >= 0) & (stop > start)), f"it lies at {{}} s of {key}", start)
        chunk, file = (np.where(is_place, n, -1).astype(np.int64) for n in (chunk, file))
        spans[key] = Spans(chunk, file, start, stop)
    first_ns = last_ns = None
    if profile.clock and f"stats/{profile.clock}/max" in table.column_names:
        first_ns = _first(table[f"stats/{profile.clock}/min"], where)
        last_ns = _first(table[f"stats/{profile.clock}/max"], where)
    session = None
    if profile.session and profile.session in table.column_names:
        session = tuple(map(str, table[profile.session].to_pylist()))
    tasks = [""] * len(index)
    if "tasks" in table.column_names:
        tasks = [_words(value) for value in table["tasks"].to_pylist()]
    lengths = np.where(length >= 2, length, 0).astype(np.int64)
    return Episodes(index, lengths, tuple(tasks), session, first_ns, last_ns, spans, faults)


def _numbers(table: pa.Table, name: str, where: str) -> np.ndarray:
    """(E,) float64; missing values are NaN."""
    if name not in table.column_names:
        raise AvomniError(f"no column {name} in the table of episodes", where=where, fix=MEND)
    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise AvomniError(f"column {name} holds {column.type}, not numbers", where=where, fix=MEND)
    values: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    return values


def _first(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """(E,) int64 of a column of numbers or one-element lists; missing values are 0."""
    values = column.to_pylist()
    flat = [value[0] if isinstance(value, list) and value else value for value in values]
    try:
        return np.array([0 if value in (None, []) else int(value) for value in flat], np.int64)
    except (TypeError, ValueError, OverflowError):
        raise AvomniError("an episode's times are not numbers", where=where, fix=MEND) from None


def _words(value: Any) -> str:
    texts = value if isinstance(value, list) else [value]
    return " ".join(" ".join(str(text).split()) for text in texts if text)


def _fault(faults: dict[int, str], is_wrong: np.ndarray, words: str, *values: np.ndarray) -> None:
    for row in np.flatnonzero(is_wrong).tolist():
        shown = (f"{c[row]:g}" if np.isfinite(c[row]) else "unknown" for c in values)
        faults.setdefault(row, words.format(*shown))
