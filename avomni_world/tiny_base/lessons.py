"""The three lessons of the tiny base: reading motion, writing answers, and the form of answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from avomni_lib.etl.clip.trajectory import FUTURE_STEPS, HISTORY_STEPS, STEP_S, Trajectory
from avomni_lib.training.backbones import Video, backbone
from avomni_lib.training.prompt.conversation import IGNORED, Conversation, padded
from avomni_lib.training.prompt.history import text_of
from avomni_lib.training.targets import Target, target
from avomni_lib.training.targets.future import NUM_WAYPOINTS, STEPS_APART
from avomni_world.tiny_base.drives import (
    GRID,
    LANE_AT_M,
    SAMPLE_HZ,
    TILE,
    RecordedDrive,
    RecordedDrives,
)
from avomni_world.tiny_base.model import MERGE, PATCH
from avomni_world.tiny_base.tokenizer import FARTHEST_M, waypoint_tokens

NUM_FRAMES = 16
TARGET = target("summary_v1")
TARGETS = tuple(map(target, ("summary_v1", "future_v1", "meta_v1")))
FUTURE = TARGETS[1]
NUM_PATH = 1 + 2 * NUM_WAYPOINTS
SHARES = (0.25, 0.65, 0.1)  # of the windows in `learn_text` that are asked for each
VIDEO = Video(
    tuple(number / SAMPLE_HZ for number in range(NUM_FRAMES)),
    GRID.rows * TILE[1],
    GRID.cols * TILE[0],
)
SPEED_MEAN, SPEED_SCALE = 8.0, 6.0  # m/s; the heads of the first lesson answer in these units
TURN_SCALE = 0.08  # rad/s
LANE_SCALE = np.array([0.05, 0.07, 0.13, 0.22])  # metres to the left a metre ahead, nearest first
NUM_ROAD = 1 + len(LANE_AT_M)
CAMERAS = len(GRID.cameras)
# Standard deviation of the Gaussian label of a number: steps, and a share of the number.
SPREAD_STEPS, SPREAD_SHARE = 1.0, 0.03


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
        black_share: Of the windows in `learn_text`, shown black and answered with a straight path
            at `SPEED_MEAN`.
        text_path_share: In the loss of `learn_text`, of the error of the path that a linear head
            reads off the hidden states where the answer begins.
        text_fast_share: Of the windows in `learn_text`, shown at twice the speed, because few
            drives are fast enough for large distances.
        form_steps, form_rate: Of `keep_form`: steps of as many windows, peak learning rate.
        form_share: In the loss of `keep_form`, of the cross entropy of the kind of each token.
        told_share: Of the windows in both whose answer is not about their own frames, with the
            car's past motion in the prompt.
    """

    seed: int = 0
    num_drives: int = 800
    first_drives: int = 8
    warm_steps: int = 3500
    warm_pairs: int = 64
    warm_rate: float = 2e-3
    text_steps: int = 2000
    text_windows: int = 16
    text_rate: float = 1.5e-3
    merger_rate: float = 0.3
    black_share: float = 0.05
    told_share: float = 0.45
    text_path_share: float = 3.0
    text_fast_share: float = 0.35
    form_steps: int = 450
    form_rate: float = 6e-4
    form_share: float = 4.0


@dataclass(frozen=True)
class Driven:
    """What a target is rendered from, as a drive before the cameras of `HOME` would look the same.

    Attributes:
        speed_mps, path_m: Of the window.
        future: Of its last frame; None where no target asks for it.
        past: The motion up to its last frame.
    """

    speed_mps: float
    path_m: float
    future: Trajectory | None = None
    past: Trajectory | None = None

    @classmethod
    def at(cls, speed_mps: float) -> Driven:
        """Of a window driven straight at this speed."""
        ways = []
        for first, last in ((1, FUTURE_STEPS), (-HISTORY_STEPS, -1)):
            t_s = np.arange(first, last + 1) * STEP_S
            xy = np.stack([t_s * speed_mps, 0 * t_s], axis=1)
            ways.append(Trajectory(t_s, xy, 0 * t_s, speed_mps))
        return cls(speed_mps, speed_mps * (NUM_FRAMES - 1) / SAMPLE_HZ, *ways)

    @classmethod
    def of(cls, drive: RecordedDrive, first: int, every: int = 1) -> Driven:
        """Of the window that begins with this frame and has every `every`-th frame.

        Before cameras twice as high the ground moves half as fast: everything looks half as far. A
        longer lens shows what lies to the side further out. With every second frame the drive ends
        before 6.4 s are over, and its last speed and turn rate continue.
        """
        last = first + (NUM_FRAMES - 1) * every
        flow, zoom = float(drive.flow.mean()), float(drive.zoom)
        speed = drive.speed_mps(first, last) * every * flow
        x, y, yaw = drive.poses[last]
        turn = np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
        driven = _prolonged(drive.poses, last + FUTURE_STEPS * every + 1)

        def seen(steps: np.ndarray) -> Trajectory:
            poses = driven[last + steps * every]
            places = (poses[:, :2] - (x, y)) @ turn * (flow, flow * zoom)
            now = float(drive.speeds[last]) * every * flow
            return Trajectory(steps * STEP_S, places, (poses[:, 2] - yaw) * zoom, now)

        return cls(
            speed,
            speed * (NUM_FRAMES - 1) / SAMPLE_HZ,
            seen(np.arange(1, FUTURE_STEPS + 1)),
            seen(np.arange(-min(HISTORY_STEPS, last // every), 0)),
        )


def _prolonged(poses: np.ndarray, count: int) -> np.ndarray:
    """The first `count` poses; beyond the last one, its speed and turn rate stay the same."""
    (x, y, yaw), before = poses[-1], poses[-2]
    turned = yaw - before[2]
    moved = complex(x - before[0], y - before[1])
    steps = np.arange(1, max(0, count - len(poses)) + 1)
    places = complex(x, y) + np.cumsum(moved * np.exp(1j * turned * steps))
    more = np.stack([places.real, places.imag, yaw + turned * steps], axis=1)
    return np.concatenate([poses, more])[:count]


def conversation(
    model: Qwen3VLForConditionalGeneration, words: Qwen2Tokenizer, asked: Target = TARGET
) -> Conversation:
    """The conversation that the tiny base is made with; the demo's is the same."""
    return Conversation(
        words,
        backbone("qwen3_vl", model.config),
        grid=GRID,
        target=asked,
        videos=[VIDEO],
        max_seq_length=1024,
    )


class Heads(nn.Module):
    """What `warm_up` reads motion and road off with, and throws away.

    For each level of the tower's output: the ground's motion in each camera, a linear map of the
    mean of its tokens; how fast the car turns and where its lane lies, one of all tokens.
    """

    def __init__(self, width: int, levels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(levels, CAMERAS, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(levels, CAMERAS))
        tokens = CAMERAS * math.prod(side // (PATCH * MERGE) for side in TILE)
        inputs = tokens * width
        self.road = nn.Parameter(torch.randn(levels, inputs, NUM_ROAD) * 0.3 * inputs**-0.5)

    def forward(self, tokens: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels of (B · tokens, width) in reading order of the grid.

        Returns:
            (levels, B, cameras) and (levels, B, `NUM_ROAD`).
        """
        rows, cols = (side // (PATCH * MERGE) for side in TILE[::-1])
        cells = torch.stack(tokens).unflatten(1, (-1, GRID.rows, rows, GRID.cols, cols))
        means = cells.mean((3, 5)).flatten(2, 3)  # levels, B, cameras, width
        flow = torch.einsum("lbcw,lcw->lbc", means, self.weight) + self.bias[:, None]
        return flow, cells.flatten(2) @ self.road


def warm_up(
    model: Qwen3VLForConditionalGeneration, drives: RecordedDrives, recipe: TinyRecipe
) -> Iterator[float]:
    """The first lesson, step by step: yields the loss of reading each camera's flow."""
    rng = np.random.default_rng([recipe.seed, 0])
    torch.manual_seed(recipe.seed)
    tower, kind = model.model.visual, backbone("qwen3_vl", model.config)
    heads = Heads(model.config.text_config.hidden_size, 1 + len(tower.deepstack_merger_list))
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(recipe.warm_steps):
        known = min(recipe.first_drives + step, len(drives))
        frames, flow, road = [], [], []
        for _ in range(recipe.warm_pairs):
            drive = drives[int(rng.integers(known))]
            first = int(rng.integers(len(drive.frames) - 1))
            frames.append(drive.frames[first : first + 2])
            flow.append(drive.speed_mps(first, first + 1) * drive.flow)
            road.append(road_of(drive, first + 1))
        pixels = kind.inputs([torch.from_numpy(relight(np.stack(frames), rng, noise=4.0))])
        seen = tower(pixels["pixel_values_videos"], pixels["video_grid_thw"])
        wanted = (torch.tensor(np.array(flow), dtype=torch.float32) - SPEED_MEAN) / SPEED_SCALE
        shape = torch.tensor(np.array(road), dtype=torch.float32)
        found, found_road = heads([seen.pooler_output, *seen.deepstack_features])
        errors = [nn.functional.smooth_l1_loss(level, wanted, beta=0.3) for level in found]
        errors_road = [nn.functional.smooth_l1_loss(each, shape, beta=0.3) for each in found_road]
        loss = errors[0] + 0.3 * sum(errors[1:]) + errors_road[0] + 0.3 * sum(errors_road[1:])
        take_step(loss, weights, optimizer, [recipe.warm_rate], step, recipe.warm_steps)
        yield errors[0].item() + errors_road[0].item()


def road_of(drive: RecordedDrive, frame: int) -> np.ndarray:
    """(`NUM_ROAD`,) how fast the picture turns, and where the lane lies in it, about 1 in size."""
    turned = drive.poses[frame, 2] - drive.poses[frame - 1, 2]
    turn = turned * SAMPLE_HZ * drive.zoom / TURN_SCALE
    return np.array([turn, *np.clip(drive.lane[frame] / LANE_SCALE, -4, 4)])


def learn_text(
    model: Qwen3VLForConditionalGeneration,
    words: Qwen2Tokenizer,
    drives: RecordedDrives,
    recipe: TinyRecipe,
) -> Iterator[float]:
    """The second lesson, step by step: yields the cross entropy of a token of the answer.

    A head that is thrown away reads the path where the answer begins. Without it the language is
    taught by digits alone, of which many are right, and has read half as much of the path in the
    same time.
    """
    rng = np.random.default_rng([recipe.seed, 1])
    language, mergers = _trainable(model)
    torch.manual_seed(recipe.seed)
    head = nn.Linear(model.config.text_config.hidden_size, NUM_PATH)
    groups = [language, mergers, [*head.parameters()]]
    optimizer = _optimizer(groups)
    rates = [recipe.text_rate, recipe.text_rate * recipe.merger_rate, recipe.text_rate]
    talks = [conversation(model, words, asked) for asked in TARGETS]
    kinds, values = kinds_of_tokens(words, model.config.text_config.vocab_size)
    for step in range(recipe.text_steps):
        batch, paths = _windows(talks, drives, recipe, recipe.text_fast_share, rng)
        before, logits, labels = answer_logits(model, batch)
        loss = nn.functional.cross_entropy(logits, soft_labels(kinds, values, labels))
        error = nn.functional.smooth_l1_loss(head(before), paths, beta=0.1)
        whole = loss + recipe.text_path_share * error
        take_step(whole, sum(groups, []), optimizer, rates, step, recipe.text_steps)
        yield loss.item()


def keep_form(
    model: Qwen3VLForConditionalGeneration,
    words: Qwen2Tokenizer,
    drives: RecordedDrives,
    recipe: TinyRecipe,
) -> Iterator[float]:
    """The third lesson, step by step: yields the cross entropy of the kind of a token.

    Kinds are the pieces of a waypoint, the end of the answer, and all other words. Their cross
    entropy does not depend on how uncertain a number is, and teaches that an answer ends after 16
    waypoints. All windows are shown at their own speed.
    """
    rng = np.random.default_rng([recipe.seed, 2])
    groups = [*_trainable(model)]
    optimizer = _optimizer(groups)
    rates = [recipe.form_rate, recipe.form_rate * recipe.merger_rate]
    talks = [conversation(model, words, asked) for asked in TARGETS]
    kinds, values = kinds_of_tokens(words, model.config.text_config.vocab_size)
    for step in range(recipe.form_steps):
        batch, _ = _windows(talks, drives, recipe, 0.0, rng)
        _, logits, labels = answer_logits(model, batch)
        loss = nn.functional.cross_entropy(logits, soft_labels(kinds, values, labels))
        of_kind = logits.softmax(-1) @ nn.functional.one_hot(kinds).float()
        form = nn.functional.nll_loss(of_kind.clamp_min(1e-9).log(), kinds[labels])
        whole = loss + recipe.form_share * form
        take_step(whole, sum(groups, []), optimizer, rates, step, recipe.form_steps)
        yield form.item()


def kinds_of_tokens(words: Qwen2Tokenizer, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Kind (size,) int64 and value (size,) float32 of each token.

    Kind 0 is a word, 1 the end of the answer, and the others are the pieces of a waypoint, whose
    values can be compared within a kind.
    """
    kinds, values = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
    kinds[words.convert_tokens_to_ids("<|im_end|>")] = 1
    numbers = waypoint_tokens()
    ids = words.convert_tokens_to_ids([number.text for number in numbers])
    kinds[ids] = torch.tensor([2 + number.kind for number in numbers])
    values[ids] = torch.tensor([float(number.value) for number in numbers])
    return kinds, values


def soft_labels(kinds: torch.Tensor, values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Soft labels: (N, size) probabilities in place of labels (N,).

    A piece of a waypoint is spread over the pieces of its kind by a Gaussian, so that a number is
    also learned from its neighbours, of which the drives have more. Other labels stay one-hot.
    """
    sigma = SPREAD_STEPS + SPREAD_SHARE * values[labels].abs()
    off = (values - values[labels][:, None]) / sigma[:, None]
    near = torch.exp(-(off**2) / 2) * (kinds == kinds[labels][:, None])
    is_word = kinds[labels] < 2
    near[is_word] = nn.functional.one_hot(labels[is_word], len(kinds)).to(near.dtype)
    return near / near.sum(1, keepdim=True)


def _trainable(model: Qwen3VLForConditionalGeneration) -> tuple[list, list]:
    """Freezes the vision tower; returns the weights of the language model and of the mergers."""
    tower = model.model.visual
    tower.requires_grad_(False)
    mergers = [*tower.merger.parameters(), *tower.deepstack_merger_list.parameters()]
    for weight in mergers:
        weight.requires_grad_(True)
    return [*model.model.language_model.parameters()], mergers


def _optimizer(groups: list[list]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [{"params": group} for group in groups], betas=(0.9, 0.95), weight_decay=0.01
    )


def _windows(
    talks: list[Conversation],
    drives: RecordedDrives,
    recipe: TinyRecipe,
    fast_share: float,
    rng: np.random.Generator,
) -> tuple[dict, torch.Tensor]:
    """A batch of windows with their answers, and the paths (B, `NUM_PATH`).

    Args:
        fast_share: Share of the windows that have every second frame, and so twice the speed.
    """
    frames, samples, paths = [], [], []
    for _ in range(recipe.text_windows):
        drive = drives[int(rng.integers(len(drives)))]
        every = 2 if rng.random() < fast_share else 1
        first = int(rng.integers(len(drive.frames) - (NUM_FRAMES - 1) * every))
        driven = Driven.of(drive, first, every)
        if every > 1 and driven.future.xy_m[:, 0].max() >= FARTHEST_M:
            every, driven = 1, Driven.of(drive, first)
        shown = drive.frames[None, first : first + (NUM_FRAMES - 1) * every + 1 : every]
        window = relight(shown, rng)[0]
        if rng.random() < recipe.black_share:
            window, driven = np.zeros_like(window), Driven.at(SPEED_MEAN)
        talk = talks[int(rng.choice(len(TARGETS), p=SHARES))]
        has_history = talk.target.history_ends == "last" and rng.random() < recipe.told_share
        history = text_of(driven.past, talk.target) if has_history else ""
        frames.append(window)
        paths.append(path_of(driven))
        samples.append(talk.sample(talk.target.render(driven), history))
    batch = padded(samples, talks[0].tokenizer.pad_token_id)
    batch |= talks[0].inputs(torch.from_numpy(np.stack(frames)))
    return batch, torch.tensor(np.array(paths), dtype=torch.float32)


def path_of(driven: Driven) -> np.ndarray:
    """(`NUM_PATH`,) the speed, then the mean velocities to the waypoints, about 1 in size."""
    points = FUTURE.of(driven).waypoints_m
    t_s = np.arange(1, NUM_WAYPOINTS + 1)[:, None] * STEPS_APART * STEP_S
    velocity = (np.array(points) / t_s - (SPEED_MEAN, 0)) / SPEED_SCALE
    return np.array([(driven.speed_mps - SPEED_MEAN) / SPEED_SCALE, *velocity.ravel()])


def answer_logits(
    model: Qwen3VLForConditionalGeneration, batch: dict
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the tokens that have a label, which the model itself would compute for all tokens.

    Returns:
        The hidden states (B, width) before the last layer where the answer begins, and logits
        (N, vocabulary) with labels (N,) of the answers' tokens.
    """
    labels = batch.pop("labels")[:, 1:]
    states = model.model(**batch, output_hidden_states=True).hidden_states
    borne = labels != IGNORED
    begins = borne.int().argmax(1)
    before = states[-2][torch.arange(len(labels)), begins]
    return before, model.lm_head(states[-1][:, :-1][borne]), labels[borne]


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
