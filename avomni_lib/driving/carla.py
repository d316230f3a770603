"""The trained model as an agent of CARLA's leaderboard. **Not tested against a server.**

Pass this file and the params file of a trained run to the leaderboard:

    leaderboard_evaluator.py --agent=avomni_lib/driving/carla.py --agent-config=params/own.yaml ...

The cameras are mounted as in the run's first training clip. CARLA's cameras are pinholes: they
have the same horizontal field of view as the model's, but not the same lens. The model does not
receive the route.

Frames of reference: here x is forward, y left, angles turn left and the origin is the rear axle;
in CARLA y is to the right, angles turn right, and sensors are placed relative to the car's centre
(carla.org, coordinates).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.dataset.select.manifest import read_chosen
from avomni_lib.driving.policies import ModelPolicy
from avomni_lib.errors import AvomniError
from avomni_lib.etl.clip.trajectory import HISTORY_STEPS, STEP_S
from avomni_lib.live.answerer import Answerer
from avomni_lib.params import Params
from avomni_lib.training.targets.future import STEPS_APART

try:
    import carla
    from leaderboard.autoagents.autonomous_agent import AutonomousAgent, Track
except ImportError as _error:
    raise AvomniError(
        f"CARLA's leaderboard is not there: {_error}",
        where="avomni_lib/driving/carla.py",
        fix="pip install carla, and put leaderboard and scenario_runner on PYTHONPATH",
    ) from None

WIDTH_PX = 640  # of each picture; the height follows from the lens
SPEED, IMU = "speed", "imu"
YAW_RATE = 5  # index into the IMU's seven numbers; rad/s to the right
WAYPOINT_S = STEPS_APART * STEP_S
SPEED_AHEAD = 2  # number of waypoints after which the planned speed is reached
AHEAD_M, AHEAD_S = 4.0, 0.55  # look-ahead of pure pursuit: metres at 0 m/s, and more per m/s
FULL_THROTTLE_MPS2, FULL_BRAKE_MPS2 = 4.0, 8.0
STOP_MPS = 0.2  # a slower plan means: stand still
MOST_STEER_RAD = math.radians(70)  # angle of the front wheels of CARLA's cars at steer = 1


def get_entry_point() -> str:
    """Name of the agent's class; called by the leaderboard."""
    return "AvomniAgent"


class AvomniAgent(AutonomousAgent):  # type: ignore[misc]
    """Runs the model ten times a second, however often the leaderboard calls it."""

    def setup(self, path_to_conf_file: str) -> None:
        """Load the run's model.

        Raises:
            AvomniError: no such run, or its target contains no path.
        """
        self.track = Track.SENSORS
        p = Params.from_files([path_to_conf_file])
        clip_id = read_chosen(p).clip_ids["train"][0]
        self._clip = Clip(p.local_dir, Catalog.of(p), clip_id)
        self._cameras = cameras.grid(p.vision.cameras).cameras
        self._wheelbase_m = self._clip.vehicle()["wheelbase"]
        self._policy = ModelPolicy(Answerer(p))
        self._policy.start(0, np.zeros((1, 4)))
        self._poses: list[np.ndarray] = []  # x, y, yaw, speed every 0.1 s, relative to the start
        self._pose = np.zeros(4)
        self._begun_s: float | None = None
        self._last_s = 0.0
        self._control = carla.VehicleControl(throttle=0.0, steer=0.0, brake=1.0)

    def sensors(self) -> list[dict[str, Any]]:
        """The grid's cameras, the speed and the yaw rate."""
        middle_m = self._clip.vehicle()["rear_axle_to_bbox_center"]
        sensors = [
            camera_sensor(
                camera,
                self._clip.intrinsics(camera.name),
                self._clip.extrinsics(camera.name),
                middle_m,
            )
            for camera in self._cameras
        ]
        at_centre = dict.fromkeys(("x", "y", "z", "roll", "pitch", "yaw"), 0.0)
        sensors.append({"type": "sensor.other.imu", "id": IMU, **at_centre})
        sensors.append({"type": "sensor.speedometer", "id": SPEED, "reading_frequency": 20})
        return sensors

    def run_step(self, input_data: Mapping[str, tuple[int, Any]], timestamp: float) -> Any:
        """The `carla.VehicleControl` for this step.

        Args:
            input_data: Sensor -> (frame number, data); images are (H, W, 4) uint8 BGRA.
            timestamp: Simulation time in seconds.
        """
        speed = float(input_data[SPEED][1]["speed"])
        if self._begun_s is None:
            self._begun_s = self._last_s = timestamp
        self._move(speed, -float(input_data[IMU][1][YAW_RATE]), timestamp - self._last_s)
        self._last_s = timestamp
        if timestamp - self._begun_s >= len(self._poses) * STEP_S - 1e-6:
            self._poses.append(self._pose.copy())
            pictures = [input_data[camera.name][1][..., 2::-1] for camera in self._cameras]
            waypoints = self._policy({"cameras": np.stack(pictures), "ego": self._ego()})
            self._control = control(waypoints, speed, self._wheelbase_m)
        return self._control

    def _move(self, speed: float, yaw_rate: float, seconds: float) -> None:
        """Dead reckoning from the speedometer and the gyroscope."""
        x, y, yaw, _ = self._pose
        turn, way = yaw_rate * seconds, speed * seconds
        x, y = x + way * math.cos(yaw + turn / 2), y + way * math.sin(yaw + turn / 2)
        self._pose = np.array([x, y, yaw + turn, speed])

    def _ego(self) -> np.ndarray:
        """(17, 4) the last 1.6 s as `policies` defines `ego`; NaN before the start."""
        ego = np.full((HISTORY_STEPS + 1, 4), np.nan)
        recent = np.array(self._poses[-len(ego) :])
        x, y, yaw, _ = recent[-1]
        cos, sin = math.cos(yaw), math.sin(yaw)
        ego[-len(recent) :, :2] = (recent[:, :2] - (x, y)) @ np.array([[cos, -sin], [sin, cos]])
        ego[-len(recent) :, 2], ego[-len(recent) :, 3] = recent[:, 2] - yaw, recent[:, 3]
        return ego


def camera_sensor(
    camera: cameras.Camera,
    intrinsics: Mapping[str, float],
    extrinsics: Mapping[str, float],
    middle_m: float,
) -> dict[str, Any]:
    """The leaderboard's description of a camera.

    Args:
        intrinsics, extrinsics: As returned by `Clip`.
        middle_m: Distance from the rear axle to the car's centre.
    """
    to_rig = Rotation.from_quat([extrinsics[f"q{axis}"] for axis in "xyzw"])
    right, out = to_rig.apply([1.0, 0.0, 0.0]), to_rig.apply([0.0, 0.0, 1.0])
    pitch = math.asin(float(np.clip(out[2], -1, 1)))
    return {
        "type": "sensor.camera.rgb",
        "id": camera.name,
        "x": extrinsics["x"] - middle_m,
        "y": -extrinsics["y"],
        "z": extrinsics["z"],
        "roll": -math.degrees(math.asin(float(np.clip(right[2] / math.cos(pitch), -1, 1)))),
        "pitch": math.degrees(pitch),
        "yaw": -math.degrees(math.atan2(out[1], out[0])),
        "width": WIDTH_PX,
        "height": round(WIDTH_PX * intrinsics["height"] / intrinsics["width"]),
        "fov": camera.fov_deg,
    }


def control(waypoints: np.ndarray, speed: float, wheelbase_m: float) -> Any:
    """The `carla.VehicleControl` that follows waypoints (16, 2) m, 0.4 s apart.

    Steering is pure pursuit (Coulter, CMU-RI-TR-92-01).
    """
    horizon_s = SPEED_AHEAD * WAYPOINT_S
    wanted = max(float(waypoints[SPEED_AHEAD - 1, 0]), 0.0) / horizon_s
    pull = 2 * (wanted - speed) / horizon_s
    distances = np.hypot(*waypoints.T)
    target = waypoints[
        min(np.searchsorted(distances, AHEAD_M + AHEAD_S * speed), len(waypoints) - 1)
    ]
    bearing, distance = math.atan2(target[1], target[0]), math.hypot(*target)
    steer = math.atan2(2 * wheelbase_m * math.sin(bearing), max(distance, 1.0))
    is_stand = wanted < STOP_MPS
    return carla.VehicleControl(
        throttle=0.0 if is_stand else min(max(pull / FULL_THROTTLE_MPS2, 0.0), 1.0),
        steer=min(max(-steer / MOST_STEER_RAD, -1.0), 1.0),
        brake=1.0 if is_stand else min(max(-pull / FULL_BRAKE_MPS2, 0.0), 1.0),
    )
