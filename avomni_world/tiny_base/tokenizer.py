"""The tiny base's tokenizer: Qwen's pre-tokenizer and special tokens over some 3,000 tokens.

Qwen3-VL's own vocabulary has 151,669 entries: with 128 weights each they would outnumber the rest
of the model ten to one. Here the words of the prompt and of the answers are whole tokens, digits
are single tokens as in Qwen's, and everything else is encoded as bytes, so that any text can be
encoded. A waypoint is three tokens, such as ` (12.3`, `4,-1` and `.50)`: the forward distance to a
decimetre; its last digit with the whole metres to the left; and the remaining digits of these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

# Qwen3-VL's special tokens in the order of their ids there, 151643 to 151668. Special ones are left
# out of decoded text; an answer's <think> is not.
# Source: added_tokens_decoder of Qwen/Qwen3-VL-8B-Instruct's tokenizer_config.json.
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_PLAIN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
SPECIAL_TOKENS = dict.fromkeys(_SPECIAL, True) | dict.fromkeys(_PLAIN, False)
FARTHEST_M = 160  # forward; larger distances, or more to the side, take a few more tokens
WIDEST_M = 28
BACK_M = 40  # of a past position; these whole metres are one token


@dataclass(frozen=True)
class Number:
    """A token that is a piece of a waypoint.

    Attributes:
        text: The token's text.
        kind: Tokens of one kind have comparable values.
        value: In steps from one token of the kind to the next.
        digit: A further digit, of another number; 0 if there is none.
    """

    text: str
    kind: int
    value: float
    digit: int = 0


def waypoint_tokens() -> tuple[Number, ...]:
    forward = [
        Number(f" ({tenth // 10}.{tenth % 10}", 0, tenth) for tenth in range(10 * FARTHEST_M)
    ]
    sideways = [
        Number(f"{digit},{sign}{whole}", 1, whole if not sign else -1 - whole, digit)
        for sign in ("", "-")
        for whole in range(WIDEST_M)
        for digit in range(10)
    ]
    rest = [Number(f".{cent:02d})", 2, cent) for cent in range(100)]
    back = [Number(f" (-{whole}", 3, whole) for whole in range(BACK_M)]
    return (*forward, *sideways, *rest, *back)


def learn_merges(texts: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE that continues until every pre-token of `texts` is one token.

    A function of `texts` alone.

    Returns:
        The vocabulary (token -> id, the 256 bytes first) and the merges, in order.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 14,  # never reached: the texts have no pairs left before that
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    vocab, merges = learnt["vocab"], [tuple(pair) for pair in learnt["merges"]]
    return vocab, merges


def make_tokenizer(
    texts: Sequence[str], chat_template: str, numbers: Sequence[Number] = ()
) -> Qwen2Tokenizer:
    """A tokenizer for which every word of `texts` and every one of `numbers` is one token.

    The special tokens come last.
    """
    vocab, merges = learn_merges(texts)
    # Ids are fixed from the start, because the class adds its end token first, which would shift
    # the others.
    added = {number.text: False for number in numbers} | SPECIAL_TOKENS
    for place, token in enumerate(added, start=len(vocab)):
        vocab[token] = place
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        chat_template=chat_template,
        extra_special_tokens=[],
    )
    # The pre-tokenizer would split numbers; added tokens are matched before it runs.
    tokenizer.add_tokens(
        [AddedToken(token, special=special, normalized=False) for token, special in added.items()]
    )
    return tokenizer


def chat_template() -> str:
    """Qwen3-VL's chat template, as TRL ships it."""
    return resources.files("trl").joinpath("chat_templates/qwen3_vl.jinja").read_text()
