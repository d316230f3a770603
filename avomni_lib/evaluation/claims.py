"""Sentences that the intervals support, and the opposite of those that they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avomni_lib.evaluation.scores import MODEL, metric

# Resampled, few clips look more alike than they are. Where there is no difference at all one is
# claimed in 8 % of cases with 5 clips, in 5 % with 10 and in 3 % with 30, where 2.5 % are meant
# (measured on normal differences; tests/test_claims.py).
FEWEST_CLIPS = 10
BLIND = ("trained_blind", "blind")  # the first that there is: it had its chance to do without
ROWS = {
    "trained_blind": "the same model trained and asked on black frames",
    "blind": "the model shown black frames",
    "mean": "the mean of the training split",
    "median": "the median of the training split",
    "base": "the base model, not adapted",
    "ego_motion": "a ridge regression on how the car moved before",
}
WHAT = {
    "blind": "vision helps",
    "mean": "the model beats the mean",
    "median": "the model beats the median",
    "base": "training helps",
    "ego_motion": "the model beats past motion alone",
}


def claims(ladder: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One sentence about the model for each comparison that there is a row for.

    Args:
        ladder: As in `figures["ladder"]`; differences are the row's figure minus the model's.

    Returns:
        {text, holds} each. One holds if the interval of the difference excludes 0 on the model's
        side and comes from at least `FEWEST_CLIPS` clips; else the text says its opposite.
    """
    by_name = {entry["name"]: entry for entry in ladder}
    if MODEL not in by_name:
        return []
    blind = next((name for name in BLIND if name in by_name), None)
    pairs = [(blind if name == "blind" else name, what) for name, what in WHAT.items()]
    return [_claim(what, by_name[name], by_name[MODEL]) for name, what in pairs if name in by_name]


def _claim(what: str, other: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    if reason := _silence(other):
        return {"text": f"nothing can be said on whether {what}: {reason}", "holds": False}
    figure = metric(other["metric"])
    gain, low, high = (
        other[name] for name in ("difference_to_model", "difference_low", "difference_high")
    )
    if figure.more_is_better:
        gain, low, high = 0 - gain, 0 - high, 0 - low
    half = (high - low) / 2
    if low > 0:
        text = f"{what} by {gain:.3f} ± {figure.shown(half)}"
    elif high < 0:
        text = f"no evidence that {what}: the model is worse by {-gain:.3f} ± {figure.shown(half)}"
    else:
        text = f"no evidence that {what}: the gain of {gain:.3f} ± {figure.shown(half)} may be none"
    of = f"{model['value']:.3f} against {figure.shown(other['value'])} of {ROWS[other['name']]}"
    sure = f"95 % interval of the gain {low:.3f} to {figure.shown(high)}"
    text += f" ({figure.words}: {of}{_unread(other)}; {sure}, {other['num_clips']} clips)"
    return {"text": text, "holds": low > 0}


def _unread(other: Mapping[str, Any]) -> str:
    """A row whose answers cannot be read is the mean under another name: readers have to know."""
    share = 100 * (1 - other["valid_share"])
    if not share:
        return ""
    shown = "under 1" if share < 1 else f"{share:.0f}"
    return f", {shown} % of whose answers cannot be read and count as the mean's"


def _silence(other: Mapping[str, Any]) -> str:
    """Why no interval can be trusted; empty where one can."""
    if other["difference_to_model"] is None:
        return "no window has this figure"
    num = other["num_clips"]
    if other["difference_low"] is not None and num >= FEWEST_CLIPS:
        return ""
    clips = "1 held-out clip is" if num == 1 else f"{num} held-out clips are"
    return f"{clips} too few for an interval that could be trusted, it takes {FEWEST_CLIPS}"
