"""Estimate of what a run would fetch, from published figures, without requests to the source."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import (
    OBSTACLES,
    Catalog,
    optional_features,
    required_features,
)
from avomni_lib.dataset.download.remote import RemoteFile
from avomni_lib.dataset.lerobot.profile import Published, profile_of
from avomni_lib.params import Params
from avomni_lib.params.sections import WorldParams

# MB (1e6) of each feature in chunk 0 of nvidia/PhysicalAI-Autonomous-Vehicles, from the hub's
# listing of July 2026; other chunks differ by tens of per cent.
MB_A_CHUNK = {
    "camera_front_wide_120fov": 2051,
    "camera_front_tele_30fov": 1627,
    "camera_cross_left_120fov": 2261,
    "camera_cross_right_120fov": 2521,
    "camera_rear_left_70fov": 2130,
    "camera_rear_right_70fov": 2392,
    "camera_rear_tele_30fov": 2001,
    "egomotion": 36.8,
    "obstacle.offline": 63.7,
    "camera_intrinsics": 0.04,
    "sensor_extrinsics": 0.1,
    "vehicle_dimensions": 0.03,
}
CLIPS_A_CHUNK = 100  # in chunk 0
MB_METADATA, NUM_METADATA_FILES = 34, 5
EPISODES_TRAIN_SHARE = 0.8  # of the sessions, see `lerobot.episodes.DEALT`
NUM_EPISODE_TABLES = 2  # at least: info.json and one table of episodes

# For a rendered world, measured at 128 × 72 and 320 × 180.
WORLD_SPLITS = {"train": 0.6, "val": 0.1, "test": 0.3}
WORLD_FPS = 30
WORLD_BYTES_A_PIXEL = {"h264": 0.2, "hevc": 0.05}  # HEVC at 1920 × 1080, where H.264 is 0.08
WORLD_EGO_BYTES_A_S, WORLD_EGO_EXTRA_S = 9_000, 10
WORLD_OBSTACLES_BYTES, WORLD_OBSTACLES_BYTES_A_S = 5_500, 2_100


def clip_bytes(p: Params, feature: str) -> float:
    """Estimated bytes of a clip in a chunk's file of this feature."""
    if p.rendered is None:
        return MB_A_CHUNK[feature] * 1e6 / CLIPS_A_CHUNK
    return world_clip_bytes(p.rendered, feature)


def world_clip_bytes(world: WorldParams, feature: str) -> float:
    """As `clip_bytes`, for a rendered clip."""
    if feature in cameras.BY_NAME:
        pixels = WORLD_FPS * world.clip_seconds * world.width * world.height
        return pixels * WORLD_BYTES_A_PIXEL[world.codec]
    if feature == OBSTACLES:
        return WORLD_OBSTACLES_BYTES + WORLD_OBSTACLES_BYTES_A_S * world.clip_seconds
    seconds = world.clip_seconds + WORLD_EGO_EXTRA_S
    return WORLD_EGO_BYTES_A_S * seconds if feature == "egomotion" else 0.0


def world_splits(world: WorldParams) -> list[str]:
    """The split of each rendered clip, in order.

    Each clip goes to the split that is furthest below its share: any ten consecutive clips have six
    train, one val and three test.
    """
    dealt, counts = [], dict.fromkeys(WORLD_SPLITS, 0)
    for number in range(1, world.num_chunks * world.clips_per_chunk + 1):
        split = max(counts, key=lambda name: WORLD_SPLITS[name] * number - counts[name])
        counts[split] += 1
        dealt.append(split)
    return dealt


def estimated(catalog: Catalog, chunks: Iterable[int], p: Params) -> dict[str, RemoteFile]:
    """The files of these chunks with estimated sizes, and the metadata files on the disk."""
    present = [path for path in catalog.metadata_files if (catalog.folder / path).is_file()]
    sizes = {path: RemoteFile(path, (catalog.folder / path).stat().st_size) for path in present}
    for name in (*required_features(p), *catalog.listed(optional_features(p))):
        num_bytes = catalog.num_present(name) * clip_bytes(p, name)
        for chunk in chunks:
            path = catalog.path(name, chunk)
            size = int(num_bytes[catalog.place(chunk)])
            if p.lerobot_profile:
                size = catalog.expected_bytes(path)  # type: ignore[attr-defined]
            sizes[path] = RemoteFile(path, size)
    return sizes


class Forecast(NamedTuple):
    """Estimated number of chunks that a run takes, and of their clips, files and bytes."""

    num_chunks: int
    num_clips: int
    num_files: int
    num_bytes: int
    note: str


def forecast(p: Params) -> Forecast:
    """Estimate for the whole chunks within target_chunks (or the named ones) and target_size_gb.

    With `download.evict_raw`, only a single chunk must fit.
    """
    wanted = p.download.target_chunks if p.download.chunks is None else len(p.download.chunks)
    num_files = len(required_features(p)) + len(optional_features(p))  # of a chunk
    metadata, clips, num_tables = MB_METADATA * 1e6, float(CLIPS_A_CHUNK), NUM_METADATA_FILES
    note = "not asked; sizes are those of chunk 0"
    if p.lerobot_profile:
        if (known := published(p)) is None:
            return Forecast(0, 0, 0, 0, "nothing is published of it, and the hub was not asked")
        # Assume that a chunk is one file per camera, with the same episodes.
        chunk_bytes = (num_files - 1) * known.bytes_a_file + known.bytes_a_data_file
        clips = known.bytes_a_file / known.bytes_a_s / known.seconds * known.share_kept
        metadata, num_tables, note = known.bytes_metadata, NUM_EPISODE_TABLES + 1, known.source
    else:
        if world := p.rendered:
            wanted, metadata, clips = min(wanted, world.num_chunks), 0.0, world.clips_per_chunk
            note = "not asked; estimated from seconds and pixels"
        features = (*required_features(p), *optional_features(p))
        chunk_bytes = clips * sum(clip_bytes(p, name) for name in features)
    most = max(int((p.download.target_size_gb * 1e9 - metadata) // chunk_bytes), 0)
    num_chunks = wanted if p.download.evict_raw and most else min(wanted, most)
    return Forecast(
        num_chunks,
        math.floor(num_chunks * clips),
        num_chunks * num_files + num_tables,
        int(num_chunks * chunk_bytes + metadata),
        note,
    )


def published(p: Params) -> Published | None:
    """Published figures of the run's LeRobot data set, or None."""
    figures = profile_of(p.lerobot_profile).published if p.lerobot_profile else None
    owner = p.dataset.repo_id.split("/")[0]
    return figures if figures and figures.repo_id.split("/")[0] == owner else None


def episode_rows(p: Params, num_clips: int) -> list[tuple[str, str, str]]:
    """Row of a plan with the hours of driving; empty without published figures."""
    if (known := published(p)) is None:
        return []
    note = f"of {known.hours:,.0f} h in {known.num_episodes:,} episodes, of which "
    note += f"{1 - known.share_kept:.1%} overlap and are left out; split by session"
    return [("driving", f"{num_clips * known.seconds / 3600:.1f} h", note)]


def episode_warnings(p: Params) -> list[str]:
    """Warnings about what a LeRobot data set lacks."""
    if not p.lerobot_profile:
        return []
    return [f"{what}: {reason}" for what, reason in profile_of(p.lerobot_profile).remarks]
