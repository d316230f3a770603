"""What is changed of a loaded model around its vision tower; weights and their names stay."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any


def without_gradients(tower: Any) -> None:
    """Keep a frozen vision tower out of the backward pass.

    Gradient checkpointing lets the outputs of input embeddings ask for gradients, and of a model of
    several parts all parts' are asked: the tower's own patches too. Every layer of it would then be
    kept, and computed again and backwards, for gradients that nobody takes.
    """
    import torch

    forward = tower.forward

    def frozen(*values: Any, **options: Any) -> Any:
        with torch.no_grad():
            return forward(*values, **options)

    tower.forward = frozen


def keep_used(tower: Any, used: int | Sequence[int]) -> None:
    """Let a SigLIP tower return the outputs of the layers that are used, and hold no others.

    Args:
        used: `vision_feature_layer`: 0 is the embedding, -1 the last layer's output.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    layers = list(tower.encoder.layers)
    wanted = [used] if isinstance(used, int) else list(used)
    places = {each: each % (len(layers) + 1) for each in wanted}

    def forward(_: Any, pixel_values: Any, **options: Any) -> Any:
        hidden = tower.embeddings(pixel_values)
        outputs: dict[int, Any] = {}
        for place in range(max(places.values()) + 1):
            if place > 0:
                hidden = layers[place - 1](hidden, attention_mask=None)
            outputs |= {each: hidden for each, own in places.items() if own == place}
        return BaseModelOutputWithPooling(last_hidden_state=hidden, hidden_states=outputs)

    tower.forward = types.MethodType(forward, tower)


def fuse_norms(language_model: Any) -> None:
    """Let one kernel compute each norm of the language model, where there is one."""
    from avomni_lib.training.backbones.shared.qwen_layers import fuse_norm

    for module in language_model.modules():
        if type(module).__name__ in ("Qwen2RMSNorm", "Qwen3RMSNorm", "LlamaRMSNorm"):
            fuse_norm(module)
