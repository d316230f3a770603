"""The policies beside each other: their scores with intervals, paired by seed, and what they show.

A policy's scene score is its mean over episodes. Intervals are of resampled episodes, the same ones
for every policy: each seed is one town, road and traffic, which all of them drove.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from avomni_lib.driving.episode import Episode
from avomni_lib.driving.terms import COLUMNS, terms
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import bootstrap
from avomni_lib.evaluation.claims import FEWEST_CLIPS, TableWithClaims, gained, in_words
from avomni_lib.evaluation.claims import ROWS as LADDER_ROWS
from avomni_lib.evaluation.scores import MODEL

ROWS = {
    "expert": "expert, which knows the road",
    "log_replay": "the recorded drive again",
    **{name: LADDER_ROWS[name] for name in ("constant_velocity", "ctra", "ego_motion")},
    **{name: LADDER_ROWS[name] for name in ("base", "blind", MODEL)},
}
# Row -> what beating it shows, and what the row is.
CLAIMS = {
    "constant_velocity": ("the model drives better than constant velocity", "constant velocity"),
    "ego_motion": (
        "the model drives better than past motion alone",
        "a ridge regression on how the car moved before",
    ),
    "blind": ("vision helps", "the model shown black frames"),
}
# Of result.json's `terms`, and of the table: the mean over episodes, or events over all km.
RATES = {"collisions_per_km": "num_collisions", "off_road_per_km": "num_off_road"}
SHARES = (*COLUMNS, "progress")
HEADINGS = {name: name.upper() for name in COLUMNS} | {
    "comfort": "comfort",
    "progress": "progress",
    "collisions_per_km": "collisions/km",
    "off_road_per_km": "off road/km",
}
LEAST_KM = 1e-3  # who has not gone a metre has no rate a km


@dataclass(frozen=True, repr=False)
class Driven(TableWithClaims):
    """What came out of the drives.

    Attributes:
        scores: One row a policy and seed: `policy`, `seed` and the fields of `terms.Terms` but
            `contacts`.
        figures: As in `result.json`, recomputable from `scores` by `figures`.
    """

    scores: pd.DataFrame
    figures: dict[str, Any]

    def worst(self, policy: str = MODEL, num: int = 1) -> list[int]:
        """Seeds of the policy's drives with the lowest scene score, of equals the shortest first.

        Raises:
            AvomniError: nobody of this name drove.
        """
        own = self.scores[self.scores["policy"] == policy]
        if own.empty:
            names = ", ".join(self.scores["policy"].unique())
            raise AvomniError(
                f"no policy {policy!r} drove; there are {names}", where="figures.drive"
            )
        return [int(seed) for seed in own.sort_values(["scene_score", "km", "seed"])["seed"][:num]]

    def table(self) -> pd.DataFrame:
        """The ladder in words, a line a policy."""
        drive = pd.DataFrame(self.figures["drive"])
        table = in_words(drive, "scene_score", ROWS, "scene score")
        for name, heading in HEADINGS.items():
            values = [entry[name] for entry in drive["terms"]]
            table[heading] = ["none" if value is None else f"{value:.2f}" for value in values]
        return table


def driven(episodes: Mapping[str, Sequence[Episode]], seed: int = 0) -> Driven:
    """Score all drives and set the policies beside each other.

    Args:
        episodes: Policy -> its drives; each policy drove the same seeds, each once.
        seed: Of the resamples.

    Raises:
        AvomniError: the policies did not drive the same seeds.
    """
    rows = []
    for policy, drives in episodes.items():
        for episode in drives:
            scores = terms(episode)
            fields = {
                field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)
            }
            del fields["contacts"]
            rows.append({"policy": policy, "seed": episode.seed, **fields})
    scores = pd.DataFrame(rows)
    return Driven(scores, figures(scores, seed))


def figures(scores: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The stage's figures, from the scores of the drives alone, as plain values for `result.json`.

    Intervals are of 95 %, from resampled episodes (`evaluation.bootstrap`); None where there are
    fewer than two. Differences are the policy's scene score minus the model's on the same seeds,
    None where the model (`adapted`) did not drive.

    Args:
        scores: As `Driven.scores` has them.
        seed: Of the resamples.

    Returns:
        `drive`: an entry for each policy, {name, scene_score, low, high, difference_to_model,
        difference_low, difference_high, num_episodes, terms}. `terms` holds the means of `SHARES`
        over episodes and the events of `RATES` over all km, None where none were driven. `claims`:
        {text, holds} each.

    Raises:
        AvomniError: the policies did not drive the same seeds, each once.
    """
    names, seeds = _checked(scores)
    values = scores.pivot(index="policy", columns="seed", values="scene_score")
    matrix = values.loc[names].to_numpy(np.float64)
    base = names.index(MODEL) if MODEL in names else None
    statistic = bootstrap.mean(matrix, np.arange(len(seeds)))
    drive = []
    for name, value, difference in zip(
        names, *bootstrap.estimates(statistic, base, seed), strict=True
    ):
        own = scores[scores["policy"] == name]
        km = float(own["km"].sum())
        entry = {
            "name": name,
            **bootstrap.entry("scene_score", value, difference),
            "num_episodes": len(own),
            "terms": {
                **{column: float(own[column].mean()) for column in SHARES},
                **{
                    rate: float(own[count].sum()) / km if km >= LEAST_KM else None
                    for rate, count in RATES.items()
                },
            },
        }
        drive.append(entry)
    return {"drive": drive, "claims": claims(drive)}


def _checked(scores: pd.DataFrame) -> tuple[list[str], list[int]]:
    """Policies in the ladder's order, and the seeds that each of them drove once."""
    if scores.empty:
        raise AvomniError("nobody drove an episode", where="driving.episodes", fix="raise it")
    by_policy = {name: sorted(own["seed"]) for name, own in scores.groupby("policy", sort=False)}
    first, seeds = next(iter(by_policy.items()))
    for name, own in by_policy.items():
        if own != seeds or len(set(own)) < len(own):
            odd = sorted(set(own) ^ set(seeds)) or [seed for seed in own if own.count(seed) > 1]
            raise AvomniError(
                f"{name} and {first} did not drive the same episodes, each once: seed {odd[0]}",
                where="the ladder of policies",
                fix="let every policy drive the same seeds",
            )
    order = [*ROWS, *(name for name in by_policy if name not in ROWS)]
    return [name for name in order if name in by_policy], seeds


def claims(drive: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One sentence about the model for each comparison that there is a policy for.

    As `evaluation.claims`: one holds if the interval of the difference excludes 0 on the model's
    side and comes from at least `FEWEST_CLIPS` episodes; else the text says its opposite.

    Args:
        drive: As in `figures["drive"]`.

    Returns:
        {text, holds} each.
    """
    by_name = {entry["name"]: entry for entry in drive}
    if MODEL not in by_name:
        return []
    return [_claim(by_name[name], by_name[MODEL]) for name in CLAIMS if name in by_name]


def _claim(other: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    what, described = CLAIMS[other["name"]]
    num = other["num_episodes"]
    if other["difference_low"] is None or num < FEWEST_CLIPS:
        reason = f"episodes: {num}, too few to trust an interval; it takes {FEWEST_CLIPS}"
        return {"text": f"nothing can be said on whether {what}: {reason}", "holds": False}
    gain, high, low = (0 - other[f"difference_{name}"] for name in ("to_model", "low", "high"))
    text = gained(what, gain, low, high, "{:.3f}".format)
    of = f"{model['scene_score']:.3f} against {other['scene_score']:.3f} of {described}"
    sure = f"95 % interval of the gain {low:.3f} to {high:.3f}"
    return {"text": f"{text} (scene score: {of}; {sure}, {num} episodes)", "holds": low > 0}
