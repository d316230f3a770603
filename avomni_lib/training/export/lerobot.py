"""Exports clips as a LeRobot v3 data set, which `lerobot` and this program can read.

An episode is a clip, sampled as in 03 at `processing.sample_hz`: LeRobot requires a constant rate,
with row i and frame i of every camera at i / fps. Frames are therefore re-encoded, at full size.
The state is the pose of the profile `rig` in the clip's own frame. The layout has no place for
calibration and labels of other road users.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from avomni_lib import __version__, files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import SPLITS, Catalog
from avomni_lib.dataset.clip import Clip, open_clip
from avomni_lib.dataset.lerobot.layout import FILES_A_CHUNK, INFO_FILE, TASKS_FILE
from avomni_lib.dataset.lerobot.profile import RIG
from avomni_lib.dataset.select.manifest import open_catalog, read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.sampling import clip_times
from avomni_lib.etl.video import reader
from avomni_lib.params import Params
from avomni_lib.plan import Bar

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
DATA_MB, VIDEO_MB = 100, 200  # size of a file after which the next clip starts a new one
# As in lerobot: every second frame is a key frame, for random access.
OPTIONS = {"crf": "23", "preset": "veryfast", "g": "2", "bf": "0"}
TASK = "drive"  # task of a clip without a description
# Owner and a feature by which the real data set is recognised in a folder.
GATED = ("nvidia/", "lidar_top_360fov")


@dataclass
class Exported:
    """The result of an export.

    Attributes:
        rows: One per clip: clip_id, split, episode (None if it was left out), reason.
    """

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    num_frames: int = 0

    @property
    def figures(self) -> dict[str, Any]:
        """The result as plain values."""
        num = sum(row["episode"] is not None for row in self.rows)
        frames = {"num_episodes": num, "num_frames": self.num_frames}
        return {"folder": str(self.folder), **frames, "clips": self.rows}

    def __str__(self) -> str:
        num = self.figures["num_episodes"]
        lines = [f"LeRobot data set: {self.folder} ({num} episodes, {self.num_frames:,} frames)"]
        left_out = [row for row in self.rows if row["episode"] is None]
        return "\n".join(
            [*lines, *(f"  left out: {row['clip_id']}: {row['reason']}" for row in left_out)]
        )


def refusal(p: Params, catalog: Catalog) -> str | None:
    """Why the run's clips must not be exported; None if they may be."""
    if p.dataset.source == "lerobot":
        return "the clips come from a LeRobot data set already"
    owner, feature = GATED
    is_gated = p.dataset.repo_id.startswith(owner) or feature in catalog.features
    if p.dataset.source == "hub" or (is_gated and not p.rendered):
        return (
            "the clips are confidential: their licence forbids to pass any part of them on; only "
            "rendered clips and recordings of your own are exported"
        )
    return None


def export(p: Params, out: Path | None = None, progress: type[Bar] = Bar) -> Exported:
    """Export the clips chosen by 02, train first; damaged clips are left out with a reason.

    Args:
        out: The folder, which must not exist; None is lerobot/ in the run's folder.

    Raises:
        AvomniError: the clips must not be exported, 02 has not run, a raw file is missing, the
            folder exists, the rate is not an integer, or no clip can be read.
    """
    chosen = read_chosen(p)
    catalog = open_catalog(p, chosen)
    if reason := refusal(p, catalog):
        raise AvomniError(reason, where=f"dataset.source: {p.dataset.source}")
    fps = round(p.processing.sample_hz)
    if fps != p.processing.sample_hz:
        raise AvomniError(
            f"processing.sample_hz is {p.processing.sample_hz:g}, and LeRobot's fps is a whole "
            "number",
            where="processing.sample_hz",
            fix="--set processing.sample_hz=10",
        )
    folder = files.resolve(str(out)) if out else p.run_dir / "lerobot"
    if folder.exists():
        raise AvomniError(
            "the folder to export into is there already",
            where=str(folder),
            fix="remove it, or name another one by --out",
        )
    work = folder.with_name(f".{folder.name}.exporting")
    shutil.rmtree(work, ignore_errors=True)
    made = Exported(folder)
    pairs = [(split, clip_id) for split in SPLITS for clip_id in chosen.clip_ids.get(split, ())]
    names = [camera.name for camera in cameras.grid(p.vision.cameras).cameras]
    try:
        with _Writer(work, names, fps) as writer:
            with progress(total=len(pairs), unit="clip", label="Export") as bar:
                for split, clip_id in pairs:
                    row: dict[str, Any] = {"clip_id": clip_id, "split": split, "reason": ""}
                    try:
                        clip = open_clip(p.local_dir, catalog, clip_id)
                        number = writer.add(split, *_read(clip, names, fps))
                    except AvomniError as error:
                        number, row["reason"] = None, error.what
                    made.rows.append(row | {"episode": number})
                    bar.update(1, note=clip_id)
            if not writer.episodes:
                raise AvomniError(
                    f"none of {len(pairs)} clips can be read: {made.rows[0]['reason']}",
                    where=str(p.local_dir),
                )
            made.num_frames = writer.num_frames
            source = "the rendered world" if p.rendered else "recordings of its owner"
            writer.finish(source, {"license": "mit"} if p.rendered else {})
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work, folder)
        files.fsync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


def _read(
    clip: Clip, names: Sequence[str], fps: int
) -> tuple[str, np.ndarray, Callable[[str], np.ndarray]]:
    """Task, (N, 10) float32 state, and a function from a camera to its (N, H, W, 3) uint8 frames,
    of a clip at `fps`."""
    stamps = {name: clip.timestamps(name) for name in names}
    times, ego, _ = clip_times(clip, list(stamps.values()), fps, 0.0)
    if len(times) < 2:
        raise AvomniError(f"the clip has {len(times)} moments at {fps} a second; 2 are the least")
    poses = ego.at(times)
    state = np.hstack([poses.position, poses.quaternion, poses.velocity]).astype(np.float32)

    def pictures(name: str) -> np.ndarray:
        return reader.read_frames(clip.video(name), times, timestamps_us=stamps[name]).images

    text = " ".join(event.text for event in clip.catalog.events(clip.clip_id)[:1])
    return text or TASK, state, pictures


class _Writer:
    """Writes the files of the data set, clip by clip.

    Attributes:
        episodes: Rows of the table of episodes.
        num_frames: Number of frames of all episodes.
    """

    def __init__(self, folder: Path, names: Sequence[str], fps: int):
        self.folder, self.fps, self.num_frames = folder, fps, 0
        self.episodes: list[dict[str, Any]] = []
        self._videos = {name: _Video(folder, RIG.cameras[name], fps) for name in names}
        self._tasks: dict[str, int] = {}
        self._splits: list[str] = []
        self._tables: list[pa.Table] = []
        self._data_file, self._states = 0, list[np.ndarray]()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for video in self._videos.values():
            video.close()

    def add(
        self, split: str, task: str, state: np.ndarray, pictures: Callable[[str], np.ndarray]
    ) -> int:
        """Append a clip; returns the index of its episode.

        One camera is in memory at a time. If one cannot be read, the frames of the cameras before
        it stay in their files without an episode that refers to them.
        """
        number, count = len(self.episodes), len(state)
        row: dict[str, Any] = {"episode_index": number, "tasks": [task], "length": count}
        row |= {"data/chunk_index": 0, "data/file_index": self._data_file}
        row |= {"dataset_from_index": self.num_frames}
        row |= {"dataset_to_index": self.num_frames + count}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        for name, video in self._videos.items():
            row |= video.add(pictures(name))
        frames = np.arange(count)
        flat = pa.array(state.ravel(), pa.float32())
        self._tables.append(
            pa.table(
                {
                    RIG.state: pa.FixedSizeListArray.from_arrays(flat, state.shape[1]),
                    "timestamp": (frames / self.fps).astype(np.float32),
                    "frame_index": frames,
                    "episode_index": np.full(count, number),
                    "index": self.num_frames + frames,
                    "task_index": np.full(count, self._tasks.setdefault(task, len(self._tasks))),
                }
            )
        )
        self.episodes.append(row)
        self._splits.append(split)
        self._states.append(state)
        self.num_frames += count
        if sum(table.nbytes for table in self._tables) > DATA_MB * 1e6:
            self._flush()
        return number

    def finish(self, source: str, front_matter: Mapping[str, str]) -> None:
        """Write the metadata of all episodes."""
        import pandas as pd

        self._flush()
        for video in self._videos.values():
            video.close()
        _put(self.folder / EPISODES_PATH, pa.Table.from_pylist(self.episodes))
        tasks = pd.DataFrame(
            {"task_index": list(self._tasks.values())}, index=pd.Index(self._tasks, name="task")
        )
        tasks.to_parquet(self.folder / TASKS_FILE)
        places = {name: [n for n, s in enumerate(self._splits) if s == name] for name in SPLITS}
        number = {"dtype": "int64", "shape": [1], "names": None}
        info = {
            "codebase_version": "v3.0",
            "robot_type": "car",
            "total_episodes": len(self.episodes),
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_A_CHUNK,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": self.fps,
            "splits": {name: f"{at[0]}:{at[-1] + 1}" for name, at in places.items() if at},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": {
                RIG.state: {
                    "dtype": "float32",
                    "shape": [len(RIG.axes)],
                    "names": list(RIG.axes),
                },
                **{video.key: video.feature for video in self._videos.values()},
                "timestamp": number | {"dtype": "float32"},
                **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), number),
            },
        }
        files.write_text(self.folder / INFO_FILE, json.dumps(info, indent=4))
        states = np.concatenate(self._states).astype(np.float64)
        stats = {name: getattr(states, name)(axis=0).tolist() for name in _STATS}
        stats["count"] = [len(states)]
        files.write_text(self.folder / "meta/stats.json", json.dumps({RIG.state: stats}, indent=4))
        lines = [f"{key}: {value}" for key, value in front_matter.items()]
        head = "\n".join(["---", *lines, "task_categories:", "- robotics", "tags:", "- LeRobot"])
        files.write_text(
            self.folder / "README.md",
            f"{head}\n---\n# Driving clips in LeRobot's v3 layout\n\nFrom {source}, written by "
            f"AV-Omni {__version__}: {len(self.episodes)} episodes, {self.num_frames} frames at "
            f"{self.fps} a second. `{RIG.state}` is {', '.join(RIG.axes)}: the pose of the car (x "
            "forward, y left, z up, m; quaternion scalar last) and its velocity (m/s) in the frame "
            "of the clip's own start.\n",
        )

    def _flush(self) -> None:
        if self._tables:
            path = DATA_PATH.format(chunk_index=0, file_index=self._data_file)
            _put(self.folder / path, pa.concat_tables(self._tables))
            self._tables, self._data_file = [], self._data_file + 1


_STATS = ("min", "max", "mean", "std")


class _Video:
    """Writes the mp4 files of one camera.

    Attributes:
        key: Key of the camera in the data set.
        feature: Its entry in info.json; empty before the first clip.
    """

    def __init__(self, folder: Path, key: str, fps: int):
        self.key, self.feature = key, dict[str, Any]()
        self._folder, self._fps = folder, fps
        self._container: Any = None
        self._file, self._num_frames = 0, 0

    def add(self, pictures: np.ndarray) -> dict[str, Any]:
        """Encode a clip's (N, H, W, 3) uint8 frames; returns their place as columns of episodes."""
        height, width = (size - size % 2 for size in pictures.shape[1:3])
        rows, cols, _ = self.feature.get("shape", [height, width, 3])
        if (rows, cols) != (height, width):
            raise AvomniError(
                f"{self.key} is {width}×{height} px here, and {cols}×{rows} px in the clips "
                "before: a LeRobot data set has one size a camera"
            )
        if self._container is None:
            self._begin(width, height)
        start = self._num_frames
        for number, picture in enumerate(pictures, start):
            cut = np.ascontiguousarray(picture[:height, :width])
            frame = av.VideoFrame.from_ndarray(cut, format="rgb24")
            frame.pts = number
            self._container.mux(self._stream.encode(frame))
        self._num_frames += len(pictures)
        place = {
            f"videos/{self.key}/chunk_index": self._file // FILES_A_CHUNK,
            f"videos/{self.key}/file_index": self._file % FILES_A_CHUNK,
            f"videos/{self.key}/from_timestamp": start / self._fps,
            f"videos/{self.key}/to_timestamp": self._num_frames / self._fps,
        }
        if self._path.stat().st_size > VIDEO_MB * 1e6:
            self.close()
            self._file, self._num_frames = self._file + 1, 0
        return place

    def close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None

    def _begin(self, width: int, height: int) -> None:
        chunk, file = divmod(self._file, FILES_A_CHUNK)
        name = VIDEO_PATH.format(video_key=self.key, chunk_index=chunk, file_index=file)
        self._path = self._folder / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=OPTIONS)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.thread_count = 1
        self.feature = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }


def _put(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
