"""What is changed of a loaded model around its vision tower; weights and their names stay."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

from avomni_lib.training.backbones.shared.qwen_layers import fuse_norm

NORMS = ("Qwen2RMSNorm", "Qwen3RMSNorm", "LlamaRMSNorm")  # that compute the same


def without_gradients(tower: Any) -> None:
    """Keep a frozen vision tower out of the backward pass.

    Gradient checkpointing lets the outputs of input embeddings ask for gradients, and of a model of
    several parts all parts' are asked: the tower's own patches too. Every layer of it would then be
    kept, and computed again and backwards, for gradients that nobody takes.
    """
    tower.forward = types.MethodType(_frozen, tower)


def keep_used(tower: Any, used: int | Sequence[int]) -> None:
    """Let a SigLIP tower return the outputs of the layers that are used, hold no others, and stay
    out of the backward pass.

    Args:
        used: `vision_feature_layer`: 0 is the embedding, -1 the last layer's output.
    """
    wanted = (used,) if isinstance(used, int) else tuple(used)
    tower.forward = types.MethodType(functools.partial(_used, wanted), tower)


def fuse_norms(language_model: Any) -> None:
    """Let one kernel compute each norm of the language model, where there is one."""
    for module in language_model.modules():
        if type(module).__name__ in NORMS:
            fuse_norm(module)


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
