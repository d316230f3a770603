"""Generates answers to windows: greedy or sampled, free or constrained to the target's form."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from avomni_lib.training.prompt.conversation import Conversation

VIDEO = 2  # of a video's placeholders in transformers' mm_token_type_ids; text is 0


@dataclass(frozen=True)
class Sampling:
    """Settings of sampled answers.

    Attributes:
        temperature: Above 0; 1 uses the model's probabilities.
        top_p: Nucleus sampling: the most likely tokens with this total probability; 1 is all.
        seed: Random seed; the same batch with the same seed has the same answers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


def generate_texts(
    model: Any,
    conversation: Conversation,
    frames: np.ndarray,
    max_new_tokens: int,
    *,
    histories: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    constrained: bool = False,
) -> list[str]:
    """Generate the answers to a batch of windows.

    Args:
        model: A model of the conversation's backbone, with or without LoRA.
        frames: (B, T, H, W, 3) uint8 RGB.
        max_new_tokens: Longer answers are truncated.
        histories: Text of the car's past motion for each window's prompt; None adds no text.
        sampling: Sample the tokens; None decodes greedily.
        constrained: Constrain answers to the target's pattern.

    Returns:
        B texts, without prompt, padding and end of turn.

    Raises:
        AvomniError: a prompt is longer than max_seq_length; see `constrained.Constraint`.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import LogitsProcessorList

    from avomni_lib.training.model.constrained import Constraint

    histories = [""] * len(frames) if histories is None else histories
    prompts = [
        torch.from_numpy(conversation.prompt(history).input_ids)
        for history, _ in zip(histories, frames, strict=True)
    ]
    tokenizer, end_id = conversation.tokenizer, conversation.end_id
    pad = functools.partial(pad_sequence, batch_first=True, padding_side="left")
    batch = {
        "input_ids": pad(prompts, padding_value=tokenizer.pad_token_id),
        "attention_mask": pad([torch.ones_like(ids) for ids in prompts]),
    }
    if conversation.backbone.takes_token_types:
        batch["mm_token_type_ids"] = VIDEO * (batch["input_ids"] == conversation.vision_id)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    batch |= conversation.inputs(_on(model, frames), model.dtype)
    processors = LogitsProcessorList()
    if constrained:
        processors.append(
            Constraint(tokenizer, end_id, [conversation.target.pattern] * len(frames))
        )
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _drawing(model, sampling):
            # Arguments that are not given come from the checkpoint's generation_config, which may
            # sample (as Qwen3-VL's does).
            ids = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=sampling is not None,
                num_beams=1,
                temperature=sampling and sampling.temperature,
                top_p=sampling and sampling.top_p,
                top_k=sampling and 0,  # all tokens
                repetition_penalty=1.0,
                use_cache=True,
                eos_token_id=end_id,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=processors,
            )
    finally:
        model.train(was_training)
    tokens = ids[:, batch["input_ids"].shape[1] :].tolist()
    return [conversation.text_of(row) for row in tokens]


def generate_all(
    model: Any,
    conversation: Conversation,
    frames: Iterable[np.ndarray],
    histories: Iterable[str],
    *,
    max_new_tokens: int,
    at_a_time: int,
    constrained: bool = False,
) -> list[str]:
    """Answers to windows (T, H, W, 3) uint8 RGB, `at_a_time` per batch; see `generate_texts`."""
    windows, texts = zip(frames, histories, strict=True), list[str]()
    while batch := list(itertools.islice(windows, at_a_time)):
        shown, past = zip(*batch, strict=True)
        options = {"histories": past, "constrained": constrained}
        texts += generate_texts(model, conversation, np.stack(shown), max_new_tokens, **options)
    return texts


def _on(model: Any, frames: np.ndarray) -> torch.Tensor:
    import torch

    # torch warns about read-only arrays, such as views of the memory-mapped cache.
    return torch.from_numpy(np.require(frames, requirements=["C", "W"])).to(model.device)


@contextlib.contextmanager
def _drawing(model: Any, sampling: Sampling | None) -> Iterator[None]:
    """Seed the random generators for sampling, and restore them afterwards."""
    import torch

    if sampling is None:
        yield
        return
    on_cuda = model.device.type == "cuda"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_cuda else ()):
        torch.default_generator.manual_seed(sampling.seed)
        if on_cuda:
            torch.cuda.manual_seed_all(sampling.seed)
        yield
