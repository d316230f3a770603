"""Widths, depths and weights of a vision-language model, for estimates of memory and time.

Works for all backbones and without torch. Numbers of weights, not bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Block:
    """Decoder layers of one kind.

    Attributes:
        count: Number of such layers in the language model.
        linears: End of the name -> (width in, width out) of each linear module that is quantised.
        query, key: Widths of the queries, and of the keys (and values), of all heads.
        heads, shared_heads: Numbers of query heads, and of key and value heads.
        inner: Inner width of the MLP, or of all active experts together.
        others: Weights of a layer that stay in 16 bit: norms, biases, experts.
        active_others: Those of them that are multiplied with a given token.
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
        """Number of weights of each LoRA matrix in one layer: A and B of each adapted module."""
        ends = [name.rpartition(".")[2] for name in targets]
        return [rank * side for name in ends for side in self.linears.get(name, ())]


@dataclass(frozen=True)
class Language:
    """The language model.

    Attributes:
        hidden: Width of a token between layers.
        blocks: Its decoder layers by kind.
        vocabulary: Rows of the embedding, and of the head.
        tied: Whether the head shares the embedding's weights.
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
        """Weights of the linear modules of all layers, which are quantised."""
        return sum(block.count * block.num_linears for block in self.blocks)

    @property
    def num_others(self) -> int:
        """Weights of all layers that are not quantised, and of the last norm."""
        return sum(block.count * block.others for block in self.blocks) + self.hidden

    @property
    def num_embeddings(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def num_head(self) -> int:
        return 0 if self.tied else self.num_embeddings


@dataclass(frozen=True)
class Vision:
    """The vision tower and its projector into the language model.

    Attributes:
        hidden, depth, heads, intermediate: Sizes of its blocks.
        out: Width of a vision token, that of the language model.
        num_tower: Weights of the patch embedding, the positions and the blocks.
        num_mergers: Weights of the projector from patches to vision tokens.
        values_per_patch: Input values of a patch.
        kept_layers: Number of layers, besides the last, whose outputs (as tokens of width `out`)
            are kept until the language model has run.
        rotates: Whether it has rotary positions, for which queries and keys are float32; otherwise
            learned positions are added once.
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


@dataclass(frozen=True)
class VisionWork:
    """The load of the vision tower for one window.

    Attributes:
        patches: Length of the tower's sequences, including class tokens.
        pairs: Pairs of patches that attend to each other: the sum of squares over its images.
    """

    patches: int
    pairs: int


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model; `stored_4bit` is whether its checkpoint has 4-bit weights."""

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
        """Number of weights of the adapter at this rank."""
        return sum(
            block.count * sum(block.adapter_matrices(rank, targets))
            for block in self.language.blocks
        )
