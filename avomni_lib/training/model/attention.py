"""Two ways around torch's attention, by the names that transformers' models take.

transformers makes no mask for an attention that it does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BY_WINDOW, CONTIGUOUS = "sdpa_by_window", "sdpa_contiguous"
WINDOW_LENGTHS = "window_lengths"  # what a model hands down to every layer of a packed row


def keep_windows_apart(model: Any) -> None:
    """Let a model's language part attend window by window where a row is packed.

    The vision tower is left alone: it keeps temporal patches apart by itself.
    """
    _take(model.config.get_text_config(), BY_WINDOW, _by_window)


def copy_views(model: Any) -> None:
    """Let a model's vision tower attend to copies, where it would to views of a fused product.

    ROCm's kernels have been wrong on such views, and the model then sees what is not there
    (vLLM #27744, ROCm/pytorch #3230). The copies take 66 MB of traffic a layer for two windows of
    896×512 px in the 8B: some 30 µs.
    """
    if model.config.vision_config._attn_implementation == "sdpa":
        _take(model.config.vision_config, CONTIGUOUS, _contiguous)


def _take(config: Any, name: str, function: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    config._attn_implementation = name


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


def _by_window(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa for each window by itself: (1, heads, L, dim) -> (1, L, heads, dim)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    lengths = options.pop(WINDOW_LENGTHS, None) or (query.shape[2],)
    split = [tensor.split(lengths, dim=2) for tensor in (query, key, value)]
    apart = [
        sdpa_attention_forward(module, *of_window, attention_mask, **options)[0]
        for of_window in zip(*split, strict=True)
    ]
    return torch.cat(apart, dim=1), None
