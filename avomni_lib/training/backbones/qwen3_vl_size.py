"""Widths, depths and weights of a Qwen3-VL, for the estimates of memory and time. No torch.

They come from a `config.json` or, for a base model that lies on the hub, from the table of the
released sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from avomni_lib.errors import AvomniError

MODEL_TYPE = "qwen3_vl"
COLOURS = 3
# Field -> its key in the config's `text_config` and `vision_config`.
TEXT_KEYS = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "shared_heads": "num_key_value_heads",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
}
VISION_KEYS = {
    "hidden": "hidden_size",
    "depth": "depth",
    "heads": "num_heads",
    "intermediate": "intermediate_size",
    "out": "out_hidden_size",
    "positions": "num_position_embeddings",
    "patch": "patch_size",
    "merge": "spatial_merge_size",
    "temporal": "temporal_patch_size",
}


@dataclass(frozen=True)
class Language:
    """The language model.

    Attributes:
        hidden: Width of a token between layers.
        layers: Decoder layers.
        heads, shared_heads: Attention's heads, and those of the keys and values that they share.
        head_dim: Width of a head.
        intermediate: Width inside the MLP.
        vocabulary: Rows of the embedding, and of the head.
        tied: Whether the head is the embedding.
    """

    hidden: int
    layers: int
    heads: int
    shared_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def query(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of the keys, and of the values, of all heads."""
        return self.shared_heads * self.head_dim

    @property
    def sides(self) -> dict[str, tuple[int, int]]:
        """Width in and out of each linear module of a layer."""
        hidden, inner = self.hidden, self.intermediate
        return {
            "q_proj": (hidden, self.query),
            "k_proj": (hidden, self.key),
            "v_proj": (hidden, self.key),
            "o_proj": (self.query, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def largest_linear(self) -> int:
        """Weights of the largest matrix of a layer."""
        return max(inside * outside for inside, outside in self.sides.values())

    @property
    def num_linears(self) -> int:
        """Weights of the linear modules of all layers: what 4 bit holds."""
        return self.layers * sum(inside * outside for inside, outside in self.sides.values())

    @property
    def num_norms(self) -> int:
        return self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden

    @property
    def num_embeddings(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def num_head(self) -> int:
        return 0 if self.tied else self.num_embeddings


@dataclass(frozen=True)
class Vision:
    """The vision tower and its mergers.

    Attributes:
        hidden, depth, heads, intermediate: As the language model's.
        out: Width of a vision token, the language model's.
        positions: Rows of the learned position embedding.
        deepstack: Layers whose features go into the language model's first layers.
        patch: px, side of a patch.
        merge: Patches along each side of a vision token.
        temporal: Frames in a patch.
    """

    hidden: int
    depth: int
    heads: int
    intermediate: int
    out: int
    positions: int
    deepstack: int
    patch: int = 16
    merge: int = 2
    temporal: int = 2

    @property
    def values_per_patch(self) -> int:
        return COLOURS * self.temporal * self.patch**2

    @property
    def patches_per_token(self) -> int:
        return self.merge**2

    @property
    def num_tower(self) -> int:
        """Weights of the patch embedding, the positions and the blocks."""
        wide, inner = self.hidden, self.intermediate
        block = 4 * wide**2 + 2 * wide * inner + (3 + 1 + 1) * wide + inner + 4 * wide
        return (self.values_per_patch + 1 + self.positions) * wide + self.depth * block

    @property
    def num_mergers(self) -> int:
        """Weights of the merger and of the deepstack's: these normalise after merging."""
        merged = self.hidden * self.patches_per_token
        merger = merged**2 + merged + merged * self.out + self.out
        return (1 + self.deepstack) * merger + 2 * self.hidden + self.deepstack * 2 * merged


@dataclass(frozen=True)
class ModelSize:
    """A Qwen3-VL; `stored_4bit` is whether its checkpoint holds 4-bit weights already."""

    language: Language
    vision: Vision
    stored_4bit: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelSize:
        """The sizes in a `config.json`.

        Raises:
            AvomniError: it is another model's, or lacks a number.
        """
        if config.get("model_type") != MODEL_TYPE:
            raise AvomniError(
                f"the base model is a {config.get('model_type')!r}, not a {MODEL_TYPE!r}",
                where="model.base_model",
            )
        try:
            text, vision = config["text_config"], config["vision_config"]
            words = {name: text[key] for name, key in TEXT_KEYS.items()}
            language = Language(
                **words,
                head_dim=text.get("head_dim") or words["hidden"] // words["heads"],
                tied=bool(config.get("tie_word_embeddings", False)),
            )
            tower = Vision(
                **{name: vision[key] for name, key in VISION_KEYS.items()},
                deepstack=len(vision["deepstack_visual_indexes"]),
            )
        except KeyError as error:
            raise AvomniError(
                f"the config of the base model does not say {error.args[0]!r}",
                where="model.base_model",
                fix="save the checkpoint again with transformers",
            ) from None
        quantised = config.get("quantization_config") or {}
        return cls(language, tower, stored_4bit=bool(quantised.get("load_in_4bit")))

    @classmethod
    def from_name(cls, base_model: str) -> ModelSize | None:
        """The sizes of a released model by its name on the hub; None for another."""
        words = set(re.split(r"[^a-z0-9]+", base_model.lower()))
        sizes = words & RELEASED.keys()
        if not {"qwen3", "vl"} <= words or len(sizes) != 1:
            return None
        language, tower = RELEASED[sizes.pop()]
        vision = Vision(**tower, out=language.hidden, positions=2304, deepstack=3)
        return cls(language, vision, stored_4bit={"bnb", "4bit"} <= words)

    @cached_property
    def num_weights(self) -> int:
        language, vision = self.language, self.vision
        embeddings = language.num_embeddings + language.num_head
        tower = vision.num_tower + vision.num_mergers
        return language.num_linears + language.num_norms + embeddings + tower

    def adapter_matrices(self, rank: int, targets: Sequence[str] | None = None) -> list[int]:
        """Weights of each of LoRA's matrices in one layer: A and B of each adapted module.

        Args:
            targets: `model.lora_targets`; None is q, k, v and o of the attention.
        """
        sides = self.language.sides
        ends = [name.rpartition(".")[2] for name in targets or list(sides)[:4]]
        return [rank * side for name in ends for side in sides.get(name, ())]

    def num_adapter(self, rank: int, targets: Sequence[str] | None = None) -> int:
        """Weights of the adapter at this rank."""
        return self.language.layers * sum(self.adapter_matrices(rank, targets))


# As in config.json of Qwen/Qwen3-VL-{2B,4B,8B,32B}-Instruct of October 2025. The mixtures of
# experts (30B-A3B, 235B-A22B) are another architecture.
_SMALL_TOWER = {"hidden": 1024, "depth": 24, "heads": 16, "intermediate": 4096}
_LARGE_TOWER = {"hidden": 1152, "depth": 27, "heads": 16, "intermediate": 4304}
RELEASED = {
    "2b": (Language(2048, 28, 16, 8, 128, 6144, 151_936, tied=True), _SMALL_TOWER),
    "4b": (Language(2560, 36, 32, 8, 128, 9728, 151_936, tied=True), _SMALL_TOWER),
    "8b": (Language(4096, 36, 32, 8, 128, 12_288, 151_936, tied=False), _LARGE_TOWER),
    "32b": (Language(5120, 64, 64, 8, 128, 25_600, 151_936, tied=False), _LARGE_TOWER),
}
