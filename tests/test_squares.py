"""Families whose vision tower takes squares, compared with transformers' processors.

The video processors need torchvision, which is not installed; normalisation is compared with the
image processors that they build on, and with the formula.
"""

import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, InternVLConfig, LlavaOnevisionConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from avomni_lib.dataset import cameras
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.backbones import Video, backbone
from avomni_lib.training.backbones.shared import squares
from avomni_lib.training.forecast import estimate
from avomni_lib.training.prompt.conversation import cells_of
from tests.families import FAMILIES

NAMES = ("internvl", "llava_onevision")
SIDES = {"internvl": 448, "llava_onevision": 384}
FILES = {"internvl": "params/internvl.yaml", "llava_onevision": "params/llava.yaml"}
TEXT = "How fast does the car drive?"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def kind(name):
    return backbone(name)


@pytest.fixture
def side(name):
    return SIDES[name]


def video(num_frames, height, width, grid=None, hz=2.0):
    cells = cells_of(cameras.grid(grid)) if grid else ()
    return Video(tuple(number / hz for number in range(num_frames)), height, width, cells)


def random_frames(*shape):
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)


def pixels_of(kind, frames, videos):
    (pixels,) = kind.inputs([frames], videos=videos).values()
    return pixels


def fused(frames, mean, std):
    """The normalisation of transformers' processors for channels-first frames without resizing."""
    middle, spread = (torch.tensor(values) * (1 / (1 / 255)) for values in (mean, std))
    return (frames.float() - middle[:, None, None]) / spread[:, None, None]


def test_pixels_at_full_size_equal_those_of_the_library(kind, side):
    frames = random_frames(1, 16, side, side)
    mean, std = {
        448: (IMAGENET["image_mean"], IMAGENET["image_std"]),
        384: ([0.5] * 3, [0.5] * 3),
    }[side]
    expected = fused(frames[0].permute(0, 3, 1, 2), mean, std)
    ours = pixels_of(kind, frames, [video(16, side, side)])
    assert torch.equal(ours.flatten(0, ours.ndim - 4), expected)
    half = kind.inputs([frames], torch.bfloat16, [video(16, side, side)])
    assert torch.equal(next(iter(half.values())), ours.to(torch.bfloat16))


def test_grid_is_cut_into_the_same_tiles_as_by_internvl():
    """InternVL's image processor cuts a wide image likewise and adds a thumbnail."""
    frame = random_frames(448, 896)
    processor = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, crop_to_patches=True, do_resize=True, **IMAGENET
    )
    tiles = processor(frame.numpy(), return_tensors="pt")["pixel_values"]
    ours = pixels_of(backbone("internvl"), frame[None, None], [video(1, 448, 896)])
    assert len(tiles) == 3 and len(ours) == 2
    torch.testing.assert_close(ours, tiles[:2])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
def test_squares_are_ordered_by_frame_row_and_column(rows, cols, num_windows, num_frames):
    frames = torch.zeros((num_windows, num_frames, 8 * rows, 8 * cols, 3), dtype=torch.uint8)
    counts = iter(range(1, 200))
    for window in frames:
        for frame in window:
            for row in range(rows):
                for col in range(cols):
                    frame[8 * row : 8 * row + 8, 8 * col : 8 * col + 8] = next(counts)
    cut = squares.cut(frames, 8)
    assert cut.shape == (num_windows, num_frames * rows * cols, 3, 8, 8)
    assert cut.amin((2, 3, 4)).flatten().tolist() == cut.amax((2, 3, 4)).flatten().tolist()
    assert cut[..., 0, 0, 0].flatten().tolist() == list(range(1, 1 + cut.shape[:2].numel()))


def test_cameras_are_named_if_each_tile_is_one_square(kind, side):
    four = video(2, 2 * side, 2 * side, "4-cam")
    chat = kind.chat(TEXT, [four])
    labels = ["front wide", "front tele", "rear left", "rear right"]
    places = [chat.index(label) for label in labels]
    assert places == sorted(places)
    # With two cameras in each square, cameras are not named.
    mosaic = kind.chat(TEXT, [video(2, side, 2 * side, "4-cam")])
    assert not any(label in mosaic for label in labels)
    assert kind.chat(TEXT, [video(2, 2 * side, 2 * side)]) != chat


def test_empty_cells_take_no_tokens(kind, side):
    seven = video(3, 3 * side, 3 * side, "7-cam")
    tokens = kind.tokens_per_square
    end = kind.num_vision_tokens([seven]) % tokens
    assert kind.num_vision_tokens([seven]) == 3 * 7 * tokens + end
    assert kind.num_vision_tokens([video(3, 3 * side, 3 * side)]) == 3 * 9 * tokens + end
    frames = random_frames(1, 3, 3 * side, 3 * side)
    pixels = pixels_of(kind, frames, [seven]).reshape(3, 7, 3, side, side)
    whole = pixels_of(kind, frames, [video(3, 3 * side, 3 * side)]).reshape(3, 9, 3, side, side)
    cells = [cell for row in seven.cells for cell in row]
    kept = [number for number, cell in enumerate(cells) if cell]
    assert kept == [0, 1, 2, 3, 4, 5, 7] and torch.equal(pixels, whole[:, kept])


@pytest.mark.parametrize(
    ("size", "grid", "tokens"),
    [
        ((1, 1), None, {"internvl": 4096, "llava_onevision": 3137}),
        ((1, 2), "4-cam", {"internvl": 8192, "llava_onevision": 6273}),
        ((2, 2), "4-cam", {"internvl": 16_384, "llava_onevision": 12_545}),
        ((3, 3), None, {"internvl": 36_864, "llava_onevision": 28_225}),
    ],
)
def test_number_of_tokens_per_square_matches_the_family(kind, name, side, size, grid, tokens):
    shown = video(16, size[0] * side, size[1] * side, grid)
    assert kind.num_vision_tokens([shown]) == tokens[name]
    assert kind.chat(TEXT, [shown]).count(kind.vision_token) == tokens[name]


def test_older_frames_may_be_smaller(kind, side):
    times = (0.0, 1.0, 2.0, 2.5)
    past = Video(times[:2], side, side, cells_of(cameras.grid("4-cam")))
    dense = Video(times[2:], 2 * side, 2 * side, cells_of(cameras.grid("4-cam")))
    frames = [random_frames(2, 2, side, side), random_frames(2, 2, 2 * side, 2 * side)]
    (pixels,) = kind.inputs(frames, videos=[past, dense]).values()
    assert pixels.shape[:-3].numel() == 2 * (2 * 1 + 2 * 4)
    chat = kind.chat(TEXT, [past, dense])
    assert chat.count(kind.vision_token) == kind.num_vision_tokens([past, dense])
    assert all(f"{time_s:.2f} s" in chat for time_s in times)
    assert kind.vision_work([past, dense]).patches == 10 * kind.patches_per_square


@pytest.mark.parametrize(
    ("grid", "height", "width", "message"),
    [("4-cam", 512, 896, "tile_width: {half} and tile_height: {half}"), ("7-cam", 768, 1344, "{}")],
)
def test_indivisible_grid_is_refused_with_a_tile_size_that_fits(
    kind, side, grid, height, width, message
):
    with pytest.raises(AvomniError, match=f"does not divide into squares of {side} px") as caught:
        kind.num_vision_tokens([video(16, height + 1, width, grid)])
    fix = str(caught.value)
    assert "tile_width: " in fix and "one camera a square" in fix
    # The proposed tile size is accepted.
    wide, high = (
        int(fix.split(f"tile_{side_name}: ")[1].split()[0]) for side_name in ("width", "height")
    )
    rows = cols = 2 if grid == "4-cam" else 3
    kind.check(video(16, rows * high, cols * wide, grid))
    kind.check(video(16, rows * side, cols * side, grid))


def test_cut_refuses_other_dtypes_and_shapes(kind, side):
    with pytest.raises(AvomniError, match="expected"):
        squares.cut(random_frames(1, 2, side, side).float(), side)
    with pytest.raises(AvomniError, match="expected"):
        squares.cut(random_frames(2, side, side), side)
    with pytest.raises(AvomniError, match="squares"):
        squares.cut(random_frames(1, 2, side, side + 1), side)


def rendered(name, *contents):
    """The user turn rendered with the family's released chat template."""
    asked = [{"role": "user", "content": [*contents, {"type": "text", "text": TEXT}]}]
    return (
        FAMILIES[name]
        .tokenizer()
        .apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    )


def ids(name, text):
    return FAMILIES[name].tokenizer().encode(text, add_special_tokens=False)


def test_internvl_tokens_match_its_processor_except_for_times():
    kind, shown = backbone("internvl"), video(16, 448, 448)
    processor = SimpleNamespace(
        start_image_token="<img>",
        end_image_token="</img>",
        image_token="<IMG_CONTEXT>",
        image_seq_length=256,
    )
    frames = {"pixel_values_videos": [np.zeros((16, 3, 448, 448))]}
    expected = InternVLProcessor.replace_video_token(processor, frames, 0)
    chat = rendered("internvl", {"type": "video"}).replace("<IMG_CONTEXT>", expected, 1)
    ours = kind.chat(TEXT, [shown])
    assert "Frame1 at 0.00 s: <img>" in ours and "Frame16 at 7.50 s: <img>" in ours
    for time_s in shown.times_s:
        ours = ours.replace(f" at {time_s:.2f} s:", ":")
    assert ids("internvl", ours) == ids("internvl", chat)
    assert len(ids("internvl", ours)) > 4096


def test_llava_tokens_match_its_processor_except_for_the_time_sentence():
    kind, shown = backbone("llava_onevision"), video(16, 384, 384)
    processor = SimpleNamespace(video_token="<video>", num_image_tokens=729)
    frames = {"pixel_values_videos": [np.zeros((16, 3, 384, 384))]}
    expected = LlavaOnevisionProcessor.replace_video_token(processor, frames, 0)
    chat = rendered("llava_onevision", {"type": "video"}).replace("<video>", expected, 1)
    ours = kind.chat(TEXT, [shown])
    sentence = kind.time_instruction([shown])
    assert "lasts for 7.50 seconds, and 16 frames are taken from it, at 0.00 s, 0.50 s," in sentence
    assert ids("llava_onevision", ours.replace(f"{sentence}\n", "")) == ids("llava_onevision", chat)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2)])
def test_request_on_the_card_renders_to_the_training_prompt(name, kind, side, size):
    """The request's content is rendered with the chat template, with the image tokens expanded."""
    shown = video(2, size[0] * side, size[1] * side, "4-cam")
    asked = kind.request(TEXT, [shown])
    (turn,) = asked["messages"]
    content = [
        {"type": "video" if part["type"] == "video_url" else "image"}
        if part["type"].endswith("_url")
        else part
        for part in turn["content"]
    ]
    text = (
        FAMILIES[name]
        .tokenizer()
        .apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    )
    pads = kind.vision_token * kind.tokens_per_square
    words = {
        "internvl": f"<img>{pads}</img>",
        "llava_onevision": kind.vision_token * kind.num_vision_tokens([shown]),
    }
    assert text.replace(kind.vision_token, words[name]) == kind.chat(TEXT, [shown])


def test_server_arguments_allow_the_images_of_a_window():
    four = {name: video(16, 2 * side, 2 * side, "4-cam") for name, side in SIDES.items()}
    arguments = backbone("internvl").server_arguments([four["internvl"]])
    assert arguments == """--limit-mm-per-prompt '{"image": 64}'"""
    arguments = backbone("llava_onevision").server_arguments([four["llava_onevision"]])
    assert arguments == "--max-num-batched-tokens 13312"  # for 12,545


def test_sizes_come_from_the_models_config(name):
    small = FAMILIES[name]
    kind = small.kind()
    assert kind.side_multiple == small.tile[0]
    assert (kind.tokens_per_square, kind.token_px) == (
        4,
        {"internvl": 28, "llava_onevision": 22}[name],
    )
    default = backbone(
        name, {"internvl": InternVLConfig, "llava_onevision": LlavaOnevisionConfig}[name]()
    )
    assert default == backbone(name)


@pytest.mark.parametrize(
    ("named", "other", "message"),
    [
        ("internvl", "internvl_chat", "remote code.*ends in -hf"),
        ("llava_onevision", "llavaonevision1_5", "remote code.*-ov-hf"),
        ("llava_onevision", "llava_onevision2", "remote code.*-ov-hf"),
        ("internvl", "llava_onevision", "set model.backbone to what the base model is"),
    ],
)
def test_remote_code_models_are_refused_with_an_alternative(named, other, message):
    with pytest.raises(AvomniError, match=f"the base model is a '{other}'") as caught:
        backbone(named, SimpleNamespace(model_type=other))
    assert re.search(message, str(caught.value))


def test_vision_tower_with_other_shapes_is_refused():
    with pytest.raises(AvomniError, match="448×224 px, which is no square"):
        backbone("internvl", InternVLConfig(vision_config={"image_size": [448, 224]}))
    other = LlavaOnevisionConfig(vision_config={"model_type": "clip_vision_model"})
    with pytest.raises(AvomniError, match="a 'clip_vision_model', not a 'siglip_vision_model'"):
        backbone("llava_onevision", other)


@pytest.mark.parametrize(
    ("named", "base_model", "kind"),
    [
        ("internvl", "OpenGVLab/InternVL3_5-8B", "internvl_chat"),
        ("internvl", "OpenGVLab/InternVL3-8B-Instruct", "internvl_chat"),
        ("llava_onevision", "lmms-lab/LLaVA-OneVision-1.5-8B-Instruct", "llavaonevision1_5"),
        ("llava_onevision", "lmms-lab/LLaVA-OneVision-2-8B", "llava_onevision2"),
        ("llava_onevision", "lmms-lab/llava-onevision-qwen2-7b-ov", "llava_qwen"),
    ],
)
def test_plan_refuses_remote_code_models_by_name(named, base_model, kind):
    p = Params.from_values({"extends": FILES[named], "model": {"base_model": base_model}})
    with pytest.raises(AvomniError, match=f"is a '{kind}'.*") as caught:
        estimate.plan_run(p)
    assert "remote code" in str(caught.value) and "end" in str(caught.value)


def test_plan_of_the_params_file_fits_the_memory(name):
    p = Params.from_values({"extends": FILES[name]})
    plan = estimate.plan_run(p)
    assert plan.figures["vision_tokens"] == {"internvl": 16_384, "llava_onevision": 12_545}[name]
    assert plan.figures["tokens_per_sample"] < p.model.max_seq_length
    assert 15 < plan.figures["memory_gb"] < 30
    assert [warning for warning in plan.warnings if "optimizer steps" not in warning] == []


@pytest.fixture
def model(name):
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(
        FAMILIES[name].make_config(FAMILIES[name].tokenizer())
    )
    for weights in made.parameters():
        weights.requires_grad_(False)
    return made.eval()


def features_of(name, model):
    """The image features that the language model receives for a window."""
    torch.manual_seed(1)
    kind, small = FAMILIES[name].kind(), FAMILIES[name]
    pixels = pixels_of(kind, random_frames(2, 3, *small.size), [video(3, *small.size)])
    if name == "internvl":
        return model.model.get_image_features(pixels).pooler_output
    return model.model.get_video_features(pixels).pooler_output


@pytest.mark.parametrize("layer", [-1, -2, 1, [-2, -1]])
def test_unused_layers_of_llavas_tower_are_dropped(layer, monkeypatch):
    config = FAMILIES["llava_onevision"].make_config(FAMILIES["llava_onevision"].tokenizer())
    config.vision_feature_layer = layer
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        before = features_of("llava_onevision", model)
    ran = []
    for number, module in enumerate(model.model.vision_tower.encoder.layers, start=1):
        module.register_forward_hook(lambda *_, number=number: ran.append(number))
    names = list(model.state_dict())
    backbone("llava_onevision").prepare(model)
    assert torch.equal(features_of("llava_onevision", model), before)
    outputs = model.model.vision_tower(torch.zeros(1, 3, 44, 44), output_hidden_states=True)
    wanted = [layer] if isinstance(layer, int) else layer
    assert list(outputs.hidden_states) == wanted
    last = max(used % 4 for used in wanted)
    assert ran == list(range(1, last + 1)) * 2, "layers after the last one used must not run"
    assert list(model.state_dict()) == names


def test_frozen_tower_keeps_no_activations_for_gradients(name, model):
    """Gradient checkpointing makes all input embeddings require gradients, the tower's too."""
    with torch.no_grad():
        before = features_of(name, model)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    assert features_of(name, model).requires_grad, (
        "without `prepare` the features require gradients"
    )
    backbone(name).prepare(model)
    after = features_of(name, model)
    assert not after.requires_grad and torch.equal(after, before)
    # A copy of the model uses its own weights.
    copied = copy.deepcopy(model)
    for weights in copied.model.vision_tower.parameters():
        weights.zero_()
    assert torch.equal(features_of(name, model), before)
    assert not torch.equal(features_of(name, copied), before)


def test_vision_work_counts_patches_and_pairs(kind, name):
    shown = video(16, SIDES[name], 2 * SIDES[name])
    work = kind.vision_work([shown])
    patches = {"internvl": 1025, "llava_onevision": 729}[name]
    assert (work.patches, work.pairs) == (32 * patches, 32 * patches**2)
    assert math.isqrt(patches - (name == "internvl")) ** 2 == patches - (name == "internvl")
