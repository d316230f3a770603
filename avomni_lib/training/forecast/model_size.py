"""The numbers of a model that arithmetic needs: widths, depths and how many weights each part has.

They come from a `config.json` on this disk or, for a base model that lies on the hub, from the
table of the released sizes. No torch, no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.training.model import load

MODEL_TYPE = "qwen3_vl"
COLOURS = 3


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
    def largest_linear(self) -> int:
        """Weights of the largest matrix of a layer."""
        return self.hidden * max(self.intermediate, self.query)

    @property
    def num_linears(self) -> int:
        """Weights of q, k, v, o, gate, up and down of all layers: what 4 bit holds."""
        attention = 2 * self.query + 2 * self.key
        return self.layers * self.hidden * (attention + 3 * self.intermediate)

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
        each = merged**2 + merged + merged * self.out + self.out
        return (1 + self.deepstack) * each + 2 * self.hidden + self.deepstack * 2 * merged


@dataclass(frozen=True)
class Anatomy:
    """A Qwen3-VL.

    Attributes:
        stored_4bit: Whether the checkpoint holds 4-bit weights already.
    """

    language: Language
    vision: Vision
    stored_4bit: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Anatomy:
        """The anatomy of a `config.json`.

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
            heads, hidden = text["num_attention_heads"], text["hidden_size"]
            language = Language(
                hidden=hidden,
                layers=text["num_hidden_layers"],
                heads=heads,
                shared_heads=text["num_key_value_heads"],
                head_dim=text.get("head_dim") or hidden // heads,
                intermediate=text["intermediate_size"],
                vocabulary=text["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
            )
            tower = Vision(
                hidden=vision["hidden_size"],
                depth=vision["depth"],
                heads=vision["num_heads"],
                intermediate=vision["intermediate_size"],
                out=vision["out_hidden_size"],
                positions=vision["num_position_embeddings"],
                deepstack=len(vision["deepstack_visual_indexes"]),
                patch=vision["patch_size"],
                merge=vision["spatial_merge_size"],
                temporal=vision["temporal_patch_size"],
            )
        except KeyError as error:
            raise AvomniError(
                f"the config of the base model does not say {error.args[0]!r}",
                where="model.base_model",
                fix="save the checkpoint again with transformers",
            ) from None
        quantised = config.get("quantization_config") or {}
        return cls(language, tower, stored_4bit=bool(quantised.get("load_in_4bit")))

    @cached_property
    def num_weights(self) -> int:
        language, vision = self.language, self.vision
        return (
            language.num_linears
            + language.num_norms
            + language.num_embeddings
            + language.num_head
            + vision.num_tower
            + vision.num_mergers
        )

    def adapter_matrices(self, rank: int, targets: Sequence[str] | None = None) -> list[int]:
        """Weights of each of LoRA's matrices in one layer: A and B of each adapted module.

        Args:
            targets: `model.lora_targets`; None is q, k, v and o of the attention.
        """
        hidden, inner = self.language.hidden, self.language.intermediate
        q, k = self.language.query, self.language.key
        sides = {
            "q_proj": (hidden, q),
            "k_proj": (hidden, k),
            "v_proj": (hidden, k),
            "o_proj": (q, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        ends = [name.rpartition(".")[2] for name in targets or tuple(sides)[:4]]
        return [rank * side for name in ends for side in sides.get(name, ())]

    def num_adapter(self, rank: int, targets: Sequence[str] | None = None) -> int:
        """Weights of the adapter at this rank."""
        return self.language.layers * sum(self.adapter_matrices(rank, targets))


# As in config.json of Qwen/Qwen3-VL-{2B,4B,8B,32B}-Instruct of October 2025. The mixtures of
# experts (30B-A3B, 235B-A22B) are another architecture.
_SMALL_TOWER = {"hidden": 1024, "depth": 24, "heads": 16, "intermediate": 4096}
_LARGE_TOWER = {"hidden": 1152, "depth": 27, "heads": 16, "intermediate": 4304}
_RELEASED = {
    "2b": (Language(2048, 28, 16, 8, 128, 6144, 151_936, tied=True), _SMALL_TOWER),
    "4b": (Language(2560, 36, 32, 8, 128, 9728, 151_936, tied=True), _SMALL_TOWER),
    "8b": (Language(4096, 36, 32, 8, 128, 12_288, 151_936, tied=False), _LARGE_TOWER),
    "32b": (Language(5120, 64, 64, 8, 128, 25_600, 151_936, tied=False), _LARGE_TOWER),
}


def anatomy_of(base_model: str) -> Anatomy | None:
    """The anatomy of `model.base_model`, or None where neither this disk nor the table knows it.

    Raises:
        AvomniError: its config on this disk lacks a number.
    """
    config = Path(load.base_location(base_model)) / "config.json"
    if config.is_file():
        plain = files.read_json(config)
        return Anatomy.from_config(plain) if plain.get("model_type") == MODEL_TYPE else None
    words = set(re.split(r"[^a-z0-9]+", base_model.lower()))
    sizes = words & _RELEASED.keys()
    if not {"qwen3", "vl"} <= words or len(sizes) != 1:
        return None
    language, tower = _RELEASED[sizes.pop()]
    vision = Vision(**tower, out=language.hidden, positions=2304, deepstack=3)
    return Anatomy(language, vision, stored_4bit={"bnb", "4bit"} <= words)
