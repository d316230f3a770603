"""A table of answers as matrices: a line for each row of the ladder, a column for each window.

What was said stands beside what is true; where an answer cannot be read, what the mean says of that
window stands in its place.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from avomni_lib.errors import AvomniError
from avomni_lib.training.targets import Said, Target, target
from avomni_lib.training.targets.form import bare

MODEL = "adapted"  # the row that the run is about
FALLBACK = "mean"  # the row that stands in for an answer that cannot be read
NUM_WAYPOINTS, NUM_FUTURE = 16, 64
WORDS = ("along", "across", "cause")


@dataclass(frozen=True, eq=False)
class Aligned:
    """The rows of a table, window by window.

    Attributes:
        table: As `metrics.SCHEMA`.
        target: What all its answers speak about.
        names: The R rows of the ladder, in the order of the table.
        clips: (n,) int64, ascending: a number for each clip; n windows in all, by clip_id and
            number.
        places: (R, n) int64, the place in `table` of each greedy answer.
        sampled: Of the rows that have any, (K, n) places of the sampled answers.
    """

    table: pa.Table
    target: str
    names: tuple[str, ...]
    clips: np.ndarray
    places: np.ndarray
    sampled: dict[str, np.ndarray]

    @classmethod
    def of(cls, table: pa.Table) -> Aligned:
        """Find each row's answer for each window.

        Raises:
            AvomniError: there is no answer, they are of several targets, a row did not answer for
                the same windows as the others, each once, or the mean's own cannot be read.
        """
        names, rows = _codes(table, "model")
        targets, _ = _codes(table, "target")
        if len(targets) != 1:
            what = f"answers of {' and '.join(targets)} in one table" if targets else "no answers"
            raise _broken(what)
        clips, clip_codes = _codes(table, "clip_id")
        # By name: tables of the same windows have them in the same order.
        clip_codes = np.argsort(np.argsort(np.array(clips)))[clip_codes]
        keys = np.stack([clip_codes, table["window"].to_numpy()], axis=1)
        sample = table["sample"].to_numpy()
        first = names.index(FALLBACK) if FALLBACK in names else 0
        asked = _sorted(keys, np.flatnonzero((rows == first) & (sample == 0)))
        places, sampled = [], {}
        for row, name in enumerate(names):
            own = rows == row
            of_kind = [
                _matched(keys, np.flatnonzero(own & (sample == kind)), asked, name, names[first])
                for kind in np.unique(np.append(sample[own], 0))
            ]
            places.append(of_kind[0])
            if len(of_kind) > 1:
                sampled[name] = np.stack(of_kind[1:])
        found = cls(table, targets[0], tuple(names), clip_codes[asked], np.stack(places), sampled)
        if FALLBACK in names and not found.valid[first].all():
            raise _broken(f"an answer of {FALLBACK!r}, which stands in for others, cannot be read")
        return found

    @property
    def num_clips(self) -> int:
        return len(np.unique(self.clips))

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """(R, n) bool: whether the answer can be read."""
        return self.table["valid"].to_numpy()[self.places]

    @functools.cached_property
    def exact(self) -> np.ndarray:
        """(R, n) bool: whether it has the full form, to the letter."""
        return self.table["exact"].to_numpy()[self.places]

    def true(self, name: str) -> np.ndarray:
        """(n,) of a column that is the window's, whoever answers; null is NaN or None."""
        column = self.table[name].take(pa.array(self.places[0]))
        if pa.types.is_floating(column.type):
            return column.to_numpy()
        return np.array(column.to_pylist(), dtype=object)

    def future_true_m(self) -> np.ndarray:
        """(n, 64, 2) float64, the driven path."""
        lists = self.table["future_true_m"].take(pa.array(self.places[0])).combine_chunks()
        if lists.null_count or len(lists.flatten()) != len(lists) * NUM_FUTURE * 2:
            raise _broken("a window has no true path")
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, NUM_FUTURE, 2)

    def numbers(self, name: str) -> np.ndarray:
        """(R, n) float64 that was said, from the column of that name."""
        return self._filled(self.table[name].to_numpy()[self.places])

    def words(self, field: str) -> np.ndarray:
        """(R, n) str or None that was said: `along`, `across` or `cause`."""
        return self._filled(self._told.words[field][self._texts[1][self.places]])

    def own_numbers(self) -> np.ndarray:
        """(R, n, K) float64: the numbers of a target of the user's own that were said."""
        said = self._told.numbers[self._texts[1][self.places]]
        fallback = said[self.names.index(FALLBACK)] if FALLBACK in self.names else np.nan
        return np.where(np.isnan(said), fallback, said)

    def own_true(self) -> np.ndarray:
        """(n, K) float64: the same numbers that are true."""
        return np.array(self.table["numbers_true"].take(pa.array(self.places[0])).to_pylist())

    def matches(self) -> np.ndarray:
        """(R, n) bool: whether an answer is the very text that the model was to say."""
        about, answers = target(self.target), self._texts[0]
        true = [about.write(Said(numbers=tuple(numbers))) for numbers in self.own_true()]
        said = np.array([*answers, None], dtype=object)[self._texts[1][self.places]]
        return np.array(
            [[text == bare(one or "") for one, text in zip(row, true, strict=True)] for row in said]
        )

    def waypoints_m(self, windows: slice = slice(None)) -> np.ndarray:
        """(R, m, 16, 2) float64 that was said about some windows, in the rig's frame."""
        return self._paths(self.places[:, windows], windows)

    def sampled_m(self, name: str, windows: slice = slice(None)) -> np.ndarray:
        """(m, K, 16, 2) float64: the sampled answers of one row about some windows."""
        return self._paths(self.sampled[name][:, windows], windows).swapaxes(0, 1)

    def _paths(self, places: np.ndarray, windows: slice) -> np.ndarray:
        told, codes = self._told.waypoints_m, self._texts[1]
        paths = told[codes[places]]
        if FALLBACK not in self.names:
            return paths
        fallback = told[codes[self.places[self.names.index(FALLBACK), windows]]]
        return np.where(np.isnan(paths).any(axis=(-2, -1), keepdims=True), fallback, paths)

    def _filled(self, said: np.ndarray) -> np.ndarray:
        if FALLBACK not in self.names:
            return said
        missing = np.isnan(said) if said.dtype.kind == "f" else np.equal(said, None)
        return np.where(missing, said[self.names.index(FALLBACK)], said)

    @functools.cached_property
    def _texts(self) -> tuple[list[str], np.ndarray]:
        return _codes(self.table, "answer")

    @functools.cached_property
    def _told(self) -> _Told:
        return _Told.of(self._texts[0], target(self.target))


@dataclass(frozen=True)
class _Told:
    """What each of N different texts says, and in the last place, N, what saying nothing does.

    Attributes:
        waypoints_m: (N + 1, 16, 2) float64, NaN where there are none.
        words: `along`, `across`, `cause` -> (N + 1,) str or None.
        numbers: (N + 1, K) float64 of a target of the user's own, NaN where there are none.
    """

    waypoints_m: np.ndarray
    words: dict[str, np.ndarray]
    numbers: np.ndarray

    @classmethod
    def of(cls, texts: list[str], about: Target) -> _Told:
        waypoints = np.full((len(texts) + 1, NUM_WAYPOINTS, 2), np.nan)
        words = {field: np.full(len(texts) + 1, None, dtype=object) for field in WORDS}
        numbers = np.full((len(texts) + 1, len(about.numbers)), np.nan)
        for i, text in enumerate(texts):
            said = about.read(text)
            if said is None:
                continue
            if said.waypoints_m is not None:
                waypoints[i] = said.waypoints_m
            if said.numbers is not None:
                numbers[i] = said.numbers
            for field, values in words.items():
                values[i] = getattr(said, field)
        return cls(waypoints, words, numbers)


def _codes(table: pa.Table, name: str) -> tuple[list[str], np.ndarray]:
    """The different values of a column as they come, and the place of each row's among them."""
    column = table[name].combine_chunks().dictionary_encode()
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return column.dictionary.to_pylist(), codes.astype(np.int64)


def _sorted(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    return places[np.lexsort(keys[places].T[::-1])]


def _matched(
    keys: np.ndarray, places: np.ndarray, asked: np.ndarray, name: str, first: str
) -> np.ndarray:
    """The places in the order of the windows that were asked about.

    Raises:
        AvomniError: they are not of these windows, each once.
    """
    places = _sorted(keys, places)
    if np.array_equal(keys[places], keys[asked]) and len(np.unique(keys[asked], axis=0)) == len(
        asked
    ):
        return places
    own, others = set(map(tuple, keys[places].tolist())), set(map(tuple, keys[asked].tolist()))
    raise _broken(
        f"{name!r} has {len(places)} rows for {len(own & others)} of the {len(others)} windows "
        f"that {first!r} has"
    )


def _broken(what: str) -> AvomniError:
    return AvomniError(what, where="answers.parquet", fix="run 06_evaluate again")
