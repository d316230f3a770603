"""A camera's clock: the timestamps of its frames, against its video and the other cameras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avomni_lib.dataset.findings import DAMAGED, ODD, Finding

# The data set's cameras run at 30 Hz and start within a tenth of a second of the clip's time 0.
STEP_S, FIRST_S = 1 / 30, 0.1
# A mean step off by more than this is another rate; exposure control moves single frames.
RATE_TOLERANCE = 0.02
# Half a frame more than one step: at least one frame is not there.
DROPPED, TOO_CLOSE = 1.5, 0.5
# Clips are cut at the same length: 0.25 s are more frames than cameras differ by.
END_TOLERANCE_S = 0.25


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
    facts |= {"first_us": int(times_us[0]), "last_us": int(times_us[-1])}
    steps = np.diff(times_us)
    falls = np.flatnonzero(steps <= 0)
    if len(falls):
        row = falls[0]
        told = (
            f"timestamps do not rise at row {row + 1}: {times_us[row]} then {times_us[row + 1]} µs"
        )
        return facts, [Finding(DAMAGED, "timestamps do not rise", told)]
    found = []
    if times_us[0] <= -FIRST_S * 1e6 or times_us[0] >= FIRST_S * 1e6:
        told = f"the first frame is at {times_us[0] / 1e6:.3f} s, not within ±{FIRST_S} s of 0"
        found.append(Finding(ODD, "first frame far from 0", told))
    if not len(steps):
        return facts, found
    step = float(np.median(steps))
    facts["step_ms"] = round(step / 1e3, 3)
    if abs(step / 1e6 / STEP_S - 1) > RATE_TOLERANCE:
        told = f"{step / 1e3:.1f} ms from frame to frame, not {STEP_S * 1e3:.1f}"
        found.append(Finding(ODD, "another frame rate", told))
    gaps = np.flatnonzero(steps > DROPPED * step)
    missing = int(np.rint(steps[gaps] / step - 1).sum())
    facts["num_dropped"] = missing
    if len(gaps):
        row = int(gaps[np.argmax(steps[gaps])])
        told = (
            f"{missing} frames are missing in {len(gaps)} gaps; the longest is "
            f"{steps[row] / 1e3:.1f} ms at row {row + 1}, {times_us[row] / 1e6:.2f} s"
        )
        found.append(Finding(ODD, "dropped frames", told))
    close = np.flatnonzero(steps < TOO_CLOSE * step)
    if len(close):
        row = int(close[0])
        told = f"{len(close)} frames follow too soon, as {steps[row] / 1e3:.1f} ms at row {row + 1}"
        found.append(Finding(ODD, "frames too close", told))
    return facts, found


def agree(facts: Mapping[str, Any]) -> list[Finding]:
    """Whether video and clock of one camera speak of the same frames.

    Args:
        facts: Of the stream and of its clock.
    """
    frames, rows = facts.get("num_frames"), facts.get("num_timestamps")
    if frames is None or rows is None or frames == rows:
        return []
    told = f"{frames} frames in the mp4, {rows} timestamps"
    return [Finding(DAMAGED, "frames and timestamps differ in number", told)]


def ends(last_us: Mapping[str, int], usual_us: float) -> dict[str, Finding]:
    """Camera -> finding, where a clip's camera ends apart from what is usual in this run.

    Args:
        last_us: Camera -> time of its last frame.
        usual_us: Median over all cameras of all clips.
    """
    found = {}
    for camera, last in last_us.items():
        if abs(last - usual_us) > END_TOLERANCE_S * 1e6:
            told = f"the last frame is at {last / 1e6:.2f} s; usual here is {usual_us / 1e6:.2f} s"
            found[camera] = Finding(ODD, "ends apart from the others", told)
    return found
