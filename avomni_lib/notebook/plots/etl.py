"""Pictures of 03_etl: what went into the cache, what did not, and where windows lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avomni_lib.notebook.plots import canvas

SPLIT_COLOURS = {"train": canvas.BLUE, "val": canvas.ORANGE, "test": canvas.PURPLE}


@dataclass(frozen=True)
class ClipLine:
    """One clip on the timeline.

    Attributes:
        clip_id: Whose speed it is.
        split: train, val or test.
        times_s: (N,) of the sampled frames, from the clip's first.
        speed_mps: (N,) at those frames.
        windows: (first, last) frame of each window.
    """

    clip_id: str
    split: str
    times_s: np.ndarray
    speed_mps: np.ndarray
    windows: Sequence[tuple[int, int]]


def contact_sheet(
    images: Sequence[np.ndarray], captions: Sequence[str], title: str, cols: int = 5
) -> canvas.Picture:
    """Grid images of some clips, in rows.

    Args:
        images: (H, W, 3) uint8 RGB each.
        captions: A line below each.
        title: The finding.
        cols: Images in a row.
    """
    cols = min(cols, max(len(images), 1))
    num_rows = max(-(-len(images) // cols), 1)
    cell_px = 1180 // 5
    height, width = images[0].shape[:2] if len(images) else (9, 16)
    cell_height = int(cell_px * height / width) + 26
    picture = canvas.Picture(max(cell_px * cols, 560), 60 + cell_height * num_rows)
    places = np.atleast_1d(picture.subplots(num_rows, cols)).ravel()
    for place in places:
        canvas.bare(place)
    for place, image, caption in zip(places, images, captions, strict=False):
        canvas.show_image(place, image, caption)
    picture.finding(title)
    return picture


def timelines(clips: Sequence[ClipLine], num_windows: int) -> canvas.Picture:
    """Speed over time of some clips, with the windows that lie on each below the curve.

    Args:
        clips: Those drawn, one row each.
        num_windows: Of all clips of the cache, for the title.
    """
    picture = canvas.Picture(1100, 110 + 95 * max(len(clips), 1))
    places = np.atleast_1d(picture.subplots(max(len(clips), 1), 1, sharex=True)).ravel()
    top = max((float(clip.speed_mps.max()) for clip in clips), default=1.0)
    top = max(top, 1.0)
    for axes, clip in zip(places, clips, strict=False):
        colour = SPLIT_COLOURS.get(clip.split, canvas.GREY)
        axes.plot(clip.times_s, clip.speed_mps, color=colour, linewidth=1.8)
        for number, (first, last) in enumerate(clip.windows):
            # Windows overlap, so neighbours are drawn one below the other.
            y = -top * (0.12 + 0.13 * (number % 2))
            span = [clip.times_s[first], clip.times_s[last]]
            axes.plot(span, [y, y], color=canvas.INK, linewidth=3, solid_capstyle="butt")
        canvas.quiet(axes).set_ylim(-top * 0.35, top * 1.08)
        axes.set_ylabel(f"{canvas.short(clip.clip_id)}\n{clip.split}\nm/s", fontsize=8)
    places[-1].set_xlabel("seconds from the clip's first frame", fontsize=9)
    speeds = [float(np.mean(clip.speed_mps)) for clip in clips] or [0.0]
    picture.finding(
        f"{num_windows:,} windows lie on the clips (black: where); the clips shown drive "
        f"{min(speeds):.1f} to {max(speeds):.1f} m/s on average"
    )
    return picture


def clips_by_state(
    by_split: Mapping[str, int], bad: Mapping[str, int], seconds: float | None = None
) -> canvas.Picture:
    """How many clips went into the cache, by split, and how many did not, by reason.

    Args:
        by_split: Split -> clips in the cache.
        bad: Reason -> clips left out.
        seconds: What the stage took; left out where it only found everything done.
    """
    names = [*by_split, *bad]
    counts = [*by_split.values(), *bad.values()]
    colours = [SPLIT_COLOURS.get(name, canvas.GREY) for name in by_split]
    picture = canvas.Picture(900, 110 + 30 * max(len(names), 2))
    axes = picture.add_subplot()
    labels = [canvas.wrapped(name, 48) for name in names]
    drawn = axes.barh(labels, counts, color=[*colours, *[canvas.RED] * len(bad)], height=0.7)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=9)
    axes.invert_yaxis()
    canvas.quiet(axes, "x").set_xlabel("clips", fontsize=9)
    axes.margins(x=0.1)
    good, left_out = sum(by_split.values()), sum(bad.values())
    pace = f" at {good / seconds * 60:,.0f} clips a minute" if seconds else ""
    ending = f", {left_out} left out (red, with the reason)" if left_out else ", none left out"
    picture.finding(f"{good:,} clips are in the cache{pace}{ending}")
    return picture
