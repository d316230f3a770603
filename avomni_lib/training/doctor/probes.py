"""Small computations that training relies on, compared with a plain reference.

A probe takes a device such as `cpu` or `cuda:0` and returns a `DoctorFinding`. All together take a
second on a CPU. Inputs come from a separate generator, so torch's random state is unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from avomni_lib import hardware
from avomni_lib.training.doctor.machine import OK, WRONG, DoctorFinding

if TYPE_CHECKING:
    import torch

# (name, error relative to the norm of the reference, bound of the error)
Deviations = Iterator[tuple[str, float, float]]
BOUND = 0.02  # bfloat16 has an error of 0.004, a wrong kernel of 0.1 and more
BLOCK_BOUND = 0.2  # blocks of 64 weights: NF4's error is 0.09, at most 0.13 over 65,536 blocks
STEP_BOUND, NUM_STEPS = 0.05, 4  # 8-bit moments cause an error of 0.009 after four steps
# Qwen3-VL-8B's k_proj; LoRA's first matrix of rank 64 for it (paged above 100,000 numbers).
WEIGHT, ADAPTER = (1024, 4096), (64, 4096)
OPTIMIZERS = {"paged_adamw_8bit": True, "adamw_8bit": False}  # name -> whether it is paged
# Heads and head dimensions of Qwen3-VL-8B's vision tower and language model.
VISION_HEADS, VISION_DIM = 16, 72
TEXT_HEADS, TEXT_KV_HEADS, TEXT_DIM = 32, 8, 128
BITSANDBYTES_OPS = "bitsandbytes.backends.cpu.ops"  # the name of its logger
TORCH_FIX = "the torch that the line `platform` names, or a later one"


def run(on: str) -> list[DoctorFinding]:
    steps = [optimizer_step(name, on) for name in OPTIMIZERS]
    return [four_bit_linear(on), *steps, vision_attention(on), text_attention(on)]


def _judge(
    name: str, why: str, fix: str, work: Callable[[torch.device], Deviations], on: str
) -> DoctorFinding:
    """Compare the errors that `work` yields with their bounds; NaN and exceptions are failures."""
    import torch

    device = torch.device(on)
    try:
        # Layers initialise their weights on the CPU, whatever the device.
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            deviations = list(work(device))
            _wait(device)
    except Exception as error:  # any exception is a failure of the probe
        return DoctorFinding(name, WRONG, f"fails: {_first_line(error)}", why, fix)
    finally:
        if device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # the card may have failed
                torch.cuda.empty_cache()
    beyond = [f"{what} is off by {e:.0%}" for what, e, most in deviations if not e <= most]
    if beyond:
        return DoctorFinding(name, WRONG, ", ".join(beyond), why, fix)
    tightest = min(most for *_, most in deviations)
    worst = max(error for _, error, most in deviations if most == tightest)
    return DoctorFinding(name, OK, f"right to {max(worst, 1e-4):.2%}", why, fix)


def _probe(name: str, why: str, fix: str) -> Callable[..., Callable[[str], DoctorFinding]]:
    return lambda work: functools.wraps(work)(functools.partial(_judge, name, why, fix, work))


@_probe(
    "4-bit linear",
    "the base model's weights are kept so; on an MI300X, bitsandbytes 0.49 gave NaN for the "
    "product of one row, with which answers are decoded",
    "pip install --no-deps 'bitsandbytes>=0.50,<0.51', or model.load_in_4bit: false",
)
def four_bit_linear(device: torch.device) -> Deviations:
    """An NF4 layer with double quantisation: weights, both passes, and products of few rows."""
    import torch

    bitsandbytes = load_bitsandbytes()
    draw, dtype = _drawer(), _dtype_of(device)
    weight = draw(*WEIGHT)
    options = {"compute_dtype": dtype, "compress_statistics": True, "quant_type": "nf4"}
    layer = bitsandbytes.nn.Linear4bit(WEIGHT[1], WEIGHT[0], bias=False, **options)
    layer.support_avx512bf16_for_cpu = False  # as load.py loads the base model
    layer.weight.data = weight
    layer = layer.to(device)  # quantises
    state = layer.weight.quant_state
    kept = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state).float().cpu()
    lost, length = (x.reshape(-1, state.blocksize).norm(dim=1) for x in (kept - weight, weight))
    yield "a block of weights", float((lost / length).max()), BLOCK_BOUND

    given, back = draw(64, WEIGHT[1]), draw(64, WEIGHT[0])
    rows = given.to(device, dtype).detach().requires_grad_()
    result = layer(rows)
    result.backward(back.to(device, dtype))
    yield "forward", _relative_error(result, given @ kept.T), BOUND
    yield "backward", _relative_error(rows.grad, back @ kept), BOUND
    layer.eval()
    for count in (1, 8):  # batch sizes of generation: few rows use special kernels
        with torch.no_grad():
            result = layer(given[:count].to(device, dtype))
        yield f"a product of {count} row(s)", _relative_error(result, given[:count] @ kept.T), BOUND


def optimizer_step(name: str, on: str) -> DoctorFinding:
    """Steps of one of `OPTIMIZERS`, created as in transformers' Trainer, compared with AdamW's."""
    is_paged = OPTIMIZERS[name]

    def work(device: torch.device) -> Deviations:
        import torch

        draw = _drawer()
        start = draw(*ADAPTER)
        ours, plain = (torch.nn.Parameter(start.clone().to(to)) for to in (device, "cpu"))
        common = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        eight_bit = load_bitsandbytes().optim.AdamW
        optimizer = eight_bit([ours], optim_bits=8, is_paged=is_paged, **common)
        reference = torch.optim.AdamW([plain], **common)
        for _ in range(NUM_STEPS):
            gradient = 1e-3 * draw(*ADAPTER)
            ours.grad, plain.grad = gradient.to(device), gradient
            optimizer.step()
            reference.step()
        _wait(device)
        way = _relative_error(ours.cpu() - start, plain - start)
        yield "the way of four steps", way, STEP_BOUND
        is_in_8_bit = optimizer.state[ours]["state1"].dtype == torch.uint8
        yield "the width of its moments", float(not is_in_8_bit), STEP_BOUND

    why = "an optimizer that does not move the adapter as AdamW would trains something else"
    fix = f"training.optimizer: {'adamw_8bit or ' if is_paged else ''}adamw_torch"
    return _judge(f"{name} step", why, fix, work, on)


def optimizer_fault(name: str, on: str) -> str | None:
    """Why an optimizer of transformers' `optim` cannot make a step on a device; None if it can."""
    import torch
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    # Equivalent to `TrainingArguments()`, which would also initialise distributed training.
    arguments = object.__new__(TrainingArguments)
    for field in dataclasses.fields(TrainingArguments):
        is_made = field.default_factory is not dataclasses.MISSING
        setattr(arguments, field.name, field.default_factory() if is_made else field.default)
    device, weight = torch.device(on), _drawer()(64, 128)
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
        after = moved.detach().cpu()
    except Exception as error:  # a library that lacks a kernel fails in many ways
        return _first_line(error)
    is_moved = after.isfinite().all() and not after.equal(weight)
    return None if is_moved else "a step of it does not move a weight"


@_probe(
    "attention, vision tower",
    "the model then sees what is not there; on ROCm, SDPA has been wrong where v is a view "
    "(vLLM #27744, ROCm/pytorch #3230), which is why it gets copies",
    TORCH_FIX,
)
def vision_attention(device: torch.device) -> Deviations:
    """SDPA as used by the vision tower, on copies of the fused product (`layers.copy_views`)."""
    from torch.nn import functional

    # One temporal patch of the 2×2 grid of 448×256 px tiles; a quarter of it on a CPU.
    num_patches = 448 if device.type == "cpu" else 1792
    fused = _drawer()(num_patches, 3, VISION_HEADS, VISION_DIM).to(device, _dtype_of(device))
    q, k, v = (x.unsqueeze(0).contiguous() for x in fused.permute(1, 2, 0, 3).unbind(0))
    result = functional.scaled_dot_product_attention(q, k, v, scale=VISION_DIM**-0.5)
    yield "SDPA", _relative_error(result, _formula(q, k, v)), BOUND


@_probe(
    "attention, language model",
    "every layer of the language model rests on it, forward and backward",
    TORCH_FIX,
)
def text_attention(device: torch.device) -> Deviations:
    """SDPA as used by the language model, both passes: causal with grouped keys, and masked."""
    import torch
    from torch.nn import functional

    length = 96 if device.type == "cpu" else 512
    draw, dtype = _drawer(), _dtype_of(device)
    heads = (TEXT_HEADS, TEXT_KV_HEADS, TEXT_KV_HEADS)
    given = [draw(2, length, count, TEXT_DIM).to(device, dtype) for count in heads]
    back = draw(2, TEXT_HEADS, length, TEXT_DIM).to(device, dtype)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    # The second sample is padded on the right, by a fifth.
    is_token = torch.ones(2, 1, 1, length, dtype=torch.bool, device=device)
    is_token[1, ..., -(length // 5) :] = False
    mask = causal & is_token
    sdpa = functools.partial(functional.scaled_dot_product_attention, scale=TEXT_DIM**-0.5)

    def both_passes(attend: Callable[..., torch.Tensor]) -> list[Any]:
        leaves = [values.detach().requires_grad_() for values in given]
        result = attend(*(leaf.transpose(1, 2) for leaf in leaves))
        result.backward(back.to(result.dtype))
        return [result, *(leaf.grad for leaf in leaves)]

    # transformers repeats the key heads if there is a mask.
    results = both_passes(lambda q, k, v: sdpa(q, k, v, is_causal=True, enable_gqa=True))
    results += both_passes(lambda q, k, v: sdpa(q, _repeat(k), _repeat(v), attn_mask=mask))
    right = both_passes(lambda q, k, v: _formula(q, k, v, causal))
    right += both_passes(lambda q, k, v: _formula(q, k, v, mask))
    passes = ("forward", "backward to q", "backward to k", "backward to v")
    names = [f"{kind} {step}" for kind in ("causal", "masked") for step in passes]
    for name, result, wanted in zip(names, results, right, strict=True):
        yield name, _relative_error(result, wanted), BOUND


def load_bitsandbytes() -> Any:
    """Import the package without an irrelevant warning about bfloat16 on CPUs."""
    logging.getLogger(BITSANDBYTES_OPS).setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def _formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """Reference attention in float32 for (B, heads, L, head_dim); `allowed` is the mask."""
    q, k, v = (x.float() for x in (q, k, v))
    if k.shape[1] < q.shape[1]:
        k, v = _repeat(k), _repeat(v)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1) @ v


def _repeat(heads: torch.Tensor) -> torch.Tensor:
    return heads.repeat_interleave(TEXT_HEADS // TEXT_KV_HEADS, dim=1)


def _drawer() -> Callable[..., torch.Tensor]:
    """A generator of normal float32 numbers on the CPU, the same on every machine."""
    import torch

    generator = torch.Generator(device="cpu").manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device="cpu")


def _dtype_of(device: torch.device) -> torch.dtype:
    import torch

    return getattr(torch, hardware.dtype(str(device)).value)


def _relative_error(result: torch.Tensor, right: torch.Tensor) -> float:
    result, right = (values.detach().float().cpu() for values in (result, right))
    return float((result - right).norm() / right.norm())


def _wait(device: torch.device) -> None:
    """Wait for the device, so that its errors are raised here."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
