"""Waypoints of the next 6.4 s: their text, and the path at 10 Hz made from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.training.targets import Content, target
from avomni_lib.training.targets.future import at_10hz
from tests.known_paths import Arc, truth, truths

FUTURE = target("future_v1")
LEFT = Arc.steady(5.0, curvature=0.05)
TEXT = (
    "Waypoints: (2.00,0.10) (3.97,0.40) (5.91,0.89) (7.79,1.58) (9.59,2.45) (11.29,3.49) "
    "(12.88,4.70) (14.35,6.07) (15.67,7.57) (16.83,9.19) (17.82,10.93) (18.64,12.75) "
    "(19.27,14.65) (19.71,16.60) (19.95,18.59) (19.99,20.58)"
)
paths = st.lists(
    st.tuples(*[st.floats(-2000, 2000, allow_subnormal=False)] * 2), min_size=16, max_size=16
).map(tuple)


def test_waypoints_of_a_circle_equal_its_closed_form():
    assert FUTURE.render(truth(LEFT.future())) == TEXT


def test_waypoints_are_every_fourth_pose():
    after = LEFT.future()
    answer = FUTURE.of(truth(after))
    assert np.array_equal(answer.waypoints_m, after.xy_m[[3 + 4 * n for n in range(16)]])


@given(paths)
def test_written_waypoints_are_parsed_back_to_the_centimetre(path):
    text = FUTURE.write(Content(waypoints_m=path))
    read = FUTURE.parse(text)
    assert read == Content(waypoints_m=tuple((round(x, 2), round(y, 2)) for x, y in path))
    assert "-0.00" not in text
    assert FUTURE.write(read) == text


def test_standing_car_has_no_negative_zeros():
    answer = Content(waypoints_m=((-0.0, -0.004),) * 16)
    assert FUTURE.write(answer) == "Waypoints:" + " (0.00,0.00)" * 16


@pytest.mark.parametrize(
    "change",
    [
        ("(2.00,", "(-0.00,"),
        ("(2.00,", "(02.00,"),
        ("(2.00,", "(2.0,"),
        ("(2.00,", "(+2.00,"),
        ("(2.00,", "(nan,"),
        ("(2.00,", "(٢.00,"),
        ("(2.00,", "(12345.00,"),
        ("(2.00,0.10) ", ""),
        ("(2.00,0.10)", "(2.00,0.10) (2.00,0.10)"),
        (") (", "),("),
        ("Waypoints: ", ""),
        ("20.58)", "20.58"),
    ],
)
def test_changed_waypoints_are_not_parsed(change):
    assert FUTURE.parse(TEXT.replace(*change, 1)) is None


@pytest.mark.parametrize(
    "text",
    [
        TEXT.removeprefix("Waypoints: "),
        TEXT.replace(",", " , ").replace(" (", "\n( "),
        TEXT.replace("(", "[").replace(")", "]").replace("] [", "], ["),
        TEXT.replace(",", " m, ").replace(")", " m)"),
        "I think (as asked) of 16 points: " + TEXT.lower() + " (21.00,22.50). That is all.",
    ],
)
def test_lenient_reader_accepts_other_spaces_brackets_and_words(text):
    assert FUTURE.parse(text) is None
    assert FUTURE.read(text) == FUTURE.parse(TEXT)


@pytest.mark.parametrize(
    "text", [TEXT[:-1], TEXT.replace("(2.00,0.10) ", ""), TEXT.replace("2.00", "nan"), ""]
)
def test_lenient_reader_refuses_fewer_than_16_waypoints(text):
    assert FUTURE.read(text) is None


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 9999.996, -1e300])
def test_impossible_waypoint_is_not_written(wrong):
    with pytest.raises(AvomniError, match="01_audit"):
        FUTURE.write(Content(waypoints_m=((0.0, 0.0),) * 15 + ((0.0, wrong),)))


@given(paths)
def test_path_at_10_hz_interpolates_waypoints_linearly(path):
    dense = at_10hz(path)
    assert dense.shape == (64, 2)
    assert np.array_equal(dense[3::4], path)
    hops = np.diff(np.vstack([np.zeros(2), dense]), axis=0).reshape(16, 4, 2)
    ends = np.diff(np.vstack([np.zeros(2), path]), axis=0)
    assert np.abs(hops - ends[:, None] / 4).max() < 1e-9


def test_steady_straight_drive_is_represented_exactly():
    after = Arc.steady(8.0).future()
    answer = FUTURE.parse(FUTURE.render(truth(after)))
    assert np.abs(at_10hz(answer.waypoints_m) - after.xy_m).max() < 1e-9


def test_error_is_the_mean_distance_at_10_hz():
    expected = Content(waypoints_m=tuple((5.0 * t, 0.0) for t in 0.4 * np.arange(1, 17)))
    # 1 m/s faster: t metres too far at time t; the mean of 0.1, 0.2 … 6.4.
    fast = Content(waypoints_m=tuple((6.0 * t, 0.0) for t in 0.4 * np.arange(1, 17)))
    assert FUTURE.error(fast, expected) == pytest.approx(3.25)
    # 5 m off from the first waypoint on; before it 1/4, 2/4 and 3/4 of that.
    aside = Content(waypoints_m=tuple((x + 3.0, y + 4.0) for x, y in expected.waypoints_m))
    assert FUTURE.error(aside, expected) == pytest.approx((62.5 * 5) / 64)


@given(truths(), truths())
def test_error_is_symmetric_and_not_negative(one, other):
    a, b = FUTURE.of(one), FUTURE.of(other)
    assert FUTURE.error(a, b) == FUTURE.error(b, a) >= 0
    moved = replace(a, waypoints_m=tuple((x + 1, y) for x, y in a.waypoints_m))
    assert FUTURE.error(moved, a) == pytest.approx(62.5 / 64)
