"""How long a call of `drive` takes, as AlpaSim would wait for it.

    python -m tests.benchmarks.alpasim_latency [--base] [--adapter FOLDER] [--hop 4] [--json FILE]

The driver is served by this process. Stand-in runtimes, each a process of its own, drive episodes
of the rendered world: one alone, then two at once, as a replica of the public challenge has them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from avomni_lib import files
from avomni_lib.driving.alpasim import service
from avomni_lib.live import answering
from avomni_lib.params import Params
from tests.benchmarks import demo_cpu, drive

AT_ONCE = (1, 2)
QUANTILES = (50, 95)


def runtimes(port: int, seeds: range, seconds: float) -> list[dict]:
    """All calls of `drive` of episodes that are driven at once, as their runtimes saw them."""
    words = [sys.executable, "-m", "tests.alpasim_runtime", str(port), "--seconds", str(seconds)]
    played = [
        subprocess.Popen([*words, "--seed", str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in seeds
    ]
    calls = [json.loads(line) for each in played for line in each.communicate()[0].splitlines()]
    if any(each.returncode for each in played):
        raise SystemExit("a runtime ended with an error")
    return calls


def quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(seconds, q)), 4) for q in QUANTILES}


def measure(p: Params, adapter: str | None, base: bool, seconds: float) -> dict:
    load = os.getloadavg()[0]
    driver = service.Driver(p, answering.asker(p, adapter, base))
    found = {}
    with service.serving(driver, 0) as port:
        runtimes(port, range(1, 2), 0.5)  # the first answer warms the model up
        for count in AT_ONCE:
            calls = runtimes(port, range(10 * count, 10 * count + count), seconds)
            driven = [each for each in calls if each["poses"]]
            found[str(count)] = {
                kind: quantiles([each["seconds"] for each in driven if bool(each["said"]) == asked])
                for kind, asked in (("answered", True), ("followed on", False))
                if any(bool(each["said"]) == asked for each in driven)
            } | {"answers": sum(bool(each["said"]) for each in driven), "calls": len(driven)}
    return {
        "sessions": found,
        "num_unread": driver.num_unread,
        "run": f"{p.run.name}, live.hop {p.live.hop}, {'base' if base else 'adapted'}",
        "machine": demo_cpu.machine(),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
    }


def report(record: dict) -> str:
    rows = [("sessions at once", "call", "p50, s", "p95, s", "answers of calls")]
    for count, found in record["sessions"].items():
        for kind in ("answered", "followed on"):
            if kind in found:
                cells = [f"{found[kind][f'p{q}']:.3f}" for q in QUANTILES]
                rows.append((count, kind, *cells, f"{found['answers']} of {found['calls']}"))
    last = f"{record['machine']}, load {record['load'][0]} to {record['load'][1]}"
    unread = f"answers without a path: {record['num_unread']}"
    return "\n".join([record["run"], drive.table(rows), unread, last])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--params", default="params/demo_future.yaml", help="a run that plans paths"
    )
    parser.add_argument("--base", action="store_true", help="without an adapter")
    parser.add_argument("--adapter", metavar="FOLDER", help="another than the run's own")
    parser.add_argument("--hop", type=int, default=4, help="live.hop")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an episode")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    p = Params.from_files([options.params], [f"live.hop={options.hop}"])
    record = measure(p, options.adapter, options.base, options.seconds)
    if options.json:
        files.write_json(Path(options.json), record)
    print(report(record))


if __name__ == "__main__":
    main()
