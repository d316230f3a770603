"""The road of a training with each family's small model: what is loaded, learned, said and written.

Qwen3-VL's own tests go further; here stands what any family has to hold.
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
    """Parameters and outcome of a training that nothing interrupts, by the worker itself."""
    p = family.params(tmp_path_factory.mktemp("trained"), base_folder)
    return p, worker.work(p, windows=family.windows(killed_training.NUM_WINDOWS))


@pytest.fixture(scope="module")
def tuned(trained):
    """The base model as it was trained with the trained adapter."""
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
def test_what_is_prepared_is_the_same_function_of_the_same_weights(family, fuse):
    config = family.make_config(family.tokenizer())
    model = AutoModelForImageTextToText.from_config(config).eval()
    before, names = logits(family, model), list(model.state_dict())
    family.kind().prepare(model, fuse)
    torch.testing.assert_close(logits(family, model), before)
    assert list(model.state_dict()) == names


def test_every_norm_of_width_and_each_attention_of_qwens_tower_is_fused(family):
    """A CPU has no such kernel and takes transformers' own; the formulas are compared here."""
    config = family.make_config(family.tokenizer())
    model = AutoModelForImageTextToText.from_config(config)
    norm = model.model.language_model.norm
    norm.weight.data.uniform_(-0.5, 1)
    hidden = torch.randn(3, 5, norm.weight.shape[0]) * 7
    before = norm(hidden)
    family.kind().prepare(model)
    # The norm of the gated delta rule has a kernel of its own.
    language = model.model.language_model.modules()
    norms = [each for each in language if type(each).__name__.endswith("RMSNorm")]
    towers = [each for each in model.modules() if "Qwen" in type(each).__name__]
    towers = [each for each in towers if "VisionAttention" in type(each).__name__]
    assert len(norms) >= 2 * 2 + 1 and len(towers) in (0, 2)
    assert all("forward" in vars(each) for each in norms + towers)
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


def test_the_record_says_what_the_model_saw(family, trained):
    _, outcome = trained
    record = adapter.read_record(outcome.adapter)
    assert record == outcome.record
    talk = family.conversation()
    assert record["prompt_form"] == talk.backbone.prompt_form
    assert record["prompt_tokens"] == len(talk.prompt_ids)
    assert record["sees"]["pixels"] == talk.backbone.pixels


def test_lora_is_in_the_language_model_alone(family, trained, tuned):
    _, outcome = trained
    names = {path for path, module in tuned.named_modules() if hasattr(module, "lora_A")}
    layers = {path.split(".layers.")[1] for path in names}
    assert all(".language_model.layers." in path for path in names)
    assert layers == set(family.adapted)
    size = size_of(trained[0])
    expected = size.num_adapter(64, family.kind().lora_targets)
    assert outcome.figures["trainable_parameters"] == expected


def test_4_bit_holds_the_language_models_layers_alone(family, base_folder, tmp_path):
    p = changed_params.changed(family.params(tmp_path, base_folder), "model.load_in_4bit", True)
    model = load.load_base(p).model
    names = [path for path, each in model.named_modules() if isinstance(each, Linear4bit)]
    assert len(names) == family.num_linears
    assert all(".language_model.layers." in path for path in names)


def test_killed_it_ends_with_the_same_bytes(family, base_folder, trained, tmp_path):
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


def test_a_batch_is_answered_as_its_windows_alone(family, tuned):
    talk, frames = family.conversation(), frames_of(family)
    histories = ["", " Speed there: 5.23m/s.", " Rows from the top."]
    together = generate_texts(tuned, talk, frames, 12, histories=histories)
    alone = [
        generate_texts(tuned, talk, frames[i : i + 1], 12, histories=histories[i : i + 1])[0]
        for i in range(len(frames))
    ]
    assert together == alone


def test_constrained_answers_have_the_targets_form(family, tuned):
    talk = family.conversation()
    for answer in generate_texts(tuned, talk, frames_of(family), 96, constrained=True):
        assert re.fullmatch(talk.target.pattern, answer), answer


def test_the_cards_own_lines_load_the_adapter_by_plain_peft(family, trained, tuned, monkeypatch):
    _, outcome = trained
    card = (outcome.adapter / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(outcome.adapter)
    names = {}
    exec(snippet, names)
    expected = logits(family, tuned)
    for module in names["model"].modules():
        # On some CPUs bitsandbytes would round to bfloat16, which the worker does not let it do.
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    torch.testing.assert_close(logits(family, names["model"]), expected, rtol=1e-3, atol=1e-4)
    family.kind().prepare(names["model"].get_base_model())  # the same sums in the same order
    assert torch.equal(logits(family, names["model"]), expected)
    assert apart(logits(family, load.load_base(trained[0]).model), expected) > 0.1


def test_the_card_says_how_it_is_served(family, trained, merged):
    _, outcome = trained
    card = (outcome.adapter / "README.md").read_text()
    kind = family.kind()
    assert kind.prompt_form in card and kind.serving_note in card
    (request,) = re.findall(r"```json\n(.*?)```", card, re.DOTALL)
    assert outcome.record["question"] in request
    lines = commands(adapter.read_record(outcome.adapter), folder="/a")
    kept = commands(adapter.read_record(merged), "merged", "/m")
    assert bool(lines["vllm"]) is kind.adapters_in_vllm
    assert bool(lines["llama.cpp"]) is bool(kept["llama.cpp"]) is kind.in_llama_cpp
    words = shlex.split(kept["vllm"][0])
    for part in filter(None, ("--max-model-len 512", kind.server_arguments(family.videos()))):
        asked = shlex.split(part)
        assert asked[1] == words[words.index(asked[0]) + 1]
    for text, made in ((card, lines), ((merged / "README.md").read_text(), kept)):
        assert ("vllm serve" in text) is bool(made["vllm"])
        assert ("convert_" in text) is bool(made["llama.cpp"])


def test_the_merged_model_is_a_plain_checkpoint_with_the_same_logits(family, merged, tuned):
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


def test_servers_find_the_numbers_to_normalise_by(family, merged):
    """Of pictures and of videos: the classes' own defaults are another model's."""
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        values = files.read_json(merged / name)
        assert family.processor.items() <= values.items()


def test_a_bases_own_files_are_kept_but_for_numbers_that_it_was_not_trained_by(
    family, trained, base_folder, tmp_path
):
    """Many a checkpoint has the class's default for videos, and the right numbers for pictures."""
    p, outcome = trained
    base = shutil.copytree(base_folder, tmp_path / "base")
    own = {"video_processor": {"image_mean": [0.48, 0.46, 0.41], "of": "the base"}}
    files.write_json(base / "processor_config.json", own)
    other = family.params(tmp_path, base)
    shutil.copytree(outcome.adapter, adapter.adapter_dir(other))
    kept = files.read_json(merge.merge(other) / "processor_config.json")["video_processor"]
    changes = family.kind().as_trained(own) != own
    expected = family.processor["image_mean"] if changes else [0.48, 0.46, 0.41]
    assert kept == {"image_mean": expected, "of": "the base"}


def test_the_plan_of_the_folder_counts_its_tokens_and_weights(family, trained):
    p, _ = trained
    tokens, talk = tokens_per_sample(p), family.conversation()
    assert tokens.vision == talk.num_vision_tokens
    assert tokens.total - tokens.answer == pytest.approx(len(talk.prompt_ids), rel=0.15)
    plain = load.load_base(changed_params.changed(p, "model.load_in_4bit", False)).model
    needed = sum(weight.numel() * 4 for weight in plain.parameters())
    told = memory(
        changed_params.changed(p, "model.load_in_4bit", False),
        size_of(p),
        tokens,
        device="cpu",
        dtype_bytes=4,
    )
    assert told.weights == pytest.approx(needed, rel=0.15)


def test_unsloth_is_not_taken_for_a_family_that_it_has_no_path_for(family, trained):
    if family.kind().in_unsloth:
        pytest.skip("it has one")
    p, _ = trained
    choice = load.choose(p)["backend"]
    assert choice.value == "transformers"
    assert choice.reason == f"Unsloth has no path for the backbone {family.name}"
    with pytest.raises(AvomniError, match=f"no path for the backbone {family.name}"):
        load.choose(changed_params.changed(p, "model.backend", "unsloth"))
