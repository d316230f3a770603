"""The ladder: the adapted model beside the best constants, its own base and its blind self."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from avomni_lib import files, hardware
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import answer, baselines, metrics
from avomni_lib.params import Params
from avomni_lib.plan import Bar, Plan
from avomni_lib.training import adapter

if TYPE_CHECKING:
    from avomni_lib.etl.windows import Windows
    from avomni_lib.training.targets import Target

ANSWERS_FILE = "answers.parquet"
KEPT_FILE = "answers.partial.jsonl"
ROWS = {
    "mean": "mean of the training split",
    "median": "median of the training split",
    "base": "base model, not adapted",
    "blind": "adapted model, shown black frames",
    "adapted": "adapted model",
}
# Fewer held-out windows or clips than these make a score that the next seed may turn over.
FEW_WINDOWS, FEW_CLIPS = 200, 20


@dataclass(frozen=True)
class Evaluated:
    """What came out of an evaluation.

    Attributes:
        answers: One row a window and model (`metrics.SCHEMA`).
        figures: As in `result.json`, recomputable from `answers` by `metrics.figures`.
        path: `answers.parquet`.
    """

    answers: pa.Table
    figures: dict[str, Any]
    path: Path

    def score(self, model: str) -> metrics.Score:
        return metrics.score(self.answers, model)

    def _lines(self) -> list[tuple[str, ...]]:
        head = ("row", "speed MAE, m/s", "RMSE, m/s", "displacement MAE, m", "answers that parse")
        lines = [head]
        for model in metrics.models(self.answers):
            of = self.score(model)
            said = "" if model in ("mean", "median") else f"{of.num_valid:,} of {of.num_windows:,}"
            errors = (of.speed_mae_mps, of.speed_rmse_mps, of.displacement_mae_m)
            lines.append((ROWS.get(model, model), *(f"{value:.3f}" for value in errors), said))
        return lines

    def __str__(self) -> str:
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in self._lines()
        )
        return f"<table>{rows}</table>"


@dataclass(frozen=True)
class Spoken:
    """One window and what is said about it.

    Attributes:
        clip_id: Whose window it is.
        frames: (T, H, W, 3) uint8 RGB.
        true: The target's text.
        base: The base model's answer.
        adapted: The adapted model's; None where it was not asked.
        speed_true_mps: What the car drove.
        speed_base_mps, speed_adapted_mps: Read back; None where an answer does not parse.
    """

    clip_id: str
    frames: np.ndarray
    true: str
    base: str
    adapted: str | None
    speed_true_mps: float
    speed_base_mps: float | None
    speed_adapted_mps: float | None


def held_out_windows(p: Params) -> Windows:
    """The windows of the split that the score is made on.

    Raises:
        AvomniError: no cache, splits that share a clip, or no window in the split.
    """
    from avomni_lib.etl.memmap import Cache
    from avomni_lib.etl.windows import Windows, check_leaks

    cache = Cache.open(p.cache_dir)
    check_leaks(cache)
    length, stride = p.processing.sequence_length, p.processing.stride
    windows = Windows(cache, length, stride, split=p.evaluation.split)
    if not len(windows):
        raise AvomniError(
            f"no window to score: no clip of the split {p.evaluation.split!r} has {length} frames",
            where=str(p.cache_dir),
            fix="take more chunks (download.target_chunks), choose another evaluation.split, "
            "or lower processing.sequence_length",
        )
    return windows


def thinned(num_windows: int, max_windows: int | None) -> list[int]:
    """Indices of at most `max_windows` windows, evenly spaced over all of them."""
    num = min(num_windows, max_windows or num_windows)
    return [i * num_windows // num for i in range(num)]


def plan(p: Params) -> Plan:
    """Windows, clips and answers, before any model is loaded.

    Raises:
        AvomniError: no cache, no held-out window, no trained adapter, or one that was trained on
            a held-out clip.
    """
    windows = held_out_windows(p)
    chosen = thinned(len(windows), p.evaluation.max_windows)
    record = _record(p, windows)
    num_clips = len({windows[i].clip_id for i in chosen})
    num_answers = 2 * len(chosen) + 1
    thinning = "" if len(chosen) == len(windows) else f", thinned from {len(windows):,}"
    rows = [
        ("windows", f"{len(chosen):,}", f"split {p.evaluation.split}{thinning}"),
        ("clips", f"{num_clips:,}", "none of them was trained on"),
        ("adapter", f"of {record['base_model']}", f"in {adapter.adapter_dir(p)}"),
        (
            "answers",
            f"{num_answers:,}",
            f"base and adapted each, {p.evaluation.batch_size} at a time, "
            f"{p.evaluation.max_new_tokens} tokens at most; one blind",
        ),
    ]
    few = len(chosen) < FEW_WINDOWS or num_clips < FEW_CLIPS
    warning = (
        f"{len(chosen):,} windows of {num_clips} clips make a coarse score (fewer than "
        f"{FEW_WINDOWS} or {FEW_CLIPS}): take more chunks or raise evaluation.max_windows"
    )
    figures = {"num_windows": len(chosen), "num_clips": num_clips, "num_answers": num_answers}
    return Plan("what 06_evaluate will do", rows, [warning] if few else [], figures)


def evaluate(p: Params, folder: Path, progress: type[Bar] = Bar) -> Evaluated:
    """Ask base and adapted model about the held-out windows and score all rows of the ladder.

    Killed at any moment, the same call goes on after the last whole batch of answers.

    Args:
        folder: The stage's, where `answers.parquet` goes.

    Raises:
        AvomniError: see `plan`; the adapter does not belong to these parameters.
    """
    from avomni_lib.training import samples

    windows = held_out_windows(p)
    _record(p, windows)
    chosen = thinned(len(windows), p.evaluation.max_windows)
    constants = baselines.constants(_truths(samples.train_windows(p)))
    with progress(total=2 * len(chosen) + 1, unit="answer", label="evaluating") as bar:
        tuned, talk, choices = _models(p, windows)
        kept = answer.Kept(folder / KEPT_FILE, _key(p, windows, choices))
        options = {
            "batch_size": p.evaluation.batch_size,
            "max_new_tokens": p.evaluation.max_new_tokens,
            "kept": kept,
            "bar": bar,
        }
        with tuned.disable_adapter():
            base = answer.answers(tuned, talk, windows, chosen, name="base", **options)
        blind = answer.blind_answers(tuned, talk, windows, chosen, p.evaluation.max_new_tokens)
        bar.update(1, note="blind")
        adapted = answer.answers(tuned, talk, windows, chosen, name="adapted", **options)
    num = len(chosen)
    said = {name: [constants[name]] * num for name in constants}
    texts = {name: [None] * num for name in constants}
    for name, spoken in (("base", base), ("blind", blind), ("adapted", adapted)):
        texts[name], said[name] = spoken, [talk.target.parse(text) for text in spoken]
    places = [(windows[i].clip_id, windows[i].number) for i in chosen]
    true = list(_truths(windows, chosen))
    table = pa.concat_tables(
        metrics.rows(name, *zip(*places, strict=True), true, said[name], texts[name])
        for name in ROWS
    )
    path = metrics.write(table, folder / ANSWERS_FILE)
    kept.remove()
    return Evaluated(table, metrics.figures(table), path)


def before_after(p: Params, window: int = 0, adapted: bool = True) -> Spoken:
    """What the base model and the adapted one say about the same held-out window.

    Args:
        window: Index in the windows of `evaluation.split`.
        adapted: Ask the adapted model too; before there is one only the base can be asked.

    Raises:
        AvomniError: see `plan`; there is no such window.
    """
    windows = held_out_windows(p)
    if not 0 <= window < len(windows):
        raise AvomniError(
            f"no window {window}: the split {p.evaluation.split!r} has {len(windows)}, from 0",
        )
    frames = np.array(windows.frames(window))
    target, before, after = _said(p, windows, frames, adapted)
    hardware.release_memory()  # the training that follows is another process
    truth = windows.truth(window)
    read = [target.parse(text or "") for text in (before, after)]
    return Spoken(
        clip_id=windows[window].clip_id,
        frames=frames,
        true=target.render(truth),
        base=before,
        adapted=after,
        speed_true_mps=truth.speed_mps,
        speed_base_mps=read[0] and read[0].speed_mps,
        speed_adapted_mps=read[1] and read[1].speed_mps,
    )


def _said(
    p: Params, windows: Windows, frames: np.ndarray, adapted: bool
) -> tuple[Target, str, str | None]:
    """The target, and what the base and the adapted model say about one window's frames."""
    model, talk, _ = _models(p, windows, adapted)

    def say() -> str:
        return answer.say(model, talk, frames[None], p.evaluation.max_new_tokens)[0]

    if not adapted:
        return talk.target, say(), None
    after = say()
    with model.disable_adapter():
        return talk.target, say(), after


def _models(p: Params, windows: Windows, adapted: bool = True) -> tuple[Any, Any, dict[str, Any]]:
    """The base model with or without its adapter, the conversation, and what was chosen."""
    from avomni_lib.training import model, samples
    from avomni_lib.training.backbones import backbone

    base = model.load_base(p)
    kind = backbone(p.model.backbone, base.model.config)
    talk = samples.conversation_of(p, windows, base.tokenizer, kind)
    if not adapted:
        return base.model.eval(), talk, base.choices
    return model.load_adapter(base.model, adapter.adapter_dir(p), p), talk, base.choices


def _record(p: Params, windows: Windows) -> dict[str, Any]:
    """What the adapter was made from; it must not have seen a clip that it is scored on."""
    folder = adapter.adapter_dir(p)
    record = adapter.read_record(folder)
    held_out = {windows[i].clip_id for i in range(len(windows))}
    seen = sorted(held_out & set(record["training_clip_ids"]))
    if seen:
        raise AvomniError(
            f"the adapter was trained on {len(seen)} of the {len(held_out)} clips of the split "
            f"{p.evaluation.split!r}, such as {seen[0]}",
            where=str(folder),
            fix="run 05_train again: the splits have changed since",
        )
    return record


def _truths(windows: Windows, indices: list[int] | None = None) -> list[tuple[float, float]]:
    """(speed m/s, displacement m) of windows; displacement is the length of the path driven."""
    indices = range(len(windows)) if indices is None else indices
    truths = [windows.truth(i) for i in indices]
    return [(truth.speed_mps, truth.path_m) for truth in truths]


def _key(p: Params, windows: Windows, choices: dict[str, Any]) -> str:
    """Hash of all that answers follow from."""
    whole = [path for path in adapter.adapter_dir(p).iterdir() if path.is_file()]
    return answer.key_of(
        params=p.values("processing", "vision", "model", "training.target", "evaluation"),
        adapter={path.name: files.sha256_file(path) for path in whole},
        cache=windows.cache.digest,
        choices={name: choice.value for name, choice in choices.items()},
    )
