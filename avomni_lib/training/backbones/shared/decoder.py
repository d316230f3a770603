"""Sizes of the decoder layers of common language models, from a `text_config`.

Supported are Qwen2, Qwen3, Qwen3 with experts, and Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avomni_lib.errors import AvomniError
from avomni_lib.training.backbones.shared.size import Block, Language

KNOWN = ("qwen2", "qwen3", "qwen3_moe", "llama")


def language(text: Mapping[str, Any], tied: bool) -> Language:
    """The language model of a `text_config`.

    Args:
        tied: Whether the head shares the embedding's weights.

    Raises:
        AvomniError: the kind of its layers is not supported.
        KeyError: a number is missing.
    """
    return Language(text["hidden_size"], (block(text),), text["vocab_size"], tied)


def block(text: Mapping[str, Any]) -> Block:
    """The decoder layers of a `text_config`.

    Raises:
        AvomniError, KeyError: see `language`.
    """
    kind = text["model_type"]
    if kind not in KNOWN:
        raise AvomniError(
            f"the base model's language model is a {kind!r}, whose layers are not known here",
            where="model.base_model",
            fix=f"name a base model whose language model is one of {', '.join(KNOWN)}",
        )
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    shared = text["num_key_value_heads"]
    head = text.get("head_dim") or hidden // heads
    query, key = heads * head, shared * head
    linears = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
    }
    others = 2 * hidden  # norms
    if kind in ("qwen3", "qwen3_moe"):
        others += 2 * head  # norms of queries and keys
    if kind == "qwen2":
        others += query + 2 * key  # biases
    elif text.get("attention_bias"):
        others += query + 2 * key + hidden
    inner, active = text["intermediate_size"], 0
    if kind == "qwen3_moe":
        # The experts are two tensors per layer, which bitsandbytes does not quantise.
        inner = text["moe_intermediate_size"] * text["num_experts_per_tok"]
        expert = 3 * hidden * text["moe_intermediate_size"]
        router = hidden * text["num_experts"]
        others += text["num_experts"] * expert + router
        active = text["num_experts_per_tok"] * expert + router
    else:
        linears |= mlp(hidden, inner)
    return Block(
        text["num_hidden_layers"], linears, query, key, heads, shared, inner, others, active
    )


def mlp(hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    """The linear modules of a gated MLP, see `Block.linears`."""
    return {
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def qwen2(
    hidden: int, layers: int, heads: int, shared: int, inner: int, vocabulary: int
) -> dict[str, Any]:
    """The numbers of a Qwen2 or Qwen2.5."""
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
    }


def qwen3(
    hidden: int, layers: int, heads: int, shared: int, inner: int, vocabulary: int
) -> dict[str, Any]:
    """The numbers of a Qwen3; its heads are 128 wide in every released size."""
    numbers = qwen2(hidden, layers, heads, shared, inner, vocabulary)
    return numbers | {"model_type": "qwen3", "head_dim": 128}
