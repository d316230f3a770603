"""A Qwen3-VL of some 100,000 random numbers whose answers differ from window to window."""

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def model(tokens, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """Random weights, large enough that different frames give different answers."""
    ids = {name: tokens.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokens),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": False,
            "attention_dropout": 0.5,  # so that a model left in training mode is found out
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=False,
        **ids,
    )
    torch.manual_seed(seed)
    made = Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    made.generation_config.pad_token_id = tokens.pad_token_id
    return made
