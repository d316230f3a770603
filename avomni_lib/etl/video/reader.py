"""Frames of a video at wanted times, selected by the data set's timestamps.

Row i of a camera's timestamps is the i-th frame in presentation order. The timestamps are checked
against the file's own times. No constant rate, start at zero or order of wanted times is assumed.
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
    """The result of `read_frames`.

    Attributes:
        images: (T, H, W, 3) uint8 RGB, upright, in the order of the wanted times.
        frame_idx: (T,) int64 index of each frame in the file, in presentation order.
        timestamps_us: (T,) int64 µs capture times, at or before the wanted times.
        source_size: (width, height) px of the video, upright.
        stored_size: (width, height) px of the video as stored.
    """

    images: np.ndarray
    frame_idx: np.ndarray
    timestamps_us: np.ndarray
    source_size: Size
    stored_size: Size


def choose_decoder(name: str = "auto") -> tuple[str, str]:
    """(decoder, reason) for `processing.decoder`."""
    if name == "auto":
        # By tests/benchmarks/decode.py there is no kind of stream for which decord is faster.
        return "pyav", (
            "exact on every file, open GOPs too, and decodes no more than is asked for: half of "
            "decord's CPU time where GOPs are short, and never more"
        )
    return name, "asked for by processing.decoder"


def frame_indices(
    timestamps_us: np.ndarray, wanted_us: np.ndarray, where: str | None = None
) -> np.ndarray:
    """Index of the last frame at or before each wanted time: (T,) int64.

    Args:
        timestamps_us: (N,) int64 µs, N ≥ 1, strictly increasing (`checks.clock`).
        wanted_us: (T,) int64 µs, in any order, between the first and the last timestamp.

    Raises:
        AvomniError: a wanted time lies outside this range.
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
    """(N,) int64 µs: the file's own times of its frames, in presentation order.

    Raises:
        AvomniError: the file is missing or damaged.
    """
    with stream.opened(source) as video:
        return np.array(video.times_us, dtype=np.int64)


def key_rows(source: streams.Source) -> np.ndarray:
    """(K,) int: indices, in presentation order, of the frames that decode without others.

    Raises:
        AvomniError: the file is missing or damaged.
    """
    with stream.opened(source) as video:
        return video.key_rows


def check_clock(timestamps_us: np.ndarray, video: stream.Stream) -> None:
    """Raise `Damaged` if the rows of timestamps, (N,) int64 µs, are not this file's frames."""
    faults = checks.agree(video.times_us, timestamps_us, 1e6 * float(video.time_base))
    findings.refuse(faults, video.name, stream.FETCH_AGAIN, stream.Damaged)


def read_frames(
    source: streams.Source | stream.Stream,
    wanted_us: np.ndarray,
    *,
    timestamps_us: np.ndarray | None = None,
    size: Size | SizeRule | None = None,
    decoder: str = "auto",
) -> VideoFrames:
    """Read the frames of a video at the wanted times: the last frame at or before each time.

    Args:
        source: A member of a zip, a file, a time range of one, a file's bytes, or an open stream,
            which stays open.
        wanted_us: (T,) int64 µs, in any order, duplicates allowed.
        timestamps_us: (N,) int64 µs of the file's N frames on the clip's clock. None: the file's
            own times, counted from its first frame.
        size: (width, height) of the images; a function of the upright source's width and height
            that returns it; or None for the source's size. The decoder scales (PyAV by averaging
            areas).
        decoder: `auto`, `pyav` or `decord`.

    Raises:
        AvomniError: a wanted time is outside the video, the timestamps do not match the frames, or
            the file is missing or damaged.
    """
    choice, _ = choose_decoder(decoder)
    with contextlib.ExitStack() as held:
        if isinstance(source, stream.Stream):
            video = source
        else:
            video = held.enter_context(stream.opened(source))
        if isinstance(video.content, streams.TimeRange):
            choice = "pyav"  # decord cannot read a part of a file
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
