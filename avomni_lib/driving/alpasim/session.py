"""One drive in the simulator: images and poses in, a path out.

Times are simulation times in µs; they do not advance while a path is computed. The simulator's
local frame is fixed to the ground, z up; a pose is the rig's position and rotation in it (local ->
rig, active). In the rig's frame x is forward, y left and z up, and the origin is on the ground
below the rear axle.
"""

from __future__ import annotations

import bisect
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import av
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp

from avomni_lib.dataset import cameras
from avomni_lib.driving.alpasim.refusals import CONFIG, Refused, Runtime
from avomni_lib.driving.policies import waypoints_of
from avomni_lib.etl.clip.trajectory import STEP_US, Trajectory, past
from avomni_lib.live.ticks import Ready, Sliding, Tick
from avomni_lib.params import Params
from avomni_lib.training.prompt import samples
from avomni_lib.training.targets import target_of
from avomni_lib.training.targets.future import FUTURE_STEPS, at_10hz

Asked = Callable[[np.ndarray, str], str]
JITTER_US = 10_000  # an image may be this much later than the time for which it is used
KEPT_FRAMES = 32  # unused images kept per camera
KEPT_POSES_US = 20_000_000
STALE_US = 500_000  # an older pose does not count as the current one
TURNS_M = 0.05  # a shorter 0.1 s step of a path has no direction
ASPECT = 0.02  # tolerated relative difference between the aspect ratios of an image and its lens
LARGEST_PX = 8192  # limit for either side of an image


@dataclass(frozen=True)
class Pose:
    """The rig's pose in the local frame, and its speed (m/s) along x, NaN if unknown."""

    time_us: int
    place: np.ndarray
    rotation: Rotation
    speed_mps: float = math.nan


@dataclass(frozen=True)
class PlannedPath:
    """A path planned at a pose: (64, 2) m in the rig's frame at that pose, every 0.1 s."""

    pose: Pose
    path: np.ndarray


@dataclass
class DriverAnswer:
    """The result of a call: the poses to drive through, and the model's answer.

    Attributes:
        poses: The current one first, then every 0.1 s up to 6.4 s ahead; empty until the first
            window is complete.
        text: The model's answer, or None if it was not asked in this call.
        is_read: Whether a path could be parsed from the answer.
    """

    poses: list[Pose] = field(default_factory=list)
    text: str | None = None
    is_read: bool = False


def decoded(content: bytes) -> av.VideoFrame:
    """Decode a JPEG or PNG.

    Raises:
        Refused: it is damaged, too large or neither.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if max(image.size) > LARGEST_PX:
                raise ValueError(f"{image.width}×{image.height} px, at most {LARGEST_PX} a side")
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(
            "INVALID_ARGUMENT",
            f"image_bytes ({len(content):,} bytes) are no whole JPEG or PNG: {error}",
            fix="send each picture as one file, runtime.simulation_config.image_format jpeg or png",
        ) from None
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


class DriverSession:
    """One drive. Not thread-safe.

    Args:
        sizes: Camera -> (width, height) px for which its lens is given.
    """

    def __init__(self, p: Params, runtime: Runtime, sizes: Mapping[str, tuple[int, int]]):
        self._p, self._runtime, self._target = p, runtime, target_of(p)
        self._sizes = dict(sizes)
        self._names = [camera.name for camera in cameras.grid(p.vision.cameras).cameras]
        self._frames: dict[str, dict[int, av.VideoFrame]] = {name: {} for name in self._names}
        self._shown: dict[str, int] = {}  # camera -> time of the image used last
        self._sliding = Sliding(p, p.live.hop, now_ns=lambda: 0)
        # Tick 0 is the last one of the first complete window.
        self._tick = -int(self._sliding.rows[-1])
        self._every_us = 1e6 / p.processing.sample_hz
        self._start_us: int | None = None  # of the first tick
        self._poses: list[Pose] = []
        self._now_us = self._first_us = -1
        self._plan: PlannedPath | None = None

    def see(self, camera: str, time_us: int, content: bytes) -> None:
        """Add an image whose exposure ended at `time_us`.

        Images of cameras that the model does not use are ignored.

        Raises:
            Refused: it is damaged, or its aspect ratio differs from its lens's.
        """
        if camera not in self._frames:
            return
        frame = decoded(content)
        size, lens = (frame.width, frame.height), self._sizes[camera]
        if abs(size[0] * lens[1] / (size[1] * lens[0]) - 1) > ASPECT:
            raise Refused(
                "INVALID_ARGUMENT",
                f"a picture of {size[0]}×{size[1]} px, its lens is for {lens[0]}×{lens[1]}",
                where=camera,
                fix=f"render it in the shape of its lens: height and width of {CONFIG}.cameras",
            )
        frames = self._frames[camera]
        frames[time_us] = frame
        if self._start_us is not None:  # older images than the one for the next tick are not used
            newest_us = self._newest(camera, self._next_us())
            self._frames[camera] = {at: frame for at, frame in frames.items() if at >= newest_us}
        while len(self._frames[camera]) > KEPT_FRAMES:
            del self._frames[camera][min(self._frames[camera])]

    def move(self, pose: Pose) -> None:
        """Add a pose; poses may come in any order."""
        times = [known.time_us for known in self._poses]
        at = bisect.bisect_left(times, pose.time_us)
        is_known = at < len(times) and times[at] == pose.time_us
        self._poses[at : at + is_known] = [pose]
        while self._poses[-1].time_us - self._poses[0].time_us > KEPT_POSES_US:
            del self._poses[0]

    def drive(self, now_us: int, ask: Asked) -> DriverAnswer:
        """The path from the pose at `now_us`.

        Args:
            ask: Maps a window (T, H, W, 3) uint8 RGB and the text of the car's history to the
                model's answer; called at most once, with the newest window that is due.

        Raises:
            Refused: no pose is known, images are missing or come too rarely, or the time is
                before that of the last call.
        """
        if now_us < self._now_us:
            raise Refused(
                "INVALID_ARGUMENT",
                f"time_now_us is {now_us}, before that of the last call, {self._now_us}",
                where="drive",
                fix="start another session for another drive",
            )
        self._first_us = now_us if self._first_us < 0 else self._first_us
        self._now_us = now_us
        ready = self._look()
        answered = DriverAnswer()
        if ready is None and self._plan is None:
            return answered
        current = self._current()
        if ready is not None:
            self._ask(ready, ask, answered)
        assert self._plan is not None
        answered.poses = [current, *ahead(self._plan, now_us)]
        return answered

    def _look(self) -> Ready | None:
        """Process the ticks up to now; returns the newest window that is due."""
        if self._start_us is None and not self._begin():
            return None
        newest = None
        while (time_us := self._next_us()) <= self._now_us:
            taken = {name: self._newest(name, time_us) for name in self._names}
            late = [name for name, at_us in taken.items() if at_us <= self._shown.get(name, -1)]
            if late and self._now_us - time_us < self._every_us:
                break  # the images may arrive before the next call
            if late:
                raise self._too_few(late, time_us)
            frames = {
                name: (at_us * 1000, self._frames[name][at_us]) for name, at_us in taken.items()
            }
            self._forget(taken)
            tick = Tick(self._tick, time_us * 1000, self._now_us * 1000, frames, ())
            newest = self._sliding.add(tick) or newest
            self._tick += 1
        return newest

    def _next_us(self) -> int:
        """Time of the next tick."""
        assert self._start_us is not None
        number = self._tick + int(self._sliding.rows[-1])
        return self._start_us + round(number * self._every_us)

    def _begin(self) -> bool:
        """Start the ticks once every camera has an image; False before that."""
        blank = [name for name, frames in self._frames.items() if not frames]
        if not blank:
            self._start_us = max(min(frames) for frames in self._frames.values())
            return True
        if self._now_us - self._first_us >= self._runtime.warm_up_s * 1e6:
            raise Refused(
                "FAILED_PRECONDITION",
                f"no picture in {(self._now_us - self._first_us) / 1e6:g} s of {', '.join(blank)}",
                where="drive",
                fix=f"add what is missing to {CONFIG}.cameras",
            )
        return False

    def _newest(self, name: str, time_us: int) -> int:
        """Time of the camera's last image at or before `time_us`; -1 without one."""
        until_us = time_us + JITTER_US
        return max((at_us for at_us in self._frames[name] if at_us <= until_us), default=-1)

    def _forget(self, taken: Mapping[str, int]) -> None:
        """Drop the images up to the given times."""
        self._shown.update(taken)
        for name, taken_us in taken.items():
            frames = self._frames[name]
            self._frames[name] = {at: frame for at, frame in frames.items() if at > taken_us}

    def _too_few(self, names: list[str], time_us: int) -> Refused:
        return Refused(
            "FAILED_PRECONDITION",
            f"no new picture of {', '.join(names)} for {time_us / 1e6:.3f} s, where the model "
            f"looks {self._p.processing.sample_hz:g} times a second",
            where=f"drive at {self._now_us / 1e6:.3f} s",
            fix=f"set frame_interval_us of {CONFIG}.cameras to {self._every_us:.0f} or less",
        )

    def _current(self) -> Pose:
        pose = self._poses_until(self._now_us)[-1:]
        if not pose or self._now_us - pose[0].time_us > STALE_US:
            raise Refused(
                "FAILED_PRECONDITION",
                "no pose of the car is known"
                + (f" since {pose[0].time_us / 1e6:.3f} s" if pose else ""),
                where=f"drive at {self._now_us / 1e6:.3f} s",
                fix="call submit_egomotion_observation before drive",
            )
        return pose[0]

    def _poses_until(self, time_us: int) -> list[Pose]:
        return [pose for pose in self._poses if pose.time_us <= time_us]

    def _ask(self, ready: Ready, ask: Asked, answered: DriverAnswer) -> None:
        made_us = ready.captured_ns // 1000
        answered.text = ask(ready.frames, self._history(made_us))
        answer = self._target.read(answered.text)
        path = None if answer is None else answer.waypoints_m
        answered.is_read = path is not None
        if path is None and self._plan is not None:
            return  # keep the previous plan
        if path is None:
            waypoints = waypoints_of("constant_velocity", self._past(made_us))
        else:
            waypoints = np.array(path)
        self._plan = PlannedPath(self._pose_at(made_us), at_10hz(waypoints))

    def _history(self, last_us: int) -> str:
        """The text of the car's history for the prompt; empty if the prompt has none."""
        span_us = (self._p.processing.sequence_length - 1) * self._every_us
        first_us = round(last_us - span_us)
        return samples.past_words(self._p, lambda at: self._past(last_us if at else first_us))

    def _pose_at(self, time_us: int) -> Pose:
        """The pose at a time: interpolated between known poses, or the nearest one."""
        times = [pose.time_us for pose in self._poses]
        after = bisect.bisect_left(times, time_us)
        if after in (0, len(times)):
            return self._poses[min(after, len(times) - 1)]
        pair = self._poses[after - 1], self._poses[after]
        part = (time_us - pair[0].time_us) / (pair[1].time_us - pair[0].time_us)
        place = pair[0].place + part * (pair[1].place - pair[0].place)
        turn = Slerp([0, 1], Rotation.concatenate([pose.rotation for pose in pair]))(part)
        speed = pair[0].speed_mps + part * (pair[1].speed_mps - pair[0].speed_mps)
        return Pose(time_us, place, turn, speed)

    def _past(self, time_us: int) -> Trajectory:
        """The motion before a time, computed as in the ETL."""
        now = self._pose_at(time_us)
        before = self._poses_until(time_us - 1)
        track = np.zeros((len(before), 9))
        for row, pose in zip(track, before, strict=True):
            row[:8] = (pose.time_us, *pose.place, *pose.rotation.as_quat())
        speed = now.speed_mps
        if math.isnan(speed):
            speed = 0.0
            if before:
                moved = now.rotation.inv().apply(now.place - before[-1].place)[0]
                speed = float(moved) / (max(time_us - before[-1].time_us, 1) / 1e6)
        row = np.zeros(11)
        row[:7] = (*now.place, *now.rotation.as_quat())
        row[7:10] = now.rotation.apply([speed, 0.0, 0.0])
        return past(time_us, row, track)


def ahead(plan: PlannedPath, now_us: int) -> list[Pose]:
    """The next 64 poses of a plan after `now_us`, every 0.1 s, in the local frame.

    The path lies in the ground plane of the pose at which it was planned, and every pose faces
    along it. Past its end it is extended in a straight line at its final speed.
    """
    gone = max((now_us - plan.pose.time_us) // STEP_US, 0)
    last = plan.path[-1] - plan.path[-2]
    more = plan.path[-1] + np.arange(1, gone + 1)[:, None] * last
    path = np.concatenate([np.zeros((1, 2)), plan.path, more])
    hops = np.diff(path, axis=0)
    yaws, yaw = np.zeros(len(hops)), 0.0
    for idx, hop in enumerate(hops):
        yaw = math.atan2(hop[1], hop[0]) if math.hypot(*hop) > TURNS_M else yaw
        yaws[idx] = yaw
    shown = slice(gone, gone + FUTURE_STEPS)
    places = np.pad(path[1:], ((0, 0), (0, 1)))[shown]
    places = plan.pose.rotation.apply(places) + plan.pose.place
    turns = plan.pose.rotation * Rotation.from_rotvec(np.outer(yaws[shown], (0, 0, 1)))
    times = plan.pose.time_us + STEP_US * np.arange(gone + 1, gone + 1 + FUTURE_STEPS)
    return [Pose(int(t), place, turn) for t, place, turn in zip(times, places, turns, strict=True)]
