"""One question to the catalog, in a process of its own: `tests.benchmarks.catalog` asks.

python -m tests.benchmarks.catalog_question ask|open < question.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from avomni_lib.dataset.catalog import Catalog, ranges
from avomni_lib.dataset.select.selection import selection_offline
from avomni_lib.hardware import peak_memory
from avomni_lib.params import Params


def ask(p: Params) -> dict:
    """Which chunks, which files, how many GB; no hub is asked."""
    chosen = selection_offline(p)
    chunks = sorted(chosen.choice.chunks)
    return {
        "num_chunks": len(chunks),
        "chunks": ranges(chunks)[:80],
        "num_files": len(chosen.files),
        "num_clips": chosen.num_clips,
        "gb": round(chosen.num_bytes / 1e9, 1),
        "reason": chosen.choice.reason[:200],
    }


def open_it(p: Params) -> dict:
    """What each worker of the ETL opens to find one clip's files."""
    catalog = Catalog.open(p.local_dir)
    return {"chunk": catalog.chunk_of(catalog.clip_ids(chunk=0)[0])}


def peak_gb() -> float:
    """The most that this program held; what its parent held before it does not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    return peak_memory()["host_gb"]


if __name__ == "__main__":
    answer = {"ask": ask, "open": open_it}[sys.argv[1]](Params.from_values(json.load(sys.stdin)))
    used = {"cpu_seconds": time.process_time(), "peak_gb": peak_gb()}
    print(json.dumps(used | {"answer": answer}))
