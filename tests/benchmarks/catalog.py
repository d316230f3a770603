"""Seconds and memory to open the whole data set's catalog and to answer what a run would take.

    python -m tests.benchmarks.catalog

Writes outputs/benchmarks/catalog.json. The metadata are made: 306,152 clips in 3,146 chunks, 36
features, with the counts that are published of the real ones. Each question is asked in processes
of its own, interpreter and imports included; `seconds` and `peak_gb` are those of the worst
question, the median of its runs.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import uuid
from importlib import metadata
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from avomni_lib import files
from avomni_world.publish.attributes import EVENT_CLUSTERS
from tests.benchmarks import drive
from tests.published_set import FEATURES, RADARS, features_csv

FOLDER = files.PROJECT_ROOT / "outputs" / "benchmarks"
VERSION = 1  # of the metadata that are made
RUNS = 5
SEED = 3

NUM_CLIPS, NUM_CHUNKS, CHUNK_CLIPS = 306_152, 3146, 100
SPLITS = {"train": 153_625, "val": 90_928, "test": 61_599}
PLATFORMS = {"hyperion_8.1": 218_588, "hyperion_8": 87_564}
RADAR_CONFIGS = {"low": 87_197, "med": 50_747, "high": 22_817, None: 145_391}
NUM_OFFLINE = 298_326  # have lidar and the offline features
NUM_UNITED_STATES, NUM_COUNTRIES = 155_360, 25
COUNTRIES = (
    *("United States", "Germany", "Italy", "France", "Spain", "Sweden", "Portugal", "Poland"),
    *("Austria", "Belgium", "Bulgaria", "Croatia", "Czechia", "Denmark", "Estonia", "Finland"),
    *("Greece", "Hungary", "Latvia", "Lithuania", "Luxembourg", "Netherlands", "Romania"),
    *("Slovakia", "Slovenia"),
)
NO_EVENTS = 9


def made(folder: Path) -> Path:
    """The metadata, made once: the index in no order, the other tables sorted by clip_id."""
    target = folder / f"catalog_{VERSION}"
    if (target / "made.json").exists():
        return target
    rng = np.random.default_rng(SEED)
    # No chunk has more than 100 clips.
    sizes = CHUNK_CLIPS - rng.multinomial(
        NUM_CHUNKS * CHUNK_CLIPS - NUM_CLIPS, np.full(NUM_CHUNKS, 1 / NUM_CHUNKS)
    )
    raw = rng.bytes(16 * NUM_CLIPS)
    names = [raw[16 * n : 16 * n + 16] for n in range(NUM_CLIPS)]
    ids = pd.Index([str(uuid.UUID(bytes=name, version=4)) for name in names], name="clip_id")

    def dealt(counts: dict) -> np.ndarray:
        values = np.repeat(np.array(list(counts), object), list(counts.values()))
        return rng.permutation(values)

    def put(path: str, table: pd.DataFrame) -> None:
        with files.write_whole(target / path) as file:
            table.to_parquet(file)  # snappy, one row group, clip_id as the index

    with files.write_whole(target / "features.csv") as file:
        file.write(features_csv())
    chunk = rng.permutation(np.repeat(np.arange(NUM_CHUNKS), sizes))
    index = {"clip_is_valid": True, "chunk": chunk, "split": dealt(SPLITS)}
    put("clip_index.parquet", pd.DataFrame(index, index=ids))
    radar = dealt(RADAR_CONFIGS)
    is_offline = rng.permutation(np.arange(NUM_CLIPS) < NUM_OFFLINE)
    presence = {}
    for name in FEATURES:
        presence[name] = np.ones(NUM_CLIPS, bool)
        if ".offline" in name or name.startswith("lidar"):
            presence[name] = is_offline
        elif name in RADARS:
            share = {"low": 0.3, "med": 0.6, "high": 1.0, None: 0.0}
            has = {config: rng.random() < part for config, part in share.items()}
            presence[name] = np.array([has[config] for config in radar])
    put("metadata/feature_presence.parquet", pd.DataFrame(presence, index=ids).sort_index())
    others = rng.dirichlet(np.full(NUM_COUNTRIES - 1, 0.6)) * (NUM_CLIPS - NUM_UNITED_STATES)
    counts = {name: int(n) for name, n in zip(COUNTRIES[1:], others, strict=True)}
    counts["United States"] = NUM_CLIPS - sum(counts.values())
    collected = {
        "country": dealt(counts),
        "month": rng.integers(1, 13, NUM_CLIPS),
        "hour_of_day": rng.integers(0, 24, NUM_CLIPS),
        "platform_class": dealt(PLATFORMS),
        "radar_config": radar,
    }
    put("metadata/data_collection.parquet", pd.DataFrame(collected, index=ids).sort_index())
    num_events = sum(EVENT_CLUSTERS.values())
    starts = rng.integers(16, 140, num_events)
    events = [
        json.dumps(
            [
                {
                    "event_start_frame": int(n),
                    "event_start_timestamp": int(n) * 100_000 - 151_128,
                    "coc": f"Something is on the road at {n / 10:.1f} s, so slow down.",
                }
            ]
        )
        for n in starts
    ]
    reasoning = {
        "feature": "camera_front_wide_120fov",
        "event_cluster": dealt(EVENT_CLUSTERS),
        "events": [None] * NO_EVENTS + events[NO_EVENTS:],
        "split": dealt({"train": 1450, "val": 290 + num_events - 1740}),
    }
    chosen = rng.choice(NUM_CLIPS, num_events, replace=False)
    put("reasoning/ood_reasoning.parquet", pd.DataFrame(reasoning, index=ids[chosen]))
    files.write_json(target / "made.json", {"seed": SEED})
    return target


def questions(folder: Path) -> dict[str, dict]:
    """Name -> `download` and `vision` of a run that asks."""
    everything = {"target_chunks": NUM_CHUNKS, "target_size_gb": 1e6}
    index = pd.read_parquet(folder / "clip_index.parquet", columns=[])
    some = index.index[np.random.default_rng(SEED).choice(NUM_CLIPS, 1000, replace=False)]
    at_night = {
        "countries": ["Germany", "Italy", "France"],
        "hours": [20, 21, 22, 23],
        "platforms": ["hyperion_8.1"],
        "splits": ["train", "val"],
    }
    return {
        "everything, 4-cam": {"download": everything},
        "everything, 7-cam": {"download": everything, "vision": {"cameras": "7-cam"}},
        "what fits 150 GB": {"download": {"target_chunks": NUM_CHUNKS, "target_size_gb": 150}},
        "night in three countries": {
            "download": {"target_chunks": 100, "target_size_gb": 1000, "clips": at_night}
        },
        "animals on the road": {
            "download": everything | {"clips": {"event_clusters": ["ANIMALS_BIRDS_ROADKILL"]}}
        },
        "1,000 named clips": {"download": everything | {"clips": {"clip_ids": list(some)}}},
        "10,000 clips, balanced by country": {
            "download": everything | {"clips": {"balance_by": "country", "max_clips": 10_000}}
        },
    }


def measure(how: str, question: dict) -> dict:
    """Medians of `RUNS` processes, interpreter and imports included."""
    command = [sys.executable, "-m", "tests.benchmarks.catalog_question", how]
    runs = []
    for _ in range(RUNS):
        started = time.monotonic()
        ran = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True)
        seconds = time.monotonic() - started
        if ran.returncode:
            raise SystemExit(ran.stderr)
        runs.append(json.loads(ran.stdout) | {"seconds": seconds})
    figures = {
        name: round(median(run[name] for run in runs), 3)
        for name in ("seconds", "cpu_seconds", "peak_gb")
    }
    return figures | runs[0]["answer"]


def main() -> None:
    folder = made(FOLDER)
    own = {"dataset": {"source": "hub", "local_dir": str(folder)}}
    asked = {name: measure("ask", own | each) for name, each in questions(folder).items()}
    whole = asked["everything, 7-cam"]
    if (whole["num_clips"], whole["num_chunks"]) != (NUM_CLIPS, NUM_CHUNKS):
        raise SystemExit(f"not everything: {whole}")
    worker = measure("open", own)
    record = {
        "seconds": max(each["seconds"] for each in asked.values()),
        "peak_gb": max(each["peak_gb"] for each in asked.values()),
        "cpu_seconds": max(each["cpu_seconds"] for each in asked.values()),
        "questions": asked,
        "worker": worker,
        "num_clips": NUM_CLIPS,
        "num_chunks": NUM_CHUNKS,
        "num_features": len(FEATURES),
        "file_bytes": {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.suffix in (".csv", ".parquet")
        },
        "versions": {name: metadata.version(name) for name in ("pyarrow", "numpy")}
        | {"python": platform.python_version()},
    }
    files.write_json(FOLDER / "catalog.json", record)
    print(report(record))


def report(record: dict) -> str:
    """The record as one table."""
    rows = [("question", "s", "CPU s", "GB RAM", "chunks", "files", "clips", "GB of data")]
    for name, each in record["questions"].items():
        figures = (f"{each['seconds']:.2f}", f"{each['cpu_seconds']:.2f}", f"{each['peak_gb']:.2f}")
        counts = (f"{each[key]:,}" for key in ("num_chunks", "num_files", "num_clips", "gb"))
        rows.append((name, *figures, *counts))
    each = record["worker"]
    figures = (f"{each['seconds']:.2f}", f"{each['cpu_seconds']:.2f}", f"{each['peak_gb']:.2f}")
    rows.append(("a worker that opens it", *figures, *("",) * 4))
    return "\n".join(
        [
            drive.table(rows),
            "",
            f"{record['num_clips']:,} clips × {record['num_features']} features; the worst "
            f"question: {record['seconds']:.2f} s and {record['peak_gb']:.2f} GB, from the start "
            f"of Python to the answer, medians of {RUNS}",
            f"all of it in {FOLDER / 'catalog.json'}",
        ]
    )


if __name__ == "__main__":
    main()
