"""Tokens, LoRA modules and trainer arguments, to inspect before a training.

No weights are loaded; modules are created on torch's meta device.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone
from avomni_lib.training.doctor import doctor
from avomni_lib.training.forecast import estimate
from avomni_lib.training.model import load, model_path
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import IGNORED, Conversation, Sample

# Arguments of TRL that contain paths of this machine or are irrelevant to the training.
NOT_SHOWN = ("output_dir", "logging_dir", "hub_token", "run_name")


def conversation(p: Params) -> Conversation:
    """The conversation of the training; only the tokenizer is loaded.

    Raises:
        AvomniError: no such base model.
    """
    load.choose(p)  # imports Unsloth, if it is the backend, before transformers
    location = model_path.base_location(p.model.base_model)
    config = load.read_config(p.model.base_model, location, p.dataset.allow_plain_http)
    tokenizer = load.read_tokenizer(p.model.base_model, location)
    return samples.conversation_of(p, tokenizer, backbone(p.model.backbone, config))


def tokens(sample: Sample, conversation: Conversation) -> list[dict[str, Any]]:
    """One row per token: text, id, label, and whether it bears the loss."""
    return [
        {
            "token": conversation.tokenizer.decode([token]),
            "id": int(token),
            "label": int(label),
            "bears_loss": bool(label != IGNORED),
        }
        for token, label in zip(sample.input_ids, sample.labels, strict=True)
    ]


def lora_modules(p: Params) -> list[dict[str, Any]]:
    """One row per module that LoRA adapts: name, layer, module, its weights and LoRA's.

    Raises:
        AvomniError: no such base model, or it has no module to adapt.
    """
    load.choose(p)  # as above
    load.quieten()
    import torch

    model = load.empty_model(p)
    with torch.device("meta"):
        tuned = load.add_adapter(model, p, backbone(p.model.backbone, model.config))
    rows = []
    for name, module in tuned.named_modules():
        if not hasattr(module, "lora_A") or not hasattr(module, "base_layer"):
            continue
        layer = re.search(r"\.(\d+)\.", name)
        weights = [
            weight for part in (module.lora_A, module.lora_B) for weight in part.parameters()
        ]
        rows.append(
            {
                "name": name.removeprefix("base_model.model."),
                "layer": int(layer[1]) if layer else None,
                "module": name.rpartition(".")[2],
                "weights": module.in_features * module.out_features,
                "lora_weights": sum(weight.numel() for weight in weights),
            }
        )
    return rows


def arguments(p: Params, num_windows: int) -> dict[str, Any]:
    """TRL's arguments for these parameters on this machine that differ from its defaults.

    Args:
        num_windows: Number of training windows.

    Raises:
        AvomniError: this machine cannot run the optimizer.
    """
    choices = load.choose(p)
    device = choices["device"].value
    choices = choices | {"optimizer": doctor.optimizer(p.training.optimizer, device)}
    load.quieten()
    from avomni_lib.training.fit import sft

    chosen = sft.arguments_of(
        p,
        SimpleNamespace(partial="partial"),
        choices,
        estimate.optimizer_steps(p, num_windows),
        p.training.gradient_accumulation_steps // p.training.num_processes,
    ).to_dict()
    defaults = sft.SFTConfig(output_dir="partial", use_cpu=device == "cpu").to_dict()
    return {
        name: value
        for name, value in sorted(chosen.items())
        if name not in NOT_SHOWN and value != defaults.get(name)
    }
