"""Figures computed from answers, compared with values computed by hand."""

import dataclasses
import json
import math
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.scene import Surroundings
from avomni_lib.evaluation import metrics
from avomni_lib.training.targets import Content, target
from tests.answered import DURATION_S, SUMMARY, drives, straight, summaries, summary, table, window

TRUE = [(10.0, 15.0), (12.0, 18.0), (0.0, 0.0), (4.0, 6.0)]
WINDOWS = [("a", 0), ("a", 1), ("b", 0), ("b", 3)]
ASKED = [window(*key, *true) for key, true in zip(WINDOWS, TRUE, strict=True)]
MEAN = (8.0, 12.0)
FUTURE, META, COC, FULL = map(target, ("future_v1", "meta_v1", "coc_v1", "full_v1"))


def table_of(**predicted):
    return summaries(ASKED, MEAN, **predicted)


def values(figures, row="adapted"):
    return {name: entry["value"] for name, entry in figures["metrics"][row].items()}


def test_summary_figures_match_values_computed_by_hand():
    figures = metrics.figures(
        table_of(adapted=[(11.0, 16.0), (12.0, 20.0), (1.0, 0.0), (2.0, 6.0)])
    )
    assert values(figures) == {
        "speed_mae_mps": pytest.approx((1 + 0 + 1 + 2) / 4),
        "speed_rmse_mps": pytest.approx(math.sqrt((1 + 0 + 1 + 4) / 4)),
        "speed_mse": pytest.approx((1 + 0 + 1 + 4) / 4),
        "displacement_mae_m": pytest.approx((1 + 2 + 0 + 0) / 4),
        # The window of a standing car has no relative displacement error.
        "displacement_mape": pytest.approx((1 / 15 + 2 / 18 + 0) / 3),
        "consistency_m": pytest.approx((0.5 + 2 + 1.5 + 3) / 4),
        "exact_share": 1.0,
    }
    assert figures["speed_mae_mps"] == {"mean": (2 + 4 + 8 + 4) / 4, "adapted": 1.0}
    assert figures["displacement_mae_m"] == {"mean": (3 + 6 + 12 + 6) / 4, "adapted": 0.75}
    assert (figures["valid_share"], figures["num_windows"], figures["num_clips"]) == (1.0, 4, 2)


def test_ladder_has_each_row_once_with_its_difference_to_the_model():
    asked, predicted = drives(12, bias=1.0)
    better = [(asked_window.truth.speed_mps, asked_window.truth.path_m) for asked_window in asked]
    figures = metrics.figures(summaries(asked, MEAN, base=predicted, adapted=better))
    ladder = {entry["name"]: entry for entry in figures["ladder"]}
    assert [entry["name"] for entry in figures["ladder"]] == ["mean", "base", "adapted"]
    for name, entry in ladder.items():
        assert set(entry) == {
            *("name", "target", "metric", "value", "low", "high", "difference_to_model"),
            *("difference_low", "difference_high", "num_clips", "num_windows", "valid_share"),
            *("interval", "difference_interval"),
        }
        assert (entry["target"], entry["metric"]) == ("summary_v1", "speed_mae_mps")
        assert (entry["num_clips"], entry["num_windows"]) == (12, 48)
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert entry["value"] == figures["metrics"][name]["speed_mae_mps"]["value"]
        apart = entry["value"] - ladder["adapted"]["value"]
        assert entry["difference_to_model"] == pytest.approx(apart)
        assert entry["difference_low"] <= apart <= entry["difference_high"]
    adapted = ladder["adapted"]
    assert [adapted[f"difference_{name}"] for name in ("to_model", "low", "high")] == [
        0.0,
        0.0,
        0.0,
    ]
    assert ladder["base"]["difference_low"] > 0


def test_unreadable_answers_count_as_the_mean():
    loose = "Avg velocity 10.0 m/s, total displacement: 15.0 m, or so"
    table = table_of(base=[loose, "?", (0.0, 0.0), None], blind=[None] * 4)
    figures = metrics.figures(table)
    base = values(figures, "base")
    assert base["speed_mae_mps"] == pytest.approx((0 + abs(8 - 12) + 0 + abs(8 - 4)) / 4)
    assert base["displacement_mae_m"] == pytest.approx((0 + abs(12 - 18) + 0 + abs(12 - 6)) / 4)
    assert figures["valid_share_by_row"] == {"mean": 1.0, "base": 0.5, "blind": 0.0}
    # One answer was parsed although it does not have the exact form.
    assert figures["exact_share_by_row"] == {"mean": 1.0, "base": 0.25, "blind": 0.0}
    assert base["exact_share"] == 0.25
    blind, mean = values(figures, "blind"), values(figures, "mean")
    assert blind.pop("exact_share") == 0.0 and mean.pop("exact_share") == 1.0
    assert blind == mean


def test_differences_are_missing_without_the_adapted_row():
    figures = metrics.figures(table_of(base=TRUE))
    assert figures["valid_share"] is None and figures["claims"] == []
    assert all(entry["difference_to_model"] is None for entry in figures["ladder"])
    assert figures["ladder"][1]["value"] == 0.0


def test_one_clip_has_figures_and_no_intervals():
    asked = [window("a", i, *true) for i, true in enumerate(TRUE)]
    figures = metrics.figures(summaries(asked, MEAN, adapted=TRUE))
    for entry in figures["ladder"]:
        assert entry["value"] is not None and entry["difference_to_model"] is not None
        bounds = ("low", "high", "difference_low", "difference_high")
        assert [entry[name] for name in bounds] == [None] * 4


def test_unreadable_answer_takes_the_mean_of_its_own_window():
    texts = [summary(float(i), 10.0 * i) for i in range(4)]
    table_ = table(SUMMARY, ASKED, {"mean": texts, "base": ["?"] * 4})
    figures = metrics.figures(table_)
    assert figures["speed_mae_mps"]["base"] == pytest.approx((10 + 11 + 2 + 1) / 4)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_figures_do_not_depend_on_row_order_or_clip_ids(seed):
    asked, predicted = drives(6, seed=seed)
    predicted[3] = None
    one = metrics.figures(summaries(asked, MEAN, base=predicted[::-1], adapted=predicted))
    mixed = random.Random(seed)
    names = mixed.sample(range(6), 6)
    renamed = [
        dataclasses.replace(
            asked_window, clip_id=f"other-{names[int(asked_window.clip_id.split('-')[1])]}"
        )
        for asked_window in asked
    ]
    table_ = summaries(renamed, MEAN, base=predicted[::-1], adapted=predicted)
    order = [
        place
        for model in range(3)
        for place in mixed.sample(range(model * len(asked), (model + 1) * len(asked)), len(asked))
    ]
    assert metrics.figures(table_.take(order)) == one


def test_figures_recomputed_from_the_file_are_equal_and_json_serialisable(tmp_path):
    table_ = table_of(adapted=[(9.0, 1.0), None, (3.0, 0.5), (1.0, 1.0)], blind=["?"] * 4)
    path = metrics.write(table_, tmp_path / "answers.parquet")
    again = metrics.read(path)
    assert again.equals(table_) and again.schema.equals(metrics.SCHEMA)
    figures = metrics.figures(again)
    assert figures == metrics.figures(table_)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert list(figures["metrics"]) == ["mean", "adapted", "blind"]


def test_row_holds_window_answer_and_ground_truth(tmp_path):
    known = {"country": "Germany", "hour": 7, "platform": "hyperion_8"}
    asked = [
        window("a", 0, 10.0, 15.0, 0.25, straight(10.0), **known),
        dataclasses.replace(window("b", 2, 4.0, 6.0), attributes={"hour": None}),
    ]
    texts = ["velocity: 9 m/s displacement: 14 m", None]
    first, second = metrics.rows("base", SUMMARY, asked, texts, sample=3).to_pylist()
    assert len(first.pop("future_true_m")) == 128
    assert first == {
        **{"clip_id": "a", "window": 0, "model": "base", "target": "summary_v1", "sample": 3},
        **{"answer": texts[0], "exact": False, "valid": True},
        **{"speed_mps": 9.0, "displacement_m": 14.0},
        **{"speed_true_mps": 10.0, "displacement_true_m": 15.0, "chord_true_m": 15.0},
        **{"duration_s": DURATION_S, "turn_rad": 0.25, **known},
        **dict.fromkeys(["along_true", "across_true", "cause_true", "cause_from"]),
    }
    assert (second["answer"], second["exact"], second["valid"]) == (None, False, False)
    assert second["future_true_m"] is second["speed_mps"] is second["country"] is None


def test_rows_with_missing_or_repeated_windows_are_refused():
    table_ = table_of(base=[(1.0, 1.0)] * 4)
    repeated = pa.concat_tables([table_, table_.slice(7, 1)])
    for broken, counts in ((table_.slice(0, 7), "3 rows for 3"), (repeated, "5 rows for 4")):
        with pytest.raises(AvomniError, match=f"'base' has {counts} of the 4 windows"):
            metrics.figures(broken)
    doubled = pa.concat_tables([table_.slice(0, 1), table_, table_.slice(4, 1)])
    with pytest.raises(AvomniError, match="'mean' has 5 rows"):
        metrics.figures(doubled)


def test_empty_table_and_mixed_targets_are_refused():
    with pytest.raises(AvomniError, match="no answers"):
        metrics.figures(table_of().slice(0, 0))
    two = pa.concat_tables([table_of(), metrics.rows("adapted", SUMMARY, ASKED, ["?"] * 4)])
    names = pa.array(["summary_v1"] * 4 + ["future_v1"] * 4)
    two = two.set_column(two.column_names.index("target"), "target", names)
    with pytest.raises(AvomniError, match="summary_v1 and future_v1"):
        metrics.figures(two)


def test_unreadable_mean_row_is_refused():
    broken = table(SUMMARY, ASKED, {"mean": [summary(*MEAN)] * 3 + ["?"]})
    with pytest.raises(AvomniError, match="stands in for others"):
        metrics.figures(broken)


@pytest.mark.parametrize("digits", [7, 400])
def test_figures_are_finite_for_huge_answers(digits):
    text = f"velocity: {'9' * digits} m/s displacement: {'9' * digits} m"
    figures = metrics.figures(table_of(adapted=[text, *TRUE[1:]]))
    assert figures["speed_mae_mps"]["adapted"] == pytest.approx(
        (10**7 - 11) / 4 if figures["valid_share"] == 1 else 2 / 4
    )
    json.dumps(figures, allow_nan=False)


def test_worst_returns_one_window_per_clip_including_unreadable_answers():
    table_ = table_of(base=[(10.5, 0.0), (9.0, 0.0), "?", (4.0, 0.0)])
    worst = metrics.worst(table_, "base", 4)
    assert [(row["clip_id"], row["window"]) for row in worst] == [("b", 0), ("a", 1)]
    assert worst[0]["answer"] == "?" and worst[0]["speed_mps"] is None
    assert len(metrics.worst(table_, "base", 1)) == 1
    with pytest.raises(AvomniError, match="no row 'adapted'; there are mean, base"):
        metrics.worst(table_, "adapted", 1)


def test_typical_windows_have_errors_near_the_median():
    asked = [window(clip, number, 10.0, 15.0) for clip in "abc" for number in range(3)]
    errors = [0, 1, 2, 3, 4, 5, 6, 7, 8]
    table_ = summaries(asked, MEAN, adapted=[(10.0 + error, 15.0) for error in errors])
    typical = metrics.typical(table_, "adapted", 3)
    assert [row["speed_mps"] - 10 for row in typical] == [4, 2, 6]


def test_damaged_or_foreign_answers_file_is_refused(tmp_path):
    path = metrics.write(table_of(), tmp_path / "answers.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AvomniError, match="no answers can be read") as damaged:
        metrics.read(path)
    assert "06_evaluate" in str(damaged.value)
    with pytest.raises(AvomniError, match="no answers can be read"):
        metrics.read(tmp_path / "nowhere.parquet")
    metrics.write(pa.table({"clip_id": ["a"]}), path)
    with pytest.raises(AvomniError, match="its columns are clip_id"):
        metrics.read(path)


pairs = st.one_of(st.none(), st.tuples(st.floats(0, 60), st.floats(0, 500)))


@given(predicted=st.lists(pairs, min_size=4, max_size=4))
def test_errors_match_a_plain_python_loop(predicted):
    figures = values(metrics.figures(table_of(base=predicted)), "base")
    speeds, displacements, gaps = [], [], []
    for pair, true in zip(predicted, TRUE, strict=True):
        speed, displacement = (round(x, 2) for x in pair or MEAN)
        speeds.append(speed - true[0])
        displacements.append(abs(displacement - true[1]))
        gaps.append(abs(speed * DURATION_S - displacement))
    near = {"abs": 0.01}  # answers have two digits after the point
    assert figures["speed_mae_mps"] == pytest.approx(sum(map(abs, speeds)) / 4, **near)
    squares = sum(x * x for x in speeds) / 4
    assert figures["speed_rmse_mps"] == pytest.approx(math.sqrt(squares), **near)
    assert figures["speed_mse"] == pytest.approx(figures["speed_rmse_mps"] ** 2)
    assert figures["displacement_mae_m"] == pytest.approx(sum(displacements) / 4, **near)
    assert figures["consistency_m"] == pytest.approx(sum(gaps) / 4, abs=0.03)


# The other targets, on straight drives: every distance follows from a difference of speeds.

SPEEDS = [10.0, 5.0, 2.0, 20.0]


def ahead(speed_mps, shift_m=0.0):
    return tuple((speed_mps * 0.4 * (i + 1), shift_m) for i in range(16))


def futures():
    return [
        window(*key, speed, speed * DURATION_S, 0.0, straight(speed))
        for key, speed in zip(WINDOWS, SPEEDS, strict=True)
    ]


def paths(*waypoints):
    return [FUTURE.write(Content(waypoints_m=path)) for path in waypoints]


def test_path_figures_match_values_computed_by_hand():
    texts = {
        "mean": paths(*[ahead(8.0)] * 4),
        # 1 m/s too fast; 1 m to the left from the first waypoint on; unreadable; correct.
        "adapted": [*paths(ahead(11.0), ahead(5.0, 1.0)), "?", *paths(ahead(20.0))],
    }
    figures = values(metrics.figures(table(FUTURE, futures(), texts)))
    over = np.arange(1, 65) / 10
    # The offset rises linearly from 0 to 1 m within the first 0.4 s.
    aside = np.minimum(over / 0.4, 1.0)
    expected = {
        "ade_m": [over.mean(), aside.mean(), 6 * over.mean(), 0],
        "fde_m": [6.4, 1, 6 * 6.4, 0],
        "at_1s_m": [1, 1, 6, 0],
        "at_3s_m": [3, 1, 18, 0],
        "at_5s_m": [5, 1, 30, 0],
        "at_6_4s_m": [6.4, 1, 6 * 6.4, 0],
        "along_m": [over.mean(), 0, 6 * over.mean(), 0],
        "across_m": [0, aside.mean(), 0, 0],
        "miss_rate": [1, 0, 1, 0],
        "comfort_share": [1, 0, 1, 1],  # 1 m to the left within 0.4 s is uncomfortable
    }
    assert figures == {name: pytest.approx(np.mean(errors)) for name, errors in expected.items()}


def test_min_ade_is_computed_for_rows_with_samples():
    texts = {"mean": paths(*[ahead(8.0)] * 4), "adapted": paths(*[ahead(8.0)] * 4)}
    for sample in range(1, 7):
        texts["adapted", sample] = paths(*(ahead(speed + sample - 3) for speed in SPEEDS))
    texts["adapted", 3] = ["?"] * 4  # the correct sample is unreadable
    table_ = table(FUTURE, futures(), texts)
    figures = metrics.figures(table_)
    over = np.arange(1, 65) / 10
    best = figures["metrics"]["adapted"]["min_ade6_m"]
    # The unreadable sample counts as the mean; the best other samples are 1 m/s off.
    assert best["value"] == pytest.approx(over.mean())
    assert best["difference_to_model"] == 0.0
    assert "min_ade6_m" not in figures["metrics"]["mean"]
    assert figures["num_windows"] == 4 and figures["valid_share"] == 1.0
    with pytest.raises(AvomniError, match="'adapted' has 3 rows"):
        metrics.figures(table_.slice(0, len(table_) - 1))


def test_windows_without_a_future_are_refused():
    asked = [window("a", 0, 5.0, 7.5, 0.0, straight(5.0))]
    table_ = table(FUTURE, asked, {"mean": paths(ahead(5.0))})
    nothing = pa.array([None], metrics.SCHEMA.field("future_true_m").type)
    table_ = table_.set_column(table_.column_names.index("future_true_m"), "future_true_m", nothing)
    with pytest.raises(AvomniError, match="no true path"):
        metrics.figures(table_)


def manoeuvres(*pairs_):
    return [META.write(Content(along=along, across=across)) for along, across in pairs_]


def meta_table(**predicted):
    asked = futures()
    true = [META.of(content.truth) for content in asked]
    assert {(content.along, content.across) for content in true} == {("hold", "straight")}
    table_ = table(META, asked, predicted)
    # All drives are straight and steady, so ground truth with two turns and a brake is inserted.
    along = pa.array(["hold", "hold", "gentle brake", "hold"] * len(predicted))
    across = pa.array(["straight", "turn left", "turn left", "straight"] * len(predicted))
    for name, column in (("along_true", along), ("across_true", across)):
        table_ = table_.set_column(table_.column_names.index(name), name, column)
    return table_


def test_manoeuvre_f1_matches_values_computed_by_hand():
    predicted = [
        ("hold", "straight"), ("hold", "straight"), ("gentle brake", "turn left"),
        ("gentle brake", "nudge left"),
    ]  # fmt: skip
    table_ = meta_table(
        mean=manoeuvres(*[("hold", "straight")] * 4),
        adapted=manoeuvres(*predicted),
        blind=["?"] * 4,
    )
    figures = metrics.figures(table_)
    along, across = (4 / 5 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2
    assert values(figures) == {
        "macro_f1": pytest.approx((along + across) / 2),
        "macro_f1_along": pytest.approx(along),
        "macro_f1_across": pytest.approx(across),
    }
    assert values(figures, "blind") == values(figures, "mean")
    assert figures["ladder"][0]["metric"] == "macro_f1"
    assert figures["ladder"][0]["difference_to_model"] < 0  # a higher F1 is better
    assert "speed_mae_mps" not in figures
    (worst, other) = metrics.worst(table_, "adapted", 4)
    assert (worst["clip_id"], worst["window"], other["window"]) == ("b", 3, 1)


def test_confusion_counts_match_values_computed_by_hand():
    table_ = meta_table(
        mean=manoeuvres(*[("hold", "straight")] * 4),
        adapted=[*manoeuvres(("hold", "straight"), ("hold", "u-turn")), "?", "?"],
    )
    counts = metrics.confusion(table_, "adapted", "across")
    assert list(counts.index) == list(counts.columns) == ["straight", "turn left", "u-turn"]
    assert counts.to_numpy().tolist() == [[2, 0, 0], [1, 0, 1], [0, 0, 0]]
    counts = metrics.confusion(table_, "adapted", "along")
    assert (list(counts.index), counts.to_numpy().tolist()) == (
        ["gentle brake", "hold"],
        [[0, 1], [0, 3]],
    )


def events(*sentences):
    """Windows with a sentence written by people, or None for a sentence from the template."""
    asked = futures()
    return [
        dataclasses.replace(
            asked_window,
            truth=dataclasses.replace(asked_window.truth, scene=Surroundings((), sentence)),
        )
        for asked_window, sentence in zip(asked, sentences, strict=True)
    ]


def test_cause_f1_is_reported_overall_and_by_source():
    asked = events("The car stops for a dog.", "The car waits.", None, None)
    truths = [COC.of(asked_window.truth) for asked_window in asked]
    assert [asked_window.cause_from for asked_window in truths] == ["event"] * 2 + ["template"] * 2
    predicted = ["the car stops", "The car waits.", truths[2].cause, truths[3].cause]
    texts = {
        "adapted": [COC.write(Content(cause=asked_window)) for asked_window in predicted[:3]]
        + ["?<>"]
    }
    figures = metrics.figures(table(COC, asked, texts))
    # 3 words are shared, of 3 and of 6; without a mean row an unreadable answer scores 0.
    first = 2 * 3 / (3 + 6)
    assert values(figures) == {
        "cause_word_f1": pytest.approx((first + 1 + 1 + 0) / 4),
        "cause_word_f1_event": pytest.approx((first + 1) / 2),
        "cause_word_f1_template": pytest.approx(1 / 2),
    }
    mean = {"mean": [COC.render(asked[3].truth)] * 4}
    filled = metrics.figures(table(COC, asked, mean | texts))
    assert values(filled)["cause_word_f1_template"] == pytest.approx(1.0)
    only = metrics.figures(table(COC, events("A.", "B.", "C.", "D."), {"adapted": ["A."] * 4}))
    assert values(only) == {"cause_word_f1": 0.25}


def test_full_target_has_the_figures_of_all_other_targets():
    asked = events("The car stops for a dog.", "The car waits.", None, None)
    ground_truth = [FULL.of(asked_window.truth) for asked_window in asked]
    texts = {
        "mean": [FULL.write(ground_truth[3])] * 4,
        "adapted": [FULL.write(asked_window) for asked_window in ground_truth],
    }
    figures = metrics.figures(table(FULL, asked, texts))
    figure_values = values(figures)
    assert list(figure_values)[0] == figures["ladder"][0]["metric"] == "speed_mae_mps"
    assert {
        name for name, value in figure_values.items() if value == pytest.approx(0, abs=0.02)
    } == {
        *("speed_mae_mps", "speed_rmse_mps", "speed_mse", "displacement_mae_m"),
        *("displacement_mape", "consistency_m", "ade_m", "fde_m", "at_1s_m", "at_3s_m"),
        *("at_5s_m", "at_6_4s_m", "along_m", "across_m", "miss_rate"),
    }
    assert {name for name, value in figure_values.items() if value == 1} == {
        *("exact_share", "comfort_share", "macro_f1", "macro_f1_along", "macro_f1_across"),
        *("cause_word_f1", "cause_word_f1_event", "cause_word_f1_template"),
    }
    assert figures["speed_mae_mps"]["mean"] == pytest.approx((10 + 15 + 18 + 0) / 4)
