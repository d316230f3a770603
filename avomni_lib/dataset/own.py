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
from avomni_lib.dataset import calibration, clocks, motion, own_layout, rig, streams
from avomni_lib.dataset.clip_index import SPLITS
from avomni_lib.dataset.findings import refuse
from avomni_lib.dataset.own_layout import EGOMOTION
from avomni_lib.dataset.own_motion import egomotion, microseconds
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar
from avomni_lib.sections import ProcessingParams

CLIPS_PER_CHUNK = 100
# Ego motion after the last frame is judged as far as a run keeps it that does not say otherwise.
HORIZON_S = ProcessingParams().horizon_s


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
    times_s, walks = {}, {}
    for camera, path in clip.videos.items():
        walks[camera] = walked = streams.walk(Path(path))
        refuse(walked.findings, f"{path}, {camera} of clip {clip.name!r}")
        sizes[camera] = (walked.facts["width"], walked.facts["height"])
        own_s = walked.times_us / 1e6
        times_s[camera] = np.asarray(clip.frame_times_s.get(camera, own_s), np.float64)
        if times_s[camera].shape != own_s.shape:
            hidden = walked.facts["num_hidden"]
            more = f" (an edit list hides {hidden} more)" if hidden else ""
            raise AvomniError(
                f"{len(own_s)} frames in the video{more}, frame_times_s of shape "
                f"{times_s[camera].shape}",
                where=f"{camera} of clip {clip.name!r}",
                fix="give one time a frame, in the order in which they are shown",
            )
    # A clip's time 0 is its first frame's, as in the data set.
    zero_s = min(times[0] for times in times_s.values())
    stamps = {camera: microseconds(times - zero_s) for camera, times in times_s.items()}
    for camera, stamp in stamps.items():
        walked, where = walks[camera], f"{camera} of clip {clip.name!r}"
        refuse(clocks.check(stamp)[1], where)
        refuse(clocks.agree(walked.times_us, stamp, walked.facts["tick_us"]), where)
    where = f"poses of clip {clip.name!r}"
    turns = clip.heading_rad, clip.quaternion
    moved = egomotion(clip.t_s, clip.position_m, *turns, clip.velocity_mps, zero_s, where)
    first, last = clocks.common([(int(s[0]), int(s[-1])) for s in stamps.values()])
    refuse(motion.check(moved, first, last, HORIZON_S)[1], where)
    yield EGOMOTION, EGOMOTION, own_layout.parquet(moved)
    for camera, path in clip.videos.items():
        yield camera, "video", Path(path)
        clock = {"timestamp": stamps[camera], "frame_index": np.arange(len(stamps[camera]))}
        yield camera, "frame_timestamps", own_layout.parquet(clock)
