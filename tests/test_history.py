"""Past motion as text; neither it nor a baseline contains anything of the answer."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from avomni_lib.etl.cache.memmap import EGOMOTION_COLUMNS, TRACK_COLUMNS, Cache
from avomni_lib.etl.cache.windows import Windows
from avomni_lib.etl.clip.trajectory import Trajectory
from avomni_lib.evaluation import baselines
from avomni_lib.training.prompt import history, samples
from avomni_lib.training.targets import TARGETS, motion_models, target
from tests import cached_run
from tests.published_set import Drive, clip_id_of

MOVING = [name for name, each in TARGETS.items() if not each.scenes]


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history")
    return cached_run.make(folder, processing={"horizon_s": 6.4})


def windows_of(cache, split, about):
    return Windows(
        cache, cached_run.LENGTH, cached_run.STRIDE, split=split, horizon_s=about.horizon_s
    )


def test_history_has_a_position_every_200_ms_up_to_t0():
    t_s = np.arange(-16, 0) / 10
    past = Trajectory(t_s, np.stack([10 * t_s, 0 * t_s], axis=1), 0 * t_s, 10.0)
    text = history.text_of(past, target("future_v1"))
    assert "-1.6s (-16.00,0.00) -1.4s (-14.00,0.00)" in text
    assert "-0.2s (-2.00,0.00). Speed there: 10.00m/s." in text
    assert text.count("s (") == 8 and "last frame" in text


def test_history_ends_with_the_ctra_prediction():
    t_s = np.arange(-16, 0) / 10
    braking = Trajectory(t_s, np.stack([10 * t_s - t_s**2, 0 * t_s], axis=1), 0 * t_s, 10.0)
    about = target("future_v1")
    unchanged = about.write(motion_models.predict("ctra", braking, about, 1.5))
    text = history.text_of(braking, about)
    assert text.endswith(f"kept the answer would be: {unchanged}.")
    assert about.parse(unchanged).waypoints_m[-1][0] == pytest.approx(10**2 / 2 / 2, abs=0.05)
    # The answer of a summary is not about the future.
    assert "kept" not in history.text_of(braking, target("summary_v1"))


def test_short_history_still_has_the_speed():
    short = Trajectory(np.array([-0.1]), np.array([[-1.0, 0.0]]), np.zeros(1), 10.0)
    assert "there: none. Speed there: 10.00m/s." in history.text_of(short, target("summary_v1"))


@pytest.mark.parametrize("name", TARGETS)
def test_history_ends_where_the_answer_begins(name, p):
    """The summary is about the window itself: its history ends at the first frame."""
    about = target(name)
    windows = windows_of(Cache.open(p.cache_dir), "test", about)
    index = len(windows) - 1
    past = history.past_of(windows, index, about)
    times_s = windows.times_us(index) / 1e6
    ends = times_s[0] if "summary" in name or name == "full_v1" else times_s[-1]
    by_id = {clip_id_of(n): Drive(n) for n in range(2 * cached_run.CLIPS_PER_CHUNK)}
    drive = by_id[windows[index].clip_id]
    assert past.speed_mps == pytest.approx(float(drive.speed(ends)), rel=1e-3)
    chord = drive.chord(ends + past.t_s[0], ends)
    assert np.linalg.norm(past.xy_m[0]) == pytest.approx(chord, rel=2e-3)


@pytest.mark.parametrize("name", MOVING)
def test_prompts_and_baselines_do_not_depend_on_the_future(name, p, tmp_path):
    """With all later poses overwritten in the cache, the texts stay the same."""
    about = target(name)
    train = windows_of(Cache.open(p.cache_dir), "train", about)
    original = windows_of(Cache.open(p.cache_dir), "test", about)
    shutil.copytree(p.cache_dir, tmp_path / "cache")
    for index in (0, len(original) - 1):
        window = original[index]
        frame = history.FRAME[about.history_ends]
        moment_us = original.times_us(index)[frame]
        overwrite_future(tmp_path / "cache", p.cache_dir, original, window, moment_us)
        changed = windows_of(Cache.open(tmp_path / "cache"), "test", about)
        truths = [repr(windows.truth(index)) for windows in (changed, original)]
        assert truths[0] != truths[1], "else this test says nothing"
        histories = [
            history.text_of(history.past_of(w, index, about), about) for w in (changed, original)
        ]
        assert histories[0] == histories[1]
        rows = [baselines.texts(about, train, w, [index]) for w in (changed, original)]
        assert {*rows[0]} == {"mean", "median", "constant_velocity", "ctra", "ego_motion"}
        assert rows[0] == rows[1]


def overwrite_future(changed, original, windows, window, moment_us):
    """Replace a clip's poses after a time in the cache by those of another drive."""
    name = windows.cache.shards[window.shard].folder.name
    clip = windows.cache.clips[window.clip_idx]
    for array, columns, rows, times in (
        ("egomotion", EGOMOTION_COLUMNS, slice(clip.start, clip.stop), "times"),
        ("track", TRACK_COLUMNS, slice(clip.track_start, clip.track_stop), None),
    ):
        values = np.load(original / name / f"{array}.npy")
        clip_values = values[rows]
        at_us = np.load(original / name / "times.npy")[rows] if times else clip_values[:, 0]
        later = at_us > moment_us
        for column in ("x", "y", "vx", "vy", "distance_m"):
            if column in columns:
                clip_values[later, columns.index(column)] *= -3.0
        qz = clip_values[later, columns.index("qz")].copy()
        clip_values[later, columns.index("qz")] = clip_values[later, columns.index("qw")]
        clip_values[later, columns.index("qw")] = qz
        np.save(changed / name / f"{array}.npy", values)


def test_prompt_with_history_tokenises_like_the_whole_text(p):
    """The constant part is tokenised once, so the joints must be token boundaries."""
    from transformers import AutoTokenizer

    from avomni_lib.training.backbones import backbone
    from avomni_world.tiny_base import make

    words, kind = AutoTokenizer.from_pretrained(make.folder()), backbone("qwen3_vl")
    windows = windows_of(Cache.open(p.cache_dir), "test", target("summary_v1"))
    without_history = samples.conversation_of(p, words, kind)
    assert {samples.history_of(i, windows, without_history) for i in range(len(windows))} == {""}
    p_with_history = p.model_copy(
        update={"prompt": p.prompt.model_copy(update={"ego_history": True})}
    )
    conversation = samples.conversation_of(p_with_history, words, kind)
    past = samples.history_of(3, windows, conversation)
    assert "Past places" in past
    sample = conversation.prompt(past)
    assert len(sample) > len(conversation.prompt())
    expected_text = conversation.text.replace(
        conversation.target.question, conversation.target.question + past
    )
    assert sample.input_ids.tolist() == words.encode(expected_text, add_special_tokens=False)
    learned = samples.sample_of(3, windows, conversation)
    assert learned.input_ids.tolist()[: len(sample)] == sample.input_ids.tolist()
    assert (learned.labels[: len(sample)] == -100).all()
