"""Cause and effect: templates in scenes that are known, and sentences that people wrote."""

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
    """One whose near end is so far before our bumper."""
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
        (STEADY, [ahead(3, y_m=-3.5, vx_mps=-12.0)], NOTHING),  # it comes towards us beside us
        (STEADY, [other(x_m=-12.0, vx_mps=14.0)], NOTHING),  # behind us
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
        # Too far off yet; in our lane, but hardly across it.
        (STEADY, [other("person", 60.0, 6.0, vy_mps=-2.0)], NOTHING),
        (
            BRAKING,
            [ahead(30, "rider", vx_mps=5.0, vy_mps=0.4)],
            "The car brakes gently because the rider 30 m ahead is 5 m/s slower (6 s to contact).",
        ),
        # A person who walks away, who comes too late, who stands, who walks along with us.
        (STEADY, [other("person", 20.0, 4.0, vy_mps=2.0)], NOTHING),
        (STEADY, [other("person", 20.0, 9.0, vy_mps=-1.0)], NOTHING),
        (STEADY, [other("person", 20.0, 4.0)], NOTHING),
        (STEADY, [other("rider", 20.0, 4.0, vx_mps=5.0)], NOTHING),
        # An automobile that crosses is none of those who cross, unless it is in our way.
        (STEADY, [other("automobile", 25.0, 9.0, vy_mps=-6.0)], NOTHING),
    ],
)
def test_templates_say_what_is_there(after, others, cause):
    # The nearest first, as `Surroundings.others` has them, and the other way round.
    for order in (others, others[::-1]):
        said = COC.of(truth(after, *order))
        assert (said.cause, said.cause_from) == (cause, "template")


def test_the_lane_is_the_cars_own_path():
    # At 20 m along a bend to the left of 20 m radius; straight ahead of us is its outside.
    (x, y), yaw = LEFT.local(np.array([20 / 6]))[0][0], 20 / 20
    on_path = other(x_m=x, y_m=y, yaw_rad=yaw, vx_mps=2 * np.cos(yaw), vy_mps=2 * np.sin(yaw))
    seen = causes.met(on_path, causes.path_of(truth(LEFT.future())))
    assert seen.left_m == pytest.approx(0, abs=0.01)
    assert seen.along_mps == pytest.approx(2.0, abs=0.01)
    assert seen.left_mps == pytest.approx(0, abs=0.04)
    assert seen.gap_m == pytest.approx(20 - 2 - FRONT_M, abs=0.05)
    assert COC.of(truth(LEFT.future(), on_path)).cause == (
        "The car holds its speed and turns left while the automobile 14 m ahead is 4 m/s slower "
        "(4 s to contact)."
    )
    assert COC.of(truth(LEFT.future(), other(x_m=20.0))).cause == NOTHING


def test_where_the_future_ends_the_lane_goes_straight_on():
    # The car stops after 8 m, heading 0.4 rad to the left.
    stops = Arc(lambda t: np.minimum(4 * t, 8.0), curvature=0.05)
    path = causes.path_of(truth(stops.future()))
    (x, y), yaw = stops.local(np.array([9.0]))[0][0], 0.4
    beyond = other(x_m=x + 7 * np.cos(yaw), y_m=y + 7 * np.sin(yaw), yaw_rad=yaw)
    seen = causes.met(beyond, path)
    assert seen.left_m == pytest.approx(0, abs=0.02)
    assert seen.gap_m == pytest.approx(15 - 2 - FRONT_M, abs=0.05)


def test_a_box_across_the_road_reaches_half_its_width():
    path = causes.path_of(truth(STEADY))
    assert causes.met(other(yaw_rad=np.pi / 2), path).gap_m == pytest.approx(20 - 1 - FRONT_M)
    assert causes.met(other(yaw_rad=np.pi), path).gap_m == pytest.approx(20 - 2 - FRONT_M)


def test_without_a_known_future_the_lane_is_straight_ahead():
    assert COC.of(truth(None, ahead(10, vx_mps=5.0))).cause == (
        "The car drives at 10 m/s while the automobile 10 m ahead is 5 m/s slower (2 s to contact)."
    )
    assert COC.of(truth(None, ahead(10, y_m=1.9))).cause == NOTHING


def test_a_reversing_car_has_nothing_ahead():
    assert COC.of(truth(Arc.steady(-2.0).future(), ahead(1))).cause == NOTHING


def test_what_people_wrote_goes_before_templates():
    said = COC.of(truth(BRAKING, ahead(3), event="  Yield to the\n worker with a flag. "))
    assert said == Content(cause="Yield to the worker with a flag.", cause_from="event")


@pytest.mark.parametrize("event", [None, "", " \n", "…", "<|>"])
def test_an_event_without_a_word_leaves_it_to_the_templates(event):
    assert COC.of(truth(STEADY, event=event)).cause_from == "template"


def test_without_obstacles_it_says_what_to_do():
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
def test_a_text_becomes_a_sentence(text, expected):
    assert sentence(text) == expected


@given(st.text() | st.text("ab1 .!?;:,-<|>é\n", max_size=400))
def test_a_sentence_has_the_form_and_stays_as_it_is(text):
    made = sentence(text)
    assert sentence(made) == made
    if made:
        assert len(made) <= LONGEST and made.count(".") == 1
        assert COC.parse(made) == COC.read(made) == Content(cause=made)
        assert COC.write(Content(cause=made)) == made
    else:
        assert not any(letter in text for letter in "ab1")


@given(truths(events=False))
def test_every_template_fits_without_a_change(scene):
    told = causes.cause(scene)
    assert COC.render(scene) == told
    assert "\n" not in told


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
def test_anything_but_one_sentence_is_no_answer(text):
    assert COC.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Cause: The car stops. A rider crosses.",
        "<think>\nThe car stops.\nA rider  crosses!\n</think><|im_end|>",
        "Here it is.\nCAUSE : the car stops. A rider crosses. And th",
    ],
)
def test_other_lines_and_titles_are_read_leniently(text):
    assert COC.parse(text) is None
    assert word_f1(COC.read(text).cause, "The car stops; A rider crosses.") >= 0.9


@pytest.mark.parametrize("text", ["", "The car sto", "...", "<|im_end|>", "It is 3.5"])
def test_a_text_without_a_whole_sentence_is_not_read(text):
    assert COC.read(text) is None


def test_a_cause_without_a_word_is_not_written():
    with pytest.raises(AvomniError, match="no sentence"):
        COC.write(Content(cause=None))


def test_word_f1_counts_words_as_often_as_they_stand():
    assert word_f1("The car stops.", "the CAR, stops") == 1
    assert word_f1("a b", "c d") == 0
    # Two of three words and two of four: 2 · 2 / (3 + 4).
    assert word_f1("the car stops", "the car drives on") == pytest.approx(4 / 7)
    # The second "the" has no partner.
    assert word_f1("the the", "the car") == pytest.approx(1 / 2)
    assert word_f1("", "a") == word_f1("a", "") == 0
    assert word_f1("", "...") == 1


@given(*[st.lists(st.sampled_from(["a", "b", "c", "3"]), max_size=8)] * 2)
def test_word_f1_is_the_mean_of_precision_and_recall(said, true):
    left, hits = list(true), 0
    for word in said:
        if word in left:
            left.remove(word)
            hits += 1
    score = word_f1(" ".join(said), " ".join(true))
    assert score == word_f1(" ".join(true), " ".join(said))
    if hits:
        precision, recall = hits / len(said), hits / len(true)
        assert score == pytest.approx(2 / (1 / precision + 1 / recall))
    else:
        assert score == (said == true)


def test_the_error_is_one_less_word_f1():
    said, true = Content(cause="the car stops"), Content(cause="the car drives on")
    assert COC.error(said, true) == pytest.approx(3 / 7)
    assert COC.error(true, true) == 0
