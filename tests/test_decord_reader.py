"""The decord reader returns the same frames as PyAV, or is refused with the reason."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.etl.video import decord_reader, reader, stream
from tests.streams import numbers, stream_bytes


class OffByOne:
    """A reader that returns the frame after the requested one, as decord does in open GOPs."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __getitem__(self, row: int) -> OffByOne:
        return OffByOne(self.images[min(row + 1, len(self.images) - 1)])

    def asnumpy(self) -> np.ndarray:
        return self.images


def test_decord_is_refused_if_it_returns_a_neighbouring_frame():
    content = stream_bytes("h264 gop 30 b")
    with stream.opened(content) as opened:
        images = reader.read_frames(content, opened.times_us).images
        with pytest.raises(AvomniError, match="shows frame 30 where decord is asked for 29"):
            decord_reader._probe(OffByOne(images), opened)


@pytest.mark.parametrize("name", ["h264 gop 30 b", "hevc closed", "h264 turned 90"])
def test_decord_and_pyav_return_the_same_frames(name):
    content = stream_bytes(name)
    with stream.opened(content) as opened:
        wanted = opened.times_us[[80, 3, 3, 31]]
    frames = reader.read_frames(content, wanted, decoder="decord")
    assert numbers(frames.images, name) == [80, 3, 3, 31]
    apart = frames.images.astype(int) - reader.read_frames(content, wanted).images
    assert np.abs(apart).mean() < 2


def test_missing_decord_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(AvomniError, match="decord is not installed") as caught:
        reader.read_frames(stream_bytes("h264 gop 30"), np.array([0]), decoder="decord")
    assert caught.value.where == "processing.decoder: decord"
    assert caught.value.fix == "set processing.decoder to auto or pyav"
