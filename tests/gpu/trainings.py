"""Trainings through the project's own worker, a few steps each, and what they took.

Nothing here imports transformers, TRL or PEFT before the worker does: Unsloth has to come first.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avomni_lib.params import Params
from tests.gpu.subject import BATCH, Subject

WARM_UP = 3  # steps that are not counted: kernels are loaded, memory grows to its size


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        setup: Of the cameras; it says how large the grid is.
        steps: Optimizer steps, the first `warm_up` not counted.
        accumulation: Batches a step.
    """

    name: str
    setup: str
    steps: int
    warm_up: int = WARM_UP
    accumulation: int = 1
    gradient_checkpointing: bool = True
    load_in_4bit: bool = True
    backend: str = "transformers"

    def shortened(self) -> Case:
        """The same in as few steps as still have one to count."""
        return replace(self, steps=2, warm_up=1)

    def params(self, subject: Subject) -> Params:
        model: dict[str, Any] = {"backend": self.backend, "load_in_4bit": self.load_in_4bit}
        if not self.load_in_4bit:
            model["base_model"] = str(subject.bf16)
        training = {
            "gradient_accumulation_steps": self.accumulation,
            "gradient_checkpointing": self.gradient_checkpointing,
            "max_steps": self.steps,
        }
        return subject.params(self.name, self.setup, model=model, training=training)


CASES = {
    case.name: case
    for case in (
        Case("4cam", "4-cam", steps=12),
        Case("7cam", "7-cam", steps=8),
        Case("4cam_stored_activations", "4-cam", steps=8, gradient_checkpointing=False),
        Case("4cam_accumulated", "4-cam", steps=3, warm_up=1, accumulation=8),
        Case("4cam_bf16", "4-cam", steps=8, load_in_4bit=False),
        Case("4cam_unsloth", "4-cam", steps=8, backend="unsloth"),
    )
}


def run(case: Case, subject: Subject) -> dict[str, Any]:
    """Train and say what it took."""
    windows, p = subject.windows(case.setup), case.params(subject)
    # An earlier one of the same name would be gone on with, from its end.
    shutil.rmtree(p.run_dir, ignore_errors=True)
    held_before = clear_memory(reset=True)
    started = time.perf_counter()
    done = train(p, windows)
    seconds = time.perf_counter() - started
    peak = memory_gb()
    counted = [line for line in done.metrics if line["step"] > case.warm_up]
    step = statistics.median(line["seconds"] for line in counted)
    tokens = done.figures["tokens_per_sample"]
    num_windows = BATCH * case.accumulation
    found = {
        "grid": subject.size(case.setup),
        "quantisation": done.choices["quantisation"].value,
        "backend": done.choices["backend"].value,
        "optimizer": done.choices["optimizer"].value,
        "gradient_checkpointing": case.gradient_checkpointing,
        "windows_per_step": num_windows,
        "tokens_per_window": tokens,
        "seconds_per_step": round(step, 4),
        "seconds_of_steps": [round(line["seconds"], 4) for line in done.metrics],
        "steps_counted": len(counted),
        "windows_per_s": round(num_windows / step, 3),
        "tokens_per_s": round(num_windows * tokens / step, 1),
        "data_wait_share": round(
            sum(line["data_wait_s"] for line in counted) / sum(line["seconds"] for line in counted),
            6,
        ),
        "peak_memory_gb": peak,
        "held_before_gb": held_before,
        "trainable_parameters": done.figures["trainable_parameters"],
        "losses": [round(line["loss"], 4) for line in done.metrics],
        "seconds_in_all": round(seconds, 1),
    }
    found["arithmetic"] = guarded(arithmetic, p, windows, tokens, num_windows / step, subject)
    found["paged"] = guarded(paged_optimizer)
    return found


def train(p: Params, windows: Any, stop: threading.Event | None = None) -> Any:
    """The project's training in this process: an object with adapter, metrics, choices, figures."""
    from avomni_lib.training.fit import worker

    return worker.work(p, windows=windows, stop=stop)


def arithmetic(
    p: Params, windows: Any, num_tokens: int, windows_per_s: float, subject: Subject
) -> dict[str, Any]:
    """The share of the card's bf16 peak, and the memory that the project foretells.

    Operations are `estimate.operations`': those of the model alone, and with what gradient
    checkpointing computes a second time. The peak is the datasheet's, and what one large product
    reaches on this card.
    """
    from transformers import AutoTokenizer

    from avomni_lib.training.forecast import estimate, memory
    from avomni_lib.training.prompt import samples, tokens

    words = AutoTokenizer.from_pretrained(p.model.base_model)
    talk = samples.conversation_of(p, words, tokens.backbone_of(p))
    vision = talk.num_vision_tokens
    of_sample = tokens.Tokens(
        vision,
        num_tokens - vision,
        num_tokens - len(talk.prompt()),
        talk.backbone.vision_work(talk.videos),
    )
    of_model = memory.size_of(p)
    needed = memory.memory(
        p,
        of_model,
        of_sample,
        device="cpu" if subject.quick else "cuda",
        dtype_bytes=4 if subject.quick else 2,
    )
    found: dict[str, Any] = {
        "memory_foretold_gb": round(needed.peak_bytes / 1e9, 4),
        "memory_foretold_by_part_gb": {k: round(v / 1e9, 3) for k, v in needed.parts().items()},
        "memory_foretold_at_moments_gb": {k: round(v / 1e9, 3) for k, v in needed.moments.items()},
    }
    work = estimate.operations(of_model, of_sample, p.model.lora_rank, memory.lora_targets(p))
    ceilings = {name: subject.found.get(name) for name in ("datasheet", "measured_product")}
    for what, recomputed in (
        ("model", False),
        ("with_recomputation", p.training.gradient_checkpointing),
    ):
        tflops = work.step(recomputed) * windows_per_s / 1e12
        found[f"tflops_{what}"] = float(f"{tflops:.4g}")
        for name, ceiling in ceilings.items():
            if ceiling:
                found[f"share_of_{name}_{what}"] = round(tflops / ceiling, 4)
    return found


def paged_optimizer() -> dict[str, Any]:
    """How many tensors of bitsandbytes' optimizers lie in memory that pages to the host."""
    from bitsandbytes.functional import GlobalPageManager

    tensors = GlobalPageManager.get_instance().paged_tensors
    return {
        "paged_tensors": len(tensors),
        "dtypes": sorted({str(tensor.dtype) for tensor in tensors}),
        "gb": round(sum(tensor.nbytes for tensor in tensors) / 1e9, 3),
    }


def optimizer_state(folder: Path) -> dict[str, Any]:
    """The dtypes of the moments in the last checkpoint below a run's `checkpoints`."""
    import torch

    path = max(folder.glob("*/checkpoint-*/optimizer.pt"), key=lambda path: path.stat().st_mtime)
    states = torch.load(path, weights_only=True, map_location="cpu")["state"].values()
    moments = [each["__bnb_optimizer_quant_state__"]["state1"] for each in states]
    return {
        "moments": len(moments),
        "dtypes": sorted({str(m.dtype) for m in moments}),
        "in_8_bit": sum(m.numel() for m in moments if m.element_size() == 1)
        / sum(m.numel() for m in moments),
    }


def guarded(call: Any, *arguments: Any) -> Any:
    """What it returns, or the reason why it does not."""
    try:
        return call(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def clear_memory(reset: bool = False) -> float:
    """Give back what nothing holds any more, so that a peak is the next one's own.

    transformers' trainer registers embeddings with bitsandbytes, which keeps them for the life of
    the process: 1.25 GB for each training of the 8B, and the moments of its paged optimizers.

    Returns:
        What is held still, GB (1e9).
    """
    import torch

    if "bitsandbytes" in sys.modules:
        from bitsandbytes.functional import GlobalPageManager
        from bitsandbytes.optim import GlobalOptimManager

        kept = GlobalOptimManager.get_instance()
        for each in (kept.module_weight_config_triple, kept.pid2config, kept.index2config):
            each.clear()
        GlobalPageManager.get_instance().paged_tensors.clear()
    gc.collect()
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.empty_cache()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return round(torch.cuda.memory_allocated() / 1e9, 3)


def memory_gb() -> dict[str, float]:
    """The most that torch gave out, and the most that it held of the card, GB (1e9)."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "allocated": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "reserved": round(torch.cuda.max_memory_reserved() / 1e9, 2),
    }


def plain(value: Any) -> Any:
    """Values as JSON has them; what it does not know becomes its text."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
