"""`avomni predict` for a window, a clip or a folder, with the pixels and prompt of training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from avomni_lib import cli
from avomni_lib.dataset import cameras
from avomni_lib.dataset.catalog import Catalog
from avomni_lib.dataset.clip import Clip
from avomni_lib.errors import AvomniError
from avomni_lib.evaluation import answer, models
from avomni_lib.live import answering, playback, subject
from avomni_lib.live.answerer import Answerer, chosen, predict
from avomni_lib.live.session import LiveSession
from avomni_lib.params import Params
from avomni_lib.training.fit import worker
from avomni_lib.training.model import adapter
from avomni_lib.training.prompt import samples
from tests import cached_training
from tests.answering import answers

NAMES = [camera.name for camera in cameras.grid("4-cam").cameras]


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    """A run with a cache and an adapter trained for three steps."""
    p = cached_training.make(tmp_path_factory.mktemp("run"), training={"max_steps": 3})
    worker.work(p)
    return p


@pytest.fixture(scope="module")
def answerer(p):
    return Answerer(p)


def test_prediction_of_a_window_equals_the_evaluations(p, answerer):
    windows = answer.held_out_windows(p)
    model, conversation, _ = models.opened(p, windows.cache.header, adapter.adapter_dir(p))
    scored = answers(
        model,
        conversation,
        windows,
        range(4),
        batch_size=4,
        max_new_tokens=p.evaluation.max_new_tokens,
    )
    predictions = [predict(chosen(p, window=i), answerer) for i in range(4)]
    assert [prediction.answer.text for prediction in predictions] == scored
    target = conversation.target
    for index, prediction in enumerate(predictions):
        assert prediction.subject.truth == target.render(windows.truth(index))
        if prediction.answer.content is None:
            assert prediction.off is None


def test_clip_from_raw_files_has_the_frames_of_the_cache(p):
    windows = samples.windows_of(p, "test")
    clip_id = windows[0].clip_id
    cached = subject.of_clip(p, clip_id)
    apart = p.model_copy(update={"run": p.run.model_copy(update={"name": "without a cache"})})
    raw = subject.of_clip(apart, clip_id)
    assert raw.truth is None and cached.truth is not None
    # Cached windows start every `stride` frames; that of a raw clip ends with the last frame.
    times = windows.cache.shards[windows[0].shard].times
    assert raw.times_us[-1] == times[windows.cache.clips[windows[0].clip_idx].stop - 1]
    at_s = (cached.times_us[-1] - times[windows.cache.clips[windows[0].clip_idx].start]) / 1e6
    same = subject.of_clip(apart, clip_id, at_s=at_s)
    assert (same.times_us == cached.times_us).all() and (same.frames == cached.frames).all()
    assert subject.of_clip(p, clip_id, at_s=at_s).name == cached.name


def test_videos_in_a_folder_are_found_by_camera_name(p, answerer, tmp_path):
    clip_id = samples.windows_of(p, "test")[0].clip_id
    clip = Clip(p.local_dir, Catalog.of(p), clip_id)
    grid = cameras.grid(p.vision.cameras)
    for camera in grid.cameras:
        (tmp_path / f"{camera.name}.mp4").write_bytes(clip.video(camera.name).read())
    asked = subject.of_folder(p, tmp_path, at_s=1.0)
    assert asked.frames.shape == answerer.conversation.frame_shape
    assert predict(asked, answerer).answer.text
    assert subject.of_folder(p, tmp_path).times_us[-1] > asked.times_us[-1]
    (tmp_path / f"{grid.cameras[1].name}.mp4").unlink()
    with pytest.raises(AvomniError, match=f"videos are missing: {grid.cameras[1].name}.mp4"):
        subject.of_folder(p, tmp_path)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"window": 9999}, "no window 9999"),
        ({"clip": "nobody"}, "nobody"),
        ({"window": 1, "clip": "a"}, "name one of"),
        ({"at_s": 2.0}, "--at belongs to"),
    ],
)
def test_invalid_selection_is_reported_in_one_sentence(p, asked, what):
    with pytest.raises(AvomniError, match=what):
        chosen(p, **asked)


def test_time_before_the_first_window_is_refused(p):
    clip_id = samples.windows_of(p, "test")[0].clip_id
    with pytest.raises(AvomniError, match="no window before 0.1 s"):
        chosen(p, clip=clip_id, at_s=0.1)


def test_adapter_of_another_sample_rate_is_refused_before_loading(p):
    other = p.model_copy(update={"processing": p.processing.model_copy(update={"sample_hz": 5.0})})
    with pytest.raises(AvomniError, match="processing.sample_hz: trained with"):
        Answerer(other, adapter.adapter_dir(p))
    with pytest.raises(AvomniError, match="no adapter at owner/name@main"):
        Answerer(p, "owner/name@main")


@pytest.mark.parametrize(
    ("section", "changes", "what"),
    [
        ("processing", {"sample_hz": 5.0}, "processing.sample_hz: trained with"),
        ("processing", {"tile_width": 64}, "tile"),
        ("vision", {"cameras": ["camera_front_wide_120fov"]}, "vision.cameras"),
    ],
)
def test_live_refuses_a_mismatched_adapter_before_opening_cameras(
    p, tmp_path, section, changes, what
):
    values = p.complete()
    values[section] |= changes
    values["live"] |= {"sources": dict.fromkeys(NAMES, "rtsp://127.0.0.1:9/a")}
    values["live"] |= {"clock": "device", "record": str(tmp_path / "record")}
    with (
        pytest.raises(AvomniError, match=what) as caught,
        answering.opened(Params.from_values(values), adapter=str(adapter.adapter_dir(p))),
    ):
        raise AssertionError("opened")
    assert caught.value.fix and not (tmp_path / "record").exists()


def test_command_prints_json_and_writes_an_image(p, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(p.values()))
    picture = tmp_path / "answer.png"
    made = cli.call(["predict", str(path), "--window", "0", "--out", str(picture)])
    json.dumps(made.figures)
    assert {"about", "model", "answer", "truth", "content", "seconds"} <= made.figures.keys()
    assert made.figures["model"] == "adapted"
    with Image.open(picture) as drawn:
        assert drawn.width > 800
        assert np.asarray(drawn.convert("L")).std() > 10, "the image must not be blank"
    base = cli.call(["predict", str(path), "--base"])
    assert base.figures["model"] == "base"


def test_live_frames_and_predictions_equal_those_of_the_cache(p, answerer, tmp_path):
    """A clip's frames are pushed at their timestamps on a virtual clock."""
    import av

    windows = samples.windows_of(p, "test")
    clip_id = windows[0].clip_id
    clip = Clip(p.local_dir, Catalog.of(p), clip_id)
    live = p.live.model_copy(update={"hop": 1})
    run = playback.as_cameras(p.model_copy(update={"live": live}), clip_id, tmp_path)
    clock = [0]
    session = LiveSession(run, lambda frames: answerer.answer(frames).text, now_ns=lambda: clock[0])
    events = []
    for name, path in run.live.sources.items():
        with av.open(path) as container:
            stamps = clip.timestamps(name)
            events += [
                (int(taken) * 1000, name, frame)
                for taken, frame in zip(stamps, container.decode(video=0), strict=True)
            ]
    made = []
    for time_ns, name, frame in sorted(events, key=lambda event: event[:2]):
        clock[0] = time_ns
        session.push(name, time_ns, frame)
        made += session.advance()
    cached = windows.cache.clips[windows[0].clip_idx]
    frames = windows.cache.shards[windows[0].shard].frames
    for ready in made:
        start = cached.start + ready.tick - run.processing.sequence_length + 1
        assert (ready.frames == frames[start : start + len(ready.frames)]).all()
    assert len(made) >= 10
    first = next(ready for ready in made if ready.tick == windows[0].stop - 1 - cached.start)
    expected = answerer.answer(np.array(windows.frames(0))).text
    assert session.answer(first).text == expected
