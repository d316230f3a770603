"""A stand-in for AlpaSim's runtime: it drives episodes of the rendered world with a served driver.

    python -m tests.alpasim_runtime PORT --seed 3 --seconds 2

Prints a line of JSON for each call of `drive`. The session begins 1.6 s before the episode, while
the car drives as recorded, and is named after the seed.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from PIL import Image

from avomni_lib.dataset import cameras
from avomni_lib.driving.alpasim import egodriver_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["EgodriverService"]
START_US = 5_000_000
STEP_US = 100_000
SIZE = (128, 72)


def stub(channel: grpc.Channel) -> SimpleNamespace:
    """The service's calls, by name."""
    calls = {
        method.name: channel.unary_unary(
            f"/{SERVICE.full_name}/{method.name}",
            request_serializer=getattr(pb, method.input_type.name).SerializeToString,
            response_deserializer=getattr(pb, method.output_type.name).FromString,
        )
        for method in SERVICE.methods
    }
    return SimpleNamespace(**calls)


def connect(port: int) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{port}")


def encoded(picture: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format=form)
    return file.getvalue()


def camera(name: str, view_deg: float | None = None, size=SIZE) -> Any:
    """A camera with an equidistant lens; its own field of view where none is given."""
    view = np.radians(view_deg or cameras.BY_NAME[name].fov_deg)
    made = pb.AvailableCamera(logical_id=name)
    spec = made.intrinsics
    spec.resolution_w, spec.resolution_h = size
    spec.ftheta_param.principal_point_x, spec.ftheta_param.principal_point_y = (
        size[0] / 2,
        size[1] / 2,
    )
    spec.ftheta_param.pixeldist_to_angle_poly.extend([0.0, view / size[0]])
    return made


class Rollout:
    """One session, call by call."""

    def __init__(self, calls: SimpleNamespace, name: str, grid: str = "4-cam"):
        self.calls, self.name = calls, name
        self.cameras = [each.name for each in cameras.grid(grid).cameras]

    def start(self, available: list[Any] | None = None) -> None:
        request = pb.DriveSessionRequest(session_uuid=self.name, random_seed=1)
        if available is None:
            available = [camera(name) for name in self.cameras]
        request.rollout_spec.vehicle.available_cameras.extend(available)
        self.calls.start_session(request)

    def see(self, name: str, time_us: int, content: bytes) -> None:
        request = pb.RolloutCameraImage(session_uuid=self.name)
        image = request.camera_image
        image.frame_start_us, image.frame_end_us = time_us - 20_000, time_us
        image.image_bytes, image.logical_id = content, name
        self.calls.submit_image_observation(request)

    def show(self, time_us: int, pictures: np.ndarray, form: str = "PNG") -> None:
        """A picture of each camera."""
        for name, picture in zip(self.cameras, pictures, strict=True):
            self.see(name, time_us, encoded(picture, form))

    def move(self, time_us: int, x: float, y: float, yaw: float, speed: float | None) -> None:
        request = pb.RolloutEgoTrajectory(session_uuid=self.name)
        at = request.trajectory.poses.add(timestamp_us=time_us)
        at.pose.vec.x, at.pose.vec.y = x, y
        at.pose.quat.w, at.pose.quat.z = np.cos(yaw / 2), np.sin(yaw / 2)
        if speed is not None:
            request.dynamic_states.add().linear_velocity.x = speed
        self.calls.submit_egomotion_observation(request)

    def route(self, time_us: int, points: np.ndarray) -> None:
        request = pb.RouteRequest(session_uuid=self.name)
        request.route.timestamp_us = time_us
        for x, y in points:
            request.route.waypoints.add(x=x, y=y)
        self.calls.submit_route(request)

    def drive(self, now_us: int) -> Any:
        return self.calls.drive(
            pb.DriveRequest(
                session_uuid=self.name, time_now_us=now_us, time_query_us=now_us + STEP_US
            )
        )

    def close(self) -> None:
        self.calls.close_session(pb.DriveSessionCloseRequest(session_uuid=self.name))


def poses(response: Any) -> np.ndarray:
    """(N, 4) of an answer: seconds since the session's start, x, y, yaw in the local frame."""
    rows = [
        (
            (each.timestamp_us - START_US) / 1e6,
            each.pose.vec.x,
            each.pose.vec.y,
            2 * np.arctan2(each.pose.quat.z, each.pose.quat.w),
        )
        for each in response.trajectory.poses
    ]
    return np.array(rows).reshape(-1, 4)


def to_rig(path: np.ndarray, x: float, y: float, yaw: float) -> np.ndarray:
    """Places (N, 2) of the local frame, seen from a pose in it."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return (path - (x, y)) @ np.array([[cos, -sin], [sin, cos]])


def episode(
    port: int, seed: int, seconds: float, form: str = "PNG", town: str = "harbour"
) -> Iterator[dict[str, Any]]:
    """Drive an episode, all of whose waypoints come from the driver; what each call answered."""
    from avomni_world.driving.env import DriveEnv
    from avomni_world.scene import lens, towns

    env = DriveEnv(town=town, seconds=seconds, width=SIZE[0], height=SIZE[1])
    observation, info = env.reset(seed=seed)
    with connect(port) as channel:
        rollout = Rollout(stub(channel), f"seed {seed}")
        available = []
        for name in rollout.cameras:
            made = lens.make_lens(cameras.BY_NAME[name], towns.town(town), *SIZE)
            each = camera(name)
            param = each.intrinsics.ftheta_param
            param.principal_point_x, param.principal_point_y = made.cx, made.cy
            param.ClearField("pixeldist_to_angle_poly")
            param.pixeldist_to_angle_poly.extend(made.bw)
            param.angle_to_pixeldist_poly.extend(made.fw)
            available.append(each)
        rollout.start(available)

        def step(number: int, pictures: np.ndarray, pose: tuple[float, ...]) -> dict[str, Any]:
            now_us = START_US + number * STEP_US
            rollout.show(now_us, pictures, form)
            rollout.move(now_us, *pose)
            rollout.route(now_us, observation["route"])
            started = time.monotonic()
            response = rollout.drive(now_us)
            debug = response.debug_info.unstructured_debug_info
            return {
                "number": number,
                "seconds": time.monotonic() - started,
                "pose": list(pose),
                "poses": poses(response).tolist(),
                "said": json.loads(debug) if debug else None,
            }

        state = env.state
        ego = observation["ego"].astype(float)
        cos, sin = np.cos(state.yaw), np.sin(state.yaw)
        before = ego[:-1, :2] @ np.array([[cos, sin], [-sin, cos]]) + (state.x, state.y)
        past = info["past_cameras"]
        for number, pictures in enumerate(past):
            yaw, speed = ego[number, 2] + state.yaw, ego[number, 3]
            yield step(number, pictures, (*before[number], yaw, speed))
        number, is_over = len(past), False
        while not is_over:
            state = env.state
            pose = (state.x, state.y, state.yaw, state.speed)
            answered = step(number, observation["cameras"], pose)
            path = np.array(answered["poses"])[4::4, 1:3]  # the first pose is the current one
            action = to_rig(path, *pose[:3])
            observation, _, terminated, truncated, info = env.step(action)
            is_over, number = terminated or truncated, number + 1
            yield answered | {"left_m": info["left_m"], "end": info["end"]}
        rollout.close()
    env.close()


def main(say: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    for answered in episode(options.port, options.seed, options.seconds):
        say(json.dumps(answered))


if __name__ == "__main__":
    main()
