"""Causes: templates in known scenes, and sentences written by people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.training.targets import Content, causes, target
from avomni_lib.training.targets.causes import FRONT_M, NOTHING
from avomni_lib.training.targets.coc import LONGEST, sentence, word_f1
from tests.known_paths import Arc, other, truth, truths

COC = target("coc_v1")
STEADY = Arc.steady(10.0).future()
BRAKING = Arc(lambda t: 10.0 * t - 0.5 * t**2).future()
FASTER = Arc(lambda t: 10.0 * t + 0.5 * t**2).future()
STANDING = Arc.steady(0.0).future()
LEFT = Arc.steady(6.0, curvature=0.05)


def ahead(gap_m: float, label: str = "automobile", **changed):
    """A road user whose near end is `gap_m` ahead of the front bumper."""
    return other(label, x_m=gap_m + FRONT_M + 2.0, **changed)


@pytest.mark.parametrize(
    ("after", "others", "cause"),
    [
        (STEADY, [], NOTHING),
        (
            BRAKING,
            [ahead(12, vx_mps=6.9)],
            "The car brakes gently because the automobile 12 m ahead is 3 m/s slower "
            "(4 s to contact).",
        ),
        (
            STEADY,
            [ahead(30, "heavy_truck")],
            "The car holds its speed while the heavy truck 30 m ahead stands (3 s to contact).",
        ),
        (STEADY, [ahead(30, vx_mps=7.0)], NOTHING),  # 10 s to contact, and 2 s are 20 m
        (
            STEADY,
            [ahead(15, vx_mps=9.8)],
            "The car holds its speed because the automobile 15 m ahead is about as fast.",
        ),
        (
            FASTER,
            [ahead(15, vx_mps=13.8)],
            "The car accelerates gently because the automobile 15 m ahead is 4 m/s faster.",
        ),
        (STANDING, [ahead(3)], "The car stands because the automobile 3 m ahead stands."),
        (STANDING, [ahead(3, y_m=2.5)], NOTHING),
        (STEADY, [ahead(3, y_m=-3.5, vx_mps=-12.0)], NOTHING),  # oncoming in the next lane
        (STEADY, [other(x_m=-12.0, vx_mps=14.0)], NOTHING),  # behind the ego
        (
            BRAKING,
            [ahead(40, vx_mps=2.0), other("person", FRONT_M + 18, 5.0, vy_mps=-2.0, length_m=0.6)],
            "The car brakes gently because the person 18 m ahead crosses from the left.",
        ),
        (
            STEADY,
            [other("animal", FRONT_M + 9, -1.0, vy_mps=1.0, length_m=1.0)],
            "The car holds its speed while the animal 8 m ahead crosses from the right.",
        ),
        # Crosses too far away; in the lane, but hardly crossing.
        (STEADY, [other("person", 60.0, 6.0, vy_mps=-2.0)], NOTHING),
        (
            BRAKING,
            [ahead(30, "rider", vx_mps=5.0, vy_mps=0.4)],
            "The car brakes gently because the rider 30 m ahead is 5 m/s slower (6 s to contact).",
        ),
        # A person who walks away, who comes too late, who stands; a rider along the road.
        (STEADY, [other("person", 20.0, 4.0, vy_mps=2.0)], NOTHING),
        (STEADY, [other("person", 20.0, 9.0, vy_mps=-1.0)], NOTHING),
        (STEADY, [other("person", 20.0, 4.0)], NOTHING),
        (STEADY, [other("rider", 20.0, 4.0, vx_mps=5.0)], NOTHING),
        # Crossing traffic means people and animals, not automobiles outside the lane.
        (STEADY, [other("automobile", 25.0, 9.0, vy_mps=-6.0)], NOTHING),
    ],
)
def test_template_names_the_relevant_road_user(after, others, cause):
    # The nearest first, as `Surroundings.others` has them, and the other way round.
    for order in (others, others[::-1]):
        answer = COC.of(truth(after, *order))
        assert (answer.cause, answer.cause_from) == (cause, "template")


def test_lane_follows_the_ego_path():
    # 20 m along a left bend of 20 m radius; straight ahead is outside the lane.
    (x, y), yaw = LEFT.local(np.array([20 / 6]))[0][0], 20 / 20
    on_path = other(x_m=x, y_m=y, yaw_rad=yaw, vx_mps=2 * np.cos(yaw), vy_mps=2 * np.sin(yaw))
    position = causes.met(on_path, causes.path_of(truth(LEFT.future())))
    assert position.left_m == pytest.approx(0, abs=0.01)
    assert position.along_mps == pytest.approx(2.0, abs=0.01)
    assert position.left_mps == pytest.approx(0, abs=0.04)
    assert position.gap_m == pytest.approx(20 - 2 - FRONT_M, abs=0.05)
    assert COC.of(truth(LEFT.future(), on_path)).cause == (
        "The car holds its speed and turns left while the automobile 14 m ahead is 4 m/s slower "
        "(4 s to contact)."
    )
    assert COC.of(truth(LEFT.future(), other(x_m=20.0))).cause == NOTHING


def test_lane_continues_straight_after_the_future():
    # The car stops after 8 m, heading 0.4 rad to the left.
    stops = Arc(lambda t: np.minimum(4 * t, 8.0), curvature=0.05)
    path = causes.path_of(truth(stops.future()))
    (x, y), yaw = stops.local(np.array([9.0]))[0][0], 0.4
    beyond = other(x_m=x + 7 * np.cos(yaw), y_m=y + 7 * np.sin(yaw), yaw_rad=yaw)
    position = causes.met(beyond, path)
    assert position.left_m == pytest.approx(0, abs=0.02)
    assert position.gap_m == pytest.approx(15 - 2 - FRONT_M, abs=0.05)


def test_gap_to_a_box_depends_on_its_heading():
    path = causes.path_of(truth(STEADY))
    assert causes.met(other(yaw_rad=np.pi / 2), path).gap_m == pytest.approx(20 - 1 - FRONT_M)
    assert causes.met(other(yaw_rad=np.pi), path).gap_m == pytest.approx(20 - 2 - FRONT_M)


def test_lane_without_a_future_is_straight_ahead():
    assert COC.of(truth(None, ahead(10, vx_mps=5.0))).cause == (
        "The car drives at 10 m/s while the automobile 10 m ahead is 5 m/s slower (2 s to contact)."
    )
    assert COC.of(truth(None, ahead(10, y_m=1.9))).cause == NOTHING


def test_reversing_car_has_nothing_ahead():
    assert COC.of(truth(Arc.steady(-2.0).future(), ahead(1))).cause == NOTHING


def test_human_event_text_takes_precedence_over_templates():
    answer = COC.of(truth(BRAKING, ahead(3), event="  Yield to the\n worker with a flag. "))
    assert answer == Content(cause="Yield to the worker with a flag.", cause_from="event")


@pytest.mark.parametrize("event", [None, "", " \n", "…", "<|>"])
def test_event_without_words_falls_back_to_the_templates(event):
    assert COC.of(truth(STEADY, event=event)).cause_from == "template"


def test_missing_obstacles_are_reported_with_a_remedy():
    with pytest.raises(AvomniError, match="processing.obstacles: true and run 03_etl again"):
        COC.render(replace(truth(STEADY), scene=None))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Slow down", "Slow down."),
        ("Slow\tdown  now.\r\n", "Slow down now."),
        ("Slow down. A rider crosses!", "Slow down; A rider crosses."),
        ("Slow down…", "Slow down."),
        ("It is 3.5 m away, i.e. near", "It is 3,5 m away, ie; near."),
        ("The driver’s “café” — wait", 'The driver\'s "cafe" - wait.'),
        ("</think><|im_end|>Stop", "/think im_end Stop."),
        ("行人 a person 过马路", "a person."),
        ("one " * 80, "one " * 59 + "one."),
        ("x" * 500, "x" * (LONGEST - 1) + "."),
        ("?!", ""),
    ],
)
def test_text_is_normalised_to_one_sentence(text, expected):
    assert sentence(text) == expected


@given(st.text() | st.text("ab1 .!?;:,-<|>é\n", max_size=400))
def test_normalised_sentence_is_valid_and_unchanged_by_normalising(text):
    made = sentence(text)
    assert sentence(made) == made
    if made:
        assert len(made) <= LONGEST and made.count(".") == 1
        assert COC.parse(made) == COC.read(made) == Content(cause=made)
        assert COC.write(Content(cause=made)) == made
    else:
        assert not any(letter in text for letter in "ab1")


@given(truths(events=False))
def test_every_template_is_a_valid_sentence(scene):
    cause = causes.cause(scene)
    assert COC.render(scene) == cause
    assert "\n" not in cause


@pytest.mark.parametrize(
    "text",
    [
        "The car stops",
        "The car stops. It waits.",
        "The car\nstops.",
        "The car stops <now>.",
        "The car stops at 3.5 m.",
        "Ｔhe car stops.",
        "x" * LONGEST + ".",
        ".",
    ],
)
def test_only_one_plain_sentence_is_parsed(text):
    assert COC.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Cause: The car stops. A rider crosses.",
        "<think>\nThe car stops.\nA rider  crosses!\n</think><|im_end|>",
        "Here it is.\nCAUSE : the car stops. A rider crosses. And th",
    ],
)
def test_lenient_reader_accepts_other_lines_and_titles(text):
    assert COC.parse(text) is None
    assert word_f1(COC.read(text).cause, "The car stops; A rider crosses.") >= 0.9


@pytest.mark.parametrize("text", ["", "The car sto", "...", "<|im_end|>", "It is 3.5"])
def test_lenient_reader_refuses_text_without_a_sentence(text):
    assert COC.read(text) is None


def test_empty_cause_is_not_written():
    with pytest.raises(AvomniError, match="no sentence"):
        COC.write(Content(cause=None))


def test_word_f1_counts_repeated_words():
    assert word_f1("The car stops.", "the CAR, stops") == 1
    assert word_f1("a b", "c d") == 0
    # Two of three words and two of four: 2 · 2 / (3 + 4).
    assert word_f1("the car stops", "the car drives on") == pytest.approx(4 / 7)
    # The second "the" has no match.
    assert word_f1("the the", "the car") == pytest.approx(1 / 2)
    assert word_f1("", "a") == word_f1("a", "") == 0
    assert word_f1("", "...") == 1


@given(*[st.lists(st.sampled_from(["a", "b", "c", "3"]), max_size=8)] * 2)
def test_word_f1_is_the_harmonic_mean_of_precision_and_recall(predicted, expected):
    unmatched, hits = list(expected), 0
    for word in predicted:
        if word in unmatched:
            unmatched.remove(word)
            hits += 1
    score = word_f1(" ".join(predicted), " ".join(expected))
    assert score == word_f1(" ".join(expected), " ".join(predicted))
    if hits:
        precision, recall = hits / len(predicted), hits / len(expected)
        assert score == pytest.approx(2 / (1 / precision + 1 / recall))
    else:
        assert score == (predicted == expected)


def test_error_is_one_minus_word_f1():
    predicted, expected = Content(cause="the car stops"), Content(cause="the car drives on")
    assert COC.error(predicted, expected) == pytest.approx(3 / 7)
    assert COC.error(expected, expected) == 0
