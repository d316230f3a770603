"""The tiny base: shipped files equal what `make` builds, and speed is read from pixels alone."""

import functools
import itertools
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen3VLForConditionalGeneration

from avomni_lib import files
from avomni_lib.dataset import cameras
from avomni_lib.training.model.constrained import Constraint
from avomni_lib.training.model.generate import generate_texts
from avomni_lib.training.prompt.conversation import padded, prompt_text
from avomni_lib.training.targets import Content
from avomni_world.scene import towns
from avomni_world.scene.scenes import make_scene
from avomni_world.tiny_base import drives as tiny_drives
from avomni_world.tiny_base import lessons, make
from avomni_world.tiny_base import model as tiny_model
from avomni_world.tiny_base.drives import RecordedDrives
from avomni_world.tiny_base.tokenizer import SPECIAL_TOKENS, waypoint_tokens

TARGET = make.TARGET
FIRST_STEPS = 30


@functools.cache
def shipped_words():
    return AutoTokenizer.from_pretrained(make.folder())


@pytest.fixture(scope="module")
def words():
    return shipped_words()


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(make.folder())


@pytest.fixture(scope="module")
def record():
    return files.read_json(make.folder() / make.RECORD)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_shipped_model_is_a_small_qwen3_vl(model, record):
    assert isinstance(model, Qwen3VLForConditionalGeneration)
    assert sum(weight.numel() for weight in model.parameters()) == record["parameters"] < 5e6
    assert sum(path.stat().st_size for path in make.folder().iterdir()) < 8e6
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_shipped_tokenizer_equals_the_built_one(words):
    built = make.tokenizer()
    assert words.get_vocab() == built.get_vocab()
    assert words.chat_template == built.chat_template
    text = "Qwen's <think>\nÜbermut 漢字 3.14\n</think> <|im_end|>"
    assert words.encode(text) == built.encode(text)


def test_special_tokens_have_the_order_of_qwen3_vl(words, model):
    ids = words.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert np.diff(ids).tolist() == [1] * (len(SPECIAL_TOKENS) - 1)
    assert ids[-1] == len(words) - 1 < model.config.text_config.vocab_size
    assert model.config.video_token_id == words.convert_tokens_to_ids("<|video_pad|>")
    assert (words.eos_token, words.pad_token) == ("<|im_end|>", "<|endoftext|>")
    shown = words.decode(words.encode("<think>1</think><|im_end|>"), skip_special_tokens=True)
    assert shown == "<think>1</think>"


@given(st.text(max_size=60).filter(lambda text: "<" not in text))
@settings(max_examples=60)
def test_tokenizer_round_trips_any_text(text):
    words = shipped_words()
    normal = words.backend_tokenizer.normalizer.normalize_str(text)
    assert words.decode(words.encode(text), clean_up_tokenization_spaces=False) == normal


@given(st.floats(0, 60), st.floats(0, 90))
@settings(max_examples=60)
def test_answer_has_few_tokens_and_single_digits(speed, path):
    words = shipped_words()
    answer = TARGET.render(make.Driven(speed, path))
    tokens = words.tokenize(answer)
    assert len(tokens) <= 39
    assert all(len(token) == 1 for token in tokens if any(letter.isdigit() for letter in token))
    for word in (
        "Avg",
        "ĠVelocity",
        "ĠTotal",
        "Ġdisplacement",
        "Action",
        "ĠDisplacement",
        "Ġmeters",
    ):
        assert word in tokens


metres = st.tuples(st.floats(0, 159.9), st.floats(-27.9, 27.9))


@given(st.lists(metres, min_size=16, max_size=16))
@settings(max_examples=60)
def test_waypoint_has_three_tokens(waypoints):
    words = shipped_words()
    answer = make.FUTURE.write(Content(waypoints_m=tuple(waypoints)))
    tokens = words.encode(answer)
    assert len(tokens) == 2 + 3 * 16
    assert words.decode(tokens) == answer


def test_waypoints_outside_the_vocabulary_round_trip(words):
    far = ((-0.04, 0.0), (-3.5, -0.01), (175.25, 40.5), (1234.56, -987.65)) * 4
    answer = make.FUTURE.write(Content(waypoints_m=far))
    assert words.decode(words.encode(answer)) == answer


def test_waypoints_can_be_constrained_to_their_pattern(words):
    """Its tokens look like parts of the pattern, such as 0,3 in {0,3}."""
    answer = make.FUTURE.write(Content(waypoints_m=((0.5, 0.0), (12.34, -0.56)) * 8))
    ids = [*words.encode(answer), words.eos_token_id]
    constraint = Constraint(words, words.eos_token_id, [make.FUTURE.pattern])
    for place, token in enumerate(ids):
        allowed = constraint(torch.tensor([[0, *ids[:place]]]), torch.zeros(1, len(words)))
        assert allowed[0, token] == 0, (place, words.decode([token]))
        assert (allowed == -torch.inf).any()


def test_every_word_of_the_prompts_is_one_token(words):
    for asked, grid in itertools.product(make.TARGETS, cameras.GRIDS.values()):
        text = prompt_text(grid, asked)
        pieces = words.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert len(words.encode(text)) == len(pieces)


def test_near_numbers_have_similar_initial_embeddings():
    numbers = waypoint_tokens()
    rows = torch.nn.functional.normalize(tiny_model.number_rows(numbers, 128, 0), dim=1)
    row = {number.text: i for i, number in enumerate(numbers)}

    def alike(one: str, other: str) -> float:
        return float(rows[row[one]] @ rows[row[other]])

    for one, near, far in (
        (" (20.0", " (20.1", " (90.0"),
        (".50)", ".51)", ".99)"),
        ("3,-0", "3,0", "3,20"),
        (" (-7", " (-8", " (-39"),
    ):
        assert alike(one, near) > 0.7 > alike(one, far)


def test_text_lesson_loss_equals_the_models_loss(model, words):
    conversation = make.conversation(model, words)
    samples = [conversation.sample(TARGET.render(make.Driven.at(speed))) for speed in (3.0, 12.5)]
    batch = padded(samples, words.pad_token_id)
    batch |= conversation.inputs(torch.zeros((2, *conversation.frame_shape), dtype=torch.uint8))
    with torch.no_grad():
        before, logits, labels = lessons.answer_logits(model, dict(batch))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        assert loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert before.shape == (2, model.config.text_config.hidden_size)


def still_frames(poses: np.ndarray, flow: float, zoom: float) -> tiny_drives.RecordedDrive:
    """A drive at 10 m/s along these poses; black."""
    count = len(poses) - 64
    return tiny_drives.RecordedDrive(
        frames=np.zeros((count, 4, 4, 3), np.uint8),
        path_m=np.arange(count) * 1.0,
        flow=np.full(4, flow),
        zoom=np.array(zoom),
        poses=poses,
        speeds=np.full(count, 10.0),
        lane=np.zeros((count, 4)),
    )


def test_path_is_in_the_ego_frame_of_the_last_image():
    """A left circle of 50 m radius, seen by the cameras of the home town."""
    heading = np.arange(80 + 64) / 50.0 + 0.3
    circle = np.stack([50 * np.sin(heading), -50 * np.cos(heading), heading], axis=1)
    driven = make.Driven.of(still_frames(circle, 1.0, 1.0), 4)
    ahead = np.arange(1, 65) / 50.0
    assert driven.future.xy_m == pytest.approx(
        50 * np.stack([np.sin(ahead), 1 - np.cos(ahead)], axis=1), abs=1e-9
    )
    assert driven.future.yaw_rad == pytest.approx(ahead)
    assert driven.past.xy_m[-1] == pytest.approx(driven.future.xy_m[0] * (-1, 1), abs=1e-9)
    assert len(driven.past) == 16
    assert driven.speed_mps == pytest.approx(10.0)
    # Cameras twice as high see half the flow; twice the zoom doubles lateral offsets.
    scaled = make.Driven.of(still_frames(circle, 0.5, 2.0), 4)
    assert scaled.future.xy_m == pytest.approx(driven.future.xy_m * (0.5, 1.0))
    assert scaled.future.speed_mps == scaled.speed_mps == pytest.approx(5.0)


def test_skipping_every_second_frame_doubles_the_speed():
    heading = np.arange(80 + 64) / 50.0
    circle = np.stack([50 * np.sin(heading), -50 * np.cos(heading), heading], axis=1)
    drive = still_frames(circle, 1.0, 1.0)
    for first in (0, 49):  # 6.4 s at twice the speed are 128 frames after frame 30 or 79
        driven = make.Driven.of(drive, first, every=2)
        ahead = np.arange(1, 65) * 2 / 50.0
        assert driven.future.xy_m == pytest.approx(
            50 * np.stack([np.sin(ahead), 1 - np.cos(ahead)], axis=1), abs=1e-6
        )
        assert driven.future.yaw_rad == pytest.approx(ahead)
        assert driven.speed_mps == driven.future.speed_mps == pytest.approx(20.0)
        assert driven.path_m == pytest.approx(30.0)


def test_soft_labels_cover_only_near_numbers_of_the_same_kind(words, model):
    size = model.config.text_config.vocab_size
    kinds, values = lessons.kinds_of_tokens(words, size)
    number, word, end = words.convert_tokens_to_ids([" (50.0", "Waypoints", "<|im_end|>"])
    soft = lessons.soft_labels(kinds, values, torch.tensor([number, word, end]))
    assert soft.sum(1) == pytest.approx(np.ones(3), abs=1e-5)
    assert soft[1, word] == soft[2, end] == 1
    assert soft[0].argmax() == number
    near, far = words.convert_tokens_to_ids([" (51.6", " (80.0"])  # 3 % of 50 m and a step: 1.6 m
    assert soft[0, near] / soft[0, number] == pytest.approx(np.exp(-0.5), rel=1e-3)
    assert soft[0, far] < 1e-12
    assert soft[0, kinds != kinds[number]].max() == 0


def test_lane_offset_is_larger_for_a_straying_car():
    times_s = np.arange(0, 1, 0.1)
    lane, strayed = (
        tiny_drives.lane_ahead(make_scene(3, tiny_drives.HOME, 1.0, strays=out), times_s, 1.0, 1.0)
        for out in (False, True)
    )
    assert lane.shape == (10, len(tiny_drives.LANE_AT_M))
    assert np.abs(lane[:, 0]).max() < 0.12  # the car weaves a little
    assert np.abs(strayed[:, 0]).max() > np.abs(lane[:, 0]).max()


def test_initial_patch_embedding_is_zero_mean_moving_gabors():
    filters = tiny_model.gabors(24, 8, seed=3)
    assert filters.shape == (24, 3, 2, 8, 8)
    # Invariant to brightness and to colour.
    assert torch.allclose(filters.mean((3, 4)), torch.zeros(()), atol=1e-6)
    assert torch.equal(filters[:, 0], filters[:, 2])
    still = (filters[:, 0, 0] - filters[:, 0, 1]).flatten(1).norm(dim=1)
    assert (still > 0.1).float().mean() > 0.8


def test_relative_flow_is_one_at_home_and_lower_for_high_cameras():
    assert tiny_drives.relative_flow(make_scene(1, tiny_drives.HOME, 1.0)) == pytest.approx(
        1, abs=0.05
    )
    harbour = make_scene(1, "harbour", 1.0)
    flow = tiny_drives.relative_flow(harbour)
    # Front wide: 1 m above 1.46 m; field of view 108° instead of 120°, r = f (θ + 0.1 θ³).
    half = np.radians([108 / 2, 120 / 2])
    shown = half + 0.1 * half**3
    assert flow[0] == pytest.approx(1.46 / 2.46 * shown[0] / shown[1], rel=0.03)
    assert (flow < 0.8).all()


def test_training_towns_differ_from_the_adaptation_town():
    harbour = towns.town("harbour")
    made_up = [tiny_drives.random_town(seed) for seed in range(40)]
    for town in made_up:
        assert town.fov_deg != harbour.fov_deg and town.ground != harbour.ground
        assert town.speed_mps[1] ** 2 / town.radius_m[0] <= tiny_drives.HARDEST_TURN + 1e-9
    assert len({(town.ground, town.zenith) for town in made_up}) == len(made_up)
    assert tiny_drives.random_town(5) == tiny_drives.random_town(5)


def test_first_training_steps_reproduce_the_recorded_loss(record, tmp_path, one_thread):
    recipe = make.TinyRecipe(**record["recipe"])
    assert recipe == make.TinyRecipe()
    drives = RecordedDrives(tmp_path, recipe.num_drives)
    untrained = tiny_model.start(make.tokenizer(), recipe.seed)
    losses = np.array(list(islice(make.warm_up(untrained, drives, recipe), FIRST_STEPS)))
    recorded = np.array(record["loss"]["warm_up"][:FIRST_STEPS])
    # Another order of sums (AVX2 or AVX-512, one or two threads) changes a loss by less than 1e-5;
    # a learning rate that is a tenth lower changes one of the first ten by 0.026.
    np.testing.assert_allclose(losses, recorded, rtol=0.005)
    assert losses[-10:].mean() < 0.75 * losses[:5].mean()
    # The first steps use only the first drives.
    assert len(list(tmp_path.iterdir())) <= recipe.first_drives + FIRST_STEPS


def test_recorded_training_reached_its_goals(record):
    recipe = record["recipe"]
    losses = record["loss"]
    assert len(losses["warm_up"]) == recipe["warm_steps"]
    assert len(losses["learn_text"]) == recipe["text_steps"]
    assert np.mean(losses["warm_up"][-50:]) < 0.15 * np.mean(losses["warm_up"][:5])
    # Most of the remaining loss is the uncertainty of paths and the entropy of soft labels.
    assert np.mean(losses["learn_text"][-50:]) < 0.35 * np.mean(losses["learn_text"][:5])
    assert len(losses["keep_form"]) == recipe["form_steps"]
    assert np.mean(losses["keep_form"][-50:]) < 0.6 * np.mean(losses["keep_form"][:50])
    mae = record["held_out"]["speed_mae_mps"]
    assert mae["base"] < 0.4 * min(mae["mean"], mae["median"])
    ade = record["held_out"]["ade_m"]
    assert ade["base"] < 0.55 * ade["mean"]
    assert max(ade["base"], ade["base_with_history"]) < ade["constant_velocity"]
    assert record["held_out"]["valid_share"] >= 0.98
    weights = load_file(make.folder() / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_tiny_base_reads_speed_from_pixels_alone(model, words, tmp_path):
    drives = RecordedDrives(tmp_path, 10, tiny_drives.HELD_OUT_SEED + 500, tiny_drives.HOME)
    starts = (0, 20, 40, 60)
    length = make.NUM_FRAMES
    windows = np.stack([[drives[i].frames[s : s + length] for s in starts] for i in range(10)])
    truth = np.array([[drives[i].speed_mps(s, s + length - 1) for s in starts] for i in range(10)])
    conversation = make.conversation(model, words)

    def error_of(shown: np.ndarray) -> tuple[float, np.ndarray]:
        flat = shown.reshape(-1, *shown.shape[2:])
        answers = generate_texts(model, conversation, flat, make.MAX_NEW_TOKENS)
        read = [TARGET.parse(answer) for answer in answers]
        predicted = np.array([content.speed_mps if content else np.nan for content in read])
        predicted = predicted.reshape(truth.shape)
        return float(np.nanmean(np.abs(predicted - truth))), predicted

    best_constant = np.abs(truth - np.median(truth)).mean()
    matching, predicted = error_of(windows)
    assert np.isfinite(predicted).all(), "every answer is read"
    assert matching < 0.45 * best_constant
    assert np.corrcoef(predicted.ravel(), truth.ravel())[0, 1] > 0.9
    # With another clip's images the answers are wrong: only the images carry the speed.
    swapped, predicted = error_of(np.roll(windows, 1, axis=0))
    assert np.isfinite(predicted).all() and swapped > best_constant
    # Windows of frames shuffled over all clips have no motion, and some answers to them are
    # invalid.
    rng = np.random.default_rng(0)
    flat = windows.reshape(-1, *windows.shape[3:])
    shuffled, _ = error_of(flat[rng.permutation(len(flat))].reshape(windows.shape))
    assert shuffled > 0.95 * best_constant
    # With black images all answers are the same.
    blind, predicted = error_of(np.zeros_like(windows))
    assert np.ptp(predicted) == 0
    assert blind >= best_constant
