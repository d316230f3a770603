"""What a training shows while it runs: a line of metrics a step, the bar, and who else is told.

Imports transformers, so it is imported only after the base model is loaded.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from avomni_lib import hardware
from avomni_lib.errors import AvomniError
from avomni_lib.plan import Bar
from avomni_lib.training.fit.energy import Sampler
from avomni_lib.training.fit.sft import WindowTrainer

Report = Callable[[dict[str, Any]], None]
# Of the steps so far what each took, as `Meter.spent`, and the most memory held, GB; returns
# whether to go on.
Pause = Callable[[list[np.ndarray], float], bool]
# The lines go to these directly, with steps that a restart writes anew.
OWN_REPORTERS = ("trackio", "tensorboard")
PROBE_STEPS = 3  # the first one warms up, the other two are timed


class Meter(TrainerCallback):
    """Watches each step, and ends the training at a gradient that is no number or at a signal.

    Args:
        trainer: Whose steps are measured.
        bar: Moved by one a step.
        every: Steps between lines.
        windows_per_step: Of all processes.
        num_windows: That a pass over the training windows takes.
        report: Who is told each line besides `metrics.jsonl`.
        stop: Set from outside to save and stop after the running step.
        pause: Called once, after the first `PROBE_STEPS` steps; where it says so, the training ends
            there and saves nothing.
        cards: Who asks them what they do; this process's first rank alone.
        integration: Of the Trainer's own, told the same lines as `report`.
    """

    def __init__(
        self,
        trainer: WindowTrainer,
        bar: Bar,
        *,
        every: int,
        windows_per_step: int,
        num_windows: int,
        report: Report | None = None,
        stop: threading.Event | None = None,
        pause: Pause | None = None,
        cards: Sampler | None = None,
        integration: TrainerCallback | None = None,
    ):
        self.trainer, self.bar, self.every = trainer, bar, every
        self.windows_per_step, self.num_windows = windows_per_step, num_windows
        self.report, self.stop = report, stop or threading.Event()
        self.pause, self.timed = pause, []
        self.cards, self.integration = cards, integration
        self.stopped = self.abandoned = False
        # Seconds, CPU seconds, seconds of waiting for data and tokens since the last line, without
        # those of checkpoints.
        self.spent = np.zeros(4)

    def on_train_begin(self, args, state, control, **more):
        if self.integration:
            self.integration.on_train_begin(args, state, control, **more)
        self._mark()

    def on_train_end(self, args, state, control, **more):
        if self.integration:
            self.integration.on_train_end(args, state, control, **more)

    def on_step_end(self, args, state, control, **_):
        if self._any_rank_stops():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in logs:
            return  # the summary after the last step
        if not math.isfinite(logs["grad_norm"]):
            raise self.trainer.not_a_number(
                "grad_norm", logs["grad_norm"], state.global_step, self._windows_of(args, state)
            )
        taken = self._now() - self._since
        self.spent += taken
        self._mark()
        self.bar.update(1, note=f"loss {logs['loss']:.3f}")
        if self.trainer.checkpoints.writes and state.global_step % self.every == 0:
            line = self._write_line(state.global_step, logs)
            if self.integration:
                self.integration.on_log(
                    args, state, control, logs=_numbers(line), model=self.trainer.model
                )
            self.spent = np.zeros(4)
        if self.pause:
            self.timed.append(taken)
            if len(self.timed) == PROBE_STEPS or state.global_step == args.max_steps:
                self._wait(control)

    def _wait(self, control) -> None:
        pause, self.pause = self.pause, None
        if not pause(self.timed, _memory_gb(self.trainer.args.device)):
            self.stop.set()
        if self._any_rank_stops():
            self.stopped = self.abandoned = control.should_training_stop = True
            control.should_save = False
        self._mark()

    def on_save(self, args, state, control, **_):
        self._mark()  # a checkpoint's seconds are not the next step's

    def _windows_of(self, args, state) -> list[int]:
        """Of this rank, in the step that was just taken."""
        first = (state.global_step - 1) * args.gradient_accumulation_steps
        batches = range(first, first + args.gradient_accumulation_steps)
        return [index for number in batches for index in self.trainer.loader.batches[number]]

    def _write_line(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        seconds, cpu_seconds, waited, tokens = self.spent.tolist()
        tokens *= self.trainer.accelerator.num_processes
        line = {
            "step": step,
            "epoch": round(step * self.windows_per_step / self.num_windows, 4),
            "loss": logs["loss"],
            "token_accuracy": logs.get("mean_token_accuracy"),
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "seconds": round(seconds, 4),
            "cpu_seconds": round(cpu_seconds, 4),
            "data_wait_s": round(waited, 5),
            "samples_per_s": round(self.every * self.windows_per_step / seconds, 3),
            "tokens_per_s": round(tokens / seconds, 1),
            "memory_gb": round(_memory_gb(self.trainer.args.device), 3),
        }
        if self.cards:
            line |= self.cards.taken(seconds)
        self.trainer.checkpoints.metrics.add(line)
        if self.report:
            self.report(line)
        return line

    def _any_rank_stops(self) -> bool:
        """The same answer on every rank: they must not part at different steps."""
        if self.trainer.accelerator.num_processes == 1:
            return self.stop.is_set()
        flag = torch.tensor(float(self.stop.is_set()), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(flag, "sum"))

    def _now(self) -> np.ndarray:
        waited, tokens = self.trainer.loader.waited_s, self.trainer.num_tokens
        return np.array([time.perf_counter(), time.process_time(), waited, tokens])

    def _mark(self) -> None:
        self._since = self._now()


def reporter(kind: str, name: str, folder: Path, done: int) -> Report | None:
    """Who is told each line of metrics, as `training.report_to` says.

    Args:
        kind: `training.report_to`; of others than `OWN_REPORTERS` nobody.
        name: The run's.
        folder: Where what they write goes, where they let us say.
        done: Steps that a resumed run finds done: later ones are written anew.

    Raises:
        AvomniError: its package is not installed.
    """
    if kind not in OWN_REPORTERS:
        return None
    if util.find_spec(kind) is None:
        raise AvomniError(
            f"training.report_to is {kind}, which is not installed",
            where="training.report_to",
            fix=f"pip install {kind}, or set it to none: metrics.jsonl is always written",
        )
    if kind == "trackio":
        import trackio

        trackio.init(project="avomni", name=name, resume="allow")
        return lambda line: trackio.log(_numbers(line), step=line["step"])
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def report(line: dict[str, Any]) -> None:
        for key, value in _numbers(line).items():
            writer.add_scalar(key, value, line["step"])
        writer.flush()

    return report


def integration(kind: str) -> TrainerCallback | None:
    """The Trainer's own integration of this name, where `reporter` is not for it.

    Raises:
        AvomniError: its package is not installed.
    """
    if kind == "none" or kind in OWN_REPORTERS:
        return None
    try:
        (made,) = get_reporting_integration_callbacks([kind])
        found: TrainerCallback = made()
    except (RuntimeError, ImportError) as error:
        raise AvomniError(
            f"training.report_to is {kind}, which cannot be used here: {error}",
            where="training.report_to",
            fix="install its package, or set it to none: metrics.jsonl is always written",
        ) from None
    return found


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key != "step" and value is not None}


def _memory_gb(device: torch.device) -> float:
    """The most held so far, GB (1e9): of the device, or of the host where that is the device."""
    peak = hardware.peak_memory(str(device))
    return peak.get("device_gb", peak["host_gb"])
