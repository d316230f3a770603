import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from avomni_lib.errors import AvomniError
from avomni_lib.training.backbones import Video, backbone, family
from avomni_lib.training.model import adapter, load
from tests import changed_params, training_set


@pytest.fixture
def p(tmp_path, base_folder):
    return training_set.params(tmp_path, base_folder)


def plain(p):
    """The same parameters without 4 bit, for exact comparisons."""
    return p.model_copy(update={"model": p.model.model_copy(update={"load_in_4bit": False})})


def weights_of(tuned):
    return {name: w.detach().clone() for name, w in tuned.named_parameters() if w.requires_grad}


EIGHT_B = Qwen3VLConfig(  # as in config.json of Qwen/Qwen3-VL-8B-Instruct
    text_config={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    vision_config={
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 4096,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    tie_word_embeddings=False,
)


def qwen3_vl_8b():
    """The 8B on the meta device: shapes without weights."""
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(EIGHT_B)


def test_lora_adapts_only_the_language_models_attention_of_the_8b(tmp_path):
    p = training_set.params(tmp_path, "unused", model={"lora_rank": 64, "lora_alpha": 64})
    big = qwen3_vl_8b()
    assert sum(w.numel() for w in big.parameters()) == pytest.approx(8.77e9, rel=0.002)
    kind = backbone("qwen3_vl", big.config)
    with torch.device("meta"):
        tuned = load.add_adapter(big, p, kind)

    adapted = [name for name, module in tuned.named_modules() if hasattr(module, "lora_A")]
    expected = {
        f"base_model.model.model.language_model.layers.{layer}.self_attn.{part}_proj"
        for layer in range(36)
        for part in "qkvo"
    }
    assert len(adapted) == 36 * 4 and set(adapted) == expected
    # LoRA adds rank × (in + out): q and o are 4096 × 4096, k and v 4096 × (8 heads of 128).
    layer = 64 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert load.trainable_parameters(tuned) == 36 * layer == 61_341_696
    learning = [name for name, w in tuned.named_parameters() if w.requires_grad]
    assert not [name for name in learning if "visual" in name or "lora_" not in name]


def test_lora_adapts_the_modules_named_in_the_parameters(tmp_path):
    named = ["self_attn.v_proj", "down_proj"]
    p = training_set.params(tmp_path, "unused", model={"lora_rank": 64, "lora_targets": named})
    big = qwen3_vl_8b()
    with torch.device("meta"):
        tuned = load.add_adapter(big, p, backbone("qwen3_vl", big.config))
    adapted = [name for name, module in tuned.named_modules() if hasattr(module, "lora_A")]
    ends = {".".join(name.rsplit(".", 2)[1:]) for name in adapted}
    assert len(adapted) == 36 * 2 and ends == {"self_attn.v_proj", "mlp.down_proj"}
    expected = family("qwen3_vl").released("Qwen3-VL-8B").num_adapter(64, named)
    assert load.trainable_parameters(tuned) == expected


def test_unknown_lora_targets_are_refused_with_the_known_ones(p):
    other = changed_params.changed(p, "model.lora_targets", ["q_proj", "qkv", "proj"])
    with pytest.raises(AvomniError, match="no linear layer called qkv, proj") as caught:
        load.add_adapter(load.load_base(other).model, other, backbone("qwen3_vl"))
    assert "model.lora_targets" in str(caught.value)
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in str(caught.value)


def test_8b_and_tiny_model_have_the_same_input_format():
    kind = backbone("qwen3_vl", qwen3_vl_8b().config)
    assert kind == backbone("qwen3_vl")
    assert kind.num_vision_tokens([Video((0.0,) * 16, 512, 896)]) == 3584


def test_only_the_language_model_is_quantised(p):
    base = load.load_base(p)
    quantised = [
        name for name, module in base.model.named_modules() if type(module).__name__ == "Linear4bit"
    ]
    assert quantised and all(".language_model." in name for name in quantised)
    assert len(quantised) == 2 * 7, "q, k, v, o, gate, up, down of both layers"
    assert base.choices["quantisation"].value == "nf4"
    module = base.model.get_submodule(quantised[0])
    assert module.weight.quant_state.quant_type == "nf4" and module.weight.quant_state.nested
    assert module.compute_dtype == torch.float32


def test_every_choice_has_a_reason(p):
    base = load.load_base(plain(p))
    assert set(base.choices) == {"device", "dtype", "attention", "backend", "quantisation"}
    assert all(choice.reason for choice in base.choices.values())
    assert base.choices["quantisation"].value == "none"
    assert base.model.config._attn_implementation == base.choices["attention"].value


def test_quantised_checkpoint_is_loaded_unchanged(p, tmp_path):
    base = load.load_base(p)
    base.model.save_pretrained(tmp_path / "bnb-4bit")
    base.tokenizer.save_pretrained(tmp_path / "bnb-4bit")
    stored = plain(training_set.params(tmp_path, tmp_path / "bnb-4bit"))
    again = load.load_base(stored)
    assert again.choices["quantisation"].value == "stored"
    assert "bitsandbytes" in again.choices["quantisation"].reason
    name = "model.language_model.layers.0.self_attn.q_proj"
    assert torch.equal(
        again.model.get_submodule(name).weight.data, base.model.get_submodule(name).weight.data
    )


def test_missing_base_model_is_reported_with_a_remedy(tmp_path):
    p = training_set.params(tmp_path, tmp_path / "nowhere")
    with pytest.raises(AvomniError, match="nowhere.*cannot be loaded") as caught:
        load.load_base(p)
    assert "model.base_model" in str(caught.value) and "tiny" in str(caught.value)


def test_base_model_of_another_type_is_refused(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(AvomniError, match="'llama', not a 'qwen3_vl'"):
        load.load_base(training_set.params(tmp_path, tmp_path / "llama"))


def test_initial_adapter_depends_only_on_the_seed(p):
    def start(p, noise):
        torch.manual_seed(noise)
        base = load.load_base(p)
        return weights_of(load.add_adapter(base.model, p, backbone("qwen3_vl")))

    first, again = start(p, 1), start(p, 2)
    assert first and all(torch.equal(first[name], again[name]) for name in first)
    other = start(p.model_copy(update={"run": p.run.model_copy(update={"seed": 4})}), 1)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_model_without_the_target_modules_is_refused(p):
    with pytest.raises(AvomniError, match="finds no place"):
        load.add_adapter(torch.nn.Linear(2, 2), p, backbone("qwen3_vl"))


@pytest.fixture
def trained(p):
    """The base model with an adapter that changes its logits, also saved to the disk."""
    p = plain(p)
    return p, training_set.make_adapter(p)


def test_loaded_adapter_has_the_same_logits(trained):
    p, tuned = trained

    def logits(model):
        conversation, windows = training_set.conversation(), training_set.Stripes(9)
        return training_set.logits(model, conversation, windows, [0, 5])

    base = load.load_base(p).model
    before = logits(base)
    after = logits(load.load_adapter(base, adapter.adapter_dir(p), p))
    expected = logits(tuned.eval())
    assert torch.equal(after, expected)
    assert not torch.allclose(after, before)


def test_record_has_a_notice_for_confidential_clips(p, tmp_path):
    conversation = training_set.conversation()
    hub_params = training_set.params(tmp_path, p.model.base_model, dataset={"source": "hub"})
    record = adapter.record_of(hub_params, training_set.Stripes(8), conversation, "digest", {})
    assert record["notice"] == "contains confidential data: do not share"
    rendered = adapter.record_of(p, training_set.Stripes(8), conversation, "digest", {})
    assert rendered["notice"] is None
    assert rendered["training_clip_ids"] == ["clip-0", "clip-1"]
