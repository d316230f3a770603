"""Small computations of what training relies on, each compared with the same computed plainly.

A probe takes a device, as `cpu` or `cuda:0`, and returns a `Finding`: what its library computes is
right there, or wrong, or it fails. Together they take a second on a CPU. Inputs come from a
generator of their own: torch's random state is as it was before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from avomni_lib import hardware
from avomni_lib.training.doctor.findings import NOTE, OK, WRONG, Finding

if TYPE_CHECKING:
    import torch

# Of the norm of what is right: bfloat16 is off by 0.004, a wrong kernel by 0.1 and more.
BOUND = 0.02
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
# Those of Qwen3-VL-8B.
VISION_HEADS, VISION_HEAD_DIM = 16, 72
TEXT_HEADS, TEXT_KV_HEADS, TEXT_HEAD_DIM = 32, 8, 128
PASSES = ("forward", "backward to q", "backward to k", "backward to v")
FIX = "the torch that the line `platform` names, or a later one"


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


def vision_attention(on: str) -> Finding:
    """SDPA as the vision tower attends, to copies of what it makes (`attention.copy_views`)."""
    return judge(
        "attention, vision tower",
        on,
        _vision_attention,
        why="the model then sees what is not there; on ROCm, SDPA has been wrong where v is a view "
        "(vLLM #27744, ROCm/pytorch #3230), which is why it gets copies",
        fix=FIX,
    )


def text_attention(on: str) -> Finding:
    """SDPA as the language model uses it, both passes: causal with fewer key heads, and masked."""
    return judge(
        "attention, language model",
        on,
        _text_attention,
        why="every layer of the language model rests on it, forward and backward",
        fix=FIX,
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
    result = layer(rows)
    result.backward(back.to(device, dtype))
    deviations += [
        Deviation("forward", relative_error(result, given @ kept.T)),
        Deviation("backward", relative_error(rows.grad, back @ kept)),
    ]
    layer.eval()
    with torch.no_grad():
        for count in DECODED_ROWS:
            result = layer(given[:count].to(device, dtype))
            what = "a product of one row" if count == 1 else f"a product of {count} rows"
            deviations.append(Deviation(what, relative_error(result, given[:count] @ kept.T)))
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
        Deviation(
            "the way of four steps", relative_error(ours.cpu() - start, plain - start), STEP_BOUND
        ),
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
        deviations.append(Deviation(f"its {name}", relative_error(compute(), right)))
        taken[name] = min(seconds(compute, device) for _ in range(3))
    return deviations


def _vision_attention(device: torch.device) -> list[Deviation]:
    from torch.nn import functional

    # One temporal patch of the 2×2 grid of 448×256 px tiles; a quarter of it on a CPU.
    num_patches = 448 if device.type == "cpu" else 1792
    fused = drawer()(num_patches, 3, VISION_HEADS, VISION_HEAD_DIM).to(device, dtype_of(device))
    q, k, v = (
        x.transpose(0, 1).unsqueeze(0).contiguous() for x in fused.permute(1, 0, 2, 3).unbind(0)
    )
    result = functional.scaled_dot_product_attention(q, k, v, scale=VISION_HEAD_DIM**-0.5)
    return [Deviation("SDPA", relative_error(result, _formula(q, k, v)))]


def _text_attention(device: torch.device) -> list[Deviation]:
    import torch
    from torch.nn import functional

    length = 96 if device.type == "cpu" else 512
    draw, dtype = drawer(), dtype_of(device)
    heads = (TEXT_HEADS, TEXT_KV_HEADS, TEXT_KV_HEADS)
    given = [draw(2, length, count, TEXT_HEAD_DIM).to(device, dtype) for count in heads]
    back = draw(2, TEXT_HEADS, length, TEXT_HEAD_DIM).to(device, dtype)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    # The second sample is padded on the right, by a fifth.
    is_token = torch.ones(2, 1, 1, length, dtype=torch.bool, device=device)
    is_token[1, ..., -(length // 5) :] = False
    mask = causal & is_token

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            q, k, v, scale=TEXT_HEAD_DIM**-0.5, is_causal=True, enable_gqa=True
        )

    def fused_masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # transformers repeats the key heads where there is a mask.
        return functional.scaled_dot_product_attention(
            q, _repeated(k), _repeated(v), scale=TEXT_HEAD_DIM**-0.5, attn_mask=mask
        )

    def both_passes(attend) -> list[torch.Tensor]:
        leaves = [values.detach().requires_grad_() for values in given]
        result = attend(*(leaf.transpose(1, 2) for leaf in leaves))
        result.backward(back.to(result.dtype))
        return [result, *(leaf.grad for leaf in leaves)]

    deviations = []
    for name, attend, allowed in (("causal", fused, causal), ("masked", fused_masked, mask)):
        right = both_passes(lambda q, k, v, allowed=allowed: _formula(q, k, v, allowed))
        deviations += [
            Deviation(f"{name} {step}", relative_error(*pair))
            for step, *pair in zip(PASSES, both_passes(attend), right, strict=True)
        ]
    return deviations


def _formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention in float32: (B, heads, L, head_dim) each, of k and v fewer heads at will.

    Args:
        allowed: True where a row may look; None is everywhere.
    """
    q, k, v = (x.float() for x in (q, k, v))
    if k.shape[1] < q.shape[1]:
        k, v = _repeated(k), _repeated(v)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1) @ v


def _repeated(heads: torch.Tensor) -> torch.Tensor:
    return heads.repeat_interleave(TEXT_HEADS // TEXT_KV_HEADS, dim=1)


class Deviation(NamedTuple):
    """How far a result is from what is right, as a share of its norm, and how far it may be."""

    what: str
    error: float
    bound: float = BOUND


def judge(
    name: str,
    on: str,
    work: Callable[[torch.device], list[Deviation]],
    why: str,
    fix: str,
) -> Finding:
    """Run `work` on a device, as `cpu` or `cuda:0`, and hold its deviations against their bounds.

    NaN is beyond every bound, and what `work` raises is a finding too.
    """
    import torch

    device = torch.device(on)
    try:
        # Layers draw their first weights on the CPU, whatever the device.
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            deviations = work(device)
            wait(device)
    except Exception as error:  # whatever the libraries die of is the answer
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(name, WRONG, f"fails: {reason[:200]}", why, fix)
    finally:
        if device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # after a fault of the card nothing works
                torch.cuda.empty_cache()
    beyond = [
        f"{d.what} is off by {_percent(d.error)}" for d in deviations if not d.error <= d.bound
    ]
    if beyond:
        return Finding(name, WRONG, ", ".join(beyond), why, fix)
    tightest = min(deviation.bound for deviation in deviations)
    worst = max(deviation.error for deviation in deviations if deviation.bound == tightest)
    return Finding(name, OK, f"right to {_percent(worst)}", why, fix)


def drawer() -> Callable[..., torch.Tensor]:
    """Normal numbers on the CPU, float32: the same ones in every probe and on every machine."""
    import torch

    generator = torch.Generator(device="cpu").manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device="cpu")


def dtype_of(device: torch.device) -> torch.dtype:
    """The dtype that training computes in there."""
    import torch

    return getattr(torch, hardware.dtype(str(device)).value)


def relative_error(result: torch.Tensor, right: torch.Tensor) -> float:
    """The norm of their difference, as a share of the norm of what is right."""
    result, right = (values.detach().float().cpu() for values in (result, right))
    return float((result - right).norm() / right.norm())


def seconds(compute: Callable[[], torch.Tensor], device: torch.device) -> float:
    """How long one call takes, until the device is through with it."""
    wait(device)
    begun = time.perf_counter()
    compute()
    wait(device)
    return time.perf_counter() - begun


def wait(device: torch.device) -> None:
    """Until the device has computed what it was given; its errors are raised here."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _percent(error: float) -> str:
    percent = 100 * max(error, 1e-4) if error == error else error
    return f"{percent:.{0 if percent >= 10 else 2}f} %"
