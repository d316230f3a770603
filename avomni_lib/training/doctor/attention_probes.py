"""torch's fused attention beside its formula, in the shapes and layouts that Qwen3-VL passes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from avomni_lib.training.doctor.comparison import Deviation, apart, drawer, dtype_of, judge
from avomni_lib.training.doctor.findings import Finding

if TYPE_CHECKING:
    import torch

# Those of Qwen3-VL-8B.
VISION_HEADS, VISION_HEAD_DIM = 16, 72
TEXT_HEADS, TEXT_KV_HEADS, TEXT_HEAD_DIM = 32, 8, 128
PASSES = ("forward", "backward to q", "backward to k", "backward to v")
FIX = "the torch that the line `platform` names, or a later one"


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


def _vision_attention(device: torch.device) -> list[Deviation]:
    from torch.nn import functional

    # One temporal patch of the 2×2 grid of 448×256 px tiles; a quarter of it on a CPU.
    num_patches = 448 if device.type == "cpu" else 1792
    fused = drawer()(num_patches, 3, VISION_HEADS, VISION_HEAD_DIM).to(device, dtype_of(device))
    q, k, v = (
        x.transpose(0, 1).unsqueeze(0).contiguous() for x in fused.permute(1, 0, 2, 3).unbind(0)
    )
    made = functional.scaled_dot_product_attention(q, k, v, scale=VISION_HEAD_DIM**-0.5)
    return [Deviation("SDPA", apart(made, _formula(q, k, v)))]


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
        made = attend(*(leaf.transpose(1, 2) for leaf in leaves))
        made.backward(back.to(made.dtype))
        return [made, *(leaf.grad for leaf in leaves)]

    deviations = []
    for name, attend, allowed in (("causal", fused, causal), ("masked", fused_masked, mask)):
        right = both_passes(lambda q, k, v, allowed=allowed: _formula(q, k, v, allowed))
        deviations += [
            Deviation(f"{name} {step}", apart(*pair))
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
