"""The tiny base before training: Qwen3-VL with 1.8 million parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from avomni_world.tiny_base.tokenizer import Number, waypoint_tokens

PATCH, MERGE = 8, 2  # px of a patch; patches along each side of a vision token


def config(words: Qwen2Tokenizer) -> Qwen3VLConfig:
    """Qwen3-VL with 4 language layers of 128 and 3 vision blocks of 96 over patches of 8 × 8 px."""
    token = words.convert_tokens_to_ids
    return Qwen3VLConfig(
        text_config={
            "vocab_size": math.ceil(len(words) / 64) * 64,
            "hidden_size": 128,
            "intermediate_size": 224,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 65_536,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )


def gabors(count: int, size: int, seed: int) -> torch.Tensor:
    """Grey gratings with a Gaussian envelope that move from the first frame to the second (Gabor
    filters).

    A patch embedding with this initialisation detects motion from the first step on; from a random
    one the tower learns half as much in the same time. Source: Adelson and Bergen, "Spatiotemporal
    energy models for the perception of motion", 1985.

    Returns:
        (count, 3, 2, size, size) float32: filters, colours, frames, rows, columns.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2.0
    filters = np.empty((count, 3, 2, size, size))
    for each in filters:
        angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
        wavelength = math.exp(rng.uniform(math.log(3), math.log(12)))
        width, shift = rng.uniform(1.5, 3.5), rng.uniform(-0.5, 0.5) * wavelength
        middle_x, middle_y = rng.uniform(-2, 2, 2)
        along = x * math.cos(angle) + y * math.sin(angle)
        bell = np.exp(-((x - middle_x) ** 2 + (y - middle_y) ** 2) / 2 / width**2)
        for frame in range(2):
            wave = bell * np.cos(2 * math.pi * (along - shift * frame) / wavelength + phase)
            each[:, frame] = wave - bell * wave.sum() / bell.sum()
        each *= 2.0 / np.linalg.norm(each)
    return torch.from_numpy(filters.astype(np.float32))


def number_rows(numbers: Sequence[Number], width: int, seed: int) -> torch.Tensor:
    """Embeddings of numbers that are close for close numbers.

    Sine waves of the value, with wavelengths of 4 to 2000 steps and random phases, mixed by a
    random linear map for each kind of number. A softmax over them is initially smooth in the value,
    so that what is learned about one number also holds for its neighbours, most of which appear
    only a few times in training.
    Source: Tancik et al., "Fourier features let networks learn high frequency functions", 2020.

    Returns:
        (numbers, width) float32 of standard deviation 0.02, as all other embeddings start.
    """
    rng = np.random.default_rng(seed)
    waves = 24
    lengths = np.geomspace(4, 2000, waves)
    kinds = np.array([number.kind for number in numbers])
    values = np.array([number.value for number in numbers], dtype=np.float64)
    turns = 2 * math.pi * values[:, None] / lengths
    features = np.concatenate([np.cos(turns), np.sin(turns)], axis=1) / math.sqrt(waves)
    maps = rng.standard_normal((kinds.max() + 1, 2 * waves, width))
    rows = np.einsum("nf,nfw->nw", features, maps[kinds])
    rows += 0.5 * rng.standard_normal((kinds.max() + 1, width))[kinds]
    rows += 0.5 * rng.standard_normal((10, width))[[number.digit for number in numbers]]
    return torch.from_numpy((0.02 * rows / rows.std()).astype(np.float32))


def start(words: Qwen2Tokenizer, seed: int) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config(words))
    weight = model.model.visual.patch_embed.proj.weight
    with torch.no_grad():
        weight.copy_(gabors(len(weight), weight.shape[-1], seed))
        numbers = waypoint_tokens()
        table = model.model.language_model.embed_tokens.weight
        rows = words.convert_tokens_to_ids([number.text for number in numbers])
        table[rows] = number_rows(numbers, table.shape[1], seed)
    return model
