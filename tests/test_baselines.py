"""Baselines without images: constants, motion models, and regression on past motion."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.spatial.transform import Rotation

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip import egomotion, trajectory
from avomni_lib.etl.clip.trajectory import Trajectory
from avomni_lib.evaluation import baselines, trajectories
from avomni_lib.evaluation.baselines import EgoMotion
from avomni_lib.training.targets import Content, motion_models, target
from avomni_lib.training.targets.future import FUTURE_V1
from avomni_lib.training.targets.meta import META_V1
from avomni_lib.training.targets.motion_models import Motion

SUMMARY = target("summary_v1")
DURATION_S = 7.5
PAST_S = np.arange(-16, 0) * 0.1
FUTURE_S = np.arange(1, 65) * 0.1
speeds = st.floats(-15, 40)
accels = st.floats(-6, 4)
yaw_rates = st.floats(-0.8, 0.8) | st.floats(-1e-3, 1e-3) | st.just(0.0)


def straight(speed, accel=0.0, t=PAST_S):
    xy = np.stack([speed * t + accel * t**2 / 2, 0 * t], -1)
    return Trajectory(t, xy, 0 * t, speed)


def circle(speed, radius, t=PAST_S):
    turned = speed * t / radius
    xy = np.stack([radius * np.sin(turned), radius * (1 - np.cos(turned))], -1)
    return Trajectory(t, xy, turned, speed)


# Constants.


def test_mean_and_median_are_taken_per_quantity():
    true = [Content(0.0, 30.0, 30.0), Content(3.0, 0.0, 0.0), Content(12.0, 6.0, 6.0)]
    both = baselines.constants(iter(true))
    assert both == {"mean": Content(5.0, 12.0, 12.0), "median": Content(3.0, 6.0, 6.0)}


@given(
    true=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 400)), min_size=1, max_size=30),
    other=st.tuples(st.floats(0, 50), st.floats(0, 400)),
)
def test_median_minimises_mae_and_mean_minimises_rmse(true, other):
    both = baselines.constants(Content(speed, path) for speed, path in true)
    for name, values, candidate in (
        ("speed_mps", np.array([speed for speed, _ in true]), other[0]),
        ("displacement_m", np.array([path for _, path in true]), other[1]),
    ):
        median, mean = getattr(both["median"], name), getattr(both["mean"], name)
        assert np.abs(values - median).mean() <= np.abs(values - candidate).mean() + 1e-9
        assert np.square(values - mean).mean() <= np.square(values - candidate).mean() + 1e-9


def test_constants_average_waypoints_and_take_the_most_frequent_words():
    paths = np.random.default_rng(0).normal(0, 20, (5, 16, 2))
    words = zip(
        ["hold", "stop", "stop", "hold", "accelerate"],
        ["straight", "left turn", "left turn", "straight", "left turn"],
        strict=True,
    )
    both = baselines.constants(
        Content(waypoints_m=tuple(map(tuple, path)), along=along, across=across)
        for path, (along, across) in zip(paths, words, strict=True)
    )
    assert np.array(both["mean"].waypoints_m) == pytest.approx(paths.mean(axis=0))
    assert np.array(both["median"].waypoints_m) == pytest.approx(np.median(paths, axis=0))
    for predicted in both.values():
        # Ties between words go to the first one.
        assert (predicted.along, predicted.across) == ("hold", "left turn")
        assert predicted.speed_mps is None
        assert FUTURE_V1.parse(FUTURE_V1.write(predicted))


def test_an_empty_training_split_is_refused():
    with pytest.raises(AvomniError, match="no training window"):
        baselines.constants([])


# Closed forms.


@pytest.mark.parametrize("speed", [0.0, 0.3, 13.9, -2.0])
@pytest.mark.parametrize("model", motion_models.MODELS.values(), ids=motion_models.MODELS)
def test_both_models_are_exact_on_a_straight_line_at_constant_speed(model, speed):
    motion = model(straight(speed))
    after = straight(speed, t=FUTURE_S)
    for ends in ("first", "last"):
        future = motion_models.truth_of(motion, 7.5, ends).future
        assert future.xy_m == pytest.approx(after.xy_m, abs=1e-9)
        assert future.yaw_rad == pytest.approx(0, abs=1e-9)
        assert future.speed_mps == pytest.approx(speed)
        assert future.t_s == pytest.approx(FUTURE_S)
    window = motion_models.truth_of(motion, 7.5, "first")
    assert window.path_m == pytest.approx(abs(speed) * 7.5)
    assert window.chord_m == pytest.approx(abs(speed) * 7.5)
    assert window.speed_mps == pytest.approx(abs(speed))


@pytest.mark.parametrize(("speed", "radius"), [(10.0, 40.0), (5.0, -12.0), (-2.0, 8.0), (30, 1e7)])
def test_ctra_is_exact_on_a_circle_and_constant_velocity_is_not(speed, radius):
    past, after = circle(speed, radius), circle(speed, radius, FUTURE_S)
    turning = motion_models.ctra(past)
    assert turning.accel_mps2 == pytest.approx(0, abs=1e-9)
    assert turning.yaw_rate_radps == pytest.approx(speed / radius, abs=1e-12)
    for ends in ("first", "last"):
        # Also after the window: a circle is the same from every point on it.
        future = motion_models.truth_of(turning, 7.5, ends).future
        assert future.xy_m == pytest.approx(after.xy_m, abs=1e-6)
        assert future.yaw_rad == pytest.approx(after.yaw_rad, abs=1e-9)
    window = motion_models.truth_of(turning, 7.5, "first")
    assert window.path_m == pytest.approx(abs(speed) * 7.5)
    assert window.chord_m == pytest.approx(abs(2 * radius * math.sin(speed * 7.5 / radius / 2)))

    on = motion_models.truth_of(motion_models.constant_velocity(past), 7.5, "last").future.xy_m
    turned = speed * FUTURE_S / radius
    apart = radius * np.hypot(turned - np.sin(turned), 1 - np.cos(turned))
    assert trajectories.distances(on, after.xy_m) == pytest.approx(np.abs(apart), abs=1e-6)


@pytest.mark.parametrize("speed", [0.0, 1e-9, -1e-9, -0.03])
def test_stopped_car_does_not_start_backwards(speed):
    t = PAST_S
    past = Trajectory(t, np.stack([-1.5 * t**2, 0 * t], -1), 0.1 * t, speed)
    assert not motion_models.ctra(past).trajectory().xy_m.any()


def test_ctra_estimates_acceleration_in_a_turn():
    driven = Motion(8.0, 1.5, 0.2)
    xy, yaw = driven.poses(PAST_S)
    motion = motion_models.ctra(Trajectory(PAST_S, xy, yaw, 8.0))
    assert motion.accel_mps2 == pytest.approx(1.5, abs=1e-3)
    assert motion.yaw_rate_radps == pytest.approx(0.2)


@pytest.mark.parametrize("num", [0, 1, 4])
def test_with_too_few_poses_ctra_is_constant_velocity(num):
    past = circle(10.0, 30.0, PAST_S[len(PAST_S) - num :])
    assert motion_models.ctra(past) == motion_models.constant_velocity(past) == Motion(10.0)


# Properties of any motion.


@given(speeds, accels, yaw_rates, st.floats(0, 15))
@settings(max_examples=60)
def test_positions_and_path_lengths_are_integrals_of_speed_and_heading(speed, accel, yaw_rate, t):
    motion = Motion(speed, accel, yaw_rate)
    stop = motion.stops_s

    def speed_at(s):
        return speed + accel * s if s < stop else 0.0

    def integral(of):
        return quad(of, 0, min(t, stop), limit=200, epsabs=1e-10)[0]

    xy, yaw = motion.poses(np.array([t]))
    assert xy[0, 0] == pytest.approx(
        integral(lambda s: speed_at(s) * math.cos(yaw_rate * s)), abs=1e-6
    )
    assert xy[0, 1] == pytest.approx(
        integral(lambda s: speed_at(s) * math.sin(yaw_rate * s)), abs=1e-6
    )
    assert motion.driven_m(t) == pytest.approx(integral(lambda s: abs(speed_at(s))), abs=1e-6)
    assert yaw[0] == pytest.approx(yaw_rate * min(t, stop))


@given(speeds, accels, yaw_rates, st.floats(0, 10))
def test_motion_continued_after_a_pause_equals_uninterrupted_motion(
    speed, accel, yaw_rate, pause_s
):
    motion = Motion(speed, accel, yaw_rate)
    (place,), (turned,) = motion.poses(np.array([pause_s]))
    then = motion.after(pause_s).trajectory()
    cos, sin = math.cos(turned), math.sin(turned)
    seen = place + then.xy_m @ np.array([[cos, sin], [-sin, cos]])
    whole, yaw = motion.poses(pause_s + FUTURE_S)
    assert seen == pytest.approx(whole, abs=1e-6)
    assert turned + then.yaw_rad == pytest.approx(yaw, abs=1e-9)


@given(speeds, accels, yaw_rates, st.floats(0.5, 60))
def test_rollout_of_any_motion_is_drivable(speed, accel, yaw_rate, duration):
    window = motion_models.truth_of(Motion(speed, accel, yaw_rate), duration, "first")
    assert 0 <= window.chord_m <= window.path_m * (1 + 1e-9) + 1e-9
    assert window.speed_mps == pytest.approx(window.path_m / duration)
    both = speed, window.future.speed_mps
    assert min(both) >= 0 or max(both) <= 0
    assert np.isfinite(window.future.xy_m).all()


# As predictions.


@pytest.mark.parametrize("name", motion_models.MODELS)
@pytest.mark.parametrize("form", [SUMMARY, FUTURE_V1, META_V1], ids=lambda form: form.name)
@pytest.mark.parametrize(
    "past", [straight(8.0), straight(6.0, -2.0), circle(9.0, 30.0), straight(-1.0), straight(0.0)]
)
def test_motion_models_write_readable_predictions_for_each_target(name, form, past):
    predicted = motion_models.predict(name, past, form, 7.5)
    assert form.parse(form.write(predicted)) is not None


def test_summary_covers_the_window_and_future_starts_after_it():
    past = straight(6.0, -2.0)
    assert motion_models.predict("ctra", past, SUMMARY, 7.5).displacement_m == pytest.approx(9.0)
    assert motion_models.predict("constant_velocity", past, SUMMARY, 7.5).speed_mps == 6.0
    # The past ends at the last frame here: the braking is still to come.
    at_last = motion_models.predict("ctra", past, FUTURE_V1, 7.5).waypoints_m
    assert at_last[-1] == pytest.approx((9.0, 0.0))
    at_first = motion_models.predict("ctra", past, replace(FUTURE_V1, history_ends="first"), 7.5)
    assert at_first.waypoints_m[-1] == pytest.approx((0.0, 0.0))


def test_past_window_is_not_predicted_from_its_last_frame():
    later = replace(SUMMARY, history_ends="last")
    assert motion_models.predict("ctra", straight(6.0), later, 7.5) == Content()


def test_motion_models_have_no_row_for_targets_with_scenes():
    class Train(list):
        truth = list.__getitem__

    train = Train([motion_models.truth_of(Motion(6.0), 7.5, "first")])
    rows = baselines.texts(replace(SUMMARY, scenes=True), train, None, [0, 1])
    assert set(rows) == {"mean", "median"}


# Inputs.


def a_track(seed=0, hz=20, noise_m=0.0):
    """Poses and speeds of a 20 s drive in the form of the cache's `track` and `egomotion`."""
    rng = np.random.default_rng(seed)
    t = np.arange(0, 20, 1 / hz)
    speed = 9 + 3 * np.sin(0.4 * t + rng.uniform(0, 6))
    yaw = 0.8 * np.sin(0.25 * t + rng.uniform(0, 6))
    fine = np.arange(0, 20, 0.001)
    speed_fine, yaw_fine = np.interp(fine, t, speed), np.interp(fine, t, yaw)
    x, y = (
        np.cumsum(speed_fine * np.cos(yaw_fine)) / 1e3,
        np.cumsum(speed_fine * np.sin(yaw_fine)) / 1e3,
    )
    xyz = np.stack([np.interp(t, fine, x), np.interp(t, fine, y), 0 * t], -1)
    xyz[:, :2] += rng.normal(0, noise_m, (len(t), 2))
    turn = Rotation.from_euler("z", yaw[:, None]).as_quat()
    velocity = np.stack([speed * np.cos(yaw), speed * np.sin(yaw), 0 * t], -1)
    driven = egomotion.path_length(xyz)[:, None]
    track = np.concatenate([t[:, None] * 1e6, xyz, turn, driven], axis=1)
    rows = np.concatenate([xyz, turn, velocity, driven], axis=1)
    return t, speed, track, rows


def test_motion_models_ignore_poses_after_t0():
    _, _, track, rows = a_track()
    at = 200
    now_us = int(track[at, 0])
    spoilt = track.copy()
    spoilt[at + 1 :, 1:4] = 1e3
    pasts = [trajectory.past(now_us, rows[at], poses) for poses in (track, spoilt, track[: at + 1])]
    after = trajectory.future(now_us, rows[at], track)
    whole = Trajectory(
        np.append(pasts[0].t_s, after.t_s),
        np.append(pasts[0].xy_m, after.xy_m, axis=0),
        np.append(pasts[0].yaw_rad, after.yaw_rad),
        pasts[0].speed_mps,
    )
    for name in motion_models.MODELS:
        for form in (SUMMARY, FUTURE_V1, META_V1):
            predicted = [motion_models.predict(name, past, form, 7.5) for past in (*pasts, whole)]
            assert predicted[0] == predicted[1] == predicted[2] == predicted[3]


@pytest.mark.parametrize("seed", range(3))
def test_ctra_beats_constant_velocity_with_noisy_positions(seed):
    # Wheel speed and positions with 2 cm of noise, as a real car records them.
    t, speed, track, rows = a_track(seed, noise_m=0.02)
    assert track[-1, 8] / (t[-1] - t[0]) == pytest.approx(np.trapezoid(speed, t) / t[-1], rel=0.01)
    off = {name: [] for name in motion_models.MODELS}
    for at in range(40, 260, 10):
        moment = int(track[at, 0]), rows[at], track
        after = trajectory.future(*moment)
        for name, model in motion_models.MODELS.items():
            path = model(trajectory.past(*moment)).trajectory().xy_m
            off[name].append(trajectories.distances(path, after.xy_m)[29])
    assert np.mean(off["ctra"]) < 0.8 * np.mean(off["constant_velocity"])


# Ridge regression on past motion.


def drives(num, seed):
    """Motions and the history of each, some of them incomplete."""
    rng = np.random.default_rng(seed)
    motions = [
        Motion(speed, accel, yaw_rate)
        for speed, accel, yaw_rate in zip(
            rng.uniform(2, 20, num), rng.normal(0, 0.8, num), rng.normal(0, 0.1, num), strict=True
        )
    ]
    # About half are from the start of a clip, where poses are missing.
    kept = rng.integers(0, 33, num)
    pasts = [seen(motion, num_poses) for motion, num_poses in zip(motions, kept, strict=True)]
    return motions, pasts


def seen(motion, num=16):
    """The last `num` poses, 16 at most."""
    t = PAST_S[max(16 - num, 0) :]
    # A braking car was faster before: constant speed avoids a stop when going back in time.
    back = replace(motion, accel_mps2=0.0)
    xy, yaw = back.poses(t)
    xy = xy + (motion.accel_mps2 * t**2 / 2)[:, None] * np.stack([np.cos(yaw), np.sin(yaw)], -1)
    return Trajectory(t, xy, yaw, motion.speed_mps)


def summary_of(motion):
    return SUMMARY.of(motion_models.truth_of(motion, DURATION_S, "first"))


@pytest.fixture(scope="module")
def known():
    return drives(500, 0)


@pytest.fixture(scope="module")
def asked():
    motions, _ = drives(100, 1)
    return motions, [seen(motion) for motion in motions]


def fitted(known, of):
    motions, pasts = known
    return EgoMotion.fit(pasts, [of(motion) for motion in motions])


@pytest.fixture(scope="module")
def of_summary(known):
    return fitted(known, summary_of)


@pytest.mark.parametrize("form", [SUMMARY, FUTURE_V1], ids=lambda form: form.name)
def test_regression_beats_the_mean_and_constant_velocity(known, asked, form):
    def ground_truth_of(motion):
        return form.of(motion_models.truth_of(motion, DURATION_S, form.history_ends))

    def numbers_of(content):
        return content.waypoints_m or [[content.speed_mps], [content.displacement_m]]

    ridge, mean = (
        fitted(known, ground_truth_of),
        baselines.constants(map(ground_truth_of, known[0]))["mean"],
    )
    off = {"ridge": [], "mean": [], "constant_velocity": []}
    for motion, past in zip(*asked, strict=True):
        predicted = ridge.predict(past)
        assert form.parse(form.write(predicted))
        assert predicted.action_m == predicted.displacement_m and predicted.along is None
        assert (predicted.waypoints_m is None) == (form is SUMMARY)
        at_constant_velocity = motion_models.predict("constant_velocity", past, form, DURATION_S)
        ground_truth = np.array(numbers_of(ground_truth_of(motion)))
        for name, content in (
            ("ridge", predicted),
            ("mean", mean),
            ("constant_velocity", at_constant_velocity),
        ):
            off[name].append(np.linalg.norm(numbers_of(content) - ground_truth, axis=1))
    if form is SUMMARY:
        off = {name: np.mean(values, axis=0) for name, values in off.items()}
    else:
        off = {name: np.mean(values, keepdims=True) for name, values in off.items()}
    assert (off["ridge"] < 0.2 * off["mean"]).all()
    assert (off["ridge"] < 0.7 * off["constant_velocity"]).all()


def test_regression_predicts_every_quantity_except_the_cause(known, asked):
    def all_of(motion):
        return replace(
            summary_of(motion),
            waypoints_m=FUTURE_V1.of(
                motion_models.truth_of(motion, DURATION_S, "last")
            ).waypoints_m,
            along="accelerate" if motion.accel_mps2 > 0.3 else "hold",
            across="left turn" if motion.yaw_rate_radps > 0 else "straight",
            cause="It follows the road.",
            cause_from="template",
        )

    ridge = fitted(known, all_of)
    ground_truth, predicted = (
        [all_of(content) for content in asked[0]],
        [ridge.predict(content) for content in asked[1]],
    )
    for word in ("along", "across"):
        true_words, predicted_words = (
            [getattr(one, word) for one in content] for content in (ground_truth, predicted)
        )
        assert np.mean([a == b for a, b in zip(true_words, predicted_words, strict=True)]) > 0.85
        assert set(predicted_words) == set(true_words), "no other word is answered"
    assert {(content.cause, content.cause_from) for content in predicted} == {(None, None)}
    assert predicted[0].speed_mps == pytest.approx(ground_truth[0].speed_mps, abs=1.5)
    assert predicted[0].displacement_m == pytest.approx(ground_truth[0].displacement_m, abs=10)
    assert predicted[0].waypoints_m[3] == pytest.approx(ground_truth[0].waypoints_m[3], abs=1.5)


def test_regression_with_a_short_history_beats_the_mean(known, asked, of_summary):
    mean = baselines.constants(map(summary_of, known[0]))["mean"].speed_mps
    for num in (0, 1, 7):
        pairs = [(of_summary.predict(seen(motion, num)), summary_of(motion)) for motion in asked[0]]
        off = np.mean([abs(predicted.speed_mps - true.speed_mps) for predicted, true in pairs])
        assert off < 0.7 * np.mean([abs(mean - true.speed_mps) for _, true in pairs])


def test_regression_ignores_poses_after_t0(asked, of_summary):
    motion, past = asked[0][0], asked[1][0]
    after = motion.trajectory()
    whole = Trajectory(
        np.append(past.t_s, after.t_s),
        np.append(past.xy_m, after.xy_m, axis=0),
        np.append(past.yaw_rad, after.yaw_rad),
        past.speed_mps,
    )
    assert of_summary.predict(whole) == of_summary.predict(past)


def test_regression_stays_plausible_for_unseen_histories():
    # All drive straight at constant speed and have complete histories.
    motions = [Motion(speed) for speed in np.linspace(5, 15, 60)]
    ridge = EgoMotion.fit([seen(motion) for motion in motions], list(map(summary_of, motions)))
    for past in (seen(Motion(10.0, 2.0, 0.6)), seen(Motion(10.0), 0), seen(Motion(10.0))):
        assert ridge.predict(past).speed_mps == pytest.approx(10.0, abs=1.0)
    assert 0 <= ridge.predict(seen(Motion(60.0))).speed_mps < 61
    assert ridge.predict(seen(Motion(-20.0))).speed_mps >= 0


def test_regression_fits_on_four_windows():
    motions, pasts = drives(4, 3)
    ridge = EgoMotion.fit(pasts, [summary_of(motion) for motion in motions])
    assert SUMMARY.parse(SUMMARY.write(ridge.predict(pasts[0])))


@pytest.mark.parametrize(
    "answers", [[], [Content(cause="It is red.")]], ids=["none", "only a cause"]
)
def test_fit_without_windows_or_quantities_is_refused(answers):
    with pytest.raises(AvomniError, match="nothing that past motion could predict"):
        EgoMotion.fit([seen(Motion(3.0))] * len(answers), answers)
