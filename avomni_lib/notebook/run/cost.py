"""What a run cost: time and memory of each stage, the machine, and the price where one is set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avomni_lib import hardware
from avomni_lib.notebook.run import runs
from avomni_lib.params import Params
from avomni_lib.plan import minutes

STAGE = "06_evaluate"  # at work while its report is written


def cost_of(p: Params, running_s: float | None = None) -> dict[str, Any]:
    """What the run took so far, from the `result.json` of each stage.

    Args:
        running_s: Seconds that 06 has been at work, whose own `result.json` is written after the
            report.

    Returns:
        `stages`: {stage, seconds, memory_gb, device_gb, machine} each, only those that are done or
        at work; `seconds` of all of them; `price_per_hour` and `price`, None where no price is set.
        A stage that was skipped counts with what it took when it ran; one that was killed and went
        on, with what it took since.
    """
    rows = []
    for stage in runs.STAGES:
        result = runs.read_result(p, stage.name)
        if stage.name == STAGE and running_s is not None:
            host_gb = max(hardware.peak_memory()["host_gb"], hardware.peak_memory_of_children())
            result = {"seconds": running_s, "peak_memory_gb": host_gb, "figures": {}}
            result["provenance"] = hardware.provenance()
        if result is not None:
            # A notebook that found a training at work has not seen all of it.
            trained_s = result["figures"].get("measured", {}).get("seconds", 0.0)
            rows.append(
                {
                    "stage": stage.name,
                    "seconds": max(float(result["seconds"]), trained_s),
                    "memory_gb": float(result["peak_memory_gb"]),
                    "device_gb": result["figures"].get("peak_memory", {}).get("device_gb"),
                    "machine": machine_of(result["provenance"]),
                }
            )
    seconds, price = sum(row["seconds"] for row in rows), p.run.price_per_hour
    return {
        "stages": rows,
        "seconds": seconds,
        "price_per_hour": price,
        "price": None if price is None else price * seconds / 3600,
    }


def machine_of(made_with: Mapping[str, Any]) -> str:
    """A machine in words, from the `provenance` of a result."""
    parts = [f"{made_with['cores']} cores, {made_with['host_memory_gb']:.0f} GB of memory"]
    device = made_with.get("device")
    if device and device["value"] != "cpu":
        parts.append(device["reason"])
    return "; ".join(parts)


def in_words(cost: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a table shows it: `rows` of texts, `time` and `price` of all."""

    def gb(value: float | None) -> str:
        return "" if value is None else f"{value:.2f} GB"

    price = None
    if cost["price"] is not None:
        price = f"{cost['price']:.2f} at {cost['price_per_hour']:.2f} an hour"
    rows: Sequence[Mapping[str, Any]] = cost["stages"]
    return {
        "rows": [
            {
                "stage": row["stage"],
                "time": minutes(row["seconds"]),
                "memory": gb(row["memory_gb"]),
                "device": gb(row["device_gb"]),
                "machine": row["machine"],
            }
            for row in rows
        ],
        "time": minutes(cost["seconds"]),
        "price": price,
    }
