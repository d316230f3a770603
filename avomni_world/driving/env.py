"""The rendered world as a gymnasium environment: a car with cameras that follows its actions.

A drive begins in a clip, `start_s` after the clip's start, exactly as recorded: the first picture
is the clip's, byte for byte. From there on the ego follows the actions, and the others move by
`traffic`, `replay` or `idm`.

Limits of this world: the road is one centre line with two lanes. There are no junctions, traffic
lights, signs or lanes to choose from, so a route is the right-hand lane.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from avomni_lib.dataset import cameras as rig
from avomni_lib.driving.episode import Episode
from avomni_lib.errors import AvomniError, pick
from avomni_lib.etl.clip import tiling
from avomni_lib.etl.clip.trajectory import HISTORY_STEPS
from avomni_lib.params import grids
from avomni_world.driving import vehicle
from avomni_world.driving.events import EVENTS, STEP_S
from avomni_world.driving.traffic import KINDS, Traffic
from avomni_world.driving.vehicle import NUM_WAYPOINTS, VehicleState
from avomni_world.scene import drive as drives
from avomni_world.scene import scenery, textures, towns
from avomni_world.scene.render import Renderer
from avomni_world.scene.scenes import VIDEO_MARGIN_S, Scene, make_scene

STEPS_A_SECOND = round(1 / STEP_S)
NUM_ROUTE, ROUTE_STEP_M = 20, 10.0
REACH_M = 250.0  # in 6.4 s; farther waypoints are clipped
ROOM_M = 100.0  # an episode ends if less of the world is ahead
LOST_M = 15.0  # from the lane's centre: an episode ends there, beyond the scenery
ROAD_BEHIND_M = 50.0  # of the start, in `Episode.road`

ACTIONS = {
    "waypoints": spaces.Box(-REACH_M, REACH_M, (NUM_WAYPOINTS, 2), np.float32),
    "controls": spaces.Box(
        np.array([vehicle.MIN_ACCELERATION, -drives.MAX_STEER_RAD], np.float32),
        np.array([vehicle.MAX_ACCELERATION, drives.MAX_STEER_RAD], np.float32),
    ),
}


class DriveEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One drive of at most `seconds`, with ten decisions a second.

    Observation, a dict; the rig's frame is x forward, y left, origin on the ground below the middle
    of the rear axle:
        cameras: (n, height, width, 3) uint8 RGB, the grid's cameras in the order of their first
            cells; absent where `cameras` is None.
        ego: (17, 4) float32, x, y (m), yaw (rad), speed (m/s) every 0.1 s from 1.6 s ago until now.
        route: (20, 2) float32, x, y (m) of the lane's centre every 10 m along the road ahead.

    Action, one of:
        waypoints: (16, 2) float32, x, y (m) 0.4 s apart in the rig's frame now, as `future_v1`.
        controls: (2,) float32, acceleration (m/s²) and steering angle (rad, to the left).
    Values outside the action space are clipped to it; another shape or NaN is an error.

    The reward is the distance along the road in m. An episode is terminated if the ego is far off
    the road, and truncated after `seconds` or if less than 100 m of the world are ahead. Scoring is
    separate: see `episode`.

    Args:
        town: One of `avomni_world.scene.towns`.
        cameras: A grid as `vision.cameras` names it, or None to draw nothing.
        width, height: Pixels of each camera's picture.
        traffic: `replay` or `idm`.
        event: `braking_leader`, `stopped_car`, `cut_in` or None.
        action: `waypoints` or `controls`.
        seconds: Longest episode.
        clip_seconds: Length of the clip that a drive begins in; another length gives another world.
        start_s: Start of the drive within the clip, in steps of 0.1 s.
        render_mode: `rgb_array` draws the grid.

    Raises:
        AvomniError: an unknown name, or times that do not fit.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (gymnasium's own name and type)
        "render_modes": ["rgb_array"],
        "render_fps": STEPS_A_SECOND,
    }

    def __init__(
        self,
        *,
        town: str = "harbour",
        cameras: str | grids.Rows | None = "4-cam",
        width: int = 128,
        height: int = 72,
        traffic: str = "idm",
        event: str | None = None,
        action: str = "waypoints",
        seconds: float = 12.0,
        clip_seconds: float = 8.0,
        start_s: float = HISTORY_STEPS * STEP_S,
        render_mode: str | None = None,
    ):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise AvomniError(f"unknown {render_mode=}", fix="choose rgb_array or None")
        self.render_mode = render_mode
        self._town, self._clip_seconds = towns.town(town), clip_seconds
        self._traffic, self._event = _kind_of(traffic), _event_of(event)
        self.num_steps, self._start = _steps(seconds, "seconds"), _steps(start_s, "start_s")
        self._grid = None if cameras is None else rig.grid(cameras)
        self._size = width, height
        self._renderer: Renderer | None = None
        self._made: Scene | None = None
        self._picture: np.ndarray | None = None
        self._mode = action
        self.action_space = pick(ACTIONS, action, "kind of action", "action")
        observed: dict[str, spaces.Space[Any]] = {
            "ego": spaces.Box(-np.inf, np.inf, (HISTORY_STEPS + 1, 4), np.float32),
            "route": spaces.Box(-np.inf, np.inf, (NUM_ROUTE, 2), np.float32),
        }
        if self._grid is not None:
            shape = (len(self._grid.cameras), height, width, 3)
            observed["cameras"] = spaces.Box(0, 255, shape, np.uint8)
        self.observation_space: spaces.Dict = spaces.Dict(observed)  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a drive.

        Args:
            seed: Seed of the world and the drive, as for a clip; None draws the next of a random
                series.
            options: `scene`, a `Scene` to drive in instead (for example of a published clip);
                `traffic`, `event` and `policy` (who drives, for the record) for this episode.

        Returns:
            The observation, and an info with `seed` and `past_cameras`: (steps, n, height, width,
            3) uint8, what the cameras saw every 0.1 s from the clip's start until just before.

        Raises:
            AvomniError: an unknown option, or a scene too short for the episode.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        scene = options.pop("scene", None)
        event = _event_of(options.pop("event", self._event))
        kind = _kind_of(options.pop("traffic", self._traffic))
        self._policy = str(options.pop("policy", ""))
        if options:
            raise AvomniError(f"unknown options {', '.join(options)}", where="reset")
        if scene is None:
            seed = int(self.np_random.integers(2**32)) if seed is None else seed
            if self._made is None or self._made.seed != seed:  # all policies drive the same seeds
                self._made = make_scene(seed, self._town, self._clip_seconds)
            scene = self._made
        self.scene: Scene = scene
        driven_s = (self._start + self.num_steps) * STEP_S
        if self._start - HISTORY_STEPS < -drives.BEFORE_S / STEP_S or driven_s > scene.drive.end_s:
            raise AvomniError(
                f"the recorded drive spans {-drives.BEFORE_S} … {scene.drive.end_s:.1f} s of the "
                f"clip; the episode and the 1.6 s before it "
                f"{(self._start - HISTORY_STEPS) * STEP_S:.1f} … {driven_s:.1f} s",
                where=f"start_s={self._start * STEP_S:g}, seconds={self.num_steps * STEP_S:g}",
                fix="raise clip_seconds, or take start_s and seconds that fit",
            )
        self.traffic = Traffic(scene, kind, event, self._start, self._start + self.num_steps)
        last_s = np.array(scene.seconds + VIDEO_MARGIN_S)
        self._world_end_m = float(scene.drive.at(last_s)["along"]) + scenery.VIEW_M
        self._stage = SimulatedScene(scene, self.traffic)
        past = self._drive_as_recorded()
        self.step_idx = 0
        info: dict[str, Any] = {"seed": scene.seed}
        if past is not None:
            info["past_cameras"] = past
        return self._observe(), info

    def _drive_as_recorded(self) -> np.ndarray | None:
        """Drive from the clip's start to the episode's start, and return what the cameras saw."""
        first = min(0, self._start - HISTORY_STEPS)
        times = np.arange(first, self._start + 1) / STEPS_A_SECOND
        motion = self.scene.drive.at(times)
        poses = np.stack([motion[name] for name in ("x", "y", "yaw", "speed")], axis=-1)
        pictures = []
        for step in range(self._start if self._grid is not None else 0):
            self.traffic.show(step)
            self._stage.ego = poses[step - first, :3]
            pictures.append(self._draw())
        self.traffic.show(self._start)
        steer = math.atan(float(motion["curvature"][-1]) * self.scene.vehicle.wheelbase)
        x, y, yaw, speed = poses[-1].tolist()
        self.state = VehicleState(x, y, yaw, speed, float(motion["acceleration"][-1]), steer)
        self._begin_m = self._locate(float(motion["along"][-1]))
        self._poses = list(poses[-HISTORY_STEPS - 1 :])
        self._actors = [self.traffic.actors()]
        return np.stack(pictures) if pictures else None

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance by 0.1 s.

        Returns:
            Observation, reward, terminated, truncated, and an info: `time_s` since the start,
            `along_m` since the start, `left_m` from the lane's centre, and `end`: "", or why the
            episode ended: `time`, `world` or `lost`.

        Raises:
            AvomniError: an action of another shape, or with a value that is not finite.
        """
        acceleration, steering = self._controls(action)
        ego, half = self.ego_box()
        self.traffic.step(ego, half)
        wheelbase_m = self.scene.vehicle.wheelbase
        self.state = vehicle.advance(self.state, wheelbase_m, acceleration, steering, STEP_S)
        self.step_idx += 1
        self._poses.append(self._pose())
        self._actors.append(self.traffic.actors())
        before = self.along_m
        self._locate(before)
        info = {
            "time_s": self.step_idx / STEPS_A_SECOND,
            "along_m": self.along_m - self._begin_m,
            "left_m": self.left_m,
            "end": self._end(),
        }
        observation, is_lost = self._observe(), info["end"] == "lost"
        is_over = info["end"] in ("time", "world")
        return observation, self.along_m - before, is_lost, is_over, info

    def _end(self) -> str:
        if abs(self.left_m) > LOST_M:
            return "lost"
        if self.step_idx >= self.num_steps:
            return "time"
        return "world" if self._world_end_m - self.along_m < ROOM_M else ""

    def _controls(self, action: np.ndarray) -> tuple[float, vehicle.Steering]:
        action, space = np.asarray(action, np.float64), self.action_space
        if action.shape != space.shape or not np.isfinite(action).all():
            raise AvomniError(
                f"an action of shape {action.shape}"
                + ("" if np.isfinite(action).all() else " that is not finite everywhere"),
                where=f"step {self.step_idx}",
                fix=f"give {self._mode} of shape {space.shape}",
            )
        assert isinstance(space, spaces.Box)
        action = np.clip(action, space.low, space.high)
        if self._mode == "waypoints":
            return vehicle.track(self.state, action, self.scene.vehicle.wheelbase)
        acceleration, steer = action.tolist()
        return acceleration, lambda _: steer

    def _pose(self) -> np.ndarray:
        return np.array([self.state.x, self.state.y, self.state.yaw, self.state.speed])

    def _locate(self, near_m: float) -> float:
        """Locate the rig along the road and beside the lane's centre."""
        self.along_m, left, heading = self.scene.road.locate(self.state.x, self.state.y, near_m)
        self.left_m, self.heading = left - drives.EGO_OFFSET_M, heading
        return self.along_m

    def ego_box(self) -> tuple[tuple[float, float, float], tuple[float, float]]:
        """The ego as the others see it: its box's centre along the road and to the left of the
        centre line, m, its speed along the road, m/s, and half its extent along and across, m."""
        size, turn = self.scene.vehicle, self.state.yaw - self.heading
        cos, sin = math.cos(turn), math.sin(turn)
        ahead = size.rear_axle_to_bbox_center
        left = self.left_m + drives.EGO_OFFSET_M
        middle = self.along_m + ahead * cos, left + ahead * sin, self.state.speed * cos
        half_length, half_width = size.length / 2, size.width / 2
        along = half_length * abs(cos) + half_width * abs(sin)
        return middle, (along, half_length * abs(sin) + half_width * abs(cos))

    def to_rig(self, points: np.ndarray) -> np.ndarray:
        """Points (…, 2) of the world in the rig's current frame."""
        cos, sin = math.cos(self.state.yaw), math.sin(self.state.yaw)
        turn = np.array([[cos, sin], [-sin, cos]])
        turned: np.ndarray = (np.asarray(points) - (self.state.x, self.state.y)) @ turn.T
        return turned

    def _observe(self) -> dict[str, np.ndarray]:
        poses = np.array(self._poses[-HISTORY_STEPS - 1 :])
        yaw = np.unwrap(poses[:, 2])
        ego = np.column_stack([self.to_rig(poses[:, :2]), yaw - yaw[-1], poses[:, 3]])
        ahead = self.along_m + np.arange(1, NUM_ROUTE + 1) * ROUTE_STEP_M
        route, _ = self.scene.road.place(ahead, np.full(NUM_ROUTE, drives.EGO_OFFSET_M))
        observation = {
            "ego": ego.astype(np.float32),
            "route": self.to_rig(route).astype(np.float32),
        }
        if self._grid is not None:
            self._stage.ego = self._poses[-1][:3]
            self._picture = self._draw()
            observation["cameras"] = self._picture.copy()
        return observation

    def _draw(self) -> np.ndarray:
        if self._renderer is None:
            self._renderer = Renderer(*self._size, self._grid.cameras if self._grid else ())
        if self._renderer.scene is not self._stage:
            self._renderer.open(self._stage)
        return np.ascontiguousarray(next(self._renderer.frames(np.zeros(1))))

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """(rows · height, cols · width, 3) uint8: the current grid, or None without
        `render_mode`."""
        if self.render_mode is None or self._grid is None or self._picture is None:
            return None
        names = [camera.name for camera in self._grid.cameras]
        shown = dict(zip(names, self._picture[:, None], strict=True))
        return np.asarray(tiling.compose(shown, self._grid)[0])

    def close(self) -> None:
        """Free the renderer; the next `reset` creates a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def recorded(self, times_s: np.ndarray) -> np.ndarray:
        """(T, 4) x, y, yaw, speed of the recorded drive, at times since the episode's start."""
        motion = self.scene.drive.at(np.asarray(times_s) + self._start / STEPS_A_SECOND)
        return np.stack([motion[name] for name in ("x", "y", "yaw", "speed")], axis=-1)

    def episode(self) -> Episode:
        """What has happened so far."""
        size = self.scene.vehicle
        along = np.arange(self._begin_m - ROAD_BEHIND_M, self._world_end_m)
        lane, heading = self.scene.road.place(along, np.full(len(along), drives.EGO_OFFSET_M))
        return Episode(
            seed=self.scene.seed,
            policy=self._policy,
            time_s=np.arange(self.step_idx + 1) / STEPS_A_SECOND,
            ego=np.array(self._poses[HISTORY_STEPS:]),
            size=(size.length, size.width, size.length / 2 - size.rear_axle_to_bbox_center),
            actors=np.stack(self._actors),
            is_static=self.traffic.is_static.copy(),
            road=np.column_stack([lane, heading]),
            lane_width=drives.LANE_M,
            drivable=(
                textures.TAR_M - drives.EGO_OFFSET_M,
                textures.TAR_M + drives.EGO_OFFSET_M,
            ),
            reference=self.recorded(np.arange(self.num_steps + 1) / STEPS_A_SECOND),
        )


class SimulatedScene:
    """A scene as the renderer sees it, with a rig and others that move in the simulation."""

    def __init__(self, scene: Scene, traffic: Traffic):
        self.seed, self.town = scene.seed, scene.town
        self.textures, self.meshes, self.vehicles = scene.textures, scene.meshes, traffic.vehicles
        self._mounts, self._traffic = scene.mounts, traffic
        self.ego = np.zeros(3)  # x, y (m), yaw (rad)

    def camera_poses(self, camera: str, times_s: np.ndarray) -> np.ndarray:
        """(1, 4, 4) camera -> world at the current step; the time is ignored."""
        return self._mounts[camera].ride(*self.ego[:, None])

    def vehicle_poses(self, times_s: np.ndarray) -> np.ndarray:
        """(1, N, 3) x, y (m) and yaw (rad) of the others at the current step; the time is
        ignored."""
        return self._traffic.poses()[None]


def _kind_of(traffic: str) -> str:
    return pick({kind: kind for kind in KINDS}, traffic, "kind of traffic", "traffic")


def _event_of(event: str | None) -> str | None:
    if event is not None:
        pick(EVENTS, event, "event", "event")
    return event


def _steps(seconds: float, name: str) -> int:
    steps = round(seconds / STEP_S)
    if steps < 1 or abs(seconds - steps * STEP_S) > 1e-6:
        raise AvomniError(f"{name}={seconds:g} is not a number of steps of {STEP_S:g} s")
    return steps
