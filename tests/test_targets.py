from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.training.targets import Summary, target

SUMMARY = target("summary_v1")
GIVEN_TEXT = (
    "<think>\nAvg Velocity: 5.23m/s. Total displacement: 42.15m.\n</think>\n"
    "Action: Displacement of 42.1 meters."
)
lengths = st.floats(min_value=0, max_value=1e6, allow_nan=False)


def truth(speed_mps, path_m):
    return SimpleNamespace(speed_mps=speed_mps, path_m=path_m)


def test_summary_is_the_asked_text_byte_for_byte():
    # 42.149 prints as 42.15 and 42.1: both come from the unrounded value, not one from the other.
    assert SUMMARY.render(truth(5.2299, 42.149)).encode() == GIVEN_TEXT.encode()


def test_summary_is_read_back():
    assert SUMMARY.parse(GIVEN_TEXT) == Summary(5.23, 42.15, 42.1)


@given(lengths, lengths)
def test_what_is_rendered_is_read_back(speed, path):
    read = SUMMARY.parse(SUMMARY.render(truth(speed, path)))
    assert read == Summary(float(f"{speed:.2f}"), float(f"{path:.2f}"), float(f"{path:.1f}"))


@given(lengths, lengths)
def test_reading_is_the_inverse_of_writing(speed, path):
    # A model's answer that parses is a text that could have been rendered, and no other.
    text = SUMMARY.render(truth(speed, path))
    read = SUMMARY.parse(text)
    again = SUMMARY.render(truth(read.speed_mps, read.displacement_m))
    assert again.splitlines()[:3] == text.splitlines()[:3]


@pytest.mark.parametrize(
    "around", ["{}", "{}<|im_end|>", "{}<|im_end|>\n", " \n{}\n<|endoftext|><|endoftext|>"]
)
def test_whitespace_and_end_tokens_around_an_answer_are_no_fault(around):
    assert SUMMARY.parse(around.format(GIVEN_TEXT)) == Summary(5.23, 42.15, 42.1)


@pytest.mark.parametrize(
    "change",
    [
        ("5.23m/s", "5.2m/s"),
        ("5.23m/s", "05.23m/s"),
        ("5.23m/s", "-5.23m/s"),
        ("5.23m/s", "nanm/s"),
        ("5.23m/s", "٥.23m/s"),
        ("42.15m", "42.15 m"),
        ("42.1 meters", "42.15 meters"),
        ("<think>\n", "<think>"),
        ("</think>\n", ""),
        (" meters.", " meters"),
        ("Action", "So\nAction"),
        ("meters.", "meters. And on."),
    ],
)
def test_anything_but_the_full_form_is_no_answer(change):
    assert SUMMARY.parse(GIVEN_TEXT.replace(*change)) is None


@pytest.mark.parametrize("cut", range(0, len(GIVEN_TEXT), 7))
def test_a_text_that_was_cut_off_is_no_answer(cut):
    assert SUMMARY.parse(GIVEN_TEXT[:cut]) is None


def test_a_standing_car_has_no_negative_zero():
    assert "Velocity: 0.00m/s" in SUMMARY.render(truth(-0.0, -0.0))


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), -0.1])
def test_what_was_never_driven_is_not_rendered(speed):
    with pytest.raises(AvomniError, match="not lengths that were driven"):
        SUMMARY.render(truth(speed, 1.0))


def test_an_unknown_target_names_those_that_are_known():
    with pytest.raises(AvomniError, match="summary_v1"):
        target("summary_v0")
