"""Starts, follows and stops a training in a separate process.

The training survives the loss of the browser, ssh session or kernel. The process holds a lock in
the run's `checkpoints` folder, describes itself in `job.json`, writes `outcome.json` at its end and
logs to `train.log`.

The process loads the base model once, and writes a file for each intermediate result: answers
before the training, the time of the first steps, answers after it. Started for a plan, it pauses
after the first steps until the notebook writes to its stdin; if stdin is closed, as when the
notebook's kernel ends, it exits without a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.training.fit import environment
from avomni_lib.training.fit.checkpoints import METRICS_FILE, PLAN_FILE, Metrics
from avomni_lib.training.model.model_input import parameter_names

LOCK, START_LOCK = ".lock", ".start.lock"
JOB_FILE, OUTCOME_FILE, PARAMS_FILE = "job.json", "outcome.json", "params.json"
LOG_FILE = "train.log"
# Results that the process writes for the notebook, with the key of the training (`_key`).
PROBE_FILE, BEFORE_FILE, AFTER_FILE = "probe.json", "before.json", "after.json"
# Parameters that change the model's input and are not in `model` or `training`.
SEEN = (
    *(name for name in parameter_names() if name.partition(".")[0] not in ("model", "training")),
    *("prompt.question", "vision.cameras"),
    *(f"processing.past.{key}" for key in ("seconds", "hz", "scale")),
)
PROTOCOL = ("evaluation.protocol", "evaluation.protocol_ids")  # its clips are not trained on
# Parameters that identify a training.
READS = ("run.seed", "processing.stride", *SEEN, "model", "training", *PROTOCOL)
BUSY = "another training works in this run folder"
GO_ON = "run the same command again: it goes on from the last checkpoint"
EVERY_S = 0.25
WATCH_EVERY_S = 2.0
Watch = Callable[[Sequence[dict[str, Any]]], None]
# Checkpoints folder -> process that this one started for a plan, and its parameters.
_PAUSING: dict[Path, tuple[subprocess.Popen, dict[str, Any]]] = {}


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        adapter: Folder of the adapter, with `record.json`.
        metrics: One dictionary per line of `metrics.jsonl`: step, epoch, loss, token_accuracy,
            learning_rate, grad_norm; since the previous line seconds, cpu_seconds, data_wait_s,
            samples_per_s, tokens_per_s; memory_gb, the peak so far; with a card also gpu_busy_pct,
            gpu_watts, gpu_celsius, gpu_joules (see `energy`).
        choices: Choices made for the user, as (value, reason).
        figures: As in `result.json`.
        stopped_at: The step after which it was stopped; None if it was completed.
    """

    adapter: Path
    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    choices: dict[str, Choice]
    figures: dict[str, Any]
    stopped_at: int | None = None


@dataclass(frozen=True)
class Opened:
    """The training process's side of the job: writes `job.json` and `outcome.json`."""

    folder: Path
    about: dict[str, Any]

    def record(self, **more: Any) -> None:
        """Add to `job.json`."""
        self.about.update(more)
        files.write_json(self.folder / JOB_FILE, self.about)

    def is_confirmed(self, stop: threading.Event) -> bool:
        """Wait for a byte on stdin; False at its end, or when `stop` is set."""
        word = b""
        while not stop.is_set():
            if select.select([0], [], [], EVERY_S)[0]:
                word = os.read(0, 1)
                break
        self.record(waits=False)
        return bool(word)

    def finish(self, trained: Trained) -> None:
        done = {
            "stopped_at": trained.stopped_at,
            "choices": {name: list(choice) for name, choice in trained.choices.items()},
            "figures": trained.figures,
        }
        files.write_json(self.folder / OUTCOME_FILE, done)

    def fail(self, error: AvomniError) -> None:
        fields = {"what": error.what, "where": error.where, "fix": error.fix}
        files.write_json(self.folder / OUTCOME_FILE, {"error": fields})


@contextlib.contextmanager
def open_for(p: Params, **more: Any) -> Iterator[Opened]:
    """Hold the lock of the run's training during the context, and write `job.json`.

    Args:
        more: Further fields of `job.json`: `waits`, whether it will pause after the first steps,
            and `blind_follows`, whether the same process continues with the blind training.

    Raises:
        AvomniError: another process holds the lock.
    """
    folder = p.checkpoints_dir
    with files.hold(folder / LOCK, BUSY, wait_s=5.0):
        (folder / OUTCOME_FILE).unlink(missing_ok=True)
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_at": files.now(),
            "params": p.values(*READS),
            **more,
        }
        opened = Opened(folder, about)
        files.write_json(folder / JOB_FILE, about)
        yield opened


def running(p: Params) -> dict[str, Any] | None:
    """The content of `job.json` if a training is running in the run's folder, else None."""
    folder = p.checkpoints_dir
    if not files.is_held(folder / LOCK):
        return None
    return files.read_json(folder / JOB_FILE) if (folder / JOB_FILE).exists() else {}


def at_work(p: Params) -> tuple[Params, dict[str, Any]] | None:
    """Parameters and `job.json` of the running training, the model's or the blind one; or None."""
    for training in (p, p.blinded()):
        if training is not None and (about := running(training)) is not None:
            return training, about
    return None


def goes_on(p: Params, cache_digest: str) -> bool:
    """Whether a training is running, or one on this cache can be resumed from a checkpoint."""
    if at_work(p) is not None:
        return True
    for checkpoint in p.checkpoints_dir.glob("*/checkpoint-*"):
        with contextlib.suppress(AvomniError, AttributeError):
            plan = files.read_json(checkpoint.parent / PLAN_FILE)
            if plan.get("cache") == cache_digest:
                return True
    return False


def start_or_attach(p: Params, pauses: bool = False) -> tuple[subprocess.Popen | None, str]:
    """Start a training process with these parameters, or attach to a running one.

    A process that pauses for another plan is stopped first.

    Args:
        pauses: Whether the process may pause after the first steps.

    Returns:
        The process, if this one started it, and a description.

    Raises:
        AvomniError: a training with other parameters is running here.
    """
    folder = p.checkpoints_dir
    with files.hold(folder / START_LOCK, "another process starts a training here", wait_s=60.0):
        about = running(p)
        process, params = _PAUSING.get(folder, (None, None))
        if about is not None and about.get("waits"):
            is_same = process is not None and params == p.complete()
            if not is_same or not (pauses or _confirm(p, process)):
                stop(p)
                about = process = None
        if about is not None:
            _refuse_another(p, about)
            words = f"attached to process {about.get('pid')}, started {about['started_at']}"
            return process, words
        for old in (OUTCOME_FILE, JOB_FILE):  # in this order, as `is_alive` reads both
            (folder / old).unlink(missing_ok=True)
        files.write_json(folder / PARAMS_FILE, p.complete())
        with open(folder / LOG_FILE, "ab") as log:
            process = subprocess.Popen(
                command(p, folder / PARAMS_FILE, *(["--pause"] if pauses else [])),
                stdin=subprocess.PIPE if pauses else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=files.PROJECT_ROOT,
                env=environment.for_a_training(files.environment()),
                start_new_session=True,
            )
        while process.poll() is None and not (folder / JOB_FILE).exists():
            time.sleep(EVERY_S / 5)
    _PAUSING.pop(folder, None)
    if pauses:
        _PAUSING[folder] = process, p.complete()
    return process, f"started process {process.pid}"


def leave(p: Params, name: str, cache_digest: str, value: Any) -> None:
    """Write `PROBE_FILE`, `BEFORE_FILE` or `AFTER_FILE`; called by the training process."""
    files.write_json(p.checkpoints_dir / name, {"key": _key(p, cache_digest), "value": value})


def left(p: Params, name: str, cache_digest: str) -> Any:
    """The value written by `leave` with these parameters, cache and machine; None without one."""
    path = p.checkpoints_dir / name
    kept = files.read_json(path) if path.exists() else {}
    return kept.get("value") if kept.get("key") == _key(p, cache_digest) else None


def awaited(p: Params, name: str, cache_digest: str, pauses: bool = False) -> Any:
    """`left`, after waiting for it; starts a process if none is running. Ctrl-C stops it.

    Returns:
        None if the process ended without writing it.

    Raises:
        AvomniError: the process failed, was stopped or died; see also `start_or_attach`.
    """
    value = left(p, name, cache_digest)
    if value is not None:
        return value
    process, _ = start_or_attach(p, pauses)
    try:
        while is_alive(p, process):
            if (value := left(p, name, cache_digest)) is not None:
                return value
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        stop(p, process)
        raise
    outcome_of(p)
    return left(p, name, cache_digest)


def wait_for_leave(p: Params) -> None:
    """Wait until rank 0 may continue; called by the other ranks."""
    while files.read_json(p.checkpoints_dir / JOB_FILE).get("waits"):
        time.sleep(EVERY_S)


def is_alive(p: Params, process: subprocess.Popen | None = None) -> bool:
    """Whether the run's training is running, or was started here and has not begun yet."""
    about, outcome = p.checkpoints_dir / JOB_FILE, p.checkpoints_dir / OUTCOME_FILE
    if outcome.exists() and files.read_json(about).get("blind_follows"):
        return False  # its process continues with the blind training
    is_held = files.is_held(p.checkpoints_dir / LOCK)
    return is_held or (process is not None and process.poll() is None)


def is_finished(p: Params) -> bool:
    """Whether the last training here had these parameters and was completed."""
    about, outcome = p.checkpoints_dir / JOB_FILE, p.checkpoints_dir / OUTCOME_FILE
    if not about.exists() or not outcome.exists() or _differing(p, files.read_json(about)):
        return False
    return files.read_json(outcome).get("stopped_at", 0) is None


def follow(
    p: Params,
    process: subprocess.Popen | None,
    progress: type[Bar] = Bar,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Wait for the end of the run's training and show its progress.

    Ctrl-C (*Interrupt* in Lab) stops the training, which saves first.

    Args:
        process: The process, if this one started it.
        progress: One unit per optimizer step.
        watch: Called periodically with all lines of metrics so far.

    Returns:
        The outcome: choices and figures.

    Raises:
        AvomniError: it failed, was stopped, or was killed.
    """
    try:
        _show(p, process, progress, watch)
    except KeyboardInterrupt:
        stop(p, process)
        raise
    outcome = outcome_of(p)
    outcome["choices"] = {name: Choice(*choice) for name, choice in outcome["choices"].items()}
    return outcome


def outcome_of(p: Params) -> dict[str, Any]:
    """The outcome of the run's last training: choices and figures.

    Raises:
        AvomniError: it failed, was stopped, or was killed.
    """
    path = p.checkpoints_dir / OUTCOME_FILE
    if not path.exists():
        raise AvomniError(
            "the training's process was killed, usually because memory ran out",
            where=f"its last words are in {p.checkpoints_dir / LOG_FILE}",
            fix=f"lower training.batch_size or the tile size if it was memory; {GO_ON}",
        )
    outcome: dict[str, Any] = files.read_json(path)
    if "error" in outcome:
        error = outcome["error"]
        raise AvomniError(error["what"], where=error["where"], fix=error["fix"])
    if outcome["stopped_at"] == 0:
        raise AvomniError("the training was stopped before anything was saved", fix=GO_ON)
    if outcome["stopped_at"] is not None:
        raise AvomniError(
            f"the training was stopped after step {outcome['stopped_at']} and has saved", fix=GO_ON
        )
    return outcome


def stop(p: Params, process: subprocess.Popen | None = None, wait_s: float = 600.0) -> bool:
    """Ask the run's training to save and end, and wait for it.

    Returns:
        Whether one was running.

    Raises:
        AvomniError: it runs on another machine, or does not end in time.
    """
    about = running(p)
    if about is None:
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait()
        return False
    if about.get("host") != socket.gethostname():
        raise AvomniError(
            f"the training works on {about.get('host')}, this is {socket.gethostname()}",
            fix=f"there: kill -TERM {about.get('pid')}",
        )
    with contextlib.suppress(ProcessLookupError):
        os.kill(about["pid"], signal.SIGTERM)
    until = time.monotonic() + wait_s
    while files.is_held(p.checkpoints_dir / LOCK):
        if time.monotonic() > until:
            raise AvomniError(
                f"process {about['pid']} has not ended {wait_s:.0f} s after SIGTERM",
                fix=f"kill -9 {about['pid']}: the last checkpoint is whole",
            )
        time.sleep(EVERY_S)
    return True


def command(p: Params, params: Path, *options: str) -> list[str]:
    """The command that starts the training of a params file, with torchrun for several ranks."""
    worker = ["-m", "avomni_lib.training.fit.worker", str(params), *options]
    if p.training.num_processes == 1:
        return [sys.executable, *worker]
    processes = ["--standalone", "--nproc-per-node", str(p.training.num_processes)]
    return [sys.executable, "-m", "torch.distributed.run", *processes, *worker]


def in_words(error: BaseException) -> AvomniError:
    """Convert a library's exception to an `AvomniError` with advice."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if type(error).__name__ == "OutOfMemoryError":
        return AvomniError(
            f"the accelerator's memory ran out: {text}",
            fix="lower training.batch_size (and raise gradient_accumulation_steps), set "
            "training.gradient_checkpointing: true, or lower the tile size",
        )
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return AvomniError(f"no room left on the disk: {text}", fix=f"free some space; {GO_ON}")
    return AvomniError(
        f"training failed with {type(error).__name__}: {text}",
        where=f"the traceback stands in {LOG_FILE} of the checkpoints' folder",
        fix=GO_ON,
    )


def _key(p: Params, cache_digest: str) -> str:
    """Hash of everything that the values of `leave` depend on."""
    names = (*READS, "processing", "vision", "evaluation.split", "evaluation.max_new_tokens")
    return files.hash_json([p.values(*names), cache_digest, hardware.device().reason])


def _confirm(p: Params, process: Any) -> bool:
    """Let a pausing process continue; returns whether it does."""
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(b"y")
    while (about := running(p)) and about.get("waits"):
        time.sleep(EVERY_S / 5)
    return about is not None


def _differing(p: Params, about: dict[str, Any]) -> list[str]:
    ours, theirs = p.values(*READS), about.get("params", {})
    return [name for name in ours if ours[name] != theirs.get(name)]


def _refuse_another(p: Params, about: dict[str, Any]) -> None:
    if differing := _differing(p, about):
        raise AvomniError(
            f"a training with other parameters ({', '.join(differing)}) works in this run folder: "
            f"process {about.get('pid')} on {about.get('host')} since {about.get('started_at')}",
            where=str(p.checkpoints_dir),
            fix="wait for it, stop it (python -m avomni_lib stop PARAMS.yaml), or give this one "
            "another run.name",
        )


def _show(
    p: Params, process: subprocess.Popen | None, progress: type[Bar], watch: Watch | None
) -> None:
    folder, shown, watched = p.checkpoints_dir, 0, 0.0
    about: dict[str, Any] = {}
    while "steps" not in about and is_alive(p, process):
        time.sleep(EVERY_S)
        about = files.read_json(folder / JOB_FILE) if (folder / JOB_FILE).exists() else {}
    if "steps" not in about:
        return
    metrics = Metrics(folder / about["checkpoints"] / METRICS_FILE)
    lines, state = [], None
    with progress(total=about["steps"], unit="step", label="training") as bar:
        going = True
        while going:
            # Checked first, so that the metrics are read once more after the end.
            going = is_alive(p, process)
            current = files.state_of(metrics.path)
            if current != state:
                lines, state = metrics.read(), current
            if lines and lines[-1]["step"] > shown:
                bar.update(lines[-1]["step"] - shown, note=f"loss {lines[-1]['loss']:.3f}")
                shown = lines[-1]["step"]
                if watch and time.monotonic() - watched > WATCH_EVERY_S:
                    watch(lines)
                    watched = time.monotonic()
            if going:
                time.sleep(EVERY_S)
    if watch and lines:
        watch(lines)
