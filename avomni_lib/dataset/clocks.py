"""A camera's clock: the timestamps of its frames, against its video and the other cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avomni_lib.dataset import limits
from avomni_lib.dataset.audit.findings import DAMAGED, ODD, Finding


def check(times_us: np.ndarray) -> tuple[dict[str, Any], list[Finding]]:
    """Facts about a clock, and what is wrong with it.

    Args:
        times_us: (N,) int64 µs, a row a frame.

    Returns:
        Facts as plain values: num_timestamps, first_us, last_us, step_ms (median), num_dropped;
        and findings without a place.
    """
    facts: dict[str, Any] = {"num_timestamps": len(times_us)}
    if not len(times_us):
        return facts, [Finding(DAMAGED, "no timestamps", "the table of timestamps is empty")]
    if len(times_us) < 2:
        reason = "the table of timestamps has 1 row; at least 2 are needed"
        return facts, [Finding(DAMAGED, "no timestamps", reason)]
    facts |= {"first_us": int(times_us[0]), "last_us": int(times_us[-1])}
    steps = np.diff(times_us)
    falls = np.flatnonzero(steps <= 0)
    if len(falls):
        row = falls[0]
        reason = (
            f"timestamps do not rise at row {row + 1}: {times_us[row]} then {times_us[row + 1]} µs"
        )
        return facts, [Finding(DAMAGED, "timestamps do not rise", reason)]
    findings = []
    if times_us[0] <= -limits.FIRST_S * 1e6 or times_us[0] >= limits.FIRST_S * 1e6:
        reason = (
            f"the first frame is at {times_us[0] / 1e6:.3f} s, not within ±{limits.FIRST_S} s of 0"
        )
        findings.append(Finding(ODD, "first frame far from 0", reason))
    step = float(np.median(steps))
    facts["step_ms"] = round(step / 1e3, 3)
    if abs(step / 1e6 / limits.STEP_S - 1) > limits.RATE_TOLERANCE:
        reason = f"{step / 1e3:.1f} ms from frame to frame, not {limits.STEP_S * 1e3:.1f}"
        findings.append(Finding(ODD, "another frame rate", reason))
    longest = int(np.argmax(steps))
    if steps[longest] > limits.MAX_GAP_S * 1e6:
        reason = (
            f"no frame for {steps[longest] / 1e6:.2f} s at {times_us[longest] / 1e6:.2f} s "
            f"(row {longest + 1}); {limits.MAX_GAP_S} s is the most"
        )
        findings.append(Finding(DAMAGED, "a gap between frames", reason))
    gaps = np.flatnonzero(steps > limits.DROPPED * step)
    missing = int(np.rint(steps[gaps] / step - 1).sum())
    facts["num_dropped"] = missing
    if len(gaps):
        row = int(gaps[np.argmax(steps[gaps])])
        reason = (
            f"{missing} frames are missing in {len(gaps)} gaps; the longest is "
            f"{steps[row] / 1e3:.1f} ms at row {row + 1}, {times_us[row] / 1e6:.2f} s"
        )
        findings.append(Finding(ODD, "dropped frames", reason))
    close = np.flatnonzero(steps < limits.TOO_CLOSE * step)
    if len(close):
        row = int(close[0])
        reason = (
            f"{len(close)} frames follow too soon, as {steps[row] / 1e3:.1f} ms at row {row + 1}"
        )
        findings.append(Finding(ODD, "frames too close", reason))
    return facts, findings


def agree(video_us: np.ndarray, times_us: np.ndarray, tick_us: float) -> list[Finding]:
    """Whether video and clock of one camera speak of the same frames.

    Of a file at a constant rate only the rate says anything: it counts frames, and where a camera
    dropped one, its timestamps alone have a gap. One whose frames differ in length keeps time, and
    then every interval must agree.

    Args:
        video_us: (N,) int64 µs of the frames that the file shows, counted from the first one.
        times_us: (M,) int64 µs, rising.
        tick_us: One unit of the file's times.
    """
    if len(video_us) != len(times_us):
        reason = f"{len(video_us)} frames in the mp4, {len(times_us)} timestamps"
        return [Finding(DAMAGED, "frames and timestamps differ in number", reason)]
    if len(times_us) < 2:
        return []
    own_us, given_us = np.diff(video_us), np.diff(times_us)
    usual_us, given_usual_us = float(np.median(own_us)), float(np.median(given_us))
    if abs(usual_us - given_usual_us) > limits.CLOCK_TOLERANCE * given_usual_us:
        reason = (
            f"the video's frames are {usual_us / 1e3:.1f} ms apart, those of its timestamps "
            f"{given_usual_us / 1e3:.1f} ms: they belong to another video"
        )
        return [Finding(DAMAGED, "video and timestamps differ in rate", reason)]
    apart = np.abs(own_us - given_us)
    keeps_time = np.ptp(own_us) > max(2 * tick_us, limits.CLOCK_TOLERANCE * usual_us)
    if keeps_time and apart.max() > limits.INTERVAL_TOLERANCE * usual_us:
        row = int(apart.argmax())
        reason = (
            f"frame {row + 1} follows {own_us[row] / 1e3:.1f} ms after the one before in the "
            f"video, {given_us[row] / 1e3:.1f} ms in its timestamps: frames or rows are missing"
        )
        return [Finding(DAMAGED, "video and timestamps differ", reason)]
    return []


def common(spans_us: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(first, last) µs of what all cameras show; the last lies before the first where nothing is.

    Args:
        spans_us: First and last frame of each camera.
    """
    return max(first for first, _ in spans_us), min(last for _, last in spans_us)


def ends(last_us: Mapping[str, int], usual_us: float) -> dict[str, Finding]:
    """Camera -> finding, where a clip's camera ends apart from what is usual in this run.

    Args:
        last_us: Camera -> time of its last frame.
        usual_us: Median over all cameras of all clips.
    """
    findings = {}
    for camera, last in last_us.items():
        if abs(last - usual_us) > limits.END_TOLERANCE_S * 1e6:
            reason = (
                f"the last frame is at {last / 1e6:.2f} s; usual here is {usual_us / 1e6:.2f} s"
            )
            findings[camera] = Finding(ODD, "ends apart from the others", reason)
    return findings
