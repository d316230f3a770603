"""Pictures of 05_train: the loss, the wait for data, and what the model says before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.dataset.cameras import Grid
from avomni_lib.notebook import progress
from avomni_lib.notebook.plots import canvas
from avomni_lib.training.fit import heldout
from avomni_lib.training.targets.form import figure_in_words

if TYPE_CHECKING:
    from avomni_lib.evaluation.before_after import Spoken


def curve(
    metrics: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, float]] = ()
) -> canvas.Picture:
    """How a training went: loss, speed, share of waiting for data, and memory, over its steps.

    Args:
        metrics: One row a logged step, as `metrics.jsonl` has them: `step`, `loss` (mean cross
            entropy of the answer's tokens, nats), and where measured `seconds`, `data_wait_s`,
            `samples_per_s`, `tokens_per_s` and `memory_gb`.
        held_out: `step` and the target's figure (as `speed_mae_mps`) of each checkpoint that was
            asked.
    """
    steps = _column(metrics, "step")
    loss = _column(metrics, "loss")
    seconds, waits = _column(metrics, "seconds"), _column(metrics, "data_wait_s")
    below = [
        ("samples a second", _column(metrics, "samples_per_s"), canvas.BLUE),
        ("data wait,\n% of the step", 100 * waits / np.maximum(seconds, 1e-9), canvas.ORANGE),
        ("memory at most,\nGB", _column(metrics, "memory_gb"), canvas.PURPLE),
    ]
    below = [row for row in below if len(steps) and not np.isnan(row[1]).any()]
    picture = canvas.Picture(1000, 380 + 110 * len(below))
    ratios = [2.4, *[1] * len(below)]
    places = np.atleast_1d(picture.subplots(len(ratios), 1, sharex=True, height_ratios=ratios))
    smooth = running_mean(loss, max(len(loss) // 20, 1))
    _loss(places[0], steps, loss, smooth, held_out)
    for axes, (label, values, colour) in zip(places[1:], below, strict=True):
        axes.fill_between(steps, values, color=colour, alpha=0.35, linewidth=0)
        axes.plot(steps, values, color=colour, linewidth=0.8)
        axes.set_ylim(0, max(float(values.max()) * 1.2, 1e-3 if "wait" not in label else 2.0))
        canvas.quiet(axes).set_ylabel(label, fontsize=9)
    places[-1].set_xlabel("optimizer step", fontsize=9)
    if not len(loss):
        picture.finding("No step has been logged yet")
        return picture
    finding = f"Loss went from {loss[0]:.2f} to {smooth[-1]:.2f} in {int(steps[-1]):,} steps"
    if not np.isnan(waits).any():
        share = 100 * waits.sum() / max(seconds.sum(), 1e-9)
        finding += f"; {share:.1f}% of a step waits for data"
    if not np.isnan(tokens := _column(metrics, "tokens_per_s")).any():
        finding += f"; {float(np.median(tokens)):,.0f} tokens/s"
    picture.finding(finding)
    return picture


def live() -> Callable[[Sequence[Mapping[str, Any]]], None] | None:
    """What draws the curve anew while a training is followed, or None where nobody looks on."""
    if not progress.has_front_end():
        return None
    from IPython.display import display

    handle = display(curve([]), display_id=True)
    return lambda metrics: handle.update(curve(metrics))


def _column(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """(n,) float64, NaN where a line has no such figure."""
    return np.array([row.get(name, np.nan) for row in metrics], dtype=float)


def _loss(
    axes: canvas.Axes,
    steps: np.ndarray,
    loss: np.ndarray,
    smooth: np.ndarray,
    held_out: Sequence[Mapping[str, float]],
) -> None:
    axes.plot(steps, loss, color=canvas.BLUE, linewidth=0.8, alpha=0.5, label="each step")
    axes.plot(steps, smooth, color=canvas.BLUE, linewidth=2.2, label="running mean")
    if len(loss) and loss.min() > 0 and loss.max() / loss.min() > 20:
        axes.set_yscale("log")
    elif len(loss):
        axes.set_ylim(0, 1.1 * float(loss.max()))
    canvas.quiet(axes).set_ylabel("loss, nats a token\nof the answer", fontsize=9)
    lines = axes.get_lines()
    if held_out:
        beside = axes.twinx()
        figure, _ = heldout.figure_of(held_out[0])
        words, unit = figure_in_words(figure)
        asked = [row["step"] for row in held_out], [row[figure] for row in held_out]
        lines += beside.plot(*asked, "o--", color=canvas.ORANGE, label=f"held-out {words}")
        beside.set_ylim(0, 1.2 * max(asked[1]) or 1.0)
        label = f"held-out {words}" + (f", {unit}" if unit else "")
        canvas.quiet(beside, grid=None).set_ylabel(label, fontsize=9)
        beside.spines["right"].set_visible(True)
    axes.legend(
        lines, [line.get_label() for line in lines], frameon=False, fontsize=9, loc="upper right"
    )


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """(n,) mean of the last `width` values, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(stops - width, 0)
    return (sums[stops] - sums[starts]) / (stops - starts)


def before_after(spoken: Spoken, grid: Grid) -> canvas.Picture:
    """One window and what is said about it: the truth, the base model, the adapted model.

    Args:
        spoken: The window and its answers; the first and the last frame are shown.
        grid: Which cameras stand where.
    """
    frames = spoken.frames
    image_px = canvas.height_of(frames[0], grid, 580)
    picture = canvas.Picture(1180, image_px + 240)
    places = picture.add_gridspec(2, 6, height_ratios=[image_px, 160])
    for col, (image, name) in enumerate(((frames[0], "first"), (frames[-1], "last"))):
        axes = picture.add_subplot(places[0, 3 * col : 3 * col + 3])
        caption = f"{name} of the window's {len(frames)} frames"
        canvas.show_grid(axes, image, grid, 580, caption)
    cards = [("ground truth", spoken.true, canvas.INK), ("base model", spoken.base, canvas.ORANGE)]
    if spoken.adapted is not None:
        cards.append(("adapted model", spoken.adapted, canvas.BLUE))
    for col, (who, text, colour) in enumerate(cards):
        axes = canvas.bare(picture.add_subplot(places[1, 2 * col : 2 * col + 2]))
        # The colour stands in a bar beside the text: orange letters on white are hard to read.
        axes.axvline(0.0, color=colour, linewidth=6)
        axes.set_xlim(0, 1)
        axes.text(0.03, 0.98, who, va="top", fontsize=11, fontweight="bold", color=canvas.INK)
        # What a model babbles may hold dollar signs, which matplotlib would read as mathematics.
        axes.text(0.03, 0.78, fit(text), va="top", fontsize=9, family="monospace", parse_math=False)
    picture.finding(_spoken_finding(spoken))
    return picture


def _spoken_finding(spoken: Spoken) -> str:
    def said(speed_mps: float | None) -> str:
        return "what cannot be read" if speed_mps is None else f"{speed_mps:.2f} m/s"

    words = f"The car drives {spoken.speed_true_mps:.2f} m/s; the base model says "
    words += said(spoken.speed_base_mps)
    if spoken.adapted is None:
        return words
    return f"{words}, the adapted one {said(spoken.speed_adapted_mps)}"


def fit(text: str, width: int = 46, num_lines: int = 7) -> str:
    """An answer as it fits a card; lines that do not fit are counted."""
    lines = canvas.wrapped(text, width).splitlines() or ["(nothing)"]
    if len(lines) <= num_lines:
        return "\n".join(lines)
    kept = lines[: num_lines - 1]
    return "\n".join([*kept, f"… and {len(lines) - len(kept)} more lines"])
