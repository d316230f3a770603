"""Qwen3.5 and Qwen3-VL with experts, compared with transformers' model and processor."""

import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen3_5MoeConfig,
    Qwen3VLMoeConfig,
)
from trl import chat_template_utils

from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.backbones import backbone, family, in_4bit, qwen3_5
from avomni_lib.training.forecast.estimate import plan_run
from avomni_lib.training.forecast.memory import memory, size_of
from avomni_lib.training.model import load
from avomni_lib.training.prompt.tokens import tokens_per_sample
from tests import test_qwen3_vl
from tests.families import FAMILIES, QWEN_TOWER
from tests.test_qwen3_vl import TEXT

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
def model():
    return build(SMALL.make_config(SMALL.tokenizer()))


def unbuilt(config):
    """The model without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def count(model):
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("shape", [(16, 512, 896), (5, 32, 64)])
def test_pixels_and_tokens_equal_the_transformers_processor(template, shape):
    """With both released chat templates, which differ in the default for thinking."""
    words, frames = SMALL.tokenizer(), test_qwen3_vl.random_frames(*shape)
    seen = [test_qwen3_vl.video(*shape)]
    thinking = KIND.request(TEXT, seen)["chat_template_kwargs"]
    released = {"chat_template": TEMPLATES[template], **thinking}
    expected = test_qwen3_vl.processed([(frames, range(len(frames)))], 2.0, words, **released)
    ours = KIND.inputs([frames[None]])
    assert torch.equal(ours["pixel_values_videos"], expected["pixel_values_videos"])
    assert torch.equal(ours["video_grid_thw"], expected["video_grid_thw"])
    chat = KIND.chat(TEXT, seen)
    ids = words.encode(chat, add_special_tokens=False)
    assert ids == expected["input_ids"][0].tolist()
    assert chat.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl_moe"])
def test_positions_equal_the_models(name):
    small = FAMILIES[name]
    model, conversation = build(small.make_config(small.tokenizer())), small.conversation()
    sample = conversation.sample("42")
    expected, _ = model.model.get_rope_index(
        torch.from_numpy(sample.input_ids)[None],
        mm_token_type_ids=2
        * torch.from_numpy(sample.input_ids == conversation.vision_id)[None].long(),
        video_grid_thw=torch.tensor(
            [conversation.backbone.grid_thw(*conversation.frame_shape[:3])]
        ),
    )
    assert (sample.positions == expected[:, 0].numpy()).all()


@pytest.mark.parametrize("lora_targets", [None, ("q_proj",)])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl_moe"])
def test_unsloth_receives_the_target_modules_it_would_not_find(name, lora_targets, monkeypatch):
    received = {}

    def get_peft_model(model, **options):
        received.update(options)
        return model

    fake = SimpleNamespace(FastVisionModel=SimpleNamespace(get_peft_model=get_peft_model))
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    small = FAMILIES[name]
    config = small.make_config(small.tokenizer())
    kind = small.kind()
    p = Params.from_values({"model": {"backbone": kind.name, "lora_targets": lora_targets}})
    load.add_adapter(unbuilt(config), p, kind, "unsloth")
    if name == "qwen3_5" or lora_targets:
        assert received["target_modules"].startswith(r".*language_model.*\.(")
        assert ("in_proj_qkv" in received["target_modules"]) is (lora_targets is None)
    else:
        assert "target_modules" not in received


def test_config_without_layer_types_has_the_released_order():
    text = {"num_hidden_layers": 32} | qwen3_5.RELEASED_4B["text_config"]
    linear, attention = qwen3_5.blocks(text)
    assert (linear.count, linear.attends) == (24, False)
    assert (attention.count, attention.attends) == (8, True)


def test_16_bit_is_the_default_with_a_reason():
    def choice(**model):
        return in_4bit(Params.from_values({"model": {"backbone": "qwen3_5"} | model}))

    assert choice().value == "none" and "Unsloth advises against" in choice().reason
    assert choice(load_in_4bit=True).value == "nf4"


def test_linear_attention_kernel_is_a_choice_with_a_reason(monkeypatch):
    monkeypatch.setattr(qwen3_5, "find_spec", lambda name: None)
    choice = KIND.choices["linear_attention"]
    assert choice.value == "torch" and "flash-linear-attention is not installed" in choice.reason
    monkeypatch.setattr(qwen3_5, "find_spec", lambda name: object())
    assert KIND.choices["linear_attention"].value == "fla"
    assert backbone("qwen3_vl").choices == {}


def test_plan_of_qwen_drive_is_near_unsloths_figure():
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


def test_experts_stay_in_16_bit():
    base = {"base_model": "Qwen/Qwen3-VL-30B-A3B-Instruct", "load_in_4bit": True}
    p = Params.from_values({"extends": "params/mi300x.yaml", "model": base})
    needed = memory(p, size_of(p), tokens_per_sample(p))
    experts = 128 * 48 * 3 * 2048 * 768
    assert needed.weights > 2 * experts
    assert needed.weights / 1e9 == pytest.approx(60.7, abs=0.5)
