"""Ego motion under test: order, rotations, gaps, jumps, speeds, and online against offline.

What the ETL would refuse is `damaged`, and only where a run needs it: the recording goes on for two
minutes after the video. What it would take, but no car does, is `odd`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from avomni_lib.dataset.findings import DAMAGED, ODD, Finding

MAX_GAP_S = 0.5
# float64 quaternions of unit length that were stored as float32 stay within this.
UNIT_TOLERANCE = 1e-3
# A step of positions against the mean of the speeds at its ends. A pose filter's own noise is
# millimetres (a real drive with a survey-grade pose at 20 Hz: 1 mm at most); the speed's bend
# between two rows adds a·dt²/2, with the 12 m/s² of tyres at their limit. The label is printed in
# hundredths of a metre, so a quarter of one is worth a look; a metre the ETL refuses.
JUMP_M, REFUSED_JUMP_M, MAX_ACCELERATION = 0.25, 1.0, 12.0
# Positions and speeds over half a second, and over all that is needed (which the ETL refuses).
SPAN_S, SPEED_TOLERANCE = 0.5, (1.0, 0.1)
PATH_TOLERANCE = (2.0, 0.1)
# Tyres hold 12 m/s², a crash or an error is above; 70 m/s is 252 km/h; cars turn by 1 rad/s.
LIMIT_ACCELERATION, LIMIT_SPEED, LIMIT_TURN, TURN_SLACK = 15.0, 70.0, 2.0, 0.035
# Wheel and inertial odometry drift by 1 to 2 % of the way; below half a metre it is noise.
OFFLINE_TOLERANCE = (0.5, 0.02)
UNUSED = ("ax", "ay", "az", "curvature")


def check(
    columns: Mapping[str, np.ndarray], first_us: int, last_us: int, horizon_s: float
) -> tuple[dict[str, Any], list[Finding]]:
    """Facts about a clip's ego motion, and what is wrong with it.

    Args:
        columns: `clip.EGOMOTION_COLUMNS`, (N,) each; timestamp int64 µs, the rest float64.
        first_us, last_us: The span of the clip's cameras.
        horizon_s: Seconds that a run wants after it.

    Returns:
        Facts as plain values: first_us, last_us, num_rows, rate_hz (median), past_video_s,
        longest_gap_s and speed_mps (least, greatest) where it is needed; and findings without a
        place.
    """
    times = columns["timestamp"]
    facts: dict[str, Any] = {"num_rows": len(times)}
    if len(times) < 2:
        told = f"ego motion has {len(times)} rows"
        return facts, [Finding(DAMAGED, "too few rows", told)]
    facts |= {"first_us": int(times[0]), "last_us": int(times[-1])}
    steps = np.diff(times)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0))
        told = f"ego motion is not in order: {times[row]} then {times[row + 1]} µs at row {row + 1}"
        return facts, [Finding(DAMAGED, "not in order", told)]
    facts["rate_hz"] = round(1e6 / float(np.median(steps)), 1)
    facts["past_video_s"] = round((int(times[-1]) - last_us) / 1e6, 2)
    found = list(_coverage(times, first_us, last_us, horizon_s))
    needed = np.flatnonzero((times >= first_us) & (times <= last_us + horizon_s * 1e6))
    if len(needed) < 2:
        return facts, found
    # The rows on both sides are read too, to interpolate.
    part = slice(max(needed[0] - 1, 0), min(needed[-1] + 2, len(times)))
    finite = list(_finite(columns, part))
    found += finite
    if any(finding.severity == DAMAGED for finding in finite):
        return facts, found
    cut = {name: values[part] for name, values in columns.items()}
    facts["longest_gap_s"] = round(float(np.diff(cut["timestamp"]).max()) / 1e6, 3)
    speed = np.linalg.norm(_vectors(cut, "v"), axis=1)
    facts["speed_mps"] = [round(float(speed.min()), 2), round(float(speed.max()), 2)]
    jumps = list(_jumps(cut, part.start))
    found += [*_gaps(cut, part.start), *_rotations(cut, part.start), *jumps]
    # A jump is one fault, not three.
    found += [
        f for f in (*_speeds(cut), *_accelerations(cut)) if f.severity == DAMAGED or not jumps
    ]
    return facts, found


def _coverage(
    times: np.ndarray, first_us: int, last_us: int, horizon_s: float
) -> Iterator[Finding]:
    if times[0] > first_us or times[-1] < last_us:
        told = f"ego motion covers {_span(times[0], times[-1])}, the cameras "
        yield Finding(DAMAGED, "does not cover the cameras", told + _span(first_us, last_us))
    elif times[-1] < last_us + horizon_s * 1e6:
        told = (
            f"ego motion ends {(times[-1] - last_us) / 1e6:.2f} s after the last frame; "
            f"processing.horizon_s is {horizon_s:g}"
        )
        yield Finding(ODD, "shorter than the horizon", told)


def _finite(columns: Mapping[str, np.ndarray], part: slice) -> Iterator[Finding]:
    for name, values in columns.items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            inside = wrong[(wrong >= part.start) & (wrong < part.stop)]
            row = int((inside if len(inside) else wrong)[0])
            told = f"{name} is {values[row]} at row {row}, {columns['timestamp'][row] / 1e6:.2f} s"
            is_refused = len(inside) and name not in UNUSED
            yield Finding(DAMAGED if is_refused else ODD, "not a number", told)


def _gaps(columns: Mapping[str, np.ndarray], start: int) -> Iterator[Finding]:
    times = columns["timestamp"]
    steps = np.diff(times)
    row = int(np.argmax(steps))
    if steps[row] > MAX_GAP_S * 1e6:
        told = (
            f"a gap of {steps[row] / 1e6:.2f} s in ego motion at {times[row] / 1e6:.2f} s "
            f"(row {start + row})"
        )
        yield Finding(DAMAGED, "a gap", told)


def _rotations(columns: Mapping[str, np.ndarray], start: int) -> Iterator[Finding]:
    quaternion = np.stack([columns[name] for name in ("qx", "qy", "qz", "qw")], axis=1)
    norm = np.linalg.norm(quaternion, axis=1)
    row = int(np.argmax(np.abs(norm - 1)))
    if abs(norm[row] - 1) > UNIT_TOLERANCE:
        told = f"no rotation at row {start + row}: |q| = {norm[row]:.4f}"
        yield Finding(DAMAGED, "|q| is not 1", told)
        return
    # q and -q are the same rotation.
    cosine = np.abs((quaternion[1:] * quaternion[:-1]).sum(axis=1)) / (norm[1:] * norm[:-1])
    turn = 2 * np.arccos(np.clip(cosine, 0, 1))
    beyond = turn - LIMIT_TURN * np.diff(columns["timestamp"]) / 1e6
    row = int(np.argmax(beyond))
    if beyond[row] > TURN_SLACK:
        at = columns["timestamp"][row + 1] / 1e6
        told = f"turns by {np.degrees(turn[row]):.1f}° from one row to the next at {at:.2f} s"
        yield Finding(ODD, "a jump of rotation", told)


def _jumps(columns: Mapping[str, np.ndarray], start: int) -> Iterator[Finding]:
    dt = np.diff(columns["timestamp"]) / 1e6
    step = np.linalg.norm(np.diff(_vectors(columns), axis=0), axis=1)
    speed = np.linalg.norm(_vectors(columns, "v"), axis=1)
    # Lengths, not vectors: they hold whatever frame the velocities are given in.
    off = np.abs(step - (speed[1:] + speed[:-1]) / 2 * dt)
    # Against the other rows: a speed that is off everywhere is no jump.
    beyond = off - np.median(off) - MAX_ACCELERATION / 2 * dt**2
    row = int(np.argmax(beyond))
    if beyond[row] > JUMP_M:
        at = columns["timestamp"][row + 1] / 1e6
        told = (
            f"position jumps by {off[row]:.2f} m against the speed at {at:.2f} s "
            f"(row {start + row + 1})"
        )
        severity = DAMAGED if off.max() > REFUSED_JUMP_M else ODD
        yield Finding(severity, "a jump of position", told)


def _speeds(columns: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    times = columns["timestamp"] / 1e6
    position, speed = _vectors(columns), np.linalg.norm(_vectors(columns, "v"), axis=1)
    if speed.max() > LIMIT_SPEED:
        row = int(np.argmax(speed))
        told = f"{speed[row]:.1f} m/s at {times[row]:.2f} s"
        yield Finding(ODD, "too fast", told)
    told_m = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(times))])
    # Places half a second apart: a chord of a curve is as good as its arc there.
    marks = np.arange(times[0], times[-1], SPAN_S)
    place = np.stack([np.interp(marks, times, column) for column in position.T], axis=1)
    driven = np.linalg.norm(np.diff(place, axis=0), axis=1)
    by_speed = np.diff(np.interp(marks, times, told_m))
    path, whole = driven.sum(), by_speed.sum()
    if abs(path - whole) > PATH_TOLERANCE[0] + PATH_TOLERANCE[1] * max(path, whole):
        told = f"positions cover {path:.1f} m, speeds {whole:.1f} m"
        yield Finding(DAMAGED, "positions and speeds disagree", told)
        return
    off = np.abs(driven - by_speed) / SPAN_S
    limit = SPEED_TOLERANCE[0] + SPEED_TOLERANCE[1] * by_speed / SPAN_S
    if len(off) and (off > limit).any():
        row = int(np.argmax(off - limit))
        told = (
            f"|v| is {by_speed[row] / SPAN_S:.2f} m/s, positions move at "
            f"{driven[row] / SPAN_S:.2f} m/s from {marks[row]:.2f} to {marks[row + 1]:.2f} s"
        )
        yield Finding(ODD, "positions and speeds disagree", told)


def _accelerations(columns: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    times, velocity = columns["timestamp"] / 1e6, _vectors(columns, "v")
    marks = np.arange(times[0], times[-1], SPAN_S)
    at_marks = np.stack([np.interp(marks, times, column) for column in velocity.T], axis=1)
    change = np.linalg.norm(np.diff(at_marks, axis=0), axis=1) / SPAN_S
    if len(change) and change.max() > LIMIT_ACCELERATION:
        row = int(np.argmax(change))
        told = (
            f"velocity changes by {change[row]:.1f} m/s² over half a second at {marks[row]:.2f} s"
        )
        yield Finding(ODD, "acceleration that no car has", told)


def offline(
    online: Mapping[str, np.ndarray], refined: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], list[Finding]]:
    """How far the positions driven by are from those computed afterwards.

    Both are given in a frame of the clip's own, so the refined track is first laid over the other.

    Args:
        online: timestamp, x, y, z of `egomotion`.
        refined: The same of `egomotion.offline`.

    Returns:
        Facts: offline_off_m (mean, max); and findings without a place.
    """
    times = refined["timestamp"]
    common = (times >= online["timestamp"][0]) & (times <= online["timestamp"][-1])
    places = _vectors(refined)[common]
    if len(places) < 2 or not np.isfinite(places).all():
        told = f"{len(places)} rows of egomotion.offline lie within egomotion, or are no numbers"
        return {}, [Finding(ODD, "offline cannot be compared", told)]
    track = _vectors(online)
    at = np.stack([np.interp(times[common], online["timestamp"], xyz) for xyz in track.T], axis=1)
    off = np.linalg.norm(_laid_over(places, at) - at, axis=1)
    length = float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())
    facts = {"offline_off_m": [round(float(off.mean()), 3), round(float(off.max()), 3)]}
    limit = OFFLINE_TOLERANCE[0] + OFFLINE_TOLERANCE[1] * length
    if off.max() <= limit:
        return facts, []
    when = times[common][int(np.argmax(off))] / 1e6
    told = (
        f"online and offline positions differ by {off.max():.2f} m at {when:.2f} s, after "
        f"{length:.1f} m; {limit:.2f} m would be drift"
    )
    return facts, [Finding(ODD, "online against offline", told)]


def _laid_over(places: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(N, 3) places moved onto others: turned about the vertical, shifted, and tilted a little.

    Least squares without scale. A full rotation in space would not do: on a level road it could lay
    a turn to the left over one to the right, with the car on its roof.
    """
    left, right = places - places.mean(axis=0), at - at.mean(axis=0)
    flat, onto = left[:, 0] + 1j * left[:, 1], right[:, 0] + 1j * right[:, 1]
    yaw = np.angle(np.vdot(flat, onto))
    turned = flat * np.exp(1j * yaw)
    # Small angles of tilt raise a place in proportion to how far away it lies.
    base = np.stack([turned.real, turned.imag], axis=1)
    tilt, *_ = np.linalg.lstsq(base, right[:, 2] - left[:, 2], rcond=None)
    laid = np.column_stack([base, left[:, 2] + base @ tilt])
    return laid + at.mean(axis=0)


def _vectors(columns: Mapping[str, np.ndarray], prefix: str = "") -> np.ndarray:
    return np.stack([columns[prefix + axis] for axis in "xyz"], axis=1)


def _span(first_us: float, last_us: float) -> str:
    return f"{first_us / 1e6:.2f} to {last_us / 1e6:.2f} s"
