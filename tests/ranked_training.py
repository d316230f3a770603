"""One rank of a training over `Stripes`, as torchrun starts it.

python -m torch.distributed.run … -m tests.ranked_training JSON, with the keys of `main`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from avomni_lib.training.fit import worker
from tests import training_set


def main(outputs: str, base: str, uneven: int, **changes: dict) -> None:
    """Train on so many windows whose answers are of very different lengths."""
    p = training_set.params(Path(outputs), Path(base), **changes)
    worker.work(p, windows=training_set.Uneven(uneven))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
