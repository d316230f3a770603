"""Figures of 03_etl: frames of the cache, disk usage during the build, positions of windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS
from avomni_lib.notebook.plots import canvas
from avomni_lib.plan import gigabytes, unit_of

if TYPE_CHECKING:
    from avomni_lib.etl.cache.memmap import Cache
    from avomni_lib.etl.cache.windows import Windows
    from avomni_lib.etl.run.build import Built

SPLIT_COLOURS = {"train": canvas.BLUE, "val": canvas.ORANGE, "test": canvas.PURPLE}
VELOCITY = [EGOMOTION_COLUMNS.index(name) for name in ("vx", "vy", "vz")]


def contact_sheet(cache: Cache, num: int = 10) -> canvas.Picture:
    """The middle frames of some clips of the cache, evenly chosen."""
    clips = [cache.clips[place] for place in canvas.evenly(len(cache.clips), num)]
    return canvas.in_rows(
        [cache.shards[clip.shard].frames[(clip.start + clip.stop) // 2] for clip in clips],
        [f"{canvas.short(clip.clip_id)}, {clip.split}" for clip in clips],
        f"{len(clips)} of the {len(cache.clips):,} clips in the cache, at their middle frame",
    )


def timelines(windows: Windows, num: int = 5) -> canvas.Picture:
    """Speed over time of some clips, with the positions of their windows below the curve."""
    every, speeds = windows.cache.clips, []
    clips = [every[place] for place in canvas.evenly(len(every), num)]
    for clip in clips:
        velocity = windows.cache.shards[clip.shard].egomotion[clip.start : clip.stop][:, VELOCITY]
        speeds.append(np.linalg.norm(velocity, axis=1))
    top = max([1.0, *(float(speed.max()) for speed in speeds)])
    picture = canvas.Picture(1100, 110 + 95 * max(len(clips), 1))
    places = np.atleast_1d(picture.subplots(max(len(clips), 1), 1, sharex=True))
    for axes, clip, speed in zip(places, clips, speeds, strict=False):
        times = windows.cache.shards[clip.shard].times[clip.start : clip.stop]
        times_s = (times - times[0]) / 1e6
        colour = SPLIT_COLOURS.get(clip.split, canvas.GREY)
        axes.plot(times_s, speed, color=colour, linewidth=1.8)
        in_clip = [window for window in windows if window.clip_id == clip.clip_id]
        for number, window in enumerate(in_clip):
            # Windows overlap, so neighbours are drawn at different heights.
            y = -top * (0.12 + 0.13 * (number % 2))
            span = times_s[[window.start - clip.start, window.stop - clip.start - 1]]
            axes.plot(span, [y, y], color=canvas.INK, linewidth=3, solid_capstyle="butt")
        canvas.quiet(axes, y=f"{canvas.short(clip.clip_id)}\n{clip.split}\nm/s")
        axes.set_ylim(-top * 0.35, top * 1.08)
    means = [float(speed.mean()) for speed in speeds] or [0.0]
    places[-1].set_xlabel("seconds from the clip's first frame", fontsize=9)
    picture.finding(
        f"{len(windows):,} windows lie on the clips (black: where); the clips shown drive "
        f"{min(means):.1f} to {max(means):.1f} m/s on average"
    )
    return picture


def disk(built: Built, budget_gb: float | None) -> canvas.Picture:
    """Disk usage of raw files and cache during the build, and the budget of both together."""
    seconds, raw, cache = np.array(built.moments or [(0.0, 0, 0)], dtype=np.float64).T
    most = (raw + cache).max()
    picture = canvas.Picture(1000, 340)
    axes = picture.add_subplot()
    unit, size = unit_of(most)
    # A value holds until the next one, the last one until the end.
    seconds = np.append(seconds, max(built.figures["seconds"], seconds[-1]))
    raw, cache = (np.append(part, part[-1]) / size for part in (raw, cache))
    axes.fill_between(seconds, 0, cache, step="post", color=canvas.ORANGE, label="cache")
    axes.fill_between(
        seconds, cache, raw + cache, step="post", color=canvas.BLUE, label="raw files"
    )
    finding = f"Raw files and cache took {gigabytes(most)} at most"
    if budget_gb is None:
        finding += "; raw files stay"
    else:
        axes.axhline(budget_gb * 1e9 / size, color=canvas.RED, linewidth=1.5, label="the budget")
        evicted = gigabytes(sum(row["bytes_evicted"] for row in built.chunks))
        finding += (
            f", {most / (budget_gb * 1e9):.0%} of the budget; {evicted} of raw files were evicted"
        )
    canvas.quiet(axes, x="seconds", y=unit)
    axes.legend(loc="upper left", fontsize=9, frameon=False, ncols=3)
    axes.set_ylim(0, max(axes.get_ylim()[1], (raw + cache).max()) * 1.15)
    picture.finding(finding)
    return picture
