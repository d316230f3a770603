"""One rank of a training over `Stripes`, as torchrun starts it.

python -m torch.distributed.run … -m tests.ranked_training JSON, with the keys of `main`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from avomni_lib.training import worker
from tests import killed_training, training_set


class Seen(training_set.Stripes):
    """Tells which windows this rank has read."""

    def __init__(self, count: int):
        super().__init__(count)
        self.read = []

    def read_into(self, index, out):
        self.read.append(index)
        super().read_into(index, out)


def main(outputs: str, base: str, **changes: dict) -> None:
    """Train and leave `read-RANK.json`."""
    p = training_set.params(Path(outputs), Path(base), **changes)
    windows = Seen(killed_training.NUM_WINDOWS)
    worker.work(p, windows=windows, held_out=training_set.Stripes(killed_training.NUM_HELD_OUT))
    Path(outputs, f"read-{worker.rank()}.json").write_text(json.dumps(windows.read))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
