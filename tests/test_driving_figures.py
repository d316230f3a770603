"""Scores of hand-made episodes, the ladder of policies, and the waypoints of each policy."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avomni_lib.driving import geometry, ladder, policies
from avomni_lib.driving.episode import Episode
from avomni_lib.driving.ladder import driven
from avomni_lib.driving.scores import COLUMNS, Contact, SharedGeometry, terms
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.windows import Truth
from avomni_lib.params import user_code
from avomni_lib.training.model import generate
from avomni_lib.training.targets import Content, motion_models, target
from avomni_lib.training.targets.future import FUTURE_V1
from tests.short_windows import AHEAD_S, p_of

STEP_S, STEPS = 0.1, 121
TIME = np.arange(STEPS) * STEP_S
SIZE = (4.8, 1.9, 1.0)  # the middle of the box is 1.4 m before the rear axle
LANE, LEFT, RIGHT = 3.6, 6.5, 2.9
ROAD = np.stack([np.arange(-50.0, 300.0), np.zeros(350), np.zeros(350)], axis=1)


def along(speed, start=0.0, left=0.0, yaw=0.0, time=TIME):
    """(T, 4) poses on the straight road along +x; `speed` in m/s, `left` in m."""
    speeds = np.broadcast_to(np.asarray(speed, float), time.shape)
    x = start + np.concatenate([[0.0], np.cumsum(speeds[:-1] * STEP_S)])
    return np.stack([x, left + 0 * time, yaw + 0 * time, speeds], axis=1)


def track(poses, length=4.5, width=1.9):
    """(T, 1, 6) of an actor whose box is centred at poses (T, 4)."""
    sides = np.broadcast_to((length, width), (len(poses), 2))
    return np.concatenate([poses, sides], axis=1)[:, None]


def episode(ego, *actors, static=None, reference=None, seed=0, **changes):
    none = np.zeros((len(ego), 0, 6))
    values = {
        "seed": seed,
        "policy": "by hand",
        "time_s": TIME[: len(ego)],
        "ego": ego,
        "size": SIZE,
        "actors": np.concatenate([none, *(actor[: len(ego)] for actor in actors)], axis=1),
        "is_static": np.array(static or [False] * len(actors), bool),
        "road": ROAD,
        "lane_width": LANE,
        "drivable": (LEFT, RIGHT),
        "reference": along(5.0) if reference is None else reference,
    }
    return Episode(**values | changes)


def columns(scores):
    return {name: getattr(scores, name) for name in COLUMNS}


ALL_RIGHT = dict.fromkeys(COLUMNS, 1.0)


def test_recorded_drive_has_full_scores():
    scores = terms(episode(along(5.0)))
    assert scores.scene_score == scores.progress == 1.0
    assert columns(scores) == ALL_RIGHT
    assert scores.failure is scores.cut_s is None
    assert scores.contacts == () and scores.km == pytest.approx(0.06)


def test_rear_end_collision_is_not_the_egos_fault():
    # The actor starts 7.75 m behind the ego and is 5 m/s faster: contact after 1.75 s.
    scores = terms(episode(along(5.0), track(along(10.0, start=-12.0))))
    assert scores.contacts == (Contact(18, 0, "rear"),)
    assert scores.cut_s == pytest.approx(1.8)
    assert scores.progress == pytest.approx(9 / 60)
    assert scores.scene_score == pytest.approx(9 / 60 / 0.8)
    assert scores.failure is None and scores.num_collisions == 0
    assert columns(scores) == ALL_RIGHT


def test_actor_passing_through_from_behind_is_one_rear_contact():
    poses = along(15.0, start=-20.0)  # the actor passes through the ego and leaves at its front
    drive = episode(along(5.0), track(poses))
    ahead = poses[:, 0] - 2.25 > drive.ego[:, 0] + 3.8
    assert ahead.any(), "the actor must leave at the ego's front"
    scores = terms(drive)
    assert [contact.side for contact in scores.contacts] == ["rear"]
    assert scores.nc == scores.ttc == 1.0 and scores.num_collisions == 0
    assert 0 < scores.scene_score < 0.2


def from_the_left(speed, left, at):
    """A short car beside the ego's middle that approaches at 1 m/s, starting `left` m away."""
    beside = along(speed, start=at)
    beside[:, 1] = left - TIME
    return track(beside, length=3.0)


@pytest.mark.parametrize(
    ("ego_left", "nc"), [(1.5, 0.0), (0.0, 1.0)], ids=["in two lanes", "in its own lane"]
)
def test_side_collision_is_at_fault_only_if_the_ego_is_in_two_lanes(ego_left, nc):
    drive = episode(along(8.0, left=ego_left), from_the_left(8.0, ego_left + 3.0, at=1.4))
    scores = terms(drive)
    # 3.0 m between the centres, of which 1.9 m are the cars.
    assert scores.contacts == (Contact(11, 0, "side"),)
    assert scores.nc == nc
    # AlpaSim's score does not consider lanes.
    assert scores.failure == "collision" and scores.scene_score == 0.0
    assert scores.num_collisions == 1


@pytest.mark.parametrize(
    ("speed", "static", "nc"),
    [(2.0, False, 0.0), (0.0, False, 0.0), (0.0, True, 0.5)],
    ids=["a slower car", "a standing car", "a static object"],
)
def test_frontal_collision_is_at_fault(speed, static, nc):
    ahead = track(along(speed, start=30.0))
    scores = terms(episode(along(10.0), ahead, static=[static]))
    assert [contact.side for contact in scores.contacts] == ["front"]
    assert (scores.nc, scores.ttc) == (nc, 0.0)
    assert (scores.failure, scores.scene_score) == ("collision", 0.0)


def test_car_ahead_at_the_same_speed_keeps_the_ttc_score():
    assert terms(episode(along(10.0), track(along(10.0, start=12.0)))).ttc == 1.0


def test_late_braking_without_contact_loses_the_ttc_score():
    speeds = np.clip(12 - 4 * np.maximum(TIME - 1, 0), 0, 12)  # stops after 12 + 18 m, at 4 s
    scores = terms(episode(along(speeds), track(along(0.0, start=37.2))))
    assert scores.contacts == ()
    assert (scores.ttc, scores.nc) == (0.0, 1.0)


def test_drifting_off_the_road_ends_the_score_at_the_first_corner():
    ego = along(5.0)
    ego[:, 1] = -0.5 * TIME
    ego[:, 2] = np.arctan2(-0.5, 5.0)
    drive = episode(ego)
    corner = geometry.corners(geometry.boxes(ego, SIZE))[..., 1].min(axis=1)
    scores = terms(drive)
    assert scores.failure == "off road" and scores.scene_score == 0.0
    assert scores.cut_s == pytest.approx(TIME[np.argmax(corner < -RIGHT)])
    assert (scores.dac, scores.lk, scores.num_off_road) == (0.0, 0.0, 1)
    assert (scores.nc, scores.ttc) == (1.0, 1.0)
    seen = SharedGeometry(drive)
    assert seen.middle_m == pytest.approx(ego[:, 1] + 1.4 * np.sin(ego[:, 2]))
    assert seen.turned_rad == pytest.approx(ego[:, 2])


def test_standing_still_has_no_progress_and_no_other_deduction():
    scores = terms(episode(along(0.0)))
    assert scores.scene_score == scores.progress == scores.ep == scores.km == 0.0
    assert columns(scores) | {"ep": 1.0} == ALL_RIGHT


def test_collision_while_standing_counts_for_alpasim_but_not_navsim():
    oncoming = track(along(-6.0, start=40.0))
    scores = terms(episode(along(0.0), oncoming))
    assert [contact.side for contact in scores.contacts] == ["front"]
    assert (scores.nc, scores.ttc, scores.failure) == (1.0, 1.0, "collision")


@pytest.mark.parametrize(("length", "score"), [(4.999, 1.0), (5.0, 0.0)])
def test_short_recorded_path_requires_no_progress(length, score):
    reference = along(length / 12)
    assert terms(episode(along(0.0), reference=reference)).scene_score == pytest.approx(score)


def test_standing_recorded_drive_requires_no_progress():
    scores = terms(episode(along(0.0), reference=along(0.0)))
    assert scores.scene_score == scores.ep == scores.progress == 1.0


@pytest.mark.parametrize(
    ("share", "score"), [(0.8, 1.0), (0.79, 0.9875), (0.4, 0.5), (1.5, 1.0), (-0.5, 0.0)]
)
def test_progress_of_80_percent_gives_the_full_scene_score(share, score):
    scores = terms(episode(along(5.0 * share)))
    assert scores.scene_score == pytest.approx(score)
    assert scores.ep == pytest.approx(min(max(share, 0), 1))


@pytest.mark.parametrize(
    ("metres", "left", "yaw", "ddc"),
    [
        (1.999, 3.6, 0.0, 1.0),
        (2.0, 3.6, 0.0, 0.5),
        (5.999, 3.6, 0.0, 0.5),
        (6.0, 3.6, 0.0, 0.0),
        (6.0, 1.8, 0.0, 1.0),  # the middle is still in its lane
        (6.0, 0.0, np.pi, 0.0),  # backwards in its own lane
    ],
)
def test_wrong_way_distance_within_a_second_lowers_ddc(metres, left, yaw, ddc):
    ego = along(metres / 1.1 * np.cos(yaw), left=left, yaw=yaw, start=100.0)
    ego[:, 3] = np.abs(ego[:, 3])
    assert terms(episode(ego)).ddc == ddc


@pytest.mark.parametrize(
    ("accel", "comfort"), [(-4.05, 1.0), (-4.06, 0.0), (2.4, 1.0), (2.41, 0.0)]
)
def test_comfort_depends_on_the_acceleration_limits(accel, comfort):
    speeds = (50.0 if accel < 0 else 0.0) + accel * TIME
    ego = along(speeds[:101], time=TIME[:101])
    assert terms(episode(ego)).comfort == comfort


def test_sudden_braking_is_uncomfortable():
    gentle = np.clip(15 - 3.5 * np.clip(TIME - 2, 0, None), 0, None)
    scores = terms(episode(along(gentle)))
    assert scores.comfort == 1.0
    sudden = np.where(TIME < 5, 15.0, 9.0)
    assert terms(episode(along(sudden))).comfort == 0.0


def test_episode_of_three_steps_is_scored():
    scores = terms(episode(along(5.0)[:3]))
    assert scores.comfort == 1.0 and 0 < scores.scene_score < 0.1


@pytest.mark.parametrize(
    ("left", "steps", "lk"), [(0.5, 121, 1.0), (0.51, 19, 1.0), (0.51, 20, 0.0)]
)
def test_lane_keeping_fails_after_two_seconds_off_centre(left, steps, lk):
    ego = along(5.0)
    ego[30 : 30 + steps, 1] = left
    assert terms(episode(ego)).lk == lk


@pytest.mark.parametrize(("left", "dac"), [(-1.95, 1.0), (-1.951, 0.0), (5.55, 1.0), (5.551, 0.0)])
def test_corner_on_the_road_edge_is_still_on_the_road(left, dac):
    assert terms(episode(along(5.0, left=left))).dac == dac


def test_boxes_that_just_touch_are_in_contact():
    # The ego's front is at 3.8 m, the other's rear at x - 2.25 m.
    for gap, num in [(0.0, 1), (0.001, 0)]:
        drive = episode(along(0.0), track(along(0.0, start=3.8 + 2.25 + gap)))
        assert len(terms(drive).contacts) == num


def test_absent_actors_cause_no_contact():
    absent = track(along(0.0, start=30.0))
    absent[:40] = np.nan  # the ego has passed by then
    absent[40:, :, 1] = 40.0
    assert terms(episode(along(10.0), absent, track(along(0.0) * np.nan))).contacts == ()


def test_positions_beside_a_bend_are_relative_to_its_centre_line():
    angle = np.linspace(0, np.pi / 2, 100)  # to the left around (0, 30)
    bend = np.stack([30 * np.sin(angle), 30 - 30 * np.cos(angle), angle], axis=1)
    at = np.linspace(0.1, 1.4, 20)
    for left in (-3.0, 0.0, 4.0):
        radius = 30 - left
        points = np.stack([radius * np.sin(at), 30 - radius * np.cos(at)], axis=1)
        located = geometry.beside(bend, points)
        assert located[0] == pytest.approx(30 * at, abs=0.05)
        assert located[1] == pytest.approx(np.full(20, left), abs=0.01)
        assert located[2] == pytest.approx(at, abs=0.002)
    beyond = geometry.beside(bend, np.array([[-2.0, 1.0], [28.0, 35.0]]))
    assert beyond[1] == pytest.approx([1.0, 2.0], abs=0.05)
    assert beyond[0] == pytest.approx([0.0, 30 * np.pi / 2], abs=0.01)


numbers = st.floats(-6, 6)
any_box = st.tuples(numbers, numbers, numbers, st.floats(0, 6), st.floats(0.1, 3)).map(np.array)


@given(any_box, any_box)
def test_touch_agrees_with_points_sampled_inside_the_boxes(a, b):
    grid = np.linspace(-0.5, 0.5, 21)
    ahead, left = (part.ravel() for part in np.meshgrid(grid, grid))

    def points(box):
        turned = np.exp(1j * box[2]) * (ahead * box[3] + 1j * left * box[4])
        return turned + complex(box[0], box[1])

    def holds(box, places):
        relative = (places - complex(box[0], box[1])) * np.exp(-1j * box[2])
        return (np.abs(relative.real) <= box[3] / 2) & (np.abs(relative.imag) <= box[4] / 2)

    touched = bool(geometry.touch(a, b))
    assert touched == bool(geometry.touch(b, a))
    if holds(a, points(b)).any() or holds(b, points(a)).any():
        assert touched
    if touched:  # no two points of a grid are further apart than its cells
        nearest = np.abs(points(a)[:, None] - points(b)).min()
        assert nearest <= (np.hypot(*a[3:]) + np.hypot(*b[3:])) / 40 + 1e-6


@st.composite
def drives(draw):
    """An episode of a car with random steering between two others."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def wandering(start, left, speed):
        speeds = np.clip(speed + np.cumsum(rng.normal(0, 0.4, STEPS)), 0, 20)
        yaw = np.cumsum(rng.normal(0, 0.01, STEPS))
        steps = speeds * STEP_S * np.exp(1j * yaw)
        place = complex(start, left) + np.cumsum(steps) - steps[0]
        return np.stack([place.real, place.imag, yaw, speeds], axis=1)

    others = [
        track(wandering(rng.uniform(-30, 60), rng.choice([0.0, 3.6]), rng.uniform(0, 12)))
        for _ in range(2)
    ]
    ego = wandering(0.0, rng.normal(0, 0.3), rng.uniform(0, 12))
    return episode(ego, *others, reference=along(rng.uniform(0, 10)))


@settings(max_examples=30)
@given(drives(), st.integers(0, 2**32 - 1))
def test_scores_are_between_0_and_1_and_ignore_steps_after_the_cut(drive, seed):
    scores = terms(drive)
    assert 0 <= scores.scene_score <= 1 and 0 <= scores.progress <= 1
    assert all(0 <= value <= 1 for value in columns(scores).values())
    assert (scores.scene_score == 0) >= (scores.failure is not None)
    if scores.cut_s is None:
        return
    cut = round(scores.cut_s / STEP_S)
    rng = np.random.default_rng(seed)
    changed = dataclasses.replace(drive, ego=drive.ego.copy(), actors=drive.actors.copy())
    changed.ego[cut + 1 :] += rng.normal(0, 20, changed.ego[cut + 1 :].shape)
    changed.actors[cut + 1 :, :, :2] = changed.ego[cut + 1 :, None, :2]
    again = terms(changed)
    assert (again.scene_score, again.failure) == (scores.scene_score, scores.failure)
    assert (again.cut_s, again.progress) == (scores.cut_s, scores.progress)


# The ladder.


def as_far(share, seed):
    """A drive without events whose scene score is `share` over 0.8."""
    return episode(along(5.0 * share), seed=seed)


@pytest.fixture(scope="module")
def shares():
    rng = np.random.default_rng(3)
    road = rng.uniform(0.2, 0.6, 30)  # some seeds are harder for all policies
    return {
        "constant_velocity": road - 0.1 + rng.normal(0, 0.01, 30),
        "adapted": road,
        "tests.test_driving_figures:mine": road + rng.normal(0, 0.01, 30),
        "blind": road + rng.normal(0, 0.001, 30),
    }


@pytest.fixture(scope="module")
def ladder_of_policies(shares):
    return driven(
        {
            name: [as_far(share, seed) for seed, share in enumerate(policy_shares)]
            for name, policy_shares in shares.items()
        }
    )


def test_ladder_has_one_entry_per_policy_in_fixed_order(ladder_of_policies, shares):
    drive = ladder_of_policies.figures["drive"]
    assert [entry["name"] for entry in drive] == [
        *("constant_velocity", "blind", "adapted", "tests.test_driving_figures:mine")
    ]
    for entry in drive:
        assert list(entry) == [
            *("name", "scene_score", "low", "high", "difference_to_model"),
            *("difference_low", "difference_high", "num_episodes", "terms"),
        ]
        assert entry["scene_score"] == pytest.approx(shares[entry["name"]].mean() / 0.8)
        assert entry["low"] < entry["scene_score"] < entry["high"]
        assert entry["num_episodes"] == 30
        assert list(entry["terms"]) == [
            *COLUMNS,
            *("progress", "collisions_per_km", "off_road_per_km"),
        ]
        assert entry["terms"]["nc"] == 1.0 and entry["terms"]["collisions_per_km"] == 0.0
    assert json.loads(json.dumps(ladder_of_policies.figures)) == ladder_of_policies.figures


def test_differences_are_paired_by_seed_and_have_narrow_intervals(ladder_of_policies, shares):
    by_name = {entry["name"]: entry for entry in ladder_of_policies.figures["drive"]}
    slow = by_name["constant_velocity"]
    apart = (shares["constant_velocity"] - shares["adapted"]) / 0.8
    assert slow["difference_to_model"] == pytest.approx(apart.mean())
    assert slow["difference_low"] < apart.mean() < slow["difference_high"] < 0
    assert slow["difference_high"] - slow["difference_low"] < 0.1 * (slow["high"] - slow["low"])
    model = by_name["adapted"]
    assert (
        model["difference_to_model"] == model["difference_low"] == model["difference_high"] == 0.0
    )


def test_figures_do_not_depend_on_the_order_of_the_scores(ladder_of_policies):
    scores = ladder_of_policies.scores
    assert ladder.figures(scores) == ladder_of_policies.figures
    mixed = ladder.figures(scores.sample(frac=1, random_state=1))["drive"]
    for entry, other in zip(mixed, ladder_of_policies.figures["drive"], strict=True):
        assert entry["name"] == other["name"]
        for figure in ("scene_score", "low", "difference_low"):
            assert entry[figure] == pytest.approx(other[figure])


def test_claims_follow_from_the_intervals(ladder_of_policies):
    better, sees = ladder_of_policies.figures["claims"]
    assert better["holds"] and not sees["holds"]
    assert better["text"].startswith("the model drives better than constant velocity by 0.1")
    assert "of constant velocity; 95 % interval of the gain 0.1" in better["text"]
    assert better["text"].endswith(", 30 episodes)")
    assert sees["text"].startswith("no evidence that vision helps: the gain of ")


def test_few_episodes_support_no_claim_and_one_has_no_interval():
    few = driven(
        {
            "blind": [as_far(0.1, seed) for seed in range(9)],
            "adapted": [as_far(0.7, seed) for seed in range(9)],
        }
    )
    (claim,) = few.figures["claims"]
    assert not claim["holds"] and "episodes: 9, too few" in claim["text"]
    one = driven({"blind": [as_far(0.4, 1)]})
    (entry,) = one.figures["drive"]
    assert entry["low"] is entry["high"] is entry["difference_to_model"] is None
    assert one.figures["claims"] == []
    assert "none" in str(one)


def test_ladder_is_shown_as_text_and_html(ladder_of_policies):
    text, page = str(ladder_of_policies), ladder_of_policies._repr_html_()
    for word in ("adapted model", "constant velocity", "scene score", "NC", "collisions/km"):
        assert word in text and word in page
    assert "PDMS" not in text
    assert text.splitlines()[-1] == ladder_of_policies.figures["claims"][-1]["text"]


def test_events_per_km_use_the_distance_of_all_episodes():
    hit = episode(along(10.0), track(along(0.0, start=30.0)), seed=0)  # 120 m
    free = episode(along(10.0), track(along(0.0) * np.nan), seed=1)
    (entry,) = driven({"ctra": [hit, free]}).figures["drive"]
    assert entry["terms"]["collisions_per_km"] == pytest.approx(1 / 0.24)
    (entry,) = driven({"ctra": [episode(along(0.0))]}).figures["drive"]
    assert entry["terms"]["collisions_per_km"] is None


def test_worst_returns_the_episodes_with_the_lowest_scores():
    result = driven(
        {"adapted": [as_far(share, seed) for seed, share in enumerate((0.5, 0.2, 0.4))]}
    )
    assert result.worst(num=2) == [1, 2]
    with pytest.raises(AvomniError, match="no policy 'ctra' drove; there are adapted"):
        result.worst("ctra")


@pytest.mark.parametrize("seeds", [(0, 1, 3), (0, 1), (0, 1, 1)])
def test_policies_with_different_episodes_are_refused(seeds):
    adapted = [as_far(0.5, seed) for seed in range(3)]
    with pytest.raises(AvomniError, match="did not drive the same episodes"):
        driven({"adapted": adapted, "ctra": [as_far(0.5, seed) for seed in seeds]})


# Policies.

HISTORY_S = np.arange(-16, 1) * STEP_S


def seen_at(speed=8.0, yaw_rate=0.0, accel=0.0, pictures=None):
    """An observation after 1.6 s of this motion."""
    motion = motion_models.Motion(speed, accel, yaw_rate)
    xy, yaw = motion.poses(HISTORY_S)
    speeds = speed + accel * HISTORY_S
    ego = np.concatenate([xy, yaw[:, None], speeds[:, None]], axis=1).astype(np.float32)
    return {
        "cameras": np.zeros((4, 8, 12, 3), np.uint8) if pictures is None else pictures,
        "ego": ego,
        "route": np.zeros((20, 2), np.float32),
    }


def no_answerer():
    raise AssertionError("nobody asked for the model")


@pytest.mark.parametrize(
    ("name", "yaw_rate", "accel"),
    [("constant_velocity", 0.0, 0.0), ("ctra", 0.2, 1.5), ("ctra", -0.1, -0.5)],
)
def test_motion_policies_continue_the_past_motion(name, yaw_rate, accel):
    drives = policies.policy(name, p_of(), no_answerer)
    waypoints = drives(seen_at(8.0, yaw_rate, accel))
    wanted, _ = motion_models.Motion(8.0, accel, yaw_rate).poses(AHEAD_S)
    assert waypoints.shape == (16, 2)
    assert waypoints == pytest.approx(wanted, abs=0.05)


def test_ctra_with_a_short_history_goes_straight():
    observation = seen_at(8.0, 0.3, 1.0)
    observation["ego"][:-3] = np.nan
    waypoints = policies.policy("ctra", p_of(), no_answerer)(observation)
    assert waypoints == pytest.approx(np.stack([8 * AHEAD_S, 0 * AHEAD_S], axis=1), abs=1e-5)


def test_ego_motion_policy_is_fitted_on_training_windows_only(monkeypatch):
    class Curves:
        """Windows whose future continues their past; test windows must not be read."""

        def __len__(self):
            return 60

        def __getitem__(self, index):
            return SimpleNamespace(split="test" if index % 3 == 0 else "train")

        def motion(self, index):
            return motion_models.Motion(4.0 + index % 7, 0.0, 0.02 * (index % 11 - 5))

        def past(self, index):
            moved = self.motion(index)
            return policies.past_of(seen_at(moved.speed_mps, moved.yaw_rate_radps))

        def truth(self, index):
            assert index % 3, "a window of the test split was looked at"
            return Truth(1.0, 1.0, 1.0, 1.0, self.motion(index).trajectory())

    monkeypatch.setattr(policies.samples, "windows_ahead", lambda p: Curves())
    drives = policies.policy("ego_motion", p_of(), no_answerer)
    wanted, _ = motion_models.Motion(7.0, 0.0, 0.06).poses(AHEAD_S)
    assert drives.name == "ego_motion"
    assert drives(seen_at(7.0, 0.06)) == pytest.approx(wanted, abs=1.5)


def followed(drives, reference, steps):
    """(T,) complex positions of a car that follows the waypoints from the recorded start."""
    place, yaw = complex(*reference[0, :2]), reference[0, 2]
    places, yaws = [place], [yaw]
    drives.start(0, reference)
    for _ in range(steps):
        recent = np.arange(len(places))[-17:]
        relative = [(places[i] - place) * np.exp(-1j * yaw) for i in recent]
        ego = np.full((17, 4), np.nan)
        ego[-len(recent) :, 0], ego[-len(recent) :, 1] = np.real(relative), np.imag(relative)
        ego[-len(recent) :, 2], ego[:, 3] = np.array(yaws)[recent] - yaw, reference[0, 3]
        x, y = drives({"ego": ego.astype(np.float32)}, 0)[0] / 4
        yaw, place = yaw + np.arctan2(y, x) * 0.2, place + complex(x, y) * np.exp(1j * yaw)
        places.append(place)
        yaws.append(yaw)
    return np.array(places)


def test_log_replay_follows_the_recorded_drive_and_then_goes_straight():
    angle = 0.02 * np.arange(100)
    reference = np.stack(
        [100 + 30 * np.sin(angle), 50 - 30 * np.cos(angle), angle, np.full(100, 6.0)], axis=1
    )
    places = followed(policies.LogReplay(), reference, 90)
    recorded = reference[:, 0] + 1j * reference[:, 1]
    # Aiming at the point 0.4 s ahead cuts the corner slightly but does not drift.
    assert np.abs(places - recorded[:91]).max() < 0.1
    drives = policies.LogReplay()
    drives.start(0, reference[:5])
    beyond = drives(seen_at(6.0), 0)
    assert np.linalg.norm(np.diff(beyond, axis=0), axis=1) == pytest.approx(np.full(15, 2.4))


class Recorded:
    """A model that predicts a straight path, its speed in m/s the brightness of the last image."""

    name = "adapted"

    def __init__(self, p):
        self.p, self.target = p, target(p.training.target)
        self.model = self.conversation = None
        self.asked, self.histories = [], []

    def say(self, model, conversation, frames, max_new_tokens, *, histories, constrained):
        self.asked.append(np.array(frames))
        self.histories.append(histories)
        return [self.path(float(window[-1].mean())) for window in frames]

    def path(self, speed):
        if speed > 200:
            return "I cannot say."
        return FUTURE_V1.write(Content(waypoints_m=tuple((speed * t, 0.0) for t in AHEAD_S)))


@pytest.fixture
def asked(monkeypatch):
    def made(name="adapted", **changes):
        answerer = Recorded(p_of(**changes))
        monkeypatch.setattr(generate, "generate_texts", answerer.say)
        return policies.policy(name, answerer.p, lambda: answerer), answerer

    return made


def shaded(value):
    return np.full((4, 8, 12, 3), value, np.uint8)


def speeds_of(drives, values, number=0, speed=8.0):
    """The speed (m/s) of the waypoints at each step, for images of these brightnesses."""
    drives.start(number, along(5.0))
    waypoints = [drives(seen_at(speed, pictures=shaded(value)), number) for value in values]
    return [float(path[0, 0] / 0.4) for path in waypoints]


def test_model_policy_follows_each_path_until_the_next_prediction(asked):
    drives, answerer = asked()
    speeds = speeds_of(drives, range(1, 14))
    # There is a tick every second step. The window of three is complete at tick 2, and the model
    # predicts at every second tick.
    assert drives.warm_up_s == pytest.approx(0.4)
    assert "first 0.4 s" in drives.note
    shown = [window[0].mean(axis=(1, 2, 3)).tolist() for window in answerer.asked]
    assert shown == [[1, 3, 5], [5, 7, 9], [9, 11, 13]]
    assert answerer.asked[0].shape == (1, 3, 16, 24, 3)
    assert speeds[:4] == pytest.approx([8.0] * 4, abs=1e-5)
    assert [speeds[step] for step in (4, 8, 12)] == pytest.approx([5.0, 9.0, 13.0], abs=0.02)
    # The car drove 8 m/s and the path has 5 m/s, so the car is ahead of the path.
    assert speeds[5] == pytest.approx((5 * 0.5 - 8 * 0.1) / 0.4, abs=0.02)
    assert (drives.num_answers, drives.num_unread) == (3, 0)


def test_several_episodes_are_predicted_in_one_batch(asked):
    drives, answerer = asked()
    alone = [speeds_of(drives, range(first, first + 9)) for first in (1, 50)]
    answerer.asked.clear()
    for number in (3, 7):
        drives.start(number, along(5.0))
    together = []
    for step in range(9):
        seen = {
            number: seen_at(8.0, pictures=shaded(first + step))
            for number, first in ((3, 1), (7, 50))
        }
        together.append(drives.several(seen))
    assert [len(frames) for frames in answerer.asked] == [2, 2]
    for number, single in zip((3, 7), alone, strict=True):
        assert [float(paths[number][0, 0] / 0.4) for paths in together] == pytest.approx(single)


def test_unreadable_answer_keeps_the_last_path(asked):
    drives, answerer = asked(live={"hop": 1})
    speeds = speeds_of(drives, [8, 8, 8, 8, 8, 8, 250, 250, 250], speed=8.0)
    assert speeds == pytest.approx([8.0] * 9, abs=0.02)
    assert (drives.num_answers, drives.num_unread) == (3, 2)


def test_smoothing_averages_the_new_path_with_the_previous_one(asked):
    drives, answerer = asked(driving={"smoothing": 0.5, "hop": 1})
    assert drives.hop == 1
    speeds = speeds_of(drives, [10] * 7 + [20] * 4)
    # The simulated rig does not move, so a carried path gets a little faster at each step.
    assert speeds[4] == pytest.approx(10, abs=0.1), "before the first answer there is no path"
    assert 15 < speeds[8] < 16 and 17 < speeds[9] < 18 and 18 < speeds[10] < 20


def test_blind_policy_gets_black_images_and_predicts_once(asked):
    drives, answerer = asked("blind")
    for number in range(4):
        drives.start(number, along(5.0))
    for _ in range(13):
        seen = {number: seen_at(8.0, pictures=shaded(99)) for number in range(4)}
        waypoints = drives.several(seen)
    assert drives.name == "blind"
    assert [frames.shape[0] for frames in answerer.asked] == [1]
    assert not answerer.asked[0].any()
    assert all(path == pytest.approx(0.0) for path in waypoints.values())
    assert drives.num_answers == 12


def test_batches_are_limited_by_the_evaluation_batch_size(asked):
    drives, answerer = asked(evaluation={"batch_size": 2})
    for number in range(5):
        drives.start(number, along(5.0))
    for _ in range(5):
        waypoints = drives.several(
            {number: seen_at(pictures=shaded(number)) for number in range(5)}
        )
    assert [len(frames) for frames in answerer.asked] == [2, 2, 1]
    speeds = [float(waypoints[number][0, 0] / 0.4) for number in range(5)]
    assert speeds == pytest.approx(list(range(5)), abs=0.02)


def test_prompt_contains_the_ego_history_of_each_episode(asked):
    drives, answerer = asked("blind", prompt={"ego_history": True})
    for number in range(2):
        drives.start(number, along(5.0))
    for _ in range(5):
        drives.several({0: seen_at(8.0), 1: seen_at(3.0)})
    ((fast, slow),) = answerer.histories
    assert "(-12.80,0.00)" in fast and "Speed there: 8.00m/s." in fast
    assert "Speed there: 3.00m/s." in slow
    assert len(answerer.asked[0]) == 2


def test_images_are_taken_at_the_last_step_before_each_tick(asked):
    drives, answerer = asked(processing={"sample_hz": 4}, live={"hop": 1})
    speeds_of(drives, range(0, 12))
    last = [int(window[0, -1].mean()) for window in answerer.asked]
    assert last == [5, 7, 10]  # 0.5, 0.75 and 1.0 s


def test_model_that_cannot_drive_is_refused_before_it_is_loaded(asked):
    for changes, words in (
        ({"training": {"target": "summary_v1"}}, "summary_v1 says no path to drive along"),
        ({"processing": {"sample_hz": 20}}, "looks 20 times a second"),
    ):
        with pytest.raises(AvomniError, match=words):
            policies.policy("adapted", p_of(**changes), no_answerer)
    drives, _ = asked()
    drives.start(0, along(5.0))
    with pytest.raises(AvomniError, match="expected \\(4, height, width, 3\\) uint8"):
        drives(seen_at(8.0, pictures=shaded(1)[:3]))


def test_carried_path_is_relative_to_the_current_pose():
    turning = motion_models.Motion(6.0, 0.0, 0.3)
    ahead = np.arange(1, 65) * STEP_S
    plan, _ = turning.poses(ahead)
    later = policies.carried(plan, seen_at(6.0, 0.3))
    assert later[:63] == pytest.approx(plan[:63], abs=1e-4)
    assert later[63] == pytest.approx(plan[63], abs=0.02)


MINE = """
import numpy as np

def straight(observation):
    return np.stack([observation["ego"][-1, 3] * 0.4 * np.arange(1, 17), np.zeros(16)], axis=1)

class Counting:
    def __init__(self):
        self.asked = 0

    def __call__(self, observation):
        self.asked += 1
        return np.full((16, 2), self.asked)

def short(observation):
    return [(0.0, 0.0)] * 15

def lost(observation):
    return np.full((16, 2), np.nan)

def broken(observation):
    return observation["lidar"]

NOTHING = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_policies.py").write_text(MINE)
    monkeypatch.setenv(user_code.FOLDERS, str(tmp_path))
    return lambda name: policies.policy(f"my_policies:{name}", p_of(), no_answerer)


def test_user_policy_drives(mine):
    drives = mine("straight")
    drives.start(0, along(5.0))
    assert drives.name == "my_policies:straight"
    assert drives(seen_at(7.0))[-1] == pytest.approx([7 * 6.4, 0.0])
    counting = mine("Counting")
    for number in (0, 1):
        counting.start(number, along(5.0))
    last = [counting.several({0: seen_at(), 1: seen_at()}) for _ in range(2)][-1]
    assert last[0][0, 0] == last[1][0, 0] == 2, "each episode has its own policy object"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", "returned list of shape \\(15, 2\\)"),
        ("lost", "expected \\(16, 2\\) finite metres"),
        ("broken", "failed with KeyError: 'lidar'"),
    ],
)
def test_user_policy_errors_are_explained(mine, name, words):
    drives = mine(name)
    drives.start(0, along(5.0))
    with pytest.raises(AvomniError, match=words):
        drives(seen_at())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_policies:NOTHING", "a int cannot be called"),
        ("my_policies:absent", "has no 'absent'"),
        ("no_such_module:drive", "there is no module"),
        ("../mine.py:drive", "unknown policy"),
        ("swerving", "unknown policy 'swerving'"),
    ],
)
def test_unknown_policy_is_refused(mine, name, words):
    with pytest.raises(AvomniError, match=words):
        policies.policy(name, p_of(), no_answerer)
