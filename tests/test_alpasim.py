"""The driver for AlpaSim, called by a simulated runtime in one or several sessions."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from avomni_lib import files
from avomni_lib.__main__ import main
from avomni_lib.driving import alpasim, policies
from avomni_lib.driving.alpasim import egodriver_pb2, service
from avomni_lib.driving.alpasim.refusals import Runtime
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.model import generate
from avomni_lib.training.targets import Content, target
from avomni_lib.training.targets.future import FUTURE_V1
from tests import alpasim_runtime as runtime
from tests.alpasim_runtime import START_US, STEP_US, Rollout, camera, encoded, poses
from tests.short_windows import AHEAD_S, p_of


class Model:
    """Predicts a path bending left, its speed in m/s the brightness of the last image."""

    def __init__(self):
        self.windows, self.histories, self.at_once, self.most = [], [], 0, 0

    def __call__(self, frames: np.ndarray, history: str) -> str:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.windows.append(np.array(frames))
        self.histories.append(history)
        speed = float(frames[-1].mean())
        time.sleep(0.002)
        self.at_once -= 1
        return self.say(speed)

    @staticmethod
    def say(speed: float) -> str:
        if speed > 240:
            raise AvomniError("the server is away", where="http://there", fix="wait")
        if speed > 220:
            raise RuntimeError("out of memory")
        if speed > 200:
            return "I cannot say."
        return FUTURE_V1.write(Content(waypoints_m=tuple(map(tuple, path_at(speed)))))


def path_at(speed: float) -> np.ndarray:
    return np.stack([speed * AHEAD_S, 0.1 * AHEAD_S**2], axis=1).round(2)


def shaded(value: float) -> np.ndarray:
    return np.full((4, 9, 16, 3), value, np.uint8)


@pytest.fixture
def served() -> Iterator:
    """`served(p, Runtime)` -> a function that makes rollouts, started unless `start=False`."""
    open_ones = []

    def begin(p: Params | None = None, rates: Runtime | None = None):
        model = Model()
        driver = service.Driver(p or p_of(), model, rates)
        serving = service.serving(driver, 0)
        channel = runtime.connect(serving.__enter__())
        open_ones.append((channel, serving))

        def rollout(name: str = "a", start: bool = True) -> Rollout:
            made = Rollout(runtime.stub(channel), name)
            made.channel, made.model, made.driver = channel, model, driver
            if start:
                made.start()
            return made

        return rollout

    yield begin
    for channel, serving in open_ones:
        channel.close()
        serving.__exit__(None, None, None)


@pytest.fixture
def rollout(served) -> Rollout:
    """A session that has started."""
    return served()()


def refused(call, *arguments) -> tuple[str, str]:
    """The status code and the details of the error that a call raises."""
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments)
    return raised.value.code().name, raised.value.details()


def step(rollout: Rollout, number: int, value: float, pose=None, speed: float | None = 8.0):
    """Send images and pose of a step, then call `drive`."""
    now_us = START_US + number * STEP_US
    rollout.show(now_us, shaded(value))
    rollout.move(now_us, *(pose or (8.0 * number / 10, 0.0, 0.0)), speed)
    return rollout.drive(now_us)


def drive_on(rollout: Rollout, value: float, *pose_args, numbers=range(5), **more):
    """The response to the last of these steps; the fifth has the first complete window."""
    for number in numbers:
        answered = step(rollout, number, value, *pose_args, **more)
    return answered


# Responses.


def test_driver_returns_an_empty_trajectory_until_the_window_is_full(rollout):
    for number in range(4):
        assert len(step(rollout, number, 5.0).trajectory.poses) == 0
    assert len(step(rollout, 4, 5.0).trajectory.poses) == 65


def test_trajectory_starts_at_the_current_pose_in_the_local_frame(rollout):
    pose = (100.0, -40.0, 2.0)
    answered = drive_on(rollout, 6.0, pose)
    pose_rows = poses(answered)
    assert pose_rows[0] == pytest.approx([0.4, *pose], abs=1e-5)
    assert pose_rows[:, 0] == pytest.approx(0.4 + 0.1 * np.arange(65))
    way = runtime.to_rig(pose_rows[4::4, 1:3], *pose)
    assert way == pytest.approx(path_at(6.0), abs=1e-4)
    hops = np.diff(pose_rows[:, 1:3], axis=0)
    assert pose_rows[1:, 3] == pytest.approx(np.arctan2(hops[:, 1], hops[:, 0]), abs=1e-3)
    debug_info = json.loads(answered.debug_info.unstructured_debug_info)
    assert debug_info == {"text": Model.say(6.0), "is_read": True}


def test_path_follows_the_slope_of_the_road(rollout):
    pitch = -0.1  # nose up
    for number in range(5):
        now_us = START_US + number * STEP_US
        rollout.show(now_us, shaded(10.0))
        request = egodriver_pb2.RolloutEgoTrajectory(session_uuid="a")
        at = request.trajectory.poses.add(timestamp_us=now_us)
        at.pose.vec.z = 7.0
        at.pose.quat.w, at.pose.quat.y = np.cos(pitch / 2), np.sin(pitch / 2)
        rollout.calls.submit_egomotion_observation(request)
        answered = rollout.drive(now_us)
    last = answered.trajectory.poses[-1].pose.vec
    assert last.z == pytest.approx(7.0 + 64 * np.sin(0.1), abs=1e-3)
    assert last.x == pytest.approx(64 * np.cos(0.1), abs=1e-3)


def test_last_path_is_reused_between_predictions(served):
    rollout = served()()
    answers = [poses(step(rollout, number, 5.0 + number)) for number in range(10)]
    assert [len(window) for window in rollout.model.windows] == [3, 3]
    brightness = [window.mean(axis=(1, 2, 3)).tolist() for window in rollout.model.windows]
    assert brightness == [[5, 7, 9], [9, 11, 13]]
    first, later = answers[4], answers[6]
    # The same positions at the same times, starting at the current pose.
    assert later[0, 1] == pytest.approx(0.8 * 6)
    assert later[1:63] == pytest.approx(first[3:], abs=1e-5)
    # Past the path's end it goes straight on.
    assert later[-1, :3] - later[-2, :3] == pytest.approx(first[-1, :3] - first[-2, :3], abs=1e-4)
    assert answers[8][4, 1] == pytest.approx(0.8 * 8 + path_at(13.0)[0, 0], abs=1e-4)


def test_driver_and_policy_see_the_same_windows(served, monkeypatch):
    """Equal pixels and equal waypoints."""
    p = p_of(processing={"sample_hz": 10}, live={"hop": 1})
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 40, (8, 4, 9, 16, 3)).astype(np.uint8)
    rollout, shown = served(p)(), []

    class Answerer:
        name, target, model, conversation = "adapted", target("future_v1"), None, None

    def generate_texts(model, conversation, frames, *_, histories, constrained):
        shown.extend(np.array(frames))
        return [Model.say(float(window[-1].mean())) for window in frames]

    monkeypatch.setattr(generate, "generate_texts", generate_texts)
    Answerer.p = p
    policy = policies.ModelPolicy(Answerer())
    policy.start(0, np.zeros((2, 4)))
    ego = np.zeros((17, 4), np.float32)
    ego[:, 0], ego[:, 3] = 8.0 * np.arange(-16, 1) / 10, 8.0
    for number, images in enumerate(pictures):
        now_us = START_US + number * STEP_US
        rollout.show(now_us, images)
        rollout.move(now_us, 8.0 * number / 10, 0.0, 0.0, 8.0)
        answered = poses(rollout.drive(now_us))
        waypoints = policy({"cameras": images, "ego": ego})
        if len(answered):
            way = runtime.to_rig(answered[4::4, 1:3], 0.8 * number, 0.0, 0.0)
            assert way == pytest.approx(waypoints, abs=1e-4)
    assert len(shown) == 6
    assert np.array_equal(shown, rollout.model.windows)


def test_unreadable_answer_keeps_the_last_path_or_the_velocity(served):
    rollout = served(p_of(live={"hop": 1}))()
    at_constant_velocity = poses(drive_on(rollout, 210.0))
    assert at_constant_velocity[-1, 1:3] == pytest.approx([3.2 + 6.4 * 8.0, 0.0], abs=1e-4)
    step(rollout, 5, 5.0)
    answered = poses(step(rollout, 6, 5.0))
    later = poses(step(rollout, 7, 210.0)), poses(step(rollout, 8, 210.0))
    assert later[1][1:63] == pytest.approx(answered[3:], abs=1e-5)
    assert rollout.driver.num_unread == 2
    assert "answers without a path: 2" in service.summary(rollout.driver)


@pytest.mark.parametrize("speed", [8.0, None])
def test_prompt_contains_the_ego_history(served, speed):
    rollout = served(p_of(prompt={"ego_history": True}))()
    drive_on(rollout, 5.0, speed=speed)
    (history,) = rollout.model.histories
    assert "Speed there: 8.00m/s." in history
    assert "-0.4s (-3.20,0.00) -0.2s (-1.60,0.00)" in history


def test_poses_and_images_may_arrive_in_any_order(served):
    answers = []
    for order in (1, -1):
        rollout = served()()
        moments = [(number, START_US + number * STEP_US // 2) for number in range(9)][::order]
        for number, time_us in moments:
            rollout.show(time_us, shaded(number))
            rollout.move(time_us, 0.4 * number, 0.0, 0.0, 8.0)
        answers.append(poses(rollout.drive(START_US + 4 * STEP_US)))
    assert answers[0] == pytest.approx(answers[1])
    assert answers[0][0, 1] == pytest.approx(3.2)


def test_driver_waits_for_an_image_that_is_one_call_late(served):
    rollout = served(p_of(processing={"sample_hz": 10}, live={"hop": 1}))()
    for number in range(8):
        now_us = START_US + number * STEP_US
        rollout.move(now_us, 0.8 * number, 0.0, 0.0, 8.0)
        answered = rollout.drive(now_us)
        rollout.show(now_us, shaded(number))
    brightness = [window.mean(axis=(1, 2, 3)).tolist() for window in rollout.model.windows]
    assert brightness == [[number, number + 1, number + 2] for number in range(5)]
    # The path begins where the car was when the last picture was taken.
    assert poses(answered)[3, :2] == pytest.approx([1.0, 0.8 * 6 + path_at(6.0)[0, 0]], abs=1e-4)


def test_concurrent_sessions_do_not_share_state(served):
    made = served()
    rollouts = [made(f"session {number}", start=False) for number in range(6)]

    def drive(idx: int) -> np.ndarray:
        rollouts[idx].start()
        pose = (10.0 * idx, 0.0, 0.3 * idx)
        answered = poses(drive_on(rollouts[idx], 3.0 * idx, pose, numbers=range(9)))
        return runtime.to_rig(answered[4::4, 1:3], *pose)

    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(drive, range(6)))
    for idx, path in enumerate(paths):
        assert path == pytest.approx(path_at(3.0 * idx), abs=1e-3)
    assert rollouts[0].model.most == 1  # one model, one window at a time
    assert len(rollouts[0].model.windows) == 12


# Errors.


def test_calls_in_the_wrong_order_fail_without_ending_the_session(served):
    made = served()
    rollout = made(start=False)
    for call in (lambda: rollout.drive(START_US), lambda: step(rollout, 0, 1.0), rollout.close):
        assert refused(call) == ("NOT_FOUND", "session a was never started here; start_session")
    assert refused(made("", start=False).drive, 0)[0] == "NOT_FOUND"
    assert refused(made, "") == ("INVALID_ARGUMENT", "a session needs a session_uuid")
    rollout.start()
    code, words = refused(rollout.start)
    assert code == "ALREADY_EXISTS" and "session a runs already" in words
    for number in range(4):
        rollout.show(START_US + number * STEP_US, shaded(5.0))
        assert not rollout.drive(START_US + number * STEP_US).trajectory.poses
    rollout.show(START_US + 4 * STEP_US, shaded(5.0))
    code, words = refused(rollout.drive, START_US + 4 * STEP_US)
    assert code == "FAILED_PRECONDITION"
    assert words.startswith("drive at 5.400 s: no pose of the car is known; call submit_egomo")
    rollout.close()
    assert refused(rollout.close) == ("NOT_FOUND", "session a was closed; start_session")
    code, words = refused(step, rollout, 5, 1.0)
    assert code == "NOT_FOUND" and "was closed" in words
    rollout.start()  # the name can be used again, without the closed session's state
    assert not step(rollout, 9, 5.0).trajectory.poses
    code, words = refused(rollout.drive, START_US)
    assert code == "INVALID_ARGUMENT" and "before that of the last call" in words
    assert len(drive_on(rollout, 5.0, numbers=range(10, 14)).trajectory.poses) == 65


def test_a_stale_pose_is_refused(rollout):
    drive_on(rollout, 5.0)
    for number in range(5, 12):
        rollout.show(START_US + number * STEP_US, shaded(5.0))
    code, words = refused(rollout.drive, START_US + 11 * STEP_US)
    assert code == "FAILED_PRECONDITION" and "is known since 5.400 s" in words


@pytest.mark.parametrize("numbers", [(np.nan, 0, 0, 1), (0, np.inf, 0, 1), (0, 0, 0, 0)])
def test_invalid_pose_is_refused(rollout, numbers):
    x, y, z, w = numbers
    request = egodriver_pb2.RolloutEgoTrajectory(session_uuid="a")
    at = request.trajectory.poses.add(timestamp_us=START_US).pose
    at.vec.x, at.vec.y, at.quat.z, at.quat.w = x, y, z, w
    code, words = refused(rollout.calls.submit_egomotion_observation, request)
    assert code == "INVALID_ARGUMENT" and words.startswith("no pose:")


def test_dynamic_states_without_poses_are_refused(rollout):
    request = egodriver_pb2.RolloutEgoTrajectory(session_uuid="a")
    request.dynamic_states.add()
    code, words = refused(rollout.calls.submit_egomotion_observation, request)
    assert (code, words) == ("INVALID_ARGUMENT", "0 poses with 1 dynamic_states")


NOISE = np.random.default_rng(0).integers(0, 255, (9, 16, 3)).astype(np.uint8)
WHOLE = {form: encoded(NOISE, form) for form in ("PNG", "JPEG", "GIF")}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no whole JPEG or PNG"),
        (b"\x89PNG\r\n\x1a\nnothing", "no whole JPEG or PNG"),
        (WHOLE["PNG"][:-200], "no whole JPEG or PNG"),
        (WHOLE["PNG"][:90] + b"\0\1" + WHOLE["PNG"][92:], "no whole JPEG or PNG"),
        (WHOLE["JPEG"][: len(WHOLE["JPEG"]) // 2], "no whole JPEG or PNG"),
        (WHOLE["GIF"], "no whole JPEG or PNG"),
        (encoded(np.zeros((1, 9000, 3), np.uint8)), "9000×1 px, at most 8192 a side"),
        (encoded(np.zeros((16, 16, 3), np.uint8)), "its lens is for 128×72"),
    ],
    ids=["empty", "header", "cut png", "damaged png", "cut jpeg", "gif", "huge", "square"],
)
def test_malformed_image_is_refused_and_the_session_continues(rollout, content, words):
    for number in range(5):
        code, details = refused(rollout.see, rollout.cameras[1], START_US + number, content)
        assert code == "INVALID_ARGUMENT" and words in details
        answered = step(rollout, number, 5.0)
    assert len(answered.trajectory.poses) == 65


def test_images_of_unused_cameras_are_ignored(served):
    rollout = served()(start=False)
    rollout.start([camera(name) for name in (*rollout.cameras, "camera_cross_left_120fov")])
    rollout.see("camera_cross_left_120fov", START_US, b"not even a picture")


def test_jpeg_images_are_accepted(served):
    rollout = served()()
    for number in range(5):
        now_us = START_US + number * STEP_US
        rollout.show(now_us, shaded(7.0), "JPEG")
        rollout.move(now_us, 0.0, 0.0, 0.0, 8.0)
        answered = rollout.drive(now_us)
    assert len(answered.trajectory.poses) == 65
    assert rollout.model.windows[0].mean() == pytest.approx(7.0, abs=1.0)


SLOW = {"processing": {"sequence_length": 16, "sample_hz": 2}}


@pytest.mark.parametrize(
    ("changes", "rates", "words"),
    [
        (SLOW, Runtime(), "spans 7.5 s and the car drives as recorded for 1.7 s: set runtime.si"),
        (SLOW, Runtime(), "force_gt_duration_us to 7600000, and start the driver with --warm-up 7"),
        ({}, Runtime(frame_hz=2), "looks 5 times a second and cameras show 2 pictures: set frame"),
        ({}, Runtime(frame_hz=2), "frame_interval_us of runtime.simulation_config.cameras to 2000"),
        ({}, Runtime(warm_up_s=0.4), "force_gt_duration_us to 500000"),
    ],
)
def test_mismatched_rates_are_refused_with_the_settings_to_change(served, changes, rates, words):
    code, details = refused(served(p_of(**changes), rates))
    assert code == "FAILED_PRECONDITION" and words in details


def test_corrected_rates_are_accepted(served):
    served(p_of(**SLOW), Runtime(warm_up_s=7.6))()


def test_missing_or_wrong_cameras_are_refused_in_one_message(served):
    rollout = served()(start=False)
    names = rollout.cameras
    pinhole, blank, wide = camera(names[1]), camera(names[2]), camera(names[3], view_deg=180)
    pinhole.intrinsics.ClearField("ftheta_param")
    blank.intrinsics.resolution_h = 0
    code, words = refused(rollout.start, [pinhole, blank, wide, camera("camera_cross_left_120fov")])
    assert code == "FAILED_PRECONDITION"
    for reason in (
        f"cameras are missing: {names[0]} (there are: camera_cross_left_120fov, ",
        f"{names[1]} has no f-theta lens",
        f"{names[2]} has no resolution",
        f"{names[3]} sees 180° across and not about 70°: pictures are not remapped",
    ):
        assert reason in words
    assert refused(rollout.drive, START_US)[0] == "NOT_FOUND"
    code, words = refused(rollout.start, [])
    assert "(there are: none)" in words


def test_lens_view_is_computed_from_either_polynomial(served):
    rollout = served()(start=False)
    available = [camera(name) for name in rollout.cameras]
    lens = available[0].intrinsics.ftheta_param
    per_px = lens.pixeldist_to_angle_poly[1]
    lens.ClearField("pixeldist_to_angle_poly")
    assert "sees nan°" in refused(rollout.start, available)[1]
    lens.angle_to_pixeldist_poly.extend([0.0, 1 / per_px])
    rollout.start(available)


def test_silent_or_slow_camera_is_named_in_the_error(served):
    made = served()
    rollout = made()
    for number in range(17):
        now_us = START_US + number * STEP_US
        for name in rollout.cameras[:-1]:
            rollout.see(name, now_us, WHOLE["PNG"])
        assert not rollout.drive(now_us).trajectory.poses
    code, words = refused(rollout.drive, START_US + 17 * STEP_US)
    assert code == "FAILED_PRECONDITION"
    assert f"no picture in 1.7 s of {rollout.cameras[-1]}" in words
    slow = made("slow")
    slow.show(START_US, shaded(5.0))
    slow.drive(START_US)
    for number in (1, 2, 3):  # the image may still arrive
        slow.drive(START_US + number * STEP_US)
    code, words = refused(slow.drive, START_US + 4 * STEP_US)
    assert code == "FAILED_PRECONDITION"
    assert f"no new picture of {', '.join(slow.cameras)} for 5.200 s" in words
    assert "frame_interval_us of runtime.simulation_config.cameras to 200000" in words


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        (230.0, "INTERNAL", "RuntimeError: out of memory; see the driver's log"),
        (250.0, "FAILED_PRECONDITION", "http://there: the server is away; wait"),
    ],
)
def test_model_error_is_returned_and_the_server_continues(served, value, code, words):
    rollout = served(p_of(live={"hop": 1}))()
    drive_on(rollout, 5.0, numbers=range(4))
    assert refused(step, rollout, 4, value) == (code, words)
    step(rollout, 5, 5.0)
    assert len(step(rollout, 6, 5.0).trajectory.poses) == 65


def test_idle_session_is_dropped_when_another_starts(served, monkeypatch):
    made = served()
    idle, _ = made("left"), made("spoken to")
    monkeypatch.setattr(service, "IDLE_S", 0.0)
    made("new")
    monkeypatch.setattr(service, "IDLE_S", 600.0)
    code, words = refused(idle.drive, START_US)
    assert code == "NOT_FOUND" and "was dropped: no call for" in words


def test_number_of_sessions_is_limited(served, monkeypatch):
    monkeypatch.setattr(service, "MOST_SESSIONS", 2)
    made = served()
    first, _ = made("a"), made("b")
    assert refused(made, "c")[0] == "RESOURCE_EXHAUSTED"
    first.close()
    made("c")


def test_malformed_messages_and_unknown_methods_do_not_end_a_session(rollout):
    for method, code in (("drive", "INTERNAL"), ("fly", "UNIMPLEMENTED")):
        path = f"/egodriver.EgodriverService/{method}"
        call = rollout.channel.unary_unary(path, lambda content: content, lambda content: content)
        assert refused(call, b"\xff" * 9)[0] == code
    assert len(drive_on(rollout, 5.0).trajectory.poses) == 65


def test_simulator_can_get_the_version_and_shut_the_server_down():
    driver, ports = service.Driver(p_of(), Model()), queue.Queue()
    serving = threading.Thread(target=service.serve, args=(driver, 0, "127.0.0.1", ports.put))
    serving.start()
    with runtime.connect(ports.get(timeout=30)) as channel:
        calls = runtime.stub(channel)
        assert calls.get_version(egodriver_pb2.Empty()).version_id.startswith("avomni-")
        calls.shut_down(egodriver_pb2.Empty())
        serving.join(timeout=30)
    assert not serving.is_alive()


def test_number_of_images_kept_is_bounded(served):
    rollout = served()()
    for number in range(200):  # 50 a second, where the model looks five times
        rollout.show(START_US + number * 20_000, shaded(number))
        if number % 5 == 4:
            rollout.move(START_US + number * 20_000, 0.0, 0.0, 0.0, 8.0)
            rollout.drive(START_US + number * 20_000)
        (held,) = rollout.driver._held.values()
        assert number < 5 or all(len(frames) <= 10 for frames in held.session._frames.values())
    # Each sampling time takes the last image at or before it: every tenth.
    assert [window[-1].mean() for window in rollout.model.windows[:3]] == [20, 40, 60]


# The messages.


def test_compiled_messages_match_the_proto_file(tmp_path):
    name = "avomni_lib/driving/alpasim/egodriver.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"-o{tmp_path}/set", name]
    subprocess.run(command, check=True, cwd=files.PROJECT_ROOT)
    (expected,) = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    compiled = descriptor_pb2.FileDescriptorProto()
    egodriver_pb2.DESCRIPTOR.CopyToProto(compiled)
    for descriptor in (expected, compiled):  # names for JSON, which protoc fills in or not
        descriptor.ClearField("source_code_info")
        for message in [
            *descriptor.message_type,
            *(n for m in descriptor.message_type for n in m.nested_type),
        ]:
            for message_field in message.field:
                message_field.ClearField("json_name")
    assert expected == compiled


def field(number: int, wire: int, content: bytes) -> bytes:
    """One field on the wire: 1 is 8 bytes, 2 is bytes with their length, 5 is 4 bytes."""
    head = bytes([number << 3 | wire])
    return head + (bytes([len(content)]) + content if wire == 2 else content)


def test_alpasim_messages_are_parsed_and_unknown_fields_ignored():
    """Field numbers and types as in NVlabs/alpasim's egodriver, common and sensorsim v0."""
    quat, place = field(1, 5, b"\0\0\x80\x3f"), field(2, 5, b"\0\0\0\x40")
    pose = field(1, 2, place) + field(2, 2, quat)
    at = field(1, 2, pose) + field(2, 1, (7).to_bytes(8, "little"))
    state = field(1, 2, place) + field(2, 2, field(1, 5, b"\0\0\0\x40")) + field(3, 2, place)
    content = field(1, 2, b"id") + field(3, 2, field(1, 2, at)) + field(5, 2, state)
    ego = egodriver_pb2.RolloutEgoTrajectory.FromString(content)
    assert ego.session_uuid == "id" and ego.trajectory.poses[0].timestamp_us == 7
    assert ego.trajectory.poses[0].pose.vec.y == 2 and ego.trajectory.poses[0].pose.quat.w == 1
    assert ego.dynamic_states[0].linear_velocity.x == 2
    times = field(2, 1, bytes(8)) + field(3, 1, (9).to_bytes(8, "little"))
    image = times + field(4, 2, b"jpeg") + field(5, 2, b"front")
    seen = egodriver_pb2.RolloutCameraImage.FromString(field(1, 2, b"id") + field(3, 2, image))
    assert (seen.camera_image.frame_end_us, seen.camera_image.image_bytes) == (9, b"jpeg")
    assert seen.camera_image.logical_id == "front"
    lens = field(1, 1, bytes(8)) + field(4, 2, bytes(8)) + field(5, 2, bytes(16))
    spec = field(2, 2, lens) + field(5, 2, b"front") + field(7, 0, b"\x09") + field(8, 0, b"\x10")
    seen_by = field(3, 2, field(1, 2, spec) + field(3, 2, b"front"))
    start = field(1, 2, b"id") + field(4, 2, b"") + field(5, 2, field(1, 2, seen_by))
    (made,) = egodriver_pb2.DriveSessionRequest.FromString(
        start
    ).rollout_spec.vehicle.available_cameras
    assert (made.logical_id, made.intrinsics.resolution_w) == ("front", 16)
    assert len(made.intrinsics.ftheta_param.angle_to_pixeldist_poly) == 2
    now = field(3, 1, (5).to_bytes(8, "little"))
    assert egodriver_pb2.DriveRequest.FromString(now).time_now_us == 5
    answer = egodriver_pb2.DriveResponse()
    answer.trajectory.poses.add(timestamp_us=3)
    assert answer.SerializeToString() == field(
        2, 2, field(1, 2, field(2, 1, (3).to_bytes(8, "little")))
    )


def test_missing_extra_is_named_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, service.__name__)
    monkeypatch.delattr(alpasim, "service")
    assert main(["serve", "params/demo_future.yaml", "--alpasim", "0", "--base"]) == 1
    stderr = capsys.readouterr().err
    assert "the driver for AlpaSim needs grpcio and protobuf" in stderr
    assert "pip install -e '.[alpasim]'" in stderr and "Traceback" not in stderr


def test_run_without_a_path_target_is_not_served(capsys):
    assert main(["serve", "params/demo.yaml", "--alpasim", "0", "--base"]) == 1
    assert "the target summary_v1 says no path to drive along" in capsys.readouterr().err


def test_port_in_use_is_named_in_the_error():
    driver = service.Driver(p_of(), Model())
    with (
        service.serving(driver, 0) as port,
        pytest.raises(AvomniError, match=f"cannot listen on 127.0.0.1:{port}"),
        service.serving(driver, port),
    ):
        pass


# The tiny base served in one process, with each runtime in another.


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(files.PROJECT_ROOT)}


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """The server's process and its port."""
    words = [sys.executable, "-m", "avomni_lib", "serve", "params/demo_future.yaml", "--base"]
    words += ["--alpasim", "0", "--set", "live.hop=8", "--set", f"run.outputs_dir={tmp_path}"]
    server = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=files.PROJECT_ROOT,
        env=environment(),
    )
    for line in server.stdout:
        if found := re.match(r"driver: 127\.0\.0\.1:(\d+)", line):
            break
    else:
        raise AssertionError("the server ended before it began")
    yield server, int(found[1])
    if server.poll() is None:
        server.kill()


def play(port: int, seed: int, seconds: float) -> subprocess.Popen:
    words = [sys.executable, "-m", "tests.alpasim_runtime", str(port)]
    return subprocess.Popen(
        [*words, "--seed", str(seed), "--seconds", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=files.PROJECT_ROOT,
        env=environment(),
    )


def test_server_survives_a_killed_runtime_and_stops_on_ctrl_c(process):
    server, port = process
    whole, killed = play(port, 3, 2.0), play(port, 4, 12.0)
    # One runtime is killed during its episode while the other one continues.
    lines = (json.loads(line) for line in killed.stdout)
    killed_at = next(row["number"] for row in lines if row["number"] >= 18)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    steps = [json.loads(line) for line in whole.communicate(timeout=200)[0].splitlines()]
    assert whole.returncode == 0 and killed_at >= 18
    assert [row["number"] for row in steps] == list(range(36))
    assert [len(row["poses"]) for row in steps] == [0] * 15 + [65] * 21
    asked = [row["number"] for row in steps if row["said"]]
    assert asked == [15, 23, 31]
    assert all(row["said"]["text"].startswith("Waypoints:") for row in steps if row["said"])
    assert steps[-1]["end"] == "time" and abs(steps[-1]["left_m"]) < 10
    for row in steps[15:]:  # the current pose first, as the world has it
        assert row["poses"][0][1:3] == pytest.approx(row["pose"][:2], abs=1e-3)
    assert server.poll() is None

    with runtime.connect(port) as channel:
        rollout = Rollout(
            runtime.stub(channel), "seed 4"
        )  # the killed runtime's session is still open
        assert refused(rollout.start)[0] == "ALREADY_EXISTS"
        rollout = Rollout(runtime.stub(channel), "new")
        rollout.start()
        answered = drive_on(rollout, 5.0, numbers=range(16))
        assert len(answered.trajectory.poses) == 65
    threading.Timer(0.1, server.send_signal, [signal.SIGINT]).start()
    output, _ = server.communicate(timeout=60)
    assert server.returncode == 0, output
    assert "sessions: 3, calls of drive:" in output and "planner_delay_us" in output
    assert "Traceback" not in output
