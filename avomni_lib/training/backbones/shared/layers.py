"""Replacements for forward passes of transformers, with fewer kernels and less memory.

Weights and their names are unchanged. Measured with Qwen3-VL-8B in NF4, sixteen windows of 896×512
px per step with gradient checkpointing, on an H200: 1.039 s per batch of two with transformers'
layers, 1.018 s with the vision tower's attention in one call, 0.861 s with fused norms as well.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from avomni_lib.training.model.private import replace_attention

if TYPE_CHECKING:
    import torch

CONTIGUOUS = "sdpa_contiguous"


def embed_by_one_product(model: Any) -> None:
    """Compute the patch embedding as one matrix product.

    It is a Conv3d whose stride equals its kernel. On an H200 the convolution takes 7 to 10 times
    longer than the equivalent product, with torch 2.9 10 to 20 times.
    """
    _replace(model.model.visual.patch_embed, _embed)


def fuse(model: Any) -> None:
    """Compute each norm in one kernel if the device has one, and each attention of Qwen's vision
    tower in one call."""
    for module in model.modules():
        if forward := FUSED.get(type(module).__name__):
            _replace(module, forward)


def without_gradients(tower: Any) -> None:
    """Exclude a frozen vision tower from the backward pass.

    Gradient checkpointing makes the outputs of input embeddings require gradients, in a composite
    model those of all parts, including the tower's patches. All layers of the tower would then be
    kept, recomputed and differentiated for gradients that are not used.
    """
    _replace(tower, _frozen)


def keep_used(tower: Any, used: int | Sequence[int]) -> None:
    """Make a SigLIP tower return only the outputs of used layers, outside the backward pass.

    Args:
        used: `vision_feature_layer`: 0 is the embedding, -1 the last layer's output.
    """
    wanted = (used,) if isinstance(used, int) else tuple(used)
    _replace(tower, functools.partial(_used, wanted))


def copy_views(model: Any) -> None:
    """Make a model's vision tower attend to copies instead of views of the fused qkv product.

    ROCm's kernels gave wrong results on such views, and models hallucinated (vLLM #27744,
    ROCm/pytorch #3230). The copies take 66 MB of traffic per layer for two windows of 896×512 px in
    the 8B, about 30 µs.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(CONTIGUOUS, _contiguous)
    replace_attention(model.config.vision_config, "sdpa", CONTIGUOUS)


def _replace(module: Any, forward: Any) -> None:
    module.forward = types.MethodType(forward, module)


def _embed(embedding: Any, patches: torch.Tensor) -> torch.Tensor:
    """(N, 3·temporal·patch·patch) -> (N, hidden)."""
    from torch.nn.functional import linear

    convolution = embedding.proj
    weight = convolution.weight.flatten(1)
    return linear(patches.to(weight.dtype), weight, convolution.bias)


def _normalise(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """RMS norm of (…, hidden) in its dtype; computed in float32."""
    import torch

    if hidden.device.type == "cpu":  # there is no such kernel
        return type(norm).forward(norm, hidden)
    # Autocast would return float32, and keep float32 tensors for the backward pass.
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.nn.functional.rms_norm(
            hidden, norm.weight.shape, norm.weight.to(hidden.dtype), norm.variance_epsilon
        )


def _normalise_around_one(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The same for a norm that scales by one plus its weights."""
    import torch

    if hidden.device.type == "cpu":
        return type(norm).forward(norm, hidden)
    # The sum 1 + weight is avoided, as bfloat16 would round it.
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
    """Attention of (N, hidden) patches of many images, within each image.

    Images of equal size are computed as one batch. It consists of copies, not of views of the fused
    product, on which ROCm's kernels gave wrong results (vLLM #27744, ROCm/pytorch #3230).
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
        tensor.reshape(-1, *sizes, heads, tensor.shape[-1]).transpose(1, 2).contiguous()
        for tensor in (query, key, fused[2])
    ]
    seen = scaled_dot_product_attention(*by_picture, scale=attention.scaling)
    return attention.proj(seen.transpose(1, 2).reshape(num, -1))


def _frozen(tower: Any, *values: Any, **options: Any) -> Any:
    import torch

    with torch.no_grad():
        return type(tower).forward(tower, *values, **options)


def _used(wanted: Sequence[int], tower: Any, pixel_values: Any, **_: Any) -> Any:
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    layers = tower.encoder.layers
    places = {layer: layer % (len(layers) + 1) for layer in wanted}
    outputs: dict[int, Any] = {}
    with torch.no_grad():
        hidden = tower.embeddings(pixel_values)
        for place in range(max(places.values()) + 1):
            if place > 0:
                hidden = layers[place - 1](hidden, attention_mask=None)
            outputs |= {layer: hidden for layer, at in places.items() if at == place}
    return BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=outputs)


def _contiguous(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    copies = (tensor.contiguous() for tensor in (query, key, value))
    seen: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, *copies, attention_mask, **options
    )
    return seen


# Class of transformers -> its forward pass.
FUSED = {
    "Qwen3VLTextRMSNorm": _normalise,
    "Qwen3VLMoeTextRMSNorm": _normalise,
    "Qwen2RMSNorm": _normalise,
    "Qwen3RMSNorm": _normalise,
    "LlamaRMSNorm": _normalise,
    "Qwen3_5RMSNorm": _normalise_around_one,
    "Qwen3VLVisionAttention": _attend,
    "Qwen3VLMoeVisionAttention": _attend,
    "Qwen3_5VisionAttention": _attend,
}
