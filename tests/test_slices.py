"""Metrics of slices of the windows by speed, turn and attributes."""

import dataclasses
import math

import pytest

from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.scores import Scores
from tests.answered import drives, summaries, window

MEAN = (10.0, 15.0)


def sliced(windows, **predicted):
    return metrics.slices(Scores(summaries(windows, MEAN, **predicted)))


def by(slices, name):
    return {row["value"]: row for row in slices if row["by"] == name}


def off_by(windows, *errors):
    return [
        (window.truth.speed_mps + error, window.truth.path_m)
        for window, error in zip(windows, errors, strict=True)
    ]


def test_speed_and_turn_slices_match_hand_computed_values():
    places = [
        ("a", 0.0, 0.0), ("a", 1.99, math.radians(14)), ("a", 2.0, math.radians(16)),
        ("b", 7.99, -math.radians(16)), ("b", 15.0, -math.radians(90)), ("b", 30.0, 0.0),
    ]  # fmt: skip
    windows = [
        window(clip, number, speed, speed * 1.5, turn)
        for number, (clip, speed, turn) in enumerate(places)
    ]
    slices = sliced(windows, adapted=off_by(windows, 1, 3, 1, 2, 4, 5))
    speeds, turns = by(slices, "speed"), by(slices, "turn")
    assert {name: (row["num_windows"], row["num_clips"]) for name, row in speeds.items()} == {
        "standing (below 2 m/s)": (2, 1),
        "2–8 m/s": (2, 2),
        "15–22 m/s": (1, 1),
        "over 22 m/s": (1, 1),
    }
    assert speeds["standing (below 2 m/s)"]["model"] == pytest.approx(2.0)
    assert speeds["2–8 m/s"]["model"] == pytest.approx(1.5)
    assert speeds["2–8 m/s"]["mean"] == pytest.approx((8 + 2.01) / 2)
    assert [speeds["over 22 m/s"][name] for name in ("model", "low", "high")] == [5, None, None]
    assert {name: row["model"] for name, row in turns.items()} == {
        "straight (within 15°)": pytest.approx((1 + 3 + 5) / 3),
        "left": pytest.approx(1.0),
        "right": pytest.approx(3.0),
    }
    assert {row["metric"] for row in slices} == {"speed_mae_mps"}


def test_slices_of_each_attribute_partition_the_windows():
    windows, predicted = drives(40)
    windows = [
        dataclasses.replace(
            each_window,
            turn_rad=number / 100 - 1,
            attributes={"country": "ABC"[number % 3], "hour": number % 24, "platform": "one"},
        )
        for number, each_window in enumerate(windows)
    ]
    slices = sliced(windows, adapted=predicted)
    names = list(dict.fromkeys(row["by"] for row in slices))
    assert names == ["speed", "turn", "country", "hour", "platform"]
    whole = metrics.figures(summaries(windows, MEAN, adapted=predicted))
    for name in names:
        parts = by(slices, name).values()
        assert sum(part["num_windows"] for part in parts) == len(windows)
        for row, value in (("model", "adapted"), ("mean", "mean")):
            total = sum(part["num_windows"] * part[row] for part in parts)
            assert total / len(windows) == pytest.approx(whole["speed_mae_mps"][value])
        assert all(part["low"] <= part["model"] <= part["high"] for part in parts)
    assert list(by(slices, "hour")) == list(metrics.HOURS)
    (only,) = by(slices, "platform").values()
    entry = next(step for step in whole["ladder"] if step["name"] == "adapted")
    assert [only[name] for name in ("model", "low", "high")] == [
        entry[name] for name in ("value", "low", "high")
    ]
    assert whole["slices"] == slices


def test_attributes_unknown_everywhere_have_no_slices():
    windows, predicted = drives(3, windows_each=2)
    assert {row["by"] for row in sliced(windows, adapted=predicted)} == {"speed", "turn"}
    windows[0] = dataclasses.replace(windows[0], attributes={"hour": 0, "country": "Spain"})
    slices = sliced(windows, adapted=predicted)
    assert {name: row["num_windows"] for name, row in by(slices, "country").items()} == {
        "Spain": 1,
        "unknown": 5,
    }
    assert list(by(slices, "hour")) == ["night (22–6 h)", "unknown"]
    assert not by(slices, "platform")
    # A data set may have the value "unknown" itself.
    windows[0] = dataclasses.replace(windows[0], attributes={"country": "unknown"})
    (only,) = by(sliced(windows, adapted=predicted), "country").values()
    assert only["num_windows"] == 6


def test_slices_without_a_model_have_only_the_mean():
    windows, predicted = drives(3)
    for row in sliced(windows, base=predicted):
        assert row["model"] is None and row["low"] is None
        assert row["mean"] > 0


def test_hours_are_grouped_into_parts_of_the_day():
    windows = [window(f"{hour}", 0, 5.0, 7.5, hour=hour) for hour in range(24)]
    slices = by(sliced(windows, adapted=[(5.0, 7.5)] * 24), "hour")
    counts = {name.split()[0]: row["num_windows"] for name, row in slices.items()}
    assert counts == {"night": 8, "morning": 4, "day": 7, "evening": 5}
    (only,) = by(sliced(windows[22:], adapted=[(5.0, 7.5)] * 2), "hour")
    assert only.startswith("night")
