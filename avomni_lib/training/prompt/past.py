"""Older frames before a window's own: their rows in the cache, and downscaling.

`processing.past` sets the number of moments per second of the past. Each moment has as many
consecutive frames as the backbone joins in one patch, because a vision tower that takes pairs of
frames was trained on consecutive ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.backbones import Backbone, Video

if TYPE_CHECKING:
    import torch


def offsets(p: Params, kind: Backbone) -> tuple[int, ...]:
    """Rows of the older frames relative to the window's first own frame: negative, ascending.

    Raises:
        AvomniError: moments are so close to each other that they share frames.
    """
    starts, size = p.processing.past_starts, kind.frames_per_patch
    if any(after - before < size for before, after in itertools.pairwise((*starts, 0))):
        raise AvomniError(
            f"processing.past.hz is {p.processing.past.hz:g}: at processing.sample_hz "
            f"{p.processing.sample_hz:g} moments of {size} frames each would overlap",
            where="processing.past.hz",
            fix=f"lower it to {p.processing.sample_hz / size:g} at most, or set "
            "processing.sequence_length longer instead",
        )
    return tuple(start + frame for start in starts for frame in range(size))


def rows(p: Params, kind: Backbone) -> tuple[int, ...]:
    """Rows of all frames of a window relative to its first own frame, older ones first.

    Raises:
        AvomniError: see `offsets`.
    """
    return (*offsets(p, kind), *range(p.processing.sequence_length))


def videos(p: Params, kind: Backbone, whole: Video) -> tuple[Video, ...]:
    """The videos of a window: one, or the downscaled past and the window's own.

    Times start at the oldest frame.

    Args:
        whole: The grid at its full size; its times are ignored.

    Raises:
        AvomniError: the grid does not divide by the scale, or see `offsets`.
    """
    past, hz = offsets(p, kind), p.processing.sample_hz
    times = [
        (row + p.processing.reach) / hz for row in (*past, *range(p.processing.sequence_length))
    ]
    shrink = round(1 / p.processing.past.scale)
    if not past or shrink == 1:
        return (replace(whole, times_s=tuple(times)),)
    height, width = whole.height, whole.width
    if height % shrink or width % shrink:
        raise AvomniError(
            f"a grid of {width}×{height} px does not divide by {shrink} for the older frames",
            where="processing.past.scale",
            fix="choose a tile size whose grid does, or processing.past.scale 1",
        )
    small = replace(whole, height=height // shrink, width=width // shrink)
    return (
        replace(small, times_s=tuple(times[: len(past)])),
        replace(whole, times_s=tuple(times[len(past) :])),
    )


def shown(frames: torch.Tensor, videos: Sequence[Video]) -> list[torch.Tensor]:
    """The frames of each video of a window, at its size.

    Args:
        frames: (B, T, H, W, 3) uint8, from the cache.
    """
    import torch

    parts = torch.split(frames, [video.num_frames for video in videos], dim=1)
    height = frames.shape[2]
    return [
        smaller(part, height // video.height) for part, video in zip(parts, videos, strict=True)
    ]


def smaller(frames: torch.Tensor, shrink: int) -> torch.Tensor:
    """Downscale by averaging squares of shrink × shrink pixels, rounding half up.

    Args:
        frames: (B, T, H, W, 3) uint8, with H and W divisible by `shrink`; stays on its device.

    Returns:
        (B, T, H / shrink, W / shrink, 3) uint8.
    """
    import torch

    if shrink == 1:
        return frames
    num, length, height, width, colours = frames.shape
    squares = frames.reshape(
        num, length, height // shrink, shrink, width // shrink, shrink, colours
    )
    # Sums are integers of at most 16 × 255, the same on every device.
    total = squares.sum(dim=(3, 5), dtype=torch.int16)
    return ((total + shrink**2 // 2) // shrink**2).to(torch.uint8)
