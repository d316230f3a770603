"""The adapter after training: written, read back by plain PEFT, and what the model says with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from avomni_lib.training.backbones import backbone
from avomni_lib.training.model import adapter, load
from avomni_lib.training.prompt import samples
from tests.answering import answers
from tests.gpu.subject import BATCH, Subject
from tests.gpu.trainings import CASES, clear_memory, guarded, memory_gb, optimizer_state

LAST = 64  # tokens of each sample whose logits are compared: the answer is among them
WEIGHTS = "adapter_model.safetensors"


def reload(subject: Subject) -> dict[str, Any]:
    """An adapter that changes what is said, saved and laid over a fresh base: the same logits.

    And the adapter of the first training: what was exported is what its last checkpoint holds.
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    case = CASES["4cam"]
    p, windows = case.params(subject), subject.windows(case.setup)
    base = load.load_base(p)
    tuned = load.add_adapter(base.model, p, backbone(p.model.backbone, base.model.config)).eval()
    torch.manual_seed(1)
    for name, weights in tuned.named_parameters():
        if "lora_B" in name:  # it starts as zeros: the adapter would say nothing
            weights.data.normal_(std=0.02)
    batch = _batch(windows, p, base)
    saved = subject.folder / "random-adapter"
    with torch.inference_mode():
        before = tuned(**batch).logits.float().cpu()
    tuned.save_pretrained(saved)
    del tuned, base
    clear_memory()

    base = load.load_base(p)
    with torch.inference_mode():
        bare = base.model(**batch).logits.float().cpu()
        again = PeftModel.from_pretrained(base.model, str(saved)).eval()
        after = again(**batch).logits.float().cpu()
    base = base._replace(model=again.unload())
    folder = adapter.adapter_dir(p)
    checkpoint = max(p.checkpoints_dir.glob(f"*/checkpoint-*/{WEIGHTS}"), key=_age)
    exported, kept = load_file(folder / WEIGHTS), load_file(checkpoint)
    started = time.perf_counter()
    adapted = load.load_adapter(base.model, folder, p)
    subject.found["adapted"] = adapted, base.tokenizer, p
    with torch.inference_mode():
        trained = adapted(**batch).logits.float().cpu()
    return {
        "equal": torch.equal(before, after),
        "largest_difference": float((before - after).abs().max()),
        "logits_from_to": [float(before.min()), float(before.max())],
        "adapter_moves_logits_by": float((before - bare).abs().max()),
        "trained_adapter_moves_logits_by": float((trained - bare).abs().max()),
        "all_finite": bool(torch.isfinite(torch.stack([before, after, bare, trained])).all()),
        "exported_equals_checkpoint": exported.keys() == kept.keys()
        and all(torch.equal(exported[name], kept[name]) for name in exported),
        "adapter_mb": round((folder / WEIGHTS).stat().st_size / 1e6, 1),
        "adapter_dtypes": sorted({str(weights.dtype) for weights in exported.values()}),
        "adapter_load_seconds": round(time.perf_counter() - started, 1),
        "optimizer_state": guarded(optimizer_state, p.checkpoints_dir),
    }


def generate(subject: Subject) -> dict[str, Any]:
    """Eight windows answered greedily, 64 tokens each: random weights do not end a turn."""
    adapted, words, p = subject.found.pop("adapted")
    windows = subject.windows("4-cam")
    talk = samples.conversation_of(p, words, backbone(p.model.backbone, adapted.config))
    finite: list[torch.Tensor] = []
    hook = adapted.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, logits: finite.append(torch.isfinite(logits).all())
    )
    num_windows, num_tokens = (2, 16) if subject.quick else (8, 64)
    clear_memory(reset=True)
    taken = []
    for _ in range(2):  # the first one loads kernels
        finite.clear()
        started = time.perf_counter()
        texts = answers(
            adapted,
            talk,
            windows,
            range(num_windows),
            batch_size=num_windows,
            max_new_tokens=num_tokens,
        )
        taken.append(time.perf_counter() - started)
    hook.remove()
    return {
        "windows": num_windows,
        "tokens_at_most": num_tokens,
        "steps": len(finite),
        "all_finite": bool(torch.stack(finite).all()),
        "seconds": round(taken[-1], 3),
        "seconds_the_first_time": round(taken[0], 3),
        "tokens_per_s": round(num_windows * len(finite) / taken[-1], 1),
        "peak_memory_gb": memory_gb(),
        "answers": [text[:80] for text in texts[:2]],
    }


def _batch(windows: Any, p: Any, base: Any) -> dict[str, Any]:
    """Two windows as the training takes them; logits of the last tokens alone."""
    kind = backbone(p.model.backbone, base.model.config)
    talk = samples.conversation_of(p, base.tokenizer, kind)
    batch = samples.batch_of(range(BATCH), windows, talk)
    del batch["labels"]
    frames = torch.stack([torch.tensor(windows.frames(index)) for index in range(BATCH)])
    device = base.model.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    return batch | talk.inputs(frames.to(device), base.model.dtype) | {"logits_to_keep": LAST}


def _age(path: Path) -> float:
    return path.stat().st_mtime
