"""The criteria for damaged clips, shared by 01_audit, 03_etl and `own.pack`.

video      a camera's stream, read packet by packet (`streams`)
clock      the timestamps of its frames; `agree` compares them with the video
egomotion  the poses of the car, as far as a run needs them
calibration.row  a row of a lens, a mount or a car

Each returns `findings.Finding`s without a place. All three leave out `damaged` clips
(`findings.refuse`); unusual clips, which they accept, are `odd`. The limits are in `limits`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import limits, streams
from avomni_lib.dataset.findings import DAMAGED, ODD, Finding
from avomni_lib.dataset.streams import NotVideo

K = TypeVar("K")
UNUSED = ("ax", "ay", "az", "curvature")


def video(source: streams.Source) -> streams.Walked:
    """Read and check a video's packets; a file that is no video is a finding too."""
    try:
        with streams.opened(source) as (container, peek):
            if container.streams.video:
                span = source if isinstance(source, streams.TimeRange) else None
                return streams.Scan(container, peek, span).walk()
            fault = Finding(DAMAGED, "no video", "the mp4 has no video")
    except (NotVideo, OSError) as error:
        reason = error.what if isinstance(error, NotVideo) else error
        fault = Finding(DAMAGED, "the mp4 does not open", str(reason))
    return streams.Walked({}, [fault], np.zeros(0, np.int64))


def clock(times_us: np.ndarray) -> tuple[dict[str, Any], list[Finding]]:
    """Facts (first_us, last_us) and findings about a camera's timestamps, (N,) int64 µs."""
    if len(times_us) < 2:
        reason = f"the table of timestamps has {len(times_us)} rows; at least 2 are needed"
        return {}, [Finding(DAMAGED, "no timestamps", reason)]
    facts = {"first_us": int(times_us[0]), "last_us": int(times_us[-1])}
    t_s, steps = times_us / 1e6, np.diff(times_us)
    for row in np.flatnonzero(steps <= 0)[:1]:
        reason = f"timestamps do not rise at row {row + 1}: {times_us[row]} then "
        reason += f"{times_us[row + 1]} µs"
        return facts, [Finding(DAMAGED, "timestamps do not rise", reason)]
    findings = []
    if abs(t_s[0]) >= limits.FIRST_S:
        reason = f"the first frame is at {t_s[0]:.3f} s, not within ±{limits.FIRST_S} s of 0"
        findings.append(Finding(ODD, "first frame far from 0", reason))
    step = float(np.median(steps))
    if abs(step / 1e6 / limits.STEP_S - 1) > limits.RATE_TOLERANCE:
        reason = f"{step / 1e3:.1f} ms from frame to frame, not {limits.STEP_S * 1e3:.1f}"
        findings.append(Finding(ODD, "another frame rate", reason))
    gaps, longest = np.flatnonzero(steps > limits.DROPPED * step), int(np.argmax(steps))
    at = f"at {t_s[longest]:.2f} s (row {longest + 1})"
    missing = int(np.rint(steps[gaps] / step - 1).sum())
    if steps[longest] > limits.MAX_GAP_S * 1e6:
        reason = f"no frame for {steps[longest] / 1e6:.2f} s {at}; {limits.MAX_GAP_S} s is the most"
        findings.append(Finding(DAMAGED, "a gap between frames", reason))
    elif len(gaps):
        reason = f"{missing} frames are missing in {len(gaps)} gaps; the longest is "
        reason += f"{steps[longest] / 1e3:.1f} ms {at}"
        findings.append(Finding(ODD, "dropped frames", reason))
    close = np.flatnonzero(steps < limits.TOO_CLOSE * step)
    for row in close[:1]:
        reason = f"{len(close)} frames follow too soon, as {steps[row] / 1e3:.1f} ms at row "
        findings.append(Finding(ODD, "frames too close", reason + str(row + 1)))
    return facts, findings


def agree(video_us: np.ndarray, times_us: np.ndarray, tick_us: float) -> list[Finding]:
    """Check that a camera's video and timestamps are of the same frames.

    For a file with a constant frame rate only the rate can be compared: if the camera dropped a
    frame, only the timestamps have a gap. If the file's intervals vary, it keeps the camera's time,
    and every interval must agree.

    Args:
        video_us: (N,) int64 µs of the frames shown by the file, counted from the first one.
        times_us: (M,) int64 µs, increasing.
        tick_us: One unit of the file's times.
    """
    if len(video_us) != len(times_us):
        reason = f"{len(video_us)} frames in the mp4, {len(times_us)} timestamps"
        return [Finding(DAMAGED, "frames and timestamps differ in number", reason)]
    if len(times_us) < 2:
        return []
    video_steps, clock_steps = np.diff(video_us), np.diff(times_us)
    video_step, clock_step = float(np.median(video_steps)), float(np.median(clock_steps))
    if abs(video_step - clock_step) > limits.CLOCK_TOLERANCE * clock_step:
        reason = (
            f"the video's frames are {video_step / 1e3:.1f} ms apart, those of its timestamps "
            f"{clock_step / 1e3:.1f} ms: they belong to another video"
        )
        return [Finding(DAMAGED, "video and timestamps differ in rate", reason)]
    apart = np.abs(video_steps - clock_steps)
    keeps_time = np.ptp(video_steps) > max(2 * tick_us, limits.CLOCK_TOLERANCE * video_step)
    if keeps_time and apart.max() > limits.INTERVAL_TOLERANCE * video_step:
        row = int(apart.argmax())
        reason = (
            f"frame {row + 1} follows {video_steps[row] / 1e3:.1f} ms after the one before in the "
            f"video, {clock_steps[row] / 1e3:.1f} ms in its timestamps: frames or rows are missing"
        )
        return [Finding(DAMAGED, "video and timestamps differ", reason)]
    return []


def common(spans_us: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(first, last) µs shown by all cameras, from the first and last frame of each.

    If the cameras share no time, `last` is before `first`.
    """
    return max(first for first, _ in spans_us), min(last for _, last in spans_us)


def ends(last_us: Mapping[K, int]) -> dict[K, Finding]:
    """Findings by key for cameras whose last frame is far from the median of all."""
    usual_s = float(np.median([*last_us.values()])) / 1e6 if last_us else 0.0
    what, usual = "ends apart from the others", f"usual here is {usual_s:.2f} s"
    return {
        key: Finding(ODD, what, f"the last frame is at {last / 1e6:.2f} s; {usual}")
        for key, last in last_us.items()
        if abs(last / 1e6 - usual_s) > limits.END_TOLERANCE_S
    }


def egomotion(
    columns: Mapping[str, np.ndarray], first_us: int, last_us: int, horizon_s: float
) -> tuple[dict[str, Any], list[Finding]]:
    """Check a clip's ego motion.

    Args:
        columns: `clip.EGOMOTION_COLUMNS`, (N,) each; timestamp int64 µs, the rest float64.
        first_us, last_us: The time shown by all cameras of the clip (`common`).
        horizon_s: Seconds that a run needs after the last frame.

    Returns:
        Facts as plain values (past_video_s), and findings without a place.
    """
    times = columns["timestamp"]
    findings = list(_order(times))
    if findings:
        return {}, findings
    past_s, first_s, last_s = (int(times[-1]) - last_us) / 1e6, first_us / 1e6, last_us / 1e6
    facts = {"past_video_s": round(past_s, 2)}
    if last_us < first_us:
        reason = f"the first camera ends at {last_s:.2f} s, the last one starts at {first_s:.2f} s"
        return facts, [Finding(DAMAGED, "cameras share no time", reason)]
    if times[0] > first_us or times[-1] < last_us:
        reason = f"ego motion covers {times[0] / 1e6:.2f} to {times[-1] / 1e6:.2f} s, the cameras "
        reason += f"{first_s:.2f} to {last_s:.2f} s"
        findings.append(Finding(DAMAGED, "does not cover the cameras", reason))
    elif times[-1] < last_us + horizon_s * 1e6:
        reason = f"ego motion ends {past_s:.2f} s after the last frame; processing.horizon_s is "
        findings.append(Finding(ODD, "shorter than the horizon", reason + f"{horizon_s:g}"))
    part = needed(times, first_us, last_us, horizon_s)
    return facts, findings + (rows(columns, part) if part.stop - part.start > 1 else [])


def needed(times: np.ndarray, first_us: int, last_us: int, horizon_s: float = 0.0) -> slice:
    """The rows of ascending times (N,) int64 µs needed for this span of the cameras.

    Includes `HISTORY_S` before it, `horizon_s` after it, and a row on both sides to interpolate.
    """
    early, late = first_us - limits.HISTORY_S * 1e6, last_us + horizon_s * 1e6
    start = max(int(np.searchsorted(times, early, side="right")) - 1, 0)
    return slice(start, min(int(np.searchsorted(times, late, side="left")) + 1, len(times)))


def rows(columns: Mapping[str, np.ndarray], part: slice) -> list[Finding]:
    """Check these rows (at least two); row numbers in findings are those of the whole table."""
    findings = list(_finite(columns, part))
    if any(finding.severity == DAMAGED for finding in findings):
        return findings
    cut = {name: values[part] for name, values in columns.items()}
    jumps = list(_jumps(cut, part.start))
    steps = [*_gaps(cut, part.start), *_rotations(cut, part.start)]
    findings += [*steps, *jumps]
    if any(finding.severity == DAMAGED for finding in steps):
        return findings
    # Do not report a jump again as odd speed and acceleration.
    others = [*_slip(cut), *_speeds(cut), *_accelerations(cut)]
    return findings + [f for f in others if f.severity == DAMAGED or not jumps]


def path_length(position: np.ndarray) -> np.ndarray:
    """Metres driven up to each row: (N,) float64, starting at 0, non-decreasing.

    Summing the steps between neighbouring rows would add up the noise of the positions, above all
    at standstill (1 cm at 100 Hz looks like more than 1 m/s). So the path is measured along the
    polygon over rows at least 0.5 m apart, and over the points where the car turned back by more
    than 0.1 m: noise below that adds nothing at rest and little in motion, and the polygon is
    0.04 % too short on a circle of 5 m radius. Only positions are used, as speeds may come from
    another sensor (wheels) and drift.

    Args:
        position: (N, 3) m.
    """
    points = position.tolist()
    knot, done = points[0], 0.0
    far, far_hop = knot, 0.0
    distance = np.zeros(len(points))
    for row, point in enumerate(points):
        hop = math.dist(point, knot)
        if far_hop - hop > limits.BACK_M:
            knot, done = far, done + far_hop
            hop, far_hop = math.dist(point, knot), 0.0
        distance[row] = done + hop
        if hop >= far_hop:
            far, far_hop = point, hop
        if hop >= limits.HOP_M:
            knot, done, far_hop = point, done + hop, 0.0
    return np.maximum.accumulate(distance)


def _order(times: np.ndarray) -> Iterator[Finding]:
    if len(times) < 2:
        reason = f"ego motion has {len(times)} rows; at least 2 are needed"
        yield Finding(DAMAGED, "too few rows", reason)
        return
    # NaN does not compare as rising either.
    for row in np.flatnonzero(~(np.diff(times) > 0))[:1]:
        reason = f"ego motion is not in order: {times[row]} then {times[row + 1]} µs at row "
        yield Finding(DAMAGED, "not in order", reason + str(row + 1))


def _finite(columns: Mapping[str, np.ndarray], part: slice) -> Iterator[Finding]:
    for name, values in columns.items():
        if name == "timestamp":
            continue
        # NaN is not within the limit either.
        wrong = np.flatnonzero(~(np.abs(values) <= limits.MAX_NUMBER))
        inside = wrong[(wrong >= part.start) & (wrong < part.stop)]
        for row in [*inside, *wrong][:1]:
            at_s = columns["timestamp"][row] / 1e6
            is_refused = len(inside) and name not in UNUSED
            reason = f"{name} is {values[row]} at row {row}, {at_s:.2f} s"
            yield Finding(DAMAGED if is_refused else ODD, "not a number", reason)


def _gaps(columns: Mapping[str, np.ndarray], start: int) -> Iterator[Finding]:
    times = columns["timestamp"]
    steps = np.diff(times)
    row = int(np.argmax(steps))
    if steps[row] > limits.MAX_GAP_S * 1e6:
        reason = (
            f"a gap of {steps[row] / 1e6:.2f} s in ego motion at {times[row] / 1e6:.2f} s "
            f"(row {start + row}); {limits.MAX_GAP_S} s is the most"
        )
        yield Finding(DAMAGED, "a gap", reason)


def _rotations(columns: Mapping[str, np.ndarray], start: int) -> Iterator[Finding]:
    quaternion = np.stack([columns[name] for name in ("qx", "qy", "qz", "qw")], axis=1)
    norm = np.linalg.norm(quaternion, axis=1)
    row = int(np.argmax(np.abs(norm - 1)))
    if abs(norm[row] - 1) > limits.UNIT_TOLERANCE:
        reason = f"no rotation at row {start + row}: |q| = {norm[row]:.4f}"
        yield Finding(DAMAGED, "|q| is not 1", reason)
        return
    # q and -q are the same rotation.
    cosine = np.abs((quaternion[1:] * quaternion[:-1]).sum(axis=1)) / (norm[1:] * norm[:-1])
    turn = 2 * np.arccos(np.clip(cosine, 0, 1))
    beyond = turn - limits.LIMIT_TURN * np.diff(columns["timestamp"]) / 1e6
    row = int(np.argmax(beyond))
    if beyond[row] > limits.TURN_SLACK:
        at = columns["timestamp"][row + 1] / 1e6
        reason = f"turns by {np.degrees(turn[row]):.1f}° from one row to the next at {at:.2f} s"
        yield Finding(ODD, "a jump of rotation", reason)


def _jumps(columns: Mapping[str, np.ndarray], start: int) -> Iterator[Finding]:
    dt = np.diff(columns["timestamp"]) / 1e6
    step = np.linalg.norm(np.diff(_vectors(columns), axis=0), axis=1)
    speed = np.linalg.norm(_vectors(columns, "v"), axis=1)
    # Compare lengths, which do not depend on the velocities' frame of reference.
    off = np.abs(step - (speed[1:] + speed[:-1]) / 2 * dt)
    # Relative to the other rows: speeds that are wrong everywhere are not jumps.
    beyond = off - np.median(off) - limits.MAX_ACCELERATION / 2 * dt**2
    row = int(np.argmax(beyond))
    if beyond[row] > limits.JUMP_M:
        at = columns["timestamp"][row + 1] / 1e6
        reason = (
            f"position jumps by {off[row]:.2f} m against the speed at {at:.2f} s "
            f"(row {start + row + 1})"
        )
        severity = DAMAGED if beyond[row] > limits.REFUSED_JUMP_M else ODD
        yield Finding(severity, "a jump of position", reason)


def _slip(columns: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """A car moves along its heading, forwards or backwards; otherwise axes are mixed up."""
    times = columns["timestamp"] / 1e6
    marks, places = _every_span(times, _vectors(columns))
    course = np.diff(places, axis=0)
    way = np.linalg.norm(course, axis=1)
    is_moving = way > limits.MOVES_MPS * limits.SPAN_S
    if not is_moving.any():
        return
    middles = np.searchsorted(times, (marks[1:] + marks[:-1]) / 2)[is_moving]
    turn = np.stack([columns[name][middles] for name in ("qx", "qy", "qz", "qw")], axis=1)
    nose = Rotation.from_quat(turn).apply((1.0, 0.0, 0.0))
    along = np.abs((course[is_moving] * nose).sum(axis=1)) / way[is_moving]
    slip_deg = float(np.degrees(np.arccos(np.clip(np.median(along), 0, 1))))
    if slip_deg > limits.MAX_SLIP_DEG:
        reason = f"the car moves {slip_deg:.0f}° beside where it points"
        yield Finding(DAMAGED, "moves sideways", reason)


def _speeds(columns: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    times = columns["timestamp"] / 1e6
    position, velocity = _vectors(columns), _vectors(columns, "v")
    speed = np.linalg.norm(velocity, axis=1)
    row = int(np.argmax(speed))
    if speed[row] > limits.LIMIT_SPEED:
        yield Finding(ODD, "too fast", f"{speed[row]:.1f} m/s at {times[row]:.2f} s")
    # Compare lengths of paths, which ignores noise of positions and velocities. The length of the
    # integrated track does not depend on the velocities' frame of reference.
    steps = (velocity[1:] + velocity[:-1]) / 2 * np.diff(times)[:, None]
    track = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
    path, whole = float(path_length(position)[-1]), float(path_length(track)[-1])
    slack_m, share = limits.PATH_TOLERANCE
    if abs(path - whole) > slack_m + share * max(path, whole):
        reason = f"positions cover {path:.1f} m, speeds {whole:.1f} m"
        yield Finding(DAMAGED, "positions and speeds disagree", reason)
        return
    # Over half a second, the chord of a curve is as long as its arc.
    marks, by_place = _every_span(times, position)
    by_track = _every_span(times, track)[1]
    driven, by_speed = (
        np.linalg.norm(np.diff(points, axis=0), axis=1) / limits.SPAN_S
        for points in (by_place, by_track)
    )
    beyond = np.abs(driven - by_speed) - limits.SPEED_TOLERANCE[1] * by_speed
    if len(beyond) and beyond.max() > limits.SPEED_TOLERANCE[0]:
        row = int(np.argmax(beyond))
        reason = (
            f"|v| is {by_speed[row]:.2f} m/s, positions move at {driven[row]:.2f} m/s "
            f"from {marks[row]:.2f} to {marks[row + 1]:.2f} s"
        )
        yield Finding(ODD, "positions and speeds disagree", reason)


def _accelerations(columns: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    marks, at_marks = _every_span(columns["timestamp"] / 1e6, _vectors(columns, "v"))
    change = np.linalg.norm(np.diff(at_marks, axis=0), axis=1) / limits.SPAN_S
    if len(change) and change.max() > limits.LIMIT_ACCELERATION:
        row = int(np.argmax(change))
        reason = f"velocity changes by {change[row]:.1f} m/s² over half a second at "
        yield Finding(ODD, "acceleration that no car has", f"{reason}{marks[row]:.2f} s")


def _every_span(times: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times (M,) s half a second apart, and the vectors (M, 3) interpolated there."""
    marks = np.arange(times[0], times[-1], limits.SPAN_S)
    return marks, np.stack([np.interp(marks, times, column) for column in vectors.T], axis=1)


def _vectors(columns: Mapping[str, np.ndarray], prefix: str = "") -> np.ndarray:
    return np.stack([columns[prefix + axis] for axis in "xyz"], axis=1)
