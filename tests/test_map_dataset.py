import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache import shard
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.training.feed.map_dataset import MapDataset
from tests.test_memmap import write_cache


@pytest.fixture(scope="module", params=shard.STORAGES)
def folder(request, tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / request.param, storage=request.param)


@pytest.fixture(scope="module")
def windows(folder) -> Windows:
    return Windows(Cache.open(folder), 3, 1, "train")


def test_row_has_the_windows_frames_and_ground_truth(folder, windows):
    data = MapDataset(folder, sequence_length=3, stride=1)
    assert len(data) == len(windows) > 1
    for index in range(len(data)):
        row, truth = data[index], windows.truth(index)
        assert row["frames"].dtype == torch.uint8
        assert np.array_equal(row["frames"].numpy(), windows.frames(index))
        assert row["clip_id"] == windows[index].clip_id
        for name in ("speed_mps", "path_m", "duration_s"):
            assert row[name] == getattr(truth, name)


def test_writing_to_a_row_does_not_change_the_cache(folder, windows):
    data = MapDataset(folder, 3, 1)
    data[0]["frames"].zero_()
    assert np.array_equal(data[0]["frames"].numpy(), windows.frames(0))
    assert windows.frames(0).any()


@pytest.mark.parametrize("split", ["train", "val", None])
def test_dataset_has_the_windows_of_its_split(folder, split):
    data = MapDataset(folder, 3, 2, split)
    assert list(data.windows) == list(Windows(Cache.open(folder), 3, 2, split))
    assert len(list(data)) == len(data), "iteration must end"


@pytest.mark.parametrize("workers", [0, 2])
def test_dataloader_gives_the_windows_frames(folder, windows, workers):
    data = MapDataset(folder, 3, 1)
    batches = list(DataLoader(data, batch_size=2, num_workers=workers))
    frames = np.concatenate([batch["frames"].numpy() for batch in batches])
    expected = np.stack([windows.frames(index) for index in range(len(windows))])
    assert np.array_equal(frames, expected)
    truths = [windows.truth(index) for index in range(len(windows))]
    assert torch.cat([batch["path_m"] for batch in batches]).tolist() == [t.path_m for t in truths]
    assert sum([batch["clip_id"] for batch in batches], []) == [
        window.clip_id for window in windows
    ]


def test_spawned_workers_open_the_cache_themselves(folder, windows):
    data = MapDataset(folder, 3, 1)
    order = list(range(len(data)))[::-1]
    rows = DataLoader(data, None, sampler=order, num_workers=1, multiprocessing_context="spawn")
    frames = [row["frames"].numpy() for row in rows]
    assert np.array_equal(frames, [windows.frames(index) for index in order])


def test_pickling_leaves_out_the_opened_cache(folder):
    data = MapDataset(folder, 3, 1)
    fresh = pickle.dumps(data)
    assert len(data) > 1
    assert pickle.dumps(data) == fresh
    assert len(pickle.loads(fresh)) == len(data), "the unpickled data set must work"


def test_cache_is_opened_on_first_use(tmp_path):
    data = MapDataset(tmp_path / "none", 3, 1)
    with pytest.raises(AvomniError, match="there is no cache"):
        len(data)
