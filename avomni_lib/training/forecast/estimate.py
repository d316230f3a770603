"""Estimates of a run by arithmetic, without GPU, network, torch or files.

Exact: vision tokens and, for clips of full length, frames, bytes of the cache and batches. From
published figures of the data set: sizes, clips per chunk, splits. Estimated: text tokens, memory
(`memory`) and, unless steps were timed, hours.

A multiply-add counts as two operations. A window of L tokens takes, forward,

    language linears   2 · weights · L
    attention          2 · layers · L² · Q      causal: half of the square, for both of its products
    LoRA               2 · weights · L
    logits             2 · hidden · vocabulary · answer tokens
    vision tower       2 · weights · patches + 4 · depth · hidden · patches² per image

and backward as much again for frozen weights, and twice as much for trained weights and attention.
The vision tower precedes everything that is trained and has no backward pass; gradient
checkpointing adds one forward pass of the language model's layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avomni_lib import hardware
from avomni_lib.dataset import cameras
from avomni_lib.dataset.select import protocol
from avomni_lib.dataset.select.forecast import (
    EPISODES_TRAIN_SHARE,
    episode_rows,
    episode_warnings,
    forecast,
    world_splits,
)
from avomni_lib.etl.cache.shard import STORAGES
from avomni_lib.etl.cache.windows import none_fits, num_windows
from avomni_lib.etl.run import disk_budget
from avomni_lib.etl.run.disk_budget import Verdict
from avomni_lib.etl.run.forecast import clip_bytes, clip_seconds
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes, minutes
from avomni_lib.training.backbones import in_4bit
from avomni_lib.training.backbones.shared.size import ModelSize
from avomni_lib.training.forecast.memory import lora_targets, memory, size_of
from avomni_lib.training.model.model_path import TINY
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import grid_size
from avomni_lib.training.prompt.tokens import Tokens, tokens_per_sample

FEW_STEPS = 200  # with fewer steps an adapter hardly learns
# Expected memory for a batch of two windows with these settings, on an MI300X.
EXPECTED = "40–60 GB"
EXPECTED_OF = {
    "model.base_model": "unsloth/Qwen3-VL-8B-Instruct-bnb-4bit",
    "model.lora_rank": 64,
    "training.batch_size": 2,
}
TRAIN_SHARE = 0.5  # in nvidia/PhysicalAI-Autonomous-Vehicles: 153,625 of 306,152 clips
# AMD's data sheet of the MI300X: bytes of memory, dense bfloat16 operations per second.
CARD, CARD_BYTES, CARD_FLOPS = "MI300X", 192e9, 1307e12
# Share of the peak, and its range: measured on an H200, 8,700 to 9,644 tokens per second
# (docs/measured.md), divided by 1.32 to 1.40, by which an H200 is faster than an MI300X at training
# 8B in bf16 according to a public comparison. It has not been run on an MI300X.
UTILISATION, UTILISATION_RANGE = 0.27, (0.25, 0.28)


def frames_per_clip(p: Params, seconds: float) -> int:
    """Number of sampled frames of a clip, from its start and before its end."""
    return math.ceil(seconds * p.processing.sample_hz - 1e-9)


def optimizer_steps(p: Params, num_windows: int) -> int:
    """Optimizer steps of a training on `num_windows`: all epochs, or `training.max_steps`."""
    steps = math.ceil(p.training.num_epochs * num_windows / windows_per_step(p))
    return min(steps, p.training.max_steps or steps)


def few_steps_warning(p: Params, steps: int) -> list[str]:
    """A warning if there are too few steps to learn much; else empty."""
    if steps >= FEW_STEPS:
        return []
    return [
        f"{steps} optimizer steps are few (below {FEW_STEPS}): raise training.num_epochs or "
        "download.target_chunks, or lower training.gradient_accumulation_steps or processing.stride"
    ]


def num_train_clips(p: Params, num_clips: int) -> int:
    """Number of training clips among `num_clips`, estimated without the hub."""
    if p.rendered:
        return world_splits(p.rendered)[:num_clips].count("train")
    return round(num_clips * (EPISODES_TRAIN_SHARE if p.lerobot_profile else TRAIN_SHARE))


def plan_run(p: Params) -> Plan:
    """The plan of a whole run, before anything is downloaded.

    Raises:
        AvomniError: the grid does not divide into the backbone's patches, or the source's clips are
            shorter than a window.
    """
    raw, seconds = forecast(p), clip_seconds(p)
    tokens, (height, width) = tokens_per_sample(p), grid_size(p)
    frames, num_train = frames_per_clip(p, seconds), num_train_clips(p, raw.num_clips)
    storage = p.processing.storage
    cache = {name: raw.num_clips * clip_bytes(p, seconds, name) for name in STORAGES}
    processing = p.processing
    per_clip = num_windows(frames, processing.sequence_length, processing.stride, processing.reach)
    train_windows = num_train * per_clip
    steps = optimizer_steps(p, train_windows)
    length, hz = p.processing.sequence_length, p.processing.sample_hz
    limit = p.model.max_seq_length
    batch = f"{p.training.batch_size} × {p.training.gradient_accumulation_steps}"

    warnings = [*few_steps_warning(p, steps), *episode_warnings(p)]
    if module := hardware.missing_module(p.training.optimizer):
        warnings.append(
            f"training.optimizer {p.training.optimizer} needs {module}, which is not installed "
            f"here; installed are {', '.join(hardware.installed_optimizers())}"
        )
    if raw.num_chunks == 0:
        warnings.append("not one chunk fits below download.target_size_gb: raise it")
    if per_clip == 0:
        short = none_fits(frames, processing, f"clips of {seconds:g} s")
        if p.is_fetched:
            raise short
        # The length of a folder's clips is unknown here.
        warnings.append(f"{short.what}; {short.fix}")
    if tokens.total > limit:
        warnings.append(
            f"a sample is about {tokens.total:,} tokens, model.max_seq_length is {limit:,}: "
            "05_train will refuse it; lower the tile size or processing.sequence_length"
        )
    rows = [
        *p.code_rows(),
        ("to fetch", gigabytes(raw.num_bytes), f"chunks: {raw.num_chunks}; {raw.note}"),
        ("clips", f"{raw.num_clips:,}", f"{seconds:g} s each"),
        *episode_rows(p, raw.num_clips),
        (
            "grid",
            f"{width}×{height} px",
            f"{cameras.grid(p.vision.cameras)}, {frames} frames a clip",
        ),
        ("cache", gigabytes(cache[storage]), _cache_note(cache, storage)),
        ("windows", f"{raw.num_clips * per_clip:,}", f"{length} frames, {(length - 1) / hz:g} s"),
        *past_rows(p),
        (
            "to train on",
            f"{train_windows:,}",
            f"of {num_train:,} clips of the split train",
        ),
        (
            "tokens a sample",
            f"{tokens.total:,} of {limit:,}",
            f"{tokens.vision:,} vision tokens; {tokens.text:,} of text, estimated",
        ),
        (
            "optimizer steps",
            f"{steps:,}",
            f"{p.training.num_epochs:g} epochs, {batch} windows a step",
        ),
    ]
    figures = {
        "num_chunks": raw.num_chunks,
        "fetch_gb": round(raw.num_bytes / 1e9, 3),
        "num_clips": raw.num_clips,
        "frames_per_clip": frames,
        "cache_gb": round(cache[storage] / 1e9, 3),
        "cache_gb_by_storage": {name: round(size / 1e9, 3) for name, size in cache.items()},
        "num_windows": raw.num_clips * per_clip,
        "frames_per_window": len(samples.past_of(p)) + length,
        "num_train_windows": train_windows,
        "vision_tokens": tokens.vision,
        "tokens_per_sample": tokens.total,
        "max_seq_length": limit,
        "optimizer_steps": steps,
    }
    by_protocol = protocol.rows(p)
    rows, figures = rows + by_protocol[0], figures | by_protocol[1]
    if p.download.evict_raw:
        chunks = disk_budget.verdict(p, disk_budget.expected(p))
        rows[4:4], warnings, figures = chunks[0], warnings + chunks[1], figures | chunks[2]
    # Only the tiny base is trained on a CPU.
    training = training_rows(
        p, steps, tokens, device="cpu" if p.model.base_model == TINY else "cuda"
    )
    rows, warnings, figures = rows + training[0], warnings + training[1], figures | training[2]
    return Plan(f"what run {p.run.name} takes", rows, warnings, figures)


def past_rows(p: Params) -> list[tuple[str, str, str]]:
    """The row of a plan about older frames of windows; empty without any."""
    older = samples.past_of(p)
    if not older:
        return []
    past = p.processing.past
    small = "" if past.scale == 1 else f", at {past.scale:g} of their size"
    note = f"over {p.processing.own_from_s:g} s before, {past.hz:g} Hz{small}"
    return [("older frames", f"{len(older)} a window", note)]


def training_rows(
    p: Params,
    steps: int,
    tokens: Tokens,
    *,
    device: str,
    probe: Probe | None = None,
    capacity: float | None = None,
) -> Verdict:
    """(rows, warnings, figures) of a plan about memory, hours and cost of the training.

    Args:
        steps: Optimizer steps.
        tokens: Tokens of the longest sample.
        device: "cpu", or the accelerator by torch's name.
        probe: Measurement of a few steps on this machine. Without it, hours are estimated for an
            MI300X, and not at all for a CPU.
        capacity: Bytes of the device's memory; None is an MI300X's, or unlimited on a CPU.

    Figures are `memory_gb` (of tensors), `memory_by_part_gb`, `train_hours` and `train_cost`; with
    a probe also `predicted`, for `compared`, and `probed`, the measurement.
    """
    size, device = size_of(p), device.partition(":")[0]
    rows: list[tuple[str, str, str]] = []
    warnings: list[str] = []
    figures: dict[str, Any] = {}
    if size is None:
        unknown = f"{p.model.base_model} is not on this disk, and of no size that is known here"
        rows.append(("memory", "not known", unknown))
    else:
        rows, warnings, figures = _memory(p, size, tokens, device, probe, capacity)
    step_s, known = None, ""
    if probe is not None:
        step_s, known = probe.seconds_per_step, "as timed on this machine"
    elif size is not None and device != "cpu":
        step_s = expected_seconds(p, size, tokens)
        num = p.training.num_processes
        card = f"{num} × {CARD}" if num > 1 else f"an {CARD}"
        low, high = (100 * share for share in UTILISATION_RANGE)
        known = (
            f"at {100 * UTILISATION:.0f} % of the peak of {card}, or {low:.0f} to "
            f"{high:.0f} %: estimated, not measured"
        )
    if step_s is not None:
        hours, price = steps * step_s / 3600, p.run.price_per_hour
        spent = {"train_hours": round(hours, 3)}
        spent |= {} if price is None else {"train_cost": round(price * hours, 2)}
        if probe is not None:
            # On a CPU the whole process is compared, and not only tensors; in CPU seconds, as cores
            # may be shared with others.
            timed = probe.cpu_seconds_per_step if device == "cpu" else step_s
            probed = {"memory_gb": round(probe.peak_bytes / 1e9, 3)}
            probed["seconds"] = round(steps * timed, 1)
            predicted = probed if device == "cpu" else {"seconds": probed["seconds"]}
            if device != "cpu" and size is not None:
                predicted["memory_gb"] = figures["memory_gb"]
            figures |= {"probed": probed | spent, "predicted": predicted}
        figures |= spent
        note = f"{steps:,} steps of {step_s:.3g} s, {known}"
        rows.append(("time to train", minutes(steps * step_s), note))
        if (blind := p.blinded()) is not None:
            num = min(steps, blind.training.max_steps)
            note = (
                f"{num:,} steps on black frames, for the ladder; training.blind_steps: 0 spares it"
            )
            rows.append(("and blind", minutes(num * step_s), note))
        if price is not None:
            note = f"of the training, at run.price_per_hour: {price:g}"
            rows.append(("cost to train", f"{spent['train_cost']:,.2f}", note))
    return rows, warnings, figures


@dataclass(frozen=True)
class Operations:
    """Numbers of operations of one window, forward."""

    linears: float
    attention: float
    lora: float
    logits: float
    vision: float

    def step(self, recomputed: bool) -> float:
        """Operations of one window in a training step.

        Args:
            recomputed: Whether gradient checkpointing runs the layers once more.
        """
        layers = self.linears + self.attention + self.lora
        once = 2 * self.linears + 3 * (self.attention + self.lora) + 2 * self.logits + self.vision
        return once + (layers if recomputed else 0)


@dataclass(frozen=True)
class Probe:
    """Measurement of a few steps of this training on this machine.

    Attributes:
        seconds_per_step: Wall-clock time of an optimizer step.
        cpu_seconds_per_step: CPU time of the process.
        peak_bytes: Peak memory, of the device if there is one.
    """

    seconds_per_step: float
    cpu_seconds_per_step: float
    peak_bytes: int


def operations(size: ModelSize, tokens: Tokens, rank: int, targets: Sequence[str]) -> Operations:
    """Operations of one window, forward.

    Args:
        rank, targets: Rank and target modules of LoRA.
    """
    language, tower, length = size.language, size.vision, tokens.total
    embedding = tower.values_per_patch * tower.hidden
    block = 4 * tower.hidden**2 + 2 * tower.hidden * tower.intermediate
    vision = 2 * (tower.depth * block + embedding) * tokens.work.patches
    vision += 4 * tower.depth * tower.hidden * tokens.work.pairs
    blocks = language.blocks
    active = sum(block.count * (block.num_linears + block.active_others) for block in blocks)
    attention = sum(block.count * block.query for block in blocks if block.attends)
    return Operations(
        linears=2 * active * length,
        attention=2 * attention * length**2,
        lora=2 * size.num_adapter(rank, targets) * length,
        logits=2 * language.num_embeddings * tokens.answer,
        vision=vision + 2 * tower.num_mergers * tokens.vision,
    )


def windows_per_step(p: Params) -> int:
    """Windows of an optimizer step, over all processes."""
    return p.training.batch_size * p.training.gradient_accumulation_steps


def expected_seconds(p: Params, size: ModelSize, tokens: Tokens) -> float:
    """Seconds of an optimizer step on `training.num_processes` cards, estimated by arithmetic."""
    per_window = operations(size, tokens, p.model.lora_rank, lora_targets(p))
    work = windows_per_step(p) * per_window.step(p.training.gradient_checkpointing)
    return work / (CARD_FLOPS * UTILISATION * p.training.num_processes)


def probe_of(timed: Sequence[Sequence[float]], memory_gb: float) -> dict[str, Any]:
    """Values of a `Probe` from the times of a few steps, of which the first is a warm-up.

    Args:
        timed: Per step, seconds and CPU seconds as the first two values.
        memory_gb: Peak memory.
    """
    seconds, cpu_seconds, *_ = np.mean(timed[1:] or timed, axis=0).tolist()
    return {
        "seconds_per_step": seconds,
        "cpu_seconds_per_step": cpu_seconds,
        "peak_bytes": round(1e9 * memory_gb),
    }


def compared(
    predicted: Mapping[str, float], measured: Mapping[str, float], device: str = "cuda"
) -> list[tuple[str, str, str]]:
    """Rows that compare predicted with measured memory and time, as far as both are known.

    The error is (predicted - measured) / measured.
    """
    time_label = "CPU time of training" if device == "cpu" else "time to train"
    shown = {
        "memory_gb": ("peak memory", lambda value: gigabytes(1e9 * value)),
        "seconds": (time_label, lambda value: f"{value:,.0f} s"),
    }
    rows = []
    for name, (label, in_words) in shown.items():
        if name in predicted and measured.get(name):
            share = predicted[name] / measured[name] - 1
            both = f"{in_words(predicted[name])} predicted, {in_words(measured[name])} measured"
            rows.append((label, f"{100 * share:+.0f} %", both))
    return rows


def _memory(
    p: Params,
    size: ModelSize,
    tokens: Tokens,
    device: str,
    probe: Probe | None,
    capacity: float | None,
) -> Verdict:
    on_cpu = device == "cpu"
    options = {"device": device, "dtype_bytes": 4 if on_cpu else 2}
    needed = memory(p, size, tokens, **options)
    training = p.training.model_copy(update={"gradient_checkpointing": False})
    without = memory(p.model_copy(update={"training": training}), size, tokens, **options)
    beside = f"the first steps took {gigabytes(probe.peak_bytes)}" if probe else ""
    rows, warnings = needed.rows(beside), []
    if p.values(*EXPECTED_OF) == EXPECTED_OF and in_4bit(p).value == "nf4":
        note = (
            "for these settings; without training.gradient_checkpointing they take "
            f"{gigabytes(without.peak_bytes)}"
        )
        rows.insert(1, ("what was expected", EXPECTED, note))
    chosen = in_4bit(p)
    if not on_cpu and p.model.load_in_4bit is None and chosen.value == "none":
        rows.append(("in 16 bit", "not in 4", f"{chosen.reason}; model.load_in_4bit overrules it"))
    capacity = capacity or (None if on_cpu else CARD_BYTES)
    if capacity is not None and needed.peak_bytes > capacity:
        warnings.append(
            f"training needs about {gigabytes(needed.peak_bytes)} of {gigabytes(capacity)}: lower "
            "training.batch_size (and raise gradient_accumulation_steps), set "
            "training.gradient_checkpointing: true, or lower the tile size"
        )
    figures = {
        "memory_gb": round(needed.peak_bytes / 1e9, 3),
        "memory_gb_without_checkpointing": round(without.peak_bytes / 1e9, 3),
        "memory_by_part_gb": {name: round(size / 1e9, 4) for name, size in needed.parts().items()},
    }
    return rows, warnings, figures


def _cache_note(cache: Mapping[str, int], storage: str) -> str:
    others = [f"{name} {gigabytes(size)}" for name, size in cache.items() if name != storage]
    return f"{storage}, each frame once, all splits; as {', '.join(others)}"
