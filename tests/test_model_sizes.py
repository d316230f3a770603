"""Weight counts from model configs and names, compared with what transformers builds."""

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


def params_for(base_model):
    return Params.from_values({"model": {"base_model": base_model}})


def count_weights(module):
    return sum(weights.numel() for weights in module.parameters())


def meta_model(config):
    """The model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("config", [EIGHT_B, AutoConfig.from_pretrained(model_path.TINY_FOLDER)])
def test_weight_count_of_every_part_matches_the_built_model(config):
    built, size = meta_model(config), Qwen3VL.size(config.to_dict())
    language, visual = built.model.language_model, built.model.visual
    linears = [m for m in language.modules() if isinstance(m, torch.nn.Linear)]
    norms = [m for m in language.modules() if type(m).__name__ == "Qwen3VLTextRMSNorm"]
    mergers = count_weights(visual.merger) + count_weights(visual.deepstack_merger_list)
    assert size.language.num_linears == sum(map(count_weights, linears))
    assert size.language.num_others == sum(map(count_weights, norms))
    assert size.language.num_embeddings == count_weights(language.embed_tokens)
    assert size.vision.num_mergers == mergers
    assert size.vision.num_tower == count_weights(visual) - mergers
    tied = size.language.tied
    assert size.language.num_head == (0 if tied else count_weights(built.lm_head))
    assert size.num_weights == count_weights(built), "a tied head is counted once"


def small(name, **changes):
    """The config of a small model with changes to its text, vision or top-level ("own") values."""
    config = FAMILIES[name].make_config(FAMILIES[name].tokenizer())
    for part, values in changes.items():
        for key, value in values.items():
            setattr(getattr(config, f"{part}_config", config), key, value)
    return config


def with_experts(**overrides):
    text, vision = qwen3_vl.RELEASED["30b"]
    vision = vision | {"deepstack_visual_indexes": [8, 16, 24]}
    return Qwen3VLMoeConfig(text_config=text | overrides, vision_config=vision)


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
def test_computed_weight_count_is_exact(case):
    name, config = COUNTED[case]
    assert family(name).size(config.to_dict()).num_weights == count_weights(meta_model(config))


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
def test_base_model_size_of_a_params_file_is_known_by_name(params, config):
    known = size_of(Params.from_values({"extends": params}))
    built = family(Params.from_values({"extends": params}).model.backbone).size(config.to_dict())
    assert known == replace(built, stored_4bit=config is EIGHT_B)
    assert known.num_weights == count_weights(meta_model(config))


# Billions of weights: as InternVL's authors publish them; for Qwen3-VL, half the bytes of the
# bfloat16 checkpoints on the hub. None: the size is not known from the name.
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
def test_sizes_are_known_only_for_released_model_names(name, base_model):
    size, billions = family(name).released(base_model), RELEASED[name][base_model]
    if billions is None:
        assert size is None
    else:
        assert size.num_weights / 1e9 == pytest.approx(billions, rel=3e-3)


@pytest.mark.parametrize(("name", "billions"), [("0.5b", 0.49), ("7b", 7.62), ("72b", 72.7)])
@pytest.mark.parametrize("end", ["ov-hf", "ov-chat-hf", "si-hf"])
def test_llava_language_model_sizes_match_the_qwen2_cards(name, end, billions):
    size = family("llava_onevision").released(f"llava-hf/llava-onevision-qwen2-{name}-{end}")
    language = size.language
    count = language.num_linears + language.num_others + language.num_embeddings + language.num_head
    assert count == pytest.approx(1e9 * billions, rel=1e-2)
    # Only 26 of SigLIP-so400m's 27 layers are used, without its head.
    assert size.vision.num_tower == pytest.approx(398e6, rel=1e-2)


def test_size_of_a_local_base_model_is_read_from_its_config(tmp_path):
    tiny = size_of(params_for("tiny"))
    assert (tiny.language.hidden, tiny.language.layers, tiny.vision.hidden) == (128, 4, 96)

    config = files.read_json(model_path.TINY_FOLDER / "config.json")
    quantised = config | {"quantization_config": {"load_in_4bit": True, "quant_method": "bnb"}}
    files.write_json(tmp_path / "config.json", quantised)
    assert size_of(params_for(str(tmp_path))).stored_4bit

    files.write_json(tmp_path / "config.json", config | {"model_type": "llama"})
    with pytest.raises(AvomniError, match="'llama', not a 'qwen3_vl'"):
        size_of(params_for(str(tmp_path)))


def test_incomplete_config_error_names_the_missing_key(tmp_path):
    config = files.read_json(model_path.TINY_FOLDER / "config.json")
    del config["vision_config"]["num_position_embeddings"]
    files.write_json(tmp_path / "config.json", config)
    with pytest.raises(AvomniError, match="does not say 'num_position_embeddings'"):
        size_of(params_for(str(tmp_path)))
