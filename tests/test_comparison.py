"""Comparison of two runs on their common windows, and the spread over several runs."""

import dataclasses
import json
import statistics

import numpy as np
import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import comparison, metrics
from avomni_lib.evaluation.comparison import compare
from avomni_lib.training.targets import Content, target
from tests.answered import drives, straight, summaries, table

MEAN = (10.0, 15.0)
FUTURE, META, FULL = map(target, ("future_v1", "meta_v1", "full_v1"))
ASKED, PREDICTED = drives(14)
STRAIGHT = [
    dataclasses.replace(
        each, truth=dataclasses.replace(each.truth, future=straight(each.truth.speed_mps))
    )
    for each in ASKED
]
WORSE = [(speed + 0.5, path) for speed, path in PREDICTED]


def run(folder, table_, split="0" * 64):
    stage = folder / "06_evaluate"
    stage.mkdir(parents=True)
    metrics.write(table_, stage / "answers.parquet")
    files.write_json(stage / "result.json", {"figures": {"split_sha256": split}})
    return folder


@pytest.fixture
def runs(tmp_path):
    a = summaries(ASKED, MEAN, base=PREDICTED, adapted=WORSE)
    b = summaries(ASKED, MEAN, ctra=PREDICTED, base=PREDICTED, adapted=PREDICTED)
    return run(tmp_path / "a", a), run(tmp_path / "b", b)


def test_rows_of_the_same_name_are_compared_with_paired_intervals(runs):
    compared = compare(*runs).figures
    assert list(compared["rows"]) == ["adapted", "mean", "base"]
    tables = [metrics.read(score / "06_evaluate/answers.parquet") for score in runs]
    figures_of_runs = [metrics.figures(score)["metrics"]["adapted"] for score in tables]
    for name, score in compared["rows"]["adapted"].items():
        values = [figures[name]["value"] for figures in figures_of_runs]
        assert [score["a"], score["b"]] == pytest.approx(values)
        assert score["difference"] == pytest.approx(values[1] - values[0])
        assert score["low"] <= score["difference"] <= score["high"]
    base = compared["rows"]["base"]["speed_mae_mps"]
    assert (base["difference"], base["low"], base["high"]) == (0.0, 0.0, 0.0)
    assert compared["num_windows"] == len(ASKED) and compared["num_clips"] == 14
    assert compared["warnings"] == []
    assert json.loads(json.dumps(compared, allow_nan=False)) == compared


def test_interval_equals_that_of_both_runs_in_one_table(runs):
    """`metrics` gives the same interval if A's model is added to B's table as a row."""
    score = compare(*runs).figures["rows"]["adapted"]["speed_mae_mps"]
    both = metrics.figures(summaries(ASKED, MEAN, base=WORSE, adapted=PREDICTED))
    other = both["metrics"]["base"]["speed_mae_mps"]
    assert -score["difference"] == pytest.approx(other["difference_to_model"])
    # The resamples differ because the tables have different rows.
    width = other["difference_high"] - other["difference_low"]
    assert -score["low"] == pytest.approx(other["difference_high"], abs=0.15 * width)
    assert -score["high"] == pytest.approx(other["difference_low"], abs=0.15 * width)


def test_row_order_and_kind_of_path_do_not_change_the_comparison(runs):
    a, b = runs
    compared = compare(a, b)
    answers = b / "06_evaluate" / "answers.parquet"
    table_ = metrics.read(answers)
    metrics.write(table_.take(np.random.default_rng(0).permutation(len(table_))), answers)
    for again in (compare(a, answers), compare(a, b / "06_evaluate"), compare(str(a), str(b))):
        assert again.figures["rows"] == compared.figures["rows"]
    turned = compare(b, a).figures["rows"]["adapted"]["speed_mae_mps"]
    one = compared.figures["rows"]["adapted"]["speed_mae_mps"]
    assert [turned["a"], turned["b"]] == pytest.approx([one["b"], one["a"]])
    assert turned["difference"] == pytest.approx(-one["difference"])


def test_only_windows_of_both_runs_count(tmp_path):
    a = run(tmp_path / "a", summaries(ASKED[:40], MEAN, adapted=WORSE[:40]))
    b = run(tmp_path / "b", summaries(ASKED[8:], MEAN, adapted=PREDICTED[8:]))
    figures = compare(a, b).figures
    assert (figures["num_windows"], figures["num_clips"]) == (32, 8)
    assert figures["num_windows_only_in"] == {"A": 8, "B": len(ASKED) - 40}
    alone = metrics.figures(summaries(ASKED[8:40], MEAN, adapted=PREDICTED[8:40]))
    shown = figures["rows"]["adapted"]["speed_mae_mps"]["b"]
    assert shown == pytest.approx(alone["speed_mae_mps"]["adapted"])


def test_table_states_which_run_is_better(runs):
    compared = compare(*runs)
    text, html = str(compared), compared._repr_html_()
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("adapted")}
    # A is 0.5 m/s too fast, which makes it worse; the displacement is the same.
    interval = compared.figures["rows"]["adapted"]["consistency_m"]
    assert interval["high"] < 0 and lines["consistency_m"].endswith("B is better")
    assert lines["displacement_mae_m"].endswith("+0.000 to +0.000  no difference shown")
    assert f"{len(ASKED)} windows of 14 clips in both; 0 only in A, 0 only in B" in text
    assert sum(line.startswith("base") for line in text.splitlines()) == 1
    assert "<td>B is better</td>" in html
    assert str(runs[0]) in html and repr(compared) == text


def test_higher_shares_are_better(tmp_path):
    a = run(tmp_path / "a", summaries(ASKED, MEAN, adapted=["?"] * len(ASKED)))
    b = run(tmp_path / "b", summaries(ASKED, MEAN, adapted=PREDICTED))
    line = next(row for row in str(compare(a, b)).splitlines() if "exact_share" in row)
    assert line.split()[2:5] == ["0.000", "1.000", "+1.000"] and line.endswith("B is better")


@pytest.mark.parametrize("num_clips", [1, 2])
def test_few_clips_and_different_splits_give_warnings(tmp_path, num_clips):
    few = ASKED[: 4 * num_clips]
    tables = [
        summaries(few, MEAN, adapted=predicted[: len(few)]) for predicted in (WORSE, PREDICTED)
    ]
    a, b = run(tmp_path / "a", tables[0], "1" * 64), run(tmp_path / "b", tables[1], "2" * 64)
    compared = compare(a, b)
    split, clips = compared.figures["warnings"]
    assert "split_sha256: A 111111111111, B 222222222222" in split
    assert clips.startswith(f"clips in common: {num_clips};")
    score = compared.figures["rows"]["adapted"]["speed_mae_mps"]
    assert score["difference"] is not None and (score["low"] is None) == (num_clips == 1)
    assert f"! {split}" in str(compared) and "<b>Note:</b>" in compared._repr_html_()
    assert "too few clips to say" in str(compared) and "better" not in str(compared)
    (b / "06_evaluate" / "result.json").unlink()
    assert "B not recorded" in compare(a, b).figures["warnings"][0]


def test_runs_of_two_targets_are_compared_by_their_common_metrics(tmp_path):
    manoeuvres = [META.of(window.truth) for window in STRAIGHT]
    full = [
        FULL.write(
            dataclasses.replace(
                FUTURE.of(window.truth),
                **{"speed_mps": window.truth.speed_mps, "displacement_m": window.truth.path_m},
                **{"along": meta.along, "across": meta.across, "cause": "Nothing is there."},
            )
        )
        for window, meta in zip(STRAIGHT, manoeuvres, strict=True)
    ]
    about = dataclasses.replace(FULL, of=lambda truth: Content(along="hold", across="straight"))
    mean = [full[0]] * len(STRAIGHT)
    a = run(tmp_path / "a", summaries(ASKED, MEAN, adapted=PREDICTED))
    b = run(tmp_path / "b", table(about, STRAIGHT, {"mean": mean, "adapted": full}))
    figures = compare(a, b).figures
    assert figures["targets"] == {"A": "summary_v1", "B": "full_v1"}
    assert list(figures["rows"]["adapted"]) == [
        *("speed_mae_mps", "speed_rmse_mps", "speed_mse", "displacement_mae_m"),
        *("displacement_mape", "consistency_m", "exact_share"),
    ]
    assert figures["rows"]["adapted"]["speed_mae_mps"]["b"] < 0.01
    paths = [FUTURE.render(window.truth) for window in STRAIGHT]
    c = run(tmp_path / "c", table(FUTURE, STRAIGHT, {"mean": paths, "adapted": paths}))
    with pytest.raises(AvomniError, match="of A is summary_v1, of B future_v1"):
        compare(a, c)
    both = compare(b, c).figures["rows"]["adapted"]
    assert list(both)[0] == "ade_m" and "speed_mae_mps" not in both


def test_macro_f1_covers_classes_predicted_by_only_one_run(tmp_path):
    right, wrong = (
        [META.write(Content(along=along, across="straight"))] * len(STRAIGHT)
        for along in ("hold", "strong brake")
    )
    a = run(tmp_path / "a", table(META, STRAIGHT, {"mean": right, "adapted": wrong}))
    b = run(tmp_path / "b", table(META, STRAIGHT, {"mean": right, "adapted": right}))
    score = compare(a, b).figures["rows"]["adapted"]["macro_f1"]
    assert (score["a"], score["b"], score["low"], score["high"]) == (0.5, 1.0, 0.5, 0.5)


def test_runs_with_different_ground_truth_are_refused(runs, tmp_path):
    other = [dataclasses.replace(ASKED[0], truth=dataclasses.replace(ASKED[0].truth, speed_mps=3))]
    b = run(tmp_path / "c", summaries(other + ASKED[1:], MEAN, adapted=PREDICTED))
    with pytest.raises(AvomniError, match="about 1 of 56 windows: speed_true_mps of window 0"):
        compare(runs[0], b)
    # Differences of the size of rounding errors are accepted.
    near = dataclasses.replace(ASKED[0].truth, speed_mps=ASKED[0].truth.speed_mps + 1e-9)
    asked = [dataclasses.replace(ASKED[0], truth=near), *ASKED[1:]]
    compare(runs[0], run(tmp_path / "d", summaries(asked, MEAN, adapted=PREDICTED)))


def test_runs_without_a_common_window_are_refused(runs, tmp_path):
    others = [dataclasses.replace(window, clip_id=f"other-{window.clip_id}") for window in ASKED]
    c = run(tmp_path / "c", summaries(others, MEAN, adapted=PREDICTED))
    with pytest.raises(AvomniError, match="no window in common"):
        compare(runs[0], c)


def test_missing_run_and_missing_answers_give_different_errors(runs, tmp_path):
    with pytest.raises(AvomniError, match="no such run"):
        compare(runs[0], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AvomniError, match="has no answers yet") as error:
        compare(tmp_path / "empty", runs[1])
    assert "06_evaluate" in str(error.value)
    foreign = tmp_path / "foreign.parquet"
    metrics.write(metrics.read(runs[0] / "06_evaluate/answers.parquet").select(["answer"]), foreign)
    with pytest.raises(AvomniError, match="not a table of answers"):
        compare(runs[0], foreign)


# One run over several seeds.


def scored(folder, metric="speed_mae_mps", **values):
    ladder = [{"name": name, "metric": metric, "value": value} for name, value in values.items()]
    files.write_json(folder / "06_evaluate" / "result.json", {"figures": {"ladder": ladder}})
    return folder


def test_spread_table_has_mean_deviation_and_share_of_the_mean_row(tmp_path):
    scores = [(6.0, 1.0), (8.0, 1.5), (7.0, 0.8)]
    runs = [scored(tmp_path / str(n), mean=m, adapted=a) for n, (m, a) in enumerate(scores)]
    metric, values = comparison.spread(runs)
    assert metric == "speed_mae_mps" and list(values.index) == ["mean", "adapted"]
    assert values.loc["adapted"].tolist() == [1.0, 1.5, 0.8]
    mean, deviation, share, *scores_of_runs = comparison.spread_table(metric, values).loc["adapted"]
    assert mean == pytest.approx(1.1)
    assert deviation == pytest.approx(statistics.stdev([1.0, 1.5, 0.8]))
    assert share == pytest.approx(statistics.fmean([1 / 6, 1.5 / 8, 0.8 / 7]))
    assert scores_of_runs == [1.0, 1.5, 0.8]


def test_share_is_missing_if_the_mean_row_is_missing_or_zero(tmp_path):
    for number, mean in enumerate(({}, {"mean": 0.0})):
        runs = [scored(tmp_path / f"{number}{n}", adapted=1.0, **mean) for n in "ab"]
        assert comparison.spread_table(*comparison.spread(runs)).loc["adapted"].isna().sum() == 1


def test_row_missing_in_one_run_is_left_out(tmp_path):
    runs = [scored(tmp_path / "a", mean=6, ctra=1), scored(tmp_path / "b", mean=6)]
    assert list(comparison.spread(runs)[1].index) == ["mean"]


def test_command_prints_a_table(tmp_path, capsys):
    runs = [
        scored(tmp_path / "a", mean=6.0, adapted=1.0),
        scored(tmp_path / "b", mean=6.0, adapted=2.0),
    ]
    assert comparison.main([str(run_dir) for run_dir in runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["adapted", "1.500", "0.707", "0.250", "1.000", "2.000"]


def test_spread_errors_have_no_traceback(tmp_path, capsys):
    one = scored(tmp_path / "a", mean=6.0)
    with pytest.raises(AvomniError, match="one run has no spread"):
        comparison.spread([one])
    with pytest.raises(AvomniError, match="no score there"):
        comparison.spread([one, tmp_path / "nowhere"])
    with pytest.raises(AvomniError, match="ade_m and speed_mae_mps"):
        comparison.spread([one, scored(tmp_path / "b", metric="ade_m", mean=6.0)])
    assert comparison.main([str(one)]) == 1
    assert capsys.readouterr().err.startswith("error: one run has no spread")
