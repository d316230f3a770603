"""The windows that are scored, resumable answers of models to them, and answers before and after.

Every finished batch is appended to a file beside the stage's outputs, and a run that is killed
resumes after the last complete batch. Batches always hold the same windows, and each has its own
random seed, so the result is bit-identical with or without an interruption.

The answers before and after training are written by the training process of 05, which has the model
loaded (`training.fit.job`); `before` and `after` wait for them and add the ground truth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib import files
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.windows import Windows, check_leaks
from avomni_lib.evaluation.metrics import Asked
from avomni_lib.params import Params
from avomni_lib.plan import Bar
from avomni_lib.training.fit import job
from avomni_lib.training.model import adapter, load
from avomni_lib.training.model.generate import Sampling
from avomni_lib.training.prompt import samples
from avomni_lib.training.targets import target, target_of

logger = logging.getLogger(__name__)
ATTRIBUTES = ("country", "hour", "platform")


def held_out_windows(p: Params) -> Windows:
    """The windows of the split that is scored.

    Raises:
        AvomniError: there is no cache, two splits share a clip, or the split has no window.
    """
    windows: Windows = samples.scored_windows(p)
    check_leaks(windows.cache)
    if not len(windows):
        length, horizon = p.processing.sequence_length, target(p.training.target).horizon_s
        short = f" and {horizon:g} s of ego motion after them" if windows.num_short else ""
        what = f"the split {p.evaluation.split!r}"
        if p.evaluation.protocol:
            what = f"{p.evaluation.protocol} is in the cache, or none"
        raise AvomniError(
            f"no window to score: no clip of {what} has {length} frames"
            + (f" after {windows.reach} of the past" if windows.reach else "")
            + short,
            where=str(p.cache_dir),
            fix="take more chunks (download.target_chunks), choose another evaluation.split, "
            "or lower processing.sequence_length",
        )
    return windows


def windows_asked(p: Params, windows: Windows, indices: Sequence[int]) -> list[Asked]:
    """The chosen windows with their ground truth and the attributes of their clips."""
    catalog, asked = None, []
    with contextlib.suppress(AvomniError):
        catalog = Catalog.of(p)  # a run copied from another machine may lack it
    for index in indices:
        clip_id, number = windows[index].clip_id, windows[index].number
        known: dict[str, Any] = {}
        with contextlib.suppress(AvomniError):
            known = catalog.attributes(clip_id) if catalog is not None else {}
        attributes = {name: known.get(name) for name in ATTRIBUTES}
        turn = turn_rad(windows.egomotion(index))
        asked.append(Asked(clip_id, number, windows.truth(index), turn, attributes))
    return asked


def turn_rad(egomotion: np.ndarray) -> float:
    """Change of heading over a window's rows of `egomotion`, in rad, positive to the left."""
    ahead = Rotation.from_quat(egomotion[:, 3:7]).apply((1.0, 0.0, 0.0))
    heading = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
    return float(heading[-1] - heading[0])


class FrameSource(Protocol):
    """A source of a window's frames (`etl.cache.windows.Windows`, `training.prompt.views`).

    If it has a true attribute `alike`, all windows have the same frames.
    """

    def frames(self, i: int) -> np.ndarray: ...


class Kept:
    """Finished batches of answers, stored in a file of one JSON object per line.

    Args:
        path: The file, created with the first batch.
        key: `key_of` everything that the answers depend on; stored answers with another key are
            dropped.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.key = Path(path), key
        self.batches: dict[tuple[str, int, int], list[str]] = {}
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            with contextlib.suppress(ValueError):  # cut short
                row = json.loads(line)
                if isinstance(row, dict) and row.get("key") == key:
                    self.batches[row["model"], row["sample"], row["batch"]] = row["answers"]
        if self.batches:
            logger.info("%d batches of answers are kept in %s", len(self.batches), self.path)
        elif self.path.exists():
            self.path.unlink()

    def add(self, model: str, sample: int, batch: int, answers: list[str]) -> None:
        """Append a batch; it is on disk when this returns."""
        self.batches[model, sample, batch] = answers
        row = {"key": self.key, "model": model, "sample": sample, "batch": batch}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            # Terminates a line that a kill has cut short; that line is skipped on reading.
            lead = b"\n" if file.tell() else b""
            file.write(lead + json.dumps(row | {"answers": answers}).encode())
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def key_of(**follows_from: Any) -> str:
    """The key of answers that depend on these plain values."""
    return files.hash_json(follows_from)


@dataclass(frozen=True)
class Batch:
    """Windows that are answered together.

    Attributes:
        sample: Index of the answer to a window: 0 is greedy, from 1 on sampled.
        number: Index of the batch within the row.
        histories: Text of the car's past motion in each window's prompt.
        sampling: How the answers are sampled, with the batch's own seed; None decodes greedily.
    """

    row: str
    sample: int
    number: int
    indices: tuple[int, ...]
    histories: tuple[str, ...]
    sampling: Sampling | None = None

    @property
    def place(self) -> tuple[str, int, int]:
        """Key under which the batch's answers are stored."""
        return self.row, self.sample, self.number


@dataclass(frozen=True)
class Row:
    """A row of the ladder: one answer to each of its windows, in batches.

    Attributes:
        places: For each window, the index of its answer among the answers of all batches.
    """

    name: str
    sample: int
    batches: tuple[Batch, ...]
    places: tuple[int, ...]

    @classmethod
    def of(
        cls,
        windows: FrameSource,
        indices: Sequence[int],
        batch_size: int,
        *,
        name: str = "adapted",
        sample: int = 0,
        histories: Callable[[int], str] | None = None,
        sampling: Sampling | None = None,
    ) -> Row:
        """Split windows into batches.

        If all windows have the same frames (black ones) and answers are greedy, windows with the
        same prompt are asked once and share the answer.

        Args:
            histories: Index -> text of the car's past motion in the prompt; None adds no text.
            sampling: How to sample the answers; its seed, `name`, `sample` and the batch's number
                make up the seed of a batch.
        """
        asked = [int(i) for i in indices]
        past_motion = [histories(i) if histories else "" for i in asked]
        places = list(range(len(asked)))
        if sampling is None and getattr(windows, "alike", False):
            # One window per history, and the index of its answer for each window.
            by_history: dict[str, int] = {}
            places = [by_history.setdefault(words, len(by_history)) for words in past_motion]
            asked = [asked[past_motion.index(words)] for words in by_history]
            past_motion = list(by_history)
        batches = []
        for number, first in enumerate(range(0, len(asked), batch_size)):
            part = slice(first, first + batch_size)
            drawn = sampling
            if sampling is not None:
                digest = files.hash_json([sampling.seed, name, sample, number])
                drawn = dataclasses.replace(sampling, seed=int(digest[:15], 16))
            batches.append(
                Batch(name, sample, number, tuple(asked[part]), tuple(past_motion[part]), drawn)
            )
        return cls(name, sample, tuple(batches), tuple(places))

    def texts(self, answered: Mapping[tuple[str, int, int], list[str]]) -> list[str]:
        """One answer per window, from the answers of the batches."""
        texts = [text for batch in self.batches for text in answered[batch.place]]
        return [texts[place] for place in self.places]

    def num_answered(self) -> dict[tuple[str, int, int], int]:
        """Number of windows for which each batch provides the answer."""
        answered = {}
        first = 0
        for batch in self.batches:
            last = first + len(batch.indices)
            answered[batch.place] = sum(first <= place < last for place in self.places)
            first = last
        return answered


# Answers batches in any order: in this process, in others or on a server.
Asker = Callable[[Iterable[Batch]], Iterator[tuple[Batch, list[str]]]]


def one_by_one(opened: Callable[[], Callable[[Batch], list[str]]]) -> Asker:
    """Answer batches one after the other; the model is opened with the first one."""

    def ask(batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[str]]]:
        model = None
        for batch in batches:
            model = model or opened()
            yield batch, model(batch)

    return ask


def ask_all(
    rows: Sequence[Row], ask: Asker, kept: Kept | None = None, bar: Bar | None = None
) -> dict[tuple[str, int], list[str]]:
    """(row, sample) -> answers in the order of the windows; stored batches are not asked again.

    Args:
        bar: Advances by one per window.
    """
    answered = dict(kept.batches) if kept else {}
    num = {place: count for row in rows for place, count in row.num_answered().items()}
    batches = [batch for row in rows for batch in row.batches]
    for batch in batches:
        if bar and batch.place in answered:
            bar.update(num[batch.place], note=batch.row)
    for batch, texts in ask(batch for batch in batches if batch.place not in answered):
        answered[batch.place] = texts
        if kept:
            kept.add(*batch.place, texts)
        if bar:
            bar.update(num[batch.place], note=batch.row)
    return {(row.name, row.sample): row.texts(answered) for row in rows}


@dataclass(frozen=True)
class ComparedWindow:
    """One window with its ground truth and the models' answers.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        adapted: None before training.
        speed_base_mps, speed_adapted_mps: Parsed from the answers; None if an answer has no speed.
    """

    clip_id: str
    frames: np.ndarray
    ground_truth: str
    base: str
    adapted: str | None
    speed_ground_truth_mps: float
    speed_base_mps: float | None
    speed_adapted_mps: float | None


def before(p: Params) -> list[ComparedWindow]:
    """A few windows of `evaluation.split` and the base model's answers to them.

    Starts the training process if none runs; it waits for `trainer.train` before it trains.

    Raises:
        AvomniError: there is no cache, the split has no window, or the process failed.
    """
    windows = held_out_windows(p)
    return _answered(p, windows, _predictions(p, windows, job.BEFORE_FILE, pauses=True), {})


def after(p: Params) -> list[ComparedWindow]:
    """The same windows with the adapted model's answers as well.

    Raises:
        AvomniError: as `before`; there is no adapter that matches `p`.
    """
    windows = held_out_windows(p)
    load.check_adapter(adapter.adapter_dir(p), p, windows.cache.header)
    adapted = _predictions(p, windows, job.AFTER_FILE)
    return _answered(p, windows, _predictions(p, windows, job.BEFORE_FILE), adapted)


def _predictions(p: Params, windows: Windows, name: str, pauses: bool = False) -> dict[int, str]:
    """The answers written by the training process, by index of the window."""
    predictions = job.awaited(p, name, windows.cache.digest, pauses)
    if predictions is None:  # a process with another `evaluation` section was running
        raise AvomniError(
            f"the training left no answers of these windows in {name}",
            where=str(p.checkpoints_dir),
            fix="run the same cell again",
        )
    return {int(index): text for index, text in predictions.items()}


def _answered(
    p: Params, windows: Windows, base: dict[int, str], adapted: dict[int, str]
) -> list[ComparedWindow]:
    target, answered = target_of(p), []
    for index, text in base.items():
        truth, texts = windows.truth(index), (text, adapted[index] if adapted else None)
        answers = [target.read(text or "") for text in texts]
        speeds = [answer.speed_mps if answer else None for answer in answers]
        answered.append(
            ComparedWindow(
                windows[index].clip_id,
                np.array(windows.frames(index)),
                target.render(truth),
                *texts,
                truth.speed_mps,
                *speeds,
            )
        )
    return answered
