import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.etl import shard
from avomni_lib.etl.memmap import Cache
from avomni_lib.etl.windows import Windows
from avomni_lib.training.loader import Loader, Order
from tests.test_memmap import write_cache


class Numbered:
    """Windows that are filled with their own number; `read` says which were asked for, in order."""

    def __init__(self, count=100, gate=None, broken=None):
        self.count, self.gate, self.broken, self.read = count, gate, broken, []

    def __len__(self):
        return self.count

    def frames(self, index):
        if self.gate:
            self.gate.acquire()
        if index == self.broken:
            raise AvomniError(f"window {index} is damaged")
        self.read.append(index)
        return np.full((2, 4, 6, 3), index, np.uint8)


def tokens(indices):
    return {"input_ids": torch.tensor(indices)}


def loader(windows, batches, **options):
    return Loader(windows, batches, tokens, **options)


def numbers(batch):
    """The windows that a batch holds, read from its pixels; they agree with its tokens."""
    found = [int(frames.flatten()[0]) for frames in batch["frames"]]
    assert (batch["frames"] == batch["frames"][:, :1, :1, :1, :1]).all()
    assert found == batch["input_ids"].tolist()
    return found


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
def test_every_pass_takes_each_window_once(order):
    taken = [window for batch in order for window in batch]
    passes = [taken[i : i + order.num_windows] for i in range(0, len(taken), order.num_windows)]
    assert all(len(set(once)) == len(once) for once in passes)
    assert all(sorted(once) == list(range(order.num_windows)) for once in passes[:-1])
    assert {len(batch) for batch in order} == {order.batch_size}


@given(orders, st.integers(1, 4))
def test_ranks_share_what_one_alone_would_take(order, num_ranks):
    shared = [
        Order(order.num_windows, order.batch_size, order.num_batches, order.seed, rank, num_ranks)
        for rank in range(num_ranks)
    ]
    alone = Order(order.num_windows, order.batch_size, order.num_batches * num_ranks, order.seed)
    together = [share[batch] for batch in range(order.num_batches) for share in shared]
    assert together == list(alone)


def test_passes_differ_and_follow_the_seed():
    order = Order(50, 50, 2, seed=1)
    assert order[0] != order[1]
    assert list(order) == list(Order(50, 50, 2, seed=1))
    assert order[0] != Order(50, 50, 2, seed=2)[0]


def test_batches_come_in_order_and_once():
    order = Order(20, 3, 9, seed=0)
    windows = Numbered(20)
    with loader(windows, order) as batches:
        assert [numbers(batches[i]) for i in range(len(batches))] == list(order)
    assert windows.read == [window for batch in order for window in batch]


def test_it_starts_at_any_batch_and_reads_nothing_before_it():
    order = Order(20, 3, 9, seed=0)
    windows = Numbered(20)
    with loader(windows, order) as batches:
        assert numbers(batches[6]) == order[6]
        assert numbers(batches[7]) == order[7]
        assert numbers(batches[2]) == order[2]
    assert windows.read[:3] == order[6]


def test_batches_may_differ_in_size():
    with loader(Numbered(), [[0, 1, 2], [3]]) as batches:
        assert [numbers(batches[0]), numbers(batches[1])] == [[0, 1, 2], [3]]


def test_it_reads_ahead_of_the_step_and_no_further():
    windows = Numbered()
    with loader(windows, [[i] for i in range(50)], depth=3) as batches:
        numbers(batches[0])
        # Three wait in the queue and one more is in the thread's hands.
        assert eventually(lambda: len(windows.read) == 5)
        time.sleep(0.05)
        assert len(windows.read) == 5


def test_waiting_is_measured():
    gate, released = threading.Semaphore(0), []

    def release():
        released.append(time.perf_counter())
        gate.release()

    threading.Timer(0.2, release).start()
    with loader(Numbered(gate=gate), [[7]]) as batches:
        asked = time.perf_counter()
        numbers(batches[0])
    assert batches.waited_s > 0.9 * (released[0] - asked)


def test_the_threads_error_reaches_the_step_that_asks():
    with loader(Numbered(broken=5), [[1, 2], [3, 4], [5, 6]]) as batches:
        assert numbers(batches[0]) == [1, 2]
        assert numbers(batches[1]) == [3, 4]
        with pytest.raises(AvomniError, match="window 5 is damaged"):
            batches[2]
        assert numbers(batches[0]) == [1, 2], "it can be used again"


def test_windows_of_different_sizes_are_no_batch():
    windows = Numbered()
    windows.frames = lambda index: np.zeros((2, 4 + index, 6, 3), np.uint8)
    with loader(windows, [[0, 1]]) as batches, pytest.raises(AvomniError, match="run 03_etl"):
        batches[0]


def test_closing_ends_the_thread_wherever_it_is():
    def running():
        return [thread for thread in threading.enumerate() if thread.name == "avomni-loader"]

    batches = loader(Numbered(), [[i] for i in range(50)])
    numbers(batches[0])
    assert running()
    batches.close()  # it was waiting for room in a full queue
    assert not running()
    batches.close()
    assert numbers(batches[4]) == [4]
    batches.close()
    assert not running()


def test_memory_that_is_given_back_serves_again():
    with loader(Numbered(), [[i] for i in range(30)], depth=1) as batches:
        places = set()
        for i in range(30):
            frames = batches[i]["frames"]
            places.add(frames.data_ptr())
            batches.give_back(frames)
    assert len(places) <= 4


def test_memory_that_is_kept_is_never_written_again():
    with loader(Numbered(), [[i] for i in range(30)], depth=2) as batches:
        kept = [batches[i] for i in range(30)]
    assert [numbers(batch) for batch in kept] == [[i] for i in range(30)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, Windows]:
    """The same windows of a cache of each storage."""
    above = tmp_path_factory.mktemp("stored")
    folders = {name: write_cache(above / name, storage=name) for name in shard.STORAGES}
    return {name: Windows(Cache.open(folder), 3, 1) for name, folder in folders.items()}


def test_raw_and_jpeg_caches_give_the_same_batches(stored):
    """The same windows in the same order and shape; pixels differ by what JPEG does to them."""
    order = Order(len(stored["raw"]), 4, 12, seed=3)
    with loader(stored["raw"], order) as raw, loader(stored["jpeg"], order) as encoded:
        for number in range(len(order)):
            ours, theirs = raw[number], encoded[number]
            assert ours["input_ids"].tolist() == theirs["input_ids"].tolist() == order[number]
            assert ours["frames"].shape == theirs["frames"].shape == (4, 3, 8, 12, 3)
            assert ours["frames"].dtype == theirs["frames"].dtype == torch.uint8
            off = (ours["frames"].int() - theirs["frames"].int()).abs().float()
            assert 0 < off.mean() < 6
            assert all(each.mean() < 10 for each in off), "a window is another one's"
            raw.give_back(ours["frames"]), encoded.give_back(theirs["frames"])


def test_a_damaged_jpeg_ends_the_step_that_needs_it_with_its_name(tmp_path):
    folder = write_cache(tmp_path / "cache", storage="jpeg")
    path = folder / "shard_0012/jpeg.npy"
    content = bytearray(path.read_bytes())
    content[-40] ^= 8  # in the last frame
    path.write_bytes(content)
    windows = Windows(Cache.open(folder), 3, 1)
    with loader(windows, [[i] for i in range(len(windows))]) as batches:
        for number in range(len(windows) - 1):
            batches[number]
        with pytest.raises(AvomniError, match="not what was written") as caught:
            batches[len(windows) - 1]
    assert caught.value.where.startswith(f"{folder}/shard_0012, clip clip-12-2, frame ")


def test_decoding_keeps_nothing(tmp_path):
    """Whatever is read, no more memory than a window's pixels and what its threads hold."""
    large = [np.zeros((1, 480, 640, 3), np.uint8), np.full((1, 480, 640, 3), 9, np.uint8)]
    encoded = shard.jpeg.encode(np.concatenate(large * 20))
    frames = shard.jpeg.Frames(
        encoded["jpeg"], encoded["offsets"], encoded["crc32"], (40, 480, 640, 3)
    )
    frames[:2]  # the threads start
    tracemalloc.start()
    for first in range(0, 40, 4):
        assert frames[first : first + 4].shape == (4, 480, 640, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The window's four, and at most eight that a thread is copying out, twice.
    assert peak < (4 + 2 * 8 + 1) * 480 * 640 * 3
