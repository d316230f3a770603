"""Estimates for the ETL before it starts: clips, frames, windows, bytes and time."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip, open_clip
from avomni_lib.dataset.select.forecast import CLIPS_A_CHUNK, forecast, published
from avomni_lib.dataset.select.manifest import Chosen, path_of, read_chosen
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import windows
from avomni_lib.etl.cache.shard import EGOMOTION_COLUMNS, STORAGES, TRACK_COLUMNS
from avomni_lib.etl.clip import fingerprints, obstacles, tiling
from avomni_lib.etl.clip.sampling import HISTORY_S, TRACK_HZ, Recipe
from avomni_lib.etl.video import stream
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes, minutes

# nvidia/PhysicalAI-Autonomous-Vehicles has 605 frames of 1920 × 1080 per clip and camera. The codec
# is not published.
CLIP_SECONDS, FPS, SOURCE_SIZE, SOURCE_CODEC = 20.0, 30, (1920, 1080), "h264"

# CPU seconds to decode, measured with PyAV 18 on one core of a Xeon, 1080p of 5 to 8 Mb/s, GOP 30:
# per frame, and per pixel if all frames are decoded. At a sample rate of f Hz only wanted and
# reference frames are decoded, which took (f / fps) ** 0.43 of the time at 2, 5, 10 and 29 Hz.
FRAME_S, PIXEL_S = 1.0e-4, {"h264": 4.6e-9, "hevc": 5.5e-9, "av1": 2.7e-9}
SAMPLED_POWER = 0.43
DECODER_COST = {"pyav": 1.0, "decord": 1.7}  # at 2 Hz, relative to PyAV
# Seconds to store a byte of pixels: hashing, and writing to the part and again to the shard. For
# JPEG: encoding, as the written bytes are few.
STORE_S = {"raw": 10e-9, "jpeg": 2.5e-9}
# Size of a JPEG of quality 90: its tables, and bytes per byte of pixels. A real highway drive and
# rendered streets took 0.06 to 0.09 on grids of 448 px and more, 0.13 on the demo's 96 × 64.
JPEG_TABLES, JPEG_SHARE, JPEG_SHARE_MOST = 620, 0.09, 0.2

# Label rows per second: the mean of the real data set (7,290 per clip of 20 s), and the maximum of
# rendered clips.
OBSTACLE_ROWS_A_S = {"hub": 365, "world": 80}


@dataclass(frozen=True)
class VideoProperties:
    """Properties of one camera's video of a clip, known or expected."""

    codec: str
    width: int
    height: int
    num_frames: int
    source: str

    def cpu_s(self, sample_hz: float, decoder: str = "pyav") -> float:
        """CPU seconds to read the frames sampled at this rate."""
        pixel_s = PIXEL_S.get(self.codec, max(PIXEL_S.values()))
        share = min(sample_hz / FPS, 1.0) ** SAMPLED_POWER
        cost = share * DECODER_COST.get(decoder, 1.0)
        return self.num_frames * (FRAME_S + self.width * self.height * pixel_s * cost)


def clip_seconds(p: Params, clip: Clip | None = None) -> float:
    """Seconds of video: of this clip if its timestamps can be read, else as published."""
    if clip is not None:
        with contextlib.suppress(AvomniError, OSError, IndexError):
            stamps = clip.timestamps(cameras.grid(p.vision.cameras).cameras[0].name)
            return float(stamps[-1] - stamps[0]) / 1e6
    if known := published(p):
        return known.seconds
    return p.rendered.clip_seconds if p.rendered else CLIP_SECONDS


def clip_video(p: Params, clip: Clip | None = None) -> VideoProperties:
    """One camera's video: of this clip if it can be read, else as published."""
    if clip is not None:
        camera = cameras.grid(p.vision.cameras).cameras[0].name
        with contextlib.suppress(AvomniError, OSError), stream.opened(clip.video(camera)) as opened:
            codec = opened.codec.name.removeprefix("lib").replace("dav1d", "av1")
            size = opened.codec.width, opened.codec.height
            return VideoProperties(codec, *size, len(opened.pts), f"{camera} of a chosen clip")
    if known := published(p):
        return VideoProperties(
            known.codec, *known.size, round(known.seconds * known.fps), known.source
        )
    num_frames = round(clip_seconds(p) * FPS)
    if world := p.rendered:
        return VideoProperties(
            world.codec, world.width, world.height, num_frames, "as it is rendered"
        )
    return VideoProperties(SOURCE_CODEC, *SOURCE_SIZE, num_frames, "expected; no raw file was read")


def num_frames(seconds: float, recipe: Recipe) -> int:
    """Number of sampled frames in this many seconds of video."""
    return math.ceil(seconds * recipe.sample_hz)


def clip_bytes(p: Params, seconds: float, storage: str, jpeg_share: float = JPEG_SHARE) -> int:
    """Bytes in the cache of one clip of this many seconds."""
    grid, processing = cameras.grid(p.vision.cameras), p.processing
    pixels = math.prod(tiling.grid_size(grid, (processing.tile_width, processing.tile_height)))
    frame = 3 * pixels if storage == "raw" else JPEG_TABLES + jpeg_share * 3 * pixels
    words = 2 * fingerprints.num_words(len(grid.cameras))
    row = 8 * (len(grid.cameras) + 1 + len(EGOMOTION_COLUMNS) + words)
    track = (HISTORY_S + seconds + processing.horizon_s) * TRACK_HZ * 8 * len(TRACK_COLUMNS)
    rows_a_s = OBSTACLE_ROWS_A_S["world" if p.rendered else "hub"]
    others = (HISTORY_S + seconds) * rows_a_s * 8 * len(obstacles.COLUMNS)
    others = others if processing.obstacles else 0
    return math.ceil(math.ceil(seconds * processing.sample_hz) * (frame + row) + track + others)


def cache_bytes(p: Params, num_clips: int, seconds: float) -> int:
    """Peak bytes of a cache of this many clips: all shards, and the parts of the last one.

    An upper bound: JPEGs are assumed to be of their maximum size.
    """
    clips_a_chunk = p.rendered.clips_per_chunk if p.rendered else CLIPS_A_CHUNK
    bytes_per_clip = clip_bytes(p, seconds, p.processing.storage, JPEG_SHARE_MOST)
    return (num_clips + min(num_clips, clips_a_chunk)) * bytes_per_clip


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if it does not exist."""
    return sum(size_of(path) for path in Path(folder).rglob("*") if path.is_file())


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist."""
    state = files.state_of(path)
    return state[0] if state else 0


def storages(
    p: Params, num_clips: int, seconds: float, video: VideoProperties, decoder: str
) -> dict[str, dict[str, float]]:
    """Storage -> its `cache_bytes` when done, and `cpu_seconds` for the build."""
    num_videos = num_clips * len(cameras.grid(p.vision.cameras).cameras)
    decode_s = num_videos * video.cpu_s(p.processing.sample_hz, decoder)
    pixel_bytes = num_clips * clip_bytes(p, seconds, "raw")
    return {
        storage: {
            "cache_bytes": num_clips * clip_bytes(p, seconds, storage),
            "cpu_seconds": decode_s + pixel_bytes * STORE_S[storage],
        }
        for storage in STORAGES
    }


def plan(p: Params, recipe: Recipe, workers: tuple[int, str], decoder: tuple[str, str]) -> Plan:
    """See `build.plan`."""
    grid, clip = cameras.grid(recipe.setup), None
    if path_of(p).exists():
        chosen = read_chosen(p)
        num_clips, source = chosen.num_clips, "chosen by 02_download"
        clip = _first_clip(p, chosen)
    else:
        num_clips, source = forecast(p).num_clips, "estimate; 02 has not run"
    seconds, video = clip_seconds(p, clip), clip_video(p, clip)
    frames = num_frames(seconds, recipe)
    length, stride = p.processing.sequence_length, p.processing.stride
    num_windows = num_clips * windows.num_windows(frames, length, stride, p.processing.reach)
    if not num_windows and num_clips:
        longest = max(frames, num_frames(_longest_s(p), recipe)) if clip else frames
        if not windows.num_windows(longest, length, stride, p.processing.reach):
            raise windows.none_fits(longest, p.processing, f"{num_clips:,} clips, {source}")
    own_from_s = p.processing.own_from_s
    older = f" after {own_from_s:g} s of the past" if own_from_s else ""
    both = {
        name: estimate | {"seconds": estimate["cpu_seconds"] / workers[0]}
        for name, estimate in storages(p, num_clips, seconds, video, recipe.decoder).items()
    }
    width, height = tiling.grid_size(grid, recipe.tile)
    rows = [
        ("clips", f"{num_clips:,}", source),
        ("video", f"{video.codec}, {video.width}×{video.height} px", video.source),
        ("frames", f"{num_clips * frames:,}", f"{frames} a clip at {recipe.sample_hz:g} Hz"),
        ("grid", f"{width}×{height} px", f"{grid}, {recipe.fit}"),
        ("windows", f"{num_windows:,}", f"{length} frames{older}, one every {stride}, all splits"),
    ]
    for storage, estimate in both.items():
        is_chosen = "chosen" if storage == p.processing.storage else "not chosen"
        size, time = gigabytes(estimate["cache_bytes"]), minutes(estimate["seconds"])
        note = f"about; {is_chosen} by processing.storage"
        rows.append((f"cache as {storage}", f"{size}, {time}", note))
    chosen_storage = both[p.processing.storage]
    peak, free = cache_bytes(p, num_clips, seconds), files.free_bytes(p.cache_dir)
    have = bytes_below(p.cache_dir)
    rows += [
        ("at its peak", gigabytes(peak), f"with a chunk's parts; {gigabytes(free)} free there"),
        ("time", minutes(chosen_storage["seconds"]), f"{workers[0]} workers, {workers[1]}"),
        ("decoder", decoder[0], decoder[1]),
    ]
    figures = {
        "num_clips": num_clips,
        "num_frames": num_clips * frames,
        "num_windows": num_windows,
        "storage": p.processing.storage,
        **chosen_storage,
        "peak_bytes": peak,
        "storages": both,
    }
    warnings = []
    if peak - have + (1 << 28) > free:
        smaller = "; processing.storage: jpeg takes about a tenth"
        warnings.append(
            f"the cache needs {gigabytes(peak - have)} more and {gigabytes(free)} are free in "
            f"{p.cache_dir}" + (smaller if p.processing.storage == "raw" else "")
        )
    return Plan("03 builds the cache", rows, warnings, figures)


def _longest_s(p: Params) -> float:
    """Seconds of the longest chosen clip; reads the timestamps of all chosen clips."""
    chosen, catalog = read_chosen(p), Catalog.of(p)
    clip_ids = itertools.chain(*chosen.clip_ids.values())
    return max(clip_seconds(p, open_clip(p.local_dir, catalog, clip_id)) for clip_id in clip_ids)


def _first_clip(p: Params, chosen: Chosen) -> Clip | None:
    """The first chosen clip, or None if the raw files are gone."""
    clip_id = next(itertools.chain(*chosen.clip_ids.values()), None)
    with contextlib.suppress(AvomniError):
        return open_clip(p.local_dir, Catalog.of(p), clip_id) if clip_id else None
    return None
