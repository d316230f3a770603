"""What came out of a training, in figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avomni_lib import hardware
from avomni_lib.hardware import Choice
from avomni_lib.training.fit import energy


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        adapter: Folder of the adapter, with `record.json`.
        record: What the adapter was made from and for.
        metrics: One dict a line of `metrics.jsonl`: step, epoch, loss, token_accuracy,
            learning_rate, grad_norm; since the line before seconds, cpu_seconds, data_wait_s,
            samples_per_s, tokens_per_s; memory_gb so far; where there is a card, what `energy`
            found: gpu_busy_pct, gpu_watts, gpu_celsius, gpu_joules.
        choices: What was chosen for the user, each a (value, reason).
        figures: As in `result.json`.
        stopped_at: The step after which a signal stopped it; None where it went to its end.
    """

    adapter: Path
    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    choices: dict[str, Choice]
    figures: dict[str, Any]
    stopped_at: int | None = None


def figures(
    record: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    steps: int,
    done: int,
    device: str,
) -> dict[str, Any]:
    """The figures of a training's lines of metrics, as `result.json` has them.

    Args:
        steps: That were planned.
        done: That were found done when this process began.
        device: It trained on; its peak memory is that of this process.
    """

    def total(name: str) -> float:
        return sum(line[name] for line in metrics)

    seconds, losses = total("seconds"), [line["loss"] for line in metrics]
    few = max(1, min(10, len(losses) // 2))
    begin, end = (statistics.fmean(part) for part in (losses[:few], losses[-few:]))
    taken = metrics[-1]["step"]
    peak = hardware.peak_memory(device)
    return energy.figures(metrics) | {
        "headline": f"loss {begin:.2f} -> {end:.2f} in {taken} steps",
        "num_windows": record["num_windows"],
        "num_clips": len(record["training_clip_ids"]),
        "optimizer_steps": taken,
        "planned_steps": steps,
        "resumed_from_step": done,
        "first_loss": round(begin, 4),
        "last_loss": round(end, 4),
        "train_seconds": round(seconds, 1),
        "seconds_per_step": round(seconds / taken, 4),
        "data_wait_share": round(total("data_wait_s") / seconds, 5) if seconds else 0.0,
        "measured": {
            "memory_gb": round(peak.get("device_gb", peak["host_gb"]), 3),
            # On a CPU those of the process: its cores may be shared with others.
            "seconds": round(total("cpu_seconds") if device == "cpu" else seconds, 1),
        },
    }
