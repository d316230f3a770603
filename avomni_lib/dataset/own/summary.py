"""Summary of each clip as `pack` interpreted it, to compare with the actual drive."""

from __future__ import annotations

import datetime
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from avomni_lib import files
from avomni_lib.dataset.own import conventions
from avomni_lib.dataset.own.conventions import Track

STRAIGHT_DEG = 5.0
SHOWN_CLIPS = 50
# Times from 2001 to 2286 are shown as Unix times.
UNIX_S = (1e9, 1e10)


@dataclass(frozen=True, slots=True)
class ClipSummary:
    """A clip from its first frame to its last one.

    Attributes:
        frames: Camera -> number of frames.
        start_s, end_s: Times of the first and last frame on the clock of `t_s`.
        path_m: Metres driven.
        mean_mps, max_mps: Mean speed, and the maximum over half a second.
        turn_deg: Change of heading from start to end, including full circles; left is positive.
        ahead_m, left_m: End position in the car's frame at the start.
        notes: Remarks on what is unusual.
    """

    name: str
    clip_id: str
    frames: Mapping[str, int]
    start_s: float
    end_s: float
    path_m: float
    mean_mps: float
    max_mps: float
    turn_deg: float
    ahead_m: float
    left_m: float
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    @property
    def turn(self) -> str:
        """`a left turn of 43°`, `a right turn of 8°`, or `straight`."""
        if abs(self.turn_deg) < STRAIGHT_DEG:
            return "straight"
        return f"a {'left' if self.turn_deg > 0 else 'right'} turn of {abs(self.turn_deg):.0f}°"

    @property
    def rows(self) -> dict[str, str]:
        """What -> value as shown."""
        low, high = min(self.frames.values()), max(self.frames.values())
        span = f"{low}" if low == high else f"{low} to {high}"
        way = "ahead" if self.ahead_m >= 0 else "behind"
        side = "left" if self.left_m >= 0 else "right"
        mean, most = (f"{v:.2f} m/s ({v * 3.6:.1f} km/h)" for v in (self.mean_mps, self.max_mps))
        rows = {
            "video": f"{len(self.frames)} cameras, {span} frames each, {self.seconds:.2f} s",
            "time": f"{_moment(self.start_s)} to {_moment(self.end_s)}",
            "path": f"{self.path_m:.1f} m, {self.turn}",
            "speed": f"mean {mean}, at most {most}",
            "end": f"{abs(self.ahead_m):.1f} m {way} of the start and {abs(self.left_m):.1f} m "
            f"to its {side}",
        }
        return rows | ({"note": "; ".join(self.notes)} if self.notes else {})

    def __str__(self) -> str:
        rows = (f"  {what:<6} {value}" for what, value in self.rows.items())
        return "\n".join([self.name, *rows])

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class Packed:
    """Summaries of all clips in the given order, and their folder (None if nothing was written).

    It can be used as the path of the folder (`os.fspath`).
    """

    folder: Path | None
    clips: tuple[ClipSummary, ...]

    def __fspath__(self) -> str:
        if self.folder is None:
            raise TypeError("these clips were checked and not packed: there is no folder")
        return str(self.folder)

    @property
    def title(self) -> str:
        minutes = sum(clip.seconds for clip in self.clips) / 60
        kilometres = sum(clip.path_m for clip in self.clips) / 1000
        folder, count = self.folder, len(self.clips)
        if folder is not None and folder.is_relative_to(files.PROJECT_ROOT):
            folder = folder.relative_to(files.PROJECT_ROOT)
        clips = f"{count} clip" + "s" * (count != 1) + (f" in {folder}" if folder else "")
        clips += "" if folder else ", not packed yet"
        return f"{clips}: {minutes:.1f} min, {kilometres:.2f} km. Is that what was driven?"

    def __str__(self) -> str:
        more = len(self.clips) - SHOWN_CLIPS
        end = [f"… and {more} more clips: `.clips` holds all"] if more > 0 else []
        return "\n".join([self.title, *map(str, self.clips[:SHOWN_CLIPS]), *end])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = pd.DataFrame({clip.name: clip.rows for clip in self.clips}).T.fillna("")
        with pd.option_context("display.max_colwidth", None):
            shown: str = table.to_html(max_rows=SHOWN_CLIPS, border=0)
        return f"<p>{html.escape(self.title)}</p>{shown}"


def summarize(
    name: str,
    clip_id: str,
    stamps_us: Mapping[str, np.ndarray],
    zero_s: float,
    motion: Mapping[str, np.ndarray],
    remarks: tuple[str, ...] = (),
) -> ClipSummary:
    """Summarize a clip from its packed content.

    Args:
        stamps_us: Camera -> (N,) int64 µs on the clip's clock.
        zero_s: The clip's time 0 on the clock of `t_s`.
        motion: `clip.EGOMOTION_COLUMNS`, (K,) each.
    """
    first = min(int(stamps[0]) for stamps in stamps_us.values()) / 1e6
    last = max(int(stamps[-1]) for stamps in stamps_us.values()) / 1e6
    t_s = motion["timestamp"] / 1e6
    # Include the ends of the span: poses may be sparse.
    times = np.concatenate([[first], t_s[(t_s > first) & (t_s < last)], [last]])
    place = np.stack([np.interp(times, t_s, motion[axis]) for axis in "xyz"], axis=1)
    quaternion = np.stack([motion[name] for name in ("qx", "qy", "qz", "qw")], axis=1)
    rows = np.clip(np.searchsorted(t_s, times), 0, len(t_s) - 1)
    turn = Rotation.from_quat(quaternion[rows])
    nose = turn.apply((1, 0, 0))
    yaw = np.degrees(np.unwrap(np.arctan2(nose[:, 1], nose[:, 0])))
    track = Track.of(times, place)
    end = turn[0].inv().apply(place[-1] - place[0])
    return ClipSummary(
        name=name,
        clip_id=clip_id,
        frames={camera: len(stamps) for camera, stamps in stamps_us.items()},
        start_s=zero_s + first,
        end_s=zero_s + last,
        path_m=track.path_m,
        mean_mps=track.mean_mps,
        max_mps=float(track.speeds.max()),
        turn_deg=float(yaw[-1] - yaw[0]),
        ahead_m=float(end[0]),
        left_m=float(end[1]),
        notes=(*remarks, *conventions.notes(track, turn)),
    )


def _moment(t_s: float) -> str:
    if UNIX_S[0] <= t_s < UNIX_S[1]:
        utc = datetime.datetime.fromtimestamp(t_s, datetime.UTC)
        return f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 10_000:02d} UTC"
    return f"{t_s:.2f} s"
