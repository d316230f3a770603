"""Mean and spread over runs."""

import statistics

import pytest

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import comparison


def run(folder, metric="speed_mae_mps", **values):
    ladder = [{"name": name, "metric": metric, "value": value} for name, value in values.items()]
    files.write_json(folder / "06_evaluate" / "result.json", {"figures": {"ladder": ladder}})
    return folder


def test_mean_deviation_and_share_of_the_mean_row(tmp_path):
    scores = [(6.0, 1.0), (8.0, 1.5), (7.0, 0.8)]
    runs = [run(tmp_path / str(n), mean=m, adapted=a) for n, (m, a) in enumerate(scores)]
    metric, values = comparison.spread(runs)
    assert metric == "speed_mae_mps" and list(values.index) == ["mean", "adapted"]
    assert values.loc["adapted"].tolist() == [1.0, 1.5, 0.8]
    mean, deviation, share, *each = comparison.spread_table(metric, values).loc["adapted"]
    assert mean == pytest.approx(1.1)
    assert deviation == pytest.approx(statistics.stdev([1.0, 1.5, 0.8]))
    assert share == pytest.approx(statistics.fmean([1 / 6, 1.5 / 8, 0.8 / 7]))
    assert each == [1.0, 1.5, 0.8]


def test_without_a_mean_row_or_with_one_of_0_there_is_no_share(tmp_path):
    for number, of in enumerate(({}, {"mean": 0.0})):
        runs = [run(tmp_path / f"{number}{n}", adapted=1.0, **of) for n in "ab"]
        assert comparison.spread_table(*comparison.spread(runs)).loc["adapted"].isna().sum() == 1


def test_a_row_that_one_run_lacks_is_left_out(tmp_path):
    runs = [run(tmp_path / "a", mean=6, ctra=1), run(tmp_path / "b", mean=6)]
    assert list(comparison.spread(runs)[1].index) == ["mean"]


def test_the_command_prints_a_table(tmp_path, capsys):
    runs = [run(tmp_path / "a", mean=6.0, adapted=1.0), run(tmp_path / "b", mean=6.0, adapted=2.0)]
    assert comparison.main([str(each) for each in runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["adapted", "1.500", "0.707", "0.250", "1.000", "2.000"]


def test_what_cannot_be_spread_is_an_error_without_a_traceback(tmp_path, capsys):
    one = run(tmp_path / "a", mean=6.0)
    with pytest.raises(AvomniError, match="one run has no spread"):
        comparison.spread([one])
    with pytest.raises(AvomniError, match="no score there"):
        comparison.spread([one, tmp_path / "nowhere"])
    with pytest.raises(AvomniError, match="ade_m and speed_mae_mps"):
        comparison.spread([one, run(tmp_path / "b", metric="ade_m", mean=6.0)])
    assert comparison.main([str(one)]) == 1
    assert capsys.readouterr().err.startswith("error: one run has no spread")
