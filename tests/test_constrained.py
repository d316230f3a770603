"""Constrained decoding: only tokens that fit the pattern, and the end only after a full match."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from avomni_lib.errors import AvomniError
from avomni_lib.training.model import constrained
from avomni_lib.training.model.constrained import Constraint
from avomni_lib.training.targets import TARGETS
from tests.training_set import Truth, make_words

WORDS = make_words()
END, PAD, THINK = WORDS.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<think>"])
SPECIAL = {number for number, token in WORDS.added_tokens_decoder.items() if token.special}
PATTERNS = [
    r"(?:stop|hold|turn left|turn right)(?:, \w{1,4})?\.",
    r"Because [^\n]{1,20}\.",
    r"/[^\d/]\s\d{2,3}[.\-\\]\d?",
    "é?漢.",
]
ANSWER = TARGETS["summary_v1"].render(Truth(1.5, 42.149, 42.0, 5.23))


def ids_of(text: str) -> list[int]:
    return WORDS.encode(text, add_special_tokens=False)


def scores_after(
    constraint: Constraint, generated: list[list[int]], width: int = 0
) -> torch.Tensor:
    scores = torch.zeros(len(generated), width or len(WORDS))
    return constraint(torch.tensor(generated), scores)


def allowed_after(constraint: Constraint, generated: list[int]) -> list[int]:
    return torch.isfinite(scores_after(constraint, [[PAD, *generated]]))[0].nonzero()[:, 0].tolist()


def walk(pattern: str, choose: Callable[[list[int]], int], most: int = 800) -> tuple[str, bool]:
    """Build a text from allowed tokens; return it and whether it is complete."""
    constraint, generated = Constraint(WORDS, END, [pattern]), []
    while len(generated) < most:
        allowed, text = allowed_after(constraint, generated), WORDS.decode(generated)
        assert allowed, f"nothing may follow {text!r}"
        assert not SPECIAL - {END} & set(allowed)
        if "\ufffd" not in text:  # otherwise it ends inside a multi-byte character
            assert (END in allowed) == bool(re.fullmatch(pattern, text, re.ASCII))
        generated.append(choose(allowed))
        if generated[-1] == END:
            return text, True
    return WORDS.decode(generated), False


@pytest.mark.parametrize("pattern", PATTERNS)
@given(choice=st.data())
@settings(max_examples=20)
def test_every_complete_text_matches_the_pattern(pattern, choice):
    text, complete = walk(pattern, lambda allowed: choice.draw(st.sampled_from(allowed)))
    assert complete and re.fullmatch(pattern, text, re.ASCII)


@pytest.mark.parametrize("name", TARGETS)
@given(seed=st.integers(0, 9999))
@settings(max_examples=8)
def test_complete_answers_can_be_parsed_by_the_target(name, seed):
    draws = torch.Generator().manual_seed(seed)

    def choose(allowed: list[int]) -> int:
        return allowed[int(torch.randint(len(allowed), (), generator=draws))]

    text, complete = walk(TARGETS[name].pattern, choose)
    assert complete and TARGETS[name].parse(text) is not None
    # The tokens of the training sample are allowed too.
    constraint, tokens = Constraint(WORDS, END, [TARGETS[name].pattern]), ids_of(text)
    for place, token in enumerate([*tokens, END]):
        assert token in allowed_after(constraint, tokens[:place])


def test_fixed_text_allows_only_the_tokens_of_training():
    constraint, tokens = Constraint(WORDS, END, [TARGETS["summary_v1"].pattern]), ids_of(ANSWER)
    allowed = [allowed_after(constraint, tokens[:place]) for place in range(len(tokens))]
    free_tokens = [
        token
        for token, tokens_allowed in zip(tokens, allowed, strict=True)
        if tokens_allowed != [token]
    ]
    assert WORDS.decode(free_tokens) == "5.2342.1542.1", "the numbers alone"
    assert allowed[0] == [THINK], "not its letters one by one"
    assert allowed_after(constraint, tokens) == [END]
    assert allowed_after(constraint, [*tokens, END]) == [END], "what follows is padding"


def test_rows_of_a_batch_follow_their_own_patterns():
    rows = [r"a+", r"(?:stop|hold)\.", r"\d\d"]
    constraint = Constraint(WORDS, END, rows)
    generated = [ids_of(text) for text in ("aaa", "stop.", "42")]
    ends = [len(tokens) for tokens in generated]
    longest = max(ends) + 2
    padded = [[*tokens, END, *[PAD] * longest][:longest] for tokens in generated]
    for length in range(longest):
        so_far = [[PAD, *row[:length]] for row in padded]
        may = torch.isfinite(scores_after(constraint, so_far))
        for row, (tokens, end) in enumerate(zip(padded, ends, strict=True)):
            if length <= end:
                assert may[row, tokens[length]], (row, length)
            else:
                assert may[row].nonzero()[:, 0].tolist() == [END]


def test_allowed_scores_are_unchanged_and_vocabulary_padding_is_masked():
    width = len(WORDS) + 37
    scores = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    out = Constraint(WORDS, END, [r"\d+"])(torch.tensor([[PAD]]), scores.clone())
    allowed = torch.isfinite(out[0])
    assert torch.equal(out[0, allowed], scores[0, allowed])
    assert {WORDS.decode([number]) for number in allowed.nonzero()[:, 0]} == set("0123456789")
    # Scores narrower than the tokenizer's vocabulary.
    narrow = Constraint(WORDS, END, [r"\d+"])(torch.tensor([[PAD]]), scores[:, :100].clone())
    assert torch.equal(narrow, out[:, :100])


def test_digits_of_other_scripts_are_not_allowed():
    constraint = Constraint(WORDS, END, [r"\d+"])
    first = ids_of("٣")[0]
    assert first not in allowed_after(constraint, [])


@pytest.mark.parametrize("pattern", ["a(?=b)", "(a", "<think>a|b", "(?:<think>a|b)"])
def test_unsupported_pattern_is_refused(pattern):
    with pytest.raises(AvomniError, match="does not take the target's pattern") as caught:
        Constraint(WORDS, END, [pattern])
    assert "evaluation.constrained: false" in str(caught.value)


def test_tokenizer_without_byte_tokens_is_refused():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"漢": 0, "?": 1}, unk_token="?"))
    )
    with pytest.raises(AvomniError, match="does not take the base model's tokenizer"):
        Constraint(words, 1, ["a"])


def test_missing_llguidance_is_reported_with_a_remedy(monkeypatch):
    constrained._matcher.cache_clear()
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(AvomniError, match="need llguidance") as caught:
        Constraint(WORDS, END, ["a"])
    assert "pip install" in str(caught.value) and "constrained: false" in str(caught.value)


def test_import_loads_no_heavy_library():
    code = (
        "import sys; from avomni_lib.training.model import constrained, generate; "
        "from avomni_lib.training.prompt import views; "
        "sys.exit(len({'torch', 'transformers', 'llguidance'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
