"""Makes the tiny base: a real Qwen3-VL, small enough for a CPU, that reads speed off pictures.

    python -m avomni_world.tiny_base.make      # half an hour on one core

First the eyes: from two successive frames, each camera's tokens must show how fast the ground moves
in that camera's picture. Town, look, camera height and lens change with every other drive, so what
the vision tower learns is to see motion. Then the language: the tower's blocks are frozen, and the
language model learns to say that motion as the target's text, in terms of the car that drives
through `meadow`. Before other cameras it is wrong by a factor, and an adapter has to learn that.

What it made lies in `weights/` beside this file; `record.json` there holds the loss of each
step. The same recipe gives the same weights on the same kind of machine.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.training.prompt.conversation import Conversation, collate, prompt_text
from avomni_world.publish.dataset import clip_id_of
from avomni_world.tiny_base.drives import FIRST_SEED, HELD_OUT_SEED, HOME, Drives
from avomni_world.tiny_base.lessons import (
    NUM_FRAMES,
    TARGET,
    Driven,
    TinyRecipe,
    conversation,
    learn_text,
    warm_up,
)
from avomni_world.tiny_base.model import start
from avomni_world.tiny_base.tokenizer import chat_template, make_tokenizer

log = logging.getLogger(__name__)

RECORD = "record.json"
NUM_HELD_OUT = 30


def folder() -> Path:
    """Where the tiny base lies: config, weights, tokenizer, chat template, record."""
    return Path(__file__).with_name("weights")


def tokenizer() -> Qwen2Tokenizer:
    """The tiny base's own: every word that it is asked with or answers with is one token."""
    answer = "".join(TARGET.render(Driven(5.0, 5.0 * s)) for s in (1.5, 7.5))
    texts = [prompt_text(grid, TARGET) for grid in cameras.GRIDS.values()]
    return make_tokenizer(
        [*texts, answer, "system\nuser\nassistant\n", "<1.0 seconds>"], chat_template()
    )


def make(out: Path, work: Path, recipe: TinyRecipe | None = None) -> dict:
    """Make the tiny base into the folder `out`.

    Args:
        work: Keeps the drives and the warmed-up tower: what is there is not made again.

    Returns:
        What stands in `record.json`.
    """
    recipe = recipe or TinyRecipe()
    drives = Drives(work / "drives", recipe.num_drives)
    words = tokenizer()
    model = start(words, recipe.seed)
    losses = {"warm_up": _warm(model, drives, recipe, work)}
    losses["learn_text"] = _run(
        "learn_text", learn_text(model, words, drives, recipe), recipe.text_steps
    )
    model.save_pretrained(out)
    words.save_pretrained(out)
    record = {
        "recipe": asdict(recipe),
        "town": HOME,
        "training_clip_ids": training_clip_ids(recipe),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "torch": torch.__version__,
        "loss": {lesson: [round(loss, 5) for loss in curve] for lesson, curve in losses.items()},
        "held_out": measure(
            model, words, Drives(work / "drives", NUM_HELD_OUT, HELD_OUT_SEED, HOME)
        ),
    }
    files.write_json(out / RECORD, record)
    return record


def training_clip_ids(recipe: TinyRecipe) -> list[str]:
    """The drives through `HOME` that were learned from, by the names that they are published by."""
    return sorted(clip_id_of(HOME, FIRST_SEED + n) for n in range(0, recipe.num_drives, 2))


def _warm(model, drives: Drives, recipe: TinyRecipe, work: Path) -> list[float]:
    """The model with its tower warmed up, and the curve; by the same recipe it is done once."""
    shared = {name: value for name, value in asdict(recipe).items() if not name.startswith("text")}
    kept = work / f"warm_{files.hash_json(shared)[:12]}.pt"
    if not kept.exists():
        curve = _run("warm_up", warm_up(model, drives, recipe), recipe.warm_steps)
        with files.write_whole(kept) as file:
            torch.save({"tower": model.model.visual.state_dict(), "loss": curve}, file)
    made = torch.load(kept, weights_only=True)
    model.model.visual.load_state_dict(made["tower"])
    return made["loss"]


@torch.no_grad()
def measure(model: Qwen3VLForConditionalGeneration, words: Qwen2Tokenizer, drives: Drives) -> dict:
    """How far off the speeds are that the model says, beside the best constants', m/s."""
    model.eval()
    talk, truths, answers = conversation(model, words), [], []
    for number in range(len(drives)):
        drive = drives[number]
        starts = range(0, len(drive.frames) - NUM_FRAMES + 1, NUM_FRAMES // 2)
        windows = np.stack([drive.frames[i : i + NUM_FRAMES] for i in starts])
        truths += [drive.speed_mps(i, i + NUM_FRAMES - 1) for i in starts]
        answers += say(model, talk, windows)
    truth = np.array(truths)
    read = [TARGET.parse(answer) for answer in answers]
    predicted = np.array([each.speed_mps if each else truth.mean() for each in read])
    return {
        "num_windows": len(truth),
        "num_clips": len(drives),
        "valid_share": float(np.mean([each is not None for each in read])),
        "speed_mae_mps": {
            "base": round(float(np.abs(predicted - truth).mean()), 4),
            "mean": round(float(np.abs(truth.mean() - truth).mean()), 4),
            "median": round(float(np.abs(np.median(truth) - truth).mean()), 4),
        },
    }


@torch.no_grad()
def say(
    model: Qwen3VLForConditionalGeneration, talk: Conversation, windows: np.ndarray
) -> list[str]:
    """Greedy answers for windows (B, T, H, W, 3) uint8."""
    batch = collate([talk.prompt()] * len(windows), talk.tokenizer.pad_token_id, side="left")
    del batch["labels"]
    batch |= talk.inputs(torch.from_numpy(np.ascontiguousarray(windows)))
    ids = model.generate(
        **batch, max_new_tokens=64, do_sample=False, pad_token_id=talk.tokenizer.pad_token_id
    )
    return [talk.text_of(row) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]


def _run(name: str, losses: Iterator[float], num_steps: int) -> list[float]:
    curve = []
    for loss in losses:
        curve.append(loss)
        if len(curve) % 25 == 0:
            mean = np.mean(curve[-25:])
            log.info("%s, step %d of %d: loss %.4f", name, len(curve), num_steps, mean)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=folder(), help="folder of the tiny base")
    parser.add_argument(
        "--work", type=Path, default=files.resolve("outputs/tiny_base"), help="folder of the drives"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # sums in another order would be other weights
    record = make(arguments.out, arguments.work)
    log.info("held out: %s", record["held_out"])


if __name__ == "__main__":
    main()
