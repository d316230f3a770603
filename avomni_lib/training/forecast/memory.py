"""Memory of a training by part, estimated from the model's numbers.

The lifetimes of tensors were taken from the source of transformers' Qwen3-VL, PEFT, bitsandbytes
and TRL's chunked loss; tests/test_memory.py compares the result with torch's profiler. b is the
bytes per number; H, Q, K, I and r are the widths of a token, its queries, its keys, the MLP and
LoRA. Bytes per token:

    kept by a layer   b (2H + Q + K)               inputs of the four norms
                      b (H + 2Q + 2K + 3I + 4r)    inputs of LoRA and attention, factors of the MLP
                      4 (2 + 2 heads + shared)     scales of the norms, sums of attention
    its backward      b (H + 3I)                   gradients of its output and of the MLP's factors
    a checkpoint      b H                          input from which a layer is recomputed

The frozen vision tower keeps nothing, as gradients end at the language model's embeddings. This
applies to transformers and PEFT; savings of Unsloth's layers are not considered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.plan import gigabytes
from avomni_lib.training.backbones import family, in_4bit
from avomni_lib.training.backbones.shared.base import refuse_other_model
from avomni_lib.training.backbones.shared.size import Language, ModelSize
from avomni_lib.training.model import model_path
from avomni_lib.training.prompt import samples
from avomni_lib.training.prompt.conversation import grid_size
from avomni_lib.training.prompt.tokens import Tokens

# NF4 with double quantisation: 4 bits per weight, 8 per 64 weights, and 32 per 256 of those.
# Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, section 3.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
FLOAT32 = 4
# bitsandbytes keeps moments of smaller tensors in float32, and one float32 scale per 256 others.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
# TRL computes logits for this many tokens at a time. Four float32 copies exist at once: logits,
# log softmax, its exponential, and the product of both or the gradient.
LOGIT_TOKENS, LOGIT_COPIES = 256, 4
READY_BATCHES = 2  # `loader.DEPTH`, which cannot be imported without torch


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each part, tensors only; on a CPU, Python and the heap add to them.

    Attributes:
        device: "cpu" or "cuda".
        weights: The base model.
        adapter: LoRA's weights and their gradients.
        optimizer: Its moments; torch's memory statistics do not include those of a paged one.
        kept: Activations kept from the forward to the backward pass.
        layer: Tensors of one layer while its gradients are computed.
        patches: Tensors while patches are computed from frames.
        vision: Tensors while the vision tower runs, including patches.
        seen: Part of it that is kept until the loss: patches, vision tokens and embeddings.
        logits: Tensors while the loss is computed.
        loader: Prefetched frames; with a GPU in page-locked memory of the host.
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
        """Temporary bytes at the moments of a step that may be its peak.

        They do not overlap: the vision tower's memory is freed before the language model's layers
        run, and logits before the backward pass reaches the last layer.
        """
        return {
            "patches are made": self.patches,
            "the vision tower runs": self.vision,
            "the loss is computed": self.kept + self.seen + self.logits,
            "a layer's gradients are computed": self.kept + self.layer,
        }

    @cached_property
    def peak_bytes(self) -> int:
        """Peak memory of tensors."""
        return self.weights + self.adapter + self.optimizer + max(self.moments.values())

    def parts(self) -> dict[str, int]:
        """The peak of each part, for display; those of the last three do not coincide."""
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
            beside: Note on a measurement.
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
    """The size of the base model, from its config on disk or its family's table; None if unknown.

    Raises:
        AvomniError: its config belongs to another family, or lacks a number.
    """
    kind = family(p.model.backbone)
    path = Path(model_path.base_location(p.model.base_model)) / "config.json"
    if not path.is_file():
        return kind.released(p.model.base_model)
    config = files.read_json(path)
    if config.get("model_type") not in kind.model_types:
        raise refuse_other_model(kind, config.get("model_type"))
    try:
        size = kind.size(config)
    except KeyError as error:
        raise AvomniError(
            f"the config of the base model does not say {error.args[0]!r}",
            where=str(path),
            fix="save the checkpoint again with transformers",
        ) from None
    stored = (config.get("quantization_config") or {}).get("load_in_4bit")
    return replace(size, stored_4bit=bool(stored))


def lora_targets(p: Params) -> tuple[str, ...]:
    """Ends of the names of the modules that LoRA adapts."""
    return p.model.lora_targets or family(p.model.backbone).lora_targets


def memory(
    p: Params, size: ModelSize, tokens: Tokens, *, device: str = "cuda", dtype_bytes: int = 2
) -> MemoryEstimate:
    """Memory of one training process with these parameters.

    Args:
        tokens: Tokens of the longest sample, to which batches are padded.
        device: "cuda", or "cpu", where frames are not page-locked.
        dtype_bytes: Bytes per number in computations.
    """
    wants_4bit = size.stored_4bit or in_4bit(p).value == "nf4"
    linears = size.language.num_linears
    weights = (size.num_weights - linears) * dtype_bytes
    weights += round(linears * (NF4_BYTES if wants_4bit else dtype_bytes))
    num_adapter = size.num_adapter(p.model.lora_rank, lora_targets(p))
    adapter = 2 * FLOAT32 * num_adapter
    # Besides the adapter's float32 weights, autocast keeps their cast copies for the backward pass;
    # with recomputation only for one layer, which is negligible.
    if dtype_bytes < FLOAT32 and not p.training.gradient_checkpointing:
        adapter += dtype_bytes * num_adapter
    kept, layer, logits = _language(p, size.language, tokens, dtype_bytes, wants_4bit)
    patches, vision, seen = _vision(p, size, tokens, dtype_bytes)
    return MemoryEstimate(
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
    """Bytes kept, of the largest layer's backward pass, and of the logits."""
    count, wide = p.training.batch_size * tokens.total, language.hidden
    again = p.training.gradient_checkpointing
    kept, layer = 0, 0
    for block in language.blocks:
        # PEFT converts the input of a matrix that is not in 4 bit to float32, and autocast back:
        # q, k, v and o each keep a separate copy.
        copies = 0 if in_4bit or b == FLOAT32 else 2 * wide + block.query
        saved = b * (2 * wide + block.query + block.key)
        saved += b * (wide + copies + 2 * block.query + 2 * block.key + 3 * block.inner)
        saved += b * 4 * p.model.lora_rank
        saved += FLOAT32 * (2 + 2 * block.heads + block.shared_heads)
        # A 4-bit matrix is dequantised as a whole, when only the gradient of the MLP's product is
        # left.
        largest = max(inside * outside for inside, outside in block.linears.values())
        unpacked = b * largest if in_4bit else 0
        inner = b * block.inner * count
        backward = b * wide * count + max(3 * inner, inner + unpacked)
        kept += block.count * count * (b * wide if again else saved)
        layer = max(layer, backward + (saved * count if again else 0))
    logits = LOGIT_COPIES * FLOAT32 * min(LOGIT_TOKENS, count) * language.vocabulary
    # Input and output of the last norm, the output without each row's last token, and a copy with
    # the tokens that bear the loss first.
    return kept, layer, logits + count * 4 * b * wide


def _vision(p: Params, size: ModelSize, tokens: Tokens, b: int) -> tuple[int, int, int]:
    """Bytes while patches are computed, in a block of the tower, and those that are kept."""
    tower, batch = size.vision, p.training.batch_size
    num_tokens = batch * tokens.vision
    num_patches = batch * tokens.work.patches
    wide, values = tower.hidden, num_patches * tower.values_per_patch
    # Frames and their rearrangement in uint8; two steps of the normalisation in float32.
    patches = (2 + 2 * FLOAT32) * values
    if p.processing.past.scale < 1:  # older frames are read at full size
        patches += batch * len(samples.past_of(p)) * _frame(p)
    embedded = batch * tokens.total * b * size.language.hidden
    kept = tower.kept_layers * num_tokens * b * tower.out
    # The norms' outputs are float32 under autocast.
    block = (2 * b + FLOAT32) * wide
    # q, k and v, the output and its reshaped copy. Or the MLP.
    attention = 5 * b * wide
    if tower.rotates:
        # Positions, cosines and sines in float32.
        block += FLOAT32 * wide + 2 * FLOAT32 * (wide // tower.heads)
        # q, k and v; q and k in float32 and four products of their rotation. Or q, k and v, rotated
        # q and k, contiguous copies of all three, and the output.
        copies = 0 if b == FLOAT32 else 2 * FLOAT32 * wide
        attention = max(3 * b * wide + copies + 4 * FLOAT32 * wide, 9 * b * wide)
    block += max(attention, 2 * b * tower.intermediate)
    vision = b * values + embedded + kept + num_patches * block
    return patches, vision, b * values + embedded + kept + num_tokens * b * tower.out


def _moments(p: Params, language: Language) -> int:
    """Bytes of AdamW's two moments per weight, an upper bound for other optimizers."""
    scaled = 2 * (1 + FLOAT32 / BLOCK_8BIT)
    smallest = SMALLEST_8BIT if "8bit" in p.training.optimizer else math.inf
    return sum(
        block.count * (round(scaled * n) if n >= smallest else 2 * FLOAT32 * n)
        for block in language.blocks
        for n in block.adapter_matrices(p.model.lora_rank, lora_targets(p))
    )


def _frame(p: Params) -> int:
    height, width = grid_size(p)
    return height * width * 3


def _loader(p: Params, pinned: bool) -> int:
    """Bytes of the loader's ring: prefetched batches, those of a step, and one being read."""
    length = len(samples.past_of(p)) + p.processing.sequence_length
    batch = p.training.batch_size * length * _frame(p)
    if pinned:  # PyTorch rounds page-locked buffers up to a power of two
        batch = 1 << (batch - 1).bit_length()
    held = p.training.gradient_accumulation_steps // p.training.num_processes
    return (max(READY_BATCHES, held) + held + 1) * batch
