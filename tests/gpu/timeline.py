"""What the card does in a training step: with which kernels, how long, and which copies are hidden.

Read from the trace that torch's profiler writes for Chrome; only the device's side is recorded, so
that the steps are hardly slower than without.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LARGE = 10 << 20  # bytes; a batch's frames are 44 MB, everything else that is copied is small
Interval = tuple[float, float]

# Kinds of kernels by what their names hold; the first that fits.
KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa", "cudnn::fusion"),
    "products": ("gemm", "xmma", "nvjet", "cutlass", "cublas", "splitk", "matmul"),
    "4-bit weights unpacked": ("dequantize", "kgemm_4bit", "bitsandbytes"),
    "optimizer": ("optimizer", "blockwise2state", "8bit"),
    "copies and casts": ("copy", "memcpy", "memset", "cat", "fill"),
}


class Recorder(threading.Event):
    """Records from the end of a training's first step to the end of its last.

    It is given to the training as the event that stops it, which is asked after each step; it is
    never set.
    """

    def __init__(self, path: Path, num_steps: int):
        super().__init__()
        self.path, self.num_steps, self.count = path, num_steps, 0
        self.profiler: Any = None

    def is_set(self) -> bool:
        self.count += 1
        if self.count == 1:
            from torch.profiler import ProfilerActivity, profile

            self.profiler = profile(activities=[ProfilerActivity.CUDA])
            self.profiler.start()
        elif self.count == self.num_steps:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.path))
        return False


def read(path: Path) -> list[dict[str, Any]]:
    """The events on the device: cat, name, ts and dur (µs), args."""
    events = json.loads(path.read_text())["traceEvents"]
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"}
    return [event for event in events if event.get("cat") in kinds and event.get("dur")]


def summary(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How busy the card is, with what, and how much of the frames' copies lies behind kernels."""
    kernels = [event for event in events if event["cat"] == "kernel"]
    if not kernels:
        return {"error": "no kernel was recorded"}
    span = max(map(_end, events)) - min(event["ts"] for event in events)
    computing = _union(map(_interval, kernels))
    total = sum(event["dur"] for event in kernels)
    by_name, by_kind = Counter(), Counter()
    for event in kernels:
        by_name[event["name"]] += event["dur"]
        by_kind[_kind(event["name"])] += event["dur"]
    frames = [event for event in events if _is_large_upload(event)]
    copying = sum(event["dur"] for event in frames)
    hidden = sum(_overlap(_interval(event), computing) for event in frames)
    return {
        "seconds": round(span / 1e6, 4),
        "busy_share": round(sum(stop - start for start, stop in computing) / span, 5),
        "kernels": len(kernels),
        "share_by_kind": {kind: round(us / total, 4) for kind, us in by_kind.most_common()},
        "longest_kernels": [
            {"name": name[:120], "share": round(us / total, 4)}
            for name, us in by_name.most_common(12)
        ],
        "frames_copied": {
            "copies": len(frames),
            "gb": round(sum(_bytes(event) for event in frames) / 1e9, 4),
            "gb_per_s": round(sum(map(_bytes, frames)) / copying / 1e3, 2) if copying else None,
            "share_of_time": round(copying / span, 6),
            "hidden_share": round(hidden / copying, 4) if copying else None,
        },
    }


def _kind(name: str) -> str:
    low = name.lower()
    found = (kind for kind, words in KINDS.items() if any(word in low for word in words))
    return next(found, "everything else, element by element")


def _is_large_upload(event: Mapping[str, Any]) -> bool:
    return event["cat"] == "gpu_memcpy" and "HtoD" in event["name"] and _bytes(event) >= LARGE


def _bytes(event: Mapping[str, Any]) -> int:
    return int(event.get("args", {}).get("bytes", 0))


def _end(event: Mapping[str, Any]) -> float:
    return event["ts"] + event["dur"]


def _interval(event: Mapping[str, Any]) -> Interval:
    return event["ts"], _end(event)


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    joined: list[Interval] = []
    for start, stop in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def _overlap(one: Interval, others: Sequence[Interval]) -> float:
    """How much of an interval lies in the others, which do not overlap."""
    return sum(max(0.0, min(one[1], stop) - max(one[0], start)) for start, stop in others)
