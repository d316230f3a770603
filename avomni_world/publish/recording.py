"""What the rig records in one clip: a video per camera with its own clock, egomotion, calibration.

Also the labels of the other road users.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence

import av
import numpy as np
import pyarrow as pa

from avomni_lib.dataset import cameras
from avomni_lib.dataset.clip import EGOMOTION_COLUMNS
from avomni_world.publish import obstacles, tables
from avomni_world.scene.render import Renderer
from avomni_world.scene.scenes import Scene

FPS = 30
EXTRA_FRAMES = 5  # a clip of 20 s has 605 frames of each camera
KEY_FRAME_INTERVAL = 30
# Keeps the road's texture: 32 dB at 128 × 72.
QUALITY = {"crf": "20", "preset": "ultrafast"}
_KEYS = f"keyint={KEY_FRAME_INTERVAL}:min-keyint={KEY_FRAME_INTERVAL}:scenecut=0"
# H.264 without B frames; HEVC as x265 makes it by default, with B frames and open
# GOPs. More threads than one would change the bytes.
CODECS = {
    "h264": ("libx264", {"bf": "0", "x264-params": _KEYS}),
    "hevc": (
        "libx265",
        {"x265-params": f"{_KEYS}:bframes=2:open-gop=1:frame-threads=1:pools=none:log-level=none"},
    ),
}
CLOCK_OFFSET_US = (-22_000, 14_000)  # of a camera's first frame
CLOCK_JITTER_US = 40
EGO_STEP_US = (8_600, 11_400)  # egomotion has its own clock: about 100 Hz, not uniform
EGO_BEFORE_US = (45_000, 140_000)
EGO_AFTER_US = 10_300_000  # past the clip's length


def num_frames(seconds: float) -> int:
    """Frames of each camera in a clip of this length."""
    return round(seconds * FPS) + EXTRA_FRAMES


def camera_clocks(seed: int, seconds: float) -> np.ndarray:
    """(frames, cameras) int64 µs: each camera's start and rate differ slightly."""
    rng = np.random.default_rng([seed, 1])
    count = num_frames(seconds)
    start = rng.integers(*CLOCK_OFFSET_US, size=len(cameras.CAMERAS))
    tick = np.round(np.arange(count) * 1e6 / FPS).astype(np.int64)
    jitter = rng.integers(-CLOCK_JITTER_US, CLOCK_JITTER_US + 1, size=(count, len(cameras.CAMERAS)))
    return start + tick[:, None] + jitter


def egomotion_clock(seed: int, seconds: float) -> np.ndarray:
    """(rows,) int64 µs from before the first frame to `EGO_AFTER_US` past the clip's length."""
    rng = np.random.default_rng([seed, 2])
    end = round(seconds * 1e6) + EGO_AFTER_US
    start = -int(rng.integers(*EGO_BEFORE_US))
    steps = rng.integers(*EGO_STEP_US, size=(end - start) // EGO_STEP_US[0] + 1)
    clock = start + np.concatenate([[0], np.cumsum(steps)])
    return clock[: int(np.searchsorted(clock, end)) + 1]


def record(
    scene: Scene, clip_id: str, renderer: Renderer, codec: str = "h264"
) -> tuple[dict[str, bytes], dict[str, dict[str, list[float]]]]:
    """Drive through a scene with the cameras on.

    Args:
        renderer: For the recorded cameras, in the rig's order.
        codec: Of `CODECS`.

    Returns:
        File name -> bytes, for the stored zips; and feature -> sensor -> a row's values in the
        order of the feature's columns (`vehicle_dimensions` has no sensor: "").
    """
    renderer.open(scene)
    # A camera's clock does not depend on which others are recorded.
    places = [cameras.CAMERAS.index(camera) for camera in renderer.cameras]
    clocks = camera_clocks(scene.seed, scene.seconds)[:, places]
    pictures = renderer.frames(clocks / 1e6)
    videos = encode(pictures, len(places), renderer.width, renderer.height, codec)
    members = {}
    for idx, (camera, video) in enumerate(zip(renderer.cameras, videos, strict=True)):
        stem = f"{clip_id}.{camera.name}"
        members[f"{stem}.mp4"] = video
        members[f"{stem}.timestamps.parquet"] = tables.parquet(
            {"timestamp": clocks[:, idx], "frame_index": np.arange(len(clocks))},
            {"timestamp": pa.int64(), "frame_index": pa.int64()},
        )
        members[f"{stem}.blurred_boxes.parquet"] = tables.parquet(
            {name: [] for name in tables.BLURRED_BOXES}, tables.BLURRED_BOXES
        )
    members[f"{clip_id}.egomotion.parquet"] = tables.parquet(
        scene.egomotion(egomotion_clock(scene.seed, scene.seconds)),
        dict.fromkeys(EGOMOTION_COLUMNS, pa.float64()) | {"timestamp": pa.int64()},
    )
    members[f"{clip_id}.obstacle.offline.parquet"] = obstacles.table(scene)
    return members, _calibration(scene, renderer)


def _calibration(scene: Scene, renderer: Renderer) -> dict[str, dict[str, list[float]]]:
    intrinsics, extrinsics = {}, {}
    for camera in renderer.cameras:
        lens, mount = renderer.lenses[camera.name], scene.mounts[camera.name]
        intrinsics[camera.name] = [lens.width, lens.height, lens.cx, lens.cy, *lens.bw, *lens.fw]
        extrinsics[camera.name] = [*mount.quaternion.tolist(), *mount.position.tolist()]
    return {
        "camera_intrinsics": intrinsics,
        "sensor_extrinsics": extrinsics,
        "vehicle_dimensions": {"": list(dataclasses.astuple(scene.vehicle))},
    }


def encode(
    pictures: Iterator[np.ndarray],
    num_cameras: int,
    width: int,
    height: int,
    codec: str = "h264",
) -> Sequence[bytes]:
    """One mp4 per camera: constant 30 fps, a key frame every second.

    Args:
        pictures: (cameras, height, width, 3) uint8 RGB, one rig frame after another.
        codec: Of `CODECS`.
    """
    encoder, options = CODECS[codec]
    buffers = [io.BytesIO() for _ in range(num_cameras)]
    containers = [av.open(b, "w", format="mp4", options={"fflags": "+bitexact"}) for b in buffers]
    streams = []
    for container in containers:
        stream = container.add_stream(encoder, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = KEY_FRAME_INTERVAL
        stream.options = QUALITY | options
        streams.append(stream)
    for idx, rig_frame in enumerate(pictures):
        for container, stream, picture in zip(containers, streams, rig_frame, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = idx
            container.mux(stream.encode(frame))
    for container, stream in zip(containers, streams, strict=True):
        container.mux(stream.encode(None))
        container.close()
    return [buffer.getvalue() for buffer in buffers]
