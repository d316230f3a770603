"""Small runs of what training relies on, each compared with the same computed plainly.

A probe takes a device, as `cpu` or `cuda:0`, and returns a `Finding`: what its library computes is
right there, or wrong, or it fails. Together they take a second on a CPU.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from typing import TYPE_CHECKING, Any

from avomni_lib.training.doctor.attention_probes import text_attention, vision_attention
from avomni_lib.training.doctor.comparison import (
    Deviation,
    apart,
    drawer,
    dtype_of,
    judge,
    seconds,
    wait,
)
from avomni_lib.training.doctor.findings import NOTE, OK, Finding

if TYPE_CHECKING:
    import torch

# Of a block of 64 weights: NF4 is off by 0.09 and at most 0.13 over 65,536 of them.
BLOCK_BOUND = 0.2
# Moments of 8 bits put a weight off by 0.009 after four steps.
STEP_BOUND, NUM_STEPS = 0.05, 4
# Qwen3-VL-8B's k_proj; LoRA's first matrix of rank 64 on it (above 100,000 numbers it is paged).
WEIGHT, ADAPTER = (1024, 4096), (64, 4096)
# Windows answered at a time: one and a few go through kernels of their own.
DECODED_ROWS = (1, 8)
# Hidden size, channels, frames and px of a patch.
PATCH_WEIGHT = (1152, 3, 2, 16, 16)
SLOW_RATIO = 3
BITSANDBYTES_OPS = "bitsandbytes.backends.cpu.ops"  # the name of its logger
# transformers' name -> whether its moments are paged.
OPTIMIZERS = {"paged_adamw_8bit": True, "adamw_8bit": False}


def run(on: str) -> list[Finding]:
    """All probes."""
    return [
        four_bit_linear(on),
        *(optimizer_step(name, on) for name in OPTIMIZERS),
        vision_attention(on),
        text_attention(on),
        patch_embedding(on),
    ]


def four_bit_linear(on: str) -> Finding:
    """An NF4 layer with double quantisation: its weights, both passes, and products of few rows."""
    return judge(
        "4-bit linear",
        on,
        _four_bit_linear,
        why="the base model's weights are kept so; on an MI300X, bitsandbytes 0.49 gave NaN for "
        "the product of one row, with which answers are decoded",
        fix="pip install --no-deps 'bitsandbytes>=0.50,<0.51', or model.load_in_4bit: false",
    )


def optimizer_step(name: str, on: str) -> Finding:
    """Steps of one of `OPTIMIZERS` beside torch's AdamW."""
    is_paged = OPTIMIZERS[name]
    return judge(
        f"{name} step",
        on,
        lambda device: _optimizer_steps(device, is_paged),
        why="an optimizer that does not move the adapter as AdamW would trains something else",
        fix=f"training.optimizer: {'adamw_8bit or ' if is_paged else ''}adamw_torch",
    )


def optimizer_fault(name: str, on: str) -> str | None:
    """Why an optimizer cannot train on a device, in a library's words; None where it can.

    Args:
        name: A name of transformers' `optim`. It is made as transformers' Trainer makes it, and
            takes a step.
    """
    import torch
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    # As `TrainingArguments()` would be, which also joins the processes that train together.
    arguments = object.__new__(TrainingArguments)
    for field in dataclasses.fields(TrainingArguments):
        is_made = field.default_factory is not dataclasses.MISSING
        setattr(arguments, field.name, field.default_factory() if is_made else field.default)
    device, weight = torch.device(on), drawer()(64, 128)
    logging.getLogger(BITSANDBYTES_OPS).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments.optim = OptimizerNames(name)
            kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
            moved = torch.nn.Parameter(weight.clone().to(device))
            optimizer = kind([moved], **options)
            if hasattr(optimizer, "train"):
                optimizer.train()
            moved.grad = 1e-3 * torch.ones_like(moved)
            optimizer.step()
        wait(device)
        after = moved.detach().cpu()
    except Exception as error:  # a library that lacks a kernel fails in many ways
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if not after.isfinite().all() or after.equal(weight):
        return "a step of it does not move a weight"
    return None


def patch_embedding(on: str) -> Finding:
    """The vision tower's Conv3d beside the one product that it amounts to, and both in time."""
    taken: dict[str, float] = {}
    finding = judge(
        "patch embedding",
        on,
        lambda device: _patch_embedding(device, taken),
        why="every picture enters the model by it",
        fix="the torch that the line `platform` names",
    )
    if finding.state != OK:
        return finding
    ratio = taken["Conv3d"] / taken["product"]
    return dataclasses.replace(
        finding,
        state=NOTE if ratio > SLOW_RATIO else OK,
        found=f"Conv3d takes {ratio:.1f} times as long as one product, and both are right",
        why="torch 2.9 computes this Conv3d 10 to 20 times slower than 2.8 (pytorch #174051)",
        fix="nothing: training and answers take the product, of the same weights",
    )


def load_bitsandbytes() -> Any:
    """The package, without a warning of its import that is none: it is about bfloat16 on CPUs."""
    logging.getLogger(BITSANDBYTES_OPS).setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def _four_bit_linear(device: torch.device) -> list[Deviation]:
    import torch

    bitsandbytes = load_bitsandbytes()
    draw, dtype = drawer(), dtype_of(device)
    weight = draw(*WEIGHT)
    layer = bitsandbytes.nn.Linear4bit(
        WEIGHT[1],
        WEIGHT[0],
        bias=False,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
    )
    layer.support_avx512bf16_for_cpu = False  # as model.py loads the base model
    layer.weight.data = weight
    layer = layer.to(device)  # quantises
    state = layer.weight.quant_state
    kept = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state).float().cpu()
    lost, length = (x.reshape(-1, state.blocksize).norm(dim=1) for x in (kept - weight, weight))
    deviations = [Deviation("a block of weights", float((lost / length).max()), BLOCK_BOUND)]

    given, back = draw(64, WEIGHT[1]), draw(64, WEIGHT[0])
    rows = given.to(device, dtype).detach().requires_grad_()
    made = layer(rows)
    made.backward(back.to(device, dtype))
    deviations += [
        Deviation("forward", apart(made, given @ kept.T)),
        Deviation("backward", apart(rows.grad, back @ kept)),
    ]
    layer.eval()
    with torch.no_grad():
        for count in DECODED_ROWS:
            made = layer(given[:count].to(device, dtype))
            what = "a product of one row" if count == 1 else f"a product of {count} rows"
            deviations.append(Deviation(what, apart(made, given[:count] @ kept.T)))
    return deviations


def _optimizer_steps(device: torch.device, is_paged: bool) -> list[Deviation]:
    import torch

    # As transformers' Trainer makes it.
    eight_bit = load_bitsandbytes().optim.AdamW
    draw = drawer()
    start = draw(*ADAPTER)
    ours, plain = (torch.nn.Parameter(start.clone().to(to)) for to in (device, "cpu"))
    common = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    optimizer = eight_bit([ours], optim_bits=8, is_paged=is_paged, **common)
    reference = torch.optim.AdamW([plain], **common)
    for _ in range(NUM_STEPS):
        gradient = 1e-3 * draw(*ADAPTER)
        ours.grad, plain.grad = gradient.to(device), gradient
        optimizer.step()
        reference.step()
    wait(device)
    is_kept_in_8_bit = optimizer.state[ours]["state1"].dtype == torch.uint8
    return [
        Deviation("the way of four steps", apart(ours.cpu() - start, plain - start), STEP_BOUND),
        Deviation("the width of its moments", float(not is_kept_in_8_bit), STEP_BOUND),
    ]


def _patch_embedding(device: torch.device, taken: dict[str, float]) -> list[Deviation]:
    """Also notes in `taken` the seconds of `Conv3d` and of `product`, the shortest of three each"""
    from torch.nn import functional

    num_patches = 128 if device.type == "cpu" else 1792
    draw, dtype = drawer(), dtype_of(device)
    size = math.prod(PATCH_WEIGHT[1:])
    host = draw(num_patches, size), draw(*PATCH_WEIGHT) * size**-0.5, draw(PATCH_WEIGHT[0])
    patches, weight, bias = (values.to(device, dtype) for values in host)
    right = functional.linear(host[0], host[1].flatten(1), host[2])

    def convolve() -> torch.Tensor:
        pictures = patches.view(-1, *PATCH_WEIGHT[1:])
        return functional.conv3d(pictures, weight, bias, stride=PATCH_WEIGHT[2:]).flatten(1)

    def multiply() -> torch.Tensor:
        return functional.linear(patches, weight.flatten(1), bias)

    deviations = []
    for name, compute in (("Conv3d", convolve), ("product", multiply)):
        deviations.append(Deviation(f"its {name}", apart(compute(), right)))
        taken[name] = min(seconds(compute, device) for _ in range(3))
    return deviations
