"""What a run takes, by arithmetic alone: no GPU, no network, no torch, nothing on the disk.

Exact: vision tokens and, for clips of full length, frames, bytes of the cache and batches. From
what is published of the data set: sizes, clips in a chunk, splits. Estimated: tokens of text,
memory and, as long as no step was timed, hours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avomni_lib import optimizers
from avomni_lib.dataset import cameras
from avomni_lib.dataset.select.forecast import forecast
from avomni_lib.etl.cache.shard import STORAGES
from avomni_lib.etl.cache.windows import num_windows
from avomni_lib.etl.run import chunk_sizes
from avomni_lib.etl.run.chunk_sizes import Verdict
from avomni_lib.etl.run.forecast import clip_bytes, clip_seconds
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes, minutes
from avomni_lib.training.forecast import step_time
from avomni_lib.training.forecast.memory import memory
from avomni_lib.training.forecast.model_size import Anatomy, anatomy_of
from avomni_lib.training.forecast.step_time import Probe
from avomni_lib.training.model.load import TINY
from avomni_lib.training.prompt.tokens import Tokens, grid_size, tokens_per_sample

FEW_STEPS = 200  # below it an adapter has hardly begun to learn
# What was said of a batch of two windows by this base, on an MI300X.
EXPECTED = "40–60 GB"
EXPECTED_OF = {
    "model.base_model": "unsloth/Qwen3-VL-8B-Instruct-bnb-4bit",
    "model.load_in_4bit": True,
    "model.lora_rank": 64,
    "training.batch_size": 2,
}
TRAIN_SHARE = 0.5  # of nvidia/PhysicalAI-Autonomous-Vehicles: 153,625 of 306,152 clips


@dataclass(frozen=True)
class Source:
    """What is fetched and the driving in it."""

    num_chunks: int
    num_clips: int
    num_train_clips: int
    seconds: float
    num_bytes: int
    note: str


def frames_per_clip(p: Params, seconds: float) -> int:
    """Sampled frames of a clip: its first and those before its end."""
    return math.ceil(seconds * p.processing.sample_hz - 1e-9)


def optimizer_steps(p: Params, num_windows: int) -> int:
    """Optimizer steps of a training over `num_windows`: all epochs, or `training.max_steps`."""
    steps = math.ceil(p.training.num_epochs * num_windows / step_time.windows_per_step(p))
    return min(steps, p.training.max_steps or steps)


def few_steps_warning(p: Params, steps: int) -> list[str]:
    """A sentence where so few steps are left that the adapter will hardly learn."""
    if steps >= FEW_STEPS:
        return []
    return [
        f"{steps} optimizer steps are few (below {FEW_STEPS}): raise training.num_epochs or "
        "download.target_chunks, or lower training.gradient_accumulation_steps or processing.stride"
    ]


def source(p: Params) -> Source:
    """What the run fetches, as far as it can be said without asking the hub."""
    told = forecast(p)
    train = round(told.num_clips * TRAIN_SHARE)
    if p.rendered:
        train = p.rendered.splits()[: told.num_clips].count("train")
    seconds = clip_seconds(p)
    return Source(told.num_chunks, told.num_clips, train, seconds, told.num_bytes, told.note)


def plan_run(p: Params) -> Plan:
    """What the whole run takes, before anything is fetched or made.

    Raises:
        AvomniError: the grid does not divide into the backbone's patches.
    """
    raw, tokens, (height, width) = source(p), tokens_per_sample(p), grid_size(p)
    frames = frames_per_clip(p, raw.seconds)
    storage = p.processing.storage
    cache = {name: raw.num_clips * clip_bytes(p, raw.seconds, name) for name in STORAGES}
    each = num_windows(frames, p.processing.sequence_length, p.processing.stride)
    train_windows = raw.num_train_clips * each
    steps = optimizer_steps(p, train_windows)
    length, hz = p.processing.sequence_length, p.processing.sample_hz
    limit = p.model.max_seq_length

    warnings = few_steps_warning(p, steps)
    if module := optimizers.missing(p.training.optimizer):
        warnings.append(
            f"training.optimizer {p.training.optimizer} needs {module}, which is not installed "
            f"here; installed are {', '.join(optimizers.installed())}"
        )
    if raw.num_chunks == 0:
        warnings.append("not one chunk fits below download.target_size_gb: raise it")
    if each == 0:
        warnings.append(
            f"a clip has {frames} frames at {hz:g} Hz, a window needs {length}: no window at all; "
            "raise processing.sample_hz or lower processing.sequence_length"
        )
    if tokens.total > limit:
        warnings.append(
            f"a sample is about {tokens.total:,} tokens, model.max_seq_length is {limit:,}: "
            "05_train will refuse it; lower the tile size or processing.sequence_length"
        )
    rows = [
        *p.code_rows(),
        ("to fetch", gigabytes(raw.num_bytes), f"chunks: {raw.num_chunks}; {raw.note}"),
        ("clips", f"{raw.num_clips:,}", f"{raw.seconds:g} s each"),
        (
            "grid",
            f"{width}×{height} px",
            f"{cameras.grid(p.vision.cameras)}, {frames} frames a clip",
        ),
        ("cache", gigabytes(cache[storage]), _cache_note(cache, storage)),
        ("windows", f"{raw.num_clips * each:,}", f"{length} frames, {(length - 1) / hz:g} s"),
        (
            "to train on",
            f"{train_windows:,}",
            f"of {raw.num_train_clips:,} clips of the split train",
        ),
        ("tokens a sample", f"{tokens.total:,} of {limit:,}", _token_note(tokens)),
        ("optimizer steps", f"{steps:,}", f"{p.training.num_epochs:g} epochs, {_batch(p)}"),
    ]
    figures = {
        "num_chunks": raw.num_chunks,
        "fetch_gb": round(raw.num_bytes / 1e9, 3),
        "num_clips": raw.num_clips,
        "frames_per_clip": frames,
        "cache_gb": round(cache[storage] / 1e9, 3),
        "cache_gb_by_storage": {name: round(size / 1e9, 3) for name, size in cache.items()},
        "num_windows": raw.num_clips * each,
        "num_train_windows": train_windows,
        "vision_tokens": tokens.vision,
        "tokens_per_sample": tokens.total,
        "max_seq_length": limit,
        "optimizer_steps": steps,
    }
    if p.download.evict_raw:
        told = chunk_sizes.verdict(p, chunk_sizes.expected(p))
        rows[4:4], warnings, figures = told[0], warnings + told[1], figures | told[2]
    # The tiny base is what trains where there is no GPU; nothing else does.
    told = training_rows(p, steps, tokens, device="cpu" if p.model.base_model == TINY else "cuda")
    rows, warnings, figures = rows + told[0], warnings + told[1], figures | told[2]
    return Plan(f"what run {p.run.name} takes", rows, warnings, figures)


def training_rows(
    p: Params,
    steps: int,
    tokens: Tokens,
    *,
    device: str,
    probe: Probe | None = None,
    capacity: float | None = None,
) -> Verdict:
    """(rows, warnings, figures) of a plan: memory, hours and cost of the training.

    Args:
        steps: Optimizer steps.
        tokens: Of the longest sample.
        device: "cpu", or the accelerator by torch's name.
        probe: What a few steps took on this machine. Without one, hours are arithmetic on an
            MI300X, and none are estimated for a CPU.
        capacity: Bytes of the device's memory; None is an MI300X's, and any on a CPU.

    Figures are `memory_gb` (of tensors), `memory_by_part_gb`, `train_hours` and `train_cost`; with
    a probe also `predicted`, which `step_time.compared` takes, and `probed`, what the probe saw.
    """
    anatomy, device = anatomy_of(p.model.base_model), device.partition(":")[0]
    rows: list[tuple[str, str, str]] = []
    warnings: list[str] = []
    figures: dict[str, Any] = {}
    if anatomy is None:
        unknown = f"{p.model.base_model} is not on this disk, and of no size that is known here"
        rows.append(("memory", "not known", unknown))
    else:
        rows, warnings, figures = _memory(p, anatomy, tokens, device, probe, capacity)
    each, known = None, ""
    if probe is not None:
        seen = step_time.after(p, probe, steps, device)
        predicted = {"seconds": seen["seconds"]}
        if device == "cpu":  # the process is measured there, and tensors are a part of it alone
            predicted["memory_gb"] = seen["memory_gb"]
        elif anatomy is not None:
            predicted["memory_gb"] = figures["memory_gb"]
        figures |= {"probed": seen, "predicted": predicted}
        each, known = probe.seconds_per_step, "as timed on this machine"
    elif anatomy is not None and device != "cpu":
        each = step_time.expected_seconds(p, anatomy, tokens)
        num = p.training.num_processes
        card = f"{num} × {step_time.CARD}" if num > 1 else f"an {step_time.CARD}"
        known = (
            f"at {100 * step_time.UTILISATION:.0f} % of the peak of {card}: estimated, not measured"
        )
    if each is not None:
        hours = steps * each / 3600
        paid = step_time.cost(p, hours)
        figures |= {"train_hours": round(hours, 3)} | paid
        note = f"{steps:,} steps of {each:.3g} s, {known}"
        rows.append(("time to train", minutes(steps * each), note))
        if (blind := p.blinded()) is not None:
            num = min(steps, blind.training.max_steps)
            note = (
                f"{num:,} steps on black frames, for the ladder; training.blind_steps: 0 spares it"
            )
            rows.append(("and blind", minutes(num * each), note))
        for sum_of_money in paid.values():
            note = f"of the training, at run.price_per_hour: {p.run.price_per_hour:g}"
            rows.append(("cost to train", f"{sum_of_money:,.2f}", note))
    return rows, warnings, figures


def _memory(
    p: Params,
    anatomy: Anatomy,
    tokens: Tokens,
    device: str,
    probe: Probe | None,
    capacity: float | None,
) -> Verdict:
    on_cpu = device == "cpu"
    of = {"device": device, "dtype_bytes": 4 if on_cpu else 2}
    needed = memory(p, anatomy, tokens, **of)
    training = p.training.model_copy(update={"gradient_checkpointing": False})
    without = memory(p.model_copy(update={"training": training}), anatomy, tokens, **of)
    beside = f"the first steps took {gigabytes(probe.peak_bytes)}" if probe else ""
    rows, warnings = needed.rows(beside), []
    if p.values(*EXPECTED_OF) == EXPECTED_OF:
        note = (
            "for these settings; without training.gradient_checkpointing they take "
            f"{gigabytes(without.peak_bytes)}"
        )
        rows.insert(1, ("what was expected", EXPECTED, note))
    capacity = capacity or (None if on_cpu else step_time.CARD_BYTES)
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


def _token_note(tokens: Tokens) -> str:
    return f"{tokens.vision:,} vision tokens; {tokens.text:,} of text, estimated"


def _cache_note(cache: Mapping[str, int], storage: str) -> str:
    others = [f"{name} {gigabytes(size)}" for name, size in cache.items() if name != storage]
    return f"{storage}, each frame once, all splits; as {', '.join(others)}"


def _batch(p: Params) -> str:
    accumulated = p.training.gradient_accumulation_steps
    return f"{p.training.batch_size} × {accumulated} windows a step"
