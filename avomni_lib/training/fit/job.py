"""A training in a process of its own: started, followed, found again, stopped.

A lost browser, ssh session or kernel takes nothing with it. The process holds a lock in the run's
`checkpoints` folder for as long as it lives, says in `job.json` who it is and leaves
`outcome.json`; its own words are in `train.log`.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.training.fit import environment
from avomni_lib.training.fit.checkpoints import METRICS_FILE, PLAN_FILE, Metrics
from avomni_lib.training.model.model_input import parameter_names

if TYPE_CHECKING:
    from avomni_lib.training.fit.outcome import Trained

LOCK, START_LOCK = ".lock", ".start.lock"
JOB_FILE, OUTCOME_FILE, PARAMS_FILE = "job.json", "outcome.json", "params.json"
LOG_FILE = "train.log"
# Of what the model sees, that which is not in `model` and `training` anyway.
SEEN = (
    *(name for name in parameter_names() if name.partition(".")[0] not in ("model", "training")),
    *("prompt.question", "vision.cameras"),
)
# What a training follows from: two with the same values are the same training.
READS = ("run.seed", "processing.stride", *SEEN, "model", "training")
BUSY = "another training works in this run folder"
GO_ON = "run the same command again: it goes on from the last checkpoint"
EVERY_S = 0.25
WATCH_EVERY_S = 2.0
Watch = Callable[[Sequence[dict[str, Any]]], None]


@dataclass(frozen=True)
class Opened:
    """The job of the process that trains: what it tells those who follow it."""

    folder: Path
    about: dict[str, Any]

    def tell(self, checkpoints: Path, steps: int) -> None:
        """Where the metrics will stand, and how many steps there are."""
        told = {"checkpoints": checkpoints.name, "steps": steps}
        files.write_json(self.folder / JOB_FILE, self.about | told)

    def finish(self, trained: Trained) -> None:
        done = {
            "stopped_at": trained.stopped_at,
            "choices": {name: list(choice) for name, choice in trained.choices.items()},
            "figures": trained.figures,
        }
        files.write_json(self.folder / OUTCOME_FILE, done)

    def fail(self, error: AvomniError) -> None:
        told = {"what": error.what, "where": error.where, "fix": error.fix}
        files.write_json(self.folder / OUTCOME_FILE, {"error": told})


@contextlib.contextmanager
def open_for(p: Params) -> Iterator[Opened]:
    """Be the run's training for as long as the context lasts.

    Raises:
        AvomniError: another process is.
    """
    folder = p.checkpoints_dir
    with files.hold(folder / LOCK, BUSY, wait_s=5.0):
        (folder / OUTCOME_FILE).unlink(missing_ok=True)
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "params": p.values(*READS),
        }
        opened = Opened(folder, about)
        files.write_json(folder / JOB_FILE, about)
        yield opened


def running(p: Params) -> dict[str, Any] | None:
    """What `job.json` says of a training that works in the run's folder now, or None."""
    folder = p.checkpoints_dir
    if not files.is_held(folder / LOCK):
        return None
    return files.read_json(folder / JOB_FILE) if (folder / JOB_FILE).exists() else {}


def at_work(p: Params) -> tuple[Params, dict[str, Any]] | None:
    """Which of the run's trainings works now, the model's or the blind one's, and what it says."""
    for each in (p, p.blinded()):
        if each is not None and (about := running(each)) is not None:
            return each, about
    return None


def goes_on(p: Params, cache_digest: str) -> bool:
    """Whether a training on this cache works, or was ended early and would go on from a checkpoint.

    Another cache would be another training, from its first step.
    """
    if at_work(p) is not None:
        return True
    for checkpoint in p.checkpoints_dir.glob("*/checkpoint-*"):
        with contextlib.suppress(AvomniError, AttributeError):
            plan = files.read_json(checkpoint.parent / PLAN_FILE)
            if plan.get("cache") == cache_digest:
                return True
    return False


def start_or_attach(p: Params) -> tuple[subprocess.Popen | None, str]:
    """A process that trains with these parameters, and how it was come by.

    Returns:
        The process where it was started here, and a sentence.

    Raises:
        AvomniError: one works here already with other parameters.
    """
    folder = p.checkpoints_dir
    with files.hold(folder / START_LOCK, "another process starts a training here", wait_s=60.0):
        about = running(p)
        if about is not None:
            _refuse_another(p, about)
            return None, f"attached to process {about.get('pid')}, started {about['started_at']}"
        for old in (JOB_FILE, OUTCOME_FILE):
            (folder / old).unlink(missing_ok=True)
        files.write_json(folder / PARAMS_FILE, p.complete())
        with open(folder / LOG_FILE, "ab") as log:
            process = subprocess.Popen(
                command(p, folder / PARAMS_FILE),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=files.PROJECT_ROOT,
                env=environment.for_a_training(files.environment()),
                start_new_session=True,
            )
        while process.poll() is None and not (folder / JOB_FILE).exists():
            time.sleep(EVERY_S / 5)
    return process, f"started process {process.pid}"


def follow(
    p: Params,
    process: subprocess.Popen | None,
    progress: type[Bar] = Bar,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Wait for the end of the run's training and show its steps.

    Ctrl-C (*Interrupt* in Lab) stops the training, which saves first.

    Args:
        process: If it was started by this one.
        progress: One unit an optimizer step.
        watch: Called now and then with all lines of metrics so far.

    Returns:
        What the training left: choices and figures.

    Raises:
        AvomniError: it failed, was stopped, or died without a word.
    """
    try:
        _show(p, process, progress, watch)
    except KeyboardInterrupt:
        stop(p, process)
        raise
    outcome = p.checkpoints_dir / OUTCOME_FILE
    if not outcome.exists():
        raise AvomniError(
            "the training's process was killed, usually because memory ran out",
            where=f"its last words are in {p.checkpoints_dir / LOG_FILE}",
            fix=f"lower training.batch_size or the tile size if it was memory; {GO_ON}",
        )
    told = files.read_json(outcome)
    if "error" in told:
        error = told["error"]
        raise AvomniError(error["what"], where=error["where"], fix=error["fix"])
    if told["stopped_at"] is not None:
        raise AvomniError(
            f"the training was stopped after step {told['stopped_at']} and has saved", fix=GO_ON
        )
    told["choices"] = {name: Choice(*choice) for name, choice in told["choices"].items()}
    return told


def stop(p: Params, process: subprocess.Popen | None = None, wait_s: float = 600.0) -> bool:
    """Ask the run's training to save and end, and wait until it has.

    Returns:
        Whether there was one.

    Raises:
        AvomniError: it works on another machine, or does not end in time.
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
    """The words that start the training of a params file, by torchrun where several train."""
    worker = ["-m", "avomni_lib.training.fit.worker", str(params), *options]
    if p.training.num_processes == 1:
        return [sys.executable, *worker]
    processes = ["--standalone", "--nproc-per-node", str(p.training.num_processes)]
    return [sys.executable, "-m", "torch.distributed.run", *processes, *worker]


def in_words(error: BaseException) -> AvomniError:
    """What a library's exception means to a person who trains."""
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


def _refuse_another(p: Params, about: dict[str, Any]) -> None:
    ours, theirs = p.values(*READS), about.get("params", {})
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    if differing:
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

    def alive() -> bool:
        held = files.is_held(folder / LOCK)
        return held or (process is not None and process.poll() is None)

    about: dict[str, Any] = {}
    while "steps" not in about and alive():
        time.sleep(EVERY_S)
        about = files.read_json(folder / JOB_FILE) if (folder / JOB_FILE).exists() else {}
    if "steps" not in about:
        return
    metrics = Metrics(folder / about["checkpoints"] / METRICS_FILE)
    lines, state = [], None
    with progress(total=about["steps"], unit="step", label="training") as bar:
        going = True
        while going:
            going = alive()  # asked first, so that the last lines are read once more after the end
            found = files.state_of(metrics.path)
            if found != state:
                lines, state = metrics.read(), found
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
