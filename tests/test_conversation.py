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
def talk():
    return training_set.conversation()


def test_a_sample_is_worded_as_the_chat_template_words_it(talk):
    turns = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": ANSWER},
    ]
    template = talk.tokenizer.apply_chat_template(turns, tokenize=False)
    before, after = template.split("<|vision_start|><|video_pad|><|vision_end|>")
    question = prompt_text(cameras.grid("4-cam"), target("summary_v1"))
    text = talk.tokenizer.decode(talk.sample(ANSWER).input_ids)
    assert text.startswith(before + "<|vision_start|><0.1 seconds>")
    # The template's line break after the last turn comes after all that is learned: it is left out.
    assert text.endswith("<|vision_end|><|vision_end|>" + after.replace("Q", question).rstrip("\n"))


def test_the_prompt_names_the_cameras_row_by_row():
    words = prompt_text(cameras.grid("7-cam"), target("summary_v1"))
    assert "7 cameras of one car in a 3x3 grid" in words
    assert "cross left, front wide, cross right; rear left, front tele, rear right" in words
    assert "; empty, rear tele, empty." in words


def test_the_runs_own_question_stands_in_place_of_the_targets():
    asked = target_of(Params.from_values({"prompt": {"question": "How fast is it?"}}))
    words = prompt_text(cameras.grid("4-cam"), asked)
    plain = prompt_text(cameras.grid("4-cam"), target("summary_v1"))
    assert words == plain.replace(target("summary_v1").question, "How fast is it?")
    assert target_of(Params()) is target("summary_v1")


def test_a_question_with_a_special_token_of_the_base_model_is_refused():
    words = training_set.make_words()
    own = Target(**vars(target("summary_v1")) | {"question": f"Now {words.eos_token}?"})
    with pytest.raises(AvomniError, match="the question holds") as caught:
        training_set.conversation(own=own)
    assert "prompt.question" in str(caught.value)


def test_only_the_answer_and_its_end_bear_the_loss(talk):
    sample = talk.sample(ANSWER)
    borne = sample.labels[sample.labels != IGNORED]
    assert talk.tokenizer.decode(borne) == ANSWER + "<|im_end|>"
    assert (sample.labels[-len(borne) :] == borne).all(), "the answer ends the sample"
    np.testing.assert_array_equal(sample.input_ids[-len(borne) :], borne)
    assert (talk.prompt().labels == IGNORED).all()


def test_the_sample_goes_on_where_the_prompt_ends(talk):
    # What the model is given to answer is, token by token, what it was trained to go on from.
    prompt, sample = talk.prompt(), talk.sample(ANSWER)
    np.testing.assert_array_equal(sample.input_ids[: len(prompt)], prompt.input_ids)
    whole = talk.tokenizer.encode(talk.text + ANSWER + "<|im_end|>", add_special_tokens=False)
    assert sample.input_ids.tolist() == whole


def test_an_answer_that_was_generated_is_read_back(talk):
    generated = [*talk.tokenizer.encode(ANSWER), talk.end_id, talk.tokenizer.pad_token_id]
    assert talk.text_of(generated) == ANSWER
    assert talk.target.parse(talk.text_of(generated)).displacement_m == 42.15


def test_a_sample_that_is_too_long_is_refused_not_cut():
    exact = len(training_set.conversation().sample(ANSWER))
    assert len(training_set.conversation(max_seq_length=exact).sample(ANSWER)) == exact
    with pytest.raises(AvomniError) as caught:
        training_set.conversation(max_seq_length=exact - 1).sample(ANSWER)
    said = str(caught.value)
    assert f"{exact:,} tokens" in said and f"{exact - 1:,}" in said
    assert "processing.tile_width" in said and "model.max_seq_length" in said


def test_a_tokenizer_without_the_special_tokens_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], unk_token="a"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(AvomniError, match="has no token '<|video_pad|>'".replace("|", r"\|")):
        training_set.conversation(tokenizer=PreTrainedTokenizerFast(tokenizer_object=plain))
