"""Windows of clips: their number, place, split and ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.etl.cache import windows
from avomni_lib.etl.cache.memmap import Cache, CachedClip
from avomni_lib.etl.cache.windows import Windows
from tests.test_memmap import arrays, seed_of, write_cache

SPLITS = ("train", "val", "test")


def cache_of(lengths: list[int]) -> Cache:
    """A cache without arrays: clips of these lengths in frames, two per shard."""
    clips = []
    for n, length in enumerate(lengths):
        start = clips[-1].stop if n % 2 else 0
        place = CachedClip(f"clip {n}", SPLITS[n % 3], 0, n // 2, start, start + length, 0, 0)
        clips.append(place)
    return Cache(Path("cache"), {}, (), tuple(clips), ())


@given(
    lengths=st.lists(st.integers(1, 50), max_size=8),
    length=st.integers(2, 20),
    stride=st.integers(1, 25),
)
def test_windows_are_one_stride_apart_and_fill_their_clips(lengths, length, stride):
    cache = cache_of(lengths)
    all_windows = Windows(cache, length, stride)
    for window in all_windows:
        clip = cache.clips[window.clip_idx]
        assert (window.clip_id, window.split, window.shard) == (
            clip.clip_id,
            clip.split,
            clip.shard,
        )
        assert clip.start <= window.start and window.stop <= clip.stop
        assert window.stop - window.start == length
        assert window.start - clip.start == stride * window.number
    for clip_idx, clip in enumerate(cache.clips):
        clip_windows = [window for window in all_windows if window.clip_idx == clip_idx]
        assert [window.number for window in clip_windows] == list(range(len(clip_windows)))
        assert len(clip_windows) == windows.num_windows(len(clip), length, stride)
        remaining = (
            len(clip) - length - stride * (len(clip_windows) - 1) if clip_windows else len(clip)
        )
        assert remaining < (stride if clip_windows else length), "another window would have fitted"
        if length > stride and len(clip_windows) > 1:
            assert clip_windows[0].stop - clip_windows[1].start == length - stride, (
                "frames that two windows share"
            )


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), stride=st.integers(1, 9))
def test_splits_partition_the_windows(lengths, stride):
    cache = cache_of(lengths)
    by_split = [list(Windows(cache, 5, stride, split)) for split in SPLITS]
    assert sorted(map(repr, sum(by_split, []))) == sorted(map(repr, Windows(cache, 5, stride)))
    clips = [{window.clip_id for window in part} for part in by_split]
    assert not (clips[0] & clips[1] or clips[0] & clips[2] or clips[1] & clips[2])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache.open(write_cache(tmp_path_factory.mktemp("windows") / "cache"))


def test_window_arrays_are_rows_of_its_clip(cache):
    all_windows = Windows(cache, 3, 1)
    for i, window in enumerate(all_windows):
        clip = arrays(seed_of(window.clip_id))
        rows = slice(window.number, window.number + 3)
        assert np.array_equal(all_windows.frames(i), clip["frames"][rows])
        assert np.array_equal(all_windows.times_us(i), clip["times"][rows])
        assert np.array_equal(all_windows.egomotion(i), clip["egomotion"][rows])


def test_windows_share_memory_mapped_frames(cache):
    all_windows = Windows(cache, 3, 1)
    first, second = all_windows.frames(0), all_windows.frames(1)
    assert all_windows[0].clip_id == all_windows[1].clip_id
    assert not first.flags.owndata and np.shares_memory(first[1:], second[:2])


def test_ground_truth_speed_is_path_over_duration(cache):
    all_windows = Windows(cache, 3, 2)
    clip = arrays(seed_of(all_windows[0].clip_id))["egomotion"]
    truth = all_windows.truth(0)
    chord = float(np.linalg.norm(clip[2, :3] - clip[0, :3]))
    assert truth.duration_s == 1.0
    assert truth.chord_m == pytest.approx(chord)
    assert truth.path_m == pytest.approx(max(clip[2, -1] - clip[0, -1], chord))
    assert truth.speed_mps == pytest.approx(truth.path_m / 1.0)


def test_windows_are_a_sequence(cache):
    all_windows = Windows(cache, 3, 1, split="val")
    assert all_windows[-1] == all_windows[len(all_windows) - 1] and len(list(all_windows)) == len(
        all_windows
    )
    with pytest.raises(IndexError):
        all_windows[len(all_windows)]
    assert not len(Windows(cache, 500, 1))
