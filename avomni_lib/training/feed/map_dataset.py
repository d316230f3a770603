"""The cache as a plain PyTorch data set, for people who bring their own trainer.

Its DataLoader copies each batch once more than `loader.Loader`, into memory that is fresh for each:
make bench measures what that costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows


class MapDataset(Dataset):
    """The windows of a cache by number, for any sampler and any number of workers.

    Args:
        cache_dir: A run's cache, as 03_etl wrote it.
        sequence_length: Frames in a window.
        stride: Frames from one window's start to the next one's.
        split: Only the clips of this split; None takes all.
        past: Rows of older frames before a window's own, counted from its start.

    The cache is opened when it is first asked for, by each worker for itself; where workers are
    forked, they share what the parent had mapped, which nobody writes.

    Raises:
        AvomniError: at the first question, what `Cache.open` and `Windows.read_into` raise.

    Example:
        >>> train = MapDataset("outputs/demo/cache", sequence_length=16, stride=8)
        >>> batches = DataLoader(train, batch_size=2, shuffle=True, num_workers=2)
        >>> next(iter(batches))["frames"].shape
        torch.Size([2, 16, 64, 96, 3])
    """

    def __init__(
        self,
        cache_dir: Path | str,
        sequence_length: int,
        stride: int,
        split: str | None = "train",
        past: Sequence[int] = (),
    ):
        self.cache_dir, self.past = Path(cache_dir), tuple(past)
        self.sequence_length, self.stride, self.split = sequence_length, stride, split
        self._opened: Windows | None = None

    @property
    def windows(self) -> Windows:
        """What the numbers stand for."""
        if self._opened is None:
            cache = Cache.open(self.cache_dir)
            own = self.sequence_length, self.stride, self.split
            self._opened = Windows(cache, *own, past=self.past)
        return self._opened

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window.

        Returns:
            frames (T, H, W, 3) uint8, clip_id, and what the car did: speed_mps, path_m, duration_s.
        """
        windows = self.windows
        # PyTorch's memory, not NumPy's: see shard.read_rows.
        frames = torch.empty(windows.frame_shape, dtype=torch.uint8)
        windows.read_into(index, frames.numpy())
        truth = windows.truth(index)
        return {
            "frames": frames,
            "clip_id": windows[index].clip_id,
            "speed_mps": truth.speed_mps,
            "path_m": truth.path_m,
            "duration_s": truth.duration_s,
        }

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}
