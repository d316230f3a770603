"""Sentences that the intervals support, and the opposite of those that they do not."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from avomni_lib.evaluation.scores import MODEL, metric
from avomni_lib.plan import text_table

# Resampled, few clips look more alike than they are. Where there is no difference at all one is
# claimed in 8 % of cases with 5 clips, in 5 % with 10 and in 3 % with 30, where 2.5 % are meant
# (measured on normal differences; tests/test_claims.py).
FEWEST_CLIPS = 10
# The ladder's rows in words, as short as the margin of a picture.
ROWS = {
    "mean": "predict the mean",
    "median": "predict the median",
    "constant_velocity": "constant velocity",
    "ctra": "constant turn and acceleration",
    "ego_motion": "ego motion, ridge",
    "base": "base model",
    "blind": "adapted model, blind",
    "trained_blind": "trained blind",
    "shuffled": "frames shuffled in time",
    "one_camera": "one camera",
    "adapted": "adapted model",
}
# Row of the ladder -> what beating it shows, and what the row is. Of the two blind ones the first
# that there is counts: it had its chance to do without.
CLAIMS = {
    "trained_blind": ("vision helps", "the same model trained and asked on black frames"),
    "blind": ("vision helps", "the model shown black frames"),
    "mean": ("the model beats the mean", "the mean of the training split"),
    "median": ("the model beats the median", "the median of the training split"),
    "base": ("training helps", "the base model, not adapted"),
    "ego_motion": (
        "the model beats past motion alone",
        "a ridge regression on how the car moved before",
    ),
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
    named = [name for name in CLAIMS if name in by_name]
    if "trained_blind" in named and "blind" in named:
        named.remove("blind")
    return [_claim(by_name[name], by_name[MODEL]) for name in named]


def _claim(other: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    what, described = CLAIMS[other["name"]]
    num, unread = other["num_clips"], 100 * (1 - other["valid_share"])
    reason = None
    if other["difference_to_model"] is None:
        reason = "no window has this figure"
    elif other["difference_low"] is None or num < FEWEST_CLIPS:
        reason = f"held-out clips: {num}, too few to trust an interval; it takes {FEWEST_CLIPS}"
    if reason:
        return {"text": f"nothing can be said on whether {what}: {reason}", "holds": False}
    figure = metric(other["metric"])
    gain, low, high = (other[f"difference_{name}"] for name in ("to_model", "low", "high"))
    if figure.more_is_better:
        gain, low, high = 0 - gain, 0 - high, 0 - low
    text = gained(what, gain, low, high, figure.shown)
    of = f"{model['value']:.3f} against {figure.shown(other['value'])} of {described}"
    if unread:  # such a row is the mean under another name: readers have to know
        shown = "under 1" if unread < 1 else f"{unread:.0f}"
        of += f", {shown} % of whose answers cannot be read and count as the mean's"
    sure = f"95 % interval of the gain {low:.3f} to {figure.shown(high)}"
    return {"text": f"{text} ({figure.words}: {of}; {sure}, {num} clips)", "holds": low > 0}


def gained(what: str, gain: float, low: float, high: float, shown: Callable[[float], str]) -> str:
    """That `what` holds, or its opposite, by the interval of the gain.

    Args:
        shown: A number of the figure -> its text with the unit.
    """
    half = shown((high - low) / 2)
    if low > 0:
        return f"{what} by {gain:.3f} ± {half}"
    if high < 0:
        return f"no evidence that {what}: the model is worse by {-gain:.3f} ± {half}"
    return f"no evidence that {what}: the gain of {gain:.3f} ± {half} may be none"


def in_words(
    entries: pd.DataFrame, figure: str, names: Mapping[str, str], heading: str
) -> pd.DataFrame:
    """A ladder's figure with its interval and its difference to the model, a line a row.

    Args:
        entries: `name`, `figure` and what else `bootstrap.entry` has.
        names: Of the rows, in words.
        heading: Of the figure's column.
    """

    def intervals(low: pd.Series, high: pd.Series) -> pd.Series:
        low_words, high_words = (each.astype(float).map("{:.3f}".format) for each in (low, high))
        return (low_words + " to " + high_words).where(low.notna(), "none")

    apart = (entries["name"] != MODEL) & entries["difference_to_model"].notna()
    differences = entries["difference_to_model"].astype(float).map("{:+.3f}".format)
    between = intervals(entries["difference_low"], entries["difference_high"])
    return pd.DataFrame(
        {
            "row": entries["name"].replace(names),
            heading: entries[figure].map("{:.3f}".format),
            "95 % interval": intervals(entries["low"], entries["high"]),
            "row - model": differences.where(apart, ""),
            "its 95 % interval": between.where(apart, ""),
        }
    )


class TableWithClaims(ABC):
    """A ladder as text and HTML: its table, and under it the sentences of `figures["claims"]`."""

    figures: dict[str, Any]

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """The ladder in words, a line a row."""

    def __str__(self) -> str:
        table = self.table()
        lines = text_table([list(table.columns), *table.to_numpy().tolist()])
        return "\n".join([lines, "", *(claim["text"] for claim in self.figures["claims"])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        texts = [html.escape(claim["text"]) for claim in self.figures["claims"]]
        claims = "".join(f"<li>{text}</li>" for text in texts)
        return f"{self.table().to_html(index=False, justify='left')}<ul>{claims}</ul>"
