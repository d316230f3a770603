"""The same figure in parts of the windows, on windows whose parts are known."""

import dataclasses
import math

import pytest

from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.scores import Scores
from tests.answered import drives, summaries, window

MEAN = (10.0, 15.0)


def sliced(asked, **predicted):
    return metrics.slices(Scores(summaries(asked, MEAN, **predicted)))


def by(found, name):
    return {each["value"]: each for each in found if each["by"] == name}


def off_by(asked, *errors):
    return [
        (each.truth.speed_mps + error, each.truth.path_m)
        for each, error in zip(asked, errors, strict=True)
    ]


def test_speeds_and_turns_by_hand():
    places = [
        ("a", 0.0, 0.0), ("a", 1.99, math.radians(14)), ("a", 2.0, math.radians(16)),
        ("b", 7.99, -math.radians(16)), ("b", 15.0, -math.radians(90)), ("b", 30.0, 0.0),
    ]  # fmt: skip
    asked = [
        window(clip, number, speed, speed * 1.5, turn)
        for number, (clip, speed, turn) in enumerate(places)
    ]
    found = sliced(asked, adapted=off_by(asked, 1, 3, 1, 2, 4, 5))
    speeds, turns = by(found, "speed"), by(found, "turn")
    assert {name: (each["num_windows"], each["num_clips"]) for name, each in speeds.items()} == {
        "standing (below 2 m/s)": (2, 1),
        "2–8 m/s": (2, 2),
        "15–22 m/s": (1, 1),
        "over 22 m/s": (1, 1),
    }
    assert speeds["standing (below 2 m/s)"]["model"] == pytest.approx(2.0)
    assert speeds["2–8 m/s"]["model"] == pytest.approx(1.5)
    assert speeds["2–8 m/s"]["mean"] == pytest.approx((8 + 2.01) / 2)
    assert [speeds["over 22 m/s"][name] for name in ("model", "low", "high")] == [5, None, None]
    assert {name: each["model"] for name, each in turns.items()} == {
        "straight (within 15°)": pytest.approx((1 + 3 + 5) / 3),
        "left": pytest.approx(1.0),
        "right": pytest.approx(3.0),
    }
    assert {each["metric"] for each in found} == {"speed_mae_mps"}


def test_each_attribute_cuts_all_windows_once():
    asked, predicted = drives(40)
    asked = [
        dataclasses.replace(
            each,
            turn_rad=number / 100 - 1,
            attributes={"country": "ABC"[number % 3], "hour": number % 24, "platform": "one"},
        )
        for number, each in enumerate(asked)
    ]
    found = sliced(asked, adapted=predicted)
    names = list(dict.fromkeys(each["by"] for each in found))
    assert names == ["speed", "turn", "country", "hour", "platform"]
    whole = metrics.figures(summaries(asked, MEAN, adapted=predicted))
    for name in names:
        parts = by(found, name).values()
        assert sum(each["num_windows"] for each in parts) == len(asked)
        for row, value in (("model", "adapted"), ("mean", "mean")):
            total = sum(each["num_windows"] * each[row] for each in parts)
            assert total / len(asked) == pytest.approx(whole["speed_mae_mps"][value])
        assert all(each["low"] <= each["model"] <= each["high"] for each in parts)
    assert list(by(found, "hour")) == list(metrics.HOURS)
    (only,) = by(found, "platform").values()
    entry = next(each for each in whole["ladder"] if each["name"] == "adapted")
    assert [only[name] for name in ("model", "low", "high")] == [
        entry[name] for name in ("value", "low", "high")
    ]
    assert whole["slices"] == found


def test_what_is_unknown_everywhere_makes_no_slices():
    asked, predicted = drives(3, windows_each=2)
    assert {each["by"] for each in sliced(asked, adapted=predicted)} == {"speed", "turn"}
    asked[0] = dataclasses.replace(asked[0], attributes={"hour": 0, "country": "Spain"})
    found = sliced(asked, adapted=predicted)
    assert {name: each["num_windows"] for name, each in by(found, "country").items()} == {
        "Spain": 1,
        "unknown": 5,
    }
    assert list(by(found, "hour")) == ["night (22–6 h)", "unknown"]
    assert not by(found, "platform")
    # A data set may use that very word.
    asked[0] = dataclasses.replace(asked[0], attributes={"country": "unknown"})
    (only,) = by(sliced(asked, adapted=predicted), "country").values()
    assert only["num_windows"] == 6


def test_without_the_model_the_mean_stands_alone():
    asked, predicted = drives(3)
    for each in sliced(asked, base=predicted):
        assert each["model"] is None and each["low"] is None
        assert each["mean"] > 0


def test_hours_of_the_day():
    asked = [window(f"{hour}", 0, 5.0, 7.5, hour=hour) for hour in range(24)]
    found = by(sliced(asked, adapted=[(5.0, 7.5)] * 24), "hour")
    windows = {name.split()[0]: each["num_windows"] for name, each in found.items()}
    assert windows == {"night": 8, "morning": 4, "day": 7, "evening": 5}
    (only,) = by(sliced(asked[22:], adapted=[(5.0, 7.5)] * 2), "hour")
    assert only.startswith("night")
