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


def test_summary_equals_the_specified_text():
    # 42.149 prints as 42.15 and 42.1: both come from the unrounded value, not one from the other.
    assert SUMMARY.render(truth(5.2299, 42.149)).encode() == GIVEN_TEXT.encode()


def test_specified_summary_is_parsed():
    assert SUMMARY.parse(GIVEN_TEXT) == Content(5.23, 42.15, 42.1)


@given(lengths, lengths)
def test_rendered_summary_is_parsed_back(speed, path):
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
def test_changed_summary_is_not_parsed(change):
    assert SUMMARY.parse(GIVEN_TEXT.replace(*change)) is None


def test_standing_car_has_no_negative_zero():
    assert "Velocity: 0.00m/s" in SUMMARY.render(truth(-0.0, -0.0))


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), -0.1, 1e7])
def test_impossible_speed_is_not_rendered(speed):
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
def test_lenient_reader_accepts_other_words_around_the_numbers(text):
    assert SUMMARY.parse(text) is None
    assert SUMMARY.read(text) == Content(5.23, 42.15, 42.1)


def test_lenient_reader_accepts_a_missing_action_line():
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
def test_lenient_reader_refuses_other_units_and_cut_numbers(text):
    assert SUMMARY.read(text) is None


def test_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(AvomniError, match="summary_v1"):
        target("summary_v0")


# Tests of every target.

ALL = pytest.mark.parametrize("any_target", TARGETS.values(), ids=TARGETS)
# Constructs of regular expressions that constrained decoding supports.
SIMPLE = {"LITERAL", "IN", "NEGATE", "RANGE", "CATEGORY", "BRANCH", "SUBPATTERN", "MAX_REPEAT"}


def constructs(parsed):
    """Names of all constructs of a parsed regular expression."""
    if isinstance(parsed, _constants._NamedIntConstant):
        yield str(parsed)
    elif isinstance(parsed, list | tuple | _parser.SubPattern):
        for part in parsed:
            yield from constructs(part)


def test_there_are_five_targets():
    assert list(TARGETS) == ["summary_v1", "future_v1", "meta_v1", "coc_v1", "full_v1"]


@ALL
def test_target_has_a_one_line_question_and_its_attributes(any_target):
    assert any_target.figure in FIGURES
    assert any_target.question.endswith(".") and "\n" not in any_target.question
    # A history up to the last frame would contain the answer of a summary.
    about_the_window = any_target.name in ("summary_v1", "full_v1")
    assert any_target.history_ends == ("first" if about_the_window else "last")
    assert any_target.horizon_s == (0 if any_target.name == "summary_v1" else 6.4)
    assert any_target.scenes == (any_target.name in ("coc_v1", "full_v1"))


@pytest.mark.parametrize("name", ["future_v1", "meta_v1"])
def test_window_without_a_future_is_refused_with_a_remedy(name):
    with pytest.raises(AvomniError, match="horizon_s"):
        target(name).render(known_paths.truth(None))


@ALL
@given(truths())
def test_rendered_answer_matches_the_pattern_and_is_parsed_back(any_target, truth):
    text = any_target.render(truth)
    answer = any_target.parse(text)
    assert re.fullmatch(any_target.pattern, text)
    assert any_target.read(text) == answer
    assert any_target.error(answer, answer) == 0
    # A summary's action line is rounded separately and does not follow from the other two.
    assert [
        line for line in any_target.write(answer).splitlines() if not line.startswith("Action")
    ] == [line for line in text.splitlines() if not line.startswith("Action")]


@ALL
@given(truths(), st.data())
def test_truncated_answer_does_not_match_the_pattern(any_target, truth, data):
    text = any_target.render(truth)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    assert any_target.parse(cut) is None
    assert not re.fullmatch(any_target.pattern, cut)


@ALL
@settings(max_examples=25)
@given(st.data())
def test_every_match_of_the_pattern_is_parsed(any_target, data):
    # Constrained decoding can end in any of these.
    text = data.draw(st.from_regex(re.compile(any_target.pattern, re.ASCII), fullmatch=True))
    answer = any_target.parse(text)
    assert answer == any_target.read(text) and answer is not None
    assert math.isfinite(any_target.error(answer, answer))


@ALL
@given(truths(), st.sampled_from(["{}<|im_end|>", "\n {}<|im_end|>\n", "{}\n<|endoftext|>" * 2]))
def test_end_tokens_and_whitespace_around_an_answer_are_ignored(any_target, truth, around):
    text = any_target.render(truth)
    framed = around.replace("{}", text, 1).replace("{}", "")
    assert any_target.parse(framed) == any_target.read(framed) == any_target.parse(text) is not None


@ALL
@given(truths(), st.text(max_size=60), st.text(max_size=60))
def test_lenient_reader_accepts_all_strict_answers(any_target, truth, before, after):
    for text in (before, before + any_target.render(truth) + after):
        answer = any_target.parse(text)
        assert answer is None or any_target.read(text) == answer


@ALL
@given(st.text(st.sampled_from("Waypoints(1.25,-3) [m]/s: Velocity displacement stop cause.!<|\n")))
def test_lenient_reader_raises_on_no_text(any_target, text):
    answer = any_target.read(text)
    assert answer is None or math.isfinite(any_target.error(answer, answer))


@ALL
def test_patterns_use_only_supported_constructs(any_target):
    assert set(constructs(_parser.parse(any_target.pattern))) <= SIMPLE | {
        "CATEGORY_DIGIT",
        "MAXREPEAT",
    }
