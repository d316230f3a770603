"""The gymnasium environment: observations, vehicle model, traffic, events and expert."""

import dataclasses
import math
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from avomni_lib.dataset import cameras
from avomni_lib.driving.episode import Episode
from avomni_lib.driving.scores import SharedGeometry
from avomni_lib.errors import AvomniError
from avomni_world.driving import expert, traffic, vehicle
from avomni_world.driving.env import ROOM_M, DriveEnv
from avomni_world.scene import drive, textures
from avomni_world.scene.render import Renderer
from avomni_world.scene.scenes import make_scene

TWO = [[cameras.FRONT_WIDE.name, cameras.REAR_TELE.name]]
RIG = (cameras.FRONT_WIDE, cameras.REAR_TELE)
SMALL = {"cameras": TWO, "width": 64, "height": 36, "seconds": 2.0}
EVENTS = ("braking_leader", "stopped_car", "cut_in")


@pytest.fixture(scope="module")
def env():
    made = DriveEnv(**SMALL)
    yield made
    made.close()


@pytest.fixture(scope="module")
def blind():
    """An environment without cameras, which is fast."""
    return DriveEnv(cameras=None)


def straight(speed: float) -> np.ndarray:
    """Waypoints of a car that keeps its speed and its wheels straight."""
    ahead = speed * vehicle.WAYPOINT_S * np.arange(1, 17)
    return np.stack([ahead, np.zeros(16)], axis=-1).astype(np.float32)


def drive_with(env: DriveEnv, policy: Callable[[DriveEnv], np.ndarray], steps: int = 1000) -> dict:
    """Drive to the episode's end or for `steps` steps; returns the last info."""
    info: dict = {}
    for _ in range(steps):
        _, _, terminated, truncated, info = env.step(policy(env))
        if terminated or truncated:
            break
    return info


def contacts(episode: Episode) -> set[int]:
    """The actors that the ego touched."""
    return {contact.actor for contact in SharedGeometry(episode).contacts}


@pytest.mark.parametrize("action", ["waypoints", "controls"])
def test_environment_passes_gymnasiums_checker(action):
    values = SMALL | {"start_s": 1.1} if action == "waypoints" else {"cameras": None}
    made = gymnasium.make(
        "avomni_world.driving:avomni_world/Drive-v0",
        **values,
        action=action,
        render_mode="rgb_array",
    )
    with pytest.warns() as warned:
        check_env(made.unwrapped, skip_render_check=True)
    # Spaces in metres are wide on purpose, and the ego history is unbounded.
    known = ("minimum value is -infinity", "maximum value is infinity", "symmetric and normalized")
    known += ("probably too low", "probably too high")
    assert not [str(w.message) for w in warned if not any(k in str(w.message) for k in known)]
    if action == "waypoints":
        assert made.unwrapped.render().shape == (36, 128, 3)
    made.close()


def test_same_seed_gives_the_same_episode(env):
    def seen(made: DriveEnv, seed: int, other: DriveEnv | None = None) -> list[np.ndarray]:
        observation, info = made.reset(seed=seed)
        arrays = [info["past_cameras"], *observation.values()]
        rng = np.random.default_rng(seed)
        for _ in range(4):
            if other is not None:
                other.step(straight(3.0))
            bend = rng.normal(0, 0.3, (16, 2)).cumsum(axis=0)
            observation, reward, *_ = made.step(straight(9.0) + bend.astype(np.float32))
            arrays += [*observation.values(), np.array(reward)]
        return arrays

    first, another, second = seen(env, 3), seen(env, 4), seen(env, 3)
    beside = DriveEnv(**SMALL)  # steps alternate with another environment in the same process
    beside.reset(seed=5)
    third = seen(DriveEnv(**SMALL), 3, beside)
    beside.close()
    for a, b, c in zip(first, second, third, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    assert not np.array_equal(first[0], another[0])


def test_reset_without_a_seed_starts_a_different_episode(blind):
    blind.reset(seed=1)
    seeds = [blind.reset()[1]["seed"] for _ in range(2)]
    blind.reset(seed=1)
    assert seeds == [blind.reset()[1]["seed"] for _ in range(2)] and len(set(seeds)) == 2


@pytest.mark.parametrize("kind", traffic.KINDS)
def test_first_frames_equal_the_rendered_clip(env, kind):
    scene = make_scene(11, "harbour", 8.0, with_event=True, strays=True)
    observation, info = env.reset(options={"scene": scene, "traffic": kind})
    with Renderer(64, 36, RIG) as renderer:
        renderer.open(scene)
        clip = np.stack(list(renderer.frames(np.arange(17) / 10)))
    assert np.array_equal(info["past_cameras"], clip[:16])
    assert np.array_equal(observation["cameras"], clip[16])
    assert info["seed"] == 11


def test_observations_are_in_the_rig_frame(blind):
    blind.reset(seed=7)
    observation, *_ = blind.step(straight(8.0))
    ego, route = observation["ego"].astype(float), observation["route"].astype(float)
    assert ego[-1, :3] == pytest.approx([0, 0, 0]) and ego[-1, 3] == pytest.approx(
        blind.state.speed, abs=1e-5
    )
    x, y, yaw = blind.state.x, blind.state.y, blind.state.yaw
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    recorded = blind.recorded(np.arange(-15, 1) / 10)
    assert ego[:16, :2] @ turn.T + (x, y) == pytest.approx(recorded[:, :2], abs=1e-4)
    assert ego[:16, 2] + yaw == pytest.approx(recorded[:, 2], abs=1e-5)
    lane, _ = blind.scene.road.place(
        blind.along_m + np.arange(10.0, 210.0, 10.0), np.full(20, -1.8)
    )
    assert route @ turn.T + (x, y) == pytest.approx(lane, abs=1e-4)


def test_episode_records_ego_actors_and_road(blind):
    blind.reset(seed=7, options={"policy": "straight on", "traffic": "replay"})
    drive_with(blind, lambda env: straight(8.0), 12)
    episode, scene = blind.episode(), blind.scene
    assert (episode.seed, episode.policy) == (7, "straight on")
    assert episode.time_s == pytest.approx(np.arange(13) / 10)
    assert episode.ego.shape == (13, 4) and episode.reference.shape == (121, 4)
    assert episode.ego[0] == pytest.approx(episode.reference[0])
    assert episode.actors.shape == (13, len(scene.vehicles), 6)
    poses = scene.vehicle_poses(1.6 + episode.time_s)
    there = ~np.isnan(episode.actors[..., 0])
    apart = np.linalg.norm(episode.actors[..., :2] - poses[..., :2], axis=-1)
    middles = [np.linalg.norm(v.box[1][:2]) for v in scene.vehicles]
    assert apart[there] == pytest.approx(np.broadcast_to(middles, there.shape)[there], abs=1e-6)
    assert there.any() and not episode.is_static.any()
    steps = np.hypot(*np.diff(episode.road[:, :2], axis=0).T)
    assert steps.max() <= 1.02 and episode.lane_width == 3.6
    to_lane = np.linalg.norm(episode.road[:, None, :2] - episode.reference[:, :2], axis=-1)
    assert to_lane.min(axis=0).max() < 0.7
    assert sum(episode.drivable) == pytest.approx(2 * textures.TAR_M)
    assert episode.drivable[0] - episode.drivable[1] == pytest.approx(3.6)
    length, width, rear = episode.size
    assert (length, width) == (scene.vehicle.length, scene.vehicle.width) and 0.8 < rear < 1.4


@pytest.mark.parametrize("seed", [1, 5])
def test_following_the_recorded_drive_stays_on_it(blind, seed):
    """Exact waypoints through curves, stops and starts."""

    def recorded(env: DriveEnv) -> np.ndarray:
        later = env.recorded(env.step_idx / 10 + vehicle.WAYPOINT_S * np.arange(1, 17))
        return env.to_rig(later[:, :2])

    blind.reset(seed=seed, options={"traffic": "replay"})
    drive_with(blind, recorded, 100)
    episode = blind.episode()
    apart = episode.ego - episode.reference[: len(episode.ego)]
    assert np.linalg.norm(apart[:, :2], axis=1).max() < 1.5
    assert np.abs(apart[:, 3]).max() < 1.0
    assert np.ptp(episode.reference[:100, 3]) > 3.0


def state(speed: float) -> vehicle.VehicleState:
    return vehicle.VehicleState(3.0, -2.0, 0.7, speed, 0.0, 0.0)


def after(
    start: vehicle.VehicleState, waypoints: np.ndarray, seconds: float
) -> vehicle.VehicleState:
    """The state after following the same rig-frame waypoints in every step."""
    for _ in range(round(seconds * 10)):
        start = vehicle.advance(start, 3.0, *vehicle.track(start, waypoints, 3.0), 0.1)
    return start


def test_vehicle_follows_the_speed_and_direction_of_waypoints():
    steady = after(state(10.0), straight(10.0), 2.0)
    assert (steady.speed, steady.yaw) == pytest.approx((10.0, 0.7), abs=1e-6)
    assert math.dist((steady.x, steady.y), (3.0, -2.0)) == pytest.approx(20.0, abs=1e-3)
    assert after(state(10.0), straight(0.0), 5.0).speed == 0.0
    assert after(state(10.0), -straight(3.0), 5.0).speed == 0.0  # the vehicle does not reverse
    assert after(state(0.0), straight(6.0), 5.0).speed == pytest.approx(6.0, abs=0.05)
    turn = 10.0 * vehicle.WAYPOINT_S * np.arange(1, 17) / 50.0  # on a circle of 50 m to the left
    circle = 50.0 * np.stack([np.sin(turn), 1 - np.cos(turn)], axis=-1)
    begun = after(state(10.0), circle, 2.0)
    turned = after(begun, circle, 1.0).yaw - begun.yaw
    assert turned == pytest.approx(10.0 / 50.0, rel=0.05)  # the chords lie inside the circle


def test_steering_is_limited_by_the_grip_of_the_tyres():
    fast = vehicle.advance(state(30.0), 3.0, 0.0, lambda _: 0.6, 1.0)
    assert 30.0**2 * math.tan(fast.steer) / 3.0 == pytest.approx(vehicle.GRIP_MPS2, rel=0.1)


def test_actions_out_of_range_are_clipped_and_invalid_ones_refused():
    made = DriveEnv(cameras=None, action="controls", seconds=2.0)
    ends = []
    for action in ([100.0, 9.0], [4.0, 0.6]):
        made.reset(seed=2)
        drive_with(made, lambda env, action=action: np.array(action), 5)
        ends.append(dataclasses.astuple(made.state))
    assert ends[0] == ends[1]
    for wrong in ([1.0], [np.nan, 0.0], [np.inf, 0.0], np.zeros((16, 2))):
        with pytest.raises(AvomniError, match=r"an action of shape[\s\S]*give controls of shape"):
            made.step(np.array(wrong))


def test_episode_ends_far_off_the_road():
    made = DriveEnv(cameras=None, action="controls")
    made.reset(seed=1)
    info = drive_with(made, lambda env: np.array([2.0, -0.3]))
    assert info["end"] == "lost" and abs(info["left_m"]) > 15
    assert info["time_s"] < 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"traffic": "none"}, "unknown kind of traffic"),
        ({"event": "flood"}, "unknown event"),
        ({"action": "pedals"}, "unknown kind of action"),
        ({"town": "medow"}, "unknown town"),
        ({"seconds": 1.23}, "not a number of steps"),
        ({"render_mode": "human"}, "render_mode"),
    ],
)
def test_unknown_options_are_named_in_the_error(values, message):
    with pytest.raises(AvomniError, match=message):
        DriveEnv(**values)


def test_too_short_scene_and_unknown_reset_option_are_refused(blind):
    with pytest.raises(AvomniError, match=r"the recorded drive spans[\s\S]*clip_seconds"):
        DriveEnv(cameras=None, seconds=30.0).reset(seed=1)
    with pytest.raises(AvomniError, match="unknown options colour"):
        blind.reset(seed=1, options={"colour": "red"})


FOLLOWED = 12  # a seed whose recorded car drives 20 m/s and is followed by another


def followed(blind: DriveEnv, kind: str) -> tuple[Episode, int, np.ndarray]:
    """Brake in front of a following car; returns the episode, its index, its positions in m."""
    blind.reset(seed=FOLLOWED, options={"traffic": kind})
    behind = [v.follows and v.along_m < 0 for v in blind.scene.vehicles].index(True)
    assert blind.state.speed > 15
    along = []

    def brake(env: DriveEnv) -> np.ndarray:
        along.append(env.traffic.along[behind])
        way = env.along_m + np.concatenate([[0.01, 0.02], np.linspace(1.0, 20.0, 14)])
        return env.to_rig(env.scene.road.place(way, np.full(16, -1.8))[0])

    drive_with(blind, brake, 100)
    return blind.episode(), behind, np.array(along)


def test_idm_brakes_behind_the_ego_and_replay_does_not(blind):
    reactive, behind, along = followed(blind, "idm")
    assert reactive.ego[-1, 3] == 0.0
    assert not contacts(reactive)
    assert np.diff(along)[-5:].max() < 0.05 < np.diff(along)[0]
    replayed, behind, along = followed(blind, "replay")
    recorded = blind.scene.drive.at(1.6 + np.arange(100) / 10)["along"]
    assert along == pytest.approx(recorded + blind.scene.vehicles[behind].along_m)
    assert behind in contacts(replayed)


def test_car_following_keeps_its_distance():
    """A car at 20 m/s behind a car standing 80 m ahead, and behind a braking one."""
    for other, slows in ((0.0, 0.0), (20.0, -4.0)):
        speed, gap, hardest = 20.0, 80.0 if other == 0 else 20.0, 0.0
        for _ in range(300):
            pull = traffic.car_following(speed, gap, other, slows if other else 0.0)
            pull = min(pull, 4 * (20.0 - speed))
            hardest = min(hardest, pull)
            gap += (other - speed) * 0.1
            speed, other = max(speed + pull * 0.1, 0.0), max(other + slows * 0.1, 0.0)
        assert speed < 0.05 and 0.5 < gap < 3.0
        assert hardest > -7.0
    # A near car that is not slower needs no hard braking.
    assert traffic.car_following(20.0, 8.0, 21.0) > -2.5
    assert traffic.car_following(20.0, 8.0, 5.0) == -traffic.HARDEST


@pytest.mark.parametrize("kind", traffic.KINDS)
@pytest.mark.parametrize("event", EVENTS)
def test_expert_drives_through_events_without_contact(blind, event, kind):
    blind.reset(seed=3, options={"event": event, "traffic": kind})
    assert id(blind.traffic.vehicles[-1]) not in map(id, blind.scene.vehicles)
    aside = []

    def watched(env: DriveEnv) -> np.ndarray:
        ahead = env.traffic.along[-1] - env.along_m
        aside.append((env.traffic.left[-1], env.traffic.speed[-1], ahead))
        return expert.waypoints(env)

    drive_with(blind, watched)
    episode, (left, speed, ahead) = blind.episode(), np.array(aside).T
    assert not contacts(episode)
    assert (ahead > 0).all()
    if event == "stopped_car":
        assert episode.is_static.tolist() == [False] * (len(episode.is_static) - 1) + [True]
        assert (speed == 0).all() and np.ptp(left) == 0
        assert episode.ego[-1, 3] < episode.ego[:, 3].max() - 2
    elif event == "braking_leader":
        assert speed[0] >= 5.0 and speed[-1] < 0.5 and left == pytest.approx(-1.8)
        assert np.diff(speed).min() < -0.2
    else:
        assert left[0] == pytest.approx(1.8) and left[-1] == pytest.approx(-1.8)
        assert (ahead[np.abs(left + 1.8) < 1.0] < 40).any()
        turned = np.abs(episode.actors[:, -1, 2] - episode.ego[:, 2])
        assert turned[20:60].max() > 0.03


def test_event_only_removes_vehicles_in_its_way(blind):
    blind.reset(seed=3)
    usual = blind.traffic.vehicles
    assert list(map(id, usual)) == list(map(id, blind.scene.vehicles))
    for event in EVENTS:
        blind.reset(options={"scene": blind.scene, "event": event})
        assert set(map(id, blind.traffic.vehicles[:-1])) <= set(map(id, usual))
        first = blind.traffic.poses()
        blind.reset(options={"scene": blind.scene, "event": event})
        assert np.array_equal(blind.traffic.poses(), first)


def test_road_reaches_the_end_of_the_longest_episode():
    made = DriveEnv(cameras=None, seconds=17.0)

    def hurry(env: DriveEnv) -> np.ndarray:
        along = env.along_m + 29.0 * vehicle.WAYPOINT_S * np.arange(1, 17)
        return env.to_rig(env.scene.road.place(along, np.full(16, -1.8))[0])

    for seed in (1, 2):  # a fast recorded drive, and a slow one
        made.reset(seed=seed)
        info = drive_with(made, hurry)
        assert info["end"] in ("time", "world") and abs(info["left_m"]) < 1.0
        road = np.concatenate([m.points for m in made.scene.meshes if m.texture == "road"])
        ahead, _ = made.scene.road.place(
            made.along_m + np.arange(0.0, ROOM_M - 5.0, 5.0), np.full(19, -1.8)
        )
        assert np.linalg.norm(road[:, None, :2] - ahead, axis=-1).min(axis=0).max() < 4.0
        assert len(made.episode().ego) > 60


def test_locate_inverts_place():
    road = make_scene(4, "meadow", 2.0).road
    rng = np.random.default_rng(3)
    for along, left in zip(rng.uniform(-300, 600, 30), rng.uniform(-8, 8, 30), strict=True):
        (x, y), heading = road.place(np.array(along), np.array(left))
        located = road.locate(float(x), float(y), along + rng.uniform(-20, 20))
        assert located == pytest.approx((along, left, float(heading)), abs=2e-2)
    assert drive.NEAR_M > 20


@pytest.mark.parametrize("seed", [2, 9])
def test_expert_returns_to_the_middle_of_the_lane(blind, seed):
    scene = make_scene(seed, "harbour", 8.0, strays=True)
    blind.reset(options={"scene": scene})
    strayed = abs(blind.left_m)
    info = drive_with(blind, expert.waypoints)
    assert info["end"] == "time" and abs(info["left_m"]) < min(0.1, strayed)
    assert not contacts(blind.episode())
