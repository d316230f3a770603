"""Metrics of a running training: metrics.jsonl and other reporters.

Imports transformers, so import it only after the base model is loaded.
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
from avomni_lib.training.fit.energy import Sampler
from avomni_lib.training.fit.sft import WindowTrainer

Report = Callable[[dict[str, Any]], None]
# Called with `Meter.spent` of each step so far and the peak memory in GB; returns whether to
# continue.
Pause = Callable[[list[np.ndarray], float], bool]
# Reporters that are called directly, so that steps after a resume replace earlier ones.
OWN_REPORTERS = ("trackio", "tensorboard")
PROBE_STEPS = 3  # the first one is a warm-up, the others are timed


class Meter(TrainerCallback):
    """Measures every step, and ends the training at a non-finite gradient or on request.

    Args:
        every: Steps between lines.
        windows_per_step: Windows per step of all processes.
        num_windows: Windows of one epoch.
        report: Receives each line in addition to `metrics.jsonl`.
        stop: Set it to save and stop after the current step.
        pause: Called once, after the first `PROBE_STEPS` steps; if it returns False, the training
            ends without saving.
        cards: Samples load and power of the cards, on the first rank only.
        integration: An integration of transformers' Trainer that receives the same lines.
    """

    def __init__(
        self,
        trainer: WindowTrainer,
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
        self.trainer, self.every = trainer, every
        self.windows_per_step, self.num_windows = windows_per_step, num_windows
        self.report, self.stop = report, stop or threading.Event()
        self.pause, self.timed = pause, []
        self.cards, self.integration = cards, integration
        self.stopped = self.abandoned = False
        # Seconds, CPU seconds, seconds of waiting for data and tokens since the last line, except
        # during checkpoints.
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
        self._mark()  # do not count a checkpoint's time for the next step

    def _windows_of(self, args, state) -> list[int]:
        """This rank's windows of the last step."""
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
        """Whether any rank is to stop; the same on every rank, so that all stop at one step."""
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
    """The reporter of each line of metrics according to `training.report_to`.

    Args:
        kind: `training.report_to`; None is returned unless it is in `OWN_REPORTERS`.
        name: Name of the run.
        folder: Folder for the reporter's files, if it can be set.
        done: Steps done before resuming; later ones are replaced.

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
    """The Trainer's integration of this name; None for those handled by `reporter`.

    Raises:
        AvomniError: its package is not installed.
    """
    if kind == "none" or kind in OWN_REPORTERS:
        return None
    try:
        (integration_class,) = get_reporting_integration_callbacks([kind])
        callback: TrainerCallback = integration_class()
    except (RuntimeError, ImportError) as error:
        raise AvomniError(
            f"training.report_to is {kind}, which cannot be used here: {error}",
            where="training.report_to",
            fix="install its package, or set it to none: metrics.jsonl is always written",
        ) from None
    return callback


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key != "step" and value is not None}


def _memory_gb(device: torch.device) -> float:
    """Peak memory in GB (1e9) of the device, or of the host on a CPU."""
    peak = hardware.peak_memory(str(device))
    return peak.get("device_gb", peak["host_gb"])
