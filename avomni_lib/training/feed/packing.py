"""A batch's windows as rows of tokens: padded to the longest, or packed end to end in one row.

Neither needs an attention mask. Padding stands on the right, where causal attention never looks
back to; packed windows are kept apart by attending window by window. A mask for 65,536 tokens
would have 4.3e9 entries, and any mask at all keeps torch from its fastest attention kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from avomni_lib.training.model.attention import WINDOW_LENGTHS
from avomni_lib.training.prompt.conversation import IGNORED, Sample


def padded(samples: Sequence[Sample], pad_id: int) -> dict[str, Any]:
    """A row a sample, padded on the right.

    Returns:
        input_ids and labels (B, L) and position_ids (axes, B, L), int64.
    """
    length = max(map(len, samples))

    def fill(rows: Sequence[np.ndarray], value: int) -> torch.Tensor:
        ends = [((0, 0),) * (row.ndim - 1) + ((0, length - row.shape[-1]),) for row in rows]
        wide = [np.pad(r, e, constant_values=value) for r, e in zip(rows, ends, strict=True)]
        return torch.from_numpy(np.stack(wide, axis=-2))

    return {
        "input_ids": fill([sample.input_ids for sample in samples], pad_id),
        "labels": fill([sample.labels for sample in samples], IGNORED),
        "position_ids": fill([sample.positions for sample in samples], 0),
    }


def packed(samples: Sequence[Sample]) -> dict[str, Any]:
    """All samples in one row; the first token of each is no answer to the window before it.

    Returns:
        input_ids and labels (1, L), position_ids (axes, 1, L), int64; window_lengths, a tuple.
    """
    labels = np.concatenate([sample.labels for sample in samples])
    labels[np.cumsum([0, *map(len, samples[:-1])])] = IGNORED
    rows = {
        "input_ids": np.concatenate([sample.input_ids for sample in samples]),
        "labels": labels,
        "position_ids": np.concatenate([sample.positions for sample in samples], axis=-1),
    }
    batch = {name: torch.from_numpy(row).unsqueeze(-2) for name, row in rows.items()}
    return batch | {WINDOW_LENGTHS: tuple(map(len, samples))}
