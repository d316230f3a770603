"""Older frames before a window: their rows, times, sizes and cost in tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3VLProcessor

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.etl.cache.memmap import Cache
from avomni_lib.etl.cache.windows import Windows, num_windows
from avomni_lib.etl.run import build
from avomni_lib.notebook.tiles import older
from avomni_lib.notebook.tiles.choice import TilingChoice, cost
from avomni_lib.notebook.tiles.preview import Place, Preview
from avomni_lib.params import Params
from avomni_lib.training.backbones import Video, backbone
from avomni_lib.training.export.card import card
from avomni_lib.training.forecast import estimate
from avomni_lib.training.model import adapter, model_input
from avomni_lib.training.prompt import history, past, samples, tokens
from avomni_lib.training.prompt.conversation import Conversation, frame_shape, padded, videos_of
from avomni_lib.training.prompt.views import Black, OneCamera, Shuffled
from avomni_lib.training.targets import target
from tests import cached_run, tiny_qwen3_vl, training_set
from tests.answering import answers
from tests.test_memmap import arrays, seed_of, write_cache
from tests.test_qwen3_vl import TEXT, processed
from tests.test_windows import cache_of

KIND = backbone("qwen3_vl")


def params_of(past=None, **processing) -> Params:
    return Params.from_values({"processing": {"past": past or {}, **processing}})


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def cache(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("past") / "cache"
    return Cache.open(write_cache(folder, storage=request.param))


def test_past_frames_come_in_pairs_for_qwen():
    p = params_of({"seconds": 4, "hz": 1}, sample_hz=10)
    pairs = (-40, -39, -30, -29, -20, -19, -10, -9)
    assert past.offsets(p, KIND) == pairs
    assert p.processing.reach == 40 and p.processing.own_from_s == 4.0
    assert past.offsets(params_of(), KIND) == () and params_of().processing.reach == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds": 2, "hz": 0.4}, "less than one moment"),
        ({"seconds": 2, "scale": 0.3}, "a scale of 1, 0.5 or 0.25"),
        ({"seconds": 0}, "greater than 0"),
        ({"second": 1}, "did you mean processing.past.seconds"),
    ],
    ids=str,
)
def test_invalid_past_is_refused(values, message):
    with pytest.raises(AvomniError, match=message):
        params_of(values, sample_hz=10)


def test_overlapping_past_moments_are_refused():
    for hz in (10, 11):
        with pytest.raises(AvomniError, match="moments of 2 frames each would overlap"):
            past.offsets(params_of({"seconds": 1, "hz": hz}, sample_hz=10), KIND)
    assert len(past.offsets(params_of({"seconds": 1, "hz": 5}, sample_hz=10), KIND)) == 10


@given(
    lengths=st.lists(st.integers(1, 50), max_size=6),
    length=st.integers(2, 12),
    stride=st.integers(1, 13),
    reach=st.integers(0, 30),
)
def test_windows_with_a_past_are_the_plain_ones_that_fit(lengths, length, stride, reach):
    cache = cache_of(lengths)
    plain = Windows(cache, length, stride)
    with_past = Windows(cache, length, stride, past=(-reach,) if reach else ())
    fitting = [w for w in plain if w.start - reach >= cache.clips[w.clip_idx].start]
    assert list(with_past) == fitting, "exactly the plain windows with room for the past"
    counts = [num_windows(len(clip), length, stride, reach) for clip in cache.clips]
    assert sum(counts) == len(with_past)


def test_window_frames_are_the_rows_of_its_offsets(cache):
    windows = Windows(cache, 2, 1, past=(-3, -2))
    assert len(windows) == 4 and windows.frame_shape == (4, *cache.shards[0].frame_shape)
    whole = Windows(cache, 5, 1)
    by_place = {(w.clip_id, w.start): i for i, w in enumerate(whole)}
    for index, window in enumerate(windows):
        assert window.number >= 3 and window.stop - window.start == 2
        expected = whole.frames(by_place[window.clip_id, window.start - 3])
        frames = windows.frames(index)
        assert np.array_equal(frames, expected[[0, 1, 3, 4]])
        with pytest.raises(ValueError, match="read-only"):
            frames[:] = 0
        # Times and egomotion cover the window without the past.
        clip, rows = arrays(seed_of(window.clip_id)), slice(window.number, window.number + 2)
        assert np.array_equal(windows.times_us(index), clip["times"][rows])
        assert np.array_equal(windows.egomotion(index), clip["egomotion"][rows])


def test_past_does_not_change_the_ground_truth(cache):
    plain, with_past = Windows(cache, 2, 1), Windows(cache, 2, 1, past=(-2,))
    places = {(w.clip_id, w.number): i for i, w in enumerate(plain)}
    for index, window in enumerate(with_past):
        assert with_past.truth(index) == plain.truth(places[window.clip_id, window.number])


def test_views_also_change_the_older_frames(cache):
    windows = Windows(cache, 2, 1, past=(-3, -2))
    order = Shuffled(windows, 0).order(0)
    assert sorted(order) == [0, 1, 2, 3]
    assert np.array_equal(Shuffled(windows, 0).frames(0), windows.frames(0)[order])
    one = OneCamera(windows, cache.cameras[0]).frames(0)
    assert one.shape == windows.frame_shape and (one == 0).any() and one[0].any()


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("rates", [(10, 1, 4), (10, 4, 2.5), (2, 0.5, 6), (10, 3, 3)])
def test_timestamps_match_the_transformers_processor(scale, rates):
    sample_hz, hz, seconds = rates
    p = params_of({"seconds": seconds, "hz": hz, "scale": scale}, sample_hz=sample_hz)
    older = past.offsets(p, KIND)
    indices = [row + p.processing.reach for row in (*older, *range(16))]
    videos = past.videos(p, KIND, Video((), 64, 128))
    parts = [indices] if scale == 1 else [indices[: len(older)], indices[len(older) :]]
    assert [video.num_frames for video in videos] == [len(part) for part in parts]
    for video, part in zip(videos, parts, strict=True):
        expected = Qwen3VLProcessor._calculate_timestamps(None, list(part), sample_hz, 2)
        assert KIND.timestamps_s(video.times_s) == pytest.approx(expected, abs=1e-12)
        chat = KIND.chat("?", [video])
        timestamps = re.findall(r"<[0-9.]+ seconds>", chat)
        assert timestamps == [f"<{second:.1f} seconds>" for second in expected]


@pytest.mark.parametrize("scale", [1, 0.5])
def test_pixels_and_tokens_match_the_transformers_processor(scale):
    p = params_of({"seconds": 2, "hz": 2, "scale": scale}, sequence_length=3)
    videos = past.videos(p, KIND, Video((), 64, 128))
    indices = [row + p.processing.reach for row in (*past.offsets(p, KIND), *range(3))]
    frames = torch.randint(0, 256, (1, len(indices), 64, 128, 3), dtype=torch.uint8)
    shown = past.shown(frames, videos)
    parts = [indices] if scale == 1 else [indices[:8], indices[8:]]

    expected = processed([(part[0], x) for part, x in zip(shown, parts, strict=True)], 10.0)
    ours = KIND.inputs(shown)
    assert torch.equal(ours["pixel_values_videos"], expected["pixel_values_videos"])
    assert torch.equal(ours["video_grid_thw"], expected["video_grid_thw"])
    words = training_set.make_words()
    ids = words.encode(KIND.chat(TEXT, videos), add_special_tokens=False)
    assert ids == expected["input_ids"][0].tolist()

    model = tiny_qwen3_vl.model(words)
    kind = backbone("qwen3_vl", model.config)
    is_vision = np.asarray(ids) == words.convert_tokens_to_ids(kind.vision_token)
    theirs, _ = model.model.get_rope_index(
        torch.tensor([ids]),
        mm_token_type_ids=torch.tensor(2 * is_vision[None].astype(int)),
        video_grid_thw=ours["video_grid_thw"],
    )
    assert np.array_equal(theirs[:, 0].numpy(), KIND.positions(is_vision, videos))


def test_prompt_states_the_start_of_the_window():
    p = params_of({"seconds": 4}, sample_hz=10)
    seen = model_input.what_the_model_sees(p, KIND, "base", "none", {})
    assert "Frames before 4.0 seconds are older" in seen["question"]
    before = model_input._PAST
    assert "up to the video's frame at 4.0 seconds, metres" in history.text_of(
        before, target("summary_v1"), 4.0
    )
    assert "up to the video's last frame, metres" in history.text_of(
        before, target("future_v1"), 4.0
    )


def test_adapter_trained_with_another_past_is_refused():
    def seen(**values):
        return model_input.what_the_model_sees(params_of(values), KIND, "base", "none", {})

    assert not {"offsets", "past_scale"} & set(seen())
    assert seen(seconds=2, hz=2)["offsets"] == [-20, -19, -15, -14, -10, -9, -5, -4]
    model_input.refuse_other(seen(seconds=2, hz=2), seen(seconds=2, hz=2), "here")
    for then, now in (({}, {"seconds": 2}), ({"seconds": 2}, {}), ({"seconds": 3}, {"seconds": 2})):
        with pytest.raises(AvomniError, match="offsets: trained with"):
            model_input.refuse_other(seen(**then), seen(**now), "here")
    with pytest.raises(AvomniError, match="past_scale: trained with 1.0, now 0.5"):
        model_input.refuse_other(seen(seconds=2), seen(seconds=2, scale=0.5), "here")


def test_small_older_frames_cost_fewer_vision_tokens():
    processing = {"tile_width": 448, "tile_height": 256, "sample_hz": 2}
    plain = params_of(sequence_length=16, **processing)
    older = {"seconds": 24, "hz": 1, "scale": 0.5}
    small = params_of(older, sequence_length=4, **processing)
    counted = [KIND.num_vision_tokens(videos_of(p, KIND)) for p in (plain, small)]
    assert counted == [3584, 3584]
    assert [str(video) for video in videos_of(small, KIND)] == [
        "48 frames of 448×256 px",
        "4 frames of 896×512 px",
    ]
    assert frame_shape(videos_of(small, KIND)) == (52, 512, 896, 3)


def test_scale_with_indivisible_frame_size_is_refused():
    p = params_of({"seconds": 2, "scale": 0.5}, tile_width=40, tile_height=32)
    with pytest.raises(AvomniError, match="a grid of 40×32 px does not divide"):
        tokens.tokens_per_sample(p)
    with pytest.raises(AvomniError, match="a grid of 33×64 px does not divide by 2"):
        past.videos(p, KIND, Video((), 64, 33))


def test_internvl_takes_single_past_frames_of_whole_squares():
    kind, processing = backbone("internvl"), {"tile_width": 448, "tile_height": 448}
    p = params_of({"seconds": 3, "hz": 1}, **processing)
    assert past.offsets(p, kind) == (-30, -20, -10)
    assert [video.num_frames for video in videos_of(p, kind)] == [19]
    small = params_of({"seconds": 3, "hz": 1, "scale": 0.5}, **processing)
    halves = videos_of(small, kind)
    assert kind.num_vision_tokens(halves) == 256 * (3 * 1 + 16 * 4)
    quarter = params_of({"seconds": 3, "hz": 1, "scale": 0.25}, **processing)
    with pytest.raises(AvomniError, match="a grid of 224×224 px does not divide into squares"):
        for video in videos_of(quarter, kind):
            kind.check(video)


def test_small_frames_are_block_means_rounded_half_up():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 12, 3), np.uint8))
    for shrink in (2, 4):
        squares = frames.double().reshape(2, 3, 8 // shrink, shrink, 12 // shrink, shrink, 3)
        expected = torch.floor(squares.mean(dim=(3, 5)) + 0.5).to(torch.uint8)
        assert torch.equal(past.smaller(frames, shrink), expected)
    white = torch.full((1, 1, 4, 4, 3), 255, dtype=torch.uint8)
    assert (past.smaller(white, 4) == 255).all()
    videos = (Video((0.0,), 4, 6), Video((1.0, 2.0), 8, 12))
    small, large = past.shown(frames, videos)
    assert torch.equal(small, past.smaller(frames[:, :1], 2)) and torch.equal(large, frames[:, 1:])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A built run whose windows have one second of past at half size."""
    older = {"seconds": 1, "hz": 2, "scale": 0.5}
    processing = {"sequence_length": 4, "tile_width": 64, "tile_height": 32, "past": older}
    return cached_run.make(tmp_path_factory.mktemp("run"), processing=processing)


def test_window_counts_of_all_stages_include_the_past(run):
    built = Cache.open(run.cache_dir)
    windows = samples.windows_of(run, "train")
    assert windows.offsets == (-10, -9, -5, -4, 0, 1, 2, 3)
    expected = sum(
        num_windows(len(clip), 4, cached_run.STRIDE, 10)
        for clip in built.clips
        if clip.split == "train"
    )
    assert len(windows) == expected > 0
    planned = build.plan(run).figures["num_windows"]
    made = sum(num_windows(len(clip), 4, cached_run.STRIDE, 10) for clip in built.clips)
    assert abs(planned - made) <= len(built.clips)
    assert build.build(run).figures["num_windows"] == made
    counted = tokens.tokens_per_sample(run)
    assert counted.vision == 2 * (64 // 32 * 32 // 32) + 2 * (128 // 32 * 64 // 32)


def test_model_trains_and_predicts_on_windows_with_a_past(run):
    words = training_set.make_words()
    model = training_set.make_model()
    kind = backbone("qwen3_vl", model.config)
    windows = samples.windows_of(run, "train")
    conversation = samples.conversation_of(run, words, kind)
    assert conversation.frame_shape == windows.frame_shape
    frames = torch.from_numpy(np.stack([windows.frames(i) for i in range(2)]))
    batch = samples.batch_of(range(2), windows, conversation)
    model(**batch, **conversation.inputs(frames), use_cache=False).loss.backward()
    texts = [
        answers(model, conversation, seen, range(2), batch_size=size, max_new_tokens=6)
        for seen in (windows, Shuffled(windows, 0), Black(windows))
        for size in (1, 2)
    ]
    assert texts[0] == texts[1] and texts[2] == texts[3] and len(texts[5]) == 2


def test_record_and_card_state_the_past(run):
    windows = samples.windows_of(run, "train")
    conversation = samples.conversation_of(run, training_set.make_words(), KIND)
    record = adapter.record_of(run, windows, conversation, "base", {})
    assert record["offsets"] == record["sees"]["offsets"] == [-10, -9, -5, -4]
    assert record["past_scale"] == 0.5 and record["sequence_length"] == 4
    assert record["grid_size"] == [64, 128]
    text = card(record)
    assert "4 at 10 Hz, after 4 older ones from 1 s before, at 0.5 of their size" in text
    assert "begins with 4 older frames that are further apart" in text


@pytest.mark.parametrize("length", [32, 64, 128])
def test_longer_windows_are_planned_if_clips_are_long_enough(length):
    changes = {"processing.sequence_length": length, "vision.window_size": length}
    p = Params.from_files(["params/mi300x.yaml"], [f"{k}={v}" for k, v in changes.items()])
    fast = p.model_copy(update={"processing": p.processing.model_copy(update={"sample_hz": 10.0})})
    planned = estimate.plan_run(fast).figures
    assert planned["num_windows"] == 100 * num_windows(200, length, 8) > 0
    assert planned["vision_tokens"] == 224 * length
    if length > 40:
        with pytest.raises(AvomniError, match="sequence_length to 40 at most"):
            estimate.plan_run(p)


def test_model_trains_on_a_long_window():
    words, model = training_set.make_words(), training_set.make_model()
    kind = backbone("qwen3_vl", model.config)
    p = params_of(sequence_length=128, tile_width=16, tile_height=16)
    videos = videos_of(p, kind)
    conversation = Conversation(
        words,
        kind,
        grid=cameras.grid("4-cam"),
        target=target("summary_v1"),
        videos=videos,
        max_seq_length=2048,
    )
    frames = torch.randint(0, 256, (1, 128, 32, 32, 3), dtype=torch.uint8)
    batch = padded([conversation.sample("x")], words.pad_token_id)
    loss = model(**batch, **conversation.inputs(frames), use_cache=False).loss
    assert conversation.num_vision_tokens == 64 and torch.isfinite(loss)


def test_past_longer_than_the_clips_is_refused_with_the_longest_length():
    # At 10 Hz a clip has room for about eight seconds; windows start every 8 frames.
    with pytest.raises(AvomniError, match="and a window needs 16 after 90 of the past") as caught:
        estimate.plan_run(params_of({"seconds": 9}))
    assert "lower processing.past.seconds to 6.4 at most" in str(caught.value)
    assert estimate.plan_run(params_of({"seconds": 6.4})).figures["num_windows"] == 100
    with pytest.raises(AvomniError, match="sequence_length to 40 at most, or lower processing.pas"):
        estimate.plan_run(params_of({"seconds": 4}, sequence_length=41))
    longest = estimate.plan_run(params_of({"seconds": 4}, sequence_length=40))
    assert longest.figures["num_windows"] == 100


def test_plan_includes_the_cost_of_the_past():
    plain, older = estimate.plan_run(params_of()), estimate.plan_run(params_of({"seconds": 4}))
    assert older.figures["vision_tokens"] == plain.figures["vision_tokens"] * 24 / 16
    assert older.figures["memory_gb"] > plain.figures["memory_gb"]
    assert older.figures["frames_per_window"] == 24
    rows = {name: (value, note) for name, value, note in older.rows}
    assert rows["older frames"] == ("8 a window", "over 4 s before, 1 Hz")
    assert "older frames" not in {name for name, _, _ in plain.rows}


def test_preview_shows_windows_with_their_past(run):
    preview, choice = Preview(run), TilingChoice.of(run)
    clip_id = next(iter(preview.listed))
    windows = preview.windows(clip_id, choice)
    assert windows[0].number == 5 and preview.count(clip_id, choice) == len(windows)
    place = Place(clip_id, 0, 2)
    all_windows = samples.windows_of(run, preview.listed[clip_id].split)
    index = next(i for i, w in enumerate(all_windows) if (w.clip_id, w.number) == (clip_id, 5))
    assert np.array_equal(preview.grid_frame(place, choice), all_windows.frames(index)[4 + 2])
    expected = target(run.training.target).render(all_windows.truth(index))
    assert preview.answer(place, choice) == expected
    costs = cost(run, choice, preview.footage)
    assert costs.figures["sample_mb"] == pytest.approx(8 * 64 * 128 * 3 / 1e6)
    assert "older frames" in {name for name, _, _ in costs.rows}


def test_notebook_compares_settings_of_the_past(run):
    runs = [older.with_past(run, None), run, older.with_past(run, 1, 4), older.with_past(run, 9)]
    table = older.costs([*runs, older.with_past(run, 1, 10)])
    assert list(table["past"])[:2] == ["none", "1 s at 2 Hz × 0.5"]
    assert table["frames"][1] == "4 frames of 64×32 px + 4 frames of 128×64 px"
    assert list(table["vision tokens"])[:3] == ["16", "20", "48"]
    assert table["windows"][3] == "0" and "would overlap" in table["frames"][4]
    counts = [int(count) for count in table["windows"][:3]]
    assert counts[0] > counts[1] >= counts[2] > 0
    captions = [axes.get_xlabel() or axes.get_title() for axes in older.picture(run).get_axes()]
    assert "+0.0 s" in captions
    for nothing in (older.with_past(run, 9), older.with_past(run, 1, 10)):
        assert older.picture(nothing).get_axes() == []
