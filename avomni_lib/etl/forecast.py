"""What the ETL would take: clips, frames, windows, bytes and minutes, told before it starts."""

from __future__ import annotations

import contextlib
import itertools
import math

from avomni_lib import files
from avomni_lib.dataset import rig
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.chosen import Chosen, path_of, read_chosen
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.forecast import CLIPS_A_CHUNK, forecast
from avomni_lib.errors import AvomniError
from avomni_lib.etl import tiling, windows
from avomni_lib.etl.sampling import HISTORY_S, TRACK_HZ, Recipe
from avomni_lib.etl.shard import EGOMOTION_COLUMNS, TRACK_COLUMNS
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes, minutes

# Of nvidia/PhysicalAI-Autonomous-Vehicles: 605 frames of 1920 × 1080 a clip and camera.
CLIP_SECONDS, FPS, SOURCE_SIZE = 20.0, 30, (1920, 1080)
# CPU seconds to decode, measured with PyAV 18 on one core of an EPYC: a frame, and a pixel of it.
FRAME_S, PIXEL_S = 1.0e-4, 4.6e-9
# Of a JPEG of quality 90: its tables, and its share of the pixels' bytes. A real highway drive and
# rendered streets took 0.06 to 0.09 of grids of 448 px and more, 0.13 of the demo's 96 × 64.
JPEG_TABLES, JPEG_SHARE, JPEG_SHARE_MOST = 620, 0.09, 0.2
PATCH_SIDE = 32  # px: patch × merge of Qwen3-VL; a grid that it does not divide cannot be read


def clip_seconds(p: Params, clip: Clip | None = None) -> float:
    """Seconds of video a clip: of this one where its timestamps can be read, else as published."""
    if clip is not None:
        with contextlib.suppress(AvomniError):
            stamps = clip.timestamps(rig.grid(p.vision.camera_setup).cameras[0].name)
            return float(stamps[-1] - stamps[0]) / 1e6
    return p.dataset.world.clip_seconds if p.dataset.source == "world" else CLIP_SECONDS


def num_frames(seconds: float, recipe: Recipe) -> int:
    """Sampled frames of so many seconds of video."""
    return math.ceil(seconds * recipe.sample_hz)


def frame_bytes(recipe: Recipe) -> int:
    """Bytes of one sampled grid frame."""
    return math.prod(tiling.grid_size(rig.grid(recipe.setup), recipe.tile)) * 3


def clip_bytes(p: Params, seconds: float, storage: str, jpeg_share: float = JPEG_SHARE) -> int:
    """Bytes of one clip of so many seconds in the cache."""
    grid, processing = rig.grid(p.vision.camera_setup), p.processing
    pixels = math.prod(tiling.grid_size(grid, (processing.tile_width, processing.tile_height)))
    frame = 3 * pixels if storage == "raw" else JPEG_TABLES + jpeg_share * 3 * pixels
    row = 8 * (len(grid.cameras) + 1 + len(EGOMOTION_COLUMNS))
    track = (HISTORY_S + seconds + processing.horizon_s) * TRACK_HZ * 8 * len(TRACK_COLUMNS)
    return math.ceil(math.ceil(seconds * processing.sample_hz) * (frame + row) + track)


def chunk_cache_bytes(p: Params, num_clips: int, seconds: float) -> int:
    """Bytes in the cache's folder at most while a chunk's shard is made, its parts beside it.

    Half of them stay. This holds as well where some of the clips come from the shard that was
    there. JPEG is taken at its largest, so that a budget that holds by this holds.
    """
    return 2 * num_clips * clip_bytes(p, seconds, p.processing.storage, JPEG_SHARE_MOST)


def cache_bytes(p: Params, num_clips: int, seconds: float, clips_a_chunk: int | None = None) -> int:
    """Bytes of a cache of so many clips at its peak: all shards, and the last one's parts."""
    if clips_a_chunk is None:
        is_world = p.dataset.source == "world"
        clips_a_chunk = p.dataset.world.clips_per_chunk if is_world else CLIPS_A_CHUNK
    parts = min(num_clips, clips_a_chunk)
    shards = num_clips * clip_bytes(p, seconds, p.processing.storage, JPEG_SHARE_MOST)
    return shards + chunk_cache_bytes(p, parts, seconds) // 2


def _first_clip(p: Params, chosen: Chosen) -> Clip | None:
    """A clip that the run has chosen, if the raw files are still there."""
    with contextlib.suppress(AvomniError):
        for clip_id in itertools.chain(*chosen.clip_ids.values()):
            return Clip(p.local_dir, Catalog.open(p.local_dir), clip_id)
    return None


def plan(p: Params, recipe: Recipe, workers: tuple[int, str], decoder: tuple[str, str]) -> Plan:
    """See `build.plan`."""
    grid = rig.grid(recipe.setup)
    if path_of(p).exists():
        chosen = read_chosen(p)
        num_clips, source = chosen.num_clips, "chosen by 02_download"
        seconds = clip_seconds(p, _first_clip(p, chosen))
    else:
        num_clips, source = forecast(p).num_clips, "estimate; 02 has not run"
        seconds = clip_seconds(p)
    frames = num_frames(seconds, recipe)
    length, stride = p.processing.sequence_length, p.processing.stride
    num_windows = num_clips * windows.num_windows(frames, length, stride)
    num_bytes = num_clips * frames * frame_bytes(recipe)
    world = p.dataset.world
    size = (world.width, world.height) if p.dataset.source == "world" else SOURCE_SIZE
    a_camera = seconds * FPS * (FRAME_S + math.prod(size) * PIXEL_S)
    cpu_seconds = num_clips * len(grid.cameras) * a_camera
    width, height = tiling.grid_size(grid, recipe.tile)
    free = files.free_bytes(p.cache_dir)
    rows = [
        ("clips", f"{num_clips:,}", source),
        ("frames", f"{num_clips * frames:,}", f"{frames} a clip at {recipe.sample_hz:g} Hz"),
        ("grid", f"{width}×{height} px", f"{recipe.setup}, {recipe.fit}"),
        ("windows", f"{num_windows:,}", f"{length} frames, one every {stride}, all splits"),
        ("cache", gigabytes(num_bytes), f"{gigabytes(free)} free"),
        ("time", minutes(cpu_seconds / workers[0]), f"about; {workers[0]} workers, {workers[1]}"),
        ("decoder", decoder[0], decoder[1]),
    ]
    warnings = []
    if not num_windows and num_clips:
        warnings.append(
            f"no window fits on a clip: {length} frames at {recipe.sample_hz:g} Hz are longer than "
            f"{seconds:.3g} s; lower processing.sequence_length or raise sample_hz"
        )
    if num_bytes + (1 << 28) > free:
        warnings.append(f"the cache needs {gigabytes(num_bytes)} and {gigabytes(free)} are free")
    if width % PATCH_SIDE or height % PATCH_SIDE:
        warnings.append(
            f"the grid of {width}×{height} px is no multiple of {PATCH_SIDE} px, which Qwen3-VL "
            "needs; change processing.tile_width or tile_height"
        )
    figures = {
        "num_clips": num_clips,
        "num_frames": num_clips * frames,
        "num_windows": num_windows,
        "cache_bytes": num_bytes,
        "cpu_seconds": cpu_seconds,
        "seconds": cpu_seconds / workers[0],
    }
    return Plan("03 builds the cache", rows, warnings, figures)
