"""A training that kills its own process at a named moment, for tests of what is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from avomni_lib.training.fit import sft, worker  # noqa: F401
from tests import families, training_set

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.killed_training", "bitsandbytes", "transformers.models.qwen3_vl.modeling_qwen3_vl"]
)
NUM_WINDOWS = 24
NUM_HELD_OUT = 5


def exit_code(target: Callable, *arguments: object) -> int | None:
    """Of a process that calls `target`, forked from one that has loaded what takes seconds."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    process.join(timeout=300)
    return process.exitcode


def die_at_event(event: str, part: str, times: int) -> None:
    """Kill this process at the `times`-th audit event whose values name `part`."""
    seen = 0

    def watch(name: str, values: tuple) -> None:
        nonlocal seen
        if name == event and part in "|".join(map(str, values)):
            seen += 1
            if seen == times:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def train(outputs: Path, base: Path, die_at: tuple[str, str, int] | None = None, **changes) -> None:
    """Train in this process; `die_at` is (audit event, part of a path, which time)."""
    if die_at is not None:
        die_at_event(*die_at)
    p = training_set.params(outputs, base, **changes)
    worker.work(
        p,
        windows=training_set.Stripes(NUM_WINDOWS),
        held_out=training_set.Stripes(NUM_HELD_OUT),
    )


def train_family(name: str, outputs: Path, base: Path, die_at: tuple[str, str, int]) -> None:
    """Train a family's small model in this process until it dies."""
    die_at_event(*die_at)
    family = families.FAMILIES[name]
    worker.work(family.params(outputs, base), windows=family.windows(NUM_WINDOWS))


def main(params: Path) -> None:
    """The worker's own command, in this process."""
    sys.exit(worker.main([str(params)]))


def same_but_for_time(metrics: list[dict]) -> list[dict]:
    """Lines of metrics without what differs between two runs of the same training."""
    timed = {"seconds", "cpu_seconds", "data_wait_s", "samples_per_s", "tokens_per_s", "memory_gb"}
    return [{name: line[name] for name in line if name not in timed} for line in metrics]


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)
