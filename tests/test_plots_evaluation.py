"""Plots of the score: no clipping, and titles and drawings that match the numbers."""

import copy

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip import manoeuvre
from avomni_lib.evaluation import metrics, trajectories
from avomni_lib.evaluation.claims import FEWEST_CLIPS, claims
from avomni_lib.evaluation.scores import metric
from avomni_lib.notebook.pages import wording
from avomni_lib.notebook.plots import canvas, evaluation, ladder, paths, targets
from avomni_lib.training.targets import TARGETS, Content, target
from tests import answered_windows, cached_run
from tests.pictures import finding, fits_a_notebook, names_its_axes
from tests.published_set import Drive, clip_id_of

FEW = {"mean": 1.0, "base": 0.8, "trained_blind": 0.9, "adapted": 0.1}
ROW = {"name": "mean", "metric": "speed_mae_mps", "valid_share": 1.0, "num_windows": 90}


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    p = cached_run.make(tmp_path_factory.mktemp("scored"), processing={"horizon_s": 6.4})
    cache = Cache.open(p.cache_dir)
    return Windows(cache, cached_run.LENGTH, cached_run.STRIDE, horizon_s=6.4)


@pytest.fixture(scope="module")
def tables(windows):
    """Target -> answers of every row; for full_v1 only a few rows, with samples."""
    by_target = {
        name: answered_windows.answers(windows, name) for name in TARGETS if name != "full_v1"
    }
    return by_target | {"full_v1": answered_windows.answers(windows, "full_v1", FEW, samples=2)}


@pytest.fixture(scope="module")
def scores(tables):
    return {name: metrics.figures(table) for name, table in tables.items()}


@pytest.fixture(scope="module")
def pictures(windows, tables, scores):
    """Every plot of each target, and the plots of a score on a single clip."""
    drawn = {"manoeuvre": targets.manoeuvres(windows), "path": targets.paths(windows, 3)}
    for name, table in tables.items():
        plots = evaluation.calibration(table, scores[name]) | {
            "ladder": ladder.ladder(scores[name])
        }
        if name in ("summary_v1", "full_v1"):
            plots |= {
                "slices": ladder.slices(scores[name]),
                "worst": paths.worst(table, windows, 2),
            }
        else:
            plots["typical"] = paths.typical(table, windows, 1)
        drawn |= {f"{name} {kind}": picture for kind, picture in plots.items()}
    alone = tables["full_v1"].filter(pc.equal(tables["full_v1"]["clip_id"], windows[0].clip_id))
    figures = metrics.figures(alone)
    drawn |= {"alone ladder": ladder.ladder(figures), "alone slices": ladder.slices(figures)}
    plots = evaluation.calibration(alone, figures)
    return drawn | {f"alone {kind}": picture for kind, picture in plots.items()}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def dots(axes):
    """(x, y) of every dot of a ladder, in the order of drawing."""
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]


def test_plots_fit_1200_px_without_clipping(pictures):
    assert len(pictures) == 2 + 5 + 6 + 2 * 2 + 3 + 5
    for name, picture in pictures.items():
        fits_a_notebook(name, picture)


def test_plots_have_a_finding_and_axis_labels(pictures):
    for name, picture in pictures.items():
        assert len(finding(picture)) > 10, name
        names_its_axes(name, picture)


def test_every_target_has_its_calibration_plots(tables, scores):
    drawn = {
        name: set(evaluation.calibration(table, scores[name])) for name, table in tables.items()
    }
    assert drawn == {
        "summary_v1": {"predicted"},
        "future_v1": {"horizon"},
        "meta_v1": {"manoeuvres"},
        "coc_v1": set(),
        "full_v1": {"predicted", "horizon", "manoeuvres"},
    }


@pytest.mark.parametrize("name", ["summary_v1", "future_v1", "meta_v1"])
def test_ladder_draws_value_interval_and_difference_of_every_row(name, pictures, scores):
    values, differences, notes = pictures[f"{name} ladder"].axes
    rows = scores[name]["ladder"]
    assert dots(values) == [(row["value"], y) for y, row in enumerate(rows)]
    others = [(y, row) for y, row in enumerate(rows) if row["name"] != "adapted"]
    assert dots(differences) == [(row["difference_to_model"], y) for y, row in others]
    whiskers = {tuple(line.get_xdata()) for line in values.lines if line.get_marker() == "|"}
    assert whiskers == {(row["low"], row["high"]) for row in rows}
    assert texts(notes) == [f"{row['valid_share']:.1%}" for row in rows]
    labels = [label.get_text() for label in values.get_yticklabels()]
    assert labels == [wording.row(row["name"]) for row in rows] and len(set(labels)) == len(rows)
    blue = [line.get_color() == canvas.BLUE for line in values.lines if line.get_marker() == "o"]
    assert blue == [row["name"] == "adapted" for row in rows]


def test_ladder_title_lists_the_rows_the_model_beats(scores):
    figures = copy.deepcopy(scores["summary_v1"])
    for row in figures["ladder"]:
        row |= {"difference_low": 0.1, "difference_high": 0.3}
    text = ladder.ladder_finding(figures)
    assert text.startswith("The adapted model beats 10 of 10 other rows. ")
    assert f"on {figures['num_windows']} windows of 12 held-out clips" in text
    by_name = {row["name"]: row for row in figures["ladder"]}
    by_name["one_camera"] |= {"difference_low": -0.1, "difference_high": 0.2}
    by_name["ego_motion"] |= {"difference_low": -0.3, "difference_high": -0.1}
    assert ladder.ladder_finding(figures).startswith(
        "The adapted model beats 8 of 10 other rows; better than it: ego motion, ridge; "
        "no difference shown to: one camera. "
    )
    for row in figures["ladder"]:
        row["num_clips"] = FEWEST_CLIPS - 1
    assert ladder.ladder_finding(figures).endswith(
        f"of {FEWEST_CLIPS - 1} held-out clips: too few to tell it from any other row, it takes "
        f"{FEWEST_CLIPS} clips"
    )


@given(
    bounds=st.tuples(st.floats(-5, 5), st.floats(-5, 5)).map(sorted),
    name=st.sampled_from(["speed_mae_mps", "ade_m", "macro_f1", "cause_word_f1"]),
    num_clips=st.integers(1, 40),
)
def test_ladder_and_claims_agree_on_the_better_row(bounds, name, num_clips):
    row = ROW | {
        "metric": name,
        "num_clips": num_clips,
        "value": 1.0,
        "difference_to_model": sum(bounds) / 2,
    }
    row |= dict(zip(("difference_low", "difference_high"), bounds, strict=True))
    model = row | {"name": "adapted", "value": 2.0}
    (claim,) = claims([row, model])
    assert claim["holds"] == (wording.standing(row) == wording.BEATEN)


def test_outlier_row_is_drawn_at_the_axis_edge(scores):
    figures = copy.deepcopy(scores["summary_v1"])
    rows = {row["name"]: row for row in figures["ladder"]}
    rows["base"] |= {"value": 1e6, "low": 9e5, "high": 2e6, "difference_to_model": 1e6}
    rows["base"] |= {"difference_low": 9e5, "difference_high": 2e6}
    values, differences, _ = ladder.ladder(figures).axes
    for axes in (values, differences):
        assert axes.get_xlim()[1] < 50
        (edge,) = [line for line in axes.lines if line.get_marker() == ">"]
        assert edge.get_ydata()[0] == list(rows).index("base")
    assert texts(values)[list(rows).index("base")].startswith("1,000,000 ")


def test_slices_title_names_the_weakest_slice_with_enough_clips(scores):
    figures = copy.deepcopy(scores["summary_v1"])
    drawn = {row["by"] for row in figures["slices"]}
    assert drawn >= {"speed", "turn", "country", "hour", "platform"}
    common = {
        "by": "country",
        "metric": "speed_mae_mps",
        "num_windows": 90,
        "low": 1.0,
        "high": 3.0,
    }
    large, small = common | {"num_clips": FEWEST_CLIPS}, common | {"num_clips": FEWEST_CLIPS - 1}
    figures["slices"] = [
        large | {"value": "Italy", "model": 2.0, "mean": 5.0},
        large | {"value": "Spain", "model": 1.5, "mean": 5.0},
        small | {"value": "Malta", "model": 9.0, "mean": 5.0},
        large | {"by": "platform", "value": "hyperion_8", "model": 8.0, "mean": 5.0},
    ]
    mae = next(row for row in figures["ladder"] if row["name"] == "adapted")["value"]
    title = finding(ladder.slices(figures))
    assert title == (
        f"Of slices of {FEWEST_CLIPS} clips or more the weakest is country Italy, with a mean "
        f"absolute error of the speed of 2.00 m/s, {mae:.2f} over all; each beats predict the mean"
    ), "nothing is said of a few clips, nor of what all windows have in common"
    (axes,) = ladder.slices(figures).axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_ydata()[0] for line in hollow] == [2]
    figures["slices"][0]["mean"] = 1.9
    assert ladder.slices_finding(figures).endswith("no better than predict the mean: country Italy")


def test_slices_plot_shows_those_with_the_most_windows(scores):
    figures = copy.deepcopy(scores["summary_v1"])
    figures["slices"] = [
        {"by": "country", "value": f"C{n}", "metric": "speed_mae_mps", "num_windows": 50 - n}
        | {"num_clips": 20, "model": 1.0 + n / 100, "low": 0.5, "high": 2.0, "mean": 5.0}
        for n in range(25)
    ]
    (axes,) = ladder.slices(figures).axes
    labels = [label.get_text().split()[0] for label in axes.get_yticklabels()]
    assert labels == [f"C{n}" for n in range(10)]
    assert axes.get_title(loc="left") == "country (the 10 of 25 with the most windows)"


def test_speed_plot_draws_predictions_against_ground_truth(tables, windows):
    table = tables["summary_v1"]
    picture = evaluation.predicted_against_true(table)
    adapted = (
        table.filter(pc.equal(table["model"], "adapted")).to_pandas().dropna(subset=["speed_mps"])
    )
    cloud = [line for line in picture.axes[1].lines if line.get_marker() == "o"][0]
    assert np.array_equal(cloud.get_xydata(), adapted[["speed_true_mps", "speed_mps"]].to_numpy())
    errors = adapted["speed_mps"] - adapted["speed_true_mps"]
    near = (errors.abs() <= 1).sum() / len(windows)
    assert f"for {near:.0%} of the windows" in finding(picture), "an unread answer is not near"
    assert finding(picture).endswith(f"its mean error is {errors.mean():+.2f} m/s")
    assert "not drawn, as not read: 3;" in picture.axes[1].get_title(loc="left")
    lines = {line.get_label().partition(",")[0]: line for line in picture.axes[1].lines}
    means = lines["mean predicted"]
    assert len(means.get_xdata()) == evaluation.NUM_PARTS
    assert np.all(np.diff(means.get_xdata()) > 0)
    assert means.get_ydata().mean() == pytest.approx(adapted["speed_mps"].mean(), rel=0.02)


def test_horizon_plot_compares_paths_over_time(scores, pictures):
    figures, picture = scores["future_v1"]["metrics"], pictures["future_v1 horizon"]
    lines = {line.get_label(): line for line in picture.axes[0].lines}
    for name in evaluation.PATHS:
        expected = [figures[name][key]["value"] for key in trajectories.MOMENTS_S]
        assert lines[wording.row(name)].get_ydata().tolist() == expected
    assert finding(picture).startswith(
        "Mean distance after 6.4 s, the nearest first: adapted model "
    )


def test_confusion_matrix_counts_every_window(tables, pictures, windows):
    table, picture = tables["meta_v1"], pictures["meta_v1 manoeuvres"]
    adapted = table.filter(pc.equal(table["model"], "adapted")).to_pylist()
    mean = table.filter(pc.equal(table["model"], "mean")).to_pylist()
    read = target("meta_v1").read
    for axes, part in zip(picture.axes, ("along", "across"), strict=True):
        numbers = {}
        names = [label.get_text() for label in axes.get_yticklabels()]
        for text in axes.texts:
            col, row = text.get_position()
            numbers[names[row], names[col]] = int(text.get_text())
        expected = {}
        for answer, fallback in zip(adapted, mean, strict=True):
            predicted = getattr(read(answer["answer"]) or read(fallback["answer"]), part)
            pair = answer[f"{part}_true"], predicted
            expected[pair] = expected.get(pair, 0) + 1
        assert numbers == expected and sum(expected.values()) == len(windows)
        right = sum(count for (actual, predicted), count in expected.items() if actual == predicted)
        assert f"{part} the road for {right / len(windows):.0%} (" in finding(picture)


@pytest.mark.parametrize("name", ["summary_v1", "full_v1"])
def test_worst_plot_shows_frames_and_answer_of_each_window(name, tables, windows):
    table = tables[name]
    picture = paths.worst(table, windows, 2)
    rows = metrics.worst(table, "adapted", 2)
    for number, row in enumerate(rows):
        first, last, _, card = picture.axes[4 * number : 4 * number + 4]
        text = card.texts[0].get_text()
        assert text.startswith(f"clip {row['clip_id'][:8]}, window {row['window']}\n")
        assert f"ground truth: {row['speed_true_mps']:.2f} m/s" in " ".join(text.split())
        index = [(w.clip_id, w.number) for w in windows].index((row["clip_id"], row["window"]))
        grid, frames = windows.cache.grid, windows.frames(index)
        for axes, image in ((first, frames[0]), (last, frames[-1])):
            scale = canvas.scale_for(image.shape[1], paths.GRID_PX)
            assert np.array_equal(axes.images[0].get_array(), canvas.name_tiles(image, grid, scale))


def test_typical_windows_have_the_median_error(tables, windows):
    table = tables["summary_v1"]
    adapted = table.filter(pc.equal(table["model"], "adapted")).to_pandas()
    mean = table.filter(pc.equal(table["model"], "mean")).to_pandas()
    predicted = adapted["speed_mps"].fillna(mean["speed_mps"])
    median = float(np.median((predicted - adapted["speed_true_mps"]).abs()))
    assert f"is {median:.2f} m/s, and here" in finding(paths.typical(table, windows, 2))


def test_unreadable_answer_is_drawn_verbatim(tables, windows):
    table = tables["summary_v1"]
    picture = paths.worst(table, windows, 3)
    cards = [text.get_text() for axes in picture.axes for text in axes.texts]
    assert any("adapted model: cannot be read\n$x$ babble_{ <b>&amp;</b>" in card for card in cards)


def test_driven_path_is_relative_to_the_first_frame(windows):
    for index in range(0, len(windows), 5):
        window, times = windows[index], windows.times_us(index) / 1e6
        drive = next(
            d for d in map(Drive, range(12)) if clip_id_of(d.clip_number) == window.clip_id
        )
        arc = drive.travelled(times) - drive.travelled(times[0])
        yaw = drive.curvature * arc
        expected = np.stack([np.sin(yaw), 1 - np.cos(yaw)], axis=1) / drive.curvature
        assert paths.driven_m(windows.egomotion(index)) == pytest.approx(expected, abs=0.02)


@given(
    num=st.integers(2, 20),
    length_m=st.floats(0.01, 200),
    aside_m=st.floats(-3, 3),
    radius_m=st.floats(20, 500),
)
def test_predicted_length_is_drawn_along_the_path(num, length_m, aside_m, radius_m):
    angle = np.linspace(0, 0.5, num)
    path = radius_m * np.stack([np.sin(angle), 1 - np.cos(angle)], axis=1)
    on_it = paths.beside(path, length_m, 0.0)
    assert np.linalg.norm(np.diff(on_it, axis=0), axis=1).sum() == pytest.approx(length_m)
    assert on_it[0] == pytest.approx([0, 0])
    moved = paths.beside(path, length_m, aside_m)
    assert np.linalg.norm(moved - on_it, axis=1) == pytest.approx(abs(aside_m))
    assert np.sign(moved[0, 1]) == np.sign(aside_m), "to the left is positive"


def test_stationary_car_has_a_straight_path():
    assert paths.beside(np.zeros((4, 2)), 5.0, 0.0)[-1] == pytest.approx([5, 0])


def test_answer_is_described_in_short():
    assert paths.describe(None) == "cannot be read"
    content = Content(speed_mps=5.234, displacement_m=42.15, along="hold", across="nudge left")
    assert paths.describe(content) == "5.23 m/s, 42.1 m; hold, nudge left"
    path = tuple((float(n), -0.5 * n) for n in range(1, 17))
    assert paths.describe(Content(waypoints_m=path)) == "in 6.4 s 16.0 m ahead, 8.0 m right"


def test_manoeuvre_plot_shows_label_signals_and_thresholds(windows):
    indices = [0, len(windows) // 2, len(windows) - 1]
    picture = targets.manoeuvres(windows, indices)
    places = np.array(picture.axes).reshape(4, len(indices))
    for column, index in zip(places.T, indices, strict=True):
        label = manoeuvre.decide(windows.future(index))
        head = column[0].get_title(loc="left").splitlines()
        assert head[0].startswith(windows[index].clip_id[:8])
        assert head[1] == f"{label.along}, {label.across}"
        signals = manoeuvre.signals(windows.future(index))
        drawn = [axes.lines[-1].get_ydata() for axes in column]
        assert np.array_equal(drawn[0], signals.speed_mps)
        assert np.array_equal(drawn[1], signals.acceleration_mps2)
        assert np.array_equal(drawn[2], np.degrees(signals.heading_rad))
        assert np.array_equal(drawn[3], signals.offset_m)
        lines = {(line.get_ydata()[0], line.get_linestyle()) for line in column[1].lines[:-1]}
        thresholds = manoeuvre.THRESHOLDS
        begin = {
            (sign * x, "-")
            for x in (thresholds.gentle_mps2, thresholds.strong_mps2)
            for sign in (1, -1)
        }
        ends = (thresholds.gentle_end_mps2, thresholds.strong_end_mps2)
        assert lines == begin | {(sign * x, ":") for x in ends for sign in (1, -1)}


def test_manoeuvre_plot_picks_different_manoeuvres(windows):
    labels = [manoeuvre.decide(windows.future(index)) for index in range(len(windows))]
    picture = targets.manoeuvres(windows)
    heads = [axes.get_title(loc="left") for axes in picture.axes if axes.get_title(loc="left")]
    shown = [tuple(head.splitlines()[1].split(", ")) for head in heads]
    assert len(set(shown)) == len(shown) == min(len(set(labels)), targets.NUM_SHOWN)
    along = {label.along for label in labels}
    assert len({a for a, _ in shown}) >= min(len(along), 2)


def test_future_path_plot_matches_the_target(windows):
    content = target("future_v1").of(windows.truth(7))
    _, view = targets.paths(windows, 7).axes
    (line,) = [line for line in view.lines if line.get_label().startswith("16 waypoints")]
    right, forward = np.array(content.waypoints_m)[:, 1] * -1, np.array(content.waypoints_m)[:, 0]
    assert np.allclose(line.get_xydata(), np.stack([right, forward], axis=1))


def test_missing_future_path_is_an_error(windows, tmp_path):
    p = cached_run.make(tmp_path)
    short = Windows(Cache.open(p.cache_dir), cached_run.LENGTH, cached_run.STRIDE)
    last = max(i for i, window in enumerate(short) if window.clip_id == short[0].clip_id)
    for draw in (lambda: targets.paths(short, last), lambda: targets.manoeuvres(short, [last])):
        with pytest.raises(AvomniError, match="ends less than 6.4 s after") as caught:
            draw()
        assert short[last].clip_id in str(caught.value)


def test_numbers_are_formatted_consistently():
    assert wording.number(1.0754) == "1.08" and wording.number(5.5876, sign=True) == "+5.59"
    assert wording.number(1_234.5) == "1,234" and wording.number(None) == "–"
    assert wording.number(float("nan")) == "–" and wording.interval(None, None) == ""
    assert wording.interval(0.9, 1.31) == "0.90 to 1.31"
    assert wording.amount(metric("speed_mae_mps"), 1.0754) == "1.08 m/s"
    assert wording.amount(metric("macro_f1"), 0.5) == "0.50"
    assert wording.axis(metric("macro_f1")).endswith("(more is better)")
