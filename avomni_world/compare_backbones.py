"""A small model of each family of backbones, trained from scratch on the same rendered drives.

    python -m avomni_world.compare_backbones      # make backbones

The models start from random weights, about as many as the tiny base has, each with its own
tokenizer. They are trained on the same pairs of frames in the same order for the same number of
steps, and asked about the same pairs of unseen drives. The table shows that each family learns, and
what a window costs; it says nothing about the released, pretrained models.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.params import sections
from avomni_lib.training.backbones import Video
from avomni_lib.training.targets import target
from avomni_world.tiny_base.drives import (
    HELD_OUT_SEED,
    HOME,
    SAMPLE_HZ,
    TILE,
    RecordedDrive,
    RecordedDrives,
)

NUM_FRAMES = 2
TARGET = target("summary_v1")
LAST_S = (NUM_FRAMES - 1) / SAMPLE_HZ
GRID = cameras.grid((("camera_front_wide_120fov",),))
LAYERS, SEEN_AFTER = 6, 4  # of the language model, and the one after which a head reads the speed
HEAD_BETA = 0.3  # error in SPEED_SCALE up to which the loss is quadratic
SQUARE, PATCH = 32, 8  # px; for families whose vision tower takes squares, and the towers' patches


@dataclass(frozen=True)
class Comparison:
    """The settings that all families share.

    Attributes:
        see_steps: Optimizer steps of the first lesson, seeing.
        steps: Of the second lesson, answering.
        windows: In each step.
        rate: Peak learning rate of AdamW.
        num_drives, num_held_out: Drives to learn from, and to answer for.
        seed: Of the initial weights and of the windows' order.
    """

    see_steps: int = 800
    steps: int = 400
    windows: int = 64
    rate: float = 1e-3
    num_drives: int = 160
    num_held_out: int = 12
    seed: int = 0


@dataclass(frozen=True)
class FamilyRow:
    """The measurements of a family.

    Attributes:
        parameters: Weights of its model; all are trained.
        tokens: Of a window with its answer.
        first_loss, last_loss: Mean cross entropy of a token of the answer, over a tenth of the
            steps.
        mae_mps: Mean absolute error of the answered speeds; an answer that cannot be parsed counts
            as the mean.
        mean_mae_mps: The same if the answer is always the mean.
        seconds: CPU seconds of the training.
        memory_gb: Peak memory of its process.
    """

    family: str
    parameters: int
    tokens: int
    first_loss: float
    last_loss: float
    mae_mps: float
    mean_mae_mps: float
    seconds: float
    memory_gb: float


@dataclass(frozen=True)
class TargetValues:
    """The values that the target is rendered from."""

    speed_mps: float

    @property
    def path_m(self) -> float:
        return self.speed_mps * LAST_S


@dataclass(frozen=True)
class Small:
    """A family's small model.

    Attributes:
        special: Special tokens of its tokenizer besides Qwen's.
        config: Makes the model's config from its tokenizer.
    """

    config: Callable[[Any], Any]
    special: tuple[str, ...] = ()


def _text(words: Any, **own: Any) -> dict[str, Any]:
    return {
        "vocab_size": -(-len(words) // 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": None,
        **own,
    }


def _rope(sections: Sequence[int], **own: Any) -> dict[str, Any]:
    axes = {"mrope_section": list(sections), "mrope_interleaved": True}
    return {"rope_type": "default", "rope_theta": 5e6, **axes, **own}


def _qwen_tower(words: Any, **own: Any) -> dict[str, Any]:
    token = words.convert_tokens_to_ids
    return {
        "vision_config": {
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 3,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 256,
            **own,
        },
        "tie_word_embeddings": True,
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def _qwen3_vl(words: Any) -> Any:
    from transformers import Qwen3VLConfig

    text = _text(words, head_dim=32, rope_parameters=_rope((6, 5, 5)), tie_word_embeddings=True)
    return Qwen3VLConfig(text_config=text, **_qwen_tower(words, deepstack_visual_indexes=[0, 1]))


def _qwen3_5(words: Any) -> Any:
    from transformers import Qwen3_5Config

    text = _text(
        words,
        head_dim=32,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=_rope((3, 3, 2), partial_rotary_factor=0.5),
    )
    return Qwen3_5Config(text_config=text, **_qwen_tower(words))


def _internvl(words: Any) -> Any:
    from transformers import InternVLConfig

    return InternVLConfig(
        text_config=_text(words, model_type="qwen3", head_dim=32, tie_word_embeddings=True),
        vision_config={
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 192,
            "image_size": [SQUARE, SQUARE],
            "patch_size": [PATCH, PATCH],
            "attention_bias": True,
        },
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=True,
    )


def _llava_onevision(words: Any) -> Any:
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(
        text_config=_text(words, model_type="qwen2", tie_word_embeddings=True),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 192,
            "image_size": SQUARE,
            "patch_size": PATCH // 2,  # the family averages four patches of a video into one token
            "vision_use_head": False,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        tie_word_embeddings=True,
    )


SMALL = {
    "qwen3_vl": Small(_qwen3_vl),
    "qwen3_5": Small(_qwen3_5),
    "internvl": Small(_internvl, ("<img>", "</img>", "<IMG_CONTEXT>")),
    "llava_onevision": Small(_llava_onevision, ("<image>", "<video>")),
}


def tokenizer(name: str) -> Any:
    """The family's tokenizer: every word of its prompt and its answers is one token."""
    from tokenizers import AddedToken

    from avomni_lib.training.prompt.conversation import prompt_text
    from avomni_world.tiny_base.tokenizer import chat_template, make_tokenizer

    answer = "".join(TARGET.render(TargetValues(speed)) for speed in (5.0, 12.3))
    frames = "<1.0 seconds> Frame1 at 0.00 s: The video lasts for 0.30 seconds, and 4 frames are"
    texts = [prompt_text(GRID, TARGET), answer, "system\nuser\nassistant\n", frames]
    made = make_tokenizer(texts, chat_template())
    made.add_tokens(
        [AddedToken(each, special=True, normalized=False) for each in SMALL[name].special]
    )
    return made


def train(name: str, work: Path, comparison: Comparison) -> FamilyRow:
    """Train the family's small model, and ask it about drives that it has not seen.

    Args:
        work: Folder of the rendered drives; existing ones are not rendered again.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(comparison.seed)
    words = tokenizer(name)
    model = start(name, words, comparison.seed).train()
    drives = RecordedDrives(work / "drives", comparison.num_drives, town=HOME)
    for number in range(len(drives)):  # rendered before the time is measured
        drives[number]
    talk = conversation(name, model, words)
    losses, started = [], time.process_time()
    for loss in learn(model, talk, drives, comparison):
        losses.append(loss)
        if len(losses) % 50 == 0:
            said, seen = np.mean(losses[-50:], axis=0)
            print(
                f"{name}, step {len(losses)}: loss {said:.3f}, of the head {seen:.3f}", flush=True
            )
    seconds, few = time.process_time() - started, max(1, comparison.steps // 10)
    held_out = RecordedDrives(work / "drives", comparison.num_held_out, HELD_OUT_SEED, HOME)
    mae, mean_mae = _errors(model.eval(), talk, held_out)
    return FamilyRow(
        name,
        sum(weight.numel() for weight in model.parameters()),
        len(talk.sample(TARGET.render(TargetValues(10.0)))),
        float(np.mean(losses[comparison.see_steps :][:few], axis=0)[0]),
        float(np.mean(losses[-few:], axis=0)[0]),
        mae,
        mean_mae,
        seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    )


def start(name: str, words: Any, seed: int) -> Any:
    """The family's small model; its patch embedding starts as gratings, like the tiny base's."""
    import torch
    from transformers import AutoModelForImageTextToText

    from avomni_world.tiny_base.model import gabors

    model = AutoModelForImageTextToText.from_config(
        SMALL[name].config(words), trust_remote_code=False
    )
    convolutions = (torch.nn.Conv2d, torch.nn.Conv3d)
    (patches,) = (each for each in model.modules() if isinstance(each, convolutions))
    gratings = gabors(len(patches.weight), patches.weight.shape[-1], seed)
    if patches.weight.ndim == 4:  # the tower sees one frame at a time
        gratings = gratings[:, :, 0] * 2**0.5
    with torch.no_grad():
        patches.weight.copy_(gratings)
    return model


def conversation(name: str, model: Any, words: Any) -> Any:
    """The family's prompt for a window."""
    from avomni_lib.training.backbones import backbone
    from avomni_lib.training.prompt.conversation import Conversation, cells_of

    times = tuple(number / SAMPLE_HZ for number in range(NUM_FRAMES))
    video = Video(times, SQUARE, SQUARE, cells_of(GRID))
    return Conversation(
        words,
        backbone(name, model.config),
        grid=GRID,
        target=TARGET,
        videos=[video],
        max_seq_length=1024,
    )


def learn(
    model: Any, talk: Any, drives: RecordedDrives, comparison: Comparison
) -> Iterator[tuple[float, float]]:
    """Train step by step, yielding the mean loss per token of the answer, and the head's loss.

    In the first lesson, a linear head (discarded afterwards) reads the speed from the language
    model's states, below the last layers, at each vision token that has seen both frames. In the
    second, the model also has to answer. In the first lesson the answer's loss is yielded as NaN.

    The frames of a pair are 0, 1 or 2 apart, and the speed is scaled as if they were neighbours.
    The same place is therefore seen at several speeds, so that memorising the drives does not help.
    """
    import torch
    from torch.nn import functional

    from avomni_lib.training.prompt.conversation import padded
    from avomni_world.tiny_base.lessons import SPEED_MEAN, SPEED_SCALE, relight, take_step

    rng = np.random.default_rng(comparison.seed)
    head = torch.nn.Linear(model.config.text_config.hidden_size, 1)
    weights = [*model.parameters(), *head.parameters()]
    places = np.flatnonzero(talk.prompt().input_ids == talk.vision_id)
    pictures = _cut(talk.prompt(), places[-1] + 1)
    if talk.backbone.frames_per_patch == 1:
        places = places[len(places) // 2 :]
    for answers, num_steps in ((False, comparison.see_steps), (True, comparison.steps)):
        optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.01)
        for step in range(num_steps):
            frames, speeds, samples = [], [], []
            for _ in range(comparison.windows):
                drive = drives[int(rng.integers(len(drives)))]
                apart = int(rng.integers(3))
                first = int(rng.integers(len(drive.frames) - apart))
                frames.append(front(drive)[[first, first + apart]])
                speeds.append((drive.path_m[first + apart] - drive.path_m[first]) * SAMPLE_HZ)
                answer = TARGET.render(TargetValues(speeds[-1]))
                samples.append(talk.sample(answer) if answers else pictures)
            batch = padded(samples, talk.tokenizer.pad_token_id)
            batch |= talk.inputs(torch.from_numpy(relight(np.stack(frames), rng, noise=4.0)))
            batch |= {} if answers else {"labels": None, "logits_to_keep": 1}
            out = model(**batch, output_hidden_states=True)
            found = head(out.hidden_states[SEEN_AFTER][:, places])
            wanted = (torch.tensor(speeds, dtype=torch.float32) - SPEED_MEAN) / SPEED_SCALE
            wanted = wanted[:, None, None].expand_as(found)
            seen = functional.smooth_l1_loss(found, wanted, beta=HEAD_BETA)
            loss = out.loss + seen if answers else seen
            take_step(loss, weights, optimizer, [comparison.rate], step, num_steps)
            yield out.loss.item() if answers else float("nan"), seen.item()


def front(drive: RecordedDrive) -> np.ndarray:
    """(T, 32, 32, 3) uint8: a square from the centre of the first camera's tile."""
    left = (TILE[0] - SQUARE) // 2
    return drive.frames[:, :SQUARE, left : left + SQUARE]


def _cut(sample: Any, length: int) -> Any:
    """The first tokens of a sample."""
    return replace(
        sample,
        input_ids=sample.input_ids[:length],
        labels=sample.labels[:length],
        positions=sample.positions[..., :length],
    )


def _errors(model: Any, talk: Any, drives: RecordedDrives) -> tuple[float, float]:
    """Mean error of the answered speeds and of their mean, m/s, over windows side by side."""
    from avomni_lib.training.model.generate import generate_texts

    truths: list[float] = []
    answers: list[str] = []
    for number in range(len(drives)):
        drive = drives[number]
        starts = range(0, len(drive.frames) - NUM_FRAMES + 1, NUM_FRAMES)
        windows = np.stack([front(drive)[i : i + NUM_FRAMES] for i in starts])
        truths += [drive.speed_mps(i, i + NUM_FRAMES - 1) for i in starts]
        answers += generate_texts(model, talk, windows, 64)
    truth = np.array(truths)
    read = [TARGET.parse(answer) for answer in answers]
    predicted = np.array([each.speed_mps if each else truth.mean() for each in read])
    return float(np.abs(predicted - truth).mean()), float(np.abs(truth.mean() - truth).mean())


def compare(work: Path, comparison: Comparison, names: Sequence[str] = ()) -> list[FamilyRow]:
    """Train each family in a process of its own, one after another, so that memory can be measured.

    Args:
        names: Of the families; all if empty.
    """
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for name in names or tuple(name for name in SMALL if name in sections.BACKBONES):
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            rows.append(pool.submit(train, name, work, comparison).result())
    return rows


def table(rows: Sequence[FamilyRow]) -> str:
    """The rows in Markdown."""
    lines = [
        "| family | weights | speed MAE, m/s (the mean's) | loss | tokens a window | CPU seconds "
        "| memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{row.family}` | {row.parameters / 1e6:.2f} M | {row.mae_mps:.2f} "
        f"({row.mean_mae_mps:.2f}) | {row.first_loss:.2f} → {row.last_loss:.2f} | {row.tokens:,} "
        f"| {row.seconds:.0f} | {row.memory_gb:.2f} GB |"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=files.resolve("outputs/backbones"))
    for name, value in asdict(Comparison()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--family", action="append", default=[], choices=[*SMALL])
    values = vars(parser.parse_args(arguments))
    work, names = values.pop("work"), values.pop("family")
    rows = compare(work, Comparison(**values), names)
    files.write_json(work / "backbones.json", [asdict(row) for row in rows])
    print(table(rows))


if __name__ == "__main__":
    main()
