"""Frames of a video at wanted times, picked by the data set's timestamps, checked by the file's.

Row i of a camera's timestamps is the i-th frame in presentation order; nothing assumes a constant
rate, a start at zero or an order of the wanted times.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from avomni_lib.dataset import checks, findings, streams
from avomni_lib.errors import AvomniError
from avomni_lib.etl.video import stream
from avomni_lib.etl.video.decord_reader import by_decord
from avomni_lib.etl.video.pyav_reader import Size, SizeRule, by_pyav

DECODERS = {"pyav": by_pyav, "decord": by_decord}


@dataclass(frozen=True)
class VideoFrames:
    """What `read_frames` returns.

    Attributes:
        images: (T, H, W, 3) uint8 RGB, upright, in the order of the wanted times.
        frame_idx: (T,) int64, which frame of the file each one is, in presentation order.
        timestamps_us: (T,) int64 µs, when each one was taken; at or before its wanted time.
        source_size: (width, height) px of the video, upright.
        stored_size: (width, height) px of the video as it is stored.
    """

    images: np.ndarray
    frame_idx: np.ndarray
    timestamps_us: np.ndarray
    source_size: Size
    stored_size: Size


def choose_decoder(name: str = "auto") -> tuple[str, str]:
    """(decoder, reason) for `processing.decoder`."""
    if name == "auto":
        # Measured by tests/benchmarks/decode.py: no kind of stream on which another one pays.
        return "pyav", (
            "exact on every file, open GOPs too, and decodes no more than is asked for: half of "
            "decord's CPU time where GOPs are short, and never more"
        )
    return name, "asked for by processing.decoder"


def frame_indices(
    timestamps_us: np.ndarray, wanted_us: np.ndarray, where: str | None = None
) -> np.ndarray:
    """For each wanted time the last frame at or before it: (T,) int64.

    Args:
        timestamps_us: (N,) int64 µs, one at least, strictly increasing (`checks.clock`).
        wanted_us: (T,) int64 µs, in any order, within the first and the last timestamp.
        where: The file, for messages.

    Raises:
        AvomniError: a wanted time outside of them.
    """
    outside = (wanted_us < timestamps_us[0]) | (wanted_us > timestamps_us[-1])
    if outside.any():
        raise AvomniError(
            f"no frame at {wanted_us[outside][0]} µs: the video lasts from {timestamps_us[0]} µs "
            f"to {timestamps_us[-1]} µs",
            where=where,
        )
    return np.searchsorted(timestamps_us, wanted_us, side="right").astype(np.int64) - 1


def frame_times(source: streams.Source) -> np.ndarray:
    """(N,) int64 µs: the times of a file's own frames, in presentation order.

    Raises:
        AvomniError: it is missing or damaged.
    """
    with stream.opened(source) as video:
        return np.array(video.times_us, dtype=np.int64)


def key_rows(source: streams.Source) -> np.ndarray:
    """(K,) int: the frames of a file, in presentation order, that decode alone.

    Raises:
        AvomniError: it is missing or damaged.
    """
    with stream.opened(source) as video:
        return video.key_rows


def check_clock(timestamps_us: np.ndarray, video: stream.Stream) -> None:
    """Refuse (as `Damaged`) timestamps, (N,) int64 µs, whose rows are not this file's frames."""
    found = checks.agree(video.times_us, timestamps_us, 1e6 * float(video.time_base))
    findings.refuse(found, video.name, stream.FETCH_AGAIN, stream.Damaged)


def read_frames(
    source: streams.Source | stream.Stream,
    wanted_us: np.ndarray,
    *,
    timestamps_us: np.ndarray | None = None,
    size: Size | SizeRule | None = None,
    decoder: str = "auto",
) -> VideoFrames:
    """The frames of a video that show the wanted times, each the last one at or before its time.

    Args:
        source: A member of a zip, a file, a stretch of one, a file's bytes, or what is open
            already and stays so.
        wanted_us: (T,) int64 µs, in any order, repeats allowed.
        timestamps_us: (N,) int64 µs of the file's N frames on the clip's clock. None: the file's
            own times, counted from its first frame.
        size: (width, height) of the images; a function of the upright source's width and height
            that returns it; or None for the source's own. Scaled in the decoder's scaler, PyAV's by
            averaging areas.
        decoder: `auto`, `pyav` or `decord`.

    Raises:
        AvomniError: a wanted time outside of the video, a file whose frames are not the timestamps'
            rows, or one that is missing or damaged.
    """
    choice, _ = choose_decoder(decoder)
    with contextlib.ExitStack() as held:
        if isinstance(source, stream.Stream):
            video = source
        else:
            video = held.enter_context(stream.opened(source))
        if isinstance(video.content, streams.TimeRange):
            choice = "pyav"  # the only one that reads a part of a file of many clips
        if timestamps_us is None:
            timestamps_us = video.times_us
        frame_idx = frame_indices(timestamps_us, wanted_us, video.name)
        if len(frame_idx) == 0:
            raise AvomniError("no time was asked for", where=video.name)
        check_clock(timestamps_us, video)
        rows, places = np.unique(frame_idx, return_inverse=True)
        images, source_size = DECODERS[choice](video, rows, size)
        stored_size = (video.codec.width, video.codec.height)
    if len(rows) < len(frame_idx) or not np.array_equal(rows, frame_idx):
        images = images[places]
    return VideoFrames(images, frame_idx, timestamps_us[frame_idx], source_size, stored_size)
