"""The training process: trains an adapter on windows of the cache.

After a kill, the same call resumes from the last intact checkpoint, with a bit-identical result.
`job` starts it for a notebook; on several machines use torchrun:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint host:29500 --rdzv-backend c10d \\
        -m avomni_lib.training.fit.worker params/mi300x_8gpu.yaml
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import shutil
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone
from avomni_lib.training.doctor import doctor
from avomni_lib.training.fit import energy, environment, heldout, job
from avomni_lib.training.fit.checkpoints import Checkpoints
from avomni_lib.training.fit.energy import Sampler
from avomni_lib.training.fit.job import Trained
from avomni_lib.training.forecast import estimate
from avomni_lib.training.model import adapter, load, model_path
from avomni_lib.training.prompt import samples, views
from avomni_lib.training.prompt.conversation import Conversation

if TYPE_CHECKING:
    from avomni_lib.training.feed.loader import Loader

log = logging.getLogger(__name__)

NUM_ANSWERED = 4  # number of windows that are answered before and after training
RANK_0_TELLS_S = 5.0  # time for rank 0 to report after another rank has failed


def work(
    p: Params,
    *,
    windows: Any = None,
    held_out: Any = None,
    stop: threading.Event | None = None,
    opened: job.Opened | None = None,
    pauses: bool = False,
    model: load.Trainable | None = None,
) -> Trained:
    """Train the adapter in this process, resuming from the last intact checkpoint.

    Args:
        windows: Replaces the cache's training windows.
        held_out: Replaces the cache's windows of the split `val`.
        stop: Set it to save a checkpoint after the current step and return.
        opened: The job, for reporting progress and answers before and after training.
        pauses: Pause after the first steps; unless continued, nothing is saved.
        model: A model that was loaded for another training, to be reused.

    Raises:
        AvomniError: see `trainer.plan`; an unknown optimizer, a non-finite loss, or a machine that
            fails the probes.
    """
    model = model or load.Trainable()
    model.ignored += environment.clean()
    windows = samples.train_windows(p) if windows is None else windows
    if p.training.blind:
        windows = views.Black(windows)
    accumulation = _accumulation(p)
    device = load.choose(p)["device"].value
    chosen_optimizer = doctor.optimizer(p.training.optimizer, device)
    # Imported after `load.choose`, as Unsloth has to be imported before TRL.
    from avomni_lib.training.fit import meter, sft

    base, tuned = model.fresh(p)
    choices = base.choices | {"optimizer": chosen_optimizer}
    doctor.check(p, choices)
    conversation = samples.conversation_of(
        p, base.tokenizer, backbone(p.model.backbone, base.model.config)
    )
    longest = samples.longest(windows, conversation)
    digest = load.base_digest(model_path.base_location(p.model.base_model), base.model.config)
    record = adapter.record_of(p, windows, conversation, digest, base.choices)
    folder = p.checkpoints_dir / files.hash_json(record)[:12]
    checkpoints = Checkpoints(folder, record, writes=rank() == 0, kept=p.training.save_total_limit)
    if model.ignored:
        reason = f"{', '.join(model.ignored)} would have changed what is learned"
        choices["environment"] = Choice("left out in part", reason)
    start = checkpoints.resume()
    last, done = start.checkpoint, start.step
    if start.passed_over:
        why = "; ".join(start.passed_over)
        log.warning("%s: going on %s", why, start)
        choices["checkpoint"] = Choice(last.name if last else "none", f"{why}; went on {start}")
    steps = estimate.optimizer_steps(p, len(windows))
    asks = opened is not None and not p.training.blind
    if opened:
        opened.record(checkpoints=folder.name, steps=steps)
    if asks and job.left(p, job.BEFORE_FILE, windows.cache.digest) is None:
        _ask(p, job.BEFORE_FILE, tuned, conversation, windows.cache)

    num_answer = len(longest) - len(conversation.prompt())
    asked = heldout.choose(p, windows, conversation, num_answer, held_out)
    report = integration = None
    if checkpoints.writes:
        integration = meter.integration(p.training.report_to)
        report = meter.reporter(p.training.report_to, p.run.name, folder, done)
    with _loader(p, windows, conversation, accumulation, steps, device) as batches:
        trainer = sft.WindowTrainer(
            loader=batches,
            conversation=conversation,
            checkpoints=checkpoints,
            held_out=asked,
            patience=p.training.patience,
            model=tuned,
            args=sft.arguments_of(p, checkpoints, choices, steps, accumulation),
            processing_class=base.tokenizer,
            # Required by SFTTrainer; the loader has the windows.
            train_dataset=sft.Dataset.from_dict({"index": range(len(windows))}),
            data_collator=list,  # never called: batches come from the loader
        )
        trainer.remove_callback(sft.PrinterCallback)
        ranks_here = environment.by_torchrun("LOCAL_WORLD_SIZE", 1)
        cards = Sampler.of(device, ranks_here) if checkpoints.writes else None
        with contextlib.closing(cards) if cards else contextlib.nullcontext():
            watch = meter.Meter(
                trainer,
                every=p.training.logging_steps,
                windows_per_step=estimate.windows_per_step(p),
                num_windows=len(windows),
                report=report,
                stop=stop,
                pause=functools.partial(_pause, p, windows, opened, stop) if pauses else None,
                cards=cards,
                integration=integration,
            )
            trainer.add_callback(watch)
            if not heldout.exhausted(trainer.history, p.training.patience):
                trainer.train(resume_from_checkpoint=str(last) if last else None)
    reached = trainer.state.global_step
    stopped_at = reached if watch.stopped and reached < steps else None
    if watch.abandoned:
        stopped_at = done
    metrics = checkpoints.metrics.read()
    figures = {
        "heldout": trainer.history,
        "tokens_per_sample": len(longest),
        "trainable_parameters": load.trainable_parameters(trainer.model),
        "peak_memory": hardware.peak_memory(device),
        "num_processes": ranks(),
    }
    if metrics:
        figures |= _figures(record, metrics, steps, done, device)
    if start.passed_over:
        figures["damaged_checkpoints"] = start.passed_over
        figures["headline"] = f"{figures.get('headline', '')}; {choices['checkpoint'].reason}"
    if checkpoints.writes and watch.abandoned and not done:
        shutil.rmtree(folder, ignore_errors=True)
    if checkpoints.writes and stopped_at is None:
        checkpoints.sweep(all_damaged=True)
        if best := heldout.best(trainer.history):
            load.load_weights(trainer.model, _whole(checkpoints, best["step"]))
        adapter.export(trainer.model, adapter.adapter_dir(p), record, figures)
    if asks and stopped_at is None:
        model.unwrap()  # 06 has no trainer, which changes the precision
        _ask(p, job.AFTER_FILE, tuned, conversation, windows.cache)
    del trainer, base, tuned, model, batches, watch
    hardware.release_memory()
    return Trained(adapter.adapter_dir(p), record, metrics, choices, figures, stopped_at)


def _figures(
    record: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    steps: int,
    done: int,
    device: str,
) -> dict[str, Any]:
    """The figures of a training for `result.json`, from its lines of metrics.

    Args:
        steps: Planned steps.
        done: Steps done before this process started.
        device: Device of the training; its peak memory is that of this process.
    """

    def total(name: str) -> float:
        return sum(line[name] for line in metrics)

    seconds, losses = total("seconds"), [line["loss"] for line in metrics]
    few = max(1, min(10, len(losses) // 2))
    begin, end = (statistics.fmean(part) for part in (losses[:few], losses[-few:]))
    taken = metrics[-1]["step"]
    peak = hardware.peak_memory(device)
    return energy.figures(metrics) | {
        "headline": f"loss {begin:.2f} -> {end:.2f} in {taken} steps",
        "num_windows": record["num_windows"],
        "num_clips": len(record["training_clip_ids"]),
        "optimizer_steps": taken,
        "planned_steps": steps,
        "resumed_from_step": done,
        "first_loss": round(begin, 4),
        "last_loss": round(end, 4),
        "train_seconds": round(seconds, 1),
        "seconds_per_step": round(seconds / taken, 4),
        "data_wait_share": round(total("data_wait_s") / seconds, 5) if seconds else 0.0,
        "measured": {
            "memory_gb": round(peak.get("device_gb", peak["host_gb"]), 3),
            # On a CPU the process's CPU time, as cores may be shared with others.
            "seconds": round(total("cpu_seconds") if device == "cpu" else seconds, 1),
        },
    }


def _whole(checkpoints: Checkpoints, step: int) -> Path:
    """The folder of a checkpoint, after verifying its files."""
    checkpoint = checkpoints.at(step)
    if reason := checkpoints.fault(checkpoint):
        raise AvomniError(
            f"{checkpoint.name}, the best one on held-out windows, is damaged: {reason}",
            where=str(checkpoint),
            fix=job.GO_ON,
        )
    return checkpoint


def _accumulation(p: Params) -> int:
    """Batches per step of this process.

    Raises:
        AvomniError: the batches of a step do not divide by the number of processes.
    """
    num_ranks, accumulated = ranks(), p.training.gradient_accumulation_steps
    if accumulated % num_ranks:
        raise AvomniError(
            f"{accumulated} batches a step cannot be shared among {num_ranks} processes",
            where="training.gradient_accumulation_steps",
            fix=f"make it a multiple of {num_ranks}, or start another number of processes",
        )
    return accumulated // num_ranks


def _pause(
    p: Params,
    windows: Any,
    opened: job.Opened | None,
    stop: threading.Event,
    timed: list[np.ndarray],
    memory_gb: float,
) -> bool:
    """Write the measurement of the first steps and wait; rank 0 decides for all ranks."""
    if opened is None:
        job.wait_for_leave(p)
        return True
    took = estimate.probe_of(timed, memory_gb)
    job.leave(p, job.PROBE_FILE, windows.cache.digest, took)
    return opened.is_confirmed(stop)


def _ask(p: Params, name: str, model: Any, conversation: Conversation, cache: Any) -> None:
    """Write the model's answers to some windows of `evaluation.split`.

    An error in opening them does not end the training; the notebook reports it when it opens them.
    """
    try:
        windows = samples.scored_windows(p, cache)
    except AvomniError as error:
        log.warning("no answers for %s: %s", name, error)
        return
    if not len(windows):
        return
    indices = heldout.thinned(len(windows), NUM_ANSWERED)
    texts = heldout.predictions(model, conversation, windows, indices, p.evaluation.max_new_tokens)
    job.leave(p, name, cache.digest, dict(zip(map(str, indices), texts, strict=True)))


def _loader(
    p: Params, windows: Any, conversation: Conversation, accumulation: int, steps: int, device: str
) -> Loader:
    """All batches of this process, in order."""
    from avomni_lib.training.feed.loader import Loader, Order

    batch_size = p.training.batch_size
    return Loader(
        windows,
        Order(
            len(windows),
            batch_size,
            steps * accumulation,
            p.run.seed,
            rank=rank(),
            num_ranks=ranks(),
        ),
        lambda indices: samples.batch_of(indices, windows, conversation),
        depth=max(2, accumulation),  # the trainer draws all batches of a step at once
        held=accumulation,
        pin=device != "cpu",
    )


def rank() -> int:
    return environment.by_torchrun("RANK", 0)


def ranks() -> int:
    return environment.by_torchrun("WORLD_SIZE", 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avomni_lib.training.fit.worker")
    parser.add_argument("params", nargs="+", metavar="PARAMS.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a parameter"
    )
    parser.add_argument(
        "--pause", action="store_true", help="after the first steps wait for a byte on stdin"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # into train.log
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    opened: job.Opened | None = None
    with contextlib.ExitStack() as held:
        try:
            p = Params.from_files(options.params, options.set)
            blind = None if p.training.blind else p.blinded()
            trainings: list[Params] = [run for run in (p, blind) if run]
            jobs: list[job.Opened | None] = [None] * len(trainings)
            # Both jobs are opened now, so that a follower of the first finds the second. The first
            # is entered last and so closed first: a follower of the second finds neither.
            if rank() == 0:
                more = {"waits": options.pause, "blind_follows": blind is not None}
                others = [held.enter_context(job.open_for(run)) for run in trainings[1:]]
                jobs = [held.enter_context(job.open_for(p, **more)), *others]
            model = load.Trainable()
            for run, opened in zip(trainings, jobs, strict=True):
                pauses = options.pause and run is p
                trained = work(run, stop=stop, opened=opened, pauses=pauses, model=model)
                if opened:
                    opened.finish(trained)
                if trained.stopped_at is not None:
                    break
            return 0
        except BaseException as error:
            if not isinstance(error, AvomniError):
                traceback.print_exc()
                error = job.in_words(error)
            print(f"error: {error}", file=sys.stderr)
            if opened:
                opened.fail(error)
            elif rank():
                # torchrun ends all processes when one fails; give rank 0 time to report.
                time.sleep(RANK_0_TELLS_S)
            return 1


if __name__ == "__main__":
    sys.exit(main())
