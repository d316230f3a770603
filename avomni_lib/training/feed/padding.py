"""A batch's windows as rows of tokens, padded to the longest.

No attention mask is needed: padding stands on the right, where causal attention never looks back
to. A mask for 65,536 tokens would have 4.3e9 entries, and any mask at all keeps torch from its
fastest attention kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

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
