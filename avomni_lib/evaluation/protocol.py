"""The table of a public protocol: each row of the ladder by minADE and ADE, others' quoted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avomni_lib import files
from avomni_lib.dataset.select import protocol
from avomni_lib.etl.clip.trajectory import STEP_S
from avomni_lib.evaluation import bootstrap, trajectories
from avomni_lib.evaluation.scores import Scores
from avomni_lib.params import Params

# The rows that answer one and the same thing however often they are asked, and the model's.
ROWS = ("constant_velocity", "ctra", "ego_motion", "blind", "trained_blind", "base", "adapted")
HORIZONS_S = {"3s": 3.0, "5s": 5.0, "6_4s": 6.4}
MEASURES = tuple(f"{kind}_{at}_m" for kind in ("min_ade", "ade") for at in HORIZONS_S)


def figures(p: Params, table: pa.Table, windows: Any) -> dict[str, Any] | None:
    """The protocol's figures, of the answers alone, as plain values for `result.json`.

    minADE is of the best of the sampled answers, for each horizon; of a row that is not sampled its
    one answer counts. Waypoints are 0.4 s apart and joined by straight lines for the 64 steps.

    Args:
        table: As `metrics.SCHEMA`.
        windows: That were asked, one a clip.
    """
    asked = protocol.protocol_of(p)
    if asked is None:
        return None
    scores, ids = Scores(table), protocol.clip_ids(p)
    true_m = scores.future_m
    names = [name for name in ROWS if name in scores.models]
    errors = {name: _errors(scores.paths_m(name), true_m) for name in names}
    lines: list[dict[str, Any]] = [
        {"name": name, "quoted": False, "num_clips": scores.num_clips} for name in names
    ]
    for measure in MEASURES:
        values = np.stack([errors[name][measure] for name in names])
        found, _ = bootstrap.estimates(bootstrap.mean(values, scores.clips), None, 0)
        for line, estimate in zip(lines, found, strict=True):
            line[measure] = estimate.value
            line[f"{measure}_interval"] = [estimate.low, estimate.high]
    lines += [
        {"name": each.name, "quoted": True, "source": each.source, **each.values}
        for each in asked.quoted
    ]
    last_us = np.array([int(windows.times_us(i)[-1]) for i in range(len(windows))])
    return {
        "name": asked.name,
        "is_published_list": not p.evaluation.protocol_ids,
        "ids_sha256": files.hash_json(list(ids)),
        "num_ids": len(ids),
        "num_scored": scores.num_clips,
        "t0_s": asked.t0_us / 1e6,
        "most_off_t0_s": round(float(np.abs(last_us - asked.t0_us).max()) / 1e6, 4),
        "num_samples": asked.num_samples,
        "rows": lines,
    }


def _errors(paths_m: np.ndarray, true_m: np.ndarray) -> dict[str, np.ndarray]:
    """(n,) metres of each measure; paths are (1 + K, n, 64, 2), the greedy one first."""
    off = trajectories.distances(paths_m, true_m)
    found = {}
    for at, seconds in HORIZONS_S.items():
        ade = off[..., : round(seconds / STEP_S)].mean(axis=-1)
        found[f"ade_{at}_m"] = ade[0]
        found[f"min_ade_{at}_m"] = (ade[1:] if len(ade) > 1 else ade).min(axis=0)
    return found


def shown(scored: dict[str, Any]) -> pd.DataFrame:
    """The table in words, from 06's figures; empty where no protocol was asked for."""
    found = scored.get("protocol")
    if not found:
        return pd.DataFrame()
    lines = [
        {
            "row": each["name"] + (" (quoted, not run here)" if each["quoted"] else ""),
            **{name: f"{each[name]:.3f}" if name in each else "" for name in MEASURES},
            "source": each.get("source", f"{each.get('num_clips')} of {found['num_ids']} clips"),
        }
        for each in found["rows"]
    ]
    return pd.DataFrame(lines)
