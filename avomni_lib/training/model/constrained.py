"""Constrained decoding: answers are generated to match a target's pattern.

llguidance follows the pattern and provides the set of allowed tokens at each step. Where the
pattern allows only one text, it also allows only one tokenisation of it: the tokenizer's, on which
the model was trained.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.errors import AvomniError

if TYPE_CHECKING:
    import torch

WHERE = "evaluation.constrained"


class Constraint:
    """A logits processor for one call of `generate` that constrains row i to the i-th pattern.

    The end token is allowed only when the row's text matches its pattern completely. An answer may
    be truncated by max_new_tokens.

    Args:
        end_id: The token that ends an answer.
        patterns: One per row; see `targets.Target.pattern`. Classes such as \\d are ASCII.

    Raises:
        AvomniError: llguidance is missing, or does not support the tokenizer or a pattern.
    """

    def __init__(self, tokenizer: Any, end_id: int, patterns: Sequence[str]):
        self.end_id = end_id
        self.rows = [_matcher(tokenizer, end_id, pattern).deep_copy() for pattern in patterns]
        self.started = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, V) of the next token after `input_ids` (B, L), with -inf for forbidden ones.

        Raises:
            AvomniError: llguidance fails on a pattern.
        """
        import torch

        if self.started:
            for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
                if not row.is_stopped():  # the rest is padding
                    row.consume_token(token)
        self.started = True
        # A model's vocabulary may be padded with unused entries.
        num_bytes = -(-scores.shape[1] // 8)
        masks = np.zeros((len(self.rows), num_bytes), np.uint8)
        for packed, row in zip(masks, self.rows, strict=True):
            mask = np.frombuffer(self._mask(row), np.uint8)[:num_bytes]
            packed[: len(mask)] = mask
        bits = torch.arange(8, dtype=torch.uint8, device=scores.device)
        allowed = torch.from_numpy(masks).to(scores.device)[:, :, None] >> bits & 1
        allowed = allowed.flatten(1)[:, : scores.shape[1]]
        return scores.masked_fill(allowed == 0, -torch.inf)

    def _mask(self, row: Any) -> bytes:
        """One bit per token, the lowest of each byte first."""
        mask = row.compute_bitmask()
        if row.is_error():
            raise _refused(row.get_error())
        return mask


@functools.lru_cache(maxsize=2)
def _tokens(tokenizer: Any, end_id: int) -> Any:
    """The tokenizer for llguidance; takes a second for the 151,669 tokens of Qwen."""
    _library()
    from llguidance import hf

    try:
        return hf.from_tokenizer(tokenizer, eos_token=end_id)
    except Exception as error:  # llguidance has no exception class of its own
        raise AvomniError(
            f"llguidance does not take the base model's tokenizer: {error}",
            where=WHERE,
            fix="set evaluation.constrained: false",
        ) from error


def _grammar(tokenizer: Any, pattern: str) -> str:
    """The pattern as a llguidance grammar, with added tokens in angle brackets given by number.

    llguidance treats every added token in angle brackets as special, and a regular expression
    cannot match it: `<think>` has to be an item of the grammar.
    """
    llguidance = _library()
    added = tokenizer.added_tokens_decoder
    numbers = {
        token.content: number
        for number, token in added.items()
        if not token.special and token.content.startswith("<")
    }
    names = "|".join(map(re.escape, numbers))
    parts = [part for part in re.split(f"({names})", pattern) if part] if names else [pattern]
    if len(parts) > 1 and any(_has_alternatives(part) for part in parts):
        raise _refused("a token such as <think> stands beside alternatives that no group holds")
    # Like Python's re.ASCII; by default llguidance's \d matches the digits of every script.
    rule = [
        f"<[{numbers[part]}]>" if part in numbers else f"/{llguidance.regex_to_lark(part, 'dws')}/"
        for part in parts
    ]
    return llguidance.LLMatcher.grammar_from_lark("start: " + " ".join(rule))


def _has_alternatives(part: str) -> bool:
    """Whether a regular expression has a | outside all groups."""
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "", part)
    while bare != (bare := re.sub(r"\([^()]*\)", "", bare)):
        pass
    return "|" in bare


@functools.lru_cache(maxsize=8)
def _matcher(tokenizer: Any, end_id: int, pattern: str) -> Any:
    """A matcher at the pattern's start, to be copied."""
    llguidance, tokens = _library(), _tokens(tokenizer, end_id)
    matcher = llguidance.LLMatcher(tokens, _grammar(tokenizer, pattern), log_level=0)
    if matcher.is_error():
        raise _refused(matcher.get_error())
    return matcher


def _refused(why: str) -> AvomniError:
    return AvomniError(
        f"llguidance does not take the target's pattern: {why.strip().splitlines()[0]}",
        where=WHERE,
        fix="set evaluation.constrained: false",
    )


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise AvomniError(
            f"constrained answers need llguidance, which does not load: {error}",
            where=WHERE,
            fix="pip install 'llguidance>=1.9,<2' (it brings no other package), or set "
            "evaluation.constrained: false",
        ) from error
    return llguidance
