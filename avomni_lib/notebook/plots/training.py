"""Pictures of 05_train: the loss, the wait for data, and what the model says before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.dataset.rig import Grid
from avomni_lib.notebook.plots import canvas

if TYPE_CHECKING:
    from avomni_lib.evaluation.ladder import Spoken


def curve(metrics: Sequence[Mapping[str, Any]]) -> canvas.Picture:
    """Loss over optimizer steps, and below it the share of each step spent waiting for data.

    Args:
        metrics: One row a logged step, as `metrics.jsonl` has them: `step`, `loss` (mean cross
            entropy of the answer's tokens, nats), and where measured `seconds` and `data_wait_s`.
    """
    steps = np.array([row["step"] for row in metrics], dtype=float)
    loss = np.array([row["loss"] for row in metrics], dtype=float)
    wait_share = None
    if len(steps) and all("data_wait_s" in row for row in metrics):
        wait_share = [row["data_wait_s"] / max(row["seconds"], 1e-9) for row in metrics]
    picture = canvas.Picture(1000, 520 if wait_share is not None else 380)
    ratios = [2.4, 1] if wait_share is not None else [1]
    places = np.atleast_1d(
        picture.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    ).ravel()
    places[0].plot(steps, loss, color=canvas.BLUE, linewidth=0.8, alpha=0.5, label="each step")
    smooth = running_mean(loss, max(len(loss) // 20, 1))
    places[0].plot(steps, smooth, color=canvas.BLUE, linewidth=2.2, label="running mean")
    if len(loss) and loss.min() > 0 and loss.max() / loss.min() > 20:
        places[0].set_yscale("log")
    else:
        places[0].set_ylim(bottom=0)
    canvas.quiet(places[0]).set_ylabel("loss, nats a token\nof the answer", fontsize=9)
    places[0].legend(frameon=False, fontsize=9)
    ending = ""
    if wait_share is not None:
        waits = np.asarray(wait_share, dtype=float) * 100
        places[1].fill_between(steps, waits, color=canvas.ORANGE, alpha=0.6, linewidth=0)
        places[1].plot(steps, waits, color=canvas.ORANGE, linewidth=0.8)
        places[1].set_ylim(0, max(float(waits.max(initial=0)) * 1.2, 2.0))
        canvas.quiet(places[1]).set_ylabel("data wait,\n% of the step", fontsize=9)
        ending = f"; {float(np.median(waits)) if len(waits) else 0:.1f}% of a step waits for data"
    places[-1].set_xlabel("optimizer step", fontsize=9)
    if len(loss):
        fell = f"Loss went from {loss[0]:.2f} to {smooth[-1]:.2f} in {int(steps[-1]):,} steps"
        picture.finding(fell + ending)
    else:
        picture.finding("No step has been logged yet")
    return picture


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
    cards = [("true", spoken.true, canvas.INK), ("base model", spoken.base, canvas.ORANGE)]
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
