"""Figures that follow from the answers alone, on answers whose figures are known by hand."""

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import metrics
from avomni_lib.evaluation.baselines import Constant

CLIPS = ["a", "a", "b", "b"]
WINDOWS = [0, 1, 0, 3]
TRUE = [(10.0, 15.0), (12.0, 18.0), (0.0, 0.0), (4.0, 6.0)]
MEAN = Constant(8.0, 12.0)


def table_of(**said):
    """A table in which the mean stands beside the named models' (speed, displacement) or None."""
    parts = [metrics.rows("mean", CLIPS, WINDOWS, TRUE, [MEAN] * 4, [None] * 4)]
    for model, pairs in said.items():
        answers = ["?" if pair is None else str(pair) for pair in pairs]
        read = [None if pair is None else Constant(*pair) for pair in pairs]
        parts.append(metrics.rows(model, CLIPS, WINDOWS, TRUE, read, answers))
    return pa.concat_tables(parts)


def test_figures_by_hand():
    said = [(11.0, 16.0), (12.0, 20.0), (1.0, 0.0), (2.0, 6.0)]
    table = table_of(adapted=said)
    score = metrics.score(table, "adapted")
    assert score.speed_mae_mps == pytest.approx((1 + 0 + 1 + 2) / 4)
    assert score.speed_rmse_mps == pytest.approx(math.sqrt((1 + 0 + 1 + 4) / 4))
    assert score.displacement_mae_m == pytest.approx((1 + 2 + 0 + 0) / 4)
    figures = metrics.figures(table)
    assert figures == {
        "speed_mae_mps": {"mean": pytest.approx((2 + 4 + 8 + 4) / 4), "adapted": 1.0},
        "displacement_mae_m": {"mean": pytest.approx((3 + 6 + 12 + 6) / 4), "adapted": 0.75},
        "valid_share": 1.0,
        "valid_share_by_row": {"mean": 1.0, "adapted": 1.0},
        "num_windows": 4,
        "num_clips": 2,
    }


def test_an_answer_that_does_not_parse_counts_as_the_mean_and_is_counted():
    table = table_of(base=[(10.0, 15.0), None, (0.0, 0.0), None])
    score = metrics.score(table, "base")
    assert score.speed_mae_mps == pytest.approx((0 + abs(8 - 12) + 0 + abs(8 - 4)) / 4)
    assert score.displacement_mae_m == pytest.approx((0 + abs(12 - 18) + 0 + abs(12 - 6)) / 4)
    assert (score.num_valid, score.valid_share) == (2, 0.5)
    nothing = metrics.score(table_of(blind=[None] * 4), "blind")
    mean = metrics.score(table, "mean")
    assert nothing.speed_mae_mps == mean.speed_mae_mps and nothing.valid_share == 0.0


def test_the_mean_stands_in_for_its_own_window_whatever_the_order_of_rows():
    by_window = [Constant(float(i), 10.0 * i) for i in range(4)]
    mean = metrics.rows("mean", CLIPS, WINDOWS, TRUE, by_window, [None] * 4)
    base = metrics.rows("base", CLIPS, WINDOWS, TRUE, [None] * 4, ["?"] * 4)
    expected = {
        key: (i - TRUE[i][0], 10 * i - TRUE[i][1])
        for i, key in enumerate(zip(CLIPS, WINDOWS, strict=True))
    }
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        of = metrics.errors(pa.concat_tables([mean, base.take(order)]), "base")
        keys = zip(of.clip_ids, of.windows, strict=True)
        errors = zip(of.speed_mps, of.displacement_m, strict=True)
        assert dict(zip(keys, errors, strict=True)) == expected


def test_figures_can_be_recomputed_from_the_file(tmp_path):
    table = table_of(base=[(9.0, 1.0), None, (3.0, 0.5), (1.0, 1.0)], blind=[None] * 4)
    path = metrics.write(table, tmp_path / "answers.parquet")
    again = metrics.read(path)
    assert again.equals(table)
    assert metrics.figures(again) == metrics.figures(table)
    assert again.column_names == [
        "clip_id",
        "window",
        "model",
        "answer",
        "speed_mps",
        "speed_true_mps",
        "displacement_m",
        "displacement_true_m",
    ]
    constant = again.filter(pa.array([name == "mean" for name in again["model"].to_pylist()]))
    assert constant["answer"].null_count == 4 and constant["speed_mps"].null_count == 0


def test_windows_that_only_one_model_answered_for_are_refused():
    table = table_of(base=[(1.0, 1.0)] * 4)
    for broken in (table.slice(0, 7), pa.concat_tables([table, table.slice(7, 1)])):
        with pytest.raises(AvomniError, match="'base' has"):
            metrics.figures(broken)


def test_worst_windows_are_one_a_clip_and_count_what_does_not_parse():
    table = table_of(base=[(10.5, 0.0), (9.0, 0.0), None, (4.0, 0.0)])
    worst = metrics.worst(table, "base", 4)
    assert [(row["clip_id"], row["window"]) for row in worst] == [("b", 0), ("a", 1)]
    assert worst[0]["answer"] == "?" and worst[0]["speed_mps"] is None
    assert len(metrics.worst(table, "base", 1)) == 1


def test_a_damaged_or_foreign_file_gets_one_clear_message(tmp_path):
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


pairs = st.one_of(st.none(), st.tuples(st.floats(-5, 60), st.floats(0, 500)))


@given(said=st.lists(pairs, min_size=4, max_size=4))
def test_errors_agree_with_a_plain_loop(said):
    of = metrics.errors(table_of(base=said), "base")
    for i, pair in enumerate(said):
        speed, displacement = pair or (MEAN.speed_mps, MEAN.displacement_m)
        assert of.valid[i] == (pair is not None)
        assert of.speed_mps[i] == speed - TRUE[i][0]
        assert of.displacement_m[i] == displacement - TRUE[i][1]
