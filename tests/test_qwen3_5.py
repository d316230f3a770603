"""Qwen3.5, held against transformers' own model and processor, and Qwen3-VL with experts."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLMoeConfig,
)
from trl import chat_template_utils

from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone, family, in_4bit, qwen3_5, qwen3_vl
from avomni_lib.training.forecast.estimate import plan_run
from avomni_lib.training.forecast.memory import memory, size_of
from avomni_lib.training.model import load
from avomni_lib.training.prompt.tokens import tokens_per_sample
from tests import test_qwen3_vl
from tests.families import FAMILIES, QWEN_TOWER

SMALL = FAMILIES["qwen3_5"]
KIND = backbone("qwen3_5")
LINEAR_LAYERS, LAYERS = 3, 4
TEMPLATES = {
    name: getattr(chat_template_utils, f"qwen3_5_{name}_chat_template")
    for name in ("think", "nothink")
}


def build(config):
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


@pytest.fixture(scope="module")
def whole():
    return build(SMALL.make_config(SMALL.tokenizer()))


def unbuilt(config):
    """The model without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def count(model):
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("shape", [(16, 512, 896), (5, 32, 64)])
def test_pixels_and_tokens_are_the_real_processors(template, shape, monkeypatch):
    """Of the released chat templates, which differ in whether thinking is on unless it is said."""
    words, processor = SMALL.tokenizer(), test_qwen3_vl.processor()
    monkeypatch.setattr(processor, "tokenizer", words)
    frames = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    )
    asked = KIND.request("How fast?", [test_qwen3_vl.video(*shape)])
    message = {
        "role": "user",
        "content": [{"type": "video"}, {"type": "text", "text": "How fast?"}],
    }
    chat = processor.apply_chat_template(
        [message],
        add_generation_prompt=True,
        chat_template=TEMPLATES[template],
        **asked["chat_template_kwargs"],
    )
    metadata = test_qwen3_vl.VideoMetadata(shape[0], fps=2.0, frames_indices=list(range(shape[0])))
    video = (frames.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    expected = processor(
        text=[chat], videos=[video], video_metadata=[metadata], return_tensors="pt"
    )
    ours = KIND.inputs([frames[None]])
    assert torch.equal(ours["pixel_values_videos"], expected["pixel_values_videos"])
    assert torch.equal(ours["video_grid_thw"], expected["video_grid_thw"])
    told = KIND.chat("How fast?", [test_qwen3_vl.video(*shape)])
    ids = words.encode(told, add_special_tokens=False)
    assert ids == expected["input_ids"][0].tolist()
    assert told.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl_moe"])
def test_positions_are_the_models_own(name):
    small = FAMILIES[name]
    model, talk = build(small.make_config(small.tokenizer())), small.conversation()
    sample = talk.sample("42")
    expected, _ = model.model.get_rope_index(
        torch.from_numpy(sample.input_ids)[None],
        mm_token_type_ids=torch.from_numpy(sample.mm_token_type_ids)[None],
        video_grid_thw=torch.tensor([talk.backbone.grid_thw(*talk.frame_shape[:3])]),
    )
    assert (sample.positions == expected[:, 0].numpy()).all()


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl_moe"])
@pytest.mark.parametrize("fuse", [True, False])
def test_what_is_prepared_is_the_same_function_of_the_same_weights(name, fuse):
    small = FAMILIES[name]
    model, kind = build(small.make_config(small.tokenizer())), small.kind()
    talk, frames = small.conversation(), small.windows(1).frames(0)[None]
    sample = talk.sample("42")
    inputs = {
        "input_ids": torch.from_numpy(sample.input_ids)[None],
        "position_ids": torch.from_numpy(sample.positions)[:, None],
        **kind.inputs([torch.from_numpy(frames)]),
    }
    with torch.inference_mode():
        before, names = model(**inputs).logits, list(model.state_dict())
        kind.prepare(model, fuse)
        torch.testing.assert_close(model(**inputs).logits, before)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl_moe"])
def test_every_norm_of_width_and_each_attention_of_the_tower_is_fused(name):
    small = FAMILIES[name]
    model = build(small.make_config(small.tokenizer()))
    small.kind().prepare(model)
    # The norm of the gated delta rule has a kernel of its own.
    norms = [each for each in model.modules() if type(each).__name__.endswith("RMSNorm")]
    towers = [each for each in model.modules() if "VisionAttention" in type(each).__name__]
    assert len(norms) >= 2 * 2 + 1 and len(towers) == 2
    assert all("forward" in vars(each) for each in norms + towers)


def test_the_fused_norm_is_the_models_own(whole, monkeypatch):
    """A CPU takes transformers' own; the formula that a GPU's kernel gets is held against it."""
    norm = whole.model.language_model.norm
    norm.weight.data.uniform_(-0.5, 1)
    hidden = torch.randn(3, 5, norm.weight.shape[0]) * 7
    expected = norm(hidden)
    scaled = torch.nn.functional.rms_norm(hidden, norm.weight.shape, None, norm.eps)
    torch.testing.assert_close(torch.addcmul(scaled, scaled, norm.weight), expected)


def test_the_adapter_touches_every_layer(whole):
    p = Params.from_values({"model": {"backbone": "qwen3_5", "lora_rank": 4}})
    tuned = load.add_adapter(build(whole.config), p, KIND)
    touched = [path for path, each in tuned.named_modules() if hasattr(each, "lora_A")]
    layers = {path.split(".layers.")[1].split(".")[0] for path in touched}
    assert len(layers) == whole.config.text_config.num_hidden_layers == LAYERS
    assert len(touched) == LINEAR_LAYERS * 5 + (LAYERS - LINEAR_LAYERS) * 4
    assert not any(".visual." in path for path in touched)
    # What names of attention alone would have reached.
    plain = [path for path in touched if path.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))]
    assert len({path.split(".layers.")[1].split(".")[0] for path in plain}) == 1


@pytest.mark.parametrize("named", [None, ("q_proj",)])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl_moe"])
def test_unsloth_is_told_the_modules_that_it_would_not_find(name, named, monkeypatch):
    told = {}

    def get_peft_model(model, **options):
        told.update(options)
        return model

    fake = SimpleNamespace(FastVisionModel=SimpleNamespace(get_peft_model=get_peft_model))
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    small = FAMILIES[name]
    config = small.make_config(small.tokenizer())
    kind = small.kind()
    p = Params.from_values({"model": {"backbone": kind.name, "lora_targets": named}})
    load.add_adapter(unbuilt(config), p, kind, "unsloth")
    if name == "qwen3_5" or named:
        assert told["target_modules"].startswith(r".*language_model.*\.(")
        assert ("in_proj_qkv" in told["target_modules"]) is (named is None)
    else:
        assert "target_modules" not in told


def test_sixteen_bit_is_the_default_and_says_why():
    def choice(**model):
        return in_4bit(Params.from_values({"model": {"backbone": "qwen3_5"} | model}))

    assert choice().value == "none" and "Unsloth advises against" in choice().reason
    assert choice(load_in_4bit=True).value == "nf4"


def test_which_kernel_runs_is_a_choice_with_its_reason(monkeypatch):
    monkeypatch.setattr(qwen3_5, "find_spec", lambda name: None)
    choice = KIND.choices["linear_attention"]
    assert choice.value == "torch" and "flash-linear-attention is not installed" in choice.reason
    monkeypatch.setattr(qwen3_5, "find_spec", lambda name: object())
    assert KIND.choices["linear_attention"].value == "fla"
    assert backbone("qwen3_vl").choices == {}


def test_weights_are_counted_exactly():
    for config in (
        Qwen3_5Config(),
        Qwen3_5Config(**qwen3_5.RELEASED_4B),
        SMALL.make_config(SMALL.tokenizer()),
    ):
        size = family("qwen3_5").size(config.to_dict())
        assert size.num_weights == count(unbuilt(config))
    # The config as published leaves out what each layer is.
    text = {"num_hidden_layers": 32} | qwen3_5.RELEASED_4B["text_config"]
    linear, attention = qwen3_5.blocks(text)
    assert (linear.count, linear.attends) == (24, False)
    assert (attention.count, attention.attends) == (8, True)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Qwen/Qwen3.5-4B", True),
        ("Qwen/Qwen3.5-4B-Base", True),
        ("unsloth/Qwen3.5-4B", True),
        ("Qwen/Qwen-Drive-1.0-4B", True),
        ("Qwen/Qwen3.5-9B", False),
        ("Qwen/Qwen3-VL-4B-Instruct", False),
        ("someone/Qwen3.5-4B-bnb-4bit", False),
    ],
)
def test_released_sizes_are_those_that_are_known(name, known):
    size = family("qwen3_5").released(name)
    assert (size is not None) is known
    if known:
        assert size.num_weights / 1e9 == pytest.approx(4.54, abs=0.01)


def test_the_plan_of_qwen_drive_is_beside_what_unsloth_says_of_4b():
    p = Params.from_files(["params/qwen_drive.yaml"], [])
    needed = memory(p, size_of(p), tokens_per_sample(p))
    assert needed.weights / 1e9 == pytest.approx(9.1, abs=0.1)
    assert 10e9 < needed.peak_bytes < 15e9
    notes = {name: note for name, _, note in plan_run(p).rows}
    assert notes["in 16 bit"].startswith(family("qwen3_5").sixteen_bit_because)


def test_models_of_another_family_are_refused():
    config = Qwen3VLMoeConfig(vision_config=QWEN_TOWER)
    with pytest.raises(AvomniError, match="'qwen3_vl_moe', not a 'qwen3_5'"):
        backbone("qwen3_5", config)
    with pytest.raises(AvomniError, match="'qwen3_5_moe'") as refused:
        backbone("qwen3_5", Qwen3_5MoeConfig())
    assert "take a dense Qwen3.5" in str(refused.value)
    assert backbone("qwen3_vl", config).side_multiple == 32


def test_weights_of_experts_are_counted_exactly():
    text, vision = qwen3_vl.RELEASED["30b"]
    vision = vision | {"deepstack_visual_indexes": [8, 16, 24]}
    for own in ({}, {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [1]}):
        config = Qwen3VLMoeConfig(text_config=text | own, vision_config=vision)
        size = family("qwen3_vl").size(config.to_dict())
        assert size.num_weights == count(unbuilt(config))


def test_experts_stay_in_16_bit():
    size = family("qwen3_vl").released("Qwen/Qwen3-VL-30B-A3B-Instruct")
    assert size.num_weights / 1e9 == pytest.approx(31.07, abs=0.01)
    assert family("qwen3_vl").released("Qwen/Qwen3-VL-30B-Instruct") is None
    base = {"base_model": "Qwen/Qwen3-VL-30B-A3B-Instruct", "load_in_4bit": True}
    p = Params.from_values({"extends": "params/mi300x.yaml", "model": base})
    needed = memory(p, size_of(p), tokens_per_sample(p))
    experts = 128 * 48 * 3 * 2048 * 768
    assert needed.weights > 2 * experts
    assert needed.weights / 1e9 == pytest.approx(60.7, abs=0.5)
