import numpy as np
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.prompt.conversation import IGNORED, prompt_text
from avomni_lib.training.targets import Target, target, target_of
from tests import training_set

ANSWER = target("summary_v1").render(training_set.Truth(1.5, 42.149, 42.0, 5.23))


@pytest.fixture(scope="module")
def conversation():
    return training_set.conversation()


def test_sample_text_equals_the_chat_template(conversation):
    turns = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": ANSWER},
    ]
    template = conversation.tokenizer.apply_chat_template(turns, tokenize=False)
    before, after = template.split("<|vision_start|><|video_pad|><|vision_end|>")
    question = prompt_text(cameras.grid("4-cam"), target("summary_v1"))
    text = conversation.tokenizer.decode(conversation.sample(ANSWER).input_ids)
    assert text.startswith(before + "<|vision_start|><0.1 seconds>")
    # The template's line break after the last turn has no label and is left out.
    assert text.endswith("<|vision_end|><|vision_end|>" + after.replace("Q", question).rstrip("\n"))


def test_prompt_names_the_cameras_row_by_row():
    words = prompt_text(cameras.grid("7-cam"), target("summary_v1"))
    assert "7 cameras of one car in a 3x3 grid" in words
    assert "cross left, front wide, cross right; rear left, front tele, rear right" in words
    assert "; empty, rear tele, empty." in words


def test_prompt_question_replaces_the_targets():
    custom = target_of(Params.from_values({"prompt": {"question": "How fast is it?"}}))
    words = prompt_text(cameras.grid("4-cam"), custom)
    plain = prompt_text(cameras.grid("4-cam"), target("summary_v1"))
    assert words == plain.replace(target("summary_v1").question, "How fast is it?")
    assert target_of(Params()) is target("summary_v1")


def test_question_with_a_special_token_is_refused():
    words = training_set.make_words()
    custom = Target(**vars(target("summary_v1")) | {"question": f"Now {words.eos_token}?"})
    with pytest.raises(AvomniError, match="the question holds") as caught:
        training_set.conversation(own=custom)
    assert "prompt.question" in str(caught.value)


def test_only_the_answer_and_its_end_token_have_labels(conversation):
    sample = conversation.sample(ANSWER)
    labels = sample.labels[sample.labels != IGNORED]
    assert conversation.tokenizer.decode(labels) == ANSWER + "<|im_end|>"
    assert (sample.labels[-len(labels) :] == labels).all(), "the answer ends the sample"
    np.testing.assert_array_equal(sample.input_ids[-len(labels) :], labels)
    assert (conversation.prompt().labels == IGNORED).all()


def test_sample_starts_with_the_prompt_tokens(conversation):
    # Generation must start from the same tokens as in training.
    prompt, sample = conversation.prompt(), conversation.sample(ANSWER)
    np.testing.assert_array_equal(sample.input_ids[: len(prompt)], prompt.input_ids)
    expected = conversation.tokenizer.encode(
        conversation.text + ANSWER + "<|im_end|>", add_special_tokens=False
    )
    assert sample.input_ids.tolist() == expected


def test_generated_answer_can_be_parsed(conversation):
    generated = [
        *conversation.tokenizer.encode(ANSWER),
        conversation.end_id,
        conversation.tokenizer.pad_token_id,
    ]
    assert conversation.text_of(generated) == ANSWER
    assert conversation.target.parse(conversation.text_of(generated)).displacement_m == 42.15


def test_too_long_sample_is_refused_not_truncated():
    exact = len(training_set.conversation().sample(ANSWER))
    assert len(training_set.conversation(max_seq_length=exact).sample(ANSWER)) == exact
    with pytest.raises(AvomniError) as caught:
        training_set.conversation(max_seq_length=exact - 1).sample(ANSWER)
    message = str(caught.value)
    assert f"{exact:,} tokens" in message and f"{exact - 1:,}" in message
    assert "processing.tile_width" in message and "model.max_seq_length" in message


def test_tokenizer_without_special_tokens_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], unk_token="a"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(AvomniError, match="has no token '<|video_pad|>'".replace("|", r"\|")):
        training_set.conversation(tokenizer=PreTrainedTokenizerFast(tokenizer_object=plain))
