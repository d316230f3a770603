"""Answers in batches that stay the same: alone, together, interrupted and gone on with."""

import json

import numpy as np
import pytest

from avomni_lib.evaluation import answer
from avomni_lib.plan import Bar
from avomni_lib.training.model import generate
from avomni_lib.training.model.generate import Sampling
from avomni_lib.training.prompt.views import Black
from tests import tiny_qwen3_vl
from tests.answering import answers
from tests.test_generation import MAX_NEW_TOKENS, conversation, images
from tests.training_set import make_words

WARM = Sampling(temperature=1.0, top_p=0.95, seed=4)
OPTIONS = {"batch_size": 2, "max_new_tokens": MAX_NEW_TOKENS}


class RandomWindows:
    """Windows that differ; counts what is read of them."""

    def __init__(self, num):
        self.images = images(num)
        self.frame_shape = self.images.shape[1:]
        self.read = []

    def frames(self, i):
        self.read.append(i)
        return self.images[i]


def history_of(i):
    return (" none", " Speed there: 5.23m/s. Rows from the top.")[i % 2]


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3_vl.model(make_words())


@pytest.fixture(scope="module")
def talk(model):
    return conversation(model)


def test_a_batch_says_what_its_windows_say_alone_in_the_order_asked(model, talk):
    windows = RandomWindows(5)
    alone = [
        generate.generate_texts(
            model, talk, windows.images[[i]], MAX_NEW_TOKENS, histories=[history_of(i)]
        )
        for i in range(5)
    ]
    order = [3, 0, 4, 1, 2, 3]
    bar = Bar(total=6)
    predicted = answers(model, talk, windows, order, bar=bar, histories=history_of, **OPTIONS)
    assert predicted == [alone[i][0] for i in order]
    assert bar.count == 6
    silent = answers(model, talk, windows, order, **OPTIONS)
    assert all(a != b for a, b in zip(silent, predicted, strict=True)), "the history must matter"


def test_windows_that_are_alike_are_asked_once_for_each_history(model, talk, monkeypatch):
    windows, asked = Black(RandomWindows(6)), []
    black = np.zeros((1, *windows.frame_shape), np.uint8)
    blind = generate.generate_texts(model, talk, black, MAX_NEW_TOKENS)
    each = [
        generate.generate_texts(model, talk, black, MAX_NEW_TOKENS, histories=[history_of(i)])[0]
        for i in range(2)
    ]
    assert len({*blind, *each}) == 3
    generate_texts = generate.generate_texts

    def counted(model, talk, frames, *rest, **options):
        asked.append(len(frames))
        return generate_texts(model, talk, frames, *rest, **options)

    monkeypatch.setattr(generate, "generate_texts", counted)
    bar = Bar(total=5)
    order = [5, 4, 0, 1, 3]
    assert answers(model, talk, windows, order, bar=bar, **OPTIONS) == blind * 5
    assert asked == [1] and bar.count == 5
    bar = Bar(total=5)
    predicted = answers(model, talk, windows, order, histories=history_of, bar=bar, **OPTIONS)
    assert predicted == [each[i % 2] for i in order]
    assert asked == [1, 2] and bar.count == 5
    assert answers(model, talk, windows, [], **OPTIONS) == []
    # Each drawn answer is its own draw, also from what is alike.
    drawn = answers(model, talk, windows, order, sampling=WARM, **OPTIONS)
    assert asked == [1, 2, 2, 2, 1] and len(set(drawn)) > 1


def test_drawn_answers_differ_by_sample_name_and_batch_and_are_the_same_again(model, talk):
    same = RandomWindows(1)
    same.images = np.concatenate([same.images] * 4)

    def draw(sample, name="adapted", seed=WARM.seed):
        sampling = Sampling(WARM.temperature, WARM.top_p, seed)
        options = OPTIONS | {"sampling": sampling, "sample": sample, "name": name}
        return answers(model, talk, same, range(4), **options)

    first = draw(1)
    assert draw(1) == first
    assert first[:2] != first[2:], "each batch has its own seed"
    assert first not in (draw(2), draw(1, name="base"), draw(1, seed=5))


def test_held_to_the_form_every_answer_is_read(model, talk):
    options = {"batch_size": 2, "max_new_tokens": 64}
    predicted = answers(model, talk, RandomWindows(3), range(3), constrained=True, **options)
    assert all(talk.target.parse(text) for text in predicted)
    free = answers(model, talk, RandomWindows(3), range(3), **options)
    assert not any(talk.target.parse(text) for text in free)


class Stopped(Bar):
    """A bar that ends the process's work in the middle, as Ctrl-C does."""

    def update(self, amount=1, note=""):
        super().update(amount, note)
        if self.count >= 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("sampling", [None, WARM], ids=["greedy", "drawn"])
def test_an_interrupted_run_goes_on_after_the_last_whole_batch(model, talk, tmp_path, sampling):
    options = OPTIONS | {"sampling": sampling, "sample": 3, "histories": history_of}
    whole = answers(model, talk, RandomWindows(7), range(7), **options)
    path, key = tmp_path / "06_evaluate" / "kept.jsonl", answer.key_of(adapter="a")
    with pytest.raises(KeyboardInterrupt):
        kept = answer.Kept(path, key)
        answers(model, talk, RandomWindows(7), range(7), kept=kept, bar=Stopped(7), **options)
    # A kill in the middle of a write leaves the beginning of a line.
    with open(path, "ab") as file:
        file.write(b'\n{"key": "')
    windows = RandomWindows(7)
    kept, bar = answer.Kept(path, key), Bar(7)
    again = answers(model, talk, windows, range(7), kept=kept, bar=bar, **options)
    assert again == whole and bar.count == 7
    assert windows.read == [4, 5, 6], "what was answered before is not asked again"
    # What was written after the cut line is read back too.
    windows = RandomWindows(7)
    kept = answer.Kept(path, key)
    assert answers(model, talk, windows, range(7), kept=kept, **options) == whole
    assert windows.read == []
    # Another sample and another row of the ladder have answers of their own.
    for other in ({"sample": 4}, {"name": "base"}):
        windows = RandomWindows(7)
        answers(model, talk, windows, range(7), kept=kept, **options | other)
        assert windows.read == list(range(7))
    kept.remove()
    assert not path.exists()


def test_answers_of_another_adapter_or_model_are_not_taken(tmp_path):
    path = tmp_path / "kept.jsonl"
    answer.Kept(path, answer.key_of(adapter="a", batch_size=2)).add("adapted", 0, 0, ["x", "y"])
    same = answer.Kept(path, answer.key_of(batch_size=2, adapter="a"))
    assert same.batches == {("adapted", 0, 0): ["x", "y"]}
    assert answer.Kept(path, answer.key_of(adapter="b", batch_size=2)).batches == {}
    assert not path.exists(), "answers that nothing can use are gone"


def test_kept_answers_are_text_of_any_kind(tmp_path):
    path, predicted = tmp_path / "kept.jsonl", ["a\nb\u2028c", "\x85", '"{', "é漢"]
    answer.Kept(path, "k").add("base", 1, 3, predicted)
    answer.Kept(path, "k").add("base", 1, 4, ["z"])
    assert answer.Kept(path, "k").batches == {("base", 1, 3): predicted, ("base", 1, 4): ["z"]}
    assert json.loads(path.read_text().splitlines()[0])["batch"] == 3
