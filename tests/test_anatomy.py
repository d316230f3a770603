import pytest
import torch
from transformers import AutoConfig, Qwen3VLForConditionalGeneration

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.training.forecast.model_size import Anatomy, anatomy_of
from avomni_lib.training.model import load
from tests.test_model import qwen3_vl_8b


def tiny_on_meta():
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(load.TINY_FOLDER))


def numbers(module):
    return sum(weights.numel() for weights in module.parameters())


@pytest.mark.parametrize("make", [qwen3_vl_8b, tiny_on_meta])
def test_every_part_has_as_many_weights_as_the_modules(make):
    built = make()
    anatomy = Anatomy.from_config(built.config.to_dict())
    language, visual = built.model.language_model, built.model.visual
    linears = [m for m in language.modules() if isinstance(m, torch.nn.Linear)]
    norms = [m for m in language.modules() if type(m).__name__ == "Qwen3VLTextRMSNorm"]
    mergers = numbers(visual.merger) + numbers(visual.deepstack_merger_list)
    assert anatomy.language.num_linears == sum(map(numbers, linears))
    assert anatomy.language.num_norms == sum(map(numbers, norms))
    assert anatomy.language.num_embeddings == numbers(language.embed_tokens)
    assert anatomy.vision.num_mergers == mergers
    assert anatomy.vision.num_tower == numbers(visual) - mergers
    tied = anatomy.language.tied
    assert anatomy.language.num_head == (0 if tied else numbers(built.lm_head))
    assert anatomy.num_weights == numbers(built), "a tied head is counted once"


def test_the_released_8b_is_known_by_its_name():
    known = anatomy_of("unsloth/Qwen3-VL-8B-Instruct-bnb-4bit")
    built = Anatomy.from_config(qwen3_vl_8b().config.to_dict())
    assert (known.language, known.vision) == (built.language, built.vision)
    assert known.stored_4bit and not built.stored_4bit
    # LoRA adds rank × (in + out) to q, k, v and o of 36 layers: as tests/test_model.py builds it.
    assert known.num_adapter(64) == 61_341_696
    assert len(known.adapter_matrices(64)) == 8


@pytest.mark.parametrize(
    ("name", "billions"),
    # What the hub says of the checkpoints: bytes of their bfloat16 weights, halved.
    [("2B", 2.13), ("4B", 4.44), ("8B", 8.77), ("32B", 33.36)],
)
def test_the_released_sizes_have_the_published_numbers_of_weights(name, billions):
    anatomy = anatomy_of(f"Qwen/Qwen3-VL-{name}-Instruct")
    assert anatomy.num_weights / 1e9 == pytest.approx(billions, abs=0.01)
    assert anatomy_of(f"qwen/qwen3-vl-{name.lower()}-thinking") == anatomy


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-8B", "x"]
)
def test_what_is_not_in_the_table_is_not_guessed(name):
    assert anatomy_of(name) is None


def test_a_base_model_on_the_disk_is_read_from_its_config(tmp_path):
    tiny = anatomy_of("tiny")
    assert (tiny.language.hidden, tiny.language.layers, tiny.vision.patch) == (128, 4, 8)

    config = files.read_json(load.TINY_FOLDER / "config.json")
    quantised = config | {"quantization_config": {"load_in_4bit": True, "quant_method": "bnb"}}
    files.write_json(tmp_path / "config.json", quantised)
    assert anatomy_of(str(tmp_path)).stored_4bit

    files.write_json(tmp_path / "config.json", config | {"model_type": "llama"})
    assert anatomy_of(str(tmp_path)) is None


def test_a_config_that_lacks_a_number_says_which():
    config = files.read_json(load.TINY_FOLDER / "config.json")
    del config["vision_config"]["num_position_embeddings"]
    with pytest.raises(AvomniError, match="does not say 'num_position_embeddings'"):
        Anatomy.from_config(config)
    with pytest.raises(AvomniError, match="'llama', not a 'qwen3_vl'"):
        Anatomy.from_config(config | {"model_type": "llama"})
