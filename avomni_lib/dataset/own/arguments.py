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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

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
# Steps of a clock that is read as seconds, and what they are if another unit was meant.
UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
# m and m/s, so that arithmetic does not overflow: the Moon's distance, and more than 3600 km/h.
FARTHEST_M, FASTEST_MPS = 3.8e8, 1e6
# float32 holds about seven digits; times that it holds no finer than this are no times of frames.
TIME_RESOLUTION_S = 1e-3
# A quaternion printed with two decimals is this far from unit length.
UNIT_TOLERANCE = 0.02
# Two whole turns: a heading beyond was hardly counted on, and 13 is a usual one in degrees.
LARGEST_HEADING_RAD = 4 * np.pi
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
        """Raise what was kept, if anything was."""
        if not self:
            return
        if len(self) == 1:
            raise self[0]
        parts = [str(error).replace("\n", "\n  ") for error in self[:SHOWN_MISTAKES]]
        more = len(self) - len(parts)
        parts += [f"and {more} more"] * bool(more)
        places = dict.fromkeys(error.where for error in self[:SHOWN_MISTAKES] if error.where)
        raise AvomniError(
            f"{len(self)} mistakes:\n" + "\n".join(f"- {part}" for part in parts),
            where="; ".join(places) or None,
        )


def refusal(
    what: str, argument: str, where: str | None, row: int | None = None, fix: str | None = None
) -> AvomniError:
    """The error for an argument of the clip that `where` names."""
    parts = (argument, None if row is None else f"row {row}", where)
    return AvomniError(what, where=", ".join(filter(None, parts)), fix=fix)


def array(
    value: Any,
    argument: str,
    where: str | None,
    shapes: tuple[tuple[int | None, ...], ...],
    most: float = np.inf,
) -> np.ndarray:
    """Finite float64 numbers of one of `shapes`, in which None stands for any length.

    Raises:
        AvomniError: dates, text, booleans, complex numbers, masked values, objects, rows of
            different lengths, another shape, NaN, infinity or a size beyond `most`; with argument
            and row.
    """
    values = _numbers(value, argument, where)
    if not any(_is_of(values.shape, shape) for shape in shapes):
        wanted = " or ".join(map(_shape_text, shapes))
        turned = any(_is_of(values.shape[::-1], shape) for shape in shapes) and values.ndim == 2
        what = f"{argument} of shape {values.shape}, expected {wanted}"
        raise refusal(what, argument, where, fix=f"give {argument}.T" if turned else None)
    for index in np.argwhere(~np.isfinite(values))[:1]:
        what = f"{argument} is {values[tuple(index)]} at row {_index_text(index)}: not a number "
        raise refusal(what + "that can be used", argument, where, index[0], NO_VALUE_FIX)
    for index in np.argwhere(np.abs(values) > most)[:1]:
        what = f"{argument} is {values[tuple(index)]:g} at row {_index_text(index)}, beyond "
        fix = "look at the unit, and leave out rows that hold a placeholder"
        raise refusal(what + f"{most:.2g}: no value of a car", argument, where, index[0], fix)
    return values


def times(value: Any, argument: str, where: str | None) -> np.ndarray:
    """(N,) float64 s, rising; at least one.

    Raises:
        AvomniError: as `array`; float32 that cannot hold them; two equal ones; one out of order.
    """
    values = array(value, argument, where, ((None,),))
    if _resolution(value) > TIME_RESOLUTION_S:
        raise refusal(
            f"{argument} is {np.asarray(value).dtype}, which holds times of this size only to "
            f"{_resolution(value):.3g} s",
            argument,
            where,
            fix="read them as float64, or subtract the first one before they become float32",
        )
    falls = np.flatnonzero(np.diff(values) <= 0)
    if len(falls):
        row = int(falls[0]) + 1
        before, after = values[row - 1], values[row]
        how = "has the time of the row before" if before == after else "goes back"
        raise refusal(
            f"{argument} must rise from row to row: timestamps do not rise at row {row}, which "
            f"{how}: {before:.6f} then {after:.6f} s",
            argument,
            where,
            row,
            "leave out rows that stand twice; sort only if the rows belong together",
        )
    return values


def positions(
    value: Any,
    argument: str,
    where: str | None,
    num_rows: int,
    resolution: float = 1e-2,
    farthest: float = FARTHEST_M,
) -> np.ndarray:
    """(K, 2) or (K, 3) float64 within `farthest`, given at least as finely as `resolution`."""
    values = array(value, argument, where, ((num_rows, 2), (num_rows, 3)), farthest)
    if _resolution(value) > resolution:
        raise refusal(
            f"{argument} is {np.asarray(value).dtype}, which holds values of this size only to "
            f"{_resolution(value):.2g}: no speed can be had from them",
            argument,
            where,
            fix="read them as float64",
        )
    return values


def headings(value: Any, where: str | None, num_rows: int) -> np.ndarray:
    """(K,) float64 rad, within two whole turns."""
    heading = array(value, "heading_rad", where, ((num_rows,),))
    for row in np.flatnonzero(np.abs(heading) > LARGEST_HEADING_RAD)[:1]:
        raise refusal(
            f"heading_rad is {heading[row]:g} at row {row}, more than two whole turns: it looks "
            "like degrees",
            "heading_rad",
            where,
            row,
            "give np.radians(heading_rad); or, if turns were counted on, heading_rad % (2 * np.pi)",
        )
    return heading


def quaternions(value: Any, where: str | None, num_rows: int) -> np.ndarray:
    """(K, 4) float64 of unit length, in the order in which they were given.

    Args:
        value: Numbers, or scipy's Rotation of K turns.
    """
    value = value.as_quat() if isinstance(value, Rotation) else value
    quaternion = array(value, "quaternion", where, ((num_rows, 4),))
    norm = np.linalg.norm(quaternion, axis=1)
    for row in np.flatnonzero(np.abs(norm - 1) > UNIT_TOLERANCE)[:1]:
        raise refusal(
            f"quaternion is no rotation at row {row}: {quaternion[row].tolist()} has length "
            f"{norm[row]:.4g}, not 1",
            "quaternion",
            where,
            row,
            "leave out rows without a rotation; divide the others by their length",
        )
    return quaternion


def text(value: Any, argument: str, where: str | None, is_needed: bool = False) -> None:
    """Refuse what is no text that a table can hold; None is fine where nothing `is_needed`."""
    if value is None and not is_needed:
        return
    if not isinstance(value, str) or (is_needed and not value):
        expected = "expected text" + ("" if is_needed else " or None")
        raise refusal(f"{argument} is {_shown(value)}, {expected}", argument, where)
    if not value.isprintable():  # control characters, and halves of characters too
        what = f"{argument} is {value!r}, which holds characters that cannot be printed"
        raise refusal(what, argument, where)


def whole(value: Any, argument: str, where: str | None, least: int, most: int) -> None:
    """Refuse what is no whole number from `least` to `most`; None is fine."""
    if value is None:
        return
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        is_digits = isinstance(value, str) and value.strip().isdigit()
        raise refusal(
            f"{argument} is {_shown(value)}, expected a whole number from {least} to {most}, or "
            "None where it is not known",
            argument,
            where,
            fix=f"give int({value!r})" if is_digits else None,
        )


def mapping(value: Any, argument: str, where: str | None, example: str) -> Mapping[Any, Any]:
    """A mapping from camera to something."""
    if not isinstance(value, Mapping):
        what = f"{argument} is {_shown(value)}, expected a mapping of cameras"
        raise refusal(what, argument, where, fix=f"give it as {example}")
    return value


def unit_of(step: float, usual_s: float) -> str | None:
    """The unit other than seconds in which a step that usually takes `usual_s` was given, if any.

    Within a factor of 16 each way: no step belongs to two units.
    """
    ratios = {name: step / scale / usual_s for name, scale in UNITS.items()}
    return next((name for name, ratio in ratios.items() if 1 / 16 < ratio < 16), None)


def video_path(value: Any, argument: str, where: str) -> Path:
    """A given path, if it is that of a file that holds something.

    Whatever the name is, it is a file's: `a:b.mp4` and `http://a.mp4` are opened on the disk.

    Raises:
        AvomniError: it is no path, or there is no such file.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise refusal(f"{argument} is {value!r:.80}, expected a path", argument, where)
    path = Path(value)
    try:
        if not path.exists():
            raise refusal(f"there is no video {path}", argument, where, fix="look at the path")
        if path.is_dir():
            what, fix = f"{path} is a folder, expected a video", "name the file in it"
            raise refusal(what, argument, where, fix=fix)
        # A pipe would be waited for.
        if not path.is_file():
            fault = "is not a regular file"
        elif not path.stat().st_size:
            fault = "is empty"
        else:
            return path
    except (OSError, ValueError) as error:
        raise refusal(f"no video that opens: {path}: {error}", argument, where) from None
    raise refusal(f"no video that opens: {path} {fault}", argument, where)


def walk_video(path: Path, argument: str, where: str) -> streams.Walked:
    """What a video holds, read packet by packet.

    Raises:
        AvomniError: it does not open, or is damaged (`streams`).
    """
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
    raise AvomniError(what, where=f"{path}, {argument}, {where}", fix=fix)


def _numbers(value: Any, argument: str, where: str | None) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        for index in np.argwhere(np.ma.getmaskarray(value))[:1]:
            what = f"{argument} is masked at row {_index_text(index)}"
            raise refusal(what, argument, where, index[0], NO_VALUE_FIX)
        value = value.data
    if value is None:
        raise refusal(f"{argument} is missing", argument, where)
    try:
        values = np.asarray(value)
    except Exception as error:  # lists of unequal lengths, tensors on a device, any other object
        row, reason, fix = _ragged_row(value), str(error), NUMBERS_FIX
        if row is not None:
            reason = f"row {row} is {_shown(value[row])}, row 0 {_shown(value[0])}"
            fix = "give every row as many numbers"
        what = f"{argument} is no array of numbers: {reason}"
        raise refusal(what, argument, where, row, fix) from None
    kind = values.dtype.kind
    if kind in "fiu":
        return values.astype(np.float64)
    what, row, fix = f"{values.dtype}", None, NUMBERS_FIX
    if kind == "M":
        what, fix = f"dates ({values.dtype})", TIME_FIX
    elif kind == "m":
        fix = "give seconds as numbers: t / np.timedelta64(1, 's')"
    elif kind in "US":
        what, row = "text", 0
    elif kind == "O":
        what, row, fix = _odd_object(values)
    first = "" if row is None or not values.ndim else f": row {row} is {_shown(values[row])}"
    raise refusal(f"{argument} holds {what}{first}, expected numbers", argument, where, row, fix)


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


def _resolution(value: Any) -> float:
    """The distance of two neighbouring numbers at the greatest of them, as it was given."""
    given = np.asarray(value)
    if given.dtype.kind != "f" or given.dtype.itemsize > 4 or not given.size:
        return 0.0
    return float(np.spacing(np.abs(given).max()))


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
