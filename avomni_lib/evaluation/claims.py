"""Claims about the model, worded by whether the confidence intervals support them."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from avomni_lib.evaluation.scores import MODEL, Metric, metric
from avomni_lib.plan import text_table

# The bootstrap underestimates the variance of few clips. Without any difference, one is claimed in
# 8 % of cases with 5 clips, in 5 % with 10 and in 3 % with 30, instead of the nominal 2.5 %
# (measured on normally distributed differences; tests/test_claims.py).
FEWEST_CLIPS = 10
# Labels of the ladder's rows, short enough for the margin of a plot.
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
# Row of the ladder -> the claim that beating it supports, and a description of the row. If there
# are both blind rows, only the trained one counts, the stronger baseline.
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


def claims(
    ladder: Sequence[Mapping[str, Any]],
    about: Mapping[str, tuple[str, str]] = CLAIMS,
    figure: Metric | None = None,
    value: str = "value",
    counted: str = "clips",
    of: str = "held-out clips",
) -> list[dict[str, Any]]:
    """One claim about the model for each row of `about` in the ladder.

    Args:
        ladder: As in `figures["ladder"]`; differences are the row's figure minus the model's.
        about: See `CLAIMS`.
        figure: Description of the figure; None is that of each row's `metric`.
        value: Key of the figure in a row.
        counted, of: What is resampled, counted by the rows' `num_<counted>`, and its name where
            there is too little of it.

    Returns:
        A list of {text, holds}. A claim holds if the interval of the difference excludes 0 in the
        model's favour and comes from at least `FEWEST_CLIPS` clips; otherwise the text states that
        there is no evidence.
    """
    by_name = {entry["name"]: entry for entry in ladder}
    if MODEL not in by_name:
        return []
    named = [name for name in about if name in by_name]
    if "trained_blind" in named and "blind" in named:
        named.remove("blind")
    model = by_name[MODEL]
    return [
        _claim(*about[name], by_name[name], model, figure, value=value, counted=counted, of=of)
        for name in named
    ]


def _claim(
    what: str,
    described: str,
    other: Mapping[str, Any],
    model: Mapping[str, Any],
    figure: Metric | None,
    *,
    value: str,
    counted: str,
    of: str,
) -> dict[str, Any]:
    num, reason = other[f"num_{counted}"], None
    if other["difference_to_model"] is None:
        reason = "no window has this figure"
    elif other["difference_low"] is None or num < FEWEST_CLIPS:
        reason = f"{of}: {num}, too few to trust an interval; it takes {FEWEST_CLIPS}"
    if reason:
        return {"text": f"nothing can be said on whether {what}: {reason}", "holds": False}
    figure = figure or metric(other["metric"])
    gain, low, high = (other[f"difference_{name}"] for name in ("to_model", "low", "high"))
    if figure.more_is_better:
        gain, low, high = 0 - gain, 0 - high, 0 - low
    gained = _gained(what, gain, low, high, figure.shown)
    values = f"{model[value]:.3f} against {figure.shown(other[value])} of {described}"
    if unread := 100 * (1 - other.get("valid_share", 1)):
        # The unreadable share of the row is the mean's: tell the reader.
        share = "under 1" if unread < 1 else f"{unread:.0f}"
        values += f", {share} % of whose answers cannot be read and count as the mean's"
    interval = f"95 % interval of the gain {low:.3f} to {figure.shown(high)}"
    text = f"{gained} ({figure.words}: {values}; {interval}, {num} {counted})"
    return {"text": text, "holds": low > 0}


def _gained(what: str, gain: float, low: float, high: float, shown: Callable[[float], str]) -> str:
    """State that `what` holds, or that there is no evidence, by the interval of the gain."""
    half = shown((high - low) / 2)
    if low > 0:
        return f"{what} by {gain:.3f} ± {half}"
    if high < 0:
        return f"no evidence that {what}: the model is worse by {-gain:.3f} ± {half}"
    return f"no evidence that {what}: the gain of {gain:.3f} ± {half} may be none"


def in_words(
    entries: pd.DataFrame, figure: str, names: Mapping[str, str], heading: str
) -> pd.DataFrame:
    """A ladder as text: figure, interval and difference to the model, one line per row.

    Args:
        entries: Columns `name`, `figure` and those of `bootstrap.entry`.
    """

    def intervals(low: pd.Series, high: pd.Series) -> pd.Series:
        from_text, to_text = (bound.astype(float).map("{:.3f}".format) for bound in (low, high))
        return (from_text + " to " + to_text).where(low.notna(), "none")

    has_difference = (entries["name"] != MODEL) & entries["difference_to_model"].notna()
    differences = entries["difference_to_model"].astype(float).map("{:+.3f}".format)
    between = intervals(entries["difference_low"], entries["difference_high"])
    return pd.DataFrame(
        {
            "row": entries["name"].replace(names),
            heading: entries[figure].map("{:.3f}".format),
            "95 % interval": intervals(entries["low"], entries["high"]),
            "row - model": differences.where(has_difference, ""),
            "its 95 % interval": between.where(has_difference, ""),
        }
    )


class TableWithClaims(ABC):
    """A ladder shown as text or HTML: its table, followed by the claims of `figures["claims"]`."""

    figures: dict[str, Any]

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """The ladder as text, one line per row."""

    def __str__(self) -> str:
        table = self.table()
        lines = text_table([list(table.columns), *table.to_numpy().tolist()])
        return "\n".join([lines, "", *(claim["text"] for claim in self.figures["claims"])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        texts = [html.escape(claim["text"]) for claim in self.figures["claims"]]
        claims = "".join(f"<li>{text}</li>" for text in texts)
        return f"{self.table().to_html(index=False, justify='left')}<ul>{claims}</ul>"
