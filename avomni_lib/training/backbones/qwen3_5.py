"""Qwen3.5, and Qwen-Drive-1.0, which is based on it.

Patches, tokens around a video and positions are those of Qwen3-VL. Three of four layers of the
language model have linear attention (a gated delta rule), so LoRA adapts its projections too:
adapting only q, k, v and o would leave three quarters of the layers unchanged.

The answer starts after an empty thought, which the chat template writes if thinking is off; a
target with a thought writes it after the empty one. Heads of Qwen-Drive other than the language
model (perception, planner) are not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from avomni_lib.hardware import Choice
from avomni_lib.training.backbones.qwen3_vl import (
    TURN_END,
    TURN_START,
    VIDEO_TOKEN,
    VISION_END,
    VISION_START,
    Qwen3VL,
    tower,
    vision_numbers,
)
from avomni_lib.training.backbones.shared import decoder
from avomni_lib.training.backbones.shared.base import Video
from avomni_lib.training.backbones.shared.size import Block, Language, ModelSize

THINK_START, THINK_END = "<think>", "</think>"
NO_THOUGHT = f"{THINK_START}\n\n{THINK_END}\n\n"
LINEAR_ATTENTION = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")


@dataclass(frozen=True)
class Qwen35(Qwen3VL):
    """The numbers of one Qwen3.5; the defaults are those of every released size."""

    name = "qwen3_5"
    model_types = ("qwen3_5",)
    prompt_form = "qwen3_5/outer_vision_pair/no_thought"
    special_tokens = (
        *(VIDEO_TOKEN, VISION_START, VISION_END, TURN_START, TURN_END),
        *(THINK_START, THINK_END),
    )
    lora_targets = (*Qwen3VL.lora_targets, *LINEAR_ATTENTION)
    sixteen_bit_because = "Unsloth advises against 4 bit for Qwen3.5: it loses more than usual"
    example = "Qwen/Qwen3.5-4B"
    refused = {
        "qwen3_5_moe": "its experts were never tried here: take a dense Qwen3.5, as "
        "Qwen/Qwen3.5-9B, or a Qwen3-VL with experts and model.backbone: qwen3_vl",
    }
    serving_note = (
        "The answer starts after an empty thought, so each request needs "
        f"`enable_thinking: false`. {Qwen3VL.serving_note}"
    )

    @property
    def choices(self) -> dict[str, Choice]:
        """The implementation of linear attention on this machine."""
        if find_spec("fla") is not None:
            return {"linear_attention": Choice("fla", "flash-linear-attention is installed")}
        return {
            "linear_attention": Choice(
                "torch",
                "flash-linear-attention is not installed, so transformers' slow reference runs: on "
                "a GPU `pip install flash-linear-attention`",
            )
        }

    def chat(self, text: str, videos: Sequence[Video]) -> str:
        """The user's turn, as formatted by Qwen3.5's chat template with thinking off."""
        return super().chat(text, videos) + NO_THOUGHT

    def request(self, question: str, videos: Sequence[Video]) -> dict[str, Any]:
        asked = super().request(question, videos)
        return asked | {"chat_template_kwargs": {"enable_thinking": False}}

    @classmethod
    def size(cls, config: Mapping[str, Any]) -> ModelSize:
        text = config["text_config"]
        tied = bool(config.get("tie_word_embeddings", False))
        language = Language(text["hidden_size"], blocks(text), text["vocab_size"], tied)
        vision = tower(config["vision_config"], deepstack=0)
        return ModelSize(language, vision)

    @classmethod
    def released(cls, base_model: str) -> ModelSize | None:
        words = re.split(r"[^a-z0-9.]+", base_model.lower().rpartition("/")[2])
        is_one = "qwen3.5" in words or {"qwen", "drive", "1.0"} <= set(words)
        if not is_one or "4b" not in words or "bit" in "".join(words):
            return None
        return cls.size(RELEASED_4B)


def blocks(text: Mapping[str, Any]) -> tuple[Block, ...]:
    """The decoder layers of a `text_config` by kind, those with full attention last.

    Raises:
        KeyError: a number is missing.
    """
    kinds = text.get("layer_types") or [
        "linear_attention" if (layer + 1) % text.get("full_attention_interval", 4) else "attention"
        for layer in range(text["num_hidden_layers"])
    ]
    num_linear = sum(kind == "linear_attention" for kind in kinds)
    both = _linear_block(text, num_linear), _attention_block(text, len(kinds) - num_linear)
    return tuple(block for block in both if block.count)


def _attention_block(text: Mapping[str, Any], count: int) -> Block:
    """Gated attention: q_proj computes the gate of the output along with the queries."""
    block = decoder.block({**text, "model_type": "qwen3"})
    gated = {"q_proj": (text["hidden_size"], 2 * block.query)}
    others = block.others + bool(text.get("attention_bias")) * block.query
    return replace(block, count=count, linears=block.linears | gated, others=others)


def _linear_block(text: Mapping[str, Any], count: int) -> Block:
    """The gated delta rule, with the widths of the convolution's input and of the gate; with `fla`,
    the memory kept for the backward pass is of their order."""
    hidden = text["hidden_size"]
    heads, shared = text["linear_num_value_heads"], text["linear_num_key_heads"]
    value = heads * text["linear_value_head_dim"]
    mixed = 2 * shared * text["linear_key_head_dim"] + value
    linears = {
        "in_proj_qkv": (hidden, mixed),
        "in_proj_z": (hidden, value),
        "in_proj_a": (hidden, heads),
        "in_proj_b": (hidden, heads),
        "out_proj": (value, hidden),
    }
    # Two norms, the convolution, a step and a decay per head, and the norm of the gate.
    others = 2 * hidden + mixed * text["linear_conv_kernel_dim"] + 2 * heads
    others += text["linear_value_head_dim"]
    inner = text["intermediate_size"]
    linears |= decoder.mlp(hidden, inner)
    return Block(count, linears, mixed, value, heads, shared, inner, others, attends=False)


# Qwen3.5-4B, the base of Qwen-Drive-1.0-4B according to its card. The config was taken from copies
# in public repositories, not from the hub.
RELEASED_4B = {
    "text_config": {
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 248_320,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    },
    "vision_config": vision_numbers(1024, 24, 4096, 2560),
    "tie_word_embeddings": True,
}
