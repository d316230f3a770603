"""What a caller gave, read strictly: arrays of plain numbers, times, text, whole numbers, videos.

Every error names the argument, the row and the clip. `Mistakes` gathers them, so that a call is
refused once with all that is wrong with it.
"""

from __future__ import annotations

import contextlib
import datetime
import numbers
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avomni_lib.dataset import checks, streams
from avomni_lib.dataset.findings import DAMAGED
from avomni_lib.errors import AvomniError

SHOWN_MISTAKES = 20
TIME_FIX = (
    "give seconds as numbers: np.asarray(t, 'datetime64[ns]').astype('int64') / 1e9, or "
    "[t.timestamp() for t in times]"
)
NUMBERS_FIX = "give numbers, as np.asarray(values, dtype=np.float64)"
NO_VALUE_FIX = "leave out the rows that have no value"
# Units that times may have been given in, in units a second.
UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
# float32 holds about seven digits; times that it holds no finer than this are no times of frames.
TIME_RESOLUTION_S = 1e-3
# An H.264 or H.265 stream without a container begins with a start code (ITU-T H.264, Annex B).
START_CODES = (b"\0\0\0\1", b"\0\0\1")
REMUX = "ffmpeg -framerate RATE -i IN -c copy OUT.mp4 gives every frame one, at the camera's RATE"
# Kind of a finding -> what to do.
VIDEO_FIXES = {
    "no presentation times": REMUX,
    "unknown codec": "encode it anew where it plays: ffmpeg -i IN -crf 16 OUT.mp4",
    "no video": "name the file that holds the camera's pictures",
    "the mp4 does not open": "ffmpeg -i IN -c copy OUT.mp4 puts most other videos into an mp4",
    "does not start with a key frame": "cut it again without -c copy: ffmpeg -ss START -t SECONDS "
    "-i IN.mp4 -crf 16 OUT.mp4",
}


@dataclass(frozen=True)
class Argument:
    """An argument, and the clip that it was given for, as errors name them."""

    name: str
    clip: str | None = None

    def error(self, what: str, row: int | None = None, fix: str | None = None) -> AvomniError:
        parts = (self.name, None if row is None else f"row {row}", self.clip)
        return AvomniError(what, where=", ".join(filter(None, parts)), fix=fix)


class Mistakes(list[AvomniError]):
    """All that is wrong with a call; `raise_all` raises it as one error."""

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep an AvomniError of the block instead of raising it."""
        try:
            yield
        except AvomniError as error:
            self.append(error)

    def raise_all(self) -> None:
        if len(self) == 1:
            raise self[0]
        if self:
            parts = [str(error).replace("\n", "\n  ") for error in self[:SHOWN_MISTAKES]]
            parts += [f"and {len(self) - len(parts)} more"] * (len(self) > len(parts))
            places = dict.fromkeys(error.where for error in self[:SHOWN_MISTAKES] if error.where)
            raise AvomniError(
                f"{len(self)} mistakes:\n" + "\n".join(f"- {part}" for part in parts),
                where="; ".join(places) or None,
            )


def array(
    value: Any,
    at: Argument,
    *shapes: tuple[int | None, ...],
    most: float = np.inf,
    resolution: float = np.inf,
) -> np.ndarray:
    """Finite float64 numbers of one of `shapes`, in which None stands for any length.

    Raises:
        AvomniError: dates, text, booleans, complex numbers, masked values, objects, rows of
            different lengths, another shape, NaN, infinity, a size beyond `most`, or float32 that
            holds the greatest no finer than `resolution`.
    """
    values = _numbers(value, at)
    if not any(_is_of(values.shape, shape) for shape in shapes):
        wanted = " or ".join(map(_shape_text, shapes))
        is_turned = values.ndim == 2 and any(_is_of(values.shape[::-1], shape) for shape in shapes)
        fix = f"give {at.name}.T" if is_turned else None
        raise at.error(f"{at.name} of shape {values.shape}, expected {wanted}", fix=fix)
    for index in np.argwhere(~np.isfinite(values))[:1]:
        what = f"{at.name} is {values[tuple(index)]} at row {_index_text(index)}: not a number "
        raise at.error(what + "that can be used", index[0], NO_VALUE_FIX)
    for index in np.argwhere(np.abs(values) > most)[:1]:
        what = f"{at.name} is {values[tuple(index)]:g} at row {_index_text(index)}, beyond "
        fix = "look at the unit, and leave out rows that hold a placeholder"
        raise at.error(what + f"{most:.2g}: no value of a car", index[0], fix)
    given = np.asarray(value)
    if given.dtype.kind == "f" and given.dtype.itemsize <= 4 and given.size:
        spacing = float(np.spacing(np.abs(given).max()))
        if spacing > resolution:
            what = f"{at.name} is {given.dtype}, which holds numbers of this size only to "
            fix = "read them as float64, or subtract the first one before they become float32"
            raise at.error(what + f"{spacing:.3g}", fix=fix)
    return values


def times(value: Any, at: Argument) -> np.ndarray:
    """(N,) float64 s, rising; at least one."""
    values = array(value, at, (None,), resolution=TIME_RESOLUTION_S)
    for row in np.flatnonzero(np.diff(values) <= 0)[:1] + 1:
        before, after = values[row - 1], values[row]
        how = "has the time of the row before" if before == after else "goes back"
        what = f"{at.name} must rise from row to row: timestamps do not rise at row {row}, which "
        fix = "leave out rows that stand twice; sort only if the rows belong together"
        raise at.error(what + f"{how}: {before:.6f} then {after:.6f} s", row, fix)
    return values


def text(value: Any, at: Argument, is_needed: bool = False) -> None:
    """Refuse what is no text that a table can hold; None is fine where nothing `is_needed`."""
    if value is None and not is_needed:
        return
    if not isinstance(value, str) or (is_needed and not value):
        expected = "expected text" + ("" if is_needed else " or None")
        raise at.error(f"{at.name} is {_shown(value)}, {expected}")
    if not value.isprintable():  # control characters, and halves of characters too
        raise at.error(f"{at.name} is {value!r}, which holds characters that cannot be printed")


def whole(value: Any, at: Argument, least: int, most: int) -> None:
    """Refuse what is no whole number from `least` to `most`; None is fine."""
    try:
        is_number = value is not None and not isinstance(value, bool | np.bool_)
        number = operator.index(value) if is_number else None
    except TypeError:
        number = None
    if value is not None and (number is None or not least <= number <= most):
        is_digits = isinstance(value, str) and value.strip().isdigit()
        what = f"{at.name} is {_shown(value)}, expected a whole number from {least} to {most}, or "
        fix = f"give int({value!r})" if is_digits else None
        raise at.error(what + "None where it is not known", fix=fix)


def unit_of(step: float, usual_s: float) -> str | None:
    """The unit other than seconds in which a step that usually takes `usual_s` was given, if any.

    Within a factor of 16 each way: no step belongs to two units.
    """
    ratios = {name: step / scale / usual_s for name, scale in UNITS.items()}
    return next((name for name, ratio in ratios.items() if 1 / 16 < ratio < 16), None)


def video(value: Any, at: Argument) -> streams.Walked:
    """What a video holds, read packet by packet.

    Whatever its name is, it is a file's: `a:b.mp4` and `http://a.mp4` are opened on the disk.

    Raises:
        AvomniError: it is no path of a file, does not open, or is damaged (`streams`).
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise at.error(f"{at.name} is {value!r:.80}, expected a path")
    path = Path(value)
    try:
        if not path.exists():
            raise at.error(f"there is no video {path}", fix="look at the path")
        if path.is_dir():
            raise at.error(f"{path} is a folder, expected a video", fix="name the file in it")
        # A pipe would be waited for.
        fault = "" if path.is_file() else "is not a regular file"
        if fault or not path.stat().st_size:
            raise at.error(f"no video that opens: {path} {fault or 'is empty'}")
    except (OSError, ValueError) as error:
        raise at.error(f"no video that opens: {path}: {error}") from None
    walked = checks.video(path)
    damaged = [finding for finding in walked.findings if finding.severity == DAMAGED]
    if not damaged:
        return walked
    fix = VIDEO_FIXES.get(damaged[0].what)
    if not walked.facts:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if file.read(4).startswith(START_CODES):
                fix = f"a raw H.264 or H.265 stream has no times: {REMUX}"
    what = "; ".join(finding.reason for finding in damaged)
    raise AvomniError(what, where=f"{path}, {at.name}, {at.clip}", fix=fix)


def _numbers(value: Any, at: Argument) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        for index in np.argwhere(np.ma.getmaskarray(value))[:1]:
            what = f"{at.name} is masked at row {_index_text(index)}"
            raise at.error(what, index[0], NO_VALUE_FIX)
        value = value.data
    if value is None:
        raise at.error(f"{at.name} is missing")
    try:
        values = np.asarray(value)
    except Exception as error:  # lists of unequal lengths, tensors on a device, any other object
        ragged, reason, fix = _ragged_row(value), str(error), NUMBERS_FIX
        if ragged is not None:
            reason = f"row {ragged} is {_shown(value[ragged])}, row 0 {_shown(value[0])}"
            fix = "give every row as many numbers"
        raise at.error(f"{at.name} is no array of numbers: {reason}", ragged, fix) from None
    row: int | None = None
    what, fix = f"{values.dtype}", NUMBERS_FIX
    match values.dtype.kind:
        case "f" | "i" | "u":
            return values.astype(np.float64)
        case "M":
            what, fix = f"dates ({values.dtype})", TIME_FIX
        case "m":
            fix = "give seconds as numbers: t / np.timedelta64(1, 's')"
        case "U" | "S":
            what, row = "text", 0
        case "O":
            what, row, fix = _odd_object(values)
    first = "" if row is None or not values.ndim else f": row {row} is {_shown(values[row])}"
    raise at.error(f"{at.name} holds {what}{first}, expected numbers", row, fix)


def _odd_object(values: np.ndarray) -> tuple[str, int | None, str]:
    """What an array of objects holds that is no number, its row, and what to give instead."""
    if not values.ndim:
        return f"a {type(values.item()).__name__}", None, NUMBERS_FIX
    for row, element in enumerate(values):
        for item in np.ravel(np.asarray(element, object)):
            if isinstance(item, datetime.date | np.datetime64):
                return "dates", row, TIME_FIX
            if isinstance(item, datetime.timedelta | np.timedelta64):
                return "time differences", row, "give [t.total_seconds() for t in times]"
            if isinstance(item, bool | np.bool_) or not isinstance(item, numbers.Real):
                return f"a {type(item).__name__}", row, NUMBERS_FIX
    return "objects", 0, NUMBERS_FIX


def _ragged_row(value: Any) -> int | None:
    """The first row that is unlike row 0 in its length."""
    try:
        sizes = [len(row) if hasattr(row, "__len__") else -1 for row in value]
        return next((row for row, size in enumerate(sizes) if size != sizes[0]), None)
    except Exception:
        return None


def _is_of(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        b in (None, a) for a, b in zip(shape, wanted, strict=True)
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    sizes = ", ".join("K" if size is None else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _index_text(index: np.ndarray) -> str:
    """`12`, or `12, column 1`."""
    return str(index[0]) + (f", column {index[1]}" if len(index) > 1 else "")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"a {type(value).__name__} ({shown[:60]}…)"
