"""One rank of a training over `Stripes`, as torchrun starts it.

python -m torch.distributed.run … -m tests.ranked_training JSON, with the keys of `main`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from avomni_lib.training.fit import worker
from tests import killed_training, training_set


class Seen:
    """Windows that tell which of them this rank has read."""

    def __init__(self, windows):
        self.windows, self.read = windows, []

    def __getattr__(self, name):
        return getattr(self.windows, name)

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        return self.windows[index]

    def read_into(self, index, out):
        self.read.append(index)
        self.windows.read_into(index, out)


def main(outputs: str, base: str, uneven: int | None = None, **changes: dict) -> None:
    """Train and leave `read-RANK.json`.

    Args:
        uneven: Train on so many windows whose answers are of very different lengths.
    """
    p = training_set.params(Path(outputs), Path(base), **changes)
    windows = Seen(
        training_set.Uneven(uneven) if uneven else training_set.Stripes(killed_training.NUM_WINDOWS)
    )
    worker.work(p, windows=windows, held_out=training_set.Stripes(killed_training.NUM_HELD_OUT))
    Path(outputs, f"read-{worker.rank()}.json").write_text(json.dumps(windows.read))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
