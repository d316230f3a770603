"""What a run takes, by arithmetic alone: no GPU, no network, no torch, nothing on the disk.

Exact: vision tokens and, for clips of full length, frames, bytes of the cache and batches. From
what is published of the data set: sizes, clips in a chunk, splits. Estimated: tokens of text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from avomni_lib import files
from avomni_lib.dataset import rig
from avomni_lib.dataset.forecast import forecast
from avomni_lib.etl import costs
from avomni_lib.etl.forecast import clip_bytes, clip_seconds
from avomni_lib.etl.shard import STORAGES
from avomni_lib.etl.windows import num_windows
from avomni_lib.params import Params
from avomni_lib.plan import Plan, gigabytes
from avomni_lib.training import model
from avomni_lib.training.backbones import Backbone, backbone
from avomni_lib.training.conversation import prompt_text
from avomni_lib.training.targets import target

FEW_STEPS = 200  # below it an adapter has hardly begun to learn

TRAIN_SHARE = 0.5  # of nvidia/PhysicalAI-Autonomous-Vehicles: 153,625 of 306,152 clips

# What Qwen's tokenizer makes one token of: a special token, a word with the space before it, a
# digit, a run of signs or of whitespace. Long or rare words fall into two.
_SPECIAL = re.compile(r"<\|\w+\|>")
_PIECE = re.compile(r" ?[A-Za-z]+|\d|[^\sA-Za-z\d]+|\s+")


@dataclass(frozen=True)
class Source:
    """What is fetched and the driving in it."""

    num_chunks: int
    num_clips: int
    num_train_clips: int
    seconds: float
    num_bytes: int
    note: str


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sample."""

    vision: int
    text: int

    @property
    def total(self) -> int:
        return self.vision + self.text


def grid_size(p: Params) -> tuple[int, int]:
    """(height, width) of the grid, px."""
    grid = rig.grid(p.vision.camera_setup)
    return grid.rows * p.processing.tile_height, grid.cols * p.processing.tile_width


def backbone_of(p: Params) -> Backbone:
    """The run's backbone, with the base model's own numbers where it lies on this disk.

    A base model on the hub is not asked: all released sizes of a family have the same numbers.
    """
    config = Path(model.base_location(p.model.base_model)) / "config.json"
    if not config.is_file():
        return backbone(p.model.backbone)
    plain = files.read_json(config)
    vision = SimpleNamespace(**plain.get("vision_config", {}))
    kind = SimpleNamespace(model_type=plain.get("model_type"), vision_config=vision)
    return backbone(p.model.backbone, kind)


def tokens_per_sample(p: Params) -> Tokens:
    """Vision tokens (exact) and text tokens (estimated) of a window with its answer.

    Raises:
        AvomniError: the grid does not divide into the backbone's patches.
    """
    height, width = grid_size(p)
    kind, asked = backbone_of(p), target(p.training.target)
    length = p.processing.sequence_length
    vision = kind.num_vision_tokens(length, height, width)
    chat = kind.chat(
        prompt_text(rig.grid(p.vision.camera_setup), asked),
        num_frames=length,
        height=height,
        width=width,
        sample_hz=p.processing.sample_hz,
    )
    answer = asked.render(SimpleNamespace(speed_mps=28.13, path_m=211.04))
    special = len(_SPECIAL.findall(chat)) + 1  # and the end of the turn
    plain = sum(len(_PIECE.findall(words)) for words in _SPECIAL.split(chat + answer))
    return Tokens(vision, special + plain - vision)


def frames_per_clip(p: Params, seconds: float) -> int:
    """Sampled frames of a clip: its first and those before its end."""
    return math.ceil(seconds * p.processing.sample_hz - 1e-9)


def optimizer_steps(p: Params, num_windows: int, num_ranks: int = 1) -> int:
    """Optimizer steps of a training over `num_windows`: all epochs, or `training.max_steps`."""
    per_step = p.training.batch_size * p.training.gradient_accumulation_steps * num_ranks
    steps = math.ceil(p.training.num_epochs * num_windows / per_step)
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
    if p.dataset.source == "world":
        from avomni_lib.world.publish import world_clips  # loads the renderer

        clips = world_clips(p.dataset.world)[: told.num_clips]
        train = sum(clip.split == "train" for clip in clips)
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
        ("to fetch", gigabytes(raw.num_bytes), f"chunks: {raw.num_chunks}; {raw.note}"),
        ("clips", f"{raw.num_clips:,}", f"{raw.seconds:g} s each"),
        ("grid", f"{width}×{height} px", f"{p.vision.camera_setup}, {frames} frames a clip"),
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
        told = costs.verdict(p, costs.expected(p))
        rows[4:4], warnings, figures = told[0], warnings + told[1], figures | told[2]
    return Plan(f"what run {p.run.name} takes", rows, warnings, figures)


def _token_note(tokens: Tokens) -> str:
    return f"{tokens.vision:,} vision tokens; {tokens.text:,} of text, estimated"


def _cache_note(cache: Mapping[str, int], storage: str) -> str:
    others = [f"{name} {gigabytes(size)}" for name, size in cache.items() if name != storage]
    return f"{storage}, each frame once, all splits; as {', '.join(others)}"


def _batch(p: Params) -> str:
    accumulated = p.training.gradient_accumulation_steps
    return f"{p.training.batch_size} × {accumulated} windows a step"
