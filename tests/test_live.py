"""Live cameras on a virtual clock: which frames a tick shows, what is a gap, who is answered."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avomni_lib.errors import AvomniError
from avomni_lib.live.recording import replay
from avomni_lib.live.session import Session
from avomni_lib.live.ticks import Ticks
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
    """A clock that stands until it is moved."""

    def __init__(self):
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def shown(ticks: Ticks, now_ms: float) -> list[tuple[int, dict[str, int], tuple[str, ...]]]:
    return [
        (tick.number, {name: frame for name, (_, frame) in tick.frames.items()}, tick.missing)
        for tick in ticks.closed(round(now_ms * MS))
    ]


def test_a_tick_shows_each_cameras_last_frame_at_or_before_it():
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.25, max_age_s=0.5)
    for number, (a, b) in enumerate([(0, 10), (33, 43), (66, 76), (100, 110), (133, 143)]):
        ticks.push("a", a * MS, number)
        ticks.push("b", b * MS, number)
    # Both have a frame from 10 ms on, and between 10 and 33 ms lies the widest gap: 21.5 ms.
    assert shown(ticks, 150) == [(0, {"a": 0, "b": 0}, ()), (1, {"a": 3, "b": 3}, ())]
    assert ticks._start_ns == 21_500_000


def test_a_tick_waits_for_the_slowest_camera_until_its_deadline():
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.25, max_age_s=0.5)
    for moment in range(0, 500, 50):
        ticks.push("a", moment * MS, moment)
    ticks.push("b", 0, 0)
    assert shown(ticks, 249) == []
    assert shown(ticks, 250) == [(0, {"a": 0, "b": 0}, ())]
    ticks.push("b", 120 * MS, 120)  # later than tick 1: nothing is waited for
    assert shown(ticks, 251) == [(1, {"a": 100, "b": 0}, ())]


def test_a_camera_that_froze_makes_gaps_and_one_that_comes_back_ends_them():
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.2, max_age_s=0.3)
    found = []
    for moment in range(0, 2000, 50):
        ticks.push("a", moment * MS, moment)
        if moment <= 300 or moment >= 1000:
            ticks.push("b", moment * MS, moment)
        found += shown(ticks, moment)
    gaps = [number for number, _, missing in found if missing == ("b",)]
    # Ticks are at 0.025 s, 0.125 s …: from 0.625 s on the frame of 0.3 s is older than 0.3 s.
    assert gaps == [6, 7, 8, 9]


def test_a_camera_that_never_comes_is_named_and_time_goes_on():
    ticks = Ticks(["a", "b"], hz=10, deadline_s=0.2, max_age_s=0.3)
    for moment in range(0, 1000, 50):
        ticks.push("a", moment * MS, moment)
    assert {missing for _, _, missing in shown(ticks, 1000)} == {("b",)}


@given(st.lists(st.integers(-40, 90), min_size=1, max_size=60))
def test_no_frame_is_shown_before_it_was_taken_and_none_twice_backwards(steps):
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


def drive(session: Session, clock: Clock, seconds: float, service_s: float, skip=()) -> None:
    """Cameras at 30 Hz for so long, and a model that takes `service_s` a window."""
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


def test_with_a_model_ten_times_slower_the_answered_window_is_at_most_two_services_old():
    clock = Clock()
    session = Session(p_of(), lambda frames: str(int(frames[-1].mean())), now_ns=clock)
    drive(session, clock, seconds=20, service_s=1.0)
    assert 15 <= len(session.answers) <= 21
    for each in session.answers:
        assert each.asked_ns - each.captured_ns <= 2e9
    counts = session.counts()
    assert counts["num_overtaken"] > 100 and counts["num_gaps"] == 0
    assert session.mailbox._ready is None or counts["num_answers"]


def test_no_window_spans_a_gap():
    clock = Clock()
    lost = {(NAMES[1], number) for number in range(60, 90)}
    asked = []
    session = Session(p_of(max_age_s=0.2), lambda frames: asked.append(frames) or "", now_ns=clock)
    drive(session, clock, seconds=6, service_s=0.0, skip=lost)
    assert session.counts()["num_gaps"] >= 6
    steps = [np.diff(frames.mean(axis=(1, 2, 3))) for frames in asked]
    assert all((np.abs(each) < 4.5).all() for each in steps), "three frames lie between two ticks"


def test_a_camera_without_an_address_is_refused():
    sources = dict.fromkeys(NAMES[:3], "x.mp4")
    with pytest.raises(AvomniError, match=f"no source of {NAMES[3]}"):
        Session(p_of(sources=sources), str)


def test_an_address_of_another_kind_is_refused_before_a_camera_is_opened():
    with pytest.raises(AvomniError, match="a source is opened from") as caught:
        Session(p_of(sources=SOURCES | {NAMES[1]: "concat:a.mp4|b.mp4"}), str)
    assert caught.value.where == f"live.sources.{NAMES[1]}"


def test_a_recorded_session_is_answered_again(tmp_path):
    clock = Clock()

    def ask(frames: np.ndarray) -> str:
        return " ".join(f"{frame.mean():.3f}" for frame in frames)

    ask.num_encoded = 2
    session = Session(p_of(), ask, record=tmp_path / "record", now_ns=clock)
    with session.record:
        drive(session, clock, seconds=3, service_s=0.35, skip={(NAMES[0], 40)})
    lines = [json.loads(line) for line in (tmp_path / "record" / "live.jsonl").open()]
    assert {line["num_encoded"] for line in lines if line["kind"] == "answer"} == {2}
    answers = list(replay(p_of(), tmp_path / "record", ask))
    assert [(tick, then) for tick, then, _ in answers] == [
        (each.tick, each.text) for each in session.answers
    ]
    assert len(answers) > 5 and all(then == now for _, then, now in answers)
    with pytest.raises(AvomniError, match="recorded here already"):
        Session(p_of(), ask, record=tmp_path / "record").record.__enter__()
