"""What transformers computes of a Qwen3-VL in many small kernels, computed in few.

Forward passes that take the place of its own; weights and their names stay as they are. Qwen3-VL-8B
in NF4, sixteen windows of 896×512 px a step with gradient checkpointing, on an H200: 1.039 s a
batch of two by transformers' own layers, 1.018 with the vision tower's attention in one call, 0.861
with fused norms too.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Classes of transformers, which are the same but for their names.
NORMS = ("Qwen3VLTextRMSNorm", "Qwen3VLMoeTextRMSNorm")
NORMS_AROUND_ONE = ("Qwen3_5RMSNorm",)
VISION_ATTENTION = ("Qwen3VLVisionAttention", "Qwen3VLMoeVisionAttention", "Qwen3_5VisionAttention")


def embed_by_one_product(model: Any) -> None:
    """Make the patch embedding one matrix product.

    It is a Conv3d whose stride is its kernel. On an H200 it takes 7 to 10 times longer than the
    product that it amounts to, and torch 2.9's 10 to 20 times.
    """
    _replace(model.model.visual.patch_embed, _embed)


def fuse(model: Any) -> None:
    """Let one kernel compute each norm, and one call each attention of the vision tower."""
    for module in model.modules():
        kind = type(module).__name__
        if kind in NORMS:
            fuse_norm(module)
        elif kind in NORMS_AROUND_ONE:
            _replace(module, _normalise_around_one)
        elif kind in VISION_ATTENTION:
            _replace(module, _attend)


def fuse_norm(norm: Any) -> None:
    """Let one kernel compute a norm as T5's, Llama's and Qwen's are."""
    _replace(norm, _normalise)


def _replace(module: Any, forward: Any) -> None:
    module.forward = types.MethodType(forward, module)


def _embed(embedding: Any, patches: torch.Tensor) -> torch.Tensor:
    """(N, 3·temporal·patch·patch) -> (N, hidden)."""
    from torch.nn.functional import linear

    convolution = embedding.proj
    weight = convolution.weight.flatten(1)
    return linear(patches.to(weight.dtype), weight, convolution.bias)


def _normalise(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(…, hidden) -> the same, in its dtype; the arithmetic is float32 either way."""
    import torch

    if hidden.device.type == "cpu":  # which has no such kernel
        return type(norm).forward(norm, hidden)
    # Autocast would have it in float32, and with it all that is kept for the backward pass.
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.nn.functional.rms_norm(
            hidden, norm.weight.shape, norm.weight.to(hidden.dtype), norm.variance_epsilon
        )


def _normalise_around_one(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The same of a norm whose weights are what is added to one."""
    import torch

    if hidden.device.type == "cpu":
        return type(norm).forward(norm, hidden)
    # One and weight are never added: bfloat16 would round the sum.
    with torch.autocast(hidden.device.type, enabled=False):
        scaled = torch.nn.functional.rms_norm(hidden, norm.weight.shape, None, norm.eps)
        return torch.addcmul(scaled, scaled, norm.weight.to(hidden.dtype))


def _attend(
    attention: Any,
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **options: Any,
) -> torch.Tensor:
    """(N, hidden) patches of many pictures -> the same; each attends to its own picture.

    Where all pictures are of one size, they are a batch. The batch is of copies, not of views of
    the fused product: ROCm's kernels have been wrong on those (vLLM #27744, ROCm/pytorch #3230).
    """
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    sizes = set(cu_seqlens.diff().tolist())
    if len(sizes) > 1:
        return type(attention).forward(
            attention, hidden, cu_seqlens, position_embeddings=position_embeddings, **options
        )
    num, heads = len(hidden), attention.num_heads
    fused = attention.qkv(hidden).reshape(num, 3, heads, -1).permute(1, 0, 2, 3).unbind(0)
    query, key = apply_rotary_pos_emb_vision(*fused[:2], *position_embeddings)
    by_picture = [
        each.reshape(-1, *sizes, heads, each.shape[-1]).transpose(1, 2).contiguous()
        for each in (query, key, fused[2])
    ]
    seen = scaled_dot_product_attention(*by_picture, scale=attention.scaling)
    return attention.proj(seen.transpose(1, 2).reshape(num, -1))
