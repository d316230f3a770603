"""Which tokens may come next: never what the pattern forbids, the end only where it is whole."""

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
    """A text chosen token by token among those allowed, and whether it is whole."""
    constraint, generated = Constraint(WORDS, END, [pattern]), []
    while len(generated) < most:
        allowed, text = allowed_after(constraint, generated), WORDS.decode(generated)
        assert allowed, f"nothing may follow {text!r}"
        assert not SPECIAL - {END} & set(allowed)
        if "\ufffd" not in text:  # else it ends in the middle of a letter
            assert (END in allowed) == bool(re.fullmatch(pattern, text, re.ASCII))
        generated.append(choose(allowed))
        if generated[-1] == END:
            return text, True
    return WORDS.decode(generated), False


@pytest.mark.parametrize("pattern", PATTERNS)
@given(choice=st.data())
@settings(max_examples=20)
def test_whatever_is_chosen_has_the_form_when_it_ends(pattern, choice):
    text, whole = walk(pattern, lambda allowed: choice.draw(st.sampled_from(allowed)))
    assert whole and re.fullmatch(pattern, text, re.ASCII)


@pytest.mark.parametrize("name", TARGETS)
@given(seed=st.integers(0, 9999))
@settings(max_examples=8)
def test_a_whole_answer_is_read_back_by_its_target_to_the_letter(name, seed):
    draws = torch.Generator().manual_seed(seed)

    def choose(allowed: list[int]) -> int:
        return allowed[int(torch.randint(len(allowed), (), generator=draws))]

    text, whole = walk(TARGETS[name].pattern, choose)
    assert whole and TARGETS[name].parse(text) is not None
    # It may also be written in the very tokens that it would be learned in.
    constraint, tokens = Constraint(WORDS, END, [TARGETS[name].pattern]), ids_of(text)
    for place, token in enumerate([*tokens, END]):
        assert token in allowed_after(constraint, tokens[:place])


def test_where_no_letter_is_left_open_the_trained_token_is_the_only_one():
    constraint, tokens = Constraint(WORDS, END, [TARGETS["summary_v1"].pattern]), ids_of(ANSWER)
    allowed = [allowed_after(constraint, tokens[:place]) for place in range(len(tokens))]
    left_open = [token for token, may in zip(tokens, allowed, strict=True) if may != [token]]
    assert WORDS.decode(left_open) == "5.2342.1542.1", "the numbers alone"
    assert allowed[0] == [THINK], "not its letters one by one"
    assert allowed_after(constraint, tokens) == [END]
    assert allowed_after(constraint, [*tokens, END]) == [END], "what follows is padding"


def test_each_row_goes_its_own_way():
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


def test_scores_stay_what_they_are_and_padding_of_the_vocabulary_is_never_chosen():
    width = len(WORDS) + 37
    scores = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    out = Constraint(WORDS, END, [r"\d+"])(torch.tensor([[PAD]]), scores.clone())
    kept = torch.isfinite(out[0])
    assert torch.equal(out[0, kept], scores[0, kept])
    assert {WORDS.decode([number]) for number in kept.nonzero()[:, 0]} == set("0123456789")
    # A vocabulary that is narrower than the tokenizer's.
    narrow = Constraint(WORDS, END, [r"\d+"])(torch.tensor([[PAD]]), scores[:, :100].clone())
    assert torch.equal(narrow, out[:, :100])


def test_digits_of_other_scripts_are_none():
    constraint = Constraint(WORDS, END, [r"\d+"])
    first = ids_of("٣")[0]
    assert first not in allowed_after(constraint, [])


@pytest.mark.parametrize("pattern", ["a(?=b)", "(a", "<think>a|b", "(?:<think>a|b)"])
def test_a_pattern_that_cannot_be_held_to_is_refused(pattern):
    with pytest.raises(AvomniError, match="does not take the target's pattern") as caught:
        Constraint(WORDS, END, [pattern])
    assert "evaluation.constrained: false" in str(caught.value)


def test_a_tokenizer_without_bytes_is_refused():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"漢": 0, "?": 1}, unk_token="?"))
    )
    with pytest.raises(AvomniError, match="does not take the base model's tokenizer"):
        Constraint(words, 1, ["a"])


def test_without_the_library_it_is_named_with_the_way_out(monkeypatch):
    constrained._matcher.cache_clear()
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(AvomniError, match="need llguidance") as caught:
        Constraint(WORDS, END, ["a"])
    assert "pip install" in str(caught.value) and "constrained: false" in str(caught.value)


def test_nothing_heavy_is_loaded_before_it_is_used():
    code = (
        "import sys; from avomni_lib.training.model import constrained, generate; "
        "from avomni_lib.training.prompt import views; "
        "sys.exit(len({'torch', 'transformers', 'llguidance'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
