"""What a model says about windows: greedy, a batch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from avomni_lib.training.conversation import Conversation


def say(model: Any, talk: Conversation, frames: np.ndarray, max_new_tokens: int) -> list[str]:
    """What the model says about a batch of windows, most likely token by most likely token.

    Args:
        model: One that the conversation's backbone prepares for, with or without LoRA.
        talk: Prompt and tokens.
        frames: (B, T, H, W, 3) uint8 RGB.
        max_new_tokens: An answer that has not ended by then is kept as far as it got.

    Returns:
        B texts, without prompt, padding and the end of the turn.
    """
    import torch

    from avomni_lib.training.conversation import collate

    device, pad_id = model.device, talk.tokenizer.pad_token_id
    batch = collate([talk.prompt()] * len(frames), pad_id, side="left")
    del batch["labels"]
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    # A view of the memory-mapped cache is read-only, which torch does not like.
    seen = torch.from_numpy(np.require(frames, requirements=["C", "W"])).to(device)
    batch |= talk.backbone.inputs(seen, model.dtype)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            # A checkpoint's own generation_config samples (Qwen3-VL's does), and what is not named
            # here is taken from there.
            ids = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                use_cache=True,
                eos_token_id=talk.end_id,
                pad_token_id=pad_id,
            )
    finally:
        model.train(was_training)
    return [talk.text_of(row) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]
