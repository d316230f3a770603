"""AlpaSim's `EgodriverService`: maps calls to sessions and errors to status codes; the server."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from avomni_lib import __version__
from avomni_lib.dataset import cameras
from avomni_lib.driving.alpasim import refusals
from avomni_lib.driving.alpasim.refusals import Refused, Runtime
from avomni_lib.driving.alpasim.session import Asked, DriverSession, Pose
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params

try:
    import grpc

    from avomni_lib.driving.alpasim import egodriver_pb2
except ImportError as _error:
    raise AvomniError(
        f"the driver for AlpaSim needs grpcio and protobuf ({_error})",
        where="serve --alpasim",
        fix="pip install -e '.[alpasim]'",
    ) from None

log = logging.getLogger(__name__)
pb: Any = egodriver_pb2  # its classes are created at import
SERVICE = pb.DESCRIPTOR.services_by_name["EgodriverService"]
API = (0, 55, 0)  # version of alpasim_grpc; the simulator records it and compares drivers by it
THREADS = 32
LARGEST_BYTES = 64 * 2**20  # limit of a message; a PNG of 8 megapixels has about 20 MB
MOST_SESSIONS = 64
IDLE_S = 600.0  # a session without calls is dropped after this time
REMEMBERED = 1000  # ended sessions whose reason is kept for late calls


@dataclass
class _Held:
    """A session, the lock that serialises its calls, and the time of the last one."""

    session: DriverSession
    lock: threading.Lock = field(default_factory=threading.Lock)
    called_s: float = field(default_factory=time.monotonic)


class Driver:
    """All calls of the service. Thread-safe.

    Sessions share one model, which answers one window at a time.

    Args:
        ask: Returns the model's answer to a window, see `live.answering.asker`.

    Attributes:
        seconds: The last calls of `drive`, as (seconds, whether the model was asked).
        num_unread: Number of answers from which no path could be parsed.
        stopped: Set when the simulator asks the driver to shut down.
    """

    def __init__(self, p: Params, ask: Asked, runtime: Runtime | None = None):
        self._p, self._model, self._runtime = p, ask, runtime or Runtime()
        self._asking, self._lock = threading.Lock(), threading.Lock()
        self._held: dict[str, _Held] = {}
        self._ended: dict[str, str] = {}
        self.seconds: deque[tuple[float, bool]] = deque(maxlen=100_000)
        self.num_sessions = self.num_unread = 0
        self.stopped = threading.Event()

    def start_session(self, request: Any) -> Any:
        name, vehicle = request.session_uuid, request.rollout_spec.vehicle
        if not name:
            raise Refused("INVALID_ARGUMENT", "a session needs a session_uuid")
        refusals.refuse(self._p, self._runtime, vehicle.available_cameras)
        sizes = {
            camera.logical_id or camera.intrinsics.logical_id: (
                camera.intrinsics.resolution_w,
                camera.intrinsics.resolution_h,
            )
            for camera in vehicle.available_cameras
        }
        session = DriverSession(self._p, self._runtime, sizes)
        with self._lock:
            self._drop_idle()
            if name in self._held:
                raise Refused(
                    "ALREADY_EXISTS",
                    f"session {name} runs already",
                    fix="close it, or use another session_uuid",
                )
            if len(self._held) >= MOST_SESSIONS:
                raise Refused(
                    "RESOURCE_EXHAUSTED",
                    f"{MOST_SESSIONS} sessions run already",
                    fix="close some, or start another driver",
                )
            self._held[name] = _Held(session)
            self._ended.pop(name, None)
            self.num_sessions += 1
        log.info("session %s begins", name)
        return pb.SessionRequestStatus()

    def close_session(self, request: Any) -> Any:
        with self._session(request), self._lock:
            self._end(request.session_uuid, "was closed")
        return pb.Empty()

    def submit_image_observation(self, request: Any) -> Any:
        image = request.camera_image
        with self._session(request) as session:
            session.see(image.logical_id, image.frame_end_us, image.image_bytes)
        return pb.Empty()

    def submit_egomotion_observation(self, request: Any) -> Any:
        poses, states = request.trajectory.poses, request.dynamic_states
        if states and len(states) != len(poses):
            raise Refused(
                "INVALID_ARGUMENT", f"{len(poses)} poses with {len(states)} dynamic_states"
            )
        observed = [_pose_of(pose) for pose in poses]
        with self._session(request) as session:
            for idx, pose in enumerate(observed):
                if states:
                    speed = float(states[idx].linear_velocity.x)
                    if not np.isfinite(speed):
                        raise Refused("INVALID_ARGUMENT", f"a speed of {speed}")
                    pose = Pose(pose.time_us, pose.place, pose.rotation, speed)
                session.move(pose)
        return pb.Empty()

    def submit_route(self, request: Any) -> Any:
        """Accepted and ignored: the model does not use a route."""
        with self._session(request):
            return pb.Empty()

    submit_recording_ground_truth = submit_route  # ignored too

    def drive(self, request: Any) -> Any:
        started = time.monotonic()
        with self._session(request) as session:
            answered = session.drive(request.time_now_us, self._ask)
        is_asked = answered.text is not None
        with self._lock:
            self.num_unread += is_asked and not answered.is_read
        self.seconds.append((time.monotonic() - started, is_asked))
        response = pb.DriveResponse()
        for pose in answered.poses:
            into = response.trajectory.poses.add(timestamp_us=pose.time_us)
            into.pose.vec.x, into.pose.vec.y, into.pose.vec.z = pose.place
            quat = into.pose.quat
            quat.x, quat.y, quat.z, quat.w = pose.rotation.as_quat()
        if is_asked:
            answer = {"text": answered.text, "is_read": answered.is_read}
            response.debug_info.unstructured_debug_info = json.dumps(answer).encode()
        return response

    def get_version(self, request: Any) -> Any:
        major, minor, patch = API
        api = pb.VersionId.APIVersion(major=major, minor=minor, patch=patch)
        return pb.VersionId(version_id=f"avomni-{__version__}", grpc_api_version=api)

    def shut_down(self, request: Any) -> Any:
        self.stopped.set()
        return pb.Empty()

    def _ask(self, frames: np.ndarray, history: str) -> str:
        with self._asking:
            return self._model(frames, history)

    @contextlib.contextmanager
    def _session(self, request: Any) -> Iterator[DriverSession]:
        """The session that a request names, locked for the duration of the call."""
        name = request.session_uuid
        with self._lock:
            held = self._held.get(name)
        if held is None:
            raise self._gone(name)
        with held.lock:
            if self._held.get(name) is not held:  # it ended while this call waited
                raise self._gone(name)
            held.called_s = time.monotonic()
            yield held.session
            held.called_s = time.monotonic()

    def _gone(self, name: str) -> Refused:
        reason = self._ended.get(name, "was never started here")
        return Refused(
            "NOT_FOUND", f"session {name or '(without session_uuid)'} {reason}", fix="start_session"
        )

    def _end(self, name: str, reason: str) -> None:
        self._held.pop(name)
        self._ended[name] = reason
        while len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]
        log.info("session %s %s", name, reason)

    def _drop_idle(self) -> None:
        """Drop sessions whose simulator seems to have died."""
        now_s = time.monotonic()
        for name, held in list(self._held.items()):
            if now_s - held.called_s > IDLE_S and not held.lock.locked():
                self._end(name, f"was dropped: no call for {IDLE_S:g} s")

    def latency(self) -> dict[str, dict[str, float]]:
        """p50 and p95 in seconds: `drive` of all calls, `answered` of those that ran the model."""
        by_kind = {
            "drive": [seconds for seconds, _ in self.seconds],
            "answered": [seconds for seconds, is_asked in self.seconds if is_asked],
        }
        return {
            kind: {f"p{q}": round(float(np.percentile(seconds, q)), 4) for q in (50, 95)}
            for kind, seconds in by_kind.items()
            if seconds
        }


def _pose_of(message: Any) -> Pose:
    vec, quat = message.pose.vec, message.pose.quat
    numbers = np.array([vec.x, vec.y, vec.z, quat.x, quat.y, quat.z, quat.w], np.float64)
    if not np.isfinite(numbers).all() or np.linalg.norm(numbers[3:]) < 0.5:
        raise Refused(
            "INVALID_ARGUMENT",
            f"no pose: place ({vec.x}, {vec.y}, {vec.z}), rotation ({quat.x}, {quat.y}, {quat.z}, "
            f"{quat.w}) at {message.timestamp_us} µs",
            fix="send finite metres and a quaternion of length 1",
        )
    return Pose(message.timestamp_us, numbers[:3], Rotation.from_quat(numbers[3:]))


def _guarded(call: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap a call: errors become gRPC status codes and never end the server."""

    def answer(request: Any, context: Any) -> Any:
        try:
            return call(request)
        except AvomniError as error:
            code = getattr(error, "code", "FAILED_PRECONDITION")
            what = f"{error.where}: {error.what}" if error.where else error.what
            details = f"{what}; {error.fix}" if error.fix else what
        except Exception as error:
            log.exception("%s failed", call.__name__)
            code = "INTERNAL"
            details = f"{type(error).__name__}: {error}; see the driver's log"
        context.abort(getattr(grpc.StatusCode, code), details)

    return answer


@contextlib.contextmanager
def serving(driver: Driver, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve until the block ends; calls in progress get 5 s to finish.

    Args:
        port: 0 takes a free one.

    Yields:
        The port.

    Raises:
        AvomniError: the port is taken, or `host` is not an address of this machine.
    """
    size = ("grpc.max_receive_message_length", LARGEST_BYTES)
    server = grpc.server(
        futures.ThreadPoolExecutor(THREADS), options=[size, ("grpc.so_reuseport", 0)]
    )
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _guarded(getattr(driver, method.name)),
            request_deserializer=getattr(pb, method.input_type.name).FromString,
            response_serializer=getattr(pb, method.output_type.name).SerializeToString,
        )
        for method in SERVICE.methods
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
    )
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise AvomniError(
            f"cannot listen on {host}:{port}",
            where="--alpasim",
            fix="take another port, or another --host; 0 takes a free port",
        ) from None
    server.start()
    try:
        yield bound
    finally:
        server.stop(grace=5).wait()


def serve(driver: Driver, port: int, host: str, begun: Callable[[int], None]) -> None:
    """Serve until Ctrl-C, or until the simulator asks the driver to shut down.

    Args:
        begun: Called with the port once the server listens.
    """
    with serving(driver, port, host) as bound, contextlib.suppress(KeyboardInterrupt):
        begun(bound)
        driver.stopped.wait()


def summary(driver: Driver) -> str:
    """Counts, latencies and the `planner_delay_us` that they suggest, as text."""
    latency = driver.latency()
    lines = [
        f"sessions: {driver.num_sessions}, calls of drive: {len(driver.seconds)}, answers without "
        f"a path: {driver.num_unread}"
    ]
    for kind, seconds in latency.items():
        lines.append(f"  {kind:<8} " + ", ".join(f"{q} {s:.3f} s" for q, s in seconds.items()))
    lines.append(delay_note(latency["answered"]["p95"] if "answered" in latency else None))
    return "\n".join(lines)


def delay_note(seconds: float | None = None) -> str:
    """The `planner_delay_us` to set for a score that counts the time of inference."""
    name = f"{refusals.CONFIG}.planner_delay_us"
    if seconds is None:
        return f"the simulator's clock stops during inference, unless {name} is set"
    return (
        f"the simulator's clock stopped during inference, unless {name} was set: an answer's p95 "
        f"here is {round(seconds * 1e6)}"
    )


def camera_names(p: Params) -> str:
    """The cameras that the simulator has to provide, comma-separated."""
    return ", ".join(camera.name for camera in cameras.grid(p.vision.cameras).cameras)
