"""A way around a fault of torch's attention, by a name that transformers' models take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from avomni_lib.training.model.private import replace_attention

if TYPE_CHECKING:
    import torch

CONTIGUOUS = "sdpa_contiguous"


def copy_views(model: Any) -> None:
    """Let a model's vision tower attend to copies, where it would to views of a fused product.

    ROCm's kernels have been wrong on such views, and the model then sees what is not there
    (vLLM #27744, ROCm/pytorch #3230). The copies take 66 MB of traffic a layer for two windows of
    896×512 px in the 8B: some 30 µs.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(CONTIGUOUS, _contiguous)
    replace_attention(model.config.vision_config, "sdpa", CONTIGUOUS)


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
    return sdpa_attention_forward(module, *copies, attention_mask, **options)
