"""One clip under many ids: a data set as large as wanted, on the disk and in time of one clip.

A zip's central directory may name one member's bytes many times; only the names differ. And a zip
may be far larger than what it holds: `filler_bytes` of a member that nobody asks for are a hole in
the file.
"""

from __future__ import annotations

import copy
import struct
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from avomni_lib.dataset import cameras, checks
from avomni_lib.dataset.own import layout
from tests.published_set import (
    CALIBRATION,
    FEATURES,
    FPS,
    PUBLISHED,
    SPLITS,
    Drive,
    ListedClip,
    chunk_path,
    egomotion_times,
    parquet_bytes,
    put_file,
    write_metadata,
)


def linked_id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"linked-set/{number}"))


def num_frames(seconds: float) -> int:
    """How many frames a camera's video must have."""
    return round(seconds * FPS)


def camera_times(camera_idx: int, seconds: float) -> np.ndarray:
    """(N,) int64 µs; each camera starts at its own time."""
    return (7_000 * camera_idx + np.arange(num_frames(seconds)) * 1e6 / FPS).astype(np.int64)


def write_linked_set(
    folder: Path,
    videos: Mapping[str, bytes],
    seconds: float,
    num_chunks: int,
    clips_per_chunk: int,
    filler_bytes: int = 0,
) -> Path:
    """Write the folder; clip n has id `linked_id(n)`, and all are the same clip.

    Args:
        videos: Camera -> its mp4, of `num_frames(seconds)` frames.
        filler_bytes: Length of a hole in each zip, below 4 GiB.
    """
    folder = Path(folder)
    ids = [linked_id(number) for number in range(num_chunks * clips_per_chunk)]
    absent = tuple(name for name in FEATURES if name not in PUBLISHED)
    clips = [
        ListedClip(clip_id, number // clips_per_chunk, SPLITS[number % 3], absent=absent)
        for number, clip_id in enumerate(ids)
    ]
    write_metadata(folder, clips)
    put_file(folder / "README.md", b"# One clip under many ids\n")
    sizes = {camera: checks.video(content).facts for camera, content in videos.items()}
    sizes = {camera: (facts["width"], facts["height"]) for camera, facts in sizes.items()}
    for chunk in range(num_chunks):
        own = ids[chunk * clips_per_chunk : (chunk + 1) * clips_per_chunk]
        for feature in set(CALIBRATION) & set(PUBLISHED):
            table = layout.stand_in(feature, dict.fromkeys(own, sizes))
            put_file(folder / chunk_path(feature, chunk), table)
        columns = Drive(0).egomotion(egomotion_times(0, seconds))
        members = {"egomotion.parquet": parquet_bytes(columns)}
        write_linked_zip(folder / chunk_path("egomotion", chunk), own, members, filler_bytes)
        for camera_idx, camera in enumerate(cameras.CAMERAS):
            if camera.name not in videos:
                continue
            times = camera_times(camera_idx, seconds)
            table = {"timestamp": times, "frame_index": np.arange(len(times))}
            members = {
                f"{camera.name}.mp4": videos[camera.name],
                f"{camera.name}.timestamps.parquet": parquet_bytes(table),
            }
            write_linked_zip(folder / chunk_path(camera.name, chunk), own, members, filler_bytes)
    return folder


def write_linked_zip(
    path: Path, clip_ids: Sequence[str], members: Mapping[str, bytes], filler_bytes: int = 0
) -> None:
    """Each member once, and named for every clip as `<clip_id>.<name>`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        if filler_bytes:
            filler = zipfile.ZipInfo("filler.bin")
            filler.file_size = filler.compress_size = filler_bytes
            filler.CRC, filler.header_offset = 0, archive.fp.tell()
            archive.fp.write(filler.FileHeader(zip64=False))
            archive.fp.seek(filler_bytes, 1)
            archive.start_dir = archive.fp.tell()
            archive.filelist.append(filler)
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"{clip_ids[0]}.{name}"), content)
            written = archive.filelist[-1]
            for clip_id in clip_ids[1:]:
                link = copy.copy(written)
                link.filename = f"{clip_id}.{name}"
                archive.filelist.append(link)


def with_free_box(video: bytes, num_bytes: int) -> bytes:
    """An mp4 that is longer by so many bytes, which no decoder looks at (ISO 14496-12 §8.1.2)."""
    return video + struct.pack(">I4s", num_bytes, b"free") + bytes(num_bytes - 8)
