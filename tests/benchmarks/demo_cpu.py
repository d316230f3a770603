"""CPU seconds of the demo, stage by stage, beside those of another commit on the same machine.

    python -m tests.benchmarks.demo_cpu [--base REV] [--params FILE ...] [--set KEY=VALUE]

Writes outputs/benchmarks/demo_cpu.json. Both checkouts run under this Python, in turn, one params
file after another, each below a temporary folder. CPU seconds are user and system time of the
command and of every process that descends from it, also of those that outlive their parent.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from avomni_lib import files
from avomni_lib.notebook.run.stages import HEADLINES
from tests.benchmarks import decode, drive

DEMO = ("params/demo.yaml", "params/demo_future.yaml")
RAN = re.compile(r"(\d\d_\w+): ran")
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """A process whose parent has ended becomes this one's child, and is counted."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def cpu_s() -> float:
    """Of every process below this one, ended or alive."""
    used = psutil.Process().cpu_times()
    total = used.children_user + used.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:4])  # its own, and of those that it has waited for
    return total


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A commit's files in a git worktree that is removed afterwards."""
    git = ["git", "-C", str(files.PROJECT_ROOT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="avomni-") as name:
        tree = Path(name) / "tree"
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def run(tree: Path, params: str, changes: list[str], folder: Path) -> dict[str, object]:
    """One params file from start to end: CPU seconds of each stage, wall time and the score.

    Raises:
        RuntimeError: a stage failed; what it printed.
    """
    sets = [f"run.outputs_dir={folder}", f"dataset.local_dir={folder}/data/demo", *changes]
    words = [sys.executable, "-m", "avomni_lib", "run", str(tree / params)]
    words += [word for change in sets for word in ("--set", change)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    started, before, stages, lines = time.monotonic(), cpu_s(), {}, []
    process = subprocess.Popen(
        words,
        cwd=tree,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    for line in process.stdout or ():
        lines.append(line)
        if ran := RAN.match(line):
            used = cpu_s()
            stages[ran[1]], before = round(used - before, 1), used
            print(f"  {params} {ran[1]}: {stages[ran[1]]} CPU s", flush=True)
    if process.wait():
        raise RuntimeError("".join(lines[-40:]))
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass  # those that were adopted
    stages["the command itself"] = round(cpu_s() - before, 1)
    (result,) = folder.glob(f"{Path(params).stem}/06_evaluate/result.json")
    return {
        "params": params,
        "cpu_s": stages,
        "total_cpu_s": round(sum(stages.values()), 1),
        "wall_s": round(time.monotonic() - started, 1),
        "headline": HEADLINES["06_evaluate"](json.loads(result.read_text())["figures"]),
    }


def machine() -> str:
    """Cores, model and clock, from /proc/cpuinfo."""
    cpus = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpus)
    clock = re.search(r"cpu MHz\s*: ([\d.]+)", cpus)
    name = model[1].strip() if model else platform.machine()
    at = f" at {float(clock[1]) / 1000:.1f} GHz" if clock else ""
    return f"{psutil.cpu_count()} cores of {name}{at}"


def report(record: dict) -> str:
    """A table a params file, and the sum of all."""
    texts = []
    sides = [side for side in ("base", "this") if side in record]
    for runs in zip(*(record[side] for side in sides), strict=True):
        texts.append(f"{runs[0]['params']}, CPU seconds:")
        rows = [("stage", *sides, *(["ratio"] if len(sides) == 2 else []))]
        named = {name: None for each in runs for name in each["cpu_s"]}
        found = [(name, [each["cpu_s"].get(name, 0.0) for each in runs]) for name in named]
        found.append(("in all", [each["total_cpu_s"] for each in runs]))
        found.append(("wall time", [each["wall_s"] for each in runs]))
        for name, values in found:
            cells = [f"{value:.1f}" for value in values]
            if len(values) == 2:
                cells.append(f"{values[1] / values[0]:.2f}" if values[0] else "new")
            rows.append((name, *cells))
        texts += [drive.table(rows), *(each["headline"] for each in runs), ""]
    totals = {side: sum(each["total_cpu_s"] for each in record[side]) for side in sides}
    texts.append(", ".join(f"{side} {total:.0f} CPU s" for side, total in totals.items()))
    if "ratio" in record:
        texts.append(f"ratio {record['ratio']:.3f} of {record['revision']}")
    return "\n".join([*texts, record["machine"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", metavar="REV", help="a commit to compare with")
    parser.add_argument("--params", nargs="+", default=DEMO, help="files of both checkouts")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    adopt_orphans()
    decode.FOLDER.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        trees = {"this": files.PROJECT_ROOT}
        if options.base:
            trees = {"base": held.enter_context(checkout(options.base))} | trees
        name = held.enter_context(tempfile.TemporaryDirectory(dir=decode.FOLDER, prefix="demo-"))
        record: dict = {side: [] for side in trees}
        for number, params in enumerate(options.params):
            # There and back: a machine that grows busier is not laid at one's door.
            for side in list(trees)[:: -1 if number % 2 else 1]:
                print(f"{side}: {params}", flush=True)
                done = run(trees[side], params, options.set, Path(name) / side)
                record[side].append(done)
    record |= {"machine": machine(), "changes": options.set}
    if options.base:
        used = [sum(each["total_cpu_s"] for each in record[side]) for side in ("this", "base")]
        record |= {"revision": options.base, "ratio": round(used[0] / used[1], 3)}
    files.write_json(decode.FOLDER / "demo_cpu.json", record)
    print(report(record))


if __name__ == "__main__":
    main()
