"""A training that kills its own process at a named moment, for tests of what is left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# Loaded once by the server that the processes are forked from.
from avomni_lib.training import sft, trainer  # noqa: F401
from tests import training_set

NUM_WINDOWS = 24


def train(outputs: Path, base: Path, die_at: tuple[str, str, int] | None = None, **changes) -> None:
    """Train in this process; `die_at` is (audit event, part of a path, which time)."""
    if die_at is not None:
        event, part, times = die_at
        seen = 0

        def watch(name: str, values: tuple) -> None:
            nonlocal seen
            if name == event and part in "|".join(map(str, values)):
                seen += 1
                if seen == times:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
    p = training_set.params(outputs, base, **changes)
    trainer.train(p, windows=training_set.Stripes(NUM_WINDOWS))
