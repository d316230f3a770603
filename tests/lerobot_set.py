"""A small data set in LeRobot's v3 layout, as yaak-ai/L2D has it: seven videos, states, sessions.

Each mp4 and parquet file holds several episodes, and each key begins new files at other places.
Frames bear their names (`published_set.frame_bits`), drives are known in closed form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from avomni_lib.dataset import cameras
from avomni_lib.dataset.lerobot.profile import L2D
from avomni_lib.params import Params
from tests import folder_run
from tests.published_set import Drive, encode_video, frame_bits

FPS, LENGTH = 10, 30
WIDTH, HEIGHT = 64, 48
REPO = "yaak-ai/L2D-small"
KEYS = (*L2D.cameras.values(), "observation.images.map")
AXES = (
    *("speed", "heading", "heading_error", "hp_loc_latitude", "hp_loc_longitude"),
    *("hp_loc_altitude", "acceleration_x", "acceleration_y"),
)
LATITUDE, LONGITUDE = 52.5, 13.4
METERS_A_DEGREE = 111_320.0
START_NS = 1_685_730_000_000_000_000


@dataclass
class Episode:
    """One of the set: drive number `drive`, from `start_s` of its session's time on."""

    drive: int
    session: str
    start_s: float
    task: str = "Keep straight on"
    length: int = LENGTH
    states: dict[str, Any] = field(default_factory=dict)  # (row, axis) -> value that is put there


# Sessions a to c: train, val and test by info.json; the third shares time with the second.
SESSIONS = "aaabbc"
STARTS = (0.0, 3.0, 4.0, 0.0, 3.0, 0.0)
SPLITS = {"train": "0:3", "val": "3:5", "test": "5:6"}


def episodes() -> list[Episode]:
    return [
        Episode(number, f"session-{name}", start, f"Drive on to crossing {number}")
        for number, (name, start) in enumerate(zip(SESSIONS, STARTS, strict=True))
    ]


def state_of(episode: Episode) -> np.ndarray:
    """(length, 8) float32, in L2D's units."""
    drive, t_s = Drive(episode.drive), np.arange(episode.length) / FPS
    position, yaw = drive.position(t_s), drive.curvature * drive.travelled(t_s)
    state = np.zeros((episode.length, len(AXES)))
    state[:, 0] = drive.speed(t_s) * 3.6
    state[:, 1] = (90 - np.degrees(yaw)) % 360
    state[:, 3] = LATITUDE + position[:, 1] / METERS_A_DEGREE
    state[:, 4] = LONGITUDE + position[:, 0] / METERS_A_DEGREE / np.cos(np.radians(LATITUDE))
    for (row, axis), value in episode.states.items():
        state[row, AXES.index(axis)] = value
    return state.astype(np.float32)


def write(
    folder: Path,
    listed: Sequence[Episode] | None = None,
    *,
    fps: int = FPS,
    splits: dict[str, str] | None = None,
    keys: Sequence[str] = KEYS,
    codec: str = "libx264",
    video_fps: int = FPS,
) -> Path:
    """Write the folder. Videos of key n hold 2 + n % 2 episodes a file, tables 4.

    Args:
        fps: That info.json says; `video_fps` is that of the videos.
    """
    listed = episodes() if listed is None else list(listed)
    rows = [
        {"episode_index": n, "tasks": [e.task], "length": e.length} for n, e in enumerate(listed)
    ]
    tasks = list(dict.fromkeys(episode.task for episode in listed))
    start = 0
    for number, (row, episode) in enumerate(zip(rows, listed, strict=True)):
        first_ns = START_NS + round(episode.start_s * 1e9)
        row |= {
            "session_id": episode.session,
            "data/chunk_index": 0,
            "data/file_index": number // 4,
            "dataset_from_index": start,
            "dataset_to_index": start + episode.length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "stats/observation.state.timestamp/min": [first_ns],
            "stats/observation.state.timestamp/max": [first_ns + (episode.length - 1) * 10**8],
        }
        start += episode.length
    for place, key in enumerate(keys):
        each = 2 + place % 2
        for file, first in enumerate(range(0, len(listed), each)):
            held = listed[first : first + each]
            pictures, at = [], 0
            for number, episode in enumerate(held, first):
                row = rows[number]
                row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"] = 0, file
                row[f"videos/{key}/from_timestamp"] = at / FPS
                row[f"videos/{key}/to_timestamp"] = (at + episode.length) / FPS
                at += episode.length
                camera = next((name for name, k in L2D.cameras.items() if k == key), None)
                idx = cameras.CAMERAS.index(cameras.BY_NAME[camera]) if camera else 15
                pictures += [
                    frame_bits(number, idx, frame, WIDTH, HEIGHT) for frame in range(episode.length)
                ]
            path = folder / f"videos/{key}/chunk-000/file-{file:03d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_video(pictures, codec, 7, rate=video_fps))
    _write_data(folder, listed, tasks)
    put(folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    names = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task"))
    names.to_parquet(folder / "meta/tasks.parquet")
    video = {
        "dtype": "video",
        "shape": [3, HEIGHT, WIDTH],
        "names": ["channel", "height", "width"],
        "info": {"video.fps": float(fps), "video.codec": "h264", "video.pix_fmt": "yuv420p"},
    }
    number = {"dtype": "int64", "shape": [1], "names": None}
    features = {
        "observation.state.vehicle": {"dtype": "float32", "shape": [8], "names": {"axes": AXES}},
        "observation.state.timestamp": number,
        **dict.fromkeys(keys, video),
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), number),
    }
    info = {
        "codebase_version": "v3.0",
        "robot_type": "KIA Niro EV 2023",
        "total_episodes": len(listed),
        "total_frames": start,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": fps,
        "splits": SPLITS if splits is None else splits,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (folder / "meta/info.json").write_text(json.dumps(info, indent=2))
    return folder


def _write_data(folder: Path, listed: Sequence[Episode], tasks: list[str]) -> None:
    index = 0
    for file, first in enumerate(range(0, len(listed), 4)):
        tables = []
        for number, episode in enumerate(listed[first : first + 4], first):
            frames = np.arange(episode.length)
            first_ns = START_NS + round(episode.start_s * 1e9)
            state = pa.FixedSizeListArray.from_arrays(state_of(episode).ravel(), len(AXES))
            tables.append(
                pa.table(
                    {
                        "observation.state.vehicle": state,
                        "observation.state.timestamp": first_ns + frames * 10**8,
                        "timestamp": (frames / FPS).astype(np.float32),
                        "frame_index": frames,
                        "episode_index": np.full(episode.length, number),
                        "index": index + frames,
                        "task_index": np.full(episode.length, tasks.index(episode.task)),
                    }
                )
            )
            index += episode.length
        put(folder / f"data/chunk-000/file-{file:03d}.parquet", pa.concat_tables(tables))


def put(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def values(folder: Path, data: Path, **dataset: Any) -> dict[str, Any]:
    """Of a run that reads the set where it lies."""
    values = folder_run.values(folder, data, sample_hz=5.0, obstacles=True)
    profile = {"profile": "l2d", "is_local": True}
    values["dataset"] |= {"source": "lerobot", "repo_id": REPO, "audit": "full", "lerobot": profile}
    values["dataset"] |= dataset
    values["download"] = {"target_chunks": 100, "target_size_gb": 10.0}
    return values | {"vision": {"cameras": "6-cam"}}


def params(folder: Path, data: Path, **dataset: Any) -> Params:
    return Params.from_values(values(folder, data, **dataset))
