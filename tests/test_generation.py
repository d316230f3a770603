"""Generation: greedy whatever the checkpoint's config says, or sampled from a seed."""

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
    """Windows of one colour each with noise, (num, T, H, W, 3) uint8."""
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
def chat(model):
    return conversation(model)


@pytest.fixture
def generation_config(model):
    """The checkpoint's generation config, which the test may change."""
    before = model.generation_config.to_dict()
    yield model.generation_config
    for name, value in before.items():
        setattr(model.generation_config, name, value)


def most_likely(model, chat, frames, history=""):
    """Greedy answer of one window without `generate`: no cache, one token at a time."""
    ids = torch.from_numpy(chat.prompt(history).input_ids)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["mm_token_type_ids"] = 2 * (ids == chat.vision_id)
    batch |= chat.inputs(torch.from_numpy(frames[None].copy()))
    answers = []
    for _ in range(MAX_NEW_TOKENS):
        with torch.no_grad():
            answers.append(int(model(**batch).logits[0, -1].argmax()))
        if answers[-1] == chat.end_id:
            break
        more = {"input_ids": answers[-1], "attention_mask": 1, "mm_token_type_ids": 0}
        for name, value in more.items():
            batch[name] = torch.cat([batch[name], torch.tensor([[value]])], dim=1)
    return chat.text_of(answers)


def test_answers_are_greedy_whatever_the_generation_config(model, chat, generation_config):
    generation_config.do_sample, generation_config.temperature, generation_config.top_k = (
        True,
        9.0,
        40,
    )
    generation_config.repetition_penalty = 3.0
    windows = images(3)
    answers = generate_texts(model, chat, windows, MAX_NEW_TOKENS)
    assert answers == [most_likely(model, chat, frames) for frames in windows]
    assert len(set(answers)) > 1, (
        "the answers must depend on the frames for this test to say anything"
    )


def test_batched_prompts_of_different_lengths_are_answered_as_alone(model, chat):
    windows = images(4)
    histories = ["", " Speed there: 5.23m/s.", " none", " Speed there: 5.23m/s. Rows from the top."]
    answers = generate_texts(model, chat, windows, MAX_NEW_TOKENS, histories=histories)
    assert answers == [
        most_likely(model, chat, *pair) for pair in zip(windows, histories, strict=True)
    ]
    assert generate_texts(model, chat, windows, MAX_NEW_TOKENS)[1:] != answers[1:], (
        "the history must matter"
    )
    with pytest.raises(ValueError, match="argument 2 is longer"):
        generate_texts(model, chat, windows, MAX_NEW_TOKENS, histories=histories[:3])


def test_answers_cut_at_max_new_tokens_are_kept(model, chat):
    windows = images(2)
    long, short = generate_texts(model, chat, windows, 24), generate_texts(model, chat, windows, 16)
    assert all(longer.startswith(shorter) for longer, shorter in zip(long, short, strict=True))
    assert all(chat.target.parse(text) is None for text in short)


def test_generation_disables_dropout_and_restores_training_mode(model, chat):
    windows = images(2)
    expected = generate_texts(model, chat, windows, MAX_NEW_TOKENS)
    model.train()
    try:
        assert generate_texts(model, chat, windows, MAX_NEW_TOKENS) == expected
        assert model.training
    finally:
        model.eval()


def test_sampled_answers_depend_only_on_their_seed(model, chat):
    windows = images(3)
    torch.manual_seed(1)
    first = generate_texts(model, chat, windows, MAX_NEW_TOKENS, sampling=WARM)
    torch.rand(7)
    assert generate_texts(model, chat, windows, MAX_NEW_TOKENS, sampling=WARM) == first
    other = Sampling(WARM.temperature, WARM.top_p, WARM.seed + 1)
    assert generate_texts(model, chat, windows, MAX_NEW_TOKENS, sampling=other) != first


def test_sampling_restores_the_random_state(model, chat):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate_texts(model, chat, images(1), 4, sampling=WARM)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(ValueError):  # a temperature of 0 is refused by transformers
        torch.manual_seed(5)
        generate_texts(model, chat, images(1), 4, sampling=Sampling(temperature=0.0))
    assert torch.equal(torch.rand(3), expected)


def test_sampling_ignores_the_checkpoints_generation_config(model, chat, generation_config):
    windows = images(2)
    greedy = generate_texts(model, chat, windows, MAX_NEW_TOKENS)
    narrow = Sampling(temperature=1.0, top_p=1e-6, seed=3)
    assert generate_texts(model, chat, windows, MAX_NEW_TOKENS, sampling=narrow) == greedy
    cold = Sampling(temperature=1e-6, top_p=1.0, seed=3)
    assert generate_texts(model, chat, windows, MAX_NEW_TOKENS, sampling=cold) == greedy
    drawn = generate_texts(model, chat, windows, MAX_NEW_TOKENS, sampling=WARM)
    assert drawn != greedy
    generation_config.top_k, generation_config.temperature, generation_config.repetition_penalty = (
        1,
        9.0,
        3.0,
    )
    assert generate_texts(model, chat, windows, MAX_NEW_TOKENS, sampling=WARM) == drawn


@pytest.mark.parametrize("sampling", [None, WARM], ids=["greedy", "drawn"])
def test_constrained_answers_match_the_pattern_unlike_free_ones(model, chat, sampling):
    windows, parse = images(4), chat.target.parse
    free = generate_texts(model, chat, windows, 64, sampling=sampling)
    assert [parse(text) for text in free] == [None] * 4
    answers = generate_texts(model, chat, windows, 64, sampling=sampling, constrained=True)
    assert all(parse(text) for text in answers)
    assert len(set(answers)) == 4, "what the pattern leaves open is the model's to say"
    # An answer that max_new_tokens cuts off is kept.
    cut = generate_texts(model, chat, windows, 9, sampling=sampling, constrained=True)
    assert all(text.startswith("<think>\nAvg Velocity: ") and parse(text) is None for text in cut)
    if sampling is None:
        assert all(answer.startswith(start) for answer, start in zip(answers, cut, strict=True))


def test_constrained_decoding_does_not_change_valid_answers():
    folder = make.folder()
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    chat = make.conversation(model, AutoTokenizer.from_pretrained(folder))
    # Strong noise would make its answers invalid.
    windows = 112 + images(3, size=chat.frame_shape[:3]) // 8
    free = generate_texts(model, chat, windows, 64)
    assert all(chat.target.parse(text) for text in free)
    assert generate_texts(model, chat, windows, 64, constrained=True) == free
