"""The loader beside memcpy, PyTorch's DataLoader and decoding on the fly; waits before a step.

    python -m tests.benchmarks.loader

Writes outputs/benchmarks/loader.json. The cache is made up: 64 windows of 22.0 MB (16 frames of
2×2 cameras of 448×256), raw, in the page cache as it was written. The three take turns, medians of
nine rounds; one reader thread stands against `np.copyto` between touched buffers and against a
DataLoader of two workers over `MapDataset`, whose start is not counted. A simulated step is a
sleep; `idle` is the median wait for its batch, over wait and step together.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.data import DataLoader

from avomni_lib import files, hardware
from avomni_lib.dataset import cameras
from avomni_lib.etl.cache import memmap, shard
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip import tiling
from avomni_lib.etl.clip.fingerprints import num_words
from avomni_lib.etl.video import reader
from avomni_lib.training.feed.loader import Loader, Order
from avomni_lib.training.feed.map_dataset import MapDataset
from tests.benchmarks import decode, drive
from tests.test_memmap import COMMON

TILE, LENGTH, STRIDE, HZ = (448, 256), 16, 8, 2.0
GRID = cameras.grid("4-cam")
CLIP_FRAMES, CLIPS_PER_SHARD, NUM_SHARDS = 40, 4, 4
BATCH, WORKERS, ROUNDS = 2, 2, 9
OUR_BATCHES, THEIR_BATCHES = 40, 24
DECODED = 3
STEPS = {77: (1, 100), 270: (2, 40)}  # ms -> windows in a batch, steps
BARS = {"of_memcpy": 0.8, "over_dataloader": 6, "idle_77ms": 0.005, "idle_270ms": 0.01}


def make_cache(folder: Path) -> None:
    """Shards of clips that all look alike; what is in a picture does not matter to a copy."""
    width, height = tiling.grid_size(GRID, TILE)
    rng, times = np.random.default_rng(3), np.arange(CLIP_FRAMES) * 500_000
    arrays = {
        "frames": rng.integers(0, 256, (CLIP_FRAMES, height, width, 3), np.uint8),
        "prints": np.zeros((CLIP_FRAMES, 2, num_words(len(GRID.cameras))), np.uint64),
        "timestamps": np.tile(times[:, None], (1, len(GRID.cameras))),
        "times": times,
        "egomotion": rng.normal(size=(CLIP_FRAMES, len(memmap.EGOMOTION_COLUMNS))),
        "track": rng.normal(size=(CLIP_FRAMES, len(memmap.TRACK_COLUMNS))),
    }
    common, rows, made = COMMON | {"tile": list(TILE), "storage": "raw"}, [], []
    for chunk in range(NUM_SHARDS):
        clips = [
            {"clip_id": f"clip-{chunk}-{n}", "split": "train", "chunk": chunk}
            for n in range(CLIPS_PER_SHARD)
        ]
        made.append(folder / shard.shard_name(chunk))
        shard.write_shard(made[-1], common, clips, lambda _: arrays)
        rows += [clip | {"state": "ok", "reason": "", "num_frames": CLIP_FRAMES} for clip in clips]
    memmap.write_table(folder, common, made, rows)


def numbers_of(indices: list[int]) -> dict[str, torch.Tensor]:
    return {"index": torch.tensor(indices)}


def by_memcpy(source: np.ndarray, target: np.ndarray) -> int:
    for _ in range(OUR_BATCHES):
        np.copyto(target, source)
    return OUR_BATCHES * BATCH


def by_loader(batches: Loader) -> int:
    """All batches from a thread that has yet to start, given back as soon as they are there."""
    for number in range(len(batches)):
        batches.give_back(batches[number]["frames"])
    return len(batches) * BATCH


def timed(run: Callable[..., int], *arguments: object) -> tuple[float, float]:
    """(samples a second, CPU ms a sample of this process)."""
    started, used = time.perf_counter(), time.process_time()
    count = run(*arguments)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - used
    return count / seconds, 1e3 * cpu_s / count


def dataloader_rate(data: MapDataset, batches: list[list[int]]) -> float:
    """Samples a second after the first batch, which waits for the workers to start."""
    loader = DataLoader(data, batch_sampler=batches, num_workers=WORKERS)
    rows = iter(loader)
    next(rows)
    started = time.perf_counter()
    count = sum(len(batch["frames"]) for batch in rows)
    return count / (time.perf_counter() - started)


def rates(windows: Windows, data: MapDataset) -> dict:
    """Medians of rounds in which the three take turns, and the rounds."""
    source = np.full((BATCH, *windows.frame_shape), 3, np.uint8)
    target = np.full_like(source, 5)
    order = list(Order(len(windows), BATCH, OUR_BATCHES, seed=3))
    ours = Loader(windows, order, numbers_of)
    by_loader(ours)  # the ring is allocated, the pages are in the cache
    measures = {
        "memcpy": lambda: timed(by_memcpy, source, target),
        "loader": lambda: timed(by_loader, ours),
        "dataloader": lambda: (dataloader_rate(data, order[:THEIR_BATCHES]), None),
    }
    found: dict[str, list[tuple]] = {name: [] for name in measures}
    for turn in range(ROUNDS):
        for name in list(measures)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(measures[name]())
    rate = {name: median(each for each, _ in rounds) for name, rounds in found.items()}
    cpu_ms = {name: median(ms for _, ms in found[name]) for name in ("memcpy", "loader")}
    return {
        "of_memcpy": round(rate["loader"] / rate["memcpy"], 3),
        "of_memcpy_cpu": round(cpu_ms["memcpy"] / cpu_ms["loader"], 3),
        "over_dataloader": round(rate["loader"] / rate["dataloader"], 2),
        "samples_a_second": {name: round(each, 1) for name, each in rate.items()},
        "cpu_ms_a_sample": {name: round(each, 3) for name, each in cpu_ms.items()},
        "rounds_samples_a_second": {
            name: [round(each, 1) for each, _ in rounds] for name, rounds in found.items()
        },
        "memory_mb": round(sum(buffer.frames.nbytes for buffer in ours._ring) / 1e6, 1),
    }


def from_disk(windows: Windows, memcpy_rate: float) -> dict:
    """Samples a second from the disk, and of memcpy where the cache in memory came from there.

    The kernel keeps what it wrote in larger pieces than what it read, which makes a difference.
    """
    # Of every second window, as those share no frame.
    apart = np.random.default_rng(7).permutation(np.arange(0, len(windows), 2)).tolist()
    batches = [apart[i : i + BATCH] for i in range(0, len(apart), BATCH)]
    ours = Loader(windows, batches, numbers_of)
    by_loader(ours)
    for each in windows.cache.shards:
        file = os.open(each.folder / "frames.npy", os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    rate, _ = timed(by_loader, ours)
    again = median(timed(by_loader, ours)[0] for _ in range(ROUNDS))
    return {"samples_a_second": round(rate, 1), "of_memcpy_after": round(again / memcpy_rate, 3)}


def decoding() -> dict:
    """What it takes to make one window from four films of 1080p."""
    path = drive.encoded(decode.FOLDER / "clips", {decode.MAIN: decode.ENCODINGS[decode.MAIN]})
    stamps = np.rint(np.arange(600) * 1e6 / drive.FPS).astype(np.int64)
    seconds, cpu_s = [], []
    for turn in range(DECODED):
        # Windows begin every 4 s, here 0.23 s after a key frame.
        rows = 7 + turn * STRIDE * decode.EVERY + np.arange(LENGTH) * decode.EVERY
        started, used = time.perf_counter(), time.process_time()
        tiles = {
            camera.name: reader.read_frames(
                path[decode.MAIN], stamps[rows], timestamps_us=stamps, size=TILE
            ).images
            for camera in GRID.cameras
        }
        frames = tiling.compose(tiles, GRID)
        seconds.append(round(time.perf_counter() - started, 3))
        cpu_s.append(round(time.process_time() - used, 3))
        if not np.equal(drive.numbers(tiles[GRID.cameras[0].name]), rows).all():
            raise RuntimeError("wrong frames were decoded")
    return {
        "what": f"one window: {LENGTH} frames at {HZ:g} Hz of {len(GRID.cameras)} cameras of "
        f"{drive.WIDTH}×{drive.HEIGHT}, {decode.MAIN}, 8 Mb/s, by our own PyAV reader, one thread",
        "window_mb": round(frames.nbytes / 1e6, 2),
        "seconds": median(seconds),
        "cpu_s": median(cpu_s),
        "tries_s": seconds,
    }


def waits(windows: Windows, step_ms: int) -> dict[str, float]:
    """The waits before steps that only sleep; a batch is given back at the end of its step."""
    batch, num_steps = STEPS[step_ms]
    waited = []
    with Loader(windows, Order(len(windows), batch, num_steps + 1, seed=5), numbers_of) as batches:
        for number in range(num_steps + 1):
            before = batches.waited_s
            frames = batches[number]["frames"]
            waited.append(batches.waited_s - before)
            time.sleep(step_ms / 1e3)
            batches.give_back(frames)
    waited = waited[1:]  # nothing is ahead of the first one
    usual, mean = median(waited), sum(waited) / len(waited)
    return {
        "idle": round(usual / (usual + step_ms / 1e3), 6),
        "mean_idle": round(mean / (mean + step_ms / 1e3), 6),
        "longest_wait_ms": round(1e3 * max(waited), 3),
        "windows_a_step": batch,
        "steps": num_steps,
    }


def measure(folder: Path) -> dict:
    make_cache(folder)
    windows = Windows(Cache.open(folder), LENGTH, STRIDE)
    record = rates(windows, MapDataset(folder, LENGTH, STRIDE))
    disk = from_disk(windows, record["samples_a_second"]["memcpy"])
    decoded = decoding()
    steps = {f"{step_ms}ms": waits(windows, step_ms) for step_ms in STEPS}
    return {
        **{name: record.pop(name) for name in ("of_memcpy", "over_dataloader")},
        "over_decoding": round(record["samples_a_second"]["loader"] * decoded["seconds"]),
        **{f"idle_{name}": each["idle"] for name, each in steps.items()},
        **record,
        "over_decoding_cpu": round(1e3 * decoded["cpu_s"] / record["cpu_ms_a_sample"]["loader"]),
        "decoding": decoded,
        "from_disk": disk,
        "steps": steps,
        "window_mb": round(int(np.prod(windows.frame_shape)) / 1e6, 2),
        "windows": len(windows),
        "batch": BATCH,
        "workers_of_dataloader": WORKERS,
        "rounds": ROUNDS,
        "bars": BARS,
    }


def report(record: dict) -> str:
    """What was measured beside what is asked."""
    rate, cpu_ms = record["samples_a_second"], record["cpu_ms_a_sample"]
    rows = [("", "found", "bar")]
    for name in ("of_memcpy", "over_dataloader", "over_decoding", *list(BARS)[2:]):
        sign = "<" if name.startswith("idle") else "≥"
        rows.append((name, record[name], f"{sign} {BARS[name]}" if name in BARS else ""))
    return "\n".join(
        [
            drive.table(rows),
            "",
            f"samples of {record['window_mb']} MB a second: memcpy {rate['memcpy']}, loader "
            f"{rate['loader']}, DataLoader {rate['dataloader']}; CPU ms a sample: memcpy "
            f"{cpu_ms['memcpy']}, loader {cpu_ms['loader']} ({record['of_memcpy_cpu']} of it)",
            f"decoded in {record['decoding']['seconds']} s, {record['decoding']['cpu_s']} of CPU "
            f"({record['over_decoding_cpu']} times the loader's): {record['decoding']['what']}",
            f"from the disk {record['from_disk']['samples_a_second']} samples a second, and then "
            f"{record['from_disk']['of_memcpy_after']} of memcpy, as memory holds smaller pieces",
            f"the ring of {record['memory_mb']} MB; load {record['load']}; {record['seconds']} s; "
            f"all of it in {decode.FOLDER / 'loader.json'}",
        ]
    )


def main() -> None:
    started, load = time.monotonic(), os.getloadavg()[0]
    decode.FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=decode.FOLDER, prefix="loader-") as name:
        record = measure(Path(name))
    record |= {
        "load": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "machine": hardware.provenance(),
        "seconds": round(time.monotonic() - started, 1),
    }
    files.write_json(decode.FOLDER / "loader.json", record)
    print(report(record))


if __name__ == "__main__":
    main()
