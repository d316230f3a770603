"""A small published folder in the data set's own layout, made without the renderer.

Every frame carries its own name: `frame_bits` paints clip, camera and frame number as light and
dark squares that survive H.264 and shrinking, and `read_frame` reads them back. The ego vehicle
drives along a circle with a swinging speed, so that `Drive` knows speed, position and path length
in closed form.

    folder = write_published_set(tmp_path / "published", num_chunks=2, clips_per_chunk=3)
    read_frame(image)  # -> (clip number, camera's place in rig.CAMERAS, frame_idx)
"""

from __future__ import annotations

import io
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from avomni_lib.dataset import cameras
from avomni_lib.dataset.own import layout
from avomni_lib.dataset.own.layout import parquet as parquet_bytes

SPLITS = ("train", "val", "test")
FPS = 30
LABELS = ("egomotion", "egomotion.offline", "obstacle.offline")
CALIBRATION = (
    "camera_intrinsics",
    "camera_intrinsics.offline",
    "lidar_intrinsics.offline",
    "sensor_extrinsics",
    "sensor_extrinsics.offline",
    "vehicle_dimensions",
)
LIDARS = ("lidar_top_360fov",)
_RADARS = {
    "corner_front_left": ("srr_0", "srr_3"),
    "corner_front_right": ("srr_0", "srr_3"),
    "corner_rear_left": ("srr_0", "srr_3"),
    "corner_rear_right": ("srr_0", "srr_3"),
    "front_center": ("imaging_lrr_1", "mrr_2", "srr_0"),
    "rear_left": ("mrr_2", "srr_0"),
    "rear_right": ("mrr_2", "srr_0"),
    "side_left": ("srr_0", "srr_3"),
    "side_right": ("srr_0", "srr_3"),
}
RADARS = tuple(f"radar_{place}_{kind}" for place, kinds in _RADARS.items() for kind in kinds)
CAMERAS = tuple(sorted(cameras.BY_NAME))
FEATURES = LABELS + CALIBRATION + CAMERAS + LIDARS + RADARS
# What a release lists: 25.10 knew no offline feature, and its presence table sensors only.
FEATURES_25_10 = tuple(name for name in FEATURES if ".offline" not in name)
RELEASES = ("25.10", "26.03", "main")
COUNTRIES = ("United States", "Germany", "Italy")
PLATFORMS = ("hyperion_8", "hyperion_8.1")
EVENT_CLUSTERS = ("WORK_ZONES_TEMP_TRAFFIC_CONTROL", "ANIMALS_BIRDS_ROADKILL")
PUBLISHED = (
    "egomotion",
    "camera_intrinsics",
    "sensor_extrinsics",
    "vehicle_dimensions",
    *CAMERAS,
)
BIT_ROWS, BIT_COLS = 4, 8


def clip_id_of(clip_number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"published-set/{clip_number}"))


@dataclass(frozen=True)
class Drive:
    """The ego motion of one clip: a circle of constant curvature at a swinging speed."""

    clip_number: int

    @property
    def mean_speed(self) -> float:
        return 4.0 + 2.0 * self.clip_number

    @property
    def curvature(self) -> float:
        return (-1) ** self.clip_number / (40.0 + 10.0 * self.clip_number)

    swing_mps = 1.5
    swing_hz = 0.2

    def speed(self, t_s: np.ndarray | float) -> np.ndarray:
        """m/s at times in s."""
        return self.mean_speed + self.swing_mps * np.sin(
            2 * np.pi * self.swing_hz * np.asarray(t_s)
        )

    def travelled(self, t_s: np.ndarray | float) -> np.ndarray:
        """Path length in m since t = 0."""
        turn = 2 * np.pi * self.swing_hz
        t_s = np.asarray(t_s)
        return self.mean_speed * t_s + self.swing_mps / turn * (1 - np.cos(turn * t_s))

    def position(self, t_s: np.ndarray | float) -> np.ndarray:
        """(..., 3) m in the anchor frame (the rig at t = 0, x forward, y left, z up)."""
        yaw = self.curvature * self.travelled(t_s)
        x, y = np.sin(yaw) / self.curvature, (1 - np.cos(yaw)) / self.curvature
        return np.stack([x, y, np.zeros_like(x)], axis=-1)

    def chord(self, start_s: float, end_s: float) -> float:
        return float(np.linalg.norm(self.position(end_s) - self.position(start_s)))

    def egomotion(self, t_us: np.ndarray) -> dict[str, np.ndarray]:
        """The 15 columns of the data set at `t_us` (N,) int64."""
        t_s = t_us / 1e6
        speed, yaw = self.speed(t_s), self.curvature * self.travelled(t_s)
        turn = 2 * np.pi * self.swing_hz
        along = self.swing_mps * turn * np.cos(turn * t_s)
        across = speed**2 * self.curvature
        zero = np.zeros_like(t_s)
        columns = {"timestamp": t_us, "qx": zero, "qy": zero}
        columns |= {"qz": np.sin(yaw / 2), "qw": np.cos(yaw / 2)}
        columns |= dict(zip("xyz", self.position(t_s).T, strict=True))
        columns |= {"vx": speed * np.cos(yaw), "vy": speed * np.sin(yaw), "vz": zero}
        columns |= {
            "ax": along * np.cos(yaw) - across * np.sin(yaw),
            "ay": along * np.sin(yaw) + across * np.cos(yaw),
            "az": zero,
        }
        return columns | {"curvature": np.full_like(t_s, self.curvature)}


def camera_times(clip_number: int, camera_idx: int, seconds: float) -> np.ndarray:
    """(N,) int64 µs, about 30 a second and never exactly.

    Each camera starts at its own time, and every second camera has one frame more.
    """
    num_frames = round(seconds * FPS) + camera_idx % 2
    jitter = np.random.default_rng([clip_number, camera_idx]).integers(-400, 400, num_frames)
    start = -14_200 + 7_000 * camera_idx
    return (start + np.arange(num_frames) * 1_000_000 / FPS).astype(np.int64) + jitter


def egomotion_times(clip_number: int, seconds: float) -> np.ndarray:
    """(N,) int64 µs from -0.2 s to 9 s past the video, about 100 a second and uneven."""
    steps = np.random.default_rng([clip_number, 99]).integers(
        8_000, 12_000, int((seconds + 9.4) * 100)
    )
    times = -200_000 + np.cumsum(steps)
    return times[times <= (seconds + 9.0) * 1e6].astype(np.int64)


def frame_bits(
    clip_number: int, camera_idx: int, frame_idx: int, width: int, height: int
) -> np.ndarray:
    """(height, width, 3) uint8: 32 squares, light for 1, the least bit at the top left."""
    name = clip_number << 20 | camera_idx << 16 | frame_idx
    bits = np.array([name >> place & 1 for place in range(BIT_ROWS * BIT_COLS)], np.uint8)
    squares = np.where(bits, 220, 40).astype(np.uint8).reshape(BIT_ROWS, BIT_COLS)
    rows = np.arange(height) * BIT_ROWS // height
    cols = np.arange(width) * BIT_COLS // width
    return np.repeat(squares[rows][:, cols, None], 3, axis=2)


def read_frame(image: np.ndarray) -> tuple[int, int, int]:
    """(clip number, place in rig.CAMERAS, frame_idx) of an (H, W, 3) picture of any size ≥ 8×4."""
    height, width = image.shape[:2]
    rows = (np.arange(BIT_ROWS) + 0.5) * height / BIT_ROWS
    cols = (np.arange(BIT_COLS) + 0.5) * width / BIT_COLS
    light = image[rows.astype(int)][:, cols.astype(int)].mean(axis=-1) > 130
    name = sum(int(bit) << place for place, bit in enumerate(light.ravel()))
    return name >> 20, name >> 16 & 0xF, name & 0xFFFF


def encode_video(
    pictures: Sequence[np.ndarray], codec: str = "libx264", gop: int = 15, rate: int = FPS
) -> bytes:
    """An mp4 of (H, W, 3) uint8 pictures at so many frames a second."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        stream.options = {"preset": "ultrafast", "crf": "20"}
        stream.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def write_published_set(
    folder: Path,
    num_chunks: int = 2,
    clips_per_chunk: int = 3,
    seconds: float = 2.0,
    *,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    release: str = "26.03",
) -> Path:
    """Write the folder, its metadata as in one of `RELEASES`.

    Clip n is `listed_clip(n, n // clips_per_chunk)` and drives `Drive(n)`.
    """
    folder = Path(folder)
    put_file(folder / "README.md", b"# A small published set\n")
    clips = [listed_clip(n, n // clips_per_chunk) for n in range(num_chunks * clips_per_chunk)]
    write_metadata(folder, clips, release)
    for chunk in range(num_chunks):
        numbers = range(chunk * clips_per_chunk, (chunk + 1) * clips_per_chunk)
        _write_calibration(folder, chunk, numbers, width, height)
        members = {}
        for n in numbers:
            columns = Drive(n).egomotion(egomotion_times(n, seconds))
            members[f"{clip_id_of(n)}.egomotion.parquet"] = parquet_bytes(columns)
        write_zip(folder / chunk_path("egomotion", chunk), members)
        for camera_idx, camera in enumerate(cameras.CAMERAS):
            members = {}
            for n in numbers:
                members |= _camera_members(
                    n, camera_idx, camera.name, seconds, (width, height), codec
                )
            write_zip(folder / chunk_path(camera.name, chunk), members)
    return folder


@dataclass(frozen=True)
class ListedClip:
    """A clip as the metadata list it; `absent` are features that it lacks."""

    clip_id: str
    chunk: int = 0
    split: str | None = "train"
    country: str | None = "United States"
    month: int = 6
    hour: int = 12
    platform: str = "hyperion_8.1"
    event_cluster: str | None = None
    is_valid: bool = True
    absent: tuple[str, ...] = ()


def listed_clip(clip_number: int, chunk: int) -> ListedClip:
    """Of each kind some: its attributes follow from its number."""
    n = clip_number
    return ListedClip(
        clip_id_of(n),
        chunk,
        SPLITS[n % 3],
        COUNTRIES[n // 3 % len(COUNTRIES)],
        month=n % 12 + 1,
        hour=8 + n % 5,
        platform=PLATFORMS[n % 2],
        event_cluster=EVENT_CLUSTERS[n // 4 % 2] if n % 4 == 1 else None,
        absent=tuple(name for name in FEATURES if name not in PUBLISHED),
    )


def write_metadata(
    folder: Path, clips: Sequence[ListedClip], release: str = "26.03", is_indexed: bool = False
) -> Path:
    """features.csv and the tables that list the clips, as in one of `RELEASES`.

    `is_indexed`: clip_id is stored as pandas stores an index, and not as a column.
    """
    features = FEATURES_25_10 if release == "25.10" else FEATURES
    put_file(folder / "features.csv", features_csv(features))

    def put(path: str, columns: dict, listed: Sequence[ListedClip] = clips) -> None:
        table = pa.table(columns | {"clip_id": pa.array([c.clip_id for c in listed], pa.string())})
        if is_indexed:
            table = pa.Table.from_pandas(table.to_pandas().set_index("clip_id"))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / path)

    put(
        "clip_index.parquet",
        {
            "clip_is_valid": [clip.is_valid for clip in clips],
            "chunk": [clip.chunk for clip in clips],
            "split": pa.array([clip.split for clip in clips], pa.string()),
        },
    )
    presence: dict = {name: [name not in c.absent for c in clips] for name in features}
    no_radar = pa.array([None] * len(clips), pa.string())
    if release == "25.10":
        presence = {name: presence[name] for name in CAMERAS + LIDARS + RADARS}
        put("metadata/sensor_presence.parquet", presence | {"radar_config": no_radar})
    else:
        put("metadata/feature_presence.parquet", presence)
    put(
        "metadata/data_collection.parquet",
        {
            "country": pa.array([clip.country for clip in clips], pa.string()),
            "month": [clip.month for clip in clips],
            "hour_of_day": [clip.hour for clip in clips],
            "platform_class": [clip.platform for clip in clips],
            "radar_config": no_radar,
        },
    )
    if release == "main":
        special = [clip for clip in clips if clip.event_cluster]
        # Some have a cluster and no list of events.
        events = [None if n % 3 == 2 else "[]" for n in range(len(special))]
        put(
            "reasoning/ood_reasoning.parquet",
            {
                "feature": ["camera_front_wide_120fov"] * len(special),
                "event_cluster": [clip.event_cluster for clip in special],
                "events": pa.array(events, pa.string()),
                "split": [clip.split for clip in special],
            },
            special,
        )
    return folder


def features_csv(features: Sequence[str] = FEATURES) -> bytes:
    """The data set's own file byte for byte (git blob 65de094a4037902a40bd42de7b17082029b78fe2)."""
    return layout.features_csv(
        (name, chunk_path(name, None), _member_names(name)) for name in features
    )


def chunk_path(feature: str, chunk: int | None) -> str:
    groups = {"labels": LABELS, "calibration": CALIBRATION, "camera": CAMERAS, "lidar": LIDARS}
    directory = next((name for name, held in groups.items() if feature in held), "radar")
    number = "{chunk_id:04d}" if chunk is None else f"{chunk:04d}"
    ending = "parquet" if directory == "calibration" else "zip"
    return f"{directory}/{feature}/{feature}.chunk_{number}.{ending}"


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)


def read_zip(path: Path) -> dict[str, bytes]:
    """All members of a zip, to change one and write them again."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _member_names(feature: str) -> dict[str, str]:
    endings = {
        "video": "mp4",
        "frame_timestamps": "timestamps.parquet",
        "blurred_boxes": "blurred_boxes.parquet",
    }
    if feature not in CAMERAS:
        kind = {"lidar": "pointclouds", "radar": "scans"}.get(feature.split("_")[0], feature)
        endings = {} if feature in CALIBRATION else {kind: "parquet"}
    return {kind: f"{{clip_id}}.{feature}.{end}" for kind, end in endings.items()}


def put_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_calibration(folder: Path, chunk: int, numbers: range, width: int, height: int) -> None:
    """Equidistant lenses, and mounts and a car of which each number can be told."""
    names = [camera.name for camera in cameras.CAMERAS]
    keys = pd.MultiIndex.from_product([map(clip_id_of, numbers), names]).to_frame(index=False)
    focal = width / np.radians([cameras.BY_NAME[name].fov_deg for name in keys[1]])
    intrinsics = keys.set_axis(["clip_id", "camera_name"], axis=1).assign(
        width=width, height=height, cx=width / 2, cy=height / 2
    )
    for power in range(5):
        intrinsics[f"bw_poly_{power}"] = (power == 1) / focal
        intrinsics[f"fw_poly_{power}"] = (power == 1) * focal
    extrinsics = keys.set_axis(["clip_id", "sensor_name"], axis=1).assign(
        **dict.fromkeys(("qx", "qy", "qz", "qw"), 0.5),
        x=1.5,
        y=[0.1 * names.index(name) for name in keys[1]],
        z=1.4,
    )
    sizes = {"length": 4.87, "width": 2.12, "height": 1.47, "rear_axle_to_bbox_center": 1.42}
    sizes |= {"wheelbase": 2.85, "track_width": 1.6}
    vehicle = pd.DataFrame([sizes | {"clip_id": clip_id_of(n)} for n in numbers])
    for feature, table in (
        ("camera_intrinsics", intrinsics),
        ("sensor_extrinsics", extrinsics),
        ("vehicle_dimensions", vehicle),
    ):
        columns = {name: table[name].to_numpy() for name in table}
        put_file(folder / chunk_path(feature, chunk), parquet_bytes(columns))


def _camera_members(
    number: int, camera_idx: int, camera: str, seconds: float, size: tuple[int, int], codec: str
) -> dict[str, bytes]:
    times = camera_times(number, camera_idx, seconds)
    pictures = [frame_bits(number, camera_idx, i, *size) for i in range(len(times))]
    stem = f"{clip_id_of(number)}.{camera}"
    clock = {"timestamp": times, "frame_index": np.arange(len(times))}
    no_boxes = dict.fromkeys(("frame_index", "x1", "y1", "x2", "y2"), np.zeros(0, np.int64))
    return {
        f"{stem}.mp4": encode_video(pictures, codec),
        f"{stem}.timestamps.parquet": parquet_bytes(clock),
        f"{stem}.blurred_boxes.parquet": parquet_bytes(no_boxes),
    }


def bytes_read() -> int:
    """What this process has read by system calls, from disk or page cache."""
    return int(Path("/proc/self/io").read_text().split()[1])
