"""Makes the tiny base: a real Qwen3-VL, small enough for a CPU, that reads its way off pictures.

    python -m avomni_world.tiny_base.make      # an hour and a half on two cores

First the vision tower: from two successive frames, each camera's tokens must show how fast the
ground moves in that camera's picture, and all of them together how fast the car turns and where its
lane lies ahead. Town, look, camera height and lens change with every other drive, so the tower
learns to see motion and road. Then the language: the tower's blocks are frozen, and the language
model learns to write speed, path and manoeuvre as the targets' texts, in terms of the car that
drives through `meadow`, with or without its past motion in the prompt; at last, to keep the form of
an answer. With other cameras it is wrong by a factor, which an adapter has to learn.

The result lies in `weights/` beside this file; `record.json` there holds the loss of each step. The
same recipe gives the same losses to within rounding; bit-identical weights need the same kind of
machine and the same number of threads.
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
from avomni_lib.etl.clip.manoeuvre import ACROSS, ALONG
from avomni_lib.etl.clip.trajectory import STEP_S
from avomni_lib.training.model.generate import generate_all
from avomni_lib.training.prompt.conversation import prompt_text
from avomni_lib.training.prompt.history import text_of
from avomni_lib.training.targets import Content, Target
from avomni_lib.training.targets.future import NUM_WAYPOINTS, STEPS_APART
from avomni_world.publish.dataset import clip_id_of
from avomni_world.tiny_base.drives import FIRST_SEED, HELD_OUT_SEED, HOME, RecordedDrives
from avomni_world.tiny_base.lessons import (
    NUM_FRAMES,
    TARGET,
    TARGETS,
    Driven,
    TinyRecipe,
    conversation,
    keep_form,
    learn_text,
    warm_up,
)
from avomni_world.tiny_base.model import start
from avomni_world.tiny_base.tokenizer import chat_template, make_tokenizer, waypoint_tokens

log = logging.getLogger(__name__)

RECORD = "record.json"
KNOWN_GRIDS = ("4-cam", "7-cam")  # whose words are whole tokens; another grid's fall apart
NUM_HELD_OUT = 20
BATCH, MAX_NEW_TOKENS = 30, 64  # windows that are answered at once, and what an answer may have
FUTURE, META = TARGETS[1:]


def folder() -> Path:
    """Where the tiny base lies: config, weights, tokenizer, chat template, record."""
    return Path(__file__).with_name("weights")


def tokenizer() -> Qwen2Tokenizer:
    """The tiny base's own: every word that it is asked with or answers with is one token."""
    driven = [Driven.at(1.5), Driven.at(7.5)]
    texts = ["system\nuser\nassistant\n", "<1.0 seconds>"]
    for asked in TARGETS:
        texts += [prompt_text(cameras.grid(name), asked) for name in KNOWN_GRIDS]
        texts += [text_of(each.past, asked) for each in driven]
    texts += [TARGET.render(each) for each in driven]
    texts += ["Waypoints: (0.00,-0.00) (-0.00,0.00)"]
    texts += [
        META.write(Content(along=along, across=across)) for along in ALONG for across in ACROSS
    ]
    return make_tokenizer(texts, chat_template(), waypoint_tokens())


def make(out: Path, work: Path, recipe: TinyRecipe | None = None) -> dict:
    """Make the tiny base into the folder `out`.

    Args:
        work: Keeps the drives and the warmed-up tower: what is there is not made again.

    Returns:
        What stands in `record.json`.
    """
    recipe = recipe or TinyRecipe()
    drives = RecordedDrives(work / "drives", recipe.num_drives)
    words = tokenizer()
    model = start(words, recipe.seed)
    losses = {"warm_up": _warm(model, drives, recipe, work)}
    losses["learn_text"] = _run(
        "learn_text", learn_text(model, words, drives, recipe), recipe.text_steps
    )
    losses["keep_form"] = _run(
        "keep_form", keep_form(model, words, drives, recipe), recipe.form_steps
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
            model, words, RecordedDrives(work / "drives", NUM_HELD_OUT, HELD_OUT_SEED, HOME)
        ),
    }
    files.write_json(out / RECORD, record)
    return record


def training_clip_ids(recipe: TinyRecipe) -> list[str]:
    """The drives through `HOME` that were learned from, by the names that they are published by."""
    return sorted(clip_id_of(HOME, FIRST_SEED + n) for n in range(0, recipe.num_drives, 2))


def _warm(model, drives: RecordedDrives, recipe: TinyRecipe, work: Path) -> list[float]:
    """The model with its tower warmed up, and the curve; by the same recipe it is done once."""
    shared = {
        name: value
        for name, value in asdict(recipe).items()
        if not name.startswith(("text", "form"))
    }
    kept = work / f"warm_{files.hash_json(shared)[:12]}.pt"
    if not kept.exists():
        curve = _run("warm_up", warm_up(model, drives, recipe), recipe.warm_steps)
        with files.write_whole(kept) as file:
            torch.save({"tower": model.model.visual.state_dict(), "loss": curve}, file)
    made = torch.load(kept, weights_only=True)
    model.model.visual.load_state_dict(made["tower"])
    return made["loss"]


@torch.no_grad()
def measure(
    model: Qwen3VLForConditionalGeneration, words: Qwen2Tokenizer, drives: RecordedDrives
) -> dict:
    """How far off the speeds and the paths are that the model says, beside the best constants'."""
    model.eval()
    driven, windows = [], []
    for number in range(len(drives)):
        drive = drives[number]
        starts = range(0, len(drive.frames) - NUM_FRAMES + 1, NUM_FRAMES // 2)
        windows += [drive.frames[i : i + NUM_FRAMES] for i in starts]
        driven += [Driven.of(drive, i) for i in starts]
    shown = np.stack(windows)

    def read(asked: Target, histories: list[str] | None = None) -> list[Content | None]:
        answers = generate_all(
            model,
            conversation(model, words, asked),
            shown,
            histories or [""] * len(shown),
            max_new_tokens=MAX_NEW_TOKENS,
            at_a_time=BATCH,
        )
        return [asked.parse(answer) for answer in answers]

    truth = np.array([each.speed_mps for each in driven])
    speeds = read(TARGET)
    predicted = np.array([each.speed_mps if each else truth.mean() for each in speeds])
    truths = [FUTURE.of(each) for each in driven]
    histories = [text_of(each.past, FUTURE) for each in driven]
    steps = np.arange(1, NUM_WAYPOINTS + 1) * STEPS_APART * STEP_S
    rows = {
        "base": (plans := read(FUTURE)),
        "base_with_history": (with_history := read(FUTURE, histories)),
        "constant_velocity": [
            Content(waypoints_m=tuple((float(x), 0.0) for x in steps * each.future.speed_mps))
            for each in driven
        ],
        "mean": [_mean_of(truths)] * len(truths),
    }
    return {
        "num_windows": len(truth),
        "num_clips": len(drives),
        "valid_share": float(
            np.mean([each is not None for each in [*speeds, *plans, *with_history]])
        ),
        "speed_mae_mps": {
            "base": round(float(np.abs(predicted - truth).mean()), 4),
            "mean": round(float(np.abs(truth.mean() - truth).mean()), 4),
            "median": round(float(np.abs(np.median(truth) - truth).mean()), 4),
        },
        "ade_m": {
            name: round(
                float(np.mean([_ade(*pair) for pair in zip(contents, truths, strict=True)])), 4
            )
            for name, contents in rows.items()
        },
    }


def _mean_of(truths: list[Content]) -> Content:
    mean = np.mean([each.waypoints_m for each in truths], axis=0)
    return Content(waypoints_m=tuple((float(x), float(y)) for x, y in mean))


def _ade(predicted: Content | None, true: Content) -> float:
    """What is not in the form counts as a car that stands still."""
    return FUTURE.error(predicted or Content(waypoints_m=((0.0, 0.0),) * NUM_WAYPOINTS), true)


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
    torch.set_num_threads(2)
    record = make(arguments.out, arguments.work)
    log.info("held out: %s", record["held_out"])


if __name__ == "__main__":
    main()
