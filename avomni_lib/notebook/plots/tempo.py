"""Pictures of 02_download and 03_etl: bytes and clips over time, and the cores that were busy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from avomni_lib import workers
from avomni_lib.notebook.plots import canvas
from avomni_lib.notebook.plots.circumstances import sentence
from avomni_lib.notebook.tempo import Tempo, Track
from avomni_lib.plan import gigabytes, minutes

MOST_BINS = 60
STALLED_S = 10.0  # with nothing coming it is worth a word


def bytes_over_time(tempo: Tempo, figures: Mapping[str, Any]) -> canvas.Picture:
    """What had come when, above how fast it came.

    Args:
        tempo: Whose bar was given to `download.fetch`.
        figures: `Downloaded.figures`.
    """
    left = figures.get("bytes_to_fetch", 0)
    later = f"; {gigabytes(left)} are left to 03, chunk after chunk" if left else ""
    track = tempo.track("Download")
    if track is None or not track.count:
        here = figures["bytes"] - left
        return sentence(f"Nothing had to be fetched: {gigabytes(here)} lay here already{later}")
    unit, size = ("GB", 1e9) if track.count >= 1e9 else ("MB", 1e6)
    picture = canvas.Picture(1000, 420)
    whole, speed = picture.subplots(2, 1, sharex=True, height_ratios=[1.4, 1])
    when, unit_s = _clock(track.seconds)
    seconds, counts, _ = np.array(track.moments).T
    whole.fill_between(seconds / unit_s, counts / size, color=canvas.BLUE, alpha=0.35, linewidth=0)
    whole.plot(seconds / unit_s, counts / size, color=canvas.BLUE, linewidth=1.8)
    if track.total:
        whole.axhline(track.total / size, color=canvas.INK, linestyle="--", linewidth=1)
    canvas.quiet(whole).set_ylabel(f"{unit} fetched\n(dashed: all)", fontsize=9)
    whole.set_ylim(0, 1.1 * max(track.total or 0, track.count) / size)
    _rates(speed, track, 1 / 1e6, unit_s, canvas.ORANGE)
    canvas.quiet(speed).set_ylabel("MB a second", fontsize=9)
    speed.set_xlabel(when, fontsize=9)
    pace = gigabytes(track.count / max(track.seconds, 1e-9))
    finding = f"{gigabytes(track.count)} came in {_time(track.seconds)}, {pace} a second"
    if (stalled := longest_stall(track)) >= STALLED_S:
        finding += f"; for {minutes(stalled)} nothing came"
    picture.finding(finding + (later or "; nothing is left"))
    return picture


def clips_a_minute(tempo: Tempo, num_cores: int | None = None) -> canvas.Picture:
    """How fast clips were read, above how many cores were busy with it.

    Args:
        tempo: Whose bar was given to `build.build`.
        num_cores: That there are; those of this machine where it is not said.
    """
    track = tempo.track("ETL")
    if track is None or not track.count:
        return sentence("No clip had to be read: the cache was whole already")
    num_cores = num_cores or workers.num_cores()
    picture = canvas.Picture(1000, 380)
    pace, cores = picture.subplots(2, 1, sharex=True)
    when, unit_s = _clock(track.seconds)
    _rates(pace, track, 60.0, unit_s, canvas.BLUE)
    canvas.quiet(pace).set_ylabel("clips a minute", fontsize=9)
    _rates(cores, track, 1.0, unit_s, canvas.PURPLE, column=2)
    cores.axhline(num_cores, color=canvas.INK, linestyle="--", linewidth=1)
    cores.set_ylim(0, 1.15 * max(num_cores, cores.get_ylim()[1] / 1.1))
    canvas.quiet(cores).set_ylabel("cores busy\n(dashed: all)", fontsize=9)
    cores.set_xlabel(when, fontsize=9)
    a_minute = 60 * track.count / max(track.seconds, 1e-9)
    of = f"{num_cores} core{'' if num_cores == 1 else 's'}"
    picture.finding(
        f"{track.count:,.0f} clip{'' if track.count == 1 else 's'} in {_time(track.seconds)}: "
        f"{a_minute:,.0f} a minute, with {track.cores:.1f} of {of} busy on this machine"
    )
    return picture


def rates(track: Track, column: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(edges (n+1,) s, rate (n,) a second) of what a track counted; their area is the whole.

    Args:
        column: Of its moments: 1 the count, 2 CPU seconds.
    """
    moments = np.array(track.moments)
    num = int(np.clip(len(moments) - 1, 1, MOST_BINS))
    edges = np.linspace(0.0, max(track.seconds, 1e-9), num + 1)
    return edges, np.diff(np.interp(edges, moments[:, 0], moments[:, column])) / np.diff(edges)


def longest_stall(track: Track) -> float:
    """Seconds of the longest time in which nothing was counted."""
    seconds, counts, _ = np.array(track.moments).T
    moved = np.flatnonzero(np.diff(counts) > 0)
    # What came between two moments may have come at any time between them.
    starts, stops = [0.0, *seconds[moved + 1]], [*seconds[moved], seconds[-1]]
    return float(max(stop - start for start, stop in zip(starts, stops, strict=True)))


def _rates(
    axes: Axes, track: Track, factor: float, unit_s: float, colour: str, column: int = 1
) -> None:
    edges, rate = rates(track, column)
    axes.stairs(factor * rate, edges / unit_s, color=colour, fill=True, alpha=0.35, linewidth=0)
    axes.stairs(factor * rate, edges / unit_s, color=colour, linewidth=1.5)
    axes.set_ylim(0, 1.1 * max(float(factor * rate.max()), 1e-9))
    axes.set_xlim(0, edges[-1] / unit_s)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else minutes(seconds)


def _clock(seconds: float) -> tuple[str, float]:
    """How a time axis is named, and its unit in seconds."""
    if seconds < 300:
        return "seconds from the start", 1.0
    return (
        ("minutes from the start", 60.0) if seconds < 3 * 3600 else ("hours from the start", 3600.0)
    )
