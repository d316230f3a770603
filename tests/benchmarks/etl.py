"""The ETL of seven 1080p cameras by one worker and by two: CPU, clips a minute, memory, bytes read.

    python -m tests.benchmarks.etl [--seconds 20] [--clips 20]

Writes outputs/benchmarks/etl.json. One clip is encoded (as tests/benchmarks/decode.py does) and
stands under many ids. Runs of one worker and of two take turns; each is the whole stage: reading,
writing and fsync of the parts, and the shard. CPU seconds are those of all processes, from rusage.
"""

from __future__ import annotations

import argparse
import io
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median

import av

from avomni_lib import files
from avomni_lib.dataset import cameras, stored_zip
from avomni_lib.dataset.download import download
from avomni_lib.etl.clip.sampling import Recipe
from avomni_lib.etl.run import build, parts
from avomni_lib.params import Params
from avomni_lib.workers import run_jobs
from tests.benchmarks import decode, drive
from tests.linked_set import linked_id, num_frames, with_free_box, write_linked_set
from tests.published_set import chunk_path, encode_video, frame_bits
from tests.test_parts import weighed

MEGABYTE = 1 << 20
CAMERAS = [camera.name for camera in cameras.CAMERAS]
TURNS = (1, 2, 2, 1)  # workers; the first two read one chunk, the last two another
NUM_SHORT, SHORT_S = 200, 0.4
LIMIT_S, GOP_S = 14 * 60, 1


def film(seconds: float) -> bytes:
    """The first so many seconds (whole GOPs) of the clip that decode.py measures, as they are."""
    path = drive.encoded(decode.FOLDER / "clips", {decode.MAIN: decode.ENCODINGS[decode.MAIN]})
    cut = io.BytesIO()
    with av.open(str(path[decode.MAIN])) as source, av.open(cut, "w", format="mp4") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts * packet.time_base < seconds:
                packet.stream = copy
                target.mux(packet)
    return cut.getvalue()


def params(folder: Path, chunk: int, num_workers: int) -> Params:
    return Params.from_values(
        {
            "run": {"name": f"chunk_{chunk}", "outputs_dir": str(folder / "runs")},
            "dataset": {"source": "folder", "local_dir": str(folder / "set")},
            "download": {"target_chunks": 1, "chunks": [chunk]},
            "processing": {"num_workers": num_workers},
            "vision": {"cameras": "7-cam"},
        }
    )


def cpu_s() -> float:
    """Of this process and of those that have ended below it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def turn(folder: Path, chunk: int, num_workers: int) -> dict[str, float]:
    """One run of the stage over one chunk."""
    p = params(folder, chunk, num_workers)
    download.fetch(p, None)
    cpu_before, started = cpu_s(), time.monotonic()
    built = build.build(p)
    seconds, used = time.monotonic() - started, cpu_s() - cpu_before
    shutil.rmtree(p.run_dir)
    if built.damaged:
        raise RuntimeError(f"damaged: {built.damaged[0]}")
    count = built.figures["num_clips"]
    return {
        "workers": num_workers,
        "clips": count,
        "seconds": round(seconds, 2),
        "cpu_s_a_clip": round(used / count, 3),
        "clips_a_minute": round(60 * count / seconds, 2),
    }


def counted(job: parts.ClipJob) -> tuple[str | None, int]:
    """(reason, bytes that were read for a part), as proc(5) counts them."""

    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = rchar()
    outcome = parts.make_part(job)
    job.path.unlink(missing_ok=True)
    return outcome.reason, rchar() - before


def told(function: Callable, folder: Path, numbers: Sequence[int], recipe: Recipe) -> list[int]:
    """What `function` finds of these clips, one after another in one worker."""
    jobs = [
        parts.ClipJob(linked_id(n), 0, folder / "set", recipe, folder / f"{n}.npz") for n in numbers
    ]
    found = [outcome for _, outcome in run_jobs(function, jobs, 1)]
    if any(reason for reason, _ in found):
        raise RuntimeError(str(found))
    return [number for _, number in found]


def read_over_own(folder: Path, recipe: Recipe) -> float:
    """Bytes read for a clip of an open chunk, over those of its members."""
    read = told(counted, folder, [0, 0], recipe)[1]
    own = sum(
        entry.file_size
        for feature in [*CAMERAS, "egomotion"]
        for path in [folder / "set" / chunk_path(feature, 0)]
        for name, entry in stored_zip.directory(path).entries.items()
        if name.startswith(linked_id(0))
    )
    return read / own


def growth_mb(folder: Path, decoder: str) -> float:
    """Memory of a worker after 200 short clips against that after 30; files of 1 MB and more."""
    count = num_frames(SHORT_S)
    short = encode_video([frame_bits(0, 0, i, 64, 48) for i in range(count)])
    films = dict.fromkeys(CAMERAS, with_free_box(short, MEGABYTE))
    shutil.rmtree(folder / "set", ignore_errors=True)
    write_linked_set(folder / "set", films, SHORT_S, 1, NUM_SHORT)
    recipe = Recipe("7-cam", (32, 24), "letterbox", 5.0, 1.0, decoder)
    held = told(weighed, folder, range(NUM_SHORT), recipe)
    return (median(held[-20:]) - median(held[20:40])) / 1e6


def measure(folder: Path, seconds: float, num_clips: int, started: float) -> dict:
    content = film(seconds)
    films = dict.fromkeys(CAMERAS, content)
    write_linked_set(folder / "set", films, seconds, 2, num_clips // 2)
    recipe = build.recipe_of(params(folder, 0, 1))
    warm = time.monotonic()
    ratio = read_over_own(folder, recipe)
    clip_s = (time.monotonic() - warm) / 2
    left_s = LIMIT_S - (time.monotonic() - started)
    # A slow or busy machine: as much of the clip as the time allows, whole GOPs.
    fits = left_s / (clip_s * num_clips * 1.7 + 60)
    if fits < 1:
        seconds = max(seconds * fits // GOP_S * GOP_S, 2.0)
        print(f"{clip_s:.0f} s a clip: measured on its first {seconds:g} s")
        shutil.rmtree(folder / "set")
        content = film(seconds)
        write_linked_set(
            folder / "set", dict.fromkeys(CAMERAS, content), seconds, 2, num_clips // 2
        )
    turns = []
    for number, workers in enumerate(TURNS):
        turns.append(turn(folder, number // 2, workers))
        print(turns[-1], flush=True)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    return {
        **in_short(turns),
        "worker_peak_mb": round(peak_mb, 1),
        "clip_bytes_read_over_own": round(ratio, 4),
        "clip_seconds": seconds,
        "camera_megabytes": round(len(content) / 1e6, 2),
        "cameras": len(CAMERAS),
        "turns": turns,
    }


def in_short(turns: list[dict[str, float]]) -> dict[str, float]:
    """All clips by one worker beside all clips by two."""
    of = {n: [each for each in turns if each["workers"] == n] for n in (1, 2)}
    clips = {n: sum(each["clips"] for each in own) for n, own in of.items()}
    rate = {n: 60 * clips[n] / sum(each["seconds"] for each in own) for n, own in of.items()}
    cpu = {
        n: sum(each["cpu_s_a_clip"] * each["clips"] for each in own) / clips[n]
        for n, own in of.items()
    }
    return {
        "cpu_2_over_1": round(cpu[2] / cpu[1], 3),
        "speedup_2": round(rate[2] / rate[1], 3),
        "clips_per_minute": round(rate[2], 2),
        "clips_per_minute_1": round(rate[1], 2),
        "cpu_s_a_clip_1": round(cpu[1], 3),
        "cpu_s_a_clip_2": round(cpu[2], 3),
        "clips": clips[1],
    }


def report(record: dict) -> str:
    rows = [("workers", "clips", "seconds", "CPU s a clip", "clips a minute")]
    rows += [tuple(each.values()) for each in record["turns"]]
    growth = ", ".join(f"{mb:.1f} MB ({name})" for name, mb in record["growth_mb"].items())
    return "\n".join(
        [
            drive.table(rows),
            "",
            f"two workers: {record['cpu_2_over_1']} of the CPU seconds a clip, "
            f"{record['speedup_2']} times the clips a minute ({record['clips']} clips of "
            f"{record['clip_seconds']:g} s, {record['cameras']} cameras of 1920×1080)",
            f"a worker holds at most {record['worker_peak_mb']} MB, and after {NUM_SHORT} short "
            f"clips more by {growth}",
            f"bytes read of a clip's zips, over its own: {record['clip_bytes_read_over_own']}",
            f"{record['seconds']} s; all of it in {decode.FOLDER / 'etl.json'}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of the clip, at most 20")
    parser.add_argument("--clips", type=int, default=20, help="for each number of workers")
    options = parser.parse_args()
    started = time.monotonic()
    decode.FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=decode.FOLDER, prefix="etl-") as name:
        folder = Path(name)
        record = measure(folder, options.seconds, options.clips, started)
        growth = {decoder: round(growth_mb(folder, decoder), 1) for decoder in ("pyav", "decord")}
    record |= {
        "worker_growth_mb_over_200_clips": max(growth.values()),
        "growth_mb": growth,
        "cores": build.engines.workers.num_cores(),
        "versions": {name: metadata.version(name) for name in ("av", "decord", "numpy")}
        | {"python": platform.python_version()},
        "seconds": round(time.monotonic() - started, 1),
    }
    files.write_json(decode.FOLDER / "etl.json", record)
    print(report(record))


if __name__ == "__main__":
    main()
