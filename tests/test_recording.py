"""A cached clip played as live cameras, its recording, and ground truth for its predictions."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from avomni_lib.dataset import cameras
from avomni_lib.dataset.select import evicted
from avomni_lib.errors import AvomniError
from avomni_lib.live import playback, sources
from avomni_lib.live.answering import opened
from avomni_lib.live.recording import SessionRecord, replay
from avomni_lib.live.session import LiveSession
from avomni_lib.notebook.plots import live as plots
from avomni_lib.params import Params
from avomni_lib.training.prompt import history, samples
from avomni_lib.training.targets import Content, target_of
from tests import cached_training

ANSWER = "<think>\nAvg Velocity: 5.00m/s. Total displacement: 1.50m.\n</think>\n"
ANSWER += "Action: Displacement of 1.5 meters."


@pytest.fixture(scope="module")
def p(tmp_path_factory) -> Params:
    """A run with a cache of two-second clips."""
    return cached_training.make(tmp_path_factory.mktemp("run"), live={"hop": 1})


@pytest.fixture(scope="module")
def clip_id(p) -> str:
    return playback.held_out_clips(p)[0]


@pytest.fixture(scope="module")
def played(p, clip_id, tmp_path_factory) -> tuple[Params, SessionRecord]:
    """The recording of a clip played in real time, with a constant prediction."""
    folder = tmp_path_factory.mktemp("stage")
    run = playback.prepare(p, clip_id, folder)
    with opened(run, ask=lambda frames, past="": ANSWER) as (session, _):
        session.run(20)
    return run, SessionRecord.read(folder / playback.SESSION)


def cached_frames(p: Params, clip_id: str) -> tuple[np.ndarray, np.ndarray]:
    """A clip's frames in the cache and their times."""
    windows = samples.windows_of(p, p.evaluation.split)
    clip = next(
        cached_clip for cached_clip in windows.cache.clips if cached_clip.clip_id == clip_id
    )
    shard = windows.cache.shards[clip.shard]
    return shard.frames[clip.start : clip.stop], shard.times[clip.start : clip.stop]


def test_recording_has_the_times_of_ticks_and_latencies_of_answers(played):
    run, recording = played
    ticks, answers = recording.ticks, recording.answers
    assert list(ticks.columns[:3]) == ["time_s", "waited_ms", "is_gap"]
    names = [camera.name for camera in cameras.grid(run.vision.cameras).cameras]
    assert list(ticks.columns[3:]) == names
    hz = run.processing.sample_hz
    assert np.allclose(np.diff(ticks.time_s), 1 / hz, atol=2e-4)
    assert 0 <= ticks.time_s.iloc[0] < 1 / hz, "times count from the start of the videos"
    assert len(answers) and (answers.total > 0).all()
    assert np.allclose(
        answers[["camera", "grid", "wait", "model"]].sum(axis=1), answers.total, atol=5e-4
    )
    table = recording.latency()
    assert list(table.columns) == ["p50", "p95", "p99"] and (table.p50 <= table.p99).all()
    figures = recording.figures()
    json.dumps(figures)
    assert figures["num_answers"] == len(answers) and figures["latency_s"]["total"]["p50"] > 0


def test_ground_truth_of_an_answer_belongs_to_its_frames(played, clip_id):
    run, recording = played
    frames, _ = cached_frames(run, clip_id)
    dense = run.processing.model_copy(update={"stride": 1})
    windows = samples.windows_of(run.model_copy(update={"processing": dense}), None)
    by_last = {
        frames_of.tobytes(): windows.truth(i)
        for i, window in enumerate(windows)
        if window.clip_id == clip_id
        for frames_of in [np.array(windows.frames(i))]
    }
    target, num = target_of(run), 0
    for made in recording.predictions(run):
        truth = by_last.get(made.subject.frames.tobytes())
        if truth is None:
            continue  # on a busy machine a tick may show other frames than the cache
        num += 1
        assert made.subject.truth == target.render(truth)
        assert made.off == pytest.approx(abs(5.0 - round(truth.speed_mps, 2)), abs=0.011)
        assert made.subject.lens is not None
    assert num >= 3


def test_replay_predicts_on_the_recorded_windows(played):
    run, recording = played
    seen = []
    again = list(replay(run, recording.folder, lambda frames: seen.append(frames) or ANSWER))
    assert [tick for tick, _, _ in again] == list(recording.answers.tick)
    last = recording.frames(run, recording.last_tick)
    assert (seen[-1] == last).all() and last.shape[0] == run.processing.sequence_length
    with pytest.raises(AvomniError, match="no whole window ends with tick 0"):
        recording.frames(run, 0)


def test_plots_of_a_session_are_drawn(played):
    run, recording = played
    assert "From frame to answer" in plots.timeline(recording).get_suptitle()
    made = recording.predictions(run)
    strip = plots.strip(run, made, num=4)
    assert len([axes for axes in strip.axes if axes.images]) == min(4, len(made))
    assert strip.png()
    assert "No window" in plots.strip(run, []).get_suptitle()


@pytest.mark.parametrize("tile", [(8, 8), (96, 16), (16, 96)])
@pytest.mark.filterwarnings("error")
def test_small_and_elongated_tiles_are_drawn_without_a_warning(played, tile):
    run, recording = played
    width, height = tile
    size = run.processing.model_copy(update={"tile_width": width, "tile_height": height})
    run = run.model_copy(update={"processing": size})
    made = recording.predictions(played[0])[0]
    path = tuple((float(x), 0.01 * x * x) for x in range(1, 17))
    frames = np.zeros((2, 2 * height, 2 * width, 3), np.uint8)
    asked = dataclasses.replace(made.subject, frames=frames)
    answer = dataclasses.replace(made.answer, content=Content(waypoints_m=path))
    made = dataclasses.replace(made, subject=asked, answer=answer)
    assert list(plots.paths_of(made)) == ["predicted"]
    drawn = plots.picture(run, made)
    assert drawn.png() and len(drawn.axes[0].lines) == 1, (
        "the path must be drawn on the front camera"
    )
    assert plots.strip(run, [made] * 4).png()


def test_played_clip_has_the_ego_history_of_each_time(p, clip_id, tmp_path):
    past = p.prompt.model_copy(update={"ego_history": True})
    run = playback.prepare(p.model_copy(update={"prompt": past}), clip_id, tmp_path)
    history_at = playback.history_of(run, tmp_path / playback.SESSION)
    windows, target = samples.windows_of(run, None), target_of(run)
    note = playback.Played.of(tmp_path / playback.SESSION)
    indices = [i for i, window in enumerate(windows) if window.clip_id == clip_id]
    for index in indices:
        time_s = (int(windows.times_us(index)[-1]) - note.zero_us) / 1e6
        words = history.of_window(windows, index, target, run.processing.own_from_s)
        assert history_at(time_s) == words and "Speed there" in words
    assert len({history_at(time_s) for time_s in (0.5, 1.5)}) == 2
    elsewhere = run.live.model_copy(update={"sources": {"a": "b.mp4"}})
    with pytest.raises(AvomniError, match="which is not known here"):
        playback.plan(run.model_copy(update={"live": elsewhere}))


def test_evicted_clip_is_played_from_the_cache(p, clip_id, tmp_path, monkeypatch):
    """The frames are equal because the codec is lossless."""
    evicted_paths = dict.fromkeys(
        (str(path.relative_to(p.local_dir)) for path in p.local_dir.rglob("camera/**/*.zip")), "now"
    )
    monkeypatch.setattr(playback, "read_evicted", lambda _: evicted_paths)
    assert evicted_paths and evicted.read_evicted(p) == {}
    run = playback.as_cameras(p, clip_id, tmp_path)
    clock, made, events = [0], [], []
    session = LiveSession(run, str, now_ns=lambda: clock[0])
    for source in session.sources:
        events += [
            (stamp_ns, source.camera, frame) for stamp_ns, frame in sources.frames_of(source)
        ]
    for time_ns, name, frame in sorted(events, key=lambda event: event[:2]):
        clock[0] = time_ns
        session.push(name, time_ns, frame)
        made += session.advance()
    frames, _ = cached_frames(p, clip_id)
    length = p.processing.sequence_length
    assert len(made) >= len(frames) - length - 2
    for ready in made:
        assert (ready.frames == frames[ready.tick - length + 1 : ready.tick + 1]).all()


def test_plan_counts_windows_and_refuses_an_endless_session(p):
    planned = playback.plan(p)
    assert planned.figures == {"seconds": 2.0, "windows": 17} and not planned.warnings
    names = [camera.name for camera in cameras.grid(p.vision.cameras).cameras]
    live = p.live.model_copy(
        update={
            "sources": {name: f"rtsp://me:secret@10.0.0.5/{name}" for name in names},
            "seconds": None,
        }
    )
    with pytest.raises(AvomniError, match="nothing would end the session"):
        playback.plan(p.model_copy(update={"live": live}))
    live = live.model_copy(update={"seconds": 10.0})
    shown = str(playback.plan(p.model_copy(update={"live": live})))
    assert "rtsp://10.0.0.5" in shown and "secret" not in shown


def test_plan_shows_latency_and_warns_of_shared_sources():
    names = [camera.name for camera in cameras.grid("4-cam").cameras]
    live = {"sources": dict.fromkeys(names, "rtsp://me:secret@10.0.0.5/a"), "seconds": 60}
    planned = playback.plan(Params.from_values({"extends": "params/mi300x.yaml", "live": live}))
    (row,) = (row for row in planned.rows if row[0] == "an answer")
    assert row[1] == "0.36 s" and "not measured" in row[2] and "from live.hop 1 on" in row[2]
    (warning,) = planned.warnings
    assert f"{names[0]}, {names[1]}" in warning and "rtsp://10.0.0.5/a: the model" in warning


def test_recording_without_complete_ticks_is_refused(p, tmp_path):
    names = [camera.name for camera in cameras.grid(p.vision.cameras).cameras]
    missing = {name: str(tmp_path / f"{name}.mp4") for name in names}
    live = p.live.model_copy(update={"sources": missing, "record": str(tmp_path / "record")})
    with opened(p.model_copy(update={"live": live}), ask=str) as (session, _):
        session.run(5)
    with pytest.raises(AvomniError, match="no tick of the session has a picture of each camera"):
        SessionRecord.read(tmp_path / "record")
    with pytest.raises(AvomniError, match="no whole record"):
        SessionRecord.read(tmp_path)


def test_camera_passwords_are_left_out_of_results(p):
    url = "rtsp://me:secret@10.0.0.5/front"
    live = p.live.model_copy(update={"sources": {"camera_front_wide_120fov": url}})
    with_password = p.model_copy(update={"live": live})
    assert "secret" not in json.dumps(with_password.values()) + json.dumps(
        with_password.values("live.sources")
    )
    assert "secret" not in json.dumps(playback.rows(with_password))
    assert Params.from_values(with_password.complete()).live.sources == live.sources
