"""Plays a clip of the run as live cameras: its unpacked videos, paced by their timestamps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip, open_clip
from avomni_lib.dataset.select.evicted import read_evicted
from avomni_lib.errors import AvomniError, without_passwords
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip import tiling
from avomni_lib.live import subject
from avomni_lib.params import Params
from avomni_lib.plan import Plan, minutes
from avomni_lib.training.forecast.answer_time import answer_time
from avomni_lib.training.forecast.estimate import CARD
from avomni_lib.training.model.model_path import TINY
from avomni_lib.training.prompt import history, samples
from avomni_lib.training.targets import target_of

CAMERAS, PLAYED_FILE, SESSION = "cameras", "clip.json", "session"


def held_out_clips(p: Params) -> list[str]:
    """The clips of `evaluation.split` in the run's cache that are long enough for a window.

    Raises:
        AvomniError: there is no cache, or no such clip.
    """
    clips, least = Cache.open(p.cache_dir).clips, p.processing.sequence_length + p.processing.reach
    playable = [clip for clip in clips if clip.split == p.evaluation.split and len(clip) >= least]
    if not playable:
        raise AvomniError(
            f"the cache has no clip of the split {p.evaluation.split!r} to play that is {least} "
            "frames long",
            where=str(p.cache_dir),
            fix="name addresses in live.sources, or choose another evaluation.split",
        )
    return [str(clip.clip_id) for clip in playable]


def plan(p: Params) -> Plan:
    """The plan of a session of 07: cameras, rates and duration; nothing is opened.

    Raises:
        AvomniError: nothing can be played, nothing ends the session, or the prompt needs past
            motion that is unknown.
    """
    live, hz, length = p.live, p.processing.sample_hz, p.processing.sequence_length
    seconds, shown = live.seconds, "a held-out clip, played at its own pace"
    warnings = []
    if live.sources is None:
        names = set(held_out_clips(p))
        clips = Cache.open(p.cache_dir).clips
        clip_s = max(len(clip) for clip in clips if clip.clip_id in names) / hz
        seconds = min(seconds or clip_s, clip_s)
    else:
        shown = ", ".join(without_passwords(url) for url in live.sources.values())
        subject.refuse_history(p, "live.sources")
        warnings += _shared_addresses(live.sources)
    if seconds is None:
        raise AvomniError(
            "nothing would end the session",
            where="live.seconds",
            fix="set it to the seconds that the notebook is to take; `python -m avomni_lib live` "
            "goes on until it is stopped",
        )
    first, last = length + p.processing.reach - 1, int(seconds * hz) - 1  # ticks
    num = max(last // live.hop - (first - 1) // live.hop, 0)
    answered_by = "this process" if live.server is None else without_passwords(live.server)
    rows = [
        ("cameras", str(len(cameras.grid(p.vision.cameras).cameras)), shown),
        ("ticks", f"{hz:g} a second", f"the slowest camera is waited for {live.deadline_ms:g} ms"),
        ("session", minutes(seconds), "and the time to load the model"),
        ("windows", f"{num:,} at most", f"{length} frames each, one every {live.hop} ticks"),
        ("answers by", answered_by, f"{target_of(p).name}; the newest window first, none queues"),
    ]
    if p.model.base_model != TINY and (time := answer_time(p)) is not None:
        note = (
            f"on an {CARD}: arithmetic, not measured; {time.num_tokens} tokens; it would keep up "
        )
        note += f"from live.hop {time.least_hop(hz)} on"
        rows.append(("an answer", f"{time.total:.2f} s", note))
    if not num:
        warnings.append(
            f"no window is whole before {first / hz:g} s: raise live.seconds, or play a longer clip"
        )
    return Plan(f"run {p.run.name}, live", rows, warnings, {"seconds": seconds, "windows": num})


def _shared_addresses(sources: Mapping[str, str]) -> list[str]:
    by_url: dict[str, list[str]] = {}
    for camera, url in sources.items():
        by_url.setdefault(url, []).append(camera)
    return [
        f"{', '.join(names)} have one address, {without_passwords(url)}: the model sees one "
        "picture in all of their tiles"
        for url, names in by_url.items()
        if len(names) > 1
    ]


def prepare(p: Params, clip_id: str, folder: Path) -> Params:
    """The parameters with cameras set up: those of `live.sources`, or else a clip.

    Args:
        clip_id: The clip to play if no sources are given.
        folder: The stage's folder. The session is recorded in its subfolder `session`; an older
            record there is removed.

    Raises:
        AvomniError: the clip cannot be played.
    """
    shutil.rmtree(folder / SESSION, ignore_errors=True)
    live = p.live.model_copy(update={"record": str(folder / SESSION)})
    p = p.model_copy(update={"live": live})
    return p if live.sources is not None else as_cameras(p, clip_id, folder / SESSION)


def rows(p: Params) -> list[dict[str, Any]]:
    """The cameras of a session as a table, with the address and clock of each."""
    return [
        {
            "camera": camera.name,
            "address": _short(p, (p.live.sources or {}).get(camera.name, "none")),
            "clock": p.live.clock,
            "offset_ms": p.live.offset_ms.get(camera.name, 0.0),
        }
        for camera in cameras.grid(p.vision.cameras).cameras
    ]


def as_cameras(p: Params, clip_id: str, folder: Path) -> Params:
    """The same parameters with the clip's videos as live cameras.

    If the clip's raw files are evicted, the frames of the cache are played, one per tick.

    Args:
        folder: Folder of the record; the videos are written to its subfolder `cameras`, one per
            camera, under the camera's name.

    Raises:
        AvomniError: the clip is missing or damaged.
    """
    grid, catalog = cameras.grid(p.vision.cameras), Catalog.of(p)
    chunk, evicted = catalog.chunk_of(clip_id), read_evicted(p)
    unpack = _from_raw_files
    # LeRobot files hold many clips, and a file is played from its start.
    if p.lerobot_profile or any(
        catalog.path(camera.name, chunk) in evicted for camera in grid.cameras
    ):
        unpack = _from_cache
    sources, firsts = unpack(p, open_clip(p.local_dir, catalog, clip_id), folder / CAMERAS)
    # A file's time 0 is its first frame, and the cameras' first frames differ in time.
    zero_us = min(firsts.values())
    files.write_json(folder / CAMERAS / PLAYED_FILE, asdict(Played(clip_id, zero_us)))
    offsets = {name: (first - zero_us) / 1e3 for name, first in firsts.items()}
    live = p.live.model_copy(update={"sources": sources, "clock": "file", "offset_ms": offsets})
    return p.model_copy(update={"live": live})


@dataclass(frozen=True)
class Played:
    """A clip that was played as live cameras.

    Attributes:
        zero_us: Time 0 of the session on the clip's clock.
    """

    clip_id: str
    zero_us: int

    @classmethod
    def of(cls, folder: Path) -> Played | None:
        """The clip that the session recorded in `folder` played; None if it played no clip.

        Raises:
            AvomniError: the file that names the clip is damaged.
        """
        path = folder / CAMERAS / PLAYED_FILE
        if not path.exists():
            return None
        record = files.read_record(path, clip_id=str, zero_us=int)
        return cls(record["clip_id"], record["zero_us"])


class Moments:
    """Past motion and ground truth of a played clip by session time, from the run's cache."""

    def __init__(self, p: Params, played: Played):
        self.p, self.played, self.target = p, played, target_of(p)
        dense = p.processing.model_copy(update={"stride": 1})
        self._dense = p.model_copy(update={"processing": dense})

    @cached_property
    def _past_windows(self) -> tuple[Windows, np.ndarray]:
        windows = Windows(Cache.open(self.p.cache_dir), self.p.processing.sequence_length, stride=1)
        return windows, self._ends(windows)

    @cached_property
    def _known_windows(self) -> tuple[Windows, np.ndarray]:
        windows: Windows = samples.windows_of(self._dense, None)
        return windows, self._ends(windows)

    def _ends(self, windows: Windows) -> np.ndarray:
        """(n, 2) int64: index and end time (µs) of each window of the clip."""
        indices = [i for i, window in enumerate(windows) if window.clip_id == self.played.clip_id]
        ends_us = [int(windows.times_us(i)[-1]) for i in indices]
        return np.array([indices, ends_us], np.int64).reshape(2, -1).T

    def history(self, time_s: float) -> str:
        """Text of the car's past motion for the prompt, at a time of the session."""
        windows, ends = self._past_windows
        nearest = ends[np.abs(ends[:, 1] - self._time_us(time_s)).argmin(), 0]
        return history.of_window(windows, int(nearest), self.target, self.p.processing.own_from_s)

    def truth(self, time_s: float) -> Any:
        """The ground truth (`Windows.truth`) of the window that ends at a time of the session.

        None if no window of the cache ends within half a sampling interval of that time.
        """
        windows, ends = self._known_windows
        distance_us = np.abs(ends[:, 1] - self._time_us(time_s))
        if not len(ends) or distance_us.min() > 0.5e6 / self.p.processing.sample_hz + 1:
            return None
        return windows.truth(int(ends[distance_us.argmin(), 0]))

    def _time_us(self, time_s: float) -> int:
        return self.played.zero_us + round(time_s * 1e6)


def history_of(p: Params, folder: Path) -> Callable[[float], str] | None:
    """Session time -> text of the car's past motion; None if the prompt has no history.

    Args:
        folder: Folder of the record, in which `as_cameras` stored which clip is played.

    Raises:
        AvomniError: the prompt needs the past motion, and no clip is played.
    """
    if not p.prompt.ego_history:
        return None
    played = Played.of(folder)
    if played is None:
        subject.refuse_history(p, "live.sources")
    return Moments(p, played).history


def _from_raw_files(p: Params, clip: Clip, folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Camera -> path of its video, and camera -> time of its first frame in µs."""
    sources, firsts = {}, {}
    for camera in cameras.grid(p.vision.cameras).cameras:
        path = folder / f"{camera.name}.mp4"
        files.write_bytes(path, clip.video(camera.name).read())
        sources[camera.name] = str(path)
        firsts[camera.name] = int(clip.timestamps(camera.name)[0])
    return sources, firsts


def _from_cache(p: Params, clip: Clip, folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """The same from the cache: its tiles, losslessly encoded at the sampling rate."""
    cache, grid = Cache.open(p.cache_dir), cameras.grid(p.vision.cameras)
    cached = next((row for row in cache.clips if row.clip_id == clip.clip_id), None)
    if cached is None:
        why = "lie in files of many clips" if p.lerobot_profile else "are evicted"
        raise AvomniError(
            f"its raw files {why} and it is not in the cache",
            where=f"clip {clip.clip_id}",
            fix="play a clip of the cache, or name addresses in live.sources",
        )
    windows = Windows(cache, len(cached), 1)
    whole = next(i for i, window in enumerate(windows) if window.clip_id == clip.clip_id)
    frames, times = np.array(windows.frames(whole)), windows.times_us(whole)
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for camera in grid.cameras:
        path = folder / f"{camera.name}.mkv"
        cell = p.processing.tile_width, p.processing.tile_height
        tiles = tiling.tile_of(frames, grid, cell, camera.name)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=1000)  # timestamps in milliseconds
            stream.height, stream.width = tiles.shape[1:3]
            stream.pix_fmt = "bgr0"
            for tile, time_us in zip(tiles, times, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(tile), format="rgb24")
                frame.pts = round(int(time_us - times[0]) / 1e3)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        sources[camera.name] = str(path)
    return sources, dict.fromkeys(sources, int(times[0]))


def _short(p: Params, url: str) -> str:
    """An address for display: without a password, and relative to the run's folder."""
    return without_passwords(url).removeprefix(f"{p.run_dir}/")
