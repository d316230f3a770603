"""The card itself: what it is, how fast it multiplies and copies, and our pixels on it."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata, util
from typing import Any

import torch

from avomni_lib import hardware
from avomni_lib.training.backbones import backbone
from tests.gpu.subject import HZ, LENGTH, QWEN3_VL, Subject
from tests.gpu.trainings import plain

# Dense bf16 TFLOP/s by the vendors' datasheets, by a part of the card's name.
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "MI300X": 1307.0, "MI325X": 1307.0}
MORE_PACKAGES = ("torchvision", "triton", "unsloth_zoo", "xformers", "flash_attn", "tokenizers")


def describe(subject: Subject) -> dict[str, Any]:
    """What everything below was measured with."""
    found = plain(hardware.provenance())
    for name in MORE_PACKAGES:
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found["packages"][name] = None
    found |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
    found["allocator"] = os.environ.get("PYTORCH_ALLOC_CONF")
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found["card"] = {
            "name": card.name,
            "memory_gb": round(card.total_memory / 1e9, 1),
            "multiprocessors": card.multi_processor_count,
            "driver": _driver(),
        }
        peak = next((value for name, value in PEAKS.items() if name in card.name), None)
        subject.found["datasheet"] = found["card"]["datasheet_tflops"] = peak
    return found


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def ceilings(subject: Subject) -> dict[str, Any]:
    """A large bf16 product, a copy on the card, and copies from page-locked host memory."""
    on = _device()
    side = 256 if subject.quick else 8192
    left, right = (torch.randn(side, side, device=on, dtype=torch.bfloat16) for _ in range(2))
    made = torch.empty_like(left)
    # 13 products after an idle time reached 741 TFLOP/s on an H200, those of a training step 796.
    warm_up = 3 if subject.quick else 300
    product = seconds_of(lambda: torch.mm(left, right, out=made), warm_up, times=50)
    subject.found["measured_product"] = 2 * side**3 / product / 1e12

    size = 1 << (20 if subject.quick else 32)
    source = torch.randint(0, 255, (size,), device=on, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source))
    found = {
        "matmul_side": side,
        "matmul_tflops": round(subject.found["measured_product"], 2),
        "device_copy_gb_per_s": round(2 * size / copy / 1e9, 1),
    }
    batch = 2 * LENGTH * 512 * 896 * 3
    for name, size in {"1_gb": 1 << (20 if subject.quick else 30), "batch": batch}.items():
        host = torch.randint(0, 255, (size,), dtype=torch.uint8)
        if on != "cpu":
            host = host.pin_memory()
        there = target[:size] if size <= len(target) else torch.empty(size, dtype=torch.uint8)
        upload = seconds_of(lambda h=host, t=there: t.copy_(h, non_blocking=True))
        found[f"upload_{name}_gb_per_s"] = round(size / upload / 1e9, 2)
    return found


def pixels(subject: Subject) -> dict[str, Any]:
    """Our pixels on the device against those of transformers' own video processor on the host."""
    if util.find_spec("torchvision") is None:
        return {"left_out": "transformers' video processor needs torchvision, which is missing"}
    if subject.backbone != QWEN3_VL:
        return {"left_out": "it compares Qwen3-VL's pixels alone"}
    from transformers import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    processor = Qwen3VLVideoProcessor(do_resize=False, do_sample_frames=False)
    shape = (LENGTH, 64, 96, 3) if subject.quick else (LENGTH, 512, 896, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    about = VideoMetadata(total_num_frames=LENGTH, fps=HZ, frames_indices=list(range(LENGTH)))
    started = time.perf_counter()
    theirs = processor(
        videos=[frames.permute(0, 3, 1, 2)], video_metadata=[about], return_tensors="pt"
    )
    host_seconds = time.perf_counter() - started
    kind, there = backbone(QWEN3_VL), frames[None].to(_device())
    ours = kind.inputs([there])
    name = "pixel_values_videos"
    difference = (ours[name].cpu() - theirs[name]).abs().max()
    return {
        "frames": list(shape),
        "equal": torch.equal(ours[name].cpu(), theirs[name]),
        "largest_difference": float(difference),
        "same_grid": torch.equal(ours["video_grid_thw"].cpu(), theirs["video_grid_thw"].cpu()),
        "theirs_on_host_ms": round(host_seconds * 1e3, 1),
        "ours_on_device_ms": round(seconds_of(lambda: kind.inputs([there])) * 1e3, 3),
        "ours_bf16_ms": round(seconds_of(lambda: kind.inputs([there], torch.bfloat16)) * 1e3, 3),
    }


def seconds_of(call: Callable[[], Any], warm_up: int = 3, times: int = 10) -> float:
    """The median time of a call, with all that it sets off on the device."""
    taken = []
    for _ in range(warm_up + times):
        _wait()
        started = time.perf_counter()
        call()
        _wait()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[warm_up:])


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
