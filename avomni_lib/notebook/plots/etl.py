"""Pictures of 03_etl: what went into the cache, the disk meanwhile, and where windows lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS
from avomni_lib.notebook.plots import canvas
from avomni_lib.plan import gigabytes

if TYPE_CHECKING:
    from avomni_lib.etl.cache.memmap import Cache, CachedClip
    from avomni_lib.etl.cache.windows import Windows
    from avomni_lib.etl.run.build import Built

SPLIT_COLOURS = {"train": canvas.BLUE, "val": canvas.ORANGE, "test": canvas.PURPLE}
VELOCITY = [EGOMOTION_COLUMNS.index(name) for name in ("vx", "vy", "vz")]


@dataclass(frozen=True)
class ClipLine:
    """One clip on the timeline.

    Attributes:
        clip: Whose speed it is.
        times_s: (N,) of the sampled frames, from the clip's first.
        speed_mps: (N,) at those frames.
        windows: (first, last) frame of each window.
    """

    clip: CachedClip
    times_s: np.ndarray
    speed_mps: np.ndarray
    windows: list[tuple[int, int]]


def contact_sheet(cache: Cache, num: int = 10) -> canvas.Picture:
    """The middle frame of some clips of the cache, evenly taken."""
    clips = _some(list(cache.clips), num)
    middles = [(clip.start + clip.stop) // 2 for clip in clips]
    return canvas.in_rows(
        [cache.shards[clip.shard].frames[i] for clip, i in zip(clips, middles, strict=True)],
        [f"{canvas.short(clip.clip_id)}, {clip.split}" for clip in clips],
        f"{len(clips)} of the {len(cache.clips):,} clips in the cache, at their middle frame",
    )


def timelines(windows: Windows, num: int = 5) -> canvas.Picture:
    """Speed over time of some clips, with the windows that lie on each below the curve."""
    lines = [line_of(windows, clip) for clip in _some(list(windows.cache.clips), num)]
    picture = canvas.Picture(1100, 110 + 95 * max(len(lines), 1))
    places = np.atleast_1d(picture.subplots(max(len(lines), 1), 1, sharex=True))
    top = max([1.0, *(float(line.speed_mps.max()) for line in lines)])
    for axes, line in zip(places, lines, strict=False):
        colour = SPLIT_COLOURS.get(line.clip.split, canvas.GREY)
        axes.plot(line.times_s, line.speed_mps, color=colour, linewidth=1.8)
        for number, (first, last) in enumerate(line.windows):
            # Windows overlap, so neighbours are drawn one below the other.
            y = -top * (0.12 + 0.13 * (number % 2))
            span = [line.times_s[first], line.times_s[last]]
            axes.plot(span, [y, y], color=canvas.INK, linewidth=3, solid_capstyle="butt")
        canvas.quiet(axes).set_ylim(-top * 0.35, top * 1.08)
        axes.set_ylabel(f"{canvas.short(line.clip.clip_id)}\n{line.clip.split}\nm/s", fontsize=8)
    places[-1].set_xlabel("seconds from the clip's first frame", fontsize=9)
    means = [float(line.speed_mps.mean()) for line in lines] or [0.0]
    picture.finding(
        f"{len(windows):,} windows lie on the clips (black: where); the clips shown drive "
        f"{min(means):.1f} to {max(means):.1f} m/s on average"
    )
    return picture


def disk(built: Built, budget_gb: float | None) -> canvas.Picture:
    """Raw files and cache on the disk while the cache was built.

    Args:
        budget_gb: What they had to stay within together, or None.
    """
    seconds, raw, cache = np.array(built.moments or [(0.0, 0, 0)], dtype=np.float64).T
    picture = canvas.Picture(1000, 340)
    axes = picture.add_subplot()
    unit, size = ("GB", 1e9) if (raw + cache).max() >= 1e9 else ("MB", 1e6)
    # A point holds until the next one; the last one to the end.
    seconds = np.append(seconds, max(built.figures["seconds"], seconds[-1]))
    stacked = [np.append(cache, cache[-1]) / size, np.append(raw + cache, (raw + cache)[-1]) / size]
    axes.fill_between(seconds, 0, stacked[0], step="post", color=canvas.ORANGE, label="cache")
    axes.fill_between(seconds, *stacked, step="post", color=canvas.BLUE, label="raw files")
    if budget_gb is not None:
        axes.axhline(budget_gb * 1e9 / size, color=canvas.RED, linewidth=1.5, label="the budget")
    canvas.quiet(axes).set_ylabel(unit, fontsize=9)
    axes.set_xlabel("seconds", fontsize=9)
    axes.legend(loc="upper left", fontsize=9, frameon=False, ncols=3)
    axes.set_ylim(0, max(axes.get_ylim()[1], stacked[1].max()) * 1.15)
    most = gigabytes((raw + cache).max())
    if budget_gb is None:
        picture.finding(f"Raw files and cache took {most} at most; raw files stay")
    else:
        went = gigabytes(sum(row["bytes_evicted"] for row in built.chunks))
        share = (raw + cache).max() / (budget_gb * 1e9)
        picture.finding(
            f"Raw files and cache took {most} at most, {share:.0%} of the budget; "
            f"{went} of raw files came and went"
        )
    return picture


def line_of(windows: Windows, clip: CachedClip) -> ClipLine:
    """A clip's speed and its windows."""
    shard = windows.cache.shards[clip.shard]
    times = shard.times[clip.start : clip.stop]
    velocity = shard.egomotion[clip.start : clip.stop][:, VELOCITY]
    spans = [
        (window.start - clip.start, window.stop - clip.start - 1)
        for window in windows
        if window.clip_id == clip.clip_id
    ]
    speed = np.linalg.norm(velocity, axis=1)
    return ClipLine(clip, (times - times[0]) / 1e6, speed, spans)


def _some(clips: list[CachedClip], num: int) -> list[CachedClip]:
    """`num` clips evenly spread, the first and the last among them."""
    places = np.linspace(0, len(clips) - 1, min(num, len(clips)))
    return [clips[int(place)] for place in places]
