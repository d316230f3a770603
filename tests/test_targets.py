import math
import re
from re import _constants, _parser
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.training.targets import TARGETS, Content, target
from avomni_lib.training.targets.form import FIGURES
from tests import known_paths
from tests.known_paths import truths

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
    assert SUMMARY.parse(GIVEN_TEXT) == Content(5.23, 42.15, 42.1)


@given(lengths, lengths)
def test_what_is_rendered_is_read_back(speed, path):
    read = SUMMARY.parse(SUMMARY.render(truth(speed, path)))
    assert read == Content(float(f"{speed:.2f}"), float(f"{path:.2f}"), float(f"{path:.1f}"))


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


def test_a_standing_car_has_no_negative_zero():
    assert "Velocity: 0.00m/s" in SUMMARY.render(truth(-0.0, -0.0))


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), -0.1, 1e7])
def test_what_was_never_driven_is_not_rendered(speed):
    with pytest.raises(AvomniError, match="are out of range"):
        SUMMARY.render(truth(speed, 1.0))


@pytest.mark.parametrize(
    "text",
    [
        "avg velocity: 5.23 m/s, total displacement: 42.15 m, so a displacement of 42.1 m",
        "The Velocity is about **5.23 m/s**.\nTotal displacement = 42.15 meters.\n"
        "Action: Displacement of roughly 42.1 metres",
        GIVEN_TEXT.replace("\n", " ") + " And on.",
    ],
)
def test_other_words_around_the_numbers_are_read_leniently(text):
    assert SUMMARY.parse(text) is None
    assert SUMMARY.read(text) == Content(5.23, 42.15, 42.1)


def test_an_action_line_may_be_missing_to_a_lenient_reader():
    assert SUMMARY.read(GIVEN_TEXT.rpartition("\n")[0]) == Content(5.23, 42.15, 42.15)


@pytest.mark.parametrize(
    "text",
    [
        "Velocity: -5.23 m/s, displacement: 42.15 m",
        "Velocity: 5.23 km/h, displacement: 42.15 m",
        "Velocity: 5.23 m/s, displacement: 42.1",  # cut off: the next digit is not known
        "Velocity: 5.23 m/s, displacement: 42.15 miles",
        "Velocity: 1234567890 m/s, displacement: 42.15 m",
        "Displacement: 42.15 m",
    ],
)
def test_what_is_no_number_of_ours_is_not_read(text):
    assert SUMMARY.read(text) is None


def test_an_unknown_target_names_those_that_are_known():
    with pytest.raises(AvomniError, match="summary_v1"):
        target("summary_v0")


# What holds for every target.

ALL = pytest.mark.parametrize("each", TARGETS.values(), ids=TARGETS)
# What constrained decoding knows of regular expressions.
SIMPLE = {"LITERAL", "IN", "NEGATE", "RANGE", "CATEGORY", "BRANCH", "SUBPATTERN", "MAX_REPEAT"}


def constructs(parsed):
    """Names of all that a parsed regular expression is made of."""
    if isinstance(parsed, _constants._NamedIntConstant):
        yield str(parsed)
    elif isinstance(parsed, list | tuple | _parser.SubPattern):
        for part in parsed:
            yield from constructs(part)


def test_there_are_five_targets():
    assert list(TARGETS) == ["summary_v1", "future_v1", "meta_v1", "coc_v1", "full_v1"]


@ALL
def test_a_target_says_what_it_needs_and_asks_in_one_line(each):
    assert each.figure in FIGURES
    assert each.question.endswith(".") and "\n" not in each.question
    # A history up to the last frame would tell what a summary says.
    about_the_window = each.name in ("summary_v1", "full_v1")
    assert each.history_ends == ("first" if about_the_window else "last")
    assert each.horizon_s == (0 if each.name == "summary_v1" else 6.4)
    assert each.scenes == (each.name in ("coc_v1", "full_v1"))


@pytest.mark.parametrize("name", ["future_v1", "meta_v1"])
def test_a_window_without_a_future_says_what_to_do(name):
    with pytest.raises(AvomniError, match="horizon_s"):
        target(name).render(known_paths.truth(None))


@ALL
@given(truths())
def test_what_is_written_has_the_full_form_and_is_read_back(each, truth):
    text = each.render(truth)
    said = each.parse(text)
    assert re.fullmatch(each.pattern, text)
    assert each.read(text) == said
    assert each.error(said, said) == 0
    # A summary's action line is rounded by itself, and does not follow from the other two.
    assert [line for line in each.write(said).splitlines() if not line.startswith("Action")] == [
        line for line in text.splitlines() if not line.startswith("Action")
    ]


@ALL
@given(truths(), st.data())
def test_an_answer_that_was_cut_off_has_not_the_full_form(each, truth, data):
    text = each.render(truth)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    assert each.parse(cut) is None
    assert not re.fullmatch(each.pattern, cut)


@ALL
@settings(max_examples=25)
@given(st.data())
def test_whatever_matches_the_pattern_is_an_answer(each, data):
    # Decoding that is held to the pattern can end in any of these.
    text = data.draw(st.from_regex(re.compile(each.pattern, re.ASCII), fullmatch=True))
    said = each.parse(text)
    assert said == each.read(text) and said is not None
    assert math.isfinite(each.error(said, said))


@ALL
@given(truths(), st.sampled_from(["{}<|im_end|>", "\n {}<|im_end|>\n", "{}\n<|endoftext|>" * 2]))
def test_end_tokens_and_whitespace_around_any_answer_are_no_fault(each, truth, around):
    text = each.render(truth)
    framed = around.replace("{}", text, 1).replace("{}", "")
    assert each.parse(framed) == each.read(framed) == each.parse(text) is not None


@ALL
@given(truths(), st.text(max_size=60), st.text(max_size=60))
def test_reading_leniently_takes_whatever_reading_strictly_does(each, truth, before, after):
    for text in (before, before + each.render(truth) + after):
        said = each.parse(text)
        assert said is None or each.read(text) == said


@ALL
@given(st.text(st.sampled_from("Waypoints(1.25,-3) [m]/s: Velocity displacement stop cause.!<|\n")))
def test_any_text_is_read_or_not_without_a_fault(each, text):
    said = each.read(text)
    assert said is None or math.isfinite(each.error(said, said))


@ALL
def test_patterns_are_made_of_simple_constructs(each):
    assert set(constructs(_parser.parse(each.pattern))) <= SIMPLE | {"CATEGORY_DIGIT", "MAXREPEAT"}
