"""Frames of the past in 04: a picture of them, and the cost of different settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.notebook.plots import canvas
from avomni_lib.params import Params
from avomni_lib.params.sections import PastParams
from avomni_lib.training.forecast import estimate
from avomni_lib.training.prompt import past, samples, tokens
from avomni_lib.training.prompt.conversation import videos_of

MOST_SHOWN = 16  # frames in a figure


def with_past(p: Params, seconds: float | None, hz: float = 1.0, scale: float = 1.0) -> Params:
    """The run's parameters with these values of `processing.past`."""
    older = PastParams(seconds=seconds, hz=hz, scale=scale)
    processing = p.processing.model_copy(update={"past": older})
    return p.model_copy(update={"processing": processing})


def costs(runs: Sequence[Params]) -> pd.DataFrame:
    """Frames and tokens of several settings, one row each, or the reason why one is impossible."""
    return pd.DataFrame([_cost(p) for p in runs])


def _cost(p: Params) -> dict[str, str]:
    older = p.processing.past
    words = "none" if older.seconds is None else f"{older.seconds:g} s at {older.hz:g} Hz"
    row = {"past": words + ("" if older.scale == 1 or not older.seconds else f" × {older.scale:g}")}
    try:
        videos = videos_of(p, tokens.backbone_of(p))
        counted = estimate.tokens_per_sample(p)
        windows = _windows(p)
    except AvomniError as error:
        return row | {"frames": f"not to be had: {error.what}"}
    return row | {
        "frames": " + ".join(map(str, videos)),
        "vision tokens": f"{counted.vision:,}",
        "with the text": f"{counted.total:,} of {p.model.max_seq_length:,}",
        "windows": f"{len(windows):,}",
    }


def picture(p: Params, index: int = 0) -> canvas.Picture:
    """The frames of one window in order, each at the size at which the model sees it.

    At most `MOST_SHOWN` frames are shown, evenly chosen, including the window's first and last.
    """
    try:
        videos, windows = videos_of(p, tokens.backbone_of(p)), _windows(p)
    except AvomniError as error:
        return canvas.sentence(f"No window to show: {error.what}")
    if not len(windows):
        return canvas.sentence("No clip of the cache is as long as the window with its past")
    import torch

    frames = torch.from_numpy(np.array(windows.frames(index)))[None]
    shown = [image for part in past.shown(frames, videos) for image in part[0].numpy()]
    height, width = windows.frame_shape[1:3]
    own_from_s = p.processing.own_from_s
    times_s = [time_s - own_from_s for video in videos for time_s in video.times_s]
    num_older = len(shown) - p.processing.sequence_length
    few_older = min(num_older, MOST_SHOWN // 2)
    chosen = [
        *canvas.evenly(num_older, few_older),
        *(num_older + i for i in canvas.evenly(len(shown) - num_older, MOST_SHOWN - few_older)),
    ]
    images = [_framed(shown[i], height, width) for i in chosen]
    captions = [f"{times_s[i]:+.1f} s" for i in chosen]
    title = f"A window of {' and '.join(map(str, videos))}; times from its own first frame on"
    return canvas.in_rows(images, captions, title, 4)


def _framed(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pad an image with white to the size of a full frame, so that smaller ones look smaller."""
    padded = np.full((height, width, 3), 255, np.uint8)
    left = (width - image.shape[1]) // 2
    padded[height - image.shape[0] :, left : left + image.shape[1]] = image
    return padded


def _windows(p: Params) -> Windows:
    length, stride = p.processing.sequence_length, p.processing.stride
    return Windows(Cache.open(p.cache_dir), length, stride, past=samples.past_of(p))
