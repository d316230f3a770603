"""Widths, depths and weights of a vision-language model, for the estimates of memory and time.

Any backbone's numbers fit in here; no torch. Weights are counted, not bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Block:
    """Decoder layers of one kind.

    Attributes:
        count: How many of them the language model has.
        linears: End of the name -> (width in, width out) of each linear module that 4 bit holds.
        query, key: Widths of the queries, and of the keys (and values), of all heads.
        heads, shared_heads: Their numbers; a layer with linear attention has its own.
        inner: Width inside the MLP that a token goes through (of all its experts).
        others: Weights of a layer that stay in 16 bit: norms, biases, experts in one tensor.
        active_others: Those of them that a token meets in a product.
        attends: Whether its cost grows with the square of the tokens.
    """

    count: int
    linears: dict[str, tuple[int, int]]
    query: int
    key: int
    heads: int
    shared_heads: int
    inner: int
    others: int
    active_others: int = 0
    attends: bool = True

    @property
    def num_linears(self) -> int:
        """Weights of one layer's linear modules."""
        return sum(inside * outside for inside, outside in self.linears.values())

    def adapter_matrices(self, rank: int, targets: Sequence[str]) -> list[int]:
        """Weights of each of LoRA's matrices in one layer: A and B of each adapted module."""
        ends = [name.rpartition(".")[2] for name in targets]
        return [rank * side for name in ends for side in self.linears.get(name, ())]


@dataclass(frozen=True)
class Language:
    """The language model.

    Attributes:
        hidden: Width of a token between layers.
        blocks: Its decoder layers by kind.
        vocabulary: Rows of the embedding, and of the head.
        tied: Whether the head is the embedding.
    """

    hidden: int
    blocks: tuple[Block, ...]
    vocabulary: int
    tied: bool

    @property
    def layers(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def num_linears(self) -> int:
        """Weights of the linear modules of all layers: what 4 bit holds."""
        return sum(block.count * block.num_linears for block in self.blocks)

    @property
    def num_others(self) -> int:
        """Weights of all layers that 4 bit does not hold, and of the last norm."""
        return sum(block.count * block.others for block in self.blocks) + self.hidden

    @property
    def num_embeddings(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def num_head(self) -> int:
        return 0 if self.tied else self.num_embeddings


@dataclass(frozen=True)
class Vision:
    """The vision tower and what leads from it into the language model.

    Attributes:
        hidden, depth, heads, intermediate: Of its blocks.
        out: Width of a vision token, the language model's.
        num_tower: Weights of the patch embedding, the positions and the blocks.
        num_mergers: Weights of what makes vision tokens of its patches.
        values_per_patch: Numbers of a patch before it is embedded.
        kept_layers: Of how many layers the outputs live on until the language model has run, beside
            the last one's: as tokens of `out`.
        rotates: Whether positions turn queries and keys, which are float32 for it; else they are
            learned and added once.
        held_layers: Of how many layers the outputs, as patches, live at once in the tower.
    """

    hidden: int
    depth: int
    heads: int
    intermediate: int
    out: int
    num_tower: int
    num_mergers: int
    values_per_patch: int
    rotates: bool = True
    kept_layers: int = 0
    held_layers: int = 0


def is_stored_4bit(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint of a `config.json` holds 4-bit weights already."""
    return bool((config.get("quantization_config") or {}).get("load_in_4bit"))


@dataclass(frozen=True)
class VisionWork:
    """What the vision tower goes through for one window.

    Attributes:
        patches: Places in the tower's sequences, class tokens among them.
        pairs: Pairs of patches that attend to each other: the sum of squares over its pictures.
    """

    patches: int
    pairs: int


@dataclass(frozen=True)
class ModelSize:
    """A model; `stored_4bit` is whether its checkpoint holds 4-bit weights already."""

    language: Language
    vision: Vision
    stored_4bit: bool = False

    @cached_property
    def num_weights(self) -> int:
        language, vision = self.language, self.vision
        embeddings = language.num_embeddings + language.num_head
        tower = vision.num_tower + vision.num_mergers
        return language.num_linears + language.num_others + embeddings + tower

    def num_adapter(self, rank: int, targets: Sequence[str]) -> int:
        """Weights of the adapter at this rank."""
        return sum(
            block.count * sum(block.adapter_matrices(rank, targets))
            for block in self.language.blocks
        )
