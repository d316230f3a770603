"""What drives: an observation to 16 waypoints, 0.4 s apart.

An observation is a mapping with `cameras` (n, H, W, 3) uint8 RGB, in the order of the run's grid,
`ego` (17, 4) float32: x, y, yaw, speed (m/s) every 0.1 s of the last 1.6 s, the newest last, NaN
where nobody knows, and `route` (20, 2). Places are in metres in the rig's frame at the moment:
x forward, y left. Waypoints are (16, 2) float64 in that frame, from 0.4 to 6.4 s. A policy is asked
once each 0.1 s of an episode.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError, pick
from avomni_lib.etl.clip.trajectory import HISTORY_STEPS, STEP_S, Trajectory
from avomni_lib.evaluation import baselines
from avomni_lib.evaluation.scores import MODEL, parts_of
from avomni_lib.live.answerer import Answerer
from avomni_lib.live.ticks import Ready, Sliding, Tick
from avomni_lib.params import Params, user_code
from avomni_lib.training.model import generate
from avomni_lib.training.prompt import samples
from avomni_lib.training.targets import TARGETS, motion_models, target_of
from avomni_lib.training.targets.future import (
    FUTURE_V1,
    LIMIT_M,
    NUM_WAYPOINTS,
    STEPS_APART,
    at_10hz,
)

Observation = Mapping[str, np.ndarray]
WHERE = "driving.policies"
HZ = round(1 / STEP_S)  # decisions, and pictures, a second


class Policy(ABC):
    """Drives several episodes side by side, identified by their numbers.

    Attributes:
        name: In the ladder.
        sees: Whether it looks at pictures; for others none are drawn.
    """

    name: str
    sees: bool = False

    @property
    def note(self) -> str:
        """What a reader has to know of how it drives; empty where there is nothing."""
        return ""

    def start(self, number: int, reference: np.ndarray) -> None:  # noqa: B027
        """Begin an episode; what was known of one of this number is forgotten.

        Args:
            reference: (T2, 4) x, y, yaw, speed of the recorded drive, as `Episode` has it. Only
                log replay looks at it; the ego begins where it does.
        """

    @abstractmethod
    def __call__(self, observation: Observation, number: int = 0) -> np.ndarray:
        """(16, 2) waypoints."""

    def several(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Waypoints for each episode, by its number."""
        return {number: self(seen, number) for number, seen in observations.items()}


def past_of(observation: Observation) -> Trajectory:
    """The motion before the moment, as far as it is known."""
    ego = np.asarray(observation["ego"], np.float64)
    times = np.arange(-HISTORY_STEPS, 0) * STEP_S
    known = np.isfinite(ego[:-1]).all(axis=1)
    yaw = np.unwrap(np.append(ego[:-1][known, 2], 0.0))
    return Trajectory(times[known], ego[:-1][known, :2], (yaw - yaw[-1])[:-1], float(ego[-1, 3]))


@dataclass
class Extrapolation(Policy):
    """Goes on by what moved before: waypoints of the past alone."""

    name: str
    ahead: Callable[[Trajectory], np.ndarray]

    def __call__(self, observation: Observation, number: int = 0) -> np.ndarray:
        return self.ahead(past_of(observation))


def waypoints_of(name: str, past: Trajectory) -> np.ndarray:
    """(16, 2) waypoints of a motion model of `targets.motion_models`."""
    return motion_models.MODELS[name](past).trajectory().xy_m[STEPS_APART - 1 :: STEPS_APART]


def ego_motion(p: Params) -> Extrapolation:
    """The ridge regression of the ladder, fitted on the training windows of the run's cache.

    Raises:
        AvomniError: no cache, or no training window with its future.
    """
    windows = samples.windows_ahead(p)
    own = [index for index in range(len(windows)) if windows[index].split == "train"]
    answers = [FUTURE_V1.of(windows.truth(index)) for index in own]
    ridge = baselines.EgoMotion.fit([windows.past(index) for index in own], answers)
    return Extrapolation("ego_motion", lambda past: np.array(ridge.predict(past).waypoints_m))


@dataclass
class LogReplay(Policy):
    """Follows the recorded drive by its clock; past its end it goes straight on as it ended.

    Where it is it knows from the ego's own motion since the start, which is the recorded one's.
    """

    name = "log_replay"
    _drives: dict[int, tuple[np.ndarray, complex, float, int]] = field(default_factory=dict)

    def start(self, number: int, reference: np.ndarray) -> None:
        path = np.asarray(reference, np.float64)
        self._drives[number] = path, complex(*path[0, :2]), float(path[0, 2]), 0

    def __call__(self, observation: Observation, number: int = 0) -> np.ndarray:
        path, place, yaw, step = self._drives[number]
        if step:  # where it was a step ago is the last but one of its poses
            x, y, turned, _ = np.asarray(observation["ego"], np.float64)[-2]
            yaw -= turned
            place -= complex(x, y) * np.exp(1j * yaw)
        at = step + STEPS_APART * np.arange(1, NUM_WAYPOINTS + 1)
        last = len(path) - 1
        ahead = path[np.minimum(at, last), 0] + 1j * path[np.minimum(at, last), 1]
        beyond = np.maximum(at - last, 0) * STEP_S * path[-1, 3]
        seen = (ahead + beyond * np.exp(1j * path[-1, 2]) - place) * np.exp(-1j * yaw)
        self._drives[number] = path, place, yaw, step + 1
        return np.stack([seen.real, seen.imag], axis=1)


@dataclass
class _Wheel:
    """What the model's policy knows of one episode.

    Attributes:
        sliding: The grids of the last ticks.
        step: Of the episode, from 0.
        plan: (64, 2) places every 0.1 s from 0.1 s on, seen from the rig at the last step; None
            before the first answer.
        pasts: The motion before each frame of the window.
    """

    sliding: Sliding
    pasts: deque[Trajectory]
    step: int = 0
    plan: np.ndarray | None = None


class ModelPolicy(Policy):
    """The trained model at the wheel: the newest window to an answer, every few frames.

    A picture is taken at each tick of `processing.sample_hz`; a window is whole after
    `warm_up_s`, sooner after a `look_back`, and until then the car keeps its velocity. Between
    answers, and where one cannot be read, the last path is followed on.

    Args:
        answerer: Loaded once; several policies may share it.
        hop: Ticks from one answer to the next; `live.hop` if None.
        smoothing: Share of the path before in the one that is followed after an answer: the error
            of one answer alone is large, and the next has another.

    Attributes:
        num_answers, num_unread: Over all episodes; of the second no path could be read.

    Raises:
        AvomniError: the model's target says no path, or it looks more often than the world shows
            pictures.
    """

    def __init__(
        self,
        answerer: Answerer,
        hop: int | None = None,
        blind: bool = False,
        smoothing: float = 0.0,
    ):
        self._answerer, self.p = answerer, answerer.p
        check(self.p)
        self.name, self.sees = "blind" if blind else answerer.name, not blind
        self.hop = hop or self.p.live.hop
        self._smoothing = smoothing
        self._names = [each.name for each in cameras.grid(self.p.vision.cameras).cameras]
        self._wheels: dict[int, _Wheel] = {}
        self.num_answers = self.num_unread = 0
        self._black: list[str] = []  # what it says of a black window, once it was asked
        first = -(-int(self._sliding().rows[-1]) // self.hop) * self.hop
        self._first_step = self._step_of(first)
        self._num_past = 0

    @property
    def warm_up_s(self) -> float:
        """s of an episode before its first window is whole."""
        return float(max(self._first_step - self._num_past, 0) * STEP_S)

    @property
    def note(self) -> str:
        if not self.warm_up_s:
            return ""
        return f"keeps its velocity for the first {self.warm_up_s:g} s, until its window is whole"

    def start(self, number: int, reference: np.ndarray) -> None:
        pasts: deque[Trajectory] = deque(maxlen=self.p.processing.sequence_length)
        self._wheels[number] = _Wheel(self._sliding(), pasts)

    def look_back(self, number: int, pictures: Sequence[Any], ego: np.ndarray) -> None:
        """Show it what came before an episode, so that its window is whole the sooner.

        Args:
            pictures: (n, cameras, H, W, 3) uint8, every 0.1 s until just before the start; n times
                None for one that is blind.
            ego: (17, 4) of the first observation.
        """
        wheel, self._num_past = self._wheels[number], len(pictures)
        for idx, each in enumerate(pictures):
            ego_then = _seen_before(ego, len(pictures) - idx)
            self._look(wheel, {"cameras": each, "ego": ego_then})
            wheel.step += 1

    def __call__(self, observation: Observation, number: int = 0) -> np.ndarray:
        return self.several({number: observation})[number]

    def several(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """As `Policy.several`; the episodes whose window is due share a batch.

        Raises:
            AvomniError: the pictures are not those of the grid's cameras.
        """
        due = {}
        for number, seen in observations.items():
            wheel = self._wheels[number]
            if wheel.plan is not None:
                wheel.plan = carried(wheel.plan, seen)
            if (ready := self._look(wheel, seen)) is not None:
                due[number] = ready
            wheel.step += 1
        if due:
            self._answer(due)
        return {number: self._waypoints(number, seen) for number, seen in observations.items()}

    def _sliding(self) -> Sliding:
        return Sliding(self.p, self.hop, now_ns=lambda: 0)

    def _step_of(self, tick: int) -> int:
        """The step whose picture a tick shows: the last one at or before its time."""
        return int(tick * HZ / self.p.processing.sample_hz + 1e-9)

    def _look(self, wheel: _Wheel, seen: Observation) -> Ready | None:
        """Take the pictures of a step in, where a tick shows them."""
        tick = math.ceil(wheel.step * self.p.processing.sample_hz / HZ - 1e-9)
        if self._step_of(tick) != wheel.step:
            return None
        if self.sees:
            pictures = np.asarray(seen["cameras"])
        else:
            size = self.p.processing.tile_height, self.p.processing.tile_width
            pictures = np.zeros((len(self._names), *size, 3), np.uint8)
        if len(pictures) != len(self._names) or pictures.dtype != np.uint8 or pictures.ndim != 4:
            raise AvomniError(
                f"pictures are {pictures.shape} {pictures.dtype}, expected "
                f"({len(self._names)}, height, width, 3) uint8",
                where="cameras of an observation",
                fix="render the cameras of vision.cameras, in the order of its grid",
            )
        wheel.pasts.append(past_of(seen))
        time_ns = round(wheel.step * STEP_S * 1e9)
        frames = {
            name: (time_ns, av.VideoFrame.from_ndarray(np.ascontiguousarray(each), format="rgb24"))
            for name, each in zip(self._names, pictures, strict=True)
        }
        return wheel.sliding.add(Tick(tick, time_ns, time_ns, frames, ()))

    def _answer(self, due: Mapping[int, Ready]) -> None:
        """Ask about the windows, in batches, and take over the paths that can be read."""
        wheels = self._wheels
        pasts = [samples.past_words(self.p, wheels[each].pasts.__getitem__) for each in due]
        frames = [ready.frames for ready in due.values()]
        if self.sees or any(pasts):
            texts = self._generate(frames, pasts)
        else:  # all such windows are one: it is asked about once
            self._black = self._black or self._generate(frames[:1], pasts[:1])
            texts = self._black * len(due)
        for number, text in zip(due, texts, strict=True):
            answer = self._answerer.target.read(text)
            self.num_answers += 1
            if answer is None or answer.waypoints_m is None:
                self.num_unread += 1
            else:
                wheel, new = wheels[number], at_10hz(answer.waypoints_m)
                before, kept = wheel.plan, self._smoothing
                wheel.plan = new if before is None else kept * before + (1 - kept) * new

    def _generate(self, frames: Sequence[np.ndarray], pasts: Sequence[str]) -> list[str]:
        return generate.generate_all(
            self._answerer.model,
            self._answerer.conversation,
            frames,
            pasts,
            max_new_tokens=self.p.evaluation.max_new_tokens,
            at_a_time=self.p.evaluation.batch_size,
            constrained=self.p.evaluation.constrained,
        )

    def _waypoints(self, number: int, seen: Observation) -> np.ndarray:
        plan = self._wheels[number].plan
        if plan is None:
            return waypoints_of("constant_velocity", past_of(seen))
        return plan[STEPS_APART - 1 :: STEPS_APART]


def _seen_before(ego: np.ndarray, steps: int) -> np.ndarray:
    """(17, 4) an observation's `ego` as it was some steps before, NaN where that is not known."""
    known = np.asarray(ego, np.float64)[: len(ego) - steps]
    x, y, yaw, _ = known[-1]
    place = ((known[:, 0] - x) + 1j * (known[:, 1] - y)) * np.exp(-1j * yaw)
    before = np.full(np.shape(ego), np.nan)
    before[steps:] = np.column_stack([place.real, place.imag, known[:, 2] - yaw, known[:, 3]])
    return before


def carried(plan: np.ndarray, observation: Observation) -> np.ndarray:
    """A path (64, 2) that was made a step ago, as it is seen now, a step further on.

    At its end it goes straight on as fast as it ended.
    """
    x, y, yaw, _ = np.asarray(observation["ego"], np.float64)[-2]  # where the rig was then
    cos, sin = np.cos(yaw), np.sin(yaw)
    now = plan @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
    return np.concatenate([now[1:], [2 * now[-1] - now[-2]]])


def check(p: Params) -> None:
    """Refuse a run whose model cannot drive, before it is loaded.

    Raises:
        AvomniError: its target says no path, or it looks more often than the world shows pictures.
    """
    if "future" not in parts_of(p.training.target):
        fits = [name for name in TARGETS if "future" in parts_of(name)]
        raise AvomniError(
            f"the target {target_of(p).name} says no path to drive along",
            where="training.target",
            fix=f"train with {' or '.join(fits)}",
        )
    if p.processing.sample_hz > HZ:
        raise AvomniError(
            f"the model looks {p.processing.sample_hz:g} times a second, the world shows {HZ}",
            where="processing.sample_hz",
            fix=f"lower it to {HZ} at most, and train anew",
        )


@dataclass
class Own(Policy):
    """A policy that the user wrote, `module:attribute`.

    A function of an observation, or a class: one object of it is made for each episode, and is
    called with the observations of that one.
    """

    name: str
    call: Callable[[], Callable[[Observation], Any]]
    sees = True
    _drives: dict[int, Callable[[Observation], Any]] = field(default_factory=dict)

    def start(self, number: int, reference: np.ndarray) -> None:
        self._drives[number] = self.call()

    def __call__(self, observation: Observation, number: int = 0) -> np.ndarray:
        answer = self._drives[number](observation)
        try:
            waypoints = np.asarray(answer, np.float64)
        except (TypeError, ValueError):
            waypoints = np.zeros(0)
        if waypoints.shape != (NUM_WAYPOINTS, 2) or not (np.abs(waypoints) < LIMIT_M).all():
            raise AvomniError(
                f"{self.name} returned {type(answer).__name__} of shape {np.shape(waypoints)}, "
                f"expected ({NUM_WAYPOINTS}, 2) finite metres below {LIMIT_M:g}",
                where=WHERE,
                fix="return 16 waypoints 0.4 s apart, x forward and y left of the rig",
            )
        return waypoints


def own(reference: str) -> Own:
    """The policy `module:attribute`, imported as `user_code` finds it.

    Raises:
        AvomniError: it cannot be imported, or is nothing that can be called.
    """
    path = user_code.find(reference, WHERE).path
    made = user_code.load(reference, WHERE)
    if not callable(made):
        raise AvomniError(
            f"{reference} is no policy: a {type(made).__name__} cannot be called",
            where=str(path),
            fix="write a function of an observation, or a class whose objects are called with one",
        )

    def call() -> Callable[[Observation], Any]:
        each = made
        if isinstance(made, type):
            with user_code.in_words(path, WHERE, f"{reference}()"):
                each = made()
        return user_code.guarded(each, path, WHERE, reference)

    return Own(reference, call)


def policy(name: str, p: Params, answerer: Callable[[], Answerer]) -> Policy:
    """The policy of a name in the ladder, or the user's own that `module:attribute` names.

    Args:
        answerer: Loads the trained model; called only where it drives.

    Raises:
        AvomniError: there is none of this name, or it cannot drive this run.
    """
    if user_code.is_reference(name):
        return own(name)

    def model() -> ModelPolicy:
        check(p)  # before it is loaded
        return ModelPolicy(answerer(), p.driving.hop, name == "blind", p.driving.smoothing)

    def motion() -> Extrapolation:
        return Extrapolation(name, functools.partial(waypoints_of, name))

    made: dict[str, Callable[[], Policy]] = {
        "log_replay": LogReplay,
        **dict.fromkeys(motion_models.MODELS, motion),
        "ego_motion": lambda: ego_motion(p),
        **dict.fromkeys(("blind", MODEL), model),
    }
    return pick(made, name, "policy", WHERE)()
