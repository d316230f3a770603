"""Own recordings to a folder in the data set's layout: plain mp4s and poses, for every stage.

    pack("outputs/data/own", [OwnClip("drive 7", videos, t_s, position_m, heading_rad)])

A run takes them with `dataset.source: folder` and `dataset.local_dir: outputs/data/own`.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.dataset import calibration, clocks, motion, own_layout, rig
from avomni_lib.dataset.clip_index import SPLITS
from avomni_lib.dataset.findings import DAMAGED, Finding
from avomni_lib.dataset.own_layout import EGOMOTION
from avomni_lib.dataset.own_motion import egomotion, microseconds
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar

CLIPS_PER_CHUNK = 100


@dataclass(frozen=True)
class OwnClip:
    """One recording: its videos, and where the car was meanwhile.

    Attributes:
        name: Yours; the clip_id is a UUID that follows from it.
        videos: Name in `rig.BY_NAME` -> an mp4. One file may stand for several cameras.
        t_s: (K,) s, rising, when each pose holds; from any zero, as Unix time. At least two a
            second, from before the first frame to after the last one, and `processing.horizon_s`
            longer where the target tells the future.
        position_m: (K, 2) or (K, 3) m in a Cartesian frame that stands still: a map's, ECEF.
        heading_rad: (K,) where the nose points, to the left of x; the frame's z is then up.
        quaternion: (K, 4) instead of it: x y z w, from the car's axes (x forward, y left, z up) to
            those of the positions.
        velocity_mps: (K, 3) m/s in that frame; None derives it from the positions.
        frame_times_s: Camera -> (N,) s on the clock of `t_s`, one a frame of the mp4 in the order
            in which they are shown. Without it the file's own times count from 0.
        split: train, val or test; None leaves it to the clip_id. Clips that were cut out of one
            drive belong into one split.
        country, month, hour, platform: What clips are chosen by and scores are sliced by.
    """

    name: str
    videos: Mapping[str, str | Path]
    t_s: np.ndarray
    position_m: np.ndarray
    heading_rad: np.ndarray | None = None
    quaternion: np.ndarray | None = None
    velocity_mps: np.ndarray | None = None
    frame_times_s: Mapping[str, np.ndarray] = field(default_factory=dict)
    split: str | None = None
    country: str | None = None
    month: int | None = None
    hour: int | None = None
    platform: str | None = None

    @property
    def clip_id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"avomni/own/{self.name}"))


def pack(
    folder: str | Path,
    clips: Sequence[OwnClip],
    clips_per_chunk: int = CLIPS_PER_CHUNK,
    progress: type[Bar] = Bar,
) -> Path:
    """Write clips as a data set for `dataset.source: folder`; the folder appears whole.

    Videos are copied as they are. The layout asks for calibration too: what is written is a
    stand-in (`own_layout.stand_in`), which the audit looks at and no cache, answer or score is made
    from. Other road users are not packed, so coc_v1 and full_v1 have no causes to learn.

    Args:
        folder: Empty, or not there yet; relative ones start at the project root.
        clips: Each with all cameras of one grid at least.

    Returns:
        The folder.

    Raises:
        AvomniError: the folder holds something; two clips have one name; a clip cannot fill a grid,
            names an unknown camera or split, or its frames, clocks and poses contradict each other.
    """
    folder = files.resolve(folder)
    _check(folder, clips)
    num_bytes = sum(Path(path).stat().st_size for clip in clips for path in clip.videos.values())
    files.need_room(folder.parent, num_bytes, "the packed clips")
    work = folder.with_name(f".{folder.name}.packing")
    shutil.rmtree(work, ignore_errors=True)
    try:
        with progress(total=len(clips), unit="clip", label="Pack") as bar:
            for number, start in enumerate(range(0, len(clips), clips_per_chunk)):
                _write_chunk(work, number, clips[start : start + clips_per_chunk], bar)
        own_layout.write_metadata(work, [_row(clip) for clip in clips], clips_per_chunk)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if folder.exists():
        folder.rmdir()
    os.replace(work, folder)
    files.fsync_folder(folder.parent)
    return folder


def _check(folder: Path, clips: Sequence[OwnClip]) -> None:
    """What can be said before a video is opened."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AvomniError(
            "the folder to pack into is not empty", where=str(folder), fix="name another one"
        )
    if not clips:
        raise AvomniError("there is no clip to pack", where=str(folder))
    names = [clip.name for clip in clips]
    for clip in clips:
        where = f"clip {clip.name!r}"
        if names.count(clip.name) > 1:
            raise AvomniError("two clips have one name", where=where, fix="give each its own")
        if clip.split not in (None, *SPLITS):
            fix = f"choose one of {', '.join(SPLITS)}"
            raise AvomniError(f"unknown split {clip.split!r}", where=where, fix=fix)
        if unknown := sorted({*clip.videos, *clip.frame_times_s} - set(rig.BY_NAME)):
            fix = f"choose among {', '.join(rig.BY_NAME)}"
            raise AvomniError(f"unknown camera {unknown[0]!r}", where=where, fix=fix)
        if missing := [str(path) for path in clip.videos.values() if not Path(path).is_file()]:
            raise AvomniError(f"there is no video {missing[0]}", where=where)
        lacking = {
            grid.name: [camera.name for camera in grid.cameras if camera.name not in clip.videos]
            for grid in rig.GRIDS.values()
        }
        if all(lacking.values()):
            setup = min(lacking, key=lambda name: len(lacking[name]))
            raise AvomniError(
                f"no grid can be filled: {setup} also needs {', '.join(lacking[setup])}",
                where=where,
                fix="cut more views out of a wide video, or give one video to several cameras: the "
                "model then sees the same picture in several tiles",
            )


def _row(clip: OwnClip) -> dict[str, Any]:
    """A clip as the tables list it."""
    names = ("clip_id", "split", "country", "month", "hour", "platform")
    features = {*clip.videos, EGOMOTION, *calibration.TABLES}
    return {name: getattr(clip, name) for name in names} | {"features": features}


def _write_chunk(work: Path, number: int, clips: Sequence[OwnClip], bar: Bar) -> None:
    members: dict[str, list[tuple[str, Path | bytes]]] = {}
    sizes: dict[str, dict[str, tuple[int, int]]] = {}
    for clip in clips:
        sizes[clip.clip_id] = {}
        for feature, kind, content in _members(clip, sizes[clip.clip_id]):
            name = own_layout.member(feature, clip.clip_id, kind)
            members.setdefault(feature, []).append((name, content))
        bar.update(1, clip.name)
    for feature, held in members.items():
        path = own_layout.chunk_path(feature).format(chunk_id=number)
        own_layout.write_zip(work / path, held)
    for feature in calibration.TABLES:
        path = own_layout.chunk_path(feature).format(chunk_id=number)
        with files.write_whole(work / path) as file:
            file.write(own_layout.stand_in(feature, sizes))


def _members(
    clip: OwnClip, sizes: dict[str, tuple[int, int]]
) -> Iterator[tuple[str, str, Path | bytes]]:
    """(feature, kind, content) of a clip that was found to be sound; `sizes` gets its videos'."""
    times_s = {}
    for camera, path in clip.videos.items():
        own_s, sizes[camera] = _frames(Path(path))
        times_s[camera] = np.asarray(clip.frame_times_s.get(camera, own_s), np.float64)
        if times_s[camera].shape != own_s.shape:
            raise AvomniError(
                f"{len(own_s)} frames in the video, frame_times_s of shape {times_s[camera].shape}",
                where=f"{camera} of clip {clip.name!r}",
                fix="give one time a frame, in the order in which they are shown",
            )
    # A clip's time 0 is its first frame's, as in the data set.
    zero_s = min(times[0] for times in times_s.values())
    stamps = {camera: microseconds(times - zero_s) for camera, times in times_s.items()}
    for camera, stamp in stamps.items():
        _refuse(clocks.check(stamp)[1], f"{camera} of clip {clip.name!r}")
    where = f"poses of clip {clip.name!r}"
    turns = clip.heading_rad, clip.quaternion
    moved = egomotion(clip.t_s, clip.position_m, *turns, clip.velocity_mps, zero_s, where)
    first, last = max(s[0] for s in stamps.values()), min(s[-1] for s in stamps.values())
    _refuse(motion.check(moved, int(first), int(last), 0.0)[1], where)
    yield EGOMOTION, EGOMOTION, own_layout.parquet(moved)
    for camera, path in clip.videos.items():
        yield camera, "video", Path(path)
        clock = {"timestamp": stamps[camera], "frame_index": np.arange(len(stamps[camera]))}
        yield camera, "frame_timestamps", own_layout.parquet(clock)


def _frames(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """(N,) s of a video's frames as they are shown, from 0; and its width and height, px."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            # The packet that ends a stream is empty and has no time.
            packets = [p for p in container.demux(stream) if p.dts is not None]
            if hidden := sum(p.is_discard for p in packets):
                raise AvomniError(
                    f"an edit list hides {hidden} of its {len(packets)} frames: it was cut between "
                    "key frames without being encoded anew",
                    where=str(path),
                    fix="cut it again: ffmpeg -ss START -t SECONDS -i IN.mp4 -crf 16 OUT.mp4",
                )
            shown = [p.pts for p in packets]
            ticks = np.array(sorted(shown), np.float64)
            times_s = (ticks - ticks[0]) * float(stream.time_base)
            return times_s, (stream.codec_context.width, stream.codec_context.height)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise AvomniError(f"no video that opens: {error}", where=str(path)) from None


def _refuse(found: Sequence[Finding], where: str) -> None:
    """Raise the first fault for which the ETL would leave the clip out."""
    for finding in found:
        if finding.severity == DAMAGED:
            raise AvomniError(finding.reason, where=where)
