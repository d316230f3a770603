"""Compares policies: scores with intervals, paired by seed, and the claims that they support.

A policy's scene score is its mean over episodes. Intervals come from resampled episodes, the same
ones for every policy: a seed is one town, road and traffic, which all of them drove.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from avomni_lib.driving.episode import Episode
from avomni_lib.driving.scores import COLUMNS, terms
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import bootstrap
from avomni_lib.evaluation.claims import ROWS as LADDER_ROWS
from avomni_lib.evaluation.claims import TableWithClaims, claims, in_words
from avomni_lib.evaluation.scores import MODEL, Metric

ROWS = {
    "expert": "expert, which knows the road",
    "log_replay": "the recorded drive again",
    **{name: LADDER_ROWS[name] for name in ("constant_velocity", "ctra", "ego_motion")},
    **{name: LADDER_ROWS[name] for name in ("base", "blind", MODEL)},
}
# Row -> the claim that beating it supports, and a description of the row.
CLAIMS = {
    "constant_velocity": ("the model drives better than constant velocity", "constant velocity"),
    "ego_motion": (
        "the model drives better than past motion alone",
        "a ridge regression on how the car moved before",
    ),
    "blind": ("vision helps", "the model shown black frames"),
}
FIGURE = Metric("scene score", more_is_better=True)
# Entries of `terms` in result.json and columns of the table. Rates are events per km of all
# episodes; shares are means over episodes.
RATES = {"collisions_per_km": "num_collisions", "off_road_per_km": "num_off_road"}
SHARES = (*COLUMNS, "progress")
HEADINGS = {name: name.upper() for name in COLUMNS} | {
    "comfort": "comfort",
    "progress": "progress",
    "collisions_per_km": "collisions/km",
    "off_road_per_km": "off road/km",
}
LEAST_KM = 1e-3  # below one metre there is no rate per km


@dataclass(frozen=True, repr=False)
class DriveScores(TableWithClaims):
    """The scores of all drives.

    Attributes:
        scores: One row per policy and seed: `policy`, `seed` and the fields of `terms.Terms`
            except `contacts`.
        figures: As in `result.json`; `figures` recomputes them from `scores`.
    """

    scores: pd.DataFrame
    figures: dict[str, Any]

    def worst(self, policy: str = MODEL, num: int = 1) -> list[int]:
        """Seeds of the policy's drives with the lowest scene score; ties by the shortest distance.

        Raises:
            AvomniError: no policy of this name drove.
        """
        drives = self.scores[self.scores["policy"] == policy]
        if drives.empty:
            names = ", ".join(self.scores["policy"].unique())
            raise AvomniError(
                f"no policy {policy!r} drove; there are {names}", where="figures.drive"
            )
        ordered = drives.sort_values(["scene_score", "km", "seed"])
        return [int(seed) for seed in ordered["seed"][:num]]

    def table(self) -> pd.DataFrame:
        """The ladder as text, one row per policy."""
        drive = pd.DataFrame(self.figures["drive"])
        table = in_words(drive, "scene_score", ROWS, "scene score")
        for name, heading in HEADINGS.items():
            values = [entry[name] for entry in drive["terms"]]
            table[heading] = ["none" if value is None else f"{value:.2f}" for value in values]
        return table


def driven(episodes: Mapping[str, Sequence[Episode]], seed: int = 0) -> DriveScores:
    """Score all drives and compare the policies.

    Args:
        episodes: Policy -> its drives; every policy drove the same seeds, each once.

    Raises:
        AvomniError: the policies did not drive the same seeds.
    """
    rows = [
        {"policy": policy, "seed": episode.seed, **dataclasses.asdict(terms(episode))}
        for policy, drives in episodes.items()
        for episode in drives
    ]
    scores = pd.DataFrame(rows).drop(columns="contacts", errors="ignore")
    return DriveScores(scores, figures(scores, seed))


def figures(scores: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The stage's figures, computed from the scores alone, as plain values for `result.json`.

    Intervals are 95 % intervals from resampled episodes (`evaluation.bootstrap`), None with fewer
    than two episodes. Differences are the policy's scene score minus the model's on the same
    seeds, None if the model (`adapted`) did not drive.

    Args:
        scores: See `DriveScores.scores`.

    Returns:
        `drive`: one entry per policy, {name, scene_score, low, high, difference_to_model,
        difference_low, difference_high, num_episodes, terms}. `terms` holds the means of `SHARES`
        over episodes and the events of `RATES` per km of all episodes, None where nothing was
        driven. `claims`: a list of {text, holds}.

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
        drives = scores[scores["policy"] == name]
        km = float(drives["km"].sum())
        entry = {
            "name": name,
            **bootstrap.entry("scene_score", value, difference),
            "num_episodes": len(drives),
            "terms": {
                **{column: float(drives[column].mean()) for column in SHARES},
                **{
                    rate: float(drives[count].sum()) / km if km >= LEAST_KM else None
                    for rate, count in RATES.items()
                },
            },
        }
        drive.append(entry)
    made = claims(drive, CLAIMS, FIGURE, value="scene_score", counted="episodes", of="episodes")
    return {"drive": drive, "claims": made}


def _checked(scores: pd.DataFrame) -> tuple[list[str], list[int]]:
    """Policies in the ladder's order, and the seeds that every one of them drove once."""
    if scores.empty:
        raise AvomniError(
            "no episode was driven", where="driving.num_episodes", fix="set it to 1 or more"
        )
    by_policy = {name: sorted(part["seed"]) for name, part in scores.groupby("policy", sort=False)}
    first, seeds = next(iter(by_policy.items()))
    for name, driven in by_policy.items():
        if driven != seeds or len(set(driven)) < len(driven):
            odd = sorted(set(driven) ^ set(seeds)) or [s for s in driven if driven.count(s) > 1]
            raise AvomniError(
                f"{name} and {first} did not drive the same episodes, each once: seed {odd[0]}",
                where="the ladder of policies",
                fix="let every policy drive the same seeds",
            )
    order = [*ROWS, *(name for name in by_policy if name not in ROWS)]
    return [name for name in order if name in by_policy], seeds
