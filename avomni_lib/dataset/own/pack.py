"""Packs your own videos and poses into a folder in the data set's layout, for use by all stages.

    pack("outputs/data/own", [OwnClip("drive 7", videos, t_s, position_m, heading_rad)])

A run uses them with `dataset.source: folder` and `dataset.local_dir: outputs/data/own`. By default,
positions are metres on a level map (x east, y north, z up), headings are counter-clockwise from x,
and the car's axes are x forward, y left, z up. docs/own_clips.md describes the other frames, and
what is checked.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.dataset import calibration, cameras, checks, streams
from avomni_lib.dataset.clip_index import SPLITS
from avomni_lib.dataset.findings import DAMAGED, ODD, USUAL
from avomni_lib.dataset.own import arguments, conventions, layout
from avomni_lib.dataset.own import poses as own_poses
from avomni_lib.dataset.own import summary as own_summary
from avomni_lib.dataset.own.arguments import Argument, Mistakes
from avomni_lib.dataset.own.summary import ClipSummary, Packed
from avomni_lib.errors import AvomniError
from avomni_lib.params.sections import ProcessingParams

CLIPS_PER_CHUNK = 100
# If all cameras share less than this part of the shortest one, their clocks differ.
MIN_COMMON = 0.5
# Ego motion after the last frame is checked as far as a run keeps it by default.
HORIZON_S = ProcessingParams().horizon_s


@dataclass(frozen=True)
class OwnClip:
    """One recording: its videos, and the motion of the car.

    Attributes:
        name: Any name; the clip_id is a UUID derived from it.
        videos: Name in `cameras.BY_NAME` -> path of an mp4. One file may serve several cameras.
        t_s: (K,) s, increasing: the times of the poses, from any zero, such as Unix time. At least
            two per second, from before the first frame to after the last one, and
            `processing.horizon_s` longer if the target needs the future.
        position_m: (K, 2) or (K, 3) in `frame`: (x, y[, z]) m; for "ned" (north, east[, down]) m;
            for "wgs84" (latitude, longitude[, altitude]) in degrees and m; for "ecef" (x, y, z) m.
        heading_rad: (K,) rad. For frame "enu" counter-clockwise from x (east, on a map whose y is
            north); for all other frames clockwise from north, like a compass.
        quaternion: (K, 4) as an alternative: x, y, z, w of the rotation from the car's axes to the
            frame's (for "wgs84": east, north, up).
        velocity_mps: (K, 3) m/s along the frame's axes (for "wgs84": east, north, up); None derives
            it from the positions.
        frame_times_s: Camera -> (N,) s on the clock of `t_s`, one per frame of the mp4 in
            presentation order. Without it, the file's own times from 0 are used.
        split: train, val or test; None derives it from the clip_id. Clips cut from one drive must
            be in one split.
        country, platform: Text by which clips can be selected and scores are sliced.
        month, hour: Likewise, as integers from 1 to 12 and 0 to 23.
        frame: The frame of positions, headings and velocities: "enu", a level map with z up, where
            x may point in any direction and y is to its left; "ned"; "wgs84"; "ecef". The last two
            are converted to local metres around the first position.
        axes: Directions of the car's x, y and z axes for a quaternion: "flu" forward, left, up;
            "frd" forward, right, down; "rfu" right, forward, up; "rdf" right, down, forward, like a
            camera that looks forward.
        speed_m_s: (K,) m/s at `t_s` from the wheels or another independent source; it is only used
            to check the positions.
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
    frame: str = "enu"
    axes: str = "flu"
    speed_m_s: np.ndarray | None = None

    @property
    def clip_id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"avomni/own/{self.name}"))


@dataclass(frozen=True)
class _Sound:
    """A clip ready to be written; members are (feature, kind, a file or its bytes)."""

    clip: OwnClip
    members: Sequence[tuple[str, str, Path | bytes]]
    sizes: Mapping[str, tuple[int, int]]
    summary: ClipSummary


def pack(
    folder: str | Path, clips: Iterable[OwnClip], clips_per_chunk: int = CLIPS_PER_CHUNK
) -> Packed:
    """Write clips as a data set for `dataset.source: folder`; the folder is created atomically.

    All clips are checked before anything is written. Videos are copied unchanged. The layout
    requires calibration: a placeholder is written (`layout.stand_in`), which only the audit reads;
    no cache, answer or score depends on it. Other road users are not packed, so coc_v1 and full_v1
    have no causes to learn.

    Args:
        folder: An empty or new folder; relative paths start at the project root.
        clips: Each needs all cameras of at least one grid.

    Returns:
        The folder and a summary of each clip: print it, and compare speeds and turns with the
        drive. Nothing else shows that a map is mirrored together with its headings.

    Raises:
        AvomniError: all mistakes at once, each with the clip, the argument and the row.
    """
    mistakes = Mistakes()
    with mistakes.kept():
        folder = _empty(folder)
    with mistakes.kept():
        arguments.whole(clips_per_chunk, Argument("clips_per_chunk"), 1, 1_000_000)
    sound = _examine(clips, mistakes)
    folder = Path(folder)
    num_bytes = sum(Path(path).stat().st_size for s in sound for path in s.clip.videos.values())
    work = folder.with_name(f".{folder.name}.packing")
    try:
        files.need_room(folder.parent, num_bytes, "the packed clips")
        shutil.rmtree(work, ignore_errors=True)
        for number, start in enumerate(range(0, len(sound), clips_per_chunk)):
            _write_chunk(work, number, sound[start : start + clips_per_chunk])
        layout.write_metadata(work, [item.clip for item in sound], clips_per_chunk)
        if folder.exists():
            folder.rmdir()
        os.replace(work, folder)
        files.fsync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(folder, error) from error
        raise
    return Packed(folder, tuple(item.summary for item in sound))


def check(clips: Iterable[OwnClip]) -> Packed:
    """Check clips as `pack` does, without writing; returns the summaries or raises its errors."""
    return Packed(None, tuple(item.summary for item in _examine(clips, Mistakes())))


def _empty(folder: Any) -> Path:
    if not isinstance(folder, str | os.PathLike) or not str(folder) or "\0" in str(folder):
        raise AvomniError(f"folder is {folder!r:.80}, expected a path", where="folder")
    folder = files.resolve(os.fspath(folder))
    try:
        is_dead = folder.is_symlink() and not folder.exists()
        if is_dead or folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            fault = "a link to nothing" if is_dead else "not empty"
            what = f"the folder to pack into is {fault}"
            raise AvomniError(what, where=str(folder), fix="name another one")
    except OSError as error:
        raise _unwritable(folder, error) from None
    return folder


def _unwritable(folder: Path, error: OSError) -> AvomniError:
    return AvomniError(
        f"the folder to pack into cannot be used: {error.strerror or error}",
        where=str(folder),
        fix="name another one, on a disk that can be written to",
    )


def _examine(clips: Any, mistakes: Mistakes) -> list[_Sound]:
    """Check all clips, and raise all their mistakes."""
    at = Argument("clips")
    if isinstance(clips, OwnClip | str | bytes | Mapping) or not hasattr(clips, "__iter__"):
        shown = "one OwnClip" if isinstance(clips, OwnClip) else f"{clips!r:.80}"
        mistakes.append(at.error(f"clips is {shown}, expected a list of OwnClip", fix="[clip]"))
        mistakes.raise_all()
    clips = list(clips)
    if not clips:
        mistakes.append(at.error("there is no clip to pack"))
    sound: list[_Sound] = []
    for number, clip in enumerate(clips):
        if not isinstance(clip, OwnClip):
            what = f"clips[{number}] is {clip!r:.80}, expected an OwnClip"
            mistakes.append(at.error(what, number))
        elif (one := _examine_clip(clip, mistakes)) is not None:
            sound.append(one)
    names = [clip.name if isinstance(clip, OwnClip) else None for clip in clips]
    for name, count in Counter(name for name in names if isinstance(name, str) and name).items():
        if count > 1:
            same = ", ".join(str(number) for number, other in enumerate(names) if other == name)
            what = f"two clips have one name: {name!r}, clips {same}"
            error = Argument("name", f"clip {name!r}").error(what, fix="give each its own")
            mistakes.append(error)
    mistakes.raise_all()
    return sound


def _examine_clip(clip: OwnClip, mistakes: Mistakes) -> _Sound | None:
    """Check a clip; returns None if it has mistakes, which are added to `mistakes`."""
    before, where = len(mistakes), f"clip {clip.name!r:.80}"
    at = partial(Argument, clip=where)
    for name in ("name", "country", "platform"):
        with mistakes.kept():
            arguments.text(getattr(clip, name), at(name), is_needed=name == "name")
    for name, least, most in (("month", 1, 12), ("hour", 0, 23)):
        with mistakes.kept():
            arguments.whole(getattr(clip, name), at(name), least, most)
    if clip.split is not None and (not isinstance(clip.split, str) or clip.split not in SPLITS):
        fix = f"choose one of {', '.join(SPLITS)}, or None"
        mistakes.append(at("split").error(f"unknown split {clip.split!r:.80}", fix=fix))
    times_s, walks = _clocks(clip, mistakes, at)
    poses = own_poses.read(clip, mistakes, where)
    if poses is not None:
        conventions.check(poses, where, mistakes)
    if len(mistakes) == before:
        with mistakes.kept():
            _check_overlap(times_s, clip, at)
    if len(mistakes) > before or poses is None:
        return None
    # As in the data set, a clip's time 0 is that of its first frame.
    zero_s = min(float(times[0]) for times in times_s.values())
    stamps = {camera: own_poses.microseconds(times - zero_s) for camera, times in times_s.items()}
    position, into = own_poses.level(poses)
    velocity = None if poses.velocity_mps is None else into.apply(poses.velocity_mps)
    turn = own_poses.turns(poses, into)
    ego = own_poses.egomotion(poses.t_s, position, turn, velocity, zero_s)
    # The checks of the audit and the ETL.
    spans = [(int(times[0]), int(times[-1])) for times in stamps.values()]
    findings = {"poses": checks.egomotion(ego, *checks.common(spans), HORIZON_S)[1]}
    members: list[tuple[str, str, Path | bytes]] = [
        (layout.EGOMOTION, layout.EGOMOTION, layout.parquet(ego))
    ]
    for camera, times in stamps.items():
        argument = "frame_times_s" if camera in clip.frame_times_s else "videos"
        walked = walks[camera]
        agreed = checks.agree(walked.times_us, times, walked.facts["tick_us"])
        findings[f"{argument}[{camera!r}]"] = [*walked.findings, *checks.clock(times)[1], *agreed]
        clock = {"timestamp": times, "frame_index": np.arange(len(times))}
        members.append((camera, "video", Path(clip.videos[camera])))
        members.append((camera, "frame_timestamps", layout.parquet(clock)))
    notes: dict[str, None] = {}
    for argument, faults in findings.items():
        for finding in faults:
            if finding.severity == DAMAGED:
                mistakes.append(at(argument).error(finding.reason))
            elif finding.severity == ODD and finding.what not in USUAL:
                notes[f"{argument}: {finding.reason}"] = None
    if len(mistakes) > before:
        return None
    summary = own_summary.summarize(clip.name, clip.clip_id, stamps, zero_s, ego, tuple(notes))
    sizes = {camera: (w.facts["width"], w.facts["height"]) for camera, w in walks.items()}
    return _Sound(clip, members, sizes, summary)


def _clocks(
    clip: OwnClip, mistakes: Mistakes, at: Callable[[str], Argument]
) -> tuple[dict[str, np.ndarray], dict[str, streams.Walked]]:
    """Camera -> (N,) s frame times; camera -> the scan of its file."""
    times_s: dict[str, np.ndarray] = {}
    walks: dict[str, streams.Walked] = {}
    videos: Mapping[str, Any] = {}
    given: Mapping[str, Any] = {}
    with mistakes.kept():
        videos = _by_camera(clip.videos, at("videos"), "'a.mp4'")
        _check_grid(videos, at("videos"))
    with mistakes.kept():
        given = _by_camera(clip.frame_times_s, at("frame_times_s"), "times")
        if lone := [name for name in given if videos and name not in videos]:
            what = f"frame_times_s names {lone[0]}, of which there is no video"
            fix = "give its video too, or leave its times out"
            raise at("frame_times_s").error(what, fix=fix)
    # A file that serves several cameras is read, and refused, only once.
    read: dict[str, streams.Walked | None] = {}
    for name, value in videos.items():
        key = str(value)
        with mistakes.kept():
            if key not in read:
                read[key] = None
                read[key] = arguments.video(value, at(f"videos[{name!r}]"))
            if (walked := read[key]) is not None:
                walks[name], times_s[name] = walked, walked.times_us / 1e6
                if name in given:
                    named = at(f"frame_times_s[{name!r}]")
                    times_s[name] = _given_times(given[name], walked, named)
    return times_s, walks


def _by_camera(value: Any, at: Argument, example: str) -> Mapping[str, Any]:
    """Check that a value is a mapping of known cameras."""
    if not isinstance(value, Mapping):
        fix = f"give it as {{{cameras.CAMERAS[0].name!r}: {example}}}"
        raise at.error(f"{at.name} is {value!r:.80}, expected a mapping of cameras", fix=fix)
    if unknown := [camera for camera in value if camera not in cameras.BY_NAME]:
        fix = f"choose among {', '.join(cameras.BY_NAME)}"
        raise at.error(f"unknown camera {unknown[0]!r}", fix=fix)
    return value


def _check_grid(videos: Mapping[str, Any], at: Argument) -> None:
    lacking = {
        grid.name: [camera.name for camera in grid.cameras if camera.name not in videos]
        for grid in cameras.GRIDS.values()
    }
    if all(lacking.values()):
        setup = min(lacking, key=lambda name: len(lacking[name]))
        raise at.error(
            f"no grid can be filled: {setup} also needs {', '.join(lacking[setup])}",
            fix="cut more views out of a wide video, or give one video to several cameras: the "
            "model then sees the same picture in several tiles",
        )


def _given_times(value: Any, walked: streams.Walked, at: Argument) -> np.ndarray:
    """Check given times of a camera against the file's own."""
    file_s = walked.times_us / 1e6
    times_s = arguments.array(value, at, (None,))
    if len(times_s) != len(file_s):
        hidden = walked.facts["num_hidden"]
        more = f" (an edit list hides {hidden} more)" if hidden else ""
        what = f"{len(file_s)} frames in the video{more}, frame_times_s of shape {times_s.shape}"
        raise at.error(what, fix="give one time a frame, in the order in which they are shown")
    times_s = arguments.times(value, at)
    if len(times_s) < 2 or (usual := float(np.median(np.diff(file_s)))) <= 0:
        return times_s
    step = float(np.median(np.diff(times_s)))
    if unit := arguments.unit_of(step, usual):
        what = f"{at.name} looks like {unit}: {step:g} from frame to frame, where the file has "
        raise at.error(f"{what}{usual:.4g} s", fix=f"divide by {arguments.UNITS[unit]:g}")
    if (np.diff(times_s) == 1).all() and not 0.5 < usual < 2:
        what = f"{at.name} looks like frame numbers: each is one more than the one before, and the "
        fix = "give seconds on the clock of t_s, or leave it out"
        raise at.error(f"{what}file has {usual:.4g} s from frame to frame", fix=fix)
    return times_s


def _check_overlap(
    times_s: Mapping[str, np.ndarray], clip: OwnClip, at: Callable[[str], Argument]
) -> None:
    """Check that the times of cameras and poses overlap, so that they are on one clock."""
    spans = {camera: (float(times[0]), float(times[-1])) for camera, times in times_s.items()}
    late = max(spans, key=lambda camera: spans[camera][0])
    early = min(spans, key=lambda camera: spans[camera][1])
    common = spans[early][1] - spans[late][0]

    def clock(camera: str) -> str:
        first, last = spans[camera]
        source = "frame_times_s" if camera in clip.frame_times_s else "its file, from 0"
        return f"{camera} runs from {first:.3f} to {last:.3f} s by {source}"

    if common < MIN_COMMON * min(last - first for first, last in spans.values()):
        how = f"have only {common:.2f} s in common" if common > 0 else "do not overlap"
        what = f"the cameras {how}: {clock(early)}, {clock(late)}"
        fix = "give frame_times_s of every camera, all on the clock of t_s"
        raise at("frame_times_s").error(what, fix=fix)
    poses_s = np.asarray(clip.t_s, np.float64)
    if poses_s[-1] < spans[early][0] or poses_s[0] > spans[late][1]:
        raise at("t_s").error(
            f"ego motion covers no frame: t_s runs from {poses_s[0]:.3f} to {poses_s[-1]:.3f} s, "
            f"{clock(late)}",
            fix="give frame_times_s of every camera on the clock of t_s, or t_s from the first "
            "frame",
        )


def _write_chunk(work: Path, number: int, clips: Sequence[_Sound]) -> None:
    members: dict[str, list[tuple[str, Path | bytes]]] = {}
    for item in clips:
        for feature, kind, content in item.members:
            name = layout.member(feature, item.clip.clip_id, kind)
            members.setdefault(feature, []).append((name, content))
    for feature, contents in members.items():
        layout.write_zip(work / layout.chunk_path(feature).format(chunk_id=number), contents)
    sizes = {item.clip.clip_id: item.sizes for item in clips}
    for feature in calibration.TABLES:
        path = work / layout.chunk_path(feature).format(chunk_id=number)
        files.write_bytes(path, layout.stand_in(feature, sizes))
