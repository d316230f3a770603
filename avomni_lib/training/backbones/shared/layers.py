"""Forward passes in the place of transformers' own: fewer kernels, nothing kept that nobody needs.

Weights and their names stay as they are. What it computes in many small kernels: Qwen3-VL-8B
in NF4, sixteen windows of 896×512 px a step with gradient checkpointing, on an H200: 1.039 s a
batch of two by transformers' own layers, 1.018 with the vision tower's attention in one call, 0.861
with fused norms too.
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
# Classes of transformers, which are the same but for their names.
NORMS = ("Qwen3VLTextRMSNorm", "Qwen3VLMoeTextRMSNorm")
# Of the language models under other towers, which compute the same.
LANGUAGE_NORMS = ("Qwen2RMSNorm", "Qwen3RMSNorm", "LlamaRMSNorm")
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
            _replace(module, _normalise)
        elif kind in NORMS_AROUND_ONE:
            _replace(module, _normalise_around_one)
        elif kind in VISION_ATTENTION:
            _replace(module, _attend)


def without_gradients(tower: Any) -> None:
    """Keep a frozen vision tower out of the backward pass.

    Gradient checkpointing lets the outputs of input embeddings ask for gradients, and of a model of
    several parts all parts' are asked: the tower's own patches too. Every layer of it would then be
    kept, and computed again and backwards, for gradients that nobody takes.
    """
    _replace(tower, _frozen)


def keep_used(tower: Any, used: int | Sequence[int]) -> None:
    """Let a SigLIP tower return the outputs of the layers that are used, hold no others, and stay
    out of the backward pass.

    Args:
        used: `vision_feature_layer`: 0 is the embedding, -1 the last layer's output.
    """
    wanted = (used,) if isinstance(used, int) else tuple(used)
    _replace(tower, functools.partial(_used, wanted))


def fuse_norms(language_model: Any) -> None:
    """Let one kernel compute each norm of the language model, where there is one."""
    for module in language_model.modules():
        if type(module).__name__ in LANGUAGE_NORMS:
            _replace(module, _normalise)


def copy_views(model: Any) -> None:
    """Let a model's vision tower attend to copies, where it would to views of a fused product.

    ROCm's kernels have been wrong on such views, and the model then sees what is not there
    (vLLM #27744, ROCm/pytorch #3230). The copies take 66 MB of traffic a layer for two windows of
    896×512 px in the 8B: some 30 µs.
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


def _frozen(tower: Any, *values: Any, **options: Any) -> Any:
    import torch

    with torch.no_grad():
        return type(tower).forward(tower, *values, **options)


def _used(wanted: Sequence[int], tower: Any, pixel_values: Any, **_: Any) -> Any:
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    layers = tower.encoder.layers
    places = {each: each % (len(layers) + 1) for each in wanted}
    outputs: dict[int, Any] = {}
    with torch.no_grad():
        hidden = tower.embeddings(pixel_values)
        for place in range(max(places.values()) + 1):
            if place > 0:
                hidden = layers[place - 1](hidden, attention_mask=None)
            outputs |= {each: hidden for each, own in places.items() if own == place}
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
