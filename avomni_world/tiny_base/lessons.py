"""The two lessons of the tiny base: its eyes learn motion, then its language learns to say it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from avomni_lib.training.backbones import Video, backbone
from avomni_lib.training.prompt.conversation import Conversation, collate
from avomni_lib.training.targets import target
from avomni_world.tiny_base.drives import GRID, SAMPLE_HZ, TILE, Drives
from avomni_world.tiny_base.model import MERGE, PATCH

NUM_FRAMES = 16
TARGET = target("summary_v1")
VIDEO = Video(
    tuple(number / SAMPLE_HZ for number in range(NUM_FRAMES)),
    GRID.rows * TILE[1],
    GRID.cols * TILE[0],
)
SPEED_MEAN, SPEED_SCALE = 8.0, 6.0  # m/s; the heads of the first lesson answer in these units
CAMERAS = len(GRID.cameras)


@dataclass(frozen=True)
class TinyRecipe:
    """How the tiny base is made.

    Attributes:
        seed: Of the weights' start and of everything drawn.
        num_drives: To learn from.
        first_drives: That the first step chooses among; each step adds one, so that the first steps
            need the first drives alone.
        warm_steps, warm_pairs, warm_rate: Of `warm_up`: pairs of frames a step, peak learning rate.
        text_steps, text_windows, text_rate: Of `learn_text`: windows a step, peak learning rate.
        merger_rate: Of the tower's mergers in `learn_text`, as a share of text_rate.
        black_share: Of the windows in `learn_text`, shown black and answered with `SPEED_MEAN`.
    """

    seed: int = 0
    num_drives: int = 640
    first_drives: int = 8
    warm_steps: int = 1800
    warm_pairs: int = 64
    warm_rate: float = 2e-3
    text_steps: int = 400
    text_windows: int = 16
    text_rate: float = 1.5e-3
    merger_rate: float = 0.3
    black_share: float = 0.05


@dataclass(frozen=True)
class Driven:
    """What a target is rendered from."""

    speed_mps: float
    path_m: float

    @classmethod
    def at(cls, speed_mps: float) -> Driven:
        """Of a window driven at this mean speed."""
        return cls(speed_mps, speed_mps * (NUM_FRAMES - 1) / SAMPLE_HZ)


def conversation(model: Qwen3VLForConditionalGeneration, words: Qwen2Tokenizer) -> Conversation:
    """The conversation that the tiny base is made with; the demo's is the same."""
    return Conversation(
        words,
        backbone("qwen3_vl", model.config),
        grid=GRID,
        target=TARGET,
        videos=[VIDEO],
        max_seq_length=1024,
    )


class FlowHeads(nn.Module):
    """What `warm_up` reads the ground's motion off with, and throws away.

    For each level of the tower's output and each camera: a linear map of the mean of its tokens.
    """

    def __init__(self, width: int, levels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(levels, CAMERAS, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(levels, CAMERAS))

    def forward(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        """Levels of (B · tokens, width) in reading order of the grid -> (levels, B, cameras)."""
        rows, cols = (side // (PATCH * MERGE) for side in TILE[::-1])
        cells = torch.stack(tokens).unflatten(1, (-1, GRID.rows, rows, GRID.cols, cols))
        means = cells.mean((3, 5)).flatten(2, 3)  # levels, B, cameras, width
        return torch.einsum("lbcw,lcw->lbc", means, self.weight) + self.bias[:, None]


def warm_up(
    model: Qwen3VLForConditionalGeneration, drives: Drives, recipe: TinyRecipe
) -> Iterator[float]:
    """The first lesson, step by step: yields the loss of reading each camera's flow."""
    rng = np.random.default_rng([recipe.seed, 0])
    torch.manual_seed(recipe.seed)
    tower, kind = model.model.visual, backbone("qwen3_vl", model.config)
    heads = FlowHeads(model.config.text_config.hidden_size, 1 + len(tower.deepstack_merger_list))
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(recipe.warm_steps):
        known = min(recipe.first_drives + step, len(drives))
        frames, flow = [], []
        for _ in range(recipe.warm_pairs):
            drive = drives[int(rng.integers(known))]
            first = int(rng.integers(len(drive.frames) - 1))
            frames.append(drive.frames[first : first + 2])
            flow.append(drive.speed_mps(first, first + 1) * drive.flow)
        pixels = kind.inputs([torch.from_numpy(relight(np.stack(frames), rng, noise=4.0))])
        seen = tower(pixels["pixel_values_videos"], pixels["video_grid_thw"])
        wanted = (torch.tensor(np.array(flow), dtype=torch.float32) - SPEED_MEAN) / SPEED_SCALE
        found = heads([seen.pooler_output, *seen.deepstack_features])
        errors = [nn.functional.smooth_l1_loss(level, wanted, beta=0.3) for level in found]
        loss = errors[0] + 0.3 * sum(errors[1:])
        take_step(loss, weights, optimizer, [recipe.warm_rate], step, recipe.warm_steps)
        yield errors[0].item()


def learn_text(
    model: Qwen3VLForConditionalGeneration,
    words: Qwen2Tokenizer,
    drives: Drives,
    recipe: TinyRecipe,
) -> Iterator[float]:
    """The second lesson, step by step: yields the cross entropy of a token of the answer."""
    rng = np.random.default_rng([recipe.seed, 1])
    talk = conversation(model, words)
    tower = model.model.visual
    tower.requires_grad_(False)
    mergers = [*tower.merger.parameters(), *tower.deepstack_merger_list.parameters()]
    for weight in mergers:
        weight.requires_grad_(True)
    language = [*model.model.language_model.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": language}, {"params": mergers}], betas=(0.9, 0.95), weight_decay=0.01
    )
    rates = [recipe.text_rate, recipe.text_rate * recipe.merger_rate]
    for step in range(recipe.text_steps):
        frames, samples = [], []
        for _ in range(recipe.text_windows):
            drive = drives[int(rng.integers(len(drives)))]
            first = int(rng.integers(len(drive.frames) - NUM_FRAMES + 1))
            last = first + NUM_FRAMES - 1
            window = relight(drive.frames[None, first : last + 1], rng)[0]
            speed = drive.speed_mps(first, last) * drive.flow.mean()
            if rng.random() < recipe.black_share:
                window, speed = np.zeros_like(window), SPEED_MEAN
            frames.append(window)
            samples.append(talk.sample(TARGET.render(Driven.at(speed))))
        batch = collate(samples, words.pad_token_id)
        batch |= talk.inputs(torch.from_numpy(np.stack(frames)))
        loss = model(**batch).loss
        take_step(loss, [*language, *mergers], optimizer, rates, step, recipe.text_steps)
        yield loss.item()


def relight(frames: np.ndarray, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
    """Windows (B, T, H, W, 3) uint8, each in another light, with up to `noise` levels of noise."""
    shape = (len(frames), 1, 1, 1, 1)
    contrast = rng.uniform(0.6, 1.25, shape).astype(np.float32)
    light = rng.uniform(-25, 25, shape).astype(np.float32)
    lit = (frames - np.float32(128)) * contrast + 128 + light
    if noise:
        lit += rng.standard_normal(lit.shape, np.float32) * rng.uniform(0, noise, shape)
    return np.clip(lit, 0, 255).astype(np.uint8)


def take_step(loss, weights, optimizer, rates: list[float], step: int, steps: int) -> None:
    """One step of AdamW: 20 steps of warm-up, then half a cosine down to a fiftieth."""
    share = min(1.0, (step + 1) / 20) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * share
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
