"""Weights of models by their configs and names, beside the modules that transformers builds."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    InternVLConfig,
    LlavaOnevisionConfig,
    Qwen3_5Config,
    Qwen3VLMoeConfig,
)

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.params import Params
from avomni_lib.training.backbones import family, qwen3_5, qwen3_vl
from avomni_lib.training.backbones.qwen3_vl import Qwen3VL
from avomni_lib.training.backbones.shared import decoder
from avomni_lib.training.forecast.memory import size_of
from avomni_lib.training.model import model_path
from tests.families import FAMILIES
from tests.test_model import EIGHT_B


def named(base_model):
    return Params.from_values({"model": {"base_model": base_model}})


def numbers(module):
    return sum(weights.numel() for weights in module.parameters())


def unbuilt(config):
    """The model without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("config", [EIGHT_B, AutoConfig.from_pretrained(model_path.TINY_FOLDER)])
def test_every_part_has_as_many_weights_as_the_modules(config):
    built, size = unbuilt(config), Qwen3VL.size(config.to_dict())
    language, visual = built.model.language_model, built.model.visual
    linears = [m for m in language.modules() if isinstance(m, torch.nn.Linear)]
    norms = [m for m in language.modules() if type(m).__name__ == "Qwen3VLTextRMSNorm"]
    mergers = numbers(visual.merger) + numbers(visual.deepstack_merger_list)
    assert size.language.num_linears == sum(map(numbers, linears))
    assert size.language.num_others == sum(map(numbers, norms))
    assert size.language.num_embeddings == numbers(language.embed_tokens)
    assert size.vision.num_mergers == mergers
    assert size.vision.num_tower == numbers(visual) - mergers
    tied = size.language.tied
    assert size.language.num_head == (0 if tied else numbers(built.lm_head))
    assert size.num_weights == numbers(built), "a tied head is counted once"


def small(name, **changes):
    """The config of a small model with changes, "text", "vision" or the config's own."""
    config = FAMILIES[name].make_config(FAMILIES[name].tokenizer())
    for part, values in changes.items():
        for key, value in values.items():
            setattr(getattr(config, f"{part}_config", config), key, value)
    return config


def with_experts(**own):
    text, vision = qwen3_vl.RELEASED["30b"]
    vision = vision | {"deepstack_visual_indexes": [8, 16, 24]}
    return Qwen3VLMoeConfig(text_config=text | own, vision_config=vision)


ALL_ON = {"use_qk_norm": True, "use_mask_token": True, "use_mean_pooling": False}
EVERY_SECOND = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [1]}
COUNTED = {
    "internvl": ("internvl", small("internvl")),
    "internvl, all on": ("internvl", small("internvl", vision=ALL_ON)),
    "llava": ("llava_onevision", small("llava_onevision")),
    "llava, all on": (
        "llava_onevision",
        small(
            "llava_onevision",
            vision={"vision_use_head": True},
            own={"vision_feature_layer": [-2, -1]},
        ),
    ),
    "qwen3_5": ("qwen3_5", small("qwen3_5")),
    "qwen3_5 by default": ("qwen3_5", Qwen3_5Config()),
    "qwen3_5 of 4b": ("qwen3_5", Qwen3_5Config(**qwen3_5.RELEASED_4B)),
    "experts": ("qwen3_vl", with_experts()),
    "experts in some layers": ("qwen3_vl", with_experts(**EVERY_SECOND)),
}


@pytest.mark.parametrize("case", COUNTED)
def test_weights_are_counted_exactly(case):
    name, config = COUNTED[case]
    assert family(name).size(config.to_dict()).num_weights == numbers(unbuilt(config))


FULL_INTERNVL = InternVLConfig(
    text_config=decoder.qwen3(4096, 36, 32, 8, 12_288, 151_936),
    vision_config={"attention_bias": True},
    tie_word_embeddings=False,
)
FULL_LLAVA = LlavaOnevisionConfig(text_config=decoder.qwen2(3584, 28, 28, 4, 18_944, 152_128))


@pytest.mark.parametrize(
    ("params", "config"),
    [
        ("params/mi300x.yaml", EIGHT_B),
        ("params/internvl.yaml", FULL_INTERNVL),
        ("params/llava.yaml", FULL_LLAVA),
    ],
)
def test_the_base_of_a_params_file_is_known_by_its_name(params, config):
    known = size_of(Params.from_values({"extends": params}))
    built = family(Params.from_values({"extends": params}).model.backbone).size(config.to_dict())
    assert known == replace(built, stored_4bit=config is EIGHT_B)
    assert known.num_weights == numbers(unbuilt(config))


# Billions of weights: as InternVL's authors publish them; for Qwen3-VL, what the hub says of the
# checkpoints, bytes of their bfloat16 weights, halved. None where nothing is to be said.
RELEASED = {
    "internvl": {
        "OpenGVLab/InternVL3-1B-hf": 0.938,
        "OpenGVLab/InternVL3-2B-hf": 2.09,
        "OpenGVLab/InternVL3-8B-hf": 7.94,
        "OpenGVLab/InternVL3-9B-hf": 9.14,
        "OpenGVLab/InternVL3-14B-hf": 15.1,
        "OpenGVLab/InternVL3-38B-hf": 38.4,
        "OpenGVLab/InternVL3-78B-hf": 78.4,
        "OpenGVLab/InternVL3_5-1B-HF": 1.06,
        "OpenGVLab/InternVL3_5-2B-HF": 2.35,
        "OpenGVLab/InternVL3_5-4B-HF": 4.73,
        "OpenGVLab/InternVL3_5-8B-HF": 8.53,
        "OpenGVLab/InternVL3_5-14B-HF": 15.12,
        "OpenGVLab/InternVL3_5-38B-HF": 38.4,
        "OpenGVLab/InternVL3_5-30B-A3B-HF": None,
        "me/InternVL3-8B-of-mine": None,
        "Qwen/Qwen3-VL-8B-Instruct": None,
    },
    "llava_onevision": {
        "llava-hf/llava-onevision-qwen2-3b-ov-hf": None,
        "Qwen/Qwen3-VL-8B-Instruct": None,
    },
    "qwen3_5": {
        "Qwen/Qwen3.5-4B": 4.54,
        "Qwen/Qwen3.5-4B-Base": 4.54,
        "unsloth/Qwen3.5-4B": 4.54,
        "Qwen/Qwen-Drive-1.0-4B": 4.54,
        "Qwen/Qwen3.5-9B": None,
        "Qwen/Qwen3-VL-4B-Instruct": None,
        "someone/Qwen3.5-4B-bnb-4bit": None,
    },
    "qwen3_vl": {
        "Qwen/Qwen3-VL-2B-Instruct": 2.13,
        "Qwen/Qwen3-VL-4B-Instruct": 4.44,
        "Qwen/Qwen3-VL-8B-Instruct": 8.77,
        "Qwen/Qwen3-VL-32B-Instruct": 33.36,
        "qwen/qwen3-vl-32b-thinking": 33.36,
        "Qwen/Qwen3-VL-30B-A3B-Instruct": 31.07,
        "Qwen/Qwen3-VL-30B-Instruct": None,
        "Qwen/Qwen3-VL-235B-A22B-Instruct": None,
        "Qwen/Qwen2.5-VL-7B-Instruct": None,
        "Qwen/Qwen3-8B": None,
        "x": None,
    },
}


@pytest.mark.parametrize(
    ("name", "base_model"), [(name, base) for name, bases in RELEASED.items() for base in bases]
)
def test_released_sizes_are_known_by_their_names_and_others_are_not_guessed(name, base_model):
    size, billions = family(name).released(base_model), RELEASED[name][base_model]
    if billions is None:
        assert size is None
    else:
        assert size.num_weights / 1e9 == pytest.approx(billions, rel=3e-3)


@pytest.mark.parametrize(("name", "billions"), [("0.5b", 0.49), ("7b", 7.62), ("72b", 72.7)])
@pytest.mark.parametrize("end", ["ov-hf", "ov-chat-hf", "si-hf"])
def test_llavas_language_models_weigh_what_qwen2s_cards_say(name, end, billions):
    size = family("llava_onevision").released(f"llava-hf/llava-onevision-qwen2-{name}-{end}")
    of = size.language
    count = of.num_linears + of.num_others + of.num_embeddings + of.num_head
    assert count == pytest.approx(1e9 * billions, rel=1e-2)
    # Of SigLIP-so400m's 27 layers and its head, 26 layers are there.
    assert size.vision.num_tower == pytest.approx(398e6, rel=1e-2)


def test_a_base_model_on_the_disk_is_read_from_its_config(tmp_path):
    tiny = size_of(named("tiny"))
    assert (tiny.language.hidden, tiny.language.layers, tiny.vision.hidden) == (128, 4, 96)

    config = files.read_json(model_path.TINY_FOLDER / "config.json")
    quantised = config | {"quantization_config": {"load_in_4bit": True, "quant_method": "bnb"}}
    files.write_json(tmp_path / "config.json", quantised)
    assert size_of(named(str(tmp_path))).stored_4bit

    files.write_json(tmp_path / "config.json", config | {"model_type": "llama"})
    with pytest.raises(AvomniError, match="'llama', not a 'qwen3_vl'"):
        size_of(named(str(tmp_path)))


def test_a_config_that_lacks_a_number_says_which(tmp_path):
    config = files.read_json(model_path.TINY_FOLDER / "config.json")
    del config["vision_config"]["num_position_embeddings"]
    files.write_json(tmp_path / "config.json", config)
    with pytest.raises(AvomniError, match="does not say 'num_position_embeddings'"):
        size_of(named(str(tmp_path)))
