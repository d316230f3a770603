"""Training, merging and serving of each family's small model.

These tests hold for every family; test_qwen3_vl.py has more for Qwen3-VL.
"""

import re
import shlex
import shutil
import signal

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from avomni_lib import files
from avomni_lib.errors import AvomniError
from avomni_lib.training.export import merge
from avomni_lib.training.export.card import commands
from avomni_lib.training.fit import worker
from avomni_lib.training.forecast.memory import memory, size_of
from avomni_lib.training.model import adapter, load
from avomni_lib.training.model.generate import generate_texts
from avomni_lib.training.prompt.tokens import tokens_per_sample
from tests import changed_params, killed_training, training_set
from tests.families import FAMILIES
from tests.test_merging import TOLERANCE
from tests.training_set import apart

INDICES = (0, 3, 7)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def base_folder(family, tmp_path_factory):
    return family.make_base(tmp_path_factory.mktemp(family.name))


@pytest.fixture(scope="module")
def trained(family, base_folder, tmp_path_factory):
    """Parameters and outcome of an uninterrupted training, run by the worker in this process."""
    p = family.params(tmp_path_factory.mktemp("trained"), base_folder)
    return p, worker.work(p, windows=family.windows(killed_training.NUM_WINDOWS))


@pytest.fixture(scope="module")
def tuned(trained):
    """The base model, loaded as for training, with the trained adapter."""
    p, outcome = trained
    return load.load_adapter(load.load_base(p).model, outcome.adapter, p)


@pytest.fixture(scope="module")
def merged(trained):
    return merge.merge(trained[0])


def frames_of(family, indices=INDICES):
    return np.stack([family.windows(24).frames(index) for index in indices])


def logits(family, model):
    return training_set.logits(model, family.conversation(), family.windows(24), INDICES)


@pytest.mark.parametrize("fuse", [True, False])
def test_prepare_keeps_logits_and_weight_names(family, fuse):
    config = family.make_config(family.tokenizer())
    model = AutoModelForImageTextToText.from_config(config).eval()
    before, names = logits(family, model), list(model.state_dict())
    family.kind().prepare(model, fuse)
    torch.testing.assert_close(logits(family, model), before)
    assert list(model.state_dict()) == names


def test_prepare_fuses_rms_norms_and_qwen_vision_attention(family):
    """A CPU has no fused kernel, so only the formulas are compared here."""
    config = family.make_config(family.tokenizer())
    model = AutoModelForImageTextToText.from_config(config)
    norm = model.model.language_model.norm
    norm.weight.data.uniform_(-0.5, 1)
    hidden = torch.randn(3, 5, norm.weight.shape[0]) * 7
    before = norm(hidden)
    family.kind().prepare(model)
    # The norm of the gated delta rule has a kernel of its own.
    language = model.model.language_model.modules()
    norms = [module for module in language if type(module).__name__.endswith("RMSNorm")]
    towers = [module for module in model.modules() if "Qwen" in type(module).__name__]
    towers = [module for module in towers if "VisionAttention" in type(module).__name__]
    assert len(norms) >= 2 * 2 + 1 and len(towers) in (0, 2)
    assert all("forward" in vars(module) for module in norms + towers)
    assert torch.equal(norm(hidden), before)
    fused = torch.nn.functional.rms_norm
    if type(norm).__name__ == "Qwen3_5RMSNorm":
        scaled = fused(hidden, norm.weight.shape, None, norm.eps)
        expected = torch.addcmul(scaled, scaled, norm.weight)
    else:
        expected = fused(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    torch.testing.assert_close(expected, before)


def test_training_lowers_the_loss(family, trained):
    _, outcome = trained
    losses = [line["loss"] for line in outcome.metrics]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.1
    assert outcome.choices["backend"].value == "transformers"
    assert outcome.choices["quantisation"].value == family.quantisation
    assert (outcome.choices["quantisation"].reason == family.kind().sixteen_bit_because) is (
        family.quantisation == "none"
    )


def test_record_holds_the_prompt_and_pixel_format(family, trained):
    _, outcome = trained
    record = adapter.read_record(outcome.adapter)
    assert record == outcome.record
    conversation = family.conversation()
    assert record["prompt_form"] == conversation.backbone.prompt_form
    assert record["prompt_tokens"] == len(conversation.prompt_ids)
    assert record["sees"]["pixels"] == conversation.backbone.pixels


def test_lora_adapts_only_the_language_model(family, trained, tuned):
    _, outcome = trained
    names = {path for path, module in tuned.named_modules() if hasattr(module, "lora_A")}
    layers = {path.split(".layers.")[1] for path in names}
    assert all(".language_model.layers." in path for path in names)
    assert layers == set(family.adapted)
    size = size_of(trained[0])
    expected = size.num_adapter(64, family.kind().lora_targets)
    assert outcome.figures["trainable_parameters"] == expected


def test_only_language_model_layers_are_quantised(family, base_folder, tmp_path):
    p = changed_params.changed(family.params(tmp_path, base_folder), "model.load_in_4bit", True)
    model = load.load_base(p).model
    names = [path for path, module in model.named_modules() if isinstance(module, Linear4bit)]
    assert len(names) == family.num_linears
    assert all(".language_model.layers." in path for path in names)


def test_killed_training_resumes_to_the_same_bytes(family, base_folder, trained, tmp_path):
    _, expected = trained
    death = ("os.rename", "partial/checkpoint-4", 1)
    arguments = family.name, tmp_path, base_folder, death
    killed = killed_training.exit_code(killed_training.train_family, *arguments)
    assert killed == -signal.SIGKILL
    p = family.params(tmp_path, base_folder)
    outcome = worker.work(p, windows=family.windows(killed_training.NUM_WINDOWS))
    assert outcome.figures["resumed_from_step"] == 2
    for path in sorted(expected.adapter.iterdir()):
        assert (outcome.adapter / path.name).read_bytes() == path.read_bytes(), path.name


def test_batched_answers_equal_single_answers(family, tuned):
    conversation, frames = family.conversation(), frames_of(family)
    histories = ["", " Speed there: 5.23m/s.", " Rows from the top."]
    together = generate_texts(tuned, conversation, frames, 12, histories=histories)
    alone = [
        generate_texts(tuned, conversation, frames[i : i + 1], 12, histories=histories[i : i + 1])[
            0
        ]
        for i in range(len(frames))
    ]
    assert together == alone


def test_constrained_answers_match_the_target_pattern(family, tuned):
    conversation = family.conversation()
    for answer in generate_texts(tuned, conversation, frames_of(family), 96, constrained=True):
        assert re.fullmatch(conversation.target.pattern, answer), answer


def test_model_card_snippet_loads_the_adapter_with_peft(family, trained, tuned, monkeypatch):
    _, outcome = trained
    card = (outcome.adapter / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(outcome.adapter)
    names = {}
    exec(snippet, names)
    expected = logits(family, tuned)
    for module in names["model"].modules():
        # On some CPUs bitsandbytes rounds to bfloat16; the worker turns that off.
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    torch.testing.assert_close(logits(family, names["model"]), expected, rtol=1e-3, atol=1e-4)
    family.kind().prepare(names["model"].get_base_model())  # then sums are taken in the same order
    assert torch.equal(logits(family, names["model"]), expected)
    assert apart(logits(family, load.load_base(trained[0]).model), expected) > 0.1


def test_model_card_has_the_serving_commands(family, trained, merged):
    _, outcome = trained
    card = (outcome.adapter / "README.md").read_text()
    kind = family.kind()
    assert kind.prompt_form in card and kind.serving_note in card
    (request,) = re.findall(r"```json\n(.*?)```", card, re.DOTALL)
    assert outcome.record["question"] in request
    lines = commands(adapter.read_record(outcome.adapter), folder="/a")
    merged_lines = commands(adapter.read_record(merged), "merged", "/m")
    assert bool(lines["vllm"]) is kind.adapters_in_vllm
    assert bool(lines["llama.cpp"]) is bool(merged_lines["llama.cpp"]) is kind.in_llama_cpp
    words = shlex.split(merged_lines["vllm"][0])
    for part in filter(None, ("--max-model-len 512", kind.server_arguments(family.videos()))):
        option = shlex.split(part)
        assert option[1] == words[words.index(option[0]) + 1]
    for text, expected in ((card, lines), ((merged / "README.md").read_text(), merged_lines)):
        assert ("vllm serve" in text) is bool(expected["vllm"])
        assert ("convert_" in text) is bool(expected["llama.cpp"])


def test_merged_model_is_a_plain_checkpoint_with_the_same_logits(family, merged, tuned):
    assert {path.name for path in merged.iterdir()} == {
        *("README.md", "record.json", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *family.kind().processor_files(family.make_config(family.tokenizer())),
    }
    config = files.read_json(merged / "config.json")
    assert "quantization_config" not in config
    tied = config["tie_word_embeddings"]
    stored = load_file(merged / "model.safetensors")
    assert any(name.endswith("lm_head.weight") for name in stored) is not tied
    plain = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).eval()
    assert apart(logits(family, plain), logits(family, tuned)) < TOLERANCE["bfloat16"]


def test_merged_model_has_the_normalisation_statistics(family, merged):
    """For images and videos: the defaults of the processor classes belong to another model."""
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        values = files.read_json(merged / name)
        assert family.processor.items() <= values.items()


def test_merge_keeps_the_base_files_but_corrects_the_image_mean(
    family, trained, base_folder, tmp_path
):
    """Many checkpoints have the class's default for videos but the right values for images."""
    p, outcome = trained
    base = shutil.copytree(base_folder, tmp_path / "base")
    base_config = {"video_processor": {"image_mean": [0.48, 0.46, 0.41], "of": "the base"}}
    files.write_json(base / "processor_config.json", base_config)
    other = family.params(tmp_path, base)
    shutil.copytree(outcome.adapter, adapter.adapter_dir(other))
    merged_config = files.read_json(merge.merge(other) / "processor_config.json")["video_processor"]
    changes = family.kind().as_trained(base_config) != base_config
    expected = family.processor["image_mean"] if changes else [0.48, 0.46, 0.41]
    assert merged_config == {"image_mean": expected, "of": "the base"}


def test_plan_estimates_tokens_and_weights_of_a_base_folder(family, trained):
    p, _ = trained
    tokens, conversation = tokens_per_sample(p), family.conversation()
    assert tokens.vision == conversation.num_vision_tokens
    assert tokens.total - tokens.answer == pytest.approx(len(conversation.prompt_ids), rel=0.15)
    plain = load.load_base(changed_params.changed(p, "model.load_in_4bit", False)).model
    needed = sum(weight.numel() * 4 for weight in plain.parameters())
    estimate = memory(
        changed_params.changed(p, "model.load_in_4bit", False),
        size_of(p),
        tokens,
        device="cpu",
        dtype_bytes=4,
    )
    assert estimate.weights == pytest.approx(needed, rel=0.15)


def test_unsloth_is_not_chosen_for_unsupported_families(family, trained):
    if family.kind().in_unsloth:
        pytest.skip("it has one")
    p, _ = trained
    choice = load.choose(p)["backend"]
    assert choice.value == "transformers"
    assert choice.reason == f"Unsloth has no path for the backbone {family.name}"
    with pytest.raises(AvomniError, match=f"no path for the backbone {family.name}"):
        load.choose(changed_params.changed(p, "model.backend", "unsloth"))
