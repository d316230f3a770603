"""Live cameras on a virtual clock: frames of a tick, gaps, and the windows predicted."""

from __future__ import annotations

import json
import re

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.live.recording import replay
from avomni_lib.live.session import LiveSession
from avomni_lib.live.ticks import Tick, Ticks
from avomni_lib.params import Params

MS = 1_000_000


def p_of(**changes) -> Params:
    values = {
        "processing": {"sequence_length": 4, "sample_hz": 10},
        "vision": {"window_size": 4},
        "live": {"sources": SOURCES, "hop": 1, "deadline_ms": 250, "max_age_s": 0.5} | changes,
    }
    return Params.from_values(values)


NAMES = [
    *("camera_front_wide_120fov", "camera_front_tele_30fov"),
    *("camera_rear_left_70fov", "camera_rear_right_70fov"),
]
SOURCES = {name: f"/dev/video{number}" for number, name in enumerate(NAMES)}


class Clock:
    """A clock that stands still until `ns` is set."""

    def __init__(self):
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def shown(ticks: Ticks, now_ms: float) -> list[tuple[int, dict[str, int], tuple[str, ...]]]:
    return [
        (tick.number, {name: frame for name, (_, frame) in tick.frames.items()}, tick.missing)
        for tick in ticks.closed(round(now_ms * MS))
    ]


def test_tick_takes_each_cameras_last_frame_at_or_before_it():
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.25, max_age_s=0.5)
    for number, (a, b) in enumerate([(0, 10), (33, 43), (66, 76), (100, 110), (133, 143)]):
        ticks.push("a", a * MS, number)
        ticks.push("b", b * MS, number)
    # Both cameras have frames from 10 ms on; the middle of the widest gap (10 to 33 ms) is 21.5 ms.
    assert shown(ticks, 150) == [(0, {"a": 0, "b": 0}, ()), (1, {"a": 3, "b": 3}, ())]
    assert ticks._start_ns == 21_500_000


def test_tick_waits_for_the_slowest_camera_until_its_deadline():
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.25, max_age_s=0.5)
    for moment in range(0, 500, 50):
        ticks.push("a", moment * MS, moment)
    for moment in range(0, 200, 50):
        ticks.push("b", moment * MS, moment)
    # The first tick is at 25 ms, and both cameras have frames after the tick at 125 ms.
    assert shown(ticks, 474) == [(0, {"a": 0, "b": 0}, ()), (1, {"a": 100, "b": 100}, ())]
    assert shown(ticks, 475) == [(2, {"a": 200, "b": 150}, ())]
    ticks.push("b", 330 * MS, 330)  # after tick 3, so nothing is waited for
    assert shown(ticks, 476) == [(3, {"a": 300, "b": 150}, ())]


def test_frozen_camera_causes_gaps_until_it_returns():
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.2, max_age_s=0.3)
    ticks_shown = []
    for moment in range(0, 2000, 50):
        ticks.push("a", moment * MS, moment)
        if moment <= 300 or moment >= 1000:
            ticks.push("b", moment * MS, moment)
        ticks_shown += shown(ticks, moment)
    gaps = [number for number, _, missing in ticks_shown if missing == ("b",)]
    # Ticks are at 0.025 s, 0.125 s, …; from 0.625 s on the frame of 0.3 s is too old.
    assert gaps == [6, 7, 8, 9]


def test_missing_camera_is_named_in_every_tick():
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.2, max_age_s=0.3)
    ticks_shown = []
    for moment in range(0, 3000, 50):
        ticks.push("a", moment * MS, moment)
        ticks_shown += shown(ticks, moment)
        assert moment >= 2000 or not ticks_shown, "the first tick waits two seconds"
    assert [(number, missing) for number, _, missing in ticks_shown] == [
        (n, ("b",)) for n in range(28)
    ]


RATES = {"ten": 10, "fifteen": 15, "twenty": 20, "thirty": 30}


def play(ticks: Ticks, stamps: dict[str, np.ndarray], late_ms: float = 0) -> list[Tick]:
    """Push frames `late_ms` after their timestamps (ms) and collect closed ticks every 10 ms."""
    events = sorted((taken, name) for name, times in stamps.items() for taken in times)
    settled, now_ms = [], 0.0
    for taken, name in events:
        while now_ms < taken + late_ms:
            settled += ticks.closed(round(now_ms * MS))
            now_ms += 10
        ticks.push(name, round(taken * MS), taken)
    return settled


@pytest.mark.parametrize("seed", range(4))
def test_cameras_of_different_rates_and_phases_are_sampled_evenly(seed, caplog):
    rng = np.random.default_rng(seed)
    stamps = {
        name: np.arange(0, 10_000, 1000 / hz) + rng.uniform(0, 1000 / hz)
        for name, hz in RATES.items()
    }
    jittered = {name: times + rng.uniform(-1, 1, len(times)) for name, times in stamps.items()}
    settled = play(Ticks([*RATES], hz=10, deadline_s=0.25, max_age_s=0.5), jittered)
    assert len(settled) > 90 and not any(tick.missing for tick in settled)
    for name, hz in RATES.items():
        taken = np.array([tick.frames[name][1] for tick in settled])
        ages = np.array([tick.time_ns / MS for tick in settled]) - taken
        assert (ages >= 0).all() and ages.max() < 1000 / hz + 2
        if hz in (10, 20, 30):  # with jittered timestamps, an equal number of frames per tick
            assert np.abs(np.diff(taken) - 100).max() < 3


@pytest.mark.parametrize(
    ("ms", "hz", "words"),
    [
        (-400, 30, "are 1.. ms older"),  # beyond the deadline
        (60, 30, "are .. ms in the future"),
        (0, 4, "it shows 4.* frames a second"),
    ],
)
def test_camera_with_a_wrong_clock_or_rate_is_warned_of_once(ms, hz, words, caplog):
    ticks = Ticks(["a", "b", "c"], hz=10, deadline_s=0.25, max_age_s=0.5)
    rates_hz = {"a": 30, "b": hz, "c": 30}
    events = sorted(
        (moment, name)
        for name, camera_hz in rates_hz.items()
        for moment in np.arange(0, 12e3, 1e3 / camera_hz)
    )
    for moment, name in events:
        ticks.push(name, round((moment + (ms if name == "b" else 0)) * MS), None)
        list(ticks.closed(round(moment * MS)))
    (text,) = caplog.messages
    assert text.startswith("camera b: ") and re.search(words, text)


def test_late_camera_within_the_deadline_gives_no_warning(caplog):
    stamps = {name: np.arange(0, 8000, 1000 / 30) for name in "ab"}
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.25, max_age_s=0.5)
    settled = play(ticks, stamps, late_ms=150)
    assert len(settled) > 70 and not caplog.messages
    assert {tick.frames["a"][1] == tick.frames["b"][1] for tick in settled} == {True}


def test_number_of_frames_kept_is_bounded():
    waiting = Ticks(["a", "b"], hz=10, deadline_s=3, max_age_s=0.5)
    late = {"a": np.arange(0, 9000, 1000 / 30), "b": np.arange(0, 9000, 1000 / 30)}
    events = sorted(
        [(moment, moment, "a") for moment in late["a"]]
        + [(moment + 2800, moment, "b") for moment in late["b"]]
    )
    settled = []
    for now_ms, taken, name in events:
        waiting.push(name, round(taken * MS), taken)
        settled += waiting.closed(round(now_ms * MS))
        assert len(waiting.feeds["a"].frames) <= 5 * 30
    assert len(settled) > 60 and not any(tick.missing for tick in settled)
    quick = Ticks(["a", "b"], hz=10, deadline_s=0.25, max_age_s=0.5)
    play(quick, late)
    assert max(len(feed.frames) for feed in quick.feeds.values()) <= 6


@given(st.lists(st.integers(-40, 90), min_size=1, max_size=60))
def test_ticks_never_take_future_frames_or_go_backwards(steps):
    ticks = Ticks(["a"], hz=10, deadline_s=0.2, max_age_s=10)
    moment, last = 0, -1
    for step in steps:
        moment = max(moment + step, 0)
        ticks.push("a", moment * MS, moment)
        for tick in ticks.closed(moment * MS):
            taken, frame = tick.frames["a"]
            assert taken <= tick.time_ns and frame >= last
            last = frame
    assert len(ticks.feeds["a"].frames) <= 60


def picture(value: int, width: int = 64, height: int = 48) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.full((height, width, 3), value, np.uint8), format="rgb24")


def drive(session: LiveSession, clock: Clock, seconds: float, service_s: float, skip=()) -> None:
    """Run cameras at 30 Hz for `seconds`, with a model that takes `service_s` per window."""
    busy_until = 0
    for number in range(int(seconds * 30)):
        clock.ns = round(number / 30 * 1e9)
        for name in NAMES:
            if (name, number) not in skip:
                session.push(name, clock.ns, picture(number % 200 + 20))
        session.advance()
        if clock.ns >= busy_until and (ready := session.mailbox.take(0)):
            taken = clock.ns
            session.answer(ready)
            clock.ns = taken
            busy_until = taken + round(service_s * 1e9)


def test_slow_model_predicts_windows_at_most_two_predictions_old():
    clock = Clock()
    session = LiveSession(p_of(), lambda frames: str(int(frames[-1].mean())), now_ns=clock)
    drive(session, clock, seconds=20, service_s=1.0)
    assert 15 <= len(session.answers) <= 21
    for answer in session.answers:
        assert answer.asked_ns - answer.captured_ns <= 2e9
    counts = session.counts()
    assert counts["num_overtaken"] > 100 and counts["num_gaps"] == 0
    assert session.mailbox._ready is None or counts["num_answers"]


def test_windows_resume_when_a_camera_returns_after_minutes():
    clock, made = Clock(), []
    session = LiveSession(p_of(), str, now_ns=clock)
    for number in range(150 * 30):
        clock.ns = round(number / 30 * 1e9)
        for name in NAMES:
            if name != NAMES[2] or not 5 < clock.ns / 1e9 < 140:
                session.push(name, clock.ns, number)
        session.sliding.compose = lambda frames: np.zeros((1, 1, 3), np.uint8)
        made += [ready.captured_ns / 1e9 for ready in session.advance()]
        kept = sum(len(feed.frames) for feed in session.ticks.feeds.values())
        assert kept < 4 * 30
    before, after = [t for t in made if t < 70], [t for t in made if t > 70]
    assert 5 < before[-1] < 6 and 140 < after[0] < 140.6
    assert np.allclose(np.diff(after), 0.1)


def test_frames_of_a_new_size_fill_the_same_tile():
    clock, asked, p = Clock(), [], p_of()
    letterbox = p.processing.model_copy(update={"fit": "letterbox"})
    p = p.model_copy(update={"processing": letterbox})
    session = LiveSession(p, lambda frames: asked.append(frames) or "", now_ns=clock)
    for number in range(90):
        clock.ns = round(number / 30 * 1e9)
        size = (64, 48) if number < 45 else (160, 30)
        for name in NAMES:
            session.push(name, clock.ns, picture(200, *(size if name == NAMES[1] else (64, 48))))
        for ready in session.advance():
            session.answer(ready)
    assert session.counts()["num_gaps"] == 0 and len(asked) > 20
    assert {frames.shape for frames in asked} == {asked[0].shape}
    lit = [(frames[-1] > 100).mean() for frames in asked]
    assert lit[0] > lit[-1] > 0.5, "a wider frame leaves more of its tile black"


def test_no_window_spans_a_gap():
    clock = Clock()
    lost = {(NAMES[1], number) for number in range(60, 90)}
    asked = []
    session = LiveSession(
        p_of(max_age_s=0.2), lambda frames: asked.append(frames) or "", now_ns=clock
    )
    drive(session, clock, seconds=6, service_s=0.0, skip=lost)
    assert session.counts()["num_gaps"] >= 6
    steps = [np.diff(frames.mean(axis=(1, 2, 3))) for frames in asked]
    assert all((np.abs(differences) < 4.5).all() for differences in steps), (
        "three frames lie between two ticks"
    )


def test_camera_without_a_source_is_refused():
    sources = dict.fromkeys(NAMES[:3], "x.mp4")
    with pytest.raises(AvomniError, match=f"no source of {NAMES[3]}"):
        LiveSession(p_of(sources=sources), str)


def test_exclusive_source_of_two_cameras_is_refused():
    for url in ("/dev/video0", "udp://127.0.0.1:5004"):
        with pytest.raises(AvomniError, match=f"{NAMES[0]} and {NAMES[3]} are both at {url}"):
            LiveSession(p_of(sources=SOURCES | {NAMES[0]: url, NAMES[3]: url}), str)
    LiveSession(p_of(sources=dict.fromkeys(NAMES, "a.mp4")), str)


def test_unknown_kind_of_source_is_refused_before_a_camera_is_opened():
    with pytest.raises(AvomniError, match="a source is opened from") as caught:
        LiveSession(p_of(sources=SOURCES | {NAMES[1]: "concat:a.mp4|b.mp4"}), str)
    assert caught.value.where == f"live.sources.{NAMES[1]}"


def test_replay_gives_the_recorded_answers(tmp_path):
    clock = Clock()

    def ask(frames: np.ndarray) -> str:
        return " ".join(f"{frame.mean():.3f}" for frame in frames)

    ask.num_encoded = 2
    session = LiveSession(p_of(), ask, record=tmp_path / "record", now_ns=clock)
    with session.record:
        drive(session, clock, seconds=3, service_s=0.35, skip={(NAMES[0], 40)})
    lines = [json.loads(line) for line in (tmp_path / "record" / "live.jsonl").open()]
    assert {line["num_encoded"] for line in lines if line["kind"] == "answer"} == {2}
    answers = list(replay(p_of(), tmp_path / "record", ask))
    assert [(tick, then) for tick, then, _ in answers] == [
        (answer.tick, answer.text) for answer in session.answers
    ]
    assert len(answers) > 5 and all(then == now for _, then, now in answers)
    with pytest.raises(AvomniError, match="recorded here already"):
        LiveSession(p_of(), ask, record=tmp_path / "record").record.__enter__()
