"""Figures of 05_train: loss, wait for data, and answers before and after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from avomni_lib.dataset.cameras import Grid
from avomni_lib.notebook import progress
from avomni_lib.notebook.plots import canvas
from avomni_lib.training.fit import heldout
from avomni_lib.training.targets.form import figure_in_words

if TYPE_CHECKING:
    from avomni_lib.evaluation.answer import ComparedWindow

MEASURED = ["step", "loss", "seconds", "data_wait_s", "samples_per_s", "tokens_per_s", "memory_gb"]
ANSWER_LINES, ANSWER_CHARS = 7, 46


def curve(
    metrics: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, float]] = ()
) -> canvas.Picture:
    """Loss, throughput, share of time spent waiting for data, and memory over the steps.

    Args:
        metrics: One row per logged step, as in `metrics.jsonl`: `step`, `loss` (mean cross entropy
            of the answer's tokens, nats), and if measured `seconds`, `data_wait_s`,
            `samples_per_s`, `tokens_per_s` and `memory_gb`.
        held_out: `step` and the target's figure (such as `speed_mae_mps`) of each evaluated
            checkpoint.
    """
    steps = pd.DataFrame(metrics).reindex(columns=MEASURED).astype(float).set_index("step")
    loss, smooth = steps.loss, steps.loss.rolling(max(len(steps) // 20, 1), min_periods=1).mean()
    wait = 100 * steps.data_wait_s / steps.seconds.clip(lower=1e-9)
    below = [
        ("samples a second", steps.samples_per_s, canvas.BLUE, 1e-3),
        ("data wait,\n% of the step", wait, canvas.ORANGE, 2.0),
        ("memory at most,\nGB", steps.memory_gb, canvas.PURPLE, 1e-3),
    ]
    below = [row for row in below if len(steps) and row[1].notna().all()]
    picture = canvas.Picture(1000, 380 + 110 * len(below))
    ratios = [2.4, *[1] * len(below)]
    axes, *others = picture.subplots(
        len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False
    )[:, 0]
    lines = axes.plot(loss, color=canvas.BLUE, linewidth=0.8, alpha=0.5, label="each step")
    lines += axes.plot(smooth, color=canvas.BLUE, linewidth=2.2, label="running mean")
    if len(loss) and loss.min() > 0 and loss.max() / loss.min() > 20:
        axes.set_yscale("log")
    elif len(loss):
        axes.set_ylim(0, 1.1 * loss.max())
    canvas.quiet(axes, y="loss, nats a token\nof the answer")
    if held_out:
        figure, _ = heldout.figure_of(held_out[0])
        words, unit = figure_in_words(figure)
        label = f"held-out {words}" + (f", {unit}" if unit else "")
        asked = pd.DataFrame(held_out).set_index("step")[figure]
        beside = canvas.quiet(axes.twinx(), grid=None, y=label)
        lines += beside.plot(asked, "o--", color=canvas.ORANGE, label=f"held-out {words}")
        beside.set_ylim(0, 1.2 * asked.max() or 1.0)
        beside.spines["right"].set_visible(True)
    axes.legend(handles=lines, frameon=False, fontsize=9, loc="upper right")
    for place, (label, values, colour, least) in zip(others, below, strict=True):
        place.fill_between(values.index, values, color=colour, alpha=0.35, linewidth=0)
        place.plot(values, color=colour, linewidth=0.8)
        place.set_ylim(0, max(values.max() * 1.2, least))
        canvas.quiet(place, y=label)
    picture.axes[len(below)].set_xlabel("optimizer step", fontsize=9)
    if not len(steps):
        picture.finding("No step has been logged yet")
        return picture
    last = int(steps.index[-1])
    finding = f"Loss went from {loss.iloc[0]:.2f} to {smooth.iloc[-1]:.2f} in {last:,} steps"
    if wait.notna().all():
        share = 100 * steps.data_wait_s.sum() / max(steps.seconds.sum(), 1e-9)
        finding += f"; {share:.1f}% of a step waits for data"
    if steps.tokens_per_s.notna().all():
        finding += f"; {steps.tokens_per_s.median():,.0f} tokens/s"
    picture.finding(finding)
    return picture


def live() -> Callable[[Sequence[Mapping[str, Any]]], None] | None:
    """A callback that redraws the curve during training; None without a front end."""
    if not progress.has_front_end():
        return None
    from IPython.display import display

    handle = display(curve([]), display_id=True)
    return lambda metrics: handle.update(curve(metrics))


def before_after(answered: ComparedWindow, grid: Grid) -> canvas.Picture:
    """A window's first and last frame, the ground truth, and the answers of both models."""
    frames = answered.frames
    image_px = canvas.height_of(frames[0], grid, 580)
    picture = canvas.Picture(1180, image_px + 240)
    places = picture.add_gridspec(2, 6, height_ratios=[image_px, 160])
    for col, (image, name) in enumerate(((frames[0], "first"), (frames[-1], "last"))):
        axes = picture.add_subplot(places[0, 3 * col : 3 * col + 3])
        canvas.show_grid(axes, image, grid, 580, f"{name} of the window's {len(frames)} frames")
    cards = [
        ("ground truth", answered.ground_truth, canvas.INK),
        ("base model", answered.base, canvas.ORANGE),
        ("adapted model", answered.adapted, canvas.BLUE),
    ]
    for col, (who, text, colour) in enumerate(cards):
        if text is None:
            continue
        axes = canvas.bare(picture.add_subplot(places[1, 2 * col : 2 * col + 2]))
        # A coloured bar beside the text, as orange letters on white are hard to read.
        axes.axvline(0.0, color=colour, linewidth=6)
        axes.set_xlim(0, 1)
        axes.text(0.03, 0.98, who, va="top", fontsize=11, fontweight="bold", color=canvas.INK)
        lines = canvas.fit(text.strip() or "(nothing)", ANSWER_CHARS, ANSWER_LINES)
        # An answer may contain dollar signs, which matplotlib would parse as mathematics.
        look = {"va": "top", "fontsize": 9, "family": "monospace", "parse_math": False}
        axes.text(0.03, 0.78, "\n".join(lines), **look)
    speeds = {"base": answered.speed_base_mps}
    if answered.adapted is not None:
        speeds["adapted"] = answered.speed_adapted_mps
    words = [
        f"the {name} model answers "
        + ("text that cannot be read" if speed is None else f"{speed:.2f} m/s")
        for name, speed in speeds.items()
    ]
    truth = f"The car drives {answered.speed_ground_truth_mps:.2f} m/s"
    picture.finding("; ".join([truth, *words]))
    return picture
