"""Ridge regression on past motion alone."""

from dataclasses import replace

import numpy as np
import pytest

from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.trajectory import Trajectory
from avomni_lib.evaluation import baselines, trajectories
from avomni_lib.evaluation.baselines import Motion
from avomni_lib.evaluation.ego_motion import EgoMotion
from avomni_lib.training.targets import Said, target
from avomni_lib.training.targets.future import FUTURE_V1

SUMMARY = target("summary_v1")
PAST_S = np.arange(-16, 0) * 0.1
DURATION_S = 7.5


def drives(num, seed):
    """Motions and what was seen of each."""
    rng = np.random.default_rng(seed)
    motions = [
        Motion(speed, accel, yaw_rate)
        for speed, accel, yaw_rate in zip(
            rng.uniform(2, 20, num), rng.normal(0, 0.8, num), rng.normal(0, 0.1, num), strict=True
        )
    ]
    # Every second one of a clip's start, where poses are missing.
    kept = rng.integers(0, 33, num)
    pasts = [seen(each, num_poses) for each, num_poses in zip(motions, kept, strict=True)]
    return motions, pasts


def seen(motion, num=16):
    """The last `num` poses, 16 at most."""
    t = PAST_S[max(16 - num, 0) :]
    # Before the moment a car that brakes was faster: nothing stops on the way back.
    back = replace(motion, accel_mps2=0.0)
    xy, yaw = back.poses(t)
    xy = xy + (motion.accel_mps2 * t**2 / 2)[:, None] * np.stack([np.cos(yaw), np.sin(yaw)], -1)
    return Trajectory(t, xy, yaw, motion.speed_mps)


def summary_of(motion):
    return SUMMARY.of(baselines.rolled(motion, DURATION_S, "first"))


def future_of(motion):
    return FUTURE_V1.of(baselines.rolled(motion, DURATION_S, "last"))


def manoeuvre_of(motion):
    along = "accelerate" if motion.accel_mps2 > 0.3 else "hold"
    return Said(along=along, across="left turn" if motion.yaw_rate_radps > 0 else "straight")


@pytest.fixture(scope="module")
def known():
    return drives(500, 0)


@pytest.fixture(scope="module")
def asked():
    motions, _ = drives(100, 1)
    return motions, [seen(each) for each in motions]


def fitted(known, of):
    motions, pasts = known
    return EgoMotion.fit(pasts, [of(each) for each in motions])


@pytest.fixture(scope="module")
def of_summary(known):
    return fitted(known, summary_of)


@pytest.fixture(scope="module")
def of_future(known):
    return fitted(known, future_of)


def test_speed_and_displacement_are_far_better_than_the_mean_and_than_constant_velocity(
    known, asked, of_summary
):
    mean = baselines.constants(map(summary_of, known[0]))["mean"]
    off = {"ridge": [], "mean": [], "constant_velocity": []}
    for motion, past in zip(*asked, strict=True):
        true, said = summary_of(motion), of_summary.predict(past)
        assert said.action_m == said.displacement_m and said.waypoints_m is None
        assert SUMMARY.parse(SUMMARY.write(said))
        on = baselines.says("constant_velocity", past, SUMMARY, DURATION_S)
        for name, one in (("ridge", said), ("mean", mean), ("constant_velocity", on)):
            off[name].append(
                [abs(one.speed_mps - true.speed_mps), abs(one.displacement_m - true.displacement_m)]
            )
    off = {name: np.mean(values, axis=0) for name, values in off.items()}
    assert (off["ridge"] < 0.2 * off["mean"]).all()
    assert (off["ridge"] < 0.7 * off["constant_velocity"]).all()


def test_waypoints_are_far_better_than_the_mean_and_than_constant_velocity(known, asked, of_future):
    mean = baselines.constants(map(future_of, known[0]))["mean"].waypoints_m
    motions, pasts = asked
    true = np.array([each.trajectory().xy_m for each in motions])
    said = [of_future.predict(past) for past in pasts]
    assert all(FUTURE_V1.parse(FUTURE_V1.write(each)) for each in said)
    assert all(each.speed_mps is each.action_m is each.along is None for each in said)
    on = np.array([baselines.constant_velocity(past).trajectory().xy_m for past in pasts])
    off = trajectories.ade(trajectories.at_10hz([each.waypoints_m for each in said]), true).mean()
    assert off < 0.2 * trajectories.ade(trajectories.at_10hz(mean), true).mean()
    assert off < 0.5 * trajectories.ade(on, true).mean()


def test_words_are_learnt_and_no_other_is_said(known, asked):
    ridge = fitted(known, manoeuvre_of)
    said = [ridge.predict(past) for past in asked[1]]
    true = [manoeuvre_of(each) for each in asked[0]]
    right = np.mean([s.along == t.along for s, t in zip(said, true, strict=True)])
    assert right > 0.85
    assert np.mean([s.across == t.across for s, t in zip(said, true, strict=True)]) > 0.85
    assert {each.along for each in said} == {"accelerate", "hold"}


def test_all_that_the_truths_have_is_learnt_at_once_but_no_cause(known, asked):
    def all_of(motion):
        rest = manoeuvre_of(motion)
        return replace(
            summary_of(motion),
            waypoints_m=future_of(motion).waypoints_m,
            along=rest.along,
            across=rest.across,
            cause="It follows the road.",
            cause_from="template",
        )

    ridge = fitted(known, all_of)
    motion, past = asked[0][0], asked[1][0]
    said, true = ridge.predict(past), all_of(motion)
    assert said.cause is None and said.cause_from is None
    assert said.speed_mps == pytest.approx(true.speed_mps, abs=1.5)
    assert said.displacement_m == pytest.approx(true.displacement_m, abs=10)
    assert said.waypoints_m[3] == pytest.approx(true.waypoints_m[3], abs=1.5)
    assert said.along in ("accelerate", "hold") and said.across in ("left turn", "straight")


def test_the_same_windows_give_the_same_answers(known, asked, of_future):
    again = fitted(known, future_of)
    answers = [[ridge.predict(past) for past in asked[1][:10]] for ridge in (of_future, again)]
    assert answers[0] == answers[1]


def test_with_a_history_cut_short_or_none_it_still_answers_better_than_the_mean(
    known, asked, of_summary
):
    mean = baselines.constants(map(summary_of, known[0]))["mean"].speed_mps
    for num in (0, 1, 7):
        pairs = [(of_summary.predict(seen(each, num)), summary_of(each)) for each in asked[0]]
        off = np.mean([abs(said.speed_mps - true.speed_mps) for said, true in pairs])
        assert off < 0.7 * np.mean([abs(mean - true.speed_mps) for _, true in pairs])


def test_poses_after_the_moment_change_nothing(asked, of_summary):
    motion, past = asked[0][0], asked[1][0]
    after = motion.trajectory()
    whole = Trajectory(
        np.append(past.t_s, after.t_s),
        np.append(past.xy_m, after.xy_m, axis=0),
        np.append(past.yaw_rad, after.yaw_rad),
        past.speed_mps,
    )
    assert of_summary.predict(whole) == of_summary.predict(past)


def test_a_history_unlike_any_that_was_learnt_is_no_wild_answer():
    # All of them drive straight on at constant speed with whole histories.
    motions = [Motion(speed) for speed in np.linspace(5, 15, 60)]
    ridge = EgoMotion.fit([seen(each) for each in motions], list(map(summary_of, motions)))
    for past in (seen(Motion(10.0, 2.0, 0.6)), seen(Motion(10.0), 0), seen(Motion(10.0))):
        assert ridge.predict(past).speed_mps == pytest.approx(10.0, abs=1.0)
    assert 0 <= ridge.predict(seen(Motion(60.0))).speed_mps < 61
    assert ridge.predict(seen(Motion(-20.0))).speed_mps >= 0


def test_a_handful_of_windows_is_enough_to_answer():
    motions, pasts = drives(4, 3)
    ridge = EgoMotion.fit(pasts, [summary_of(each) for each in motions])
    assert SUMMARY.parse(SUMMARY.write(ridge.predict(pasts[0])))


def test_no_windows_and_nothing_to_tell_are_refused():
    with pytest.raises(AvomniError, match="no training window"):
        EgoMotion.fit([], [])
    with pytest.raises(AvomniError, match="nothing that past motion could tell"):
        EgoMotion.fit([seen(Motion(3.0))], [Said(cause="It is red.")])
