"""The memory that training takes, by part, from the model's numbers alone.

Which tensors live when was read from transformers' Qwen3-VL, PEFT, bitsandbytes and TRL's chunked
loss; tests/test_memory.py compares it with what torch's profiler counts. b is a number's bytes,
H, Q, K, I and r are the widths of a token, its queries, its keys, the MLP and LoRA. Bytes a token:

    kept by a layer   b (2H + Q + K)               what the four normalisations read
                      b (H + 2Q + 2K + 3I + 4r)    inputs of LoRA and attention, factors of the MLP
                      4 (2 + 2 heads + shared)     scales of the norms, sums of attention
    its backward      b (H + 3I)                   gradients of its output and of the MLP's factors
    a checkpoint      b H                          what a layer is computed from again

The frozen vision tower keeps nothing: gradients end at the language model's embeddings. This is the
way of transformers and PEFT; what Unsloth's own layers save is not taken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes
from avomni_lib.training.backbones import family, in_4bit
from avomni_lib.training.backbones.shared.base import refuse_other_model
from avomni_lib.training.backbones.shared.size import Language, ModelSize
from avomni_lib.training.model import place
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import grid_size
from avomni_lib.training.prompt.tokens import Tokens

# NF4 with double quantisation: 4 bits, 8 for each 64 weights, 32 for each 256 of those. Dettmers et
# al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, section 3.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
FLOAT32 = 4
# bitsandbytes keeps moments of smaller tensors in float32, and a float32 scale for each 256 others.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
# TRL makes logits of so many tokens at a time. Four float32 copies of them live at once: logits,
# their log softmax, its exponential and the product of both, or the gradient in its place.
LOGIT_TOKENS, LOGIT_COPIES = 256, 4
READY_BATCHES = 2  # read ahead at least: `loader.DEPTH`, which cannot be imported without torch


@dataclass(frozen=True)
class Memory:
    """Bytes of each part: tensors alone. On a CPU, Python and the heap come on top of them.

    Attributes:
        device: "cpu" or "cuda".
        weights: Of the base model.
        adapter: LoRA's weights and their gradients.
        optimizer: Its moments; those of a paged one torch's own count of a GPU's memory leaves out.
        kept: Activations from the forward to the backward pass.
        layer: A layer's, while its gradients are computed.
        patches: While they are made of frames.
        vision: In the vision tower, patches among it.
        seen: What of it lives until the loss is known: patches, vision tokens and embeddings.
        logits: While the loss is computed.
        loader: Frames that are read ahead; page-locked memory of the host beside a GPU.
    """

    device: str
    weights: int
    adapter: int
    optimizer: int
    kept: int
    layer: int
    patches: int
    vision: int
    seen: int
    logits: int
    loader: int

    @property
    def moments(self) -> dict[str, int]:
        """Bytes that come and go in a step, at the moments that may be its peak.

        One follows the other: what the vision tower needs is free again before the language model's
        layers run, and logits are gone when the backward pass reaches the last layer.
        """
        return {
            "patches are made": self.patches,
            "the vision tower runs": self.vision,
            "the loss is computed": self.kept + self.seen + self.logits,
            "a layer's gradients are computed": self.kept + self.layer,
        }

    @cached_property
    def peak_bytes(self) -> int:
        """The most that tensors hold at once."""
        return self.weights + self.adapter + self.optimizer + max(self.moments.values())

    def parts(self) -> dict[str, int]:
        """What is shown: each part's own most; the last three are not there at once."""
        return {
            "weights": self.weights,
            "adapter": self.adapter,
            "optimizer": self.optimizer,
            "activations": self.kept + self.layer,
            "vision": self.vision,
            "logits": self.logits,
        }

    def rows(self, beside: str = "") -> list[tuple[str, str, str]]:
        """Lines for a plan.

        Args:
            beside: What was measured.
        """
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in self.parts().items())
        most = max(self.moments, key=self.moments.__getitem__)
        what = "of tensors" if self.device == "cpu" else f"most while {most}"
        note = "; ".join(filter(None, [what, parts, beside]))
        if self.device == "cpu":
            return [("memory", f"over {gigabytes(self.peak_bytes)}", note)]
        ahead = "page-locked, for frames that are read ahead"
        return [
            ("memory on the GPU", gigabytes(self.peak_bytes), note),
            ("memory on the host", gigabytes(self.loader), ahead),
        ]


def size_of(p: Params) -> ModelSize | None:
    """The size of the base model, or None where neither this disk nor its family's table knows it.

    Raises:
        AvomniError: its config on this disk is of another family, or lacks a number.
    """
    kind = family(p.model.backbone)
    path = Path(place.base_location(p.model.base_model)) / "config.json"
    if not path.is_file():
        return kind.released(p.model.base_model)
    config = files.read_json(path)
    if config.get("model_type") not in kind.model_types:
        raise refuse_other_model(kind, config.get("model_type"))
    try:
        return kind.size(config)
    except KeyError as error:
        raise AvomniError(
            f"the config of the base model does not say {error.args[0]!r}",
            where=str(path),
            fix="save the checkpoint again with transformers",
        ) from None


def lora_targets(p: Params) -> tuple[str, ...]:
    """Ends of the names of the modules that LoRA adapts."""
    return p.model.lora_targets or family(p.model.backbone).lora_targets


def memory(
    p: Params, size: ModelSize, tokens: Tokens, *, device: str = "cuda", dtype_bytes: int = 2
) -> Memory:
    """What one process needs to train with these parameters.

    Args:
        tokens: Of the longest sample; windows of a batch are padded to it.
        device: "cuda", or "cpu", whose frames are not page-locked.
        dtype_bytes: Of a number in the arithmetic.
    """
    wants_4bit = size.stored_4bit or in_4bit(p).value == "nf4"
    linears = size.language.num_linears
    weights = (size.num_weights - linears) * dtype_bytes
    weights += round(linears * (NF4_BYTES if wants_4bit else dtype_bytes))
    num_adapter = size.num_adapter(p.model.lora_rank, lora_targets(p))
    adapter = 2 * FLOAT32 * num_adapter
    # Beside float32 weights of the adapter autocast keeps the copies that the forward pass computed
    # with for the backward pass; where layers are computed again, for one layer, which is nothing.
    if dtype_bytes < FLOAT32 and not p.training.gradient_checkpointing:
        adapter += dtype_bytes * num_adapter
    kept, layer, logits = _language(p, size.language, tokens, dtype_bytes, wants_4bit)
    patches, vision, seen = _vision(p, size, tokens, dtype_bytes)
    return Memory(
        device=device,
        weights=weights,
        adapter=adapter,
        optimizer=_moments(p, size.language),
        kept=kept,
        layer=layer,
        patches=patches,
        vision=vision,
        seen=seen,
        logits=logits,
        loader=_loader(p, pinned=device != "cpu"),
    )


def _language(
    p: Params, language: Language, tokens: Tokens, b: int, in_4bit: bool
) -> tuple[int, int, int]:
    """Bytes kept, of the largest layer's backward pass, and around the logits."""
    count, wide = p.training.batch_size * tokens.total, language.hidden
    again = p.training.gradient_checkpointing
    kept, layer = 0, 0
    for block in language.blocks:
        # What a matrix that is not in 4 bit reads PEFT converts to float32, and autocast back: q, k
        # and v each keep their own copy, and so does o, of what attention keeps too.
        own = 0 if in_4bit or b == FLOAT32 else 2 * wide + block.query
        saved = b * (2 * wide + block.query + block.key)
        saved += b * (wide + own + 2 * block.query + 2 * block.key + 3 * block.inner)
        saved += b * 4 * p.model.lora_rank
        saved += FLOAT32 * (2 + 2 * block.heads + block.shared_heads)
        # A 4-bit matrix is unpacked whole, when the gradient of the MLP's product is all there is.
        largest = max(inside * outside for inside, outside in block.linears.values())
        unpacked = b * largest if in_4bit else 0
        inner = b * block.inner * count
        backward = b * wide * count + max(3 * inner, inner + unpacked)
        kept += block.count * count * (b * wide if again else saved)
        layer = max(layer, backward + (saved * count if again else 0))
    logits = LOGIT_COPIES * FLOAT32 * min(LOGIT_TOKENS, count) * language.vocabulary
    # The last norm's input and output, that without each row's last token, and that with the tokens
    # that bear the loss first.
    return kept, layer, logits + count * 4 * b * wide


def _vision(p: Params, size: ModelSize, tokens: Tokens, b: int) -> tuple[int, int, int]:
    """Bytes while patches are made, in a block of the tower, and those that stay."""
    tower, batch = size.vision, p.training.batch_size
    num_tokens = batch * tokens.vision
    num_patches = batch * tokens.work.patches
    wide, values = tower.hidden, num_patches * tower.values_per_patch
    # Frames and their rearrangement as uint8; two steps of the float32 normalisation.
    patches = (2 + 2 * FLOAT32) * values
    if p.processing.past.scale < 1:  # older frames come at their full size
        patches += batch * len(samples.past_of(p)) * _frame(p)
    embedded = batch * tokens.total * b * size.language.hidden
    kept = tower.kept_layers * num_tokens * b * tower.out
    held = tower.held_layers * num_patches * b * wide
    # The norms' outputs are float32 under autocast.
    block = (2 * b + FLOAT32) * wide
    # q, k and v, what comes out and its rows. Or the MLP.
    attention = 5 * b * wide
    if tower.rotates:
        # Positions and their cosines and sines are float32.
        block += FLOAT32 * wide + 2 * FLOAT32 * (wide // tower.heads)
        # q, k and v; q and k in float32 and four such products of their rotation. Or q, k and v,
        # both rotated, a batch of all three and what comes out.
        copies = 0 if b == FLOAT32 else 2 * FLOAT32 * wide
        attention = max(3 * b * wide + copies + 4 * FLOAT32 * wide, 9 * b * wide)
    block += max(attention, 2 * b * tower.intermediate)
    vision = b * values + embedded + kept + held + num_patches * block
    return patches, vision, b * values + embedded + kept + num_tokens * b * tower.out


def _moments(p: Params, language: Language) -> int:
    """Bytes of the optimizer's two moments a weight; those of any other than AdamW are no more."""
    scaled = 2 * (1 + FLOAT32 / BLOCK_8BIT)
    smallest = SMALLEST_8BIT if "8bit" in p.training.optimizer else math.inf
    return sum(
        block.count * (round(scaled * n) if n >= smallest else 2 * FLOAT32 * n)
        for block in language.blocks
        for n in block.adapter_matrices(p.model.lora_rank, lora_targets(p))
    )


def _frame(p: Params) -> int:
    """Bytes of one frame of the cache."""
    height, width = grid_size(p)
    return height * width * 3


def _loader(p: Params, pinned: bool) -> int:
    """Bytes of the loader's ring: batches ready, those of a step, and one that is being read."""
    length = len(samples.past_of(p)) + p.processing.sequence_length
    batch = p.training.batch_size * length * _frame(p)
    if pinned:  # PyTorch makes each page-locked buffer a power of two
        batch = 1 << (batch - 1).bit_length()
    held = p.training.gradient_accumulation_steps // p.training.num_processes
    return (max(READY_BATCHES, held) + held + 1) * batch
