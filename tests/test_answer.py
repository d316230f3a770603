"""What a model says: greedy whatever its checkpoint prefers, in batches, and resumable."""

import json

import numpy as np
import pytest
import torch

from avomni_lib.dataset import rig
from avomni_lib.evaluation import answer
from avomni_lib.plan import Bar
from avomni_lib.training.backbones import backbone
from avomni_lib.training.conversation import Conversation, collate
from avomni_lib.training.targets import target
from tests import tiny_qwen3_vl
from tests.training_set import make_words

NUM_FRAMES, HEIGHT, WIDTH = 4, 32, 32
MAX_NEW_TOKENS = 16


class RandomWindows:
    """Windows of one colour each under noise; counts what is read of them."""

    def __init__(self, num, seed=0):
        rng = np.random.default_rng(seed)
        noise = rng.integers(0, 56, (num, NUM_FRAMES, HEIGHT, WIDTH, 3))
        colours = rng.integers(0, 200, (num, 1, 1, 1, 3))
        self.images = (noise + colours).astype(np.uint8)
        self.read = []

    def frames(self, i):
        self.read.append(i)
        return self.images[i]


@pytest.fixture(scope="module")
def tokens():
    return make_words()


@pytest.fixture(scope="module")
def model(tokens):
    return tiny_qwen3_vl.model(tokens)


@pytest.fixture(scope="module")
def talk(tokens, model):
    return Conversation(
        tokens,
        backbone("qwen3_vl", model.config),
        grid=rig.grid("4-cam"),
        target=target("summary_v1"),
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        sample_hz=10.0,
        max_seq_length=1024,
    )


def most_likely(model, talk, frames):
    """Greedy answer of one window without `generate`: no cache, one token at a time."""
    batch = collate([talk.prompt()], talk.tokenizer.pad_token_id)
    del batch["labels"]
    batch |= talk.backbone.inputs(torch.from_numpy(frames[None].copy()))
    said = []
    for _ in range(MAX_NEW_TOKENS):
        with torch.no_grad():
            said.append(int(model(**batch).logits[0, -1].argmax()))
        if said[-1] == talk.end_id:
            break
        more = {"input_ids": said[-1], "attention_mask": 1, "mm_token_type_ids": 0}
        for name, value in more.items():
            batch[name] = torch.cat([batch[name], torch.tensor([[value]])], dim=1)
    return talk.text_of(said)


def test_answers_are_the_most_likely_tokens_though_the_checkpoint_would_sample(model, talk):
    windows = RandomWindows(3)
    preferred = model.generation_config
    preferred.do_sample, preferred.temperature, preferred.top_k = True, 9.0, 40
    preferred.repetition_penalty = 3.0
    try:
        said = answer.say(model, talk, windows.images, MAX_NEW_TOKENS)
    finally:
        preferred.do_sample, preferred.temperature, preferred.top_k = False, 1.0, 50
        preferred.repetition_penalty = 1.0
    assert said == [most_likely(model, talk, images) for images in windows.images]
    assert len(set(said)) > 1, "the answers must depend on the frames for this test to say anything"


def test_a_batch_says_what_its_windows_say_alone_in_the_order_asked(model, talk):
    windows = RandomWindows(5)
    options = {"batch_size": 2, "max_new_tokens": MAX_NEW_TOKENS}
    alone = {i: answer.say(model, talk, windows.images[[i]], MAX_NEW_TOKENS)[0] for i in range(5)}
    order = [3, 0, 4, 1, 2]
    bar = Bar(total=5)
    assert answer.answers(model, talk, windows, order, bar=bar, **options) == [
        alone[i] for i in order
    ]
    assert bar.count == 5


def test_an_answer_without_an_end_is_kept_as_far_as_it_got(model, talk):
    frames = RandomWindows(2).images
    long = answer.say(model, talk, frames, 24)
    short = answer.say(model, talk, frames, 16)
    assert all(whole.startswith(part) for whole, part in zip(long, short, strict=True))
    assert all(talk.target.parse(text) is None for text in short)


def test_blind_answers_see_black_frames_of_the_windows_shape(model, talk):
    windows = RandomWindows(3)
    black = np.zeros((1, NUM_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    expected = answer.say(model, talk, black, MAX_NEW_TOKENS)
    assert answer.blind_answers(model, talk, windows, [2, 0, 1], MAX_NEW_TOKENS) == expected * 3
    assert answer.blind_answers(model, talk, windows, [], MAX_NEW_TOKENS) == []


def test_a_model_in_training_answers_without_dropout_and_goes_on_training(model, talk):
    frames = RandomWindows(2).images
    expected = answer.say(model, talk, frames, MAX_NEW_TOKENS)
    model.train()
    try:
        assert answer.say(model, talk, frames, MAX_NEW_TOKENS) == expected
        assert model.training
    finally:
        model.eval()


class Stopped(Bar):
    """A bar that ends the process's work in the middle, as Ctrl-C does."""

    def update(self, amount=1, note=""):
        super().update(amount, note)
        if self.count >= 4:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_after_the_last_whole_batch(model, talk, tmp_path):
    options = {"batch_size": 2, "max_new_tokens": 16}
    whole = answer.answers(model, talk, RandomWindows(7), range(7), **options)
    path, key = tmp_path / "06_evaluate" / "kept.jsonl", answer.key_of(adapter="a")
    with pytest.raises(KeyboardInterrupt):
        kept = answer.Kept(path, key)
        answer.answers(
            model, talk, RandomWindows(7), range(7), kept=kept, bar=Stopped(7), **options
        )
    # A kill in the middle of a write leaves the beginning of a line.
    with open(path, "ab") as file:
        file.write(b'\n{"key": "')
    windows = RandomWindows(7)
    kept, bar = answer.Kept(path, key), Bar(7)
    again = answer.answers(model, talk, windows, range(7), kept=kept, bar=bar, **options)
    assert again == whole and bar.count == 7
    assert windows.read == [4, 5, 6], "what was answered before is not asked again"
    # What was written after the cut line is read back too.
    windows = RandomWindows(7)
    kept = answer.Kept(path, key)
    assert answer.answers(model, talk, windows, range(7), kept=kept, **options) == whole
    assert windows.read == []
    kept.remove()
    assert not path.exists()


def test_answers_of_another_adapter_or_model_are_not_taken(tmp_path):
    path = tmp_path / "kept.jsonl"
    answer.Kept(path, answer.key_of(adapter="a", batch_size=2)).add("adapted", 0, ["x", "y"])
    same = answer.Kept(path, answer.key_of(batch_size=2, adapter="a"))
    assert same.batches == {("adapted", 0): ["x", "y"]}
    assert answer.Kept(path, answer.key_of(adapter="b", batch_size=2)).batches == {}
    assert not path.exists(), "answers that nothing can use are gone"


def test_kept_answers_are_text_of_any_kind(tmp_path):
    path, said = tmp_path / "kept.jsonl", ["a\nb\u2028c", "\x85", '"{', "é漢"]
    answer.Kept(path, "k").add("base", 3, said)
    answer.Kept(path, "k").add("base", 4, ["z"])
    assert answer.Kept(path, "k").batches == {("base", 3): said, ("base", 4): ["z"]}
    assert json.loads(path.read_text().splitlines()[0])["batch"] == 3
