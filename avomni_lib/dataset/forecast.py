"""What a run would fetch, told without the hub: from what is published of the data set."""

from __future__ import annotations

from dataclasses import dataclass

from avomni_lib import files
from avomni_lib.dataset import rig
from avomni_lib.dataset.catalog import required_features
from avomni_lib.dataset.selection import source_in_words
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes, minutes

# MB (1e6) of each feature of chunk 0 of nvidia/PhysicalAI-Autonomous-Vehicles, read from the hub's
# listing in July 2026; other chunks differ by some tens of per cent.
MB_A_CHUNK = {
    "camera_front_wide_120fov": 2051,
    "camera_front_tele_30fov": 1627,
    "camera_cross_left_120fov": 2261,
    "camera_cross_right_120fov": 2521,
    "camera_rear_left_70fov": 2130,
    "camera_rear_right_70fov": 2392,
    "camera_rear_tele_30fov": 2001,
    "egomotion": 36.8,
    "camera_intrinsics": 0.04,
    "sensor_extrinsics": 0.1,
    "vehicle_dimensions": 0.03,
}
MB_METADATA, NUM_METADATA_FILES = 34, 3
CLIPS_A_CHUNK = 100

EXAMPLE_LINE_BYTES_PER_S = 12.5e6

# Of a rendered world: measured at 128 × 72 and 320 × 180.
WORLD_FPS = 30
WORLD_BYTES_A_PIXEL = 0.2
WORLD_EGO_BYTES_A_S, WORLD_EGO_EXTRA_S = 9_000, 10


@dataclass(frozen=True)
class Forecast:
    """Estimates: chunks that fit the budget, their clips, files and bytes."""

    num_chunks: int
    num_clips: int
    num_files: int
    num_bytes: int
    note: str


def forecast(p: Params) -> Forecast:
    """Whole chunks within download.target_chunks (or as many as are named) and target_size_gb."""
    features = required_features(p)
    wanted = p.download.target_chunks if p.download.chunks is None else len(p.download.chunks)
    metadata, clips = MB_METADATA * 1e6, CLIPS_A_CHUNK
    chunk_bytes = sum(MB_A_CHUNK[name] for name in features) * 1e6
    note = "not asked; sizes are those of chunk 0"
    if p.dataset.source == "world":
        world = p.dataset.world
        wanted, metadata, clips = min(wanted, world.num_chunks), 0.0, world.clips_per_chunk
        num_cameras = len(rig.grid(p.vision.camera_setup).cameras)
        pixels = num_cameras * WORLD_FPS * world.clip_seconds * world.width * world.height
        ego_bytes = WORLD_EGO_BYTES_A_S * (world.clip_seconds + WORLD_EGO_EXTRA_S)
        chunk_bytes = clips * (pixels * WORLD_BYTES_A_PIXEL + ego_bytes)
        note = "not asked; estimated from seconds and pixels"
    room = p.download.target_size_gb * 1e9 - metadata
    num_chunks = max(min(wanted, int(room // chunk_bytes)), 0)
    return Forecast(
        num_chunks,
        num_chunks * clips,
        num_chunks * len(features) + NUM_METADATA_FILES,
        int(num_chunks * chunk_bytes + metadata),
        note,
    )


def forecast_plan(p: Params, question: str | None) -> Plan:
    """The plan of a download that has asked nobody yet.

    Args:
        question: What the user has to decide first, or None.
    """
    expected, free = forecast(p), files.free_bytes(p.local_dir)
    warnings = [f"nothing is fetched before you decide: {question}"] if question else []
    if not expected.num_chunks:
        warnings.append("download.target_size_gb is too small for one chunk of these cameras")
    if expected.num_bytes > free:
        warnings.append(f"no room: {gigabytes(expected.num_bytes)}, {gigabytes(free)} free")
    rows = [
        ("source", source_in_words(p), expected.note),
        ("chunks", f"{expected.num_chunks}", f"download.target_chunks: {p.download.target_chunks}"),
        ("clips", f"about {expected.num_clips}", ""),
        ("files", f"{expected.num_files}", ""),
        ("size", f"about {gigabytes(expected.num_bytes)}", line_time(expected.num_bytes)),
        ("room on the disk", gigabytes(free), str(p.local_dir)),
    ]
    figures = {
        "num_chunks": expected.num_chunks,
        "num_clips": expected.num_clips,
        "num_files": expected.num_files,
        "bytes": expected.num_bytes,
        "bytes_free": free,
        "is_estimate": True,
    }
    return Plan("Download", rows, warnings, figures)


def line_time(num_bytes: float) -> str:
    """How long a line takes that people know."""
    return f"{minutes(num_bytes / EXAMPLE_LINE_BYTES_PER_S)} at 100 Mbit/s" if num_bytes else ""
