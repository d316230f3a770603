"""What a model says: greedy whatever its checkpoint prefers, or drawn from a seed."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from avomni_lib.dataset import cameras
from avomni_lib.training.backbones import Video, backbone
from avomni_lib.training.model.generate import Sampling, generate_texts
from avomni_lib.training.prompt.conversation import Conversation
from avomni_lib.training.targets import target
from avomni_world.tiny_base import make
from tests import tiny_qwen3_vl
from tests.training_set import make_words

NUM_FRAMES, HEIGHT, WIDTH = 4, 32, 32
MAX_NEW_TOKENS = 16
WARM = Sampling(temperature=1.0, top_p=0.95, seed=11)


def images(num, seed=0, size=(NUM_FRAMES, HEIGHT, WIDTH)):
    """Windows of one colour each under noise, (num, T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 56, (num, *size, 3))
    return (noise + rng.integers(0, 200, (num, 1, 1, 1, 3))).astype(np.uint8)


def conversation(model, num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH):
    return Conversation(
        make_words(),
        backbone("qwen3_vl", model.config),
        grid=cameras.grid("4-cam"),
        target=target("summary_v1"),
        videos=[Video(tuple(number / 10 for number in range(num_frames)), height, width)],
        max_seq_length=1024,
    )


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3_vl.model(make_words())


@pytest.fixture(scope="module")
def talk(model):
    return conversation(model)


@pytest.fixture
def preferred(model):
    """The checkpoint's own way to generate, to be changed by the test."""
    was = model.generation_config.to_dict()
    yield model.generation_config
    for name, value in was.items():
        setattr(model.generation_config, name, value)


def most_likely(model, talk, frames, history=""):
    """Greedy answer of one window without `generate`: no cache, one token at a time."""
    ids = torch.from_numpy(talk.prompt(history).input_ids)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["mm_token_type_ids"] = 2 * (ids == talk.vision_id)
    batch |= talk.inputs(torch.from_numpy(frames[None].copy()))
    answers = []
    for _ in range(MAX_NEW_TOKENS):
        with torch.no_grad():
            answers.append(int(model(**batch).logits[0, -1].argmax()))
        if answers[-1] == talk.end_id:
            break
        more = {"input_ids": answers[-1], "attention_mask": 1, "mm_token_type_ids": 0}
        for name, value in more.items():
            batch[name] = torch.cat([batch[name], torch.tensor([[value]])], dim=1)
    return talk.text_of(answers)


def test_answers_are_the_most_likely_tokens_though_the_checkpoint_would_sample(
    model, talk, preferred
):
    preferred.do_sample, preferred.temperature, preferred.top_k = True, 9.0, 40
    preferred.repetition_penalty = 3.0
    windows = images(3)
    answers = generate_texts(model, talk, windows, MAX_NEW_TOKENS)
    assert answers == [most_likely(model, talk, frames) for frames in windows]
    assert len(set(answers)) > 1, (
        "the answers must depend on the frames for this test to say anything"
    )


def test_prompts_of_different_lengths_are_answered_as_alone(model, talk):
    windows = images(4)
    histories = ["", " Speed there: 5.23m/s.", " none", " Speed there: 5.23m/s. Rows from the top."]
    answers = generate_texts(model, talk, windows, MAX_NEW_TOKENS, histories=histories)
    assert answers == [
        most_likely(model, talk, *pair) for pair in zip(windows, histories, strict=True)
    ]
    assert generate_texts(model, talk, windows, MAX_NEW_TOKENS)[1:] != answers[1:], (
        "the history must matter"
    )
    with pytest.raises(ValueError, match="argument 2 is longer"):
        generate_texts(model, talk, windows, MAX_NEW_TOKENS, histories=histories[:3])


def test_an_answer_without_an_end_is_kept_as_far_as_it_got(model, talk):
    windows = images(2)
    long, short = generate_texts(model, talk, windows, 24), generate_texts(model, talk, windows, 16)
    assert all(whole.startswith(part) for whole, part in zip(long, short, strict=True))
    assert all(talk.target.parse(text) is None for text in short)


def test_a_model_in_training_answers_without_dropout_and_goes_on_training(model, talk):
    windows = images(2)
    expected = generate_texts(model, talk, windows, MAX_NEW_TOKENS)
    model.train()
    try:
        assert generate_texts(model, talk, windows, MAX_NEW_TOKENS) == expected
        assert model.training
    finally:
        model.eval()


def test_drawn_answers_follow_from_their_seed_alone(model, talk):
    windows = images(3)
    torch.manual_seed(1)
    first = generate_texts(model, talk, windows, MAX_NEW_TOKENS, sampling=WARM)
    torch.rand(7)
    assert generate_texts(model, talk, windows, MAX_NEW_TOKENS, sampling=WARM) == first
    other = Sampling(WARM.temperature, WARM.top_p, WARM.seed + 1)
    assert generate_texts(model, talk, windows, MAX_NEW_TOKENS, sampling=other) != first


def test_drawing_leaves_the_generator_as_it_was(model, talk):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate_texts(model, talk, images(1), 4, sampling=WARM)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(ValueError):  # a temperature of 0 is refused by transformers
        torch.manual_seed(5)
        generate_texts(model, talk, images(1), 4, sampling=Sampling(temperature=0.0))
    assert torch.equal(torch.rand(3), expected)


def test_answers_are_drawn_by_temperature_and_top_p_and_nothing_of_the_checkpoints(
    model, talk, preferred
):
    windows = images(2)
    greedy = generate_texts(model, talk, windows, MAX_NEW_TOKENS)
    narrow = Sampling(temperature=1.0, top_p=1e-6, seed=3)
    assert generate_texts(model, talk, windows, MAX_NEW_TOKENS, sampling=narrow) == greedy
    cold = Sampling(temperature=1e-6, top_p=1.0, seed=3)
    assert generate_texts(model, talk, windows, MAX_NEW_TOKENS, sampling=cold) == greedy
    drawn = generate_texts(model, talk, windows, MAX_NEW_TOKENS, sampling=WARM)
    assert drawn != greedy
    preferred.top_k, preferred.temperature, preferred.repetition_penalty = 1, 9.0, 3.0
    assert generate_texts(model, talk, windows, MAX_NEW_TOKENS, sampling=WARM) == drawn


@pytest.mark.parametrize("sampling", [None, WARM], ids=["greedy", "drawn"])
def test_constrained_answers_have_the_targets_form_where_free_ones_have_not(model, talk, sampling):
    windows, parse = images(4), talk.target.parse
    free = generate_texts(model, talk, windows, 64, sampling=sampling)
    assert [parse(text) for text in free] == [None] * 4
    answers = generate_texts(model, talk, windows, 64, sampling=sampling, constrained=True)
    assert all(parse(text) for text in answers)
    assert len(set(answers)) == 4, "what the pattern leaves open is the model's to say"
    # What max_new_tokens cuts off is kept as far as it got.
    cut = generate_texts(model, talk, windows, 9, sampling=sampling, constrained=True)
    assert all(text.startswith("<think>\nAvg Velocity: ") and parse(text) is None for text in cut)
    if sampling is None:
        assert all(whole.startswith(part) for whole, part in zip(answers, cut, strict=True))


def test_a_model_that_knows_the_form_says_the_same_freely_and_held_to_it():
    folder = make.folder()
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    talk = make.conversation(model, AutoTokenizer.from_pretrained(folder))
    windows = 112 + images(3, size=talk.frame_shape[:3]) // 8  # it keeps no form under strong noise
    free = generate_texts(model, talk, windows, 64)
    assert all(talk.target.parse(text) for text in free)
    assert generate_texts(model, talk, windows, 64, constrained=True) == free
