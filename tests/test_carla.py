"""The agent for CARLA's leaderboard, tested with stubs and without a CARLA server."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras
from avomni_lib.dataset.download import download
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.targets import target
from tests import cached_run
from tests.published_set import write_published_set


@dataclasses.dataclass
class VehicleControl:
    throttle: float = 0.0
    steer: float = 0.0
    brake: float = 0.0


class AutonomousAgent:
    """Stub of the leaderboard's base class of agents."""

    def __init__(self, host: str, port: int, debug: bool = False):
        self.track = None


@pytest.fixture
def agent(monkeypatch):
    """The module, imported with stubs of `carla` and `leaderboard`."""
    named = {"carla": ModuleType("carla")}
    named["carla"].VehicleControl = VehicleControl
    for name in ("leaderboard", "leaderboard.autoagents"):
        named[name] = ModuleType(name)
    base = named["leaderboard.autoagents.autonomous_agent"] = ModuleType("autonomous_agent")
    base.AutonomousAgent, base.Track = AutonomousAgent, enum.Enum("Track", ["SENSORS", "MAP"])
    for name, module in named.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("avomni_lib.driving.carla")
    sys.modules.pop("avomni_lib.driving.carla")


def test_missing_leaderboard_error_names_what_to_install():
    with pytest.raises(AvomniError, match="CARLA's leaderboard is not there") as caught:
        importlib.import_module("avomni_lib.driving.carla")
    assert "pip install carla" in caught.value.fix


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0, 0, 0), (148, -3, 0), (-65, 4, 2)])
def test_cameras_are_placed_as_on_the_rig(agent, yaw, pitch, roll):
    """Angles in the rig frame: left, up, and clockwise as seen from behind."""
    looks = Rotation.from_euler("ZYX", [yaw, -pitch, roll], degrees=True)
    # Camera frame: x right, y down, z forward.
    lens = Rotation.from_matrix(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    quaternion = (looks * lens).as_quat()
    pose = dict(zip(("qx", "qy", "qz", "qw"), quaternion.tolist(), strict=True))
    pose |= {"x": 1.75, "y": -0.98, "z": 1.46}
    made = agent.camera_sensor(cameras.REAR_RIGHT, {"width": 1920, "height": 1080}, pose, 1.4)
    assert (made["x"], made["y"], made["z"]) == pytest.approx((0.35, 0.98, 1.46))
    assert (made["yaw"], made["pitch"], made["roll"]) == pytest.approx((-yaw, pitch, roll))
    assert (made["width"], made["height"], made["fov"]) == (640, 360, 70)


def straight(speed: float, bend: float = 0.0) -> np.ndarray:
    ahead = 0.4 * np.arange(1, 17)
    return np.stack([speed * ahead, bend * (speed * ahead) ** 2 / 2], axis=1)


def test_waypoints_are_converted_to_throttle_brake_and_steering(agent):
    steady = agent.control(straight(10.0), 10.0, 2.8)
    assert (steady.throttle, steady.steer, steady.brake) == pytest.approx((0, 0, 0), abs=1e-9)
    assert agent.control(straight(12.0), 10.0, 2.8).throttle == 1.0
    assert agent.control(straight(10.0), 13.0, 2.8).brake == pytest.approx(7.5 / 8)
    for waypoints in (np.zeros((16, 2)), straight(-2.0)):
        stopped = agent.control(waypoints, 3.0, 2.8)
        assert (stopped.throttle, stopped.brake) == (0.0, 1.0)
    left = agent.control(straight(10.0, bend=1 / 50), 10.0, 2.8)
    assert left.steer == pytest.approx(-math.atan(2.8 / 50) / math.radians(70), rel=0.1)


def test_agent_samples_at_10_hz_and_integrates_its_pose(agent, monkeypatch, tmp_path):
    published = write_published_set(tmp_path / "published", 1, cached_run.CLIPS_PER_CHUNK, 2.0)
    values = cached_run.values(
        tmp_path, training={"target": "future_v1"}, download={"target_chunks": 1}
    )
    assert published == tmp_path / "published"
    p = Params.from_values(values)
    download.fetch(p, None)
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(
        agent,
        "Answerer",
        lambda p: SimpleNamespace(p=p, name="adapted", target=target("future_v1")),
    )
    seen = []

    def answer(self, observation, number=0):
        seen.append(observation)
        return straight(5.0)

    monkeypatch.setattr(agent.ModelPolicy, "__call__", answer)
    made = getattr(agent, agent.get_entry_point())("localhost", 2000)
    made.setup(str(config))
    assert made.track.name == "SENSORS"
    sensors = {sensor["id"]: sensor for sensor in made.sensors()}
    names = [sensor.name for sensor in cameras.grid(p.vision.cameras).cameras]
    assert list(sensors) == [*names, "imu", "speed"]
    assert sensors["speed"]["type"] == "sensor.speedometer"
    bgra = np.zeros((36, 64, 4), np.uint8)
    bgra[:] = (1, 2, 3, 255)
    for step in range(41):  # 2 s at 20 Hz: 5 m/s, turning right by 0.1 rad/s
        data = dict.fromkeys(names, (step, bgra))
        data |= {"imu": (step, [0, 0, 9.8, 0, 0, 0.1, 0]), "speed": (step, {"speed": 5.0})}
        control = made.run_step(data, 30.0 + step / 20)
    assert len(seen) == 21
    assert seen[0]["cameras"].shape == (len(names), 36, 64, 3)
    assert seen[0]["cameras"][0, 0, 0].tolist() == [3, 2, 1]
    assert np.isnan(seen[0]["ego"][:-1]).all() and not np.isnan(seen[16]["ego"]).any()
    x, y, yaw, speed = seen[-1]["ego"][0]  # 1.6 s ago
    radius, turned = 5 / 0.1, 0.16
    assert (x, y) == pytest.approx(
        (-radius * math.sin(turned), -radius * (1 - math.cos(turned))), abs=0.01
    )
    assert (yaw, speed) == pytest.approx((turned, 5.0))
    assert isinstance(control, VehicleControl) and control.brake == pytest.approx(0.0)
