"""The table of a public protocol: minADE and ADE of the ladder's rows and of quoted results."""

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

# Rows of the ladder in the protocol's table, in its order.
ROWS = ("constant_velocity", "ctra", "ego_motion", "blind", "trained_blind", "base", "adapted")
HORIZONS_S = {"3s": 3.0, "5s": 5.0, "6_4s": 6.4}
MEASURES = tuple(f"{kind}_{at}_m" for kind in ("min_ade", "ade") for at in HORIZONS_S)


def figures(p: Params, table: pa.Table, windows: Any) -> dict[str, Any] | None:
    """The protocol's figures, computed from the answers, as plain values for `result.json`.

    minADE is taken over the sampled answers, separately for each horizon; for a row that is not
    sampled, over its single answer. Waypoints are 0.4 s apart and interpolated linearly to the 64
    steps.

    Args:
        table: See `metrics.SCHEMA`.
        windows: The scored windows, one per clip.

    Returns:
        None if the run has no protocol.
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
        means = bootstrap.bounded(bootstrap.mean(values, scores.clips))
        for line, estimate in zip(lines, means, strict=True):
            line[measure] = estimate.value
            line[f"{measure}_interval"] = [estimate.low, estimate.high]
    lines += [{"quoted": True, **row} for row in asked.quoted]
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
    """Measure -> (n,) metres; paths are (1 + K, n, 64, 2), the greedy one first."""
    distances = trajectories.distances(paths_m, true_m)
    errors = {}
    for at, seconds in HORIZONS_S.items():
        ade = distances[..., : round(seconds / STEP_S)].mean(axis=-1)
        errors[f"ade_{at}_m"] = ade[0]
        errors[f"min_ade_{at}_m"] = (ade[1:] if len(ade) > 1 else ade).min(axis=0)
    return errors


def shown(scored: dict[str, Any]) -> pd.DataFrame:
    """The table as text, from 06's figures; empty if the run has no protocol."""
    protocol_figures = scored.get("protocol")
    if not protocol_figures:
        return pd.DataFrame()
    num_ids = protocol_figures["num_ids"]
    lines = [
        {
            "row": row["name"] + (" (quoted, not run here)" if row["quoted"] else ""),
            **{name: f"{row[name]:.3f}" if name in row else "" for name in MEASURES},
            "source": row.get("source", f"{row.get('num_clips')} of {num_ids} clips"),
        }
        for row in protocol_figures["rows"]
    ]
    return pd.DataFrame(lines)
