"""Batched predictions: equal to single ones, and resumed after an interruption."""

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
from tests.test_generation import MAX_NEW_TOKENS, images
from tests.test_generation import conversation as make_conversation
from tests.training_set import make_words

WARM = Sampling(temperature=1.0, top_p=0.95, seed=4)
OPTIONS = {"batch_size": 2, "max_new_tokens": MAX_NEW_TOKENS}


class RandomWindows:
    """Random windows that record which indices were read."""

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
def conversation(model):
    return make_conversation(model)


def test_batched_predictions_equal_single_ones_in_the_order_asked(model, conversation):
    windows = RandomWindows(5)
    alone = [
        generate.generate_texts(
            model, conversation, windows.images[[i]], MAX_NEW_TOKENS, histories=[history_of(i)]
        )
        for i in range(5)
    ]
    order = [3, 0, 4, 1, 2, 3]
    bar = Bar(total=6)
    predicted = answers(
        model, conversation, windows, order, bar=bar, histories=history_of, **OPTIONS
    )
    assert predicted == [alone[i][0] for i in order]
    assert bar.count == 6
    without_history = answers(model, conversation, windows, order, **OPTIONS)
    assert all(a != b for a, b in zip(without_history, predicted, strict=True)), (
        "the history must matter"
    )


def test_identical_windows_are_predicted_once_per_history(model, conversation, monkeypatch):
    windows, asked = Black(RandomWindows(6)), []
    black = np.zeros((1, *windows.frame_shape), np.uint8)
    blind = generate.generate_texts(model, conversation, black, MAX_NEW_TOKENS)
    by_history = [
        generate.generate_texts(
            model, conversation, black, MAX_NEW_TOKENS, histories=[history_of(i)]
        )[0]
        for i in range(2)
    ]
    assert len({*blind, *by_history}) == 3
    generate_texts = generate.generate_texts

    def counted(model, conversation, frames, *rest, **options):
        asked.append(len(frames))
        return generate_texts(model, conversation, frames, *rest, **options)

    monkeypatch.setattr(generate, "generate_texts", counted)
    bar = Bar(total=5)
    order = [5, 4, 0, 1, 3]
    assert answers(model, conversation, windows, order, bar=bar, **OPTIONS) == blind * 5
    assert asked == [1] and bar.count == 5
    bar = Bar(total=5)
    predicted = answers(
        model, conversation, windows, order, histories=history_of, bar=bar, **OPTIONS
    )
    assert predicted == [by_history[i % 2] for i in order]
    assert asked == [1, 2] and bar.count == 5
    assert answers(model, conversation, windows, [], **OPTIONS) == []
    # Sampled predictions are drawn one by one, also for identical windows.
    drawn = answers(model, conversation, windows, order, sampling=WARM, **OPTIONS)
    assert asked == [1, 2, 2, 2, 1] and len(set(drawn)) > 1


def test_sampled_predictions_depend_on_seed_sample_name_and_batch_only(model, conversation):
    same = RandomWindows(1)
    same.images = np.concatenate([same.images] * 4)

    def draw(sample, name="adapted", seed=WARM.seed):
        sampling = Sampling(WARM.temperature, WARM.top_p, seed)
        options = OPTIONS | {"sampling": sampling, "sample": sample, "name": name}
        return answers(model, conversation, same, range(4), **options)

    first = draw(1)
    assert draw(1) == first
    assert first[:2] != first[2:], "each batch has its own seed"
    assert first not in (draw(2), draw(1, name="base"), draw(1, seed=5))


def test_constrained_decoding_makes_every_prediction_readable(model, conversation):
    options = {"batch_size": 2, "max_new_tokens": 64}
    predicted = answers(
        model, conversation, RandomWindows(3), range(3), constrained=True, **options
    )
    assert all(conversation.target.parse(text) for text in predicted)
    free = answers(model, conversation, RandomWindows(3), range(3), **options)
    assert not any(conversation.target.parse(text) for text in free)


class Stopped(Bar):
    """A progress bar that raises KeyboardInterrupt after four updates."""

    def update(self, amount=1, note=""):
        super().update(amount, note)
        if self.count >= 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("sampling", [None, WARM], ids=["greedy", "sampled"])
def test_interrupted_run_resumes_after_the_last_complete_batch(
    model, conversation, tmp_path, sampling
):
    options = OPTIONS | {"sampling": sampling, "sample": 3, "histories": history_of}
    whole = answers(model, conversation, RandomWindows(7), range(7), **options)
    path, key = tmp_path / "06_evaluate" / "kept.jsonl", answer.key_of(adapter="a")
    with pytest.raises(KeyboardInterrupt):
        kept = answer.Kept(path, key)
        answers(
            model, conversation, RandomWindows(7), range(7), kept=kept, bar=Stopped(7), **options
        )
    # A kill in the middle of a write leaves the beginning of a line.
    with open(path, "ab") as file:
        file.write(b'\n{"key": "')
    windows = RandomWindows(7)
    kept, bar = answer.Kept(path, key), Bar(7)
    again = answers(model, conversation, windows, range(7), kept=kept, bar=bar, **options)
    assert again == whole and bar.count == 7
    assert windows.read == [4, 5, 6], "what was answered before is not asked again"
    # Lines written after the incomplete line are read as well.
    windows = RandomWindows(7)
    kept = answer.Kept(path, key)
    assert answers(model, conversation, windows, range(7), kept=kept, **options) == whole
    assert windows.read == []
    # Another sample or another row of the ladder has separate predictions.
    for other in ({"sample": 4}, {"name": "base"}):
        windows = RandomWindows(7)
        answers(model, conversation, windows, range(7), kept=kept, **options | other)
        assert windows.read == list(range(7))
    kept.remove()
    assert not path.exists()


def test_predictions_of_another_adapter_or_model_are_discarded(tmp_path):
    path = tmp_path / "kept.jsonl"
    answer.Kept(path, answer.key_of(adapter="a", batch_size=2)).add("adapted", 0, 0, ["x", "y"])
    same = answer.Kept(path, answer.key_of(batch_size=2, adapter="a"))
    assert same.batches == {("adapted", 0, 0): ["x", "y"]}
    assert answer.Kept(path, answer.key_of(adapter="b", batch_size=2)).batches == {}
    assert not path.exists(), "answers that nothing can use are gone"


def test_kept_predictions_may_contain_any_text(tmp_path):
    path, predicted = tmp_path / "kept.jsonl", ["a\nb\u2028c", "\x85", '"{', "é漢"]
    answer.Kept(path, "k").add("base", 1, 3, predicted)
    answer.Kept(path, "k").add("base", 1, 4, ["z"])
    assert answer.Kept(path, "k").batches == {("base", 1, 3): predicted, ("base", 1, 4): ["z"]}
    assert json.loads(path.read_text().splitlines()[0])["batch"] == 3
