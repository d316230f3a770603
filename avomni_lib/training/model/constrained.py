"""Answers held to a target's form, token by token: what the pattern forbids cannot be said.

llguidance walks the pattern beside the model and says before each token which of the vocabulary may
come next. Where the pattern leaves no choice of letters it leaves none of tokens either: it asks
for those that the tokenizer makes of the text, which are those that the model was trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avomni_lib.errors import AvomniError

if TYPE_CHECKING:
    import torch

WHERE = "evaluation.constrained"


class Vocabulary:
    """A tokenizer as llguidance takes it: the bytes of each token.

    llguidance reads tokenizers too, but takes every added token in angle brackets for a special
    one, `<think>` among them; here only what the tokenizer itself calls special is.

    Args:
        tokenizer: A byte-level BPE, as those of Qwen are.
        end_id: The token that ends an answer.

    Raises:
        AvomniError: it is no byte-level one.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Any, end_id: int):
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self.tokenizer, self.eos_token_id = tokenizer, end_id
        added = tokenizer.added_tokens_decoder
        self.special_token_ids = sorted({end_id} | {i for i in added if added[i].special})
        byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        try:
            self.tokens = [
                token.encode() if number in added else bytes(map(byte_of.__getitem__, token))
                for number, token in enumerate(tokens)
            ]
        except (KeyError, AttributeError) as error:
            raise AvomniError(
                f"the base model's tokenizer is not a byte-level BPE: it has no bytes for {error}",
                where=WHERE,
                fix="set evaluation.constrained: false",
            ) from error

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


class Constraint:
    """A logits processor for one call of `generate`; it holds row i to the i-th pattern.

    A row's end token is allowed where its text matches its pattern in full, and nowhere else. An
    answer that is cut off at max_new_tokens stays as far as it got.

    Args:
        tokenizer: The base model's.
        end_id: The token that ends an answer.
        patterns: One a row; see `targets.Target.pattern`. Classes such as \\d are ASCII's.

    Raises:
        AvomniError: llguidance is missing, or does not take the tokenizer or a pattern.
    """

    def __init__(self, tokenizer: Any, end_id: int, patterns: Sequence[str]):
        self.end_id = end_id
        self.rows = [_matcher(tokenizer, end_id, pattern).deep_copy() for pattern in patterns]
        self.started = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, V) of the next token after `input_ids` (B, L); -inf where it may not come.

        Raises:
            AvomniError: llguidance gave up on a pattern.
        """
        import torch

        if self.started:
            for row, said in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
                if not row.is_stopped():  # what follows the end is padding
                    row.consume_token(said)
        self.started = True
        # A model's vocabulary may be padded: it has places that no token stands for.
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
        """One bit a token, the lowest of each byte first."""
        mask = row.compute_bitmask()
        if row.is_error():
            raise _refused(row.get_error())
        return mask


@functools.lru_cache(maxsize=2)
def _tokens(tokenizer: Any, end_id: int) -> Any:
    """The tokenizer for llguidance: a second's work for the 151,669 tokens of Qwen's."""
    llguidance = _library()
    vocabulary = llguidance.TokenizerWrapper(Vocabulary(tokenizer, end_id))
    return llguidance.LLTokenizer(vocabulary)


@functools.lru_cache(maxsize=8)
def _matcher(tokenizer: Any, end_id: int, pattern: str) -> Any:
    """At the pattern's start; copies go on from there."""
    llguidance = _library()
    # Python's re.ASCII; left to itself llguidance takes \d for every script's digits.
    ascii_only = llguidance.regex_to_lark(pattern, "dws")
    grammar = llguidance.LLMatcher.grammar_from_lark(f"start: /{ascii_only}/")
    matcher = llguidance.LLMatcher(_tokens(tokenizer, end_id), grammar, log_level=0)
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
