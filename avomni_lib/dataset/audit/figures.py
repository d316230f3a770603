"""What the streams, clocks and ego motion of an audit have in common, in numbers."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from avomni_lib.dataset import cameras as rig
from avomni_lib.dataset import clocks
from avomni_lib.dataset.audit.findings import NOTED, SET, Finding

Facts = Mapping[str, Mapping[str, Mapping[str, Any]]]


def streams(facts: Facts) -> dict[str, dict[str, Any]]:
    """Camera -> what its clips' videos are.

    Counters (value -> how many streams): codecs, sizes (px), rates (frames/s), gops (frames from
    key frame to key frame); num_streams, num_open (GOPs that reach over a key frame),
    num_reordered (B-frames), num_variable (rate); mbit_per_s and seconds as (least, median,
    greatest).
    """
    rows = {}
    for camera in (name for name in facts if name in rig.BY_NAME):
        told = [values for values in facts[camera].values() if "codec" in values]
        if told:
            rows[camera] = {
                "num_streams": len(told),
                "codecs": _counted(f"{v['codec']} {v['profile']}" for v in told),
                "sizes": _counted(f"{v['width']}×{v['height']}" for v in told),
                "rates": _counted(f"{v['fps']:.4g}" for v in told if v["fps"]),
                "gops": _counted("/".join(v["gops"]) for v in told),
                "num_open": sum(bool(v["is_open"]) for v in told),
                "num_reordered": sum(v["is_reordered"] for v in told),
                "num_variable": sum(v["is_constant"] is False for v in told),
                "mbit_per_s": _range([v["bit_rate"] / 1e6 for v in told if v["bit_rate"]]),
                "seconds": _range([v["last_us"] / 1e6 for v in told if "last_us" in v]),
            }
    return rows


def egomotion(facts: Facts) -> dict[str, Any]:
    """Rate, reach and gaps of the ego motion, each as (least, median, greatest) over clips."""
    told = [v for v in facts.get("egomotion", {}).values() if "past_video_s" in v]
    if not told:
        return {}
    offline = [v["offline_off_m"][1] for v in told if "offline_off_m" in v]
    return {
        "num_clips": len(told),
        "rate_hz": _range([v["rate_hz"] for v in told]),
        "past_video_s": _range([v["past_video_s"] for v in told]),
        "longest_gap_s": _range([v["longest_gap_s"] for v in told if "longest_gap_s" in v]),
        "speed_mps": _range([top for v in told for top in v.get("speed_mps", ())]),
        "num_with_offline": len(offline),
        "offline_off_m": _range(offline),
    }


def remarks(cameras: Mapping[str, Mapping[str, Any]], ego: Mapping[str, Any]) -> list[Finding]:
    """What is no fault but is good to know before the ETL."""
    found = []
    if ego and ego["past_video_s"][2] > 0:
        low, mid, high = ego["past_video_s"]
        told = (
            f"by {mid:.1f} s ({low:.1f} to {high:.1f}) in {ego['num_clips']} clips: the video is "
            "its first part, on the same clock"
        )
        what = "ego motion runs past the video"
        found.append(Finding(NOTED, what, told, SET, feature="egomotion"))
    if ego.get("num_with_offline"):
        low, mid, high = ego["offline_off_m"]
        told = f"{mid:.2f} m at most (up to {high:.2f}) in {ego['num_with_offline']} clips"
        what = "online and offline ego motion differ"
        found.append(Finding(NOTED, what, told, SET, feature="egomotion.offline"))
    for camera, row in cameras.items():
        if row["num_open"]:
            told = (
                f"{row['num_open']} of {row['num_streams']} streams have open GOPs: readers that "
                "count frames may return a wrong one"
            )
            found.append(Finding(NOTED, "open GOPs", told, SET, feature=camera))
    return found


def apart(facts: Facts) -> list[Finding]:
    """Cameras of clips that end apart from what is usual here."""
    last = {
        (camera, clip_id): told["last_us"]
        for camera in facts
        if camera in rig.BY_NAME
        for clip_id, told in facts[camera].items()
        if "last_us" in told
    }
    if not last:
        return []
    usual = statistics.median(last.values())
    by_clip: dict[str, dict[str, int]] = {}
    for (camera, clip_id), last_us in last.items():
        by_clip.setdefault(clip_id, {})[camera] = last_us
    return [
        Finding(f.severity, f.what, f.reason, f.reach, feature=camera, clip_id=clip_id)
        for clip_id, times in by_clip.items()
        for camera, f in clocks.ends(times, usual).items()
    ]


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _range(values: Sequence[float]) -> list[float] | None:
    if not values:
        return None
    return [round(v, 3) for v in (min(values), statistics.median(values), max(values))]
