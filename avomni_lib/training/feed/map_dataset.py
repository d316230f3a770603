"""The cache as a plain PyTorch data set, for use with other trainers.

A DataLoader copies each batch once more than `loader.Loader`, into newly allocated memory; the cost
is measured by `make bench`.
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
    """The windows of a cache by index, for any sampler and number of workers.

    Args:
        cache_dir: A run's cache, written by 03_etl.
        sequence_length: Frames in a window.
        stride: Frames from one window's start to the next one's.
        split: Only the clips of this split; None takes all.
        past: Rows of older frames relative to a window's start.

    The cache is opened on first use, separately by every worker; forked workers share the parent's
    read-only mappings.

    Raises:
        AvomniError: on first use, as `Cache.open` and `Windows.read_into`.

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
        """The windows, opened on first use."""
        if self._opened is None:
            cache = Cache.open(self.cache_dir)
            selection = self.sequence_length, self.stride, self.split
            self._opened = Windows(cache, *selection, past=self.past)
        return self._opened

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window.

        Returns:
            frames (T, H, W, 3) uint8, clip_id, and the ground truth: speed_mps, path_m, duration_s.
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
