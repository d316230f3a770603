"""The evaluation stage: scores the adapted model and the rows that it has to beat.

The rows: constants of the training split, extrapolated motion, a regression on past motion, the
base model, the adapted model on black frames, the same trained on black frames, with its frames
shuffled in time, and with one camera. With `evaluation.protocol`, also the table of a public
protocol: minADE and ADE of the rows and of published results.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from avomni_lib import files
from avomni_lib.dataset.select import protocol as protocol_ids
from avomni_lib.dataset.select import split
from avomni_lib.etl import leaks
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip.trajectory import STEP_S
from avomni_lib.evaluation import answer, baselines, bootstrap, metrics, models, trajectories
from avomni_lib.evaluation.answer import Row, held_out_windows
from avomni_lib.evaluation.claims import ROWS, TableWithClaims, in_words
from avomni_lib.evaluation.scores import Scores, parts_of
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan
from avomni_lib.training.fit.heldout import thinned
from avomni_lib.training.model import adapter, load, model_path
from avomni_lib.training.model.generate import Sampling
from avomni_lib.training.prompt import samples
from avomni_lib.training.targets import target, target_of

ANSWERS_FILE = "answers.parquet"
KEPT_FILE = "answers.partial.jsonl"
# Rows of the ladder in the protocol's table, in its order.
PROTOCOL_ROWS = (
    "constant_velocity",
    "ctra",
    "ego_motion",
    "blind",
    "trained_blind",
    "base",
    "adapted",
)
HORIZONS_S = {"3s": 3.0, "5s": 5.0, "6_4s": 6.4}
MEASURES = tuple(f"{kind}_{at}_m" for kind in ("min_ade", "ade") for at in HORIZONS_S)
# With fewer held-out windows or clips than these, a score is unstable between seeds.
FEW_WINDOWS, FEW_CLIPS = 200, 20


@dataclass(frozen=True, repr=False)
class Evaluated(TableWithClaims):
    """The result of an evaluation.

    Attributes:
        answers: One row per window, row of the ladder and sample (`metrics.SCHEMA`).
        figures: As in `result.json`; `metrics.figures` recomputes them from `answers`.
    """

    answers: pa.Table
    figures: dict[str, Any]
    path: Path

    def table(self) -> pd.DataFrame:
        """The ladder as text, one line per row."""
        ladder = pd.DataFrame(self.figures["ladder"])
        table = in_words(ladder, "value", ROWS, ladder["metric"][0])
        return table.assign(**{"can be read": ladder["valid_share"].map("{:.1%}".format)})


def plan(p: Params) -> Plan:
    """Numbers of windows, clips and answers; no model is loaded.

    Raises:
        AvomniError: no cache, no held-out window, no trained adapter, or a leak between splits.
    """
    windows = held_out_windows(p)
    chosen = thinned(len(windows), p.evaluation.max_windows)
    record = _checked(p, windows)
    num_clips = len({windows[i].clip_id for i in chosen})
    asked = list(models.shown(p, windows))
    num_answers = (len(asked) + _num_samples(p)) * len(chosen)
    thinning = "" if len(chosen) == len(windows) else f", thinned from {len(windows):,}"
    source = p.evaluation.protocol or f"split {p.evaluation.split}"
    notes = [f"{source}{thinning}", samples.left_out(windows)]
    rows = [
        *p.code_rows(),
        ("target", p.training.target, target_of(p).question),
        ("windows", f"{len(chosen):,}", "; ".join(filter(None, notes))),
        ("clips", f"{num_clips:,}", "none of them was trained on, none is in another split too"),
        ("adapter", f"of {record['base_model']}", f"in {adapter.adapter_dir(p)}"),
        (
            "rows",
            f"{len(ROWS) - (models.BLIND_ROW not in asked)}",
            f"asked of models: {', '.join(asked)}",
        ),
        (
            "answers",
            f"{num_answers:,}",
            f"{p.evaluation.batch_size} at a time, {p.evaluation.max_new_tokens} tokens at most; "
            "black frames without a history are all alike and asked once",
        ),
        ("models", f"answer {models.place_in_words(p)}", ""),
        *protocol_ids.rows(p)[0],
    ]
    warnings = []
    if len(chosen) < FEW_WINDOWS or num_clips < FEW_CLIPS:
        warnings.append(
            f"{len(chosen):,} windows of {num_clips} clips make a coarse score (fewer than "
            f"{FEW_WINDOWS} or {FEW_CLIPS}): take more chunks or raise evaluation.max_windows"
        )
    if models.BLIND_ROW not in asked:
        warnings.append(
            "no adapter was trained on black frames: what the words alone teach is not in the "
            "ladder; set training.blind_steps and run 05_train"
        )
    figures = {"num_windows": len(chosen), "num_clips": num_clips, "num_answers": num_answers}
    return Plan("what 06_evaluate will do", rows, warnings, figures)


def evaluate(p: Params, folder: Path, progress: type[Bar] = Bar) -> Evaluated:
    """Answer the held-out windows with every row of the ladder, and score the answers.

    After a kill, the same call resumes after the last complete batch of answers.

    Args:
        folder: The stage's folder, to which `answers.parquet` is written.

    Raises:
        AvomniError: see `plan`; the adapter does not match these parameters.
    """
    windows = held_out_windows(p)
    _checked(p, windows)
    chosen = thinned(len(windows), p.evaluation.max_windows)
    asked, about = answer.windows_asked(p, windows, chosen), target(p.training.target)
    constants = baselines.texts(about, samples.train_windows(p), windows, chosen)
    texts: dict[tuple[str, int], Sequence[str | None]]
    texts = {(name, 0): answers for name, answers in constants.items()}
    rows = _rows(p, windows, chosen)
    total = len(rows) * len(chosen)
    kept = answer.Kept(folder / KEPT_FILE, _key(p, windows))
    with progress(total=total, unit="answer", label="evaluating") as bar:
        texts |= answer.ask_all(rows, models.asker(p, windows), kept, bar)
    table = pa.concat_tables(
        metrics.rows(name, about, asked, texts[name, sample], sample)
        for name, sample in sorted(texts, key=lambda key: (list(ROWS).index(key[0]), key[1]))
    )
    path = metrics.write(table, folder / ANSWERS_FILE)
    kept.remove()
    figures = metrics.figures(table) | {
        "target": about.name,
        "ego_history": p.prompt.ego_history,
        "constrained": p.evaluation.constrained,
        "num_short": windows.num_short,
        "num_unknown": windows.num_unknown,
        "split_sha256": split.sha256_of(p),
    }
    if (by_protocol := protocol_figures(p, table, windows)) is not None:
        figures["protocol"] = by_protocol
    return Evaluated(table, figures, path)


def _rows(p: Params, windows: Windows, chosen: Sequence[int]) -> list[Row]:
    """The rows that models answer, including those of sampled answers."""

    def past_motion(index: int) -> str:
        return samples.past_words(p, functools.partial(windows.past, index))

    shown = models.shown(p, windows)
    row = functools.partial(
        Row.of, indices=chosen, batch_size=p.evaluation.batch_size, histories=past_motion
    )
    rows = [row(view, name=name) for name, view in shown.items()]
    asked = protocol_ids.protocol_of(p)
    seed = asked.seed if asked else p.run.seed
    sampling = Sampling(p.evaluation.temperature, p.evaluation.top_p, seed)
    return rows + [
        row(shown["adapted"], name="adapted", sampling=sampling, sample=sample)
        for sample in range(1, _num_samples(p) + 1)
    ]


def _num_samples(p: Params) -> int:
    """Sampled answers per window; 0 unless the target has a future, for which minADE is defined."""
    return p.evaluation.num_samples if "future" in parts_of(p.training.target) else 0


def _checked(p: Params, windows: Windows) -> dict[str, Any]:
    """The adapter's record, after checking that no scored clip was used for training."""
    folder, header = adapter.adapter_dir(p), windows.cache.header
    record = adapter.read_record(folder)
    load.check_adapter(folder, p, header)
    ids = {windows[i].clip_id for i in range(len(windows))}
    if p.evaluation.protocol:
        ids |= set(protocol_ids.clip_ids(p))
    leaks.check_all(p, windows.cache, ids, record, locate=model_path.base_location)
    if (blind := models.blind_adapter(p)) is not None:
        load.check_adapter(blind, p.blinded() or p, header)
        leaks.check_training_lists(ids, {"the blind adapter": adapter.read_record(blind)})
    return record


def _key(p: Params, windows: Windows) -> str:
    """Hash of everything that the answers depend on."""
    choices = {} if p.evaluation.server else load.choices_of(p)
    folders = [adapter.adapter_dir(p), models.blind_adapter(p)]
    whole = [path for folder in folders if folder for path in folder.iterdir() if path.is_file()]
    return answer.key_of(
        params=p.values(
            *("processing", "vision", "prompt", "model", "training.target", "evaluation"),
            "run.seed",
        ),
        adapter={f"{path.parent.name}/{path.name}": files.sha256_file(path) for path in whole},
        cache=windows.cache.digest,
        choices={name: choice.value for name, choice in choices.items()},
    )


def protocol_figures(p: Params, table: pa.Table, windows: Windows) -> dict[str, Any] | None:
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
    asked = protocol_ids.protocol_of(p)
    if asked is None:
        return None
    scores, ids = Scores(table), protocol_ids.clip_ids(p)
    true_m = scores.future_m
    names = [name for name in PROTOCOL_ROWS if name in scores.models]
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


def protocol_table(scored: dict[str, Any]) -> pd.DataFrame:
    """The table as text, from 06's figures; empty if the run has no protocol."""
    found = scored.get("protocol")
    if not found:
        return pd.DataFrame()
    lines = [
        {
            "row": row["name"] + (" (quoted, not run here)" if row["quoted"] else ""),
            **{name: f"{row[name]:.3f}" if name in row else "" for name in MEASURES},
            "source": row.get("source", f"{row.get('num_clips')} of {found['num_ids']} clips"),
        }
        for row in found["rows"]
    ]
    return pd.DataFrame(lines)
