"""The stage that trains: windows of the cache and a base model -> an adapter.

Killed at any moment, the same call goes on from the last whole checkpoint and ends with the very
bytes that it would have ended with.
"""

from __future__ import annotations

import difflib
import gc
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import files, hardware
from avomni_lib.dataset import rig
from avomni_lib.errors import AvomniError
from avomni_lib.hardware import Choice
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan
from avomni_lib.training import adapter, estimate, model
from avomni_lib.training.backbones import Backbone, backbone
from avomni_lib.training.checkpoints import Checkpoints, step_of
from avomni_lib.training.conversation import Conversation, Sample, collate
from avomni_lib.training.targets import target


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        adapter: Folder of the adapter, with `record.json`.
        record: What the adapter was made from and for.
        metrics: One dict a line: step, epoch, loss, token_accuracy, learning_rate, grad_norm, and
            seconds and data_wait_s since the line before.
        choices: What was chosen for the user, each a (value, reason).
        figures: As in `result.json`.
    """

    adapter: Path
    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    choices: dict[str, Choice]
    figures: dict[str, Any]


def train_windows(p: Params) -> Any:
    """The training windows of the run's cache.

    Raises:
        AvomniError: no cache, or it holds no training window.
    """
    from avomni_lib.etl.memmap import Cache
    from avomni_lib.etl.windows import Windows

    cache = Cache.open(p.cache_dir)
    length, stride = p.processing.sequence_length, p.processing.stride
    windows = Windows(cache, length, stride, split="train")
    if not len(windows):
        raise AvomniError(
            f"no training window: no clip of the split `train` has {length} frames",
            where=str(p.cache_dir),
            fix="take more chunks (download.target_chunks), raise processing.sample_hz, "
            "or lower processing.sequence_length",
        )
    return windows


def plan(p: Params) -> Plan:
    """Windows, tokens of a sample and optimizer steps, before anything is trained.

    Raises:
        AvomniError: no cache, no such base model, or a sample is longer than max_seq_length.
    """
    choices = model.choose(p)
    from transformers import AutoTokenizer

    windows = train_windows(p)
    location = model.base_location(p.model.base_model)
    kind = backbone(p.model.backbone, model.read_config(p.model.base_model, location))
    talk = conversation_of(p, windows, AutoTokenizer.from_pretrained(location), kind)
    longest = max(map(len, _few_samples(windows, talk)))
    steps = estimate.optimizer_steps(p, len(windows))
    num_clips = len({windows[i].clip_id for i in range(len(windows))})
    batch, accumulated = p.training.batch_size, p.training.gradient_accumulation_steps
    optimizer = hardware.optimizer(p.training.optimizer, choices["device"].value)
    rows = [
        ("base model", p.model.base_model, location if location != p.model.base_model else ""),
        ("windows", f"{len(windows):,}", f"of {num_clips:,} clips of the split train"),
        (
            "tokens a sample",
            f"{longest:,} of {p.model.max_seq_length:,}",
            f"{talk.num_vision_tokens:,} vision tokens for {talk.size}",
        ),
        ("batch", f"{batch} × {accumulated}", "windows a step"),
        ("optimizer steps", f"{steps:,}", f"{p.training.num_epochs:g} epochs"),
        ("optimizer", *optimizer),
    ]
    figures = {
        "num_windows": len(windows),
        "num_clips": num_clips,
        "tokens_per_sample": longest,
        "vision_tokens": talk.num_vision_tokens,
        "optimizer_steps": steps,
    }
    return Plan("what 05_train will do", rows, estimate.few_steps_warning(p, steps), figures)


def train(p: Params, progress: type[Bar] = Bar, windows: Any = None) -> Trained:
    """Train the adapter, from the last whole checkpoint where there is one.

    Args:
        progress: One unit an optimizer step.
        windows: Instead of the cache's training windows.

    Raises:
        AvomniError: see `plan`; also an unknown optimizer, or a loss that is no number.
    """
    windows = train_windows(p) if windows is None else windows
    base = model.load_base(p)
    # Only now: Unsloth, where it is the backend, has to be imported before TRL.
    from avomni_lib.training import loader, sft

    kind = backbone(p.model.backbone, base.model.config)
    talk = conversation_of(p, windows, base.tokenizer, kind)
    device, backend = base.choices["device"].value, base.choices["backend"].value
    choices = base.choices | {"optimizer": _optimizer(p, device)}
    digest = model.base_digest(model.base_location(p.model.base_model), base.model.config)
    ranks = _num_ranks()
    record = adapter.record_of(p, windows, talk, digest, base.choices, ranks)
    folder = p.checkpoints_dir / files.hash_json(record)[:12]
    checkpoints = Checkpoints(folder, record, writes=_rank() == 0)
    last = checkpoints.last()
    done = step_of(last) if last else 0
    if checkpoints.writes:
        checkpoints.metrics.cut_after(done)

    steps = estimate.optimizer_steps(p, len(windows), ranks)
    batch, accumulated = p.training.batch_size, p.training.gradient_accumulation_steps
    order = loader.Order(
        len(windows), batch, steps * accumulated, p.run.seed, rank=_rank(), num_ranks=ranks
    )
    batches = loader.Loader(
        windows,
        order,
        lambda indices: tokens_of(indices, windows, talk),
        pin=device != "cpu",
    )
    tuned = model.add_adapter(base.model, p, kind, backend)
    with progress(total=steps, unit="step", label="training") as bar, batches:
        bar.update(done, note="from the last checkpoint" if done else "")
        trainer = sft.WindowTrainer(
            loader=batches,
            kind=kind,
            checkpoints=checkpoints,
            model=tuned,
            args=sft.arguments_of(p, checkpoints, choices, steps),
            processing_class=base.tokenizer,
            train_dataset=sft.named_rows(len(windows)),
            data_collator=list,  # never called: batches come from the loader
            callbacks=[
                sft.Meter(
                    batches,
                    checkpoints,
                    bar,
                    every=p.training.logging_steps,
                    epochs_per_step=batch * accumulated * ranks / len(windows),
                )
            ],
        )
        trainer.remove_callback(sft.PrinterCallback)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    metrics = checkpoints.metrics.read()
    if checkpoints.writes:
        checkpoints.sweep()
        adapter.export(trainer.model, adapter.adapter_dir(p), record)
    figures = _figures(record, metrics, steps, done) | {
        "tokens_per_sample": max(map(len, _few_samples(windows, talk))),
        "trainable_parameters": model.trainable_parameters(tuned),
        "peak_memory": hardware.peak_memory(device),
    }
    del trainer, tuned, base
    gc.collect()  # the notebook loads the base model again, to answer
    return Trained(adapter.adapter_dir(p), record, metrics, choices, figures)


def conversation_of(p: Params, windows: Any, tokenizer: Any, kind: Backbone) -> Conversation:
    """The conversation that training, evaluation and live answers hold about these windows."""
    num_frames, height, width, _ = windows.frames(0).shape
    return Conversation(
        tokenizer,
        kind,
        grid=rig.grid(p.vision.camera_setup),
        target=target(p.training.target),
        num_frames=num_frames,
        height=height,
        width=width,
        sample_hz=p.processing.sample_hz,
        max_seq_length=p.model.max_seq_length,
    )


def _sample(index: int, windows: Any, talk: Conversation) -> Sample:
    return talk.sample(talk.target.render(windows.truth(index)))


def _few_samples(windows: Any, talk: Conversation) -> list[Sample]:
    """Samples of the slowest and the fastest window: the answers differ by their digits."""
    by_path = sorted(range(len(windows)), key=lambda index: windows.truth(index).path_m)
    return [_sample(index, windows, talk) for index in {by_path[0], by_path[-1]}]


def tokens_of(indices: Sequence[int], windows: Any, talk: Conversation) -> dict[str, Any]:
    """A batch's tokens, padded to the right."""
    samples = [_sample(index, windows, talk) for index in indices]
    return collate(samples, talk.tokenizer.pad_token_id)


def _optimizer(p: Params, device: str) -> Choice:
    from transformers.training_args import OptimizerNames

    known = [name.value for name in OptimizerNames]
    if p.training.optimizer not in known:
        near = difflib.get_close_matches(p.training.optimizer, known, n=3, cutoff=0.4)
        raise AvomniError(
            f"unknown optimizer {p.training.optimizer!r}",
            where="training.optimizer",
            fix=f"near it are {', '.join(near)}" if near else f"choose one of {', '.join(known)}",
        )
    return hardware.optimizer(p.training.optimizer, device)


def _num_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))  # as torchrun sets it


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _figures(
    record: dict[str, Any], metrics: list[dict[str, Any]], steps: int, done: int
) -> dict[str, Any]:
    seconds = sum(line["seconds"] for line in metrics)
    waited = sum(line["data_wait_s"] for line in metrics)
    losses = [line["loss"] for line in metrics]
    few = max(1, min(10, len(losses) // 2))
    begin, end = (statistics.fmean(part) for part in (losses[:few], losses[-few:]))
    return {
        "headline": f"loss {begin:.2f} -> {end:.2f} in {steps} steps",
        "num_windows": record["num_windows"],
        "num_clips": len(record["training_clip_ids"]),
        "optimizer_steps": steps,
        "resumed_from_step": done,
        "first_loss": round(begin, 4),
        "last_loss": round(end, 4),
        "train_seconds": round(seconds, 1),
        "seconds_per_step": round(seconds / steps, 4),
        "data_wait_share": round(waited / seconds, 5) if seconds else 0.0,
    }
