import os
import random
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.training.feed.loader import Loader, Order
from tests.test_memmap import COMMON, arrays, write_cache


class Numbered:
    """Windows filled with their index; `read` lists the indices read, in order."""

    def __init__(self, count=100, gate=None, broken=None, shape=(2, 4, 6, 3)):
        self.frame_shape = shape
        self.count, self.gate, self.broken, self.read = count, gate, broken, []

    def __len__(self):
        return self.count

    def read_into(self, index, out):
        if self.gate:
            self.gate.acquire()
        if index == self.broken:
            raise AvomniError(f"window {index} is damaged")
        self.read.append(index)
        assert out.shape == self.frame_shape and out.flags.c_contiguous
        out[:] = index


def tokens(indices):
    return {"input_ids": torch.tensor(indices)}


def loader(windows, batches, **options):
    return Loader(windows, batches, tokens, **options)


def numbers(batch):
    """Indices of a batch's windows, read from its pixels and checked against its tokens."""
    indices = [int(frames.flatten()[0]) for frames in batch["frames"]]
    assert (batch["frames"] == batch["frames"][:, :1, :1, :1, :1]).all()
    assert indices == batch["input_ids"].tolist()
    return indices


def take(batches, number):
    """Indices of a batch's windows; the batch is given back at once."""
    batch = batches[number]
    indices = numbers(batch)
    batches.give_back(batch["frames"])
    return indices


def eventually(condition):
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.005)
    return False


orders = st.builds(
    Order,
    num_windows=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    num_batches=st.integers(1, 30),
    seed=st.integers(0, 9),
)


@given(orders)
def test_every_epoch_takes_each_window_once(order):
    taken = [window for batch in order for window in batch]
    epochs = [taken[i : i + order.num_windows] for i in range(0, len(taken), order.num_windows)]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert all(sorted(epoch) == list(range(order.num_windows)) for epoch in epochs[:-1])
    assert {len(batch) for batch in order} == {order.batch_size}


@given(orders, st.integers(1, 4))
def test_ranks_share_the_batches_of_one_process(order, num_ranks):
    shared = [
        Order(order.num_windows, order.batch_size, order.num_batches, order.seed, rank, num_ranks)
        for rank in range(num_ranks)
    ]
    alone = Order(order.num_windows, order.batch_size, order.num_batches * num_ranks, order.seed)
    together = [share[batch] for batch in range(order.num_batches) for share in shared]
    assert together == list(alone)


def test_epochs_differ_and_follow_the_seed():
    order = Order(50, 50, 2, seed=1)
    assert order[0] != order[1]
    assert list(order) == list(Order(50, 50, 2, seed=1))
    assert order[0] != Order(50, 50, 2, seed=2)[0]


def test_batches_come_once_and_in_order():
    order = Order(20, 3, 9, seed=0)
    windows = Numbered(20)
    with loader(windows, order) as batches:
        assert [take(batches, i) for i in range(len(batches))] == list(order)
    assert windows.read == [window for batch in order for window in batch]


def test_loader_starts_at_any_batch_without_reading_earlier_ones():
    order = Order(20, 3, 9, seed=0)
    windows = Numbered(20)
    with loader(windows, order) as batches:
        assert take(batches, 6) == order[6]
        assert take(batches, 7) == order[7]
        assert take(batches, 2) == order[2]
    assert windows.read[:3] == order[6]


def test_loader_reads_ahead_up_to_its_depth():
    windows = Numbered()
    with loader(windows, [[i] for i in range(50)], depth=3) as batches:
        numbers(batches[0])
        # Three are ready, and one more is in the spare buffer.
        assert eventually(lambda: len(windows.read) == 5)
        time.sleep(0.05)
        assert len(windows.read) == 5


def test_waiting_time_is_measured():
    gate, released = threading.Semaphore(0), []

    def release():
        released.append(time.perf_counter())
        gate.release()

    threading.Timer(0.2, release).start()
    with loader(Numbered(gate=gate), [[7]]) as batches:
        asked = time.perf_counter()
        numbers(batches[0])
    assert batches.waited_s > 0.9 * (released[0] - asked)


def test_read_error_is_raised_at_the_batch_that_needs_it():
    with loader(Numbered(broken=5), [[1, 2], [3, 4], [5, 6]]) as batches:
        assert numbers(batches[0]) == [1, 2]
        assert numbers(batches[1]) == [3, 4]
        with pytest.raises(AvomniError, match="window 5 is damaged"):
            batches[2]
        assert numbers(batches[0]) == [1, 2], "it can be used again"


def test_windows_of_different_sizes_in_a_batch_are_refused(tmp_path):
    for chunk in (3, 12):
        clips = [{"clip_id": "one", "split": "train", "chunk": chunk}]
        content = arrays(chunk)
        content["frames"] = content["frames"][:, : chunk % 8 + 2]  # of 5 rows and of 6
        folder = tmp_path / shard.shard_name(chunk)
        shard.write_shard(folder, COMMON, clips, lambda _, content=content: content)
    memmap.write_table(tmp_path, COMMON, sorted(tmp_path.iterdir()), [])
    windows = Windows(Cache.open(tmp_path), 3, 1)
    last = len(windows) - 1
    with loader(windows, [[0], [0, last]]) as batches:
        assert batches[0]["frames"].shape == (1, 3, 5, 12, 3)
        with pytest.raises(AvomniError, match=rf"window {last} is \(3, 6, 12, 3\)") as caught:
            batches[1]
    assert caught.value.where == str(folder) and "run 03_etl" in caught.value.fix


def test_close_ends_the_thread():
    def running():
        return [thread for thread in threading.enumerate() if thread.name == "avomni-loader"]

    batches = loader(Numbered(), [[i] for i in range(50)])
    numbers(batches[0])
    assert running()
    batches.close()  # it was waiting for a buffer
    assert not running()
    batches.close()
    assert numbers(batches[4]) == [4]
    batches.close()
    assert not running()


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), min_size=30, max_size=30),
    st.randoms(use_true_random=False),
)
def test_memory_is_bounded_and_held_batches_are_not_overwritten(depth, held, sizes, dice):
    """For any number of held batches and any order of giving them back."""
    batches = loader(
        Numbered(), [[i] * size for i, size in enumerate(sizes)], depth=depth, held=held
    )
    kept, places = {}, set()
    with batches:
        for i in range(30):
            kept[i] = batches[i]
            places.add(kept[i]["frames"].untyped_storage().data_ptr())
            while len(kept) >= held and (len(kept) == batches.depth + held or dice.random() < 0.6):
                batches.give_back(kept.pop(dice.choice(list(kept)))["frames"])
            for number, batch in kept.items():
                assert numbers(batch) == [number] * sizes[number]
    assert len(places) <= depth + held + 1
    assert ring_bytes(batches) == (depth + held + 1) * max(sizes) * 2 * 4 * 6 * 3


def ring_bytes(batches):
    """Bytes that the loader has allocated for frames."""
    memory = [buffer.frames.untyped_storage() for buffer in batches._ring]
    assert len({storage.data_ptr() for storage in memory}) == len(memory)
    return sum(storage.nbytes() for storage in memory)


def test_holding_too_many_batches_is_an_error():
    with loader(Numbered(), [[i] for i in range(30)], depth=2, held=2) as batches:
        kept = [batches[i] for i in range(5)]
        for _ in range(2):
            with pytest.raises(AvomniError, match="batch 5 .* all 5 that the loader") as caught:
                batches[5]
        assert "give_back" in caught.value.fix and "held=5" in caught.value.fix
        with pytest.raises(AvomniError, match="batch 9"):
            batches[9]
        batches.give_back(kept.pop(1)["frames"])
        assert numbers(batches[5]) == [5], "it goes on"
        assert [numbers(batch) for batch in kept] == [[0], [2], [3], [4]]


def test_held_batches_survive_a_seek_and_a_close():
    with loader(Numbered(), [[i] for i in range(30)]) as batches:
        kept = batches[3]
        assert [take(batches, i) for i in range(20, 30)] == [[i] for i in range(20, 30)]
        batches.close()
        assert [take(batches, i) for i in range(10)] == [[i] for i in range(10)]
        assert numbers(kept) == [3]
        batches.give_back(kept["frames"])
        held = [batches[i] for i in range(10, 14)]
        assert [numbers(batch) for batch in held] == [[10], [11], [12], [13]]


def test_only_lent_buffers_can_be_given_back_once():
    with loader(Numbered(), [[0], [1]]) as batches:
        frames = batches[0]["frames"]
        with pytest.raises(AvomniError, match="not lent"):
            batches.give_back(frames.clone())
        batches.give_back(frames)
        with pytest.raises(AvomniError, match="not lent") as caught:
            batches.give_back(frames)
        assert "once" in caught.value.fix


class Copy:
    """A copy to a device that ends when `ended` is set."""

    def __init__(self, error=None):
        self.ended, self.error = threading.Event(), error

    def synchronize(self):
        self.ended.wait(20)
        if self.error:
            raise self.error


def test_buffer_is_not_reused_before_its_copy_ends():
    with loader(Numbered(), [[i] for i in range(30)], depth=1) as batches:
        first, copy = batches[0], Copy()
        batches.give_back(first["frames"], after=copy)
        assert [take(batches, i) for i in (1, 2)] == [[1], [2]]
        time.sleep(0.05)
        assert numbers(first) == [0], "the copy still reads it"
        copy.ended.set()
        assert [take(batches, i) for i in range(3, 9)] == [[i] for i in range(3, 9)]
        assert eventually(lambda: first["frames"].max() > 2), "then it serves again"


def test_copy_of_the_last_batch_is_waited_for():
    with loader(Numbered(), [[i] for i in range(3)], depth=1) as batches:
        assert [take(batches, i) for i in range(2)] == [[0], [1]]
        last, copy = batches[2], Copy()
        batches.give_back(last["frames"], after=copy)
        assert [take(batches, i) for i in range(2)] == [[0], [1]]
        time.sleep(0.05)
        assert numbers(last) == [2]
        copy.ended.set()


def test_failed_copy_is_raised_at_a_later_batch():
    with loader(Numbered(), [[i] for i in range(9)], depth=1) as batches:
        copy = Copy(RuntimeError("the device is gone"))
        copy.ended.set()
        batches.give_back(batches[0]["frames"], after=copy)
        with pytest.raises(RuntimeError, match="the device is gone"):
            for i in range(1, 9):
                take(batches, i)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_asynchronous_copies_to_the_device_are_complete():
    windows = Numbered(200, shape=(16, 512, 896, 3))
    order, there = Order(200, 2, 30, seed=2), []
    with loader(windows, order, pin=True) as batches:
        for number in range(len(batches)):
            batch = batches[number]
            assert batch["frames"].is_pinned()
            torch.cuda._sleep(10**8)  # about 50 ms of work before the copy
            there.append(batch | {"frames": batch["frames"].to("cuda", non_blocking=True)})
            copied = torch.cuda.Event(blocking=True)
            copied.record()
            batches.give_back(batch["frames"], after=copied)
    assert [numbers(batch) for batch in there] == list(order)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, Windows]:
    """The same windows of a cache of each storage."""
    above = tmp_path_factory.mktemp("stored")
    folders = {name: write_cache(above / name, storage=name) for name in shard.STORAGES}
    return {name: Windows(Cache.open(folder), 3, 1) for name, folder in folders.items()}


@given(st.sampled_from(sorted(shard.STORAGES)), st.integers(1, 6), st.integers(1, 4), st.data())
def test_read_into_equals_the_mapped_frames(stored, storage, length, stride, data):
    windows = Windows(stored[storage].cache, length, stride)
    index = data.draw(st.integers(0, len(windows) - 1))
    assert windows.frame_shape == windows.frames(index).shape
    batch = np.full((3, *windows.frame_shape), 7, np.uint8)
    windows.read_into(index, batch[1])
    assert np.array_equal(batch[1], windows.frames(index))
    assert (batch[::2] == 7).all()


def test_output_array_of_wrong_shape_or_dtype_is_refused(stored):
    for windows in stored.values():
        shape = windows.frame_shape
        for out in (np.zeros((2, *shape[1:]), np.uint8), np.zeros(shape, np.int8)):
            with pytest.raises(AvomniError, match="it was asked for as"):
                windows.read_into(0, out)


@pytest.mark.parametrize("storage", shard.STORAGES)
@pytest.mark.parametrize("first", [0, 7])
def test_resumed_run_reads_the_remaining_batches(stored, storage, first):
    windows = stored[storage]
    order = Order(len(windows), 3, 12, seed=5)
    with loader(windows, order) as batches:
        for number in range(first, len(order)):
            frames = batches[number]["frames"]
            expected = np.stack([windows.frames(index) for index in order[number]])
            assert np.array_equal(frames.numpy(), expected)
            batches.give_back(frames)


@pytest.mark.parametrize("kept", [0, 200, -1])
def test_truncated_file_is_named_at_the_batch_that_needs_it(tmp_path, kept):
    folder = write_cache(tmp_path / "cache")
    windows = Windows(Cache.open(folder), 3, 1)
    path = folder / "shard_0012/frames.npy"
    size = path.stat().st_size
    os.truncate(path, kept % size)
    with loader(windows, [[0], [len(windows) - 1]]) as batches:
        batches[0]
        with pytest.raises(AvomniError, match=rf"has {kept % size:,} of {size:,} bytes") as caught:
            batches[1]
    assert caught.value.where == str(path)
    path.unlink()
    with loader(windows, [[len(windows) - 1]]) as again:
        caught = pytest.raises(AvomniError, again.__getitem__, 0)
    assert caught.match("is missing") and caught.value.where == str(path)


def test_file_truncated_while_reading_is_an_error(tmp_path, monkeypatch):
    folder = write_cache(tmp_path / "cache")
    windows = Windows(Cache.open(folder), 3, 1)
    monkeypatch.setattr(shard, "file_state", lambda *_: None)
    path = folder / "shard_0003/frames.npy"
    os.truncate(path, 500)
    with pytest.raises(AvomniError, match="cannot be read: it ends too early") as caught:
        windows.read_into(0, np.empty(windows.frame_shape, np.uint8))
    assert caught.value.where == str(path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
def test_files_are_closed_over_many_shards(tmp_path):
    folder = write_cache(tmp_path / "cache", chunks=range(40), clips_per_chunk=1)
    windows = Windows(Cache.open(folder), 3, 1)
    assert len(windows.cache.shards) == 40
    batches = [[index] for index in random.Random(3).sample(range(len(windows)), len(windows))]

    def num_open():
        return len(os.listdir("/proc/self/fd"))

    with loader(windows, batches, depth=4) as loaded:
        before, most = num_open(), 0
        for number in range(len(batches)):
            loaded.give_back(loaded[number]["frames"])
            most = max(most, num_open())
    assert most <= before + 1  # the file being read
    assert num_open() == before


def test_decoding_keeps_no_memory(tmp_path):
    """Decoding takes only a window's pixels and the buffers of its threads."""
    large = [np.zeros((1, 480, 640, 3), np.uint8), np.full((1, 480, 640, 3), 9, np.uint8)]
    encoded = shard.jpeg.encode(np.concatenate(large * 20))
    frames = shard.jpeg.JpegFrames(
        encoded["jpeg"], encoded["offsets"], encoded["crc32"], (40, 480, 640, 3)
    )
    frames[:2]  # the threads start
    tracemalloc.start()
    for first in range(0, 40, 4):
        assert frames[first : first + 4].shape == (4, 480, 640, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The window's four frames, and two copies of each of at most eight in the threads.
    assert peak < (4 + 2 * 8 + 1) * 480 * 640 * 3
