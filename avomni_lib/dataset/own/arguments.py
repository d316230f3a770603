"""Strict validation of arguments: arrays of numbers, times, text, integers and videos.

Every error names the argument, the row and the clip. `Mistakes` collects them, so that a call is
refused once with all its mistakes.
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
# float32 has about seven digits; coarser times than this cannot be frame times.
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
    """Name of an argument and its clip, for errors."""

    name: str
    clip: str | None = None

    def error(self, what: str, row: int | None = None, fix: str | None = None) -> AvomniError:
        parts = (self.name, None if row is None else f"row {row}", self.clip)
        return AvomniError(what, where=", ".join(filter(None, parts)), fix=fix)


class Mistakes(list[AvomniError]):
    """The mistakes of a call; `raise_all` raises them as one error."""

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Collect an AvomniError of the block instead of raising it."""
        try:
            yield
        except AvomniError as error:
            self.append(error)

    def raise_all(self) -> None:
        if len(self) == 1:
            raise self[0]
        if self:
            parts = ["- " + str(error).replace("\n", "\n  ") for error in self[:SHOWN_MISTAKES]]
            if len(self) > SHOWN_MISTAKES:
                parts.append(f"- and {len(self) - SHOWN_MISTAKES} more")
            places = dict.fromkeys(error.where for error in self[:SHOWN_MISTAKES] if error.where)
            what = "\n".join([f"{len(self)} mistakes:", *parts])
            raise AvomniError(what, where="; ".join(places) or None)


def array(
    value: Any, at: Argument, *shapes: tuple, most: float = np.inf, resolution: float = np.inf
) -> np.ndarray:
    """Finite float64 numbers of one of `shapes`, in which None is any length.

    Raises:
        AvomniError: dates, text, booleans, complex numbers, masked values, objects, rows of
            different lengths, another shape, NaN, infinity, magnitudes above `most`, or float32
            whose spacing at the largest value exceeds `resolution`.
    """
    if isinstance(value, np.ma.MaskedArray):
        for row, *_ in np.argwhere(np.ma.getmaskarray(value))[:1]:
            raise at.error(f"{at.name} is masked at row {row}", row, NO_VALUE_FIX)
        value = value.data
    try:
        given = np.asarray(value)
    except Exception as error:  # rows of unequal lengths, tensors on a device, any other object
        what = f"{at.name} is no array of numbers: {_uneven_row(value) or error}"
        raise at.error(what, fix="give every row as many numbers") from None
    if given.dtype.kind not in "fiu":
        raise _no_numbers(given, at)
    values = given.astype(np.float64)

    def fits(shape: tuple) -> bool:
        return any(
            len(shape) == len(wanted)
            and all(w in (None, size) for w, size in zip(wanted, shape, strict=True))
            for wanted in shapes
        )

    if not fits(values.shape):
        wanted = " or ".join(map(str, shapes)).replace("None", "K")
        fix = f"give {at.name}.T" if values.ndim == 2 and fits(values.shape[::-1]) else None
        raise at.error(f"{at.name} of shape {values.shape}, expected {wanted}", fix=fix)
    for index in np.argwhere(~(np.abs(values) <= min(most, np.finfo(float).max)))[:1]:
        number, fix = values[tuple(index)], NO_VALUE_FIX
        why = "not a number that can be used"
        if np.isfinite(number):
            why = f"beyond {most:.2g}: no value of a car"
            fix = "look at the unit, and leave out rows that hold a placeholder"
        raise at.error(f"{at.name} is {number:g} at row {index[0]}: {why}", index[0], fix)
    if given.dtype.kind == "f" and given.dtype.itemsize <= 4 and given.size:
        spacing = float(np.spacing(np.abs(given).max()))
        if spacing > resolution:
            what = f"{at.name} is {given.dtype}, which holds numbers of this size only to "
            fix = "read them as float64, or subtract the first one before they become float32"
            raise at.error(what + f"{spacing:.3g}", fix=fix)
    return values


def _uneven_row(value: Any) -> str | None:
    with contextlib.suppress(Exception):
        for row, item in enumerate(value):
            if np.shape(item) != np.shape(value[0]):
                return f"row {row} is {item!r:.80}, row 0 {value[0]!r:.80}"
    return None


def _no_numbers(given: np.ndarray, at: Argument) -> AvomniError:
    """The error for an array that is not numeric."""
    what, row, fix = str(given.dtype), None, NUMBERS_FIX
    match given.dtype.kind:
        case "M":
            what, fix = f"dates ({given.dtype})", TIME_FIX
        case "m":
            fix = "give seconds as numbers: t / np.timedelta64(1, 's')"
        case "U" | "S":
            what = f"text: {given!r:.80}"
        case "O" if not given.ndim:
            what = f"a {type(given.item()).__name__}"
        case "O":
            what = "objects"
            for index, item in np.ndenumerate(given):
                if isinstance(item, bool) or not isinstance(item, numbers.Real):
                    is_date = isinstance(item, datetime.date | np.datetime64)
                    what, row = f"a {type(item).__name__}: {item!r:.80}", index[0]
                    what, fix = (f"dates: {item!r}", TIME_FIX) if is_date else (what, fix)
                    break
    at_row = "" if row is None else f" at row {row}"
    return at.error(f"{at.name} holds {what}{at_row}, expected numbers", row, fix)


def times(value: Any, at: Argument) -> np.ndarray:
    """(N,) float64 s, increasing, N ≥ 1."""
    values = array(value, at, (None,), resolution=TIME_RESOLUTION_S)
    for row in np.flatnonzero(np.diff(values) <= 0)[:1] + 1:
        before, after = values[row - 1], values[row]
        how = "has the time of the row before" if before == after else "goes back"
        what = f"{at.name} must rise from row to row: timestamps do not rise at row {row}, which "
        fix = "leave out rows that stand twice; sort only if the rows belong together"
        raise at.error(what + f"{how}: {before:.6f} then {after:.6f} s", row, fix)
    return values


def text(value: Any, at: Argument, is_needed: bool = False) -> None:
    """Refuse anything but printable text; None is allowed unless `is_needed`."""
    if value is None and not is_needed:
        return
    if not isinstance(value, str) or (is_needed and not value):
        expected = "text" if is_needed else "text or None"
        raise at.error(f"{at.name} is {value!r:.80}, expected {expected}")
    if not value.isprintable():  # control characters, and halves of characters too
        raise at.error(f"{at.name} is {value!r}, which holds characters that cannot be printed")


def whole(value: Any, at: Argument, least: int, most: int) -> None:
    """Refuse anything but an integer from `least` to `most` or None."""
    with contextlib.suppress(TypeError):
        is_bool = isinstance(value, bool | np.bool_)
        if value is None or not is_bool and least <= operator.index(value) <= most:
            return
    what = f"{at.name} is {value!r:.80}, expected a whole number from {least} to {most}, or None"
    is_digits = isinstance(value, str) and value.strip().isdigit()
    raise at.error(what, fix=f"give int({value!r})" if is_digits else None)


def unit_of(step: float, usual_s: float) -> str | None:
    """The unit other than seconds in which `step` may be given if a step usually takes `usual_s`.

    A factor of 16 each way is tolerated, so that units are unambiguous.
    """
    ratios = {name: step / scale / usual_s for name, scale in UNITS.items()}
    return next((name for name, ratio in ratios.items() if 1 / 16 < ratio < 16), None)


def video(value: Any, at: Argument) -> streams.Walked:
    """Read and check a video packet by packet.

    The value is always the path of a file: `a:b.mp4` and `http://a.mp4` are opened on the disk.

    Raises:
        AvomniError: it is not the path of a file, does not open, or is damaged (`streams`).
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise at.error(f"{at.name} is {value!r:.80}, expected a path")
    path = Path(value)
    try:
        if not path.exists():
            raise at.error(f"there is no video {path}", fix="look at the path")
        if path.is_dir():
            raise at.error(f"{path} is a folder, expected a video", fix="name the file in it")
        if not path.is_file():  # opening a pipe would block
            raise at.error(f"no video that opens: {path} is not a regular file")
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
